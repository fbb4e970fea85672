"""The settings of the service that bound its clients and say who they may be; `MLSettings` has them all.

A list is a TOML list, or in the environment a text with commas.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from attrs import Attribute, field, frozen

from warrener.errors import SettingsError, printable

__all__ = ["ServerSettings"]

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.ASCII)
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)
#: The schemes that a `media_url` of the HTTP interface may have; "file" stands for a path without a scheme.
SCHEMES = ("http", "https", "s3", "file")
#: Characters that a bearer token may have (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*", re.ASCII)


def _refused(attribute: Attribute[Any], allowed: str, value: object) -> SettingsError:
    return SettingsError(f"{attribute.name} must be {allowed}, not {printable(repr(value), 60)}")


def _number(kind: type[int | float], default: float, lowest: float, highest: float, unit: str) -> Any:
    def read(value: object) -> object:
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            return value

    def check(_settings: object, attribute: Attribute[Any], value: object) -> None:
        numbers = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers) or not lowest <= value <= highest:
            raise _refused(attribute, f"{unit} from {lowest:g} to {highest:g}", value)

    return field(default=default, converter=read, validator=check)


def _texts(default: tuple[str, ...], allowed: str, fits: Callable[[str], bool]) -> Any:
    def read(value: object) -> object:
        if isinstance(value, str):
            return tuple(item.strip().lower() for item in value.split(",") if item.strip())
        return tuple(cast("list[object]", value)) if isinstance(value, list | tuple) else value

    def check(_settings: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple):
            raise _refused(attribute, f"a list of {allowed}", value)
        for item in cast("tuple[object, ...]", value):
            if not isinstance(item, str) or not fits(item):
                raise _refused(attribute, f"a list of {allowed}", item)

    return field(default=default, converter=read, validator=check)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _is_token(_settings: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and _TOKEN.fullmatch(value)):
        # The value is a secret and is not shown.
        raise SettingsError(f"{attribute.name} must have 16 or more of the characters A-Z a-z 0-9 - . _ ~ + /")


@frozen(kw_only=True)
class ServerSettings:
    """The bounds of the service and the names under which it is reached; durations are float seconds."""

    #: Maximum number of connections. When there are more, the one that has waited longest for its client is closed.
    max_connections: int = _number(int, 512, 1, 100_000, "a number")
    #: Maximum size of a request's head, in bytes; a larger one is answered 431.
    max_header: int = _number(int, 16 * 1024, 1024, 2**20, "bytes")
    #: A head that is not whole within this time, counted from its first byte, is answered 408.
    header_timeout: float = _number(float, 10.0, 0.1, 3600, "seconds")
    #: A body that is not whole within this time, counted from the first byte of the head, is answered 408.
    body_timeout: float = _number(float, 15.0, 0.1, 3600, "seconds")
    #: A connection without a request for this time is closed.
    idle_timeout: float = _number(float, 5.0, 0.1, 3600, "seconds")
    #: Maximum size of a body as parsed, in bytes; a larger one is answered 413.
    max_parsed: int = _number(int, 32 * 1024 * 1024, 1024, 2**34, "bytes")

    #: Host names under which the service is reached, besides localhost and IP addresses; others are answered 421.
    allowed_hosts: tuple[str, ...] = _texts((), "host names", lambda text: _HOST.fullmatch(text) is not None)
    #: Origins of web pages that may send tasks, besides the service's own.
    allowed_origins: tuple[str, ...] = _texts(
        (), "origins such as https://example.org", lambda text: _ORIGIN.fullmatch(text) is not None
    )
    #: Addresses and networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
    forwarded_from: tuple[str, ...] = _texts((), "IP addresses or networks", _is_network)
    #: Schemes that the `media_url` of a task may have: http, https, s3, and file for a path.
    media_schemes: tuple[str, ...] = _texts(("http", "https"), ", ".join(SCHEMES), lambda text: text in SCHEMES)
    #: The bearer token that clients must send to publish tasks and to read the metrics; None: no token is asked for.
    token: str | None = field(default=None, validator=_is_token, repr=False)
    #: A file that holds the token.
    token_file: str | None = None

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
            raise SettingsError(
                f"token_file {printable(self.token_file)} must hold 16 or more of the characters A-Z a-z 0-9 - . _ ~ + /"
            )
        return text
