"""What an endpoint may be: checks of an address, its credentials and its TLS files, wherever they come from."""

from __future__ import annotations

import ssl
import unicodedata

from warrener._settings.rules import NAME, Rule, is_integer
from warrener.errors import SettingsError
from warrener.records import Credentials, Endpoint

__all__ = ["ENDPOINT_RULES", "check_credentials", "check_endpoint", "check_vhost"]

_MECHANISMS = {"auto": None, "plain": "PLAIN", "amqplain": "AMQPLAIN", "external": "EXTERNAL"}


def _parse_mechanism(text: str) -> str | None:
    try:
        return _MECHANISMS[text.lower()]
    except KeyError:
        raise ValueError from None


#: The parts of an endpoint that are settings of their own, beside the parts that stand in a URL.
ENDPOINT_RULES: dict[str, Rule] = {
    "mechanism": Rule(
        "'PLAIN', 'AMQPLAIN', 'EXTERNAL' or 'auto' (None in code)",
        _parse_mechanism,
        lambda value: value in _MECHANISMS.values(),
    ),
    "server_hostname": Rule(NAME.allowed, str, lambda value: value is None or NAME.holds(value)),
}


def check_endpoint(endpoint: Endpoint, *, require_tls: bool, ssl_context: ssl.SSLContext | None) -> None:
    """Refuse an endpoint with a value that is not allowed, and TLS material that a plain connection would ignore."""
    if not isinstance(endpoint, Endpoint):
        raise SettingsError(f"endpoints must hold an Endpoint, not {type(endpoint).__name__}")
    if not is_integer(endpoint.port) or not 1 <= endpoint.port <= 65535:
        raise SettingsError("the endpoint's port must be a whole number from 1 to 65535")
    if not endpoint.host:
        raise SettingsError("the endpoint has no host")
    for name in ("host", "vhost"):
        if not isinstance(value := getattr(endpoint, name), str):
            raise SettingsError(f"the endpoint's {name} must be str, not {type(value).__name__}")
    check_vhost(endpoint.vhost, "the endpoint")
    check_credentials(endpoint.credentials, "the endpoint")
    for name, rule in ENDPOINT_RULES.items():
        rule.check(name, getattr(endpoint, name))
    if not endpoint.tls:
        _refuse_tls_material(endpoint, ssl_context)
    if endpoint.keyfile is not None and endpoint.certfile is None:
        raise SettingsError("a TLS key file is set, but no certificate file; set the certificate file as well")
    if endpoint.keyfile_password is not None and endpoint.certfile is None:
        raise SettingsError(
            "a password of a TLS key file is set, but no certificate file; set the file, or drop the password"
        )
    files = [name for name in ("cafile", "certfile", "keyfile") if getattr(endpoint, name) is not None]
    if ssl_context is not None and files:
        raise SettingsError(
            f"ssl_context and {files[0]} are both set; load the file into the context, or drop the context"
        )
    if endpoint.mechanism == "EXTERNAL" and ssl_context is None and endpoint.certfile is None:
        raise SettingsError(
            "mechanism is EXTERNAL, which logs in by the client's certificate, but there is none; set RABBITMQ_SSL_CERTFILE "
            "or load a certificate into ssl_context"
        )
    if require_tls and not endpoint.tls and not endpoint.local:
        raise SettingsError(
            f"require_tls is set, but {endpoint} would carry the password in plain text to another host; use amqps://"
        )


def _refuse_tls_material(endpoint: Endpoint, ssl_context: ssl.SSLContext | None) -> None:
    for name in ("cafile", "certfile", "keyfile", "keyfile_password", "server_hostname"):
        if getattr(endpoint, name) is not None:
            raise SettingsError(
                f"{name} is set, but {endpoint} is a plain-text connection; use amqps://, or drop {name}"
            )
    if ssl_context is not None:
        raise SettingsError(
            f"ssl_context is set, but {endpoint} is a plain-text connection; use amqps://, or drop ssl_context"
        )
    if endpoint.mechanism == "EXTERNAL":
        raise SettingsError(f"mechanism is EXTERNAL, but {endpoint} is a plain-text connection; use amqps://")


def check_vhost(vhost: str, source: str) -> None:
    """Refuse a virtual host that AMQP cannot carry."""
    if len(vhost.encode(errors="replace")) > 255:
        raise SettingsError(f"the virtual host in {source} is longer than 255 bytes, the limit of AMQP")
    if any(unicodedata.category(char)[0] == "C" for char in vhost):
        raise SettingsError(f"the virtual host in {source} holds a control character")


def check_credentials(credentials: Credentials, source: str) -> None:
    """Refuse a user or a password that SASL PLAIN cannot carry."""
    # SASL PLAIN separates its fields by NUL (RFC 4616), so the broker would take a NUL inside a field for its end.
    if "\0" in credentials.username or "\0" in credentials.password:
        raise SettingsError(f"user or password in {source} holds a NUL character, which SASL PLAIN cannot carry")
