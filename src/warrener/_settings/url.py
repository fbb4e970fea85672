"""The URL of a broker: from ``amqp://user:password@host:port/vhost?query`` to an endpoint and its raw query.

A password is moved from the URL into `Credentials` once; no text shows it afterwards. An error quotes no part of a URL,
because any part may belong to a password that was not percent-encoded. A URL with a raw ``@`` after the host is
refused: it is the sign of an unescaped ``/``, ``?`` or ``#`` in a password. A URL with a bad port is refused too:
``amqp://user:secret`` without a host reads as host ``user`` and port ``secret``. Errors are raised ``from None``,
because the errors of parsers quote their input.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import unquote_to_bytes

import attrs
from attrs import frozen

from warrener._settings.endpoints import check_credentials, check_vhost
from warrener.errors import SettingsError
from warrener.records import Credentials, Endpoint

__all__ = ["DEFAULT_PORT", "DEFAULT_TLS_PORT", "BrokerURL", "percent_decoded"]

DEFAULT_PORT = 5672
DEFAULT_TLS_PORT = 5671

_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::([0-9]*))?", re.ASCII)
_PLAIN_HOST = re.compile(r"([\w.-]+)(?::([0-9]*))?")

_ESCAPING = "percent-encode / as %2F, ? as %3F, # as %23 and @ as %40 in user, password and virtual host"


@frozen
class BrokerURL:
    """A URL that was split; nothing of it is secret but the endpoint's credentials, which are never shown."""

    endpoint: Endpoint
    #: As it stands in the URL, percent-encoded.
    query: str = attrs.field(repr=False)
    #: Whether the URL has a user; without one the endpoint has RabbitMQ's own default, guest.
    names_user: bool

    @classmethod
    def parse(cls, url: str, source: str) -> BrokerURL:
        """Split a URL; `source` is its name in errors. Raises `SettingsError`, which never quotes the URL."""
        url = url.strip()
        if any(char.isspace() or unicodedata.category(char)[0] == "C" for char in url):
            raise SettingsError(f"{source} holds white space or a control character")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in ("amqp", "amqps"):
            raise SettingsError(f"{source} must start with amqp:// or amqps://")
        if "#" in rest:
            raise SettingsError(f"{source} holds a '#'; {_ESCAPING}")
        if _BAD_ESCAPE.search(rest):
            raise SettingsError(
                f"{source} holds a '%' without two hexadecimal digits behind it; write %25 for a percent sign"
            )
        before_query, _, query = rest.partition("?")
        authority, slash, path = before_query.partition("/")
        if "@" in path or "@" in query:
            raise SettingsError(f"{source} holds an '@' behind its host; {_ESCAPING}")
        userinfo, at, address = authority.rpartition("@")
        tls = scheme.lower() == "amqps"
        host, port = _parse_address(address, source, tls=tls)
        vhost = percent_decoded(path, source) if slash and path else "/"
        check_vhost(vhost, source)
        endpoint = Endpoint(host=host, port=port, vhost=vhost, tls=tls)
        if at:
            endpoint = attrs.evolve(endpoint, credentials=_parse_userinfo(userinfo, source))
        return cls(endpoint, query, bool(at))


def percent_decoded(text: str, source: str) -> str:
    """Decode a part of the URL, once."""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise SettingsError(f"a percent-encoded part of {source} is not UTF-8") from None


def _parse_userinfo(userinfo: str, source: str) -> Credentials:
    user, colon, password = userinfo.partition(":")
    if not user or not colon:
        missing = "user" if not user else "password"
        raise SettingsError(f"{source} has an '@' but no {missing} before it; write amqp://user:password@host/")
    credentials = Credentials(percent_decoded(user, source), percent_decoded(password, source))
    check_credentials(credentials, source)
    return credentials


def _parse_address(address: str, source: str, *, tls: bool) -> tuple[str, int]:
    if "," in address:
        raise SettingsError(f"{source} names several hosts; write a whole URL for each, with a comma between two URLs")
    if not address or address.startswith(":"):
        raise SettingsError(f"{source} has no host")
    if match := _BRACKETED.fullmatch(address):
        host = percent_decoded(match[1], source)  # a zone is written fe80::1%25eth0 (RFC 6874)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise SettingsError(f"the text in brackets in {source} is no IPv6 address") from None
        if not re.fullmatch(r"[\w:.%-]+", host, re.ASCII):
            raise SettingsError(f"the text in brackets in {source} is no IPv6 address")
    elif match := _PLAIN_HOST.fullmatch(address):
        host = match[1]
        try:
            host.encode("idna")
        except UnicodeError:
            raise SettingsError(f"the host in {source} is no host name") from None
    else:
        raise SettingsError(
            f"host or port in {source} cannot be understood: a port is a number, an IPv6 address stands in brackets, "
            f"and credentials end with an '@'"
        )
    port = match[2]
    if not port:
        return host, DEFAULT_TLS_PORT if tls else DEFAULT_PORT
    if len(port) > 5 or not 1 <= int(port) <= 65535:
        raise SettingsError(f"the port in {source} must be from 1 to 65535")
    return host, int(port)
