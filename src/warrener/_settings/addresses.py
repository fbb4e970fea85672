"""From URLs to endpoints: the list of URLs, what the environment adds to each, and which mixes of them are refused.

The URLs come from code or ``RABBITMQ_URL`` once, or from the program's `endpoints` before each pass (`Discovery`). Both obey
the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import attrs
from attrs import field, frozen

from warrener._settings.rules import FLAG, Rule
from warrener._settings.sources import Given, from_query
from warrener._settings.url import DEFAULT_TLS_PORT, BrokerURL
from warrener.errors import SettingsError
from warrener.records import Credentials, Endpoint

__all__ = [
    "TLS_VARIABLES",
    "Addresses",
    "CredentialsSource",
    "EndpointsSource",
    "from_queries",
    "url_texts",
    "without_user",
]

#: The program's own callable for the credentials, asked before each dial.
CredentialsSource: TypeAlias = Callable[[], Awaitable[Credentials]]
#: The program's own callable for the endpoints, asked before each pass.
EndpointsSource: TypeAlias = Callable[[], Awaitable[str | Sequence[str] | Sequence[Endpoint]]]

#: Between two URLs.
_SEPARATOR: Final = re.compile(r"\s*,\s*(?=amqps?://)", re.IGNORECASE)

_FILE_VARIABLES: Final = {
    "RABBITMQ_SSL_CACERT": "cafile",
    "RABBITMQ_SSL_CERTFILE": "certfile",
    "RABBITMQ_SSL_KEYFILE": "keyfile",
}

#: The variables about TLS.
TLS_VARIABLES: Final = (*_FILE_VARIABLES, "RABBITMQ_SSL_KEYFILE_PASSWORD", "RABBITMQ_USE_SSL")


def url_texts(url: str | Sequence[str] | None, environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the URLs (at least one), and the name of their source for the texts of errors."""
    source = "the URL"
    if url is None:
        url, source = environ.get("RABBITMQ_URL", ""), "RABBITMQ_URL"
        if not url:
            raise SettingsError("no broker: pass a URL such as amqp://user:password@host/, or set RABBITMQ_URL")
    if isinstance(url, str):
        # A URL may hold a comma, for example in its password; only a comma before the next scheme separates two URLs.
        return _SEPARATOR.split(url), source
    if not isinstance(url, list | tuple) or not all(isinstance(each, str) for each in url):
        raise SettingsError(f"the URL must be str, or a list of str, not {type(url).__name__}")
    if not url:
        raise SettingsError("the list of URLs is empty")
    return list(url), source


def from_queries(urls: Sequence[BrokerURL], source: str, rules: Mapping[str, Rule]) -> dict[str, Given]:
    """Return the settings in the queries of all URLs; a setting with two values is refused."""
    merged: dict[str, Given] = {}
    for parsed in urls:
        for name, given in from_query(parsed.query, source, rules).items():
            if merged.setdefault(name, given).value != given.value:
                raise SettingsError(
                    f"{name} has different values in the queries of the URLs; it is one setting for all"
                )
    return merged


def without_user(endpoint: Endpoint, source: str) -> Endpoint:
    """Return the endpoint of a URL that names no user, or refuse it."""
    if endpoint.mechanism == "EXTERNAL":
        return attrs.evolve(endpoint, credentials=Credentials("", ""))
    if not endpoint.local:
        # RabbitMQ accepts the user guest from its own machine only, so for another host the URL must name a user.
        raise SettingsError(f"{source} has no user; the user guest is the default for a local broker only")
    return endpoint


def _with_tls_files(endpoint: Endpoint, environ: Mapping[str, str], source: str) -> Endpoint:
    """Add the files that the environment names, and refuse them where the URL's scheme contradicts them."""
    if use_ssl := environ.get("RABBITMQ_USE_SSL", ""):
        wanted = FLAG.read("RABBITMQ_USE_SSL", use_ssl)
        if wanted and not endpoint.tls:
            raise SettingsError(
                f"RABBITMQ_USE_SSL is true, but {source} says amqp://, which is plain text; write amqps:// (and its port, "
                f"{DEFAULT_TLS_PORT}), or unset RABBITMQ_USE_SSL"
            )
        if not wanted and endpoint.tls:
            raise SettingsError(f"RABBITMQ_USE_SSL is false, but {source} says amqps://; keep one of them")
    material: dict[str, Any] = {}
    for variable, name in _FILE_VARIABLES.items():
        path = environ.get(variable, "")
        if not path:
            continue
        if not endpoint.tls:
            raise SettingsError(f"{variable} is set, but {source} says amqp://, which is plain text; write amqps://")
        try:
            with Path(path).open("rb"):
                pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise SettingsError(f"the file that {variable} names cannot be read: {reason}") from None
        material[name] = path
    if password := environ.get("RABBITMQ_SSL_KEYFILE_PASSWORD", ""):
        material["keyfile_password"] = password
    return attrs.evolve(endpoint, **material)


@frozen
class Addresses:
    """What every endpoint has besides its URL: files and settings from the environment and from code."""

    #: The environment variables that name TLS files.
    environ: Mapping[str, str] = field(factory=dict[str, str], repr=False)
    #: Values that replace those of each endpoint, such as one for ``mechanism``.
    changes: Mapping[str, Any] = field(factory=dict[str, Any])
    #: `require_tls` was written, so the list can mix amqp and amqps.
    can_mix: bool = False
    #: The user comes from `credentials`, so that a URL needs none.
    needs_no_user: bool = False

    def endpoints(self, urls: Sequence[BrokerURL], source: str) -> tuple[Endpoint, ...]:
        """Return the endpoints of the URLs; `source` names them in errors. Raises `SettingsError`."""
        self._refuse_a_mix([parsed.endpoint for parsed in urls], source)
        if len(urls) > 1 and self.changes.get("server_hostname") is not None:
            raise SettingsError(
                f"server_hostname is one name, but {source} holds {len(urls)} URLs, each with its own host; drop server_hostname"
            )
        found: list[Endpoint] = []
        for parsed in urls:
            endpoint = attrs.evolve(_with_tls_files(parsed.endpoint, self.environ, source), **self.changes)
            needs_user = not parsed.names_user and not self.needs_no_user
            found.append(without_user(endpoint, source) if needs_user else endpoint)
        return tuple(found)

    def _refuse_a_mix(self, endpoints: Sequence[Endpoint], source: str) -> None:
        if not self.can_mix and len({endpoint.tls for endpoint in endpoints}) > 1:
            raise SettingsError(
                f"{source} mixes amqp:// and amqps://, so the credentials would be sent in plain text at times; use one of "
                "them, or set require_tls to false"
            )

    def discovered(self, answer: object) -> tuple[Endpoint, ...]:
        """Return the endpoints of an answer of `endpoints()`: URLs, or `Endpoint` values. Raises `SettingsError`."""
        source = "the answer of endpoints()"
        if not isinstance(answer, str | list | tuple):
            raise SettingsError(f"endpoints() must return URLs or Endpoint values, not {type(answer).__name__}")
        if not answer:
            raise SettingsError("endpoints() returned no endpoint")
        items = [answer] if isinstance(answer, str) else list(cast("Sequence[object]", answer))
        endpoints = tuple(item for item in items if isinstance(item, Endpoint))
        if len(endpoints) == len(items):
            self._refuse_a_mix(endpoints, source)
            return endpoints
        texts = [text for item in items if isinstance(item, str) for text in _SEPARATOR.split(item)]
        if not all(isinstance(item, str) for item in items):
            raise SettingsError("endpoints() must return either URLs or Endpoint values, in a list or a tuple")
        urls = [BrokerURL.parse(text, source) for text in texts]
        if any(parsed.query for parsed in urls):
            raise SettingsError(f"{source} holds a URL with a query; settings cannot change while a producer runs")
        return self.endpoints(urls, source)
