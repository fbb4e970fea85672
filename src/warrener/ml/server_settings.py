"""The settings of the service that bound its clients and say who they may be; `MLSettings` has them all.

A list is a text with commas, in the file and in the environment, and a tuple in code.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import attrs
from attrs import field, frozen

from warrener._settings.rules import Rule, count, number, row
from warrener.errors import SettingsError, printable

__all__ = ["ServerSettings"]

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.ASCII)
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)
#: The schemes that a `media_url` of the HTTP interface may have; "file" stands for a path without a scheme.
SCHEMES = ("http", "https", "s3", "file")
#: Characters that a bearer token may have (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*", re.ASCII)
_TOKEN_FORM = "16 or more of the characters A-Z a-z 0-9 - . _ ~ + /"  # noqa: S105 - its form


def _texts(item: str, fits: Callable[[str], bool]) -> Rule:
    def parse(text: str) -> tuple[str, ...]:
        return tuple(part.strip().lower() for part in text.split(",") if part.strip())

    def holds(value: object) -> bool:
        if not isinstance(value, tuple):
            return False
        return all(isinstance(part, str) and fits(part) for part in cast("tuple[object, ...]", value))

    return Rule(f"a list of {item}, with commas between them", parse, holds)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


class _Secret(Rule):
    """A rule whose error does not show the value."""

    def refuse(self, name: str, value: object, source: str = "") -> NoReturn:
        """Raise the `SettingsError` that names the setting and the allowed values."""
        raise SettingsError(f"{name} must be {self.allowed}" + (f" (from {source})" if source else "")) from None


_SECRET = _Secret(_TOKEN_FORM, str, lambda value: isinstance(value, str) and _TOKEN.fullmatch(value) is not None)


def _check_token(_settings: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _SECRET.check(attribute.name, value)


_TIME = number(0.1, 3600, "seconds")
_PATH = Rule("the path of a file", str, lambda value: isinstance(value, str) and value != "")
_PLACE = _Secret(
    "the path of a SQLite file, or a PostgreSQL connection string",
    str,
    lambda value: isinstance(value, str) and value != "",
)


def _check_place(_settings: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _PLACE.check(attribute.name, value)


@frozen(kw_only=True)
class ServerSettings:
    """The bounds of the service and the names under which it is reached; durations are float seconds."""

    #: Maximum number of connections. When there are more, the one that has waited longest for its client is closed.
    max_connections: int = row(count(1, 100_000), 512)
    #: Maximum size of a request's head, in bytes; a larger one is answered 431.
    max_header: int = row(count(1024, 2**20, "bytes"), 16 * 1024)
    #: Maximum number of fields in a request's head; with more it is answered 431.
    max_fields: int = row(count(10, 10_000), 100)
    #: A head that is not whole within this time, counted from its first byte, is answered 408.
    header_timeout: float = row(_TIME, 10.0)
    #: A body that is not whole within this time, counted from the first byte of the head, is answered 408.
    body_timeout: float = row(_TIME, 15.0)
    #: A connection without a request for this time is closed.
    idle_timeout: float = row(_TIME, 5.0)
    #: Maximum size of a body as parsed, in bytes; a larger one is answered 413.
    max_parsed: int = row(count(1024, 2**34, "bytes"), 32 * 1024 * 1024)

    #: Host names under which the service is reached, besides localhost and IP addresses; others are answered 421.
    allowed_hosts: tuple[str, ...] = row(_texts("host names", lambda text: bool(_HOST.fullmatch(text))), ())
    #: Origins of web pages that may send tasks, besides the service's own.
    allowed_origins: tuple[str, ...] = row(
        _texts("origins such as https://example.org", lambda text: bool(_ORIGIN.fullmatch(text))), ()
    )
    #: Addresses and networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
    forwarded_from: tuple[str, ...] = row(_texts("IP addresses or networks", _is_network), ())
    #: Schemes that the `media_url` of a task may have: http, https, s3, and file for a path.
    media_schemes: tuple[str, ...] = row(_texts(" or ".join(SCHEMES), lambda text: text in SCHEMES), ("http", "https"))
    #: The bearer token that clients must send to publish tasks and to read the metrics; None: no token is asked for.
    token: str | None = field(
        default=None, validator=_check_token, repr=False, metadata={Rule: _SECRET, "variable": ""}
    )
    #: A file that holds the token.
    token_file: str | None = row(_PATH, None, optional=True)

    #: The outbox: the path of a SQLite file, or a PostgreSQL connection string; None: there is none. With an outbox, a task
    #: is on disk before it is published, and is accepted while the broker is away.
    outbox: str | None = field(
        default=None, validator=_check_place, repr=False, metadata={Rule: _PLACE, "variable": ""}
    )

    def read_token(self) -> str | None:
        """Return the token, from the setting or from its file; raises `SettingsError`."""
        if self.token_file is None:
            return self.token
        if self.token is not None:
            raise SettingsError("token and token_file are both set; set one of them")
        try:
            text = Path(self.token_file).read_text(encoding="ascii").strip()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise SettingsError(f"token_file {printable(self.token_file)} cannot be read: {reason}") from None
        except UnicodeDecodeError:
            text = ""
        if not _TOKEN.fullmatch(text):
            raise SettingsError(f"token_file {printable(self.token_file)} must hold {_TOKEN_FORM}")
        return text
