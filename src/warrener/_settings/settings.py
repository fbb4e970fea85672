"""Settings: one frozen record, made from code, a URL and environment variables; what contradicts itself raises here.

Order of precedence, highest first: explicit arguments, the query of the URL, the environment, the defaults. Every
mistake is one `SettingsError` that names the setting, the value, where it came from and what is allowed.

What must stay true:

* A password leaves the URL once, into `Credentials`, and is in no text from then on. No message quotes any part of a URL
  before it has been proven not to belong to the credentials: a raw ``@`` behind the authority (the sign of an unescaped
  ``/``, ``?`` or ``#`` in a password) refuses the URL unquoted, and so does a bad port (``amqp://user:secret`` without a
  host reads as host ``user`` and port ``secret``). Errors are raised ``from None``: parsers put their input into theirs.
* A URL cannot lower security: no switch of the query turns verification off, ``require_tls=false`` is refused there.
* TLS that was asked for in one place is never dropped because of another: ``RABBITMQ_USE_SSL=true`` or certificate files
  beside an ``amqp://`` URL are refused by name rather than upgraded or, worse, ignored.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import ssl
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, TypedDict, Unpack
from urllib.parse import unquote_to_bytes

import attrs
from attrs import Factory, field, frozen

from warrener.drivers.base import LinkOptions
from warrener.errors import SettingsError, printable
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.records import Credentials, Endpoint
from warrener.topology import Binding, Declaration, Exchange, Queue

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_TLS_PORT",
    "Delivery",
    "Settings",
    "SettingsFields",
    "TopologyErrors",
    "WhenExhausted",
    "endpoint_from_url",
]

DEFAULT_PORT = 5672
DEFAULT_TLS_PORT = 5671

Delivery: TypeAlias = Literal["at_least_once", "at_most_once"]
WhenExhausted: TypeAlias = Literal["stay", "raise"]
TopologyErrors: TypeAlias = Literal["strict", "report"]

#: Above this a number of seconds is taken for milliseconds: no dial is worth a quarter of an hour.
_SURELY_MILLISECONDS = 1000


# --- rules: what each setting may be, and how text becomes it ---------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@frozen
class _Rule:
    #: Ends the sentence "<setting> must be …".
    allowed: str
    #: From text to a value; raises ValueError.
    parse: Callable[[str], object]
    holds: Callable[[Any], bool]

    def check(self, name: str, value: object, source: str = "") -> None:
        if not self.holds(value):
            self.refuse(name, value, source)

    def value(self, name: str, text: str, source: str = "") -> Any:
        """Return what `text` stands for; raise `SettingsError` where that is nothing, or not allowed."""
        try:
            value = self.parse(text)
        except ValueError:
            self.refuse(name, text, source)
        self.check(name, value, source)
        return value

    def refuse(self, name: str, value: object, source: str = "") -> NoReturn:
        origin = f" (from {source})" if source else ""
        raise SettingsError(f"{name} must be {self.allowed}, not {printable(repr(value), 60)}{origin}") from None


def _seconds(*, zero: bool = False, forever: bool = True) -> _Rule:
    low = "0 or more" if zero else "more than 0"
    return _Rule(
        f"a number of seconds, {low}" + ("" if forever else ", and finite"),
        float,
        lambda value: _is_number(value) and (value >= 0 if zero else value > 0) and (forever or math.isfinite(value)),
    )


def _count(low: int, high: int | None = None) -> _Rule:
    return _Rule(
        f"a whole number, at least {low}" + (f" and at most {high}" if high is not None else ""),
        int,
        lambda value: _is_integer(value) and value >= low and (high is None or value <= high),
    )


def _one_of(*choices: str) -> _Rule:
    return _Rule(
        " or ".join(repr(choice) for choice in choices),
        str,
        lambda value: value in choices,
    )


_FLAGS = {
    "true": True,
    "on": True,
    "yes": True,
    "1": True,
    "false": False,
    "off": False,
    "no": False,
    "0": False,
}


def _parse_flag(text: str) -> bool:
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ValueError from None


_FLAG = _Rule("true or false", _parse_flag, lambda value: isinstance(value, bool))

_NAME = _Rule(
    "1 to 255 bytes of printable text",
    str,
    lambda value: (
        isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= 255 and printable(value) == value
    ),
)

_HEARTBEAT = _Rule(
    "whole seconds from 0 (off) to 65535, as AMQP carries it",
    float,
    lambda value: _is_number(value) and 0 <= value <= 65535 and value == int(value),
)

_CONNECT_TIMEOUT = _Rule(
    f"a number of seconds, more than 0 and less than {_SURELY_MILLISECONDS} (seconds, not milliseconds)",
    float,
    lambda value: _is_number(value) and 0 < value < _SURELY_MILLISECONDS,
)

_ATTEMPTS = _Rule(
    "a whole number, at least 0, or 'forever' (None in code)",
    lambda text: None if text.lower() == "forever" else int(text),
    lambda value: value is None or (_is_integer(value) and value >= 0),
)

_JITTER = _Rule("a number from 0 to 1", float, lambda value: _is_number(value) and 0 <= value <= 1)
_FACTOR = _Rule(
    "a finite number, at least 1",
    float,
    lambda value: _is_number(value) and 1 <= value < math.inf,
)

# Backoff and Breaker refuse bad numbers themselves; these rules add the types, and name the variable behind a text.
_BACKOFF_RULES: Mapping[str, _Rule] = {
    "initial": _seconds(forever=False),
    "factor": _FACTOR,
    "cap": _seconds(forever=False),
    "attempts": _ATTEMPTS,
    "jitter": _JITTER,
    "min_gap": _seconds(zero=True, forever=False),
}

_BREAKER_RULES: Mapping[str, _Rule] = {
    "threshold": _count(1),
    "cooldown": _seconds(zero=True, forever=False),
    "probes": _count(1),
}


def _row(rule: _Rule, default: object) -> Any:
    """Make an attrs field that is checked by `rule` and can be set from text."""

    def validate(settings: object, attribute: attrs.Attribute[Any], value: object) -> None:
        rule.check(attribute.name, value)

    return field(
        default=default,
        validator=validate,
        converter=_as_float if rule.parse is float else None,
        metadata={_Rule: rule},
    )


_SOME_SECONDS = _seconds(forever=False)


def _as_float(value: float) -> float:
    # The validator runs after this and sees what is no number as it was given.
    return float(value) if _is_integer(value) else value


def _program_name() -> str:
    """Return ``warrener:<program>:<pid>``, the default of the client property `connection_name`."""
    path = Path(sys.argv[0] if sys.argv else "")
    program = path.parent.name if path.name == "__main__.py" else path.name
    return f"warrener:{printable(program or 'python', 200)}:{os.getpid()}"


def _default_confirm_timeout(settings: Settings) -> float:
    longest = settings.publish_timeout
    # Validators run later: what is no number is refused by its own name then.
    return min(30.0, longest) if _is_number(longest) else 30.0


def _as_tuple(topology: Iterable[Declaration]) -> tuple[Declaration, ...]:
    if isinstance(topology, Exchange | Queue | Binding | str | bytes):
        raise SettingsError("topology must be a sequence of Exchange, Queue and Binding")
    try:
        return tuple(topology)
    except TypeError:
        raise SettingsError("topology must be a sequence of Exchange, Queue and Binding") from None


class SettingsFields(TypedDict, total=False):
    """The rows of `Settings` but its endpoints, as keywords of `Settings.resolve`, `Producer` and `open_producer`."""

    name: str | None
    connect_timeout: float
    heartbeat: float
    prefetch: int
    backoff: Backoff
    breaker: Breaker | None
    stable_for: float
    when_exhausted: WhenExhausted
    publish_timeout: float
    confirm_timeout: float
    delivery: Delivery
    max_buffered: int
    max_buffered_bytes: int
    max_block: float
    max_in_flight: int
    max_in_flight_bytes: int
    declare_timeout: float
    topology_errors: TopologyErrors
    refusal_memory: float
    max_destinations: int
    drain_timeout: float
    close_timeout: float
    abort_timeout: float
    write_stall_timeout: float
    frame_timeout: float
    max_inbound_body: int
    require_tls: bool
    ssl_context: ssl.SSLContext | None
    topology: Iterable[Declaration]


# --- the record -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Settings:
    """Everything a producer is told, checked when it is made; durations are float seconds.

    Make it with `Settings.resolve`, or directly from an `Endpoint`. Raises `SettingsError`, which never shows a secret.
    """

    #: One for now.
    endpoints: tuple[Endpoint, ...]
    #: The client property `connection_name`, as the broker's management pages show it.
    name: str = _row(_NAME, Factory(_program_name))
    #: One deadline from name resolution to confirm.select-ok.
    connect_timeout: float = _row(_CONNECT_TIMEOUT, 10.0)
    #: Negotiated as the smaller of both sides; 0 is off.
    heartbeat: float = _row(_HEARTBEAT, 60.0)
    #: basic.qos on the channel; 0 is no limit.
    prefetch: int = _row(_count(0, 65535), 100)
    backoff: Backoff = field(factory=Backoff)
    #: None: off.
    breaker: Breaker | None = field(factory=Breaker)
    #: A link that was up for so long, or one confirm, resets the attempts.
    stable_for: float = _row(_SOME_SECONDS, 10.0)
    #: What `run()` does when the attempts are used up: stay and wait for `reconnect()`, or raise.
    when_exhausted: WhenExhausted = _row(_one_of("stay", "raise"), "stay")
    #: The deadline of a publish that names none; `math.inf`: no deadline.
    publish_timeout: float = _row(_seconds(), 60.0)
    #: A link whose oldest publish waits longer for its confirm is replaced. Not longer than `publish_timeout` (R26);
    #: where it is not given, the smaller of 30 s and `publish_timeout`.
    confirm_timeout: float = _row(
        _seconds(),
        Factory(_default_confirm_timeout, takes_self=True),
    )
    delivery: Delivery = _row(_one_of("at_least_once", "at_most_once"), "at_least_once")
    #: Messages accepted and not yet written.
    max_buffered: int = _row(_count(1), 10_000)
    max_buffered_bytes: int = _row(_count(1), 64 * 1024 * 1024)
    #: How long a publish waits for room while the link is down or blocked.
    max_block: float = _row(_seconds(zero=True), 5.0)
    #: Messages written and not yet confirmed.
    max_in_flight: int = _row(_count(1), 10_000)
    #: The bytes of their bodies; one message that is larger is in flight alone.
    max_in_flight_bytes: int = _row(_count(1), 64 * 1024 * 1024)
    #: The longest wait for the broker's answer to one declaration of the topology.
    declare_timeout: float = _row(_seconds(forever=False), 10.0)
    #: After a refused declaration: "strict", each publish fails with the refusal; "report", publishers go on.
    topology_errors: TopologyErrors = _row(_one_of("strict", "report"), "strict")
    #: How long the broker's refusal of a destination answers further publishes to it; 0 is off.
    refusal_memory: float = _row(_seconds(zero=True, forever=False), 5.0)
    #: The largest number of destinations (exchange and routing key) for which a breaker is kept.
    max_destinations: int = _row(_count(1), 1000)
    #: How long closing waits for what was accepted.
    drain_timeout: float = _row(_seconds(zero=True), 10.0)
    #: How long the close handshake may take.
    close_timeout: float = _row(_seconds(forever=False), 3.0)
    #: How long a shielded abort may take.
    abort_timeout: float = _row(_seconds(forever=False), 1.0)
    #: A write that takes longer ends the link.
    write_stall_timeout: float = _row(_seconds(), 30.0)
    #: An inbound frame that takes longer from first to last byte ends the link.
    frame_timeout: float = _row(_seconds(), 30.0)
    #: Returned content beyond so many bytes is dropped, its hash kept.
    max_inbound_body: int = _row(_count(0), 1024 * 1024)
    #: Refuse to send credentials without TLS to a host that is not local.
    require_tls: bool = _row(_FLAG, False)
    #: Programmatic only: replaces the context that is made from the endpoint's files. One that does not verify is obeyed
    #: and logged (R21).
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    #: Declared on each new link before publishers are let in.
    topology: tuple[Declaration, ...] = field(default=(), converter=_as_tuple)

    def __attrs_post_init__(self) -> None:
        _check_backoff(self.backoff)
        _check_breaker(self.breaker)
        for declaration in self.topology:
            if not isinstance(declaration, Exchange | Queue | Binding):
                raise SettingsError(f"topology must hold Exchange, Queue and Binding, not {type(declaration).__name__}")
        if self.confirm_timeout > self.publish_timeout:
            raise SettingsError(
                f"confirm_timeout ({self.confirm_timeout:g} s) is longer than publish_timeout "
                f"({self.publish_timeout:g} s), so no publish could wait for it; lower the one or raise the other"
            )
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise SettingsError(f"ssl_context must be an ssl.SSLContext, not {type(self.ssl_context).__name__}")
        if type(self.endpoints) is not tuple or len(self.endpoints) != 1:
            raise SettingsError("endpoints must be a tuple of one Endpoint; failover between several is not there yet")
        _check_endpoint(
            self.endpoints[0],
            require_tls=self.require_tls,
            ssl_context=self.ssl_context,
        )

    @property
    def endpoint(self) -> Endpoint:
        """The broker's address."""
        return self.endpoints[0]

    def link_options(self) -> LinkOptions:
        """Return the part that a driver is opened with."""
        return LinkOptions(
            connection_name=self.name,
            **{
                attribute.name: getattr(self, attribute.name)
                for attribute in attrs.fields(LinkOptions)
                if attribute.name != "connection_name"
            },
        )

    @classmethod
    def resolve(
        cls,
        url: str | Sequence[str] | Settings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        **explicit: Unpack[SettingsFields],
    ) -> Settings:
        """Put settings together: `explicit` over the URL's query over the environment over `defaults` over our own.

        `url` None means ``RABBITMQ_URL``. A `Settings` is taken as it is but for what is `explicit`; then neither URL nor
        environment is read. `environ` stands in for `os.environ`; variables that are set but empty count as not set.

        Raises `SettingsError`: naming what is unknown, out of range or contradictory, never with a secret.
        """
        for name in explicit:
            if name not in _EXPLICIT:
                raise SettingsError(f"unknown setting {printable(name, 60)!r}{_did_you_mean(name, _EXPLICIT)}")
        chosen: dict[str, Any] = {**explicit}
        if chosen.get("name", ...) is None:
            del chosen["name"]
        if isinstance(url, Settings):
            return attrs.evolve(url, **chosen)
        if environ is None:
            environ = os.environ
        given = {name: _Given(text, "the defaults") for name, text in (defaults or {}).items()}
        given |= _from_environment(environ)
        text, source = _url_text(url, environ)
        endpoint, query = _parse_url(text, source)
        given |= _from_query(query, source)
        endpoint = _with_tls_files(endpoint, environ, source)
        return cls(endpoints=(endpoint,), **(_parsed(given) | chosen))


# --- checks that need more than one value -----------------------------------------------------------------------------


def _check_backoff(backoff: Backoff) -> None:
    if not isinstance(backoff, Backoff):
        raise SettingsError(f"backoff must be a Backoff, not {type(backoff).__name__}")
    for name, rule in _BACKOFF_RULES.items():
        rule.check(f"backoff.{name}", getattr(backoff, name))


def _check_breaker(breaker: Breaker | None) -> None:
    if breaker is None:
        return
    if not isinstance(breaker, Breaker):
        raise SettingsError(f"breaker must be a Breaker or None (off), not {type(breaker).__name__}")
    for name, rule in _BREAKER_RULES.items():
        rule.check(f"breaker.{name}", getattr(breaker, name))


def _check_endpoint(endpoint: Endpoint, *, require_tls: bool, ssl_context: ssl.SSLContext | None) -> None:
    if not isinstance(endpoint, Endpoint):
        raise SettingsError(f"endpoints must hold an Endpoint, not {type(endpoint).__name__}")
    if not _is_integer(endpoint.port) or not 1 <= endpoint.port <= 65535:
        raise SettingsError("the endpoint's port must be a whole number from 1 to 65535")
    if not endpoint.host:
        raise SettingsError("the endpoint has no host")
    _check_vhost(endpoint.vhost, "the endpoint")
    _check_credentials(endpoint.credentials, "the endpoint")
    files = [name for name in ("cafile", "certfile", "keyfile") if getattr(endpoint, name) is not None]
    if endpoint.keyfile is not None and endpoint.certfile is None:
        raise SettingsError("a TLS key file is set, but no certificate file to go with it")
    if files and not endpoint.tls:
        raise SettingsError(
            f"{files[0]} is set, but {endpoint} is not TLS and would be spoken in plain text; use amqps://"
        )
    if ssl_context is not None and not endpoint.tls:
        raise SettingsError(
            f"ssl_context is set, but {endpoint} is not TLS and would be spoken in plain text; use amqps://"
        )
    if ssl_context is not None and files:
        raise SettingsError(
            f"ssl_context and {files[0]} are both set; load the file into the context, or drop the context"
        )
    if require_tls and not endpoint.tls and not endpoint.local:
        raise SettingsError(
            f"require_tls is set, but {endpoint} would carry the password in plain text to another host; use amqps://"
        )


def _check_vhost(vhost: str, source: str) -> None:
    if len(vhost.encode(errors="replace")) > 255:
        raise SettingsError(f"the virtual host in {source} is longer than 255 bytes, the limit of AMQP")
    if any(unicodedata.category(char)[0] == "C" for char in vhost):
        raise SettingsError(f"the virtual host in {source} holds a control character")


def _check_credentials(credentials: Credentials, source: str) -> None:
    # SASL PLAIN separates its fields by NUL (RFC 4616): one inside a field would move the border.
    if "\0" in credentials.username or "\0" in credentials.password:
        raise SettingsError(f"user or password in {source} holds a NUL character, which SASL PLAIN cannot carry")


# --- the environment --------------------------------------------------------------------------------------------------


@frozen
class _Given:
    """A value as text, and where it came from."""

    text: str
    source: str


_EXPLICIT = frozenset(attribute.name for attribute in attrs.fields(Settings)) - {"endpoints"}

#: Everything that text can set: rows, parts of backoff and breaker, and the breaker's own switch.
_TEXT_RULES: dict[str, _Rule] = (
    {attribute.name: attribute.metadata[_Rule] for attribute in attrs.fields(Settings) if _Rule in attribute.metadata}
    | {f"backoff_{name}": rule for name, rule in _BACKOFF_RULES.items()}
    | {f"breaker_{name}": rule for name, rule in _BREAKER_RULES.items()}
    | {"breaker": _Rule("on or off", _parse_flag, lambda value: isinstance(value, bool))}
)

_PREFIX = "WARRENER_"

#: The names that the service had in its environment before.
_OLD_NAMES = {
    "RABBITMQ_HEARTBEAT": "heartbeat",
    "RABBITMQ_CONNECTION_TIMEOUT": "connect_timeout",
    "RABBITMQ_RECONNECT_ATTEMPTS": "backoff_attempts",
}

_FILE_VARIABLES = {
    "RABBITMQ_SSL_CACERT": "cafile",
    "RABBITMQ_SSL_CERTFILE": "certfile",
    "RABBITMQ_SSL_KEYFILE": "keyfile",
}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for variable in sorted(environ):
        if variable.startswith(_PREFIX):
            setting = variable.removeprefix(_PREFIX).lower()
            if setting not in _TEXT_RULES or variable != variable.upper():
                known = [f"{_PREFIX}{name.upper()}" for name in _TEXT_RULES]
                raise SettingsError(
                    f"unknown environment variable {printable(variable, 80)}{_did_you_mean(variable.upper(), known)}"
                )
            if environ[variable]:
                given[setting] = _Given(environ[variable], variable)
    for variable, setting in _OLD_NAMES.items():
        if text := environ.get(variable, ""):
            other = given.get(setting)
            if other is not None and other.text != text:
                raise SettingsError(f"{variable} and {other.source} are both set and differ; keep one of them")
            given[setting] = _Given(text, variable)
    return given


def _with_tls_files(endpoint: Endpoint, environ: Mapping[str, str], source: str) -> Endpoint:
    """Add the files that the environment names, and refuse where it contradicts the URL's scheme."""
    if use_ssl := environ.get("RABBITMQ_USE_SSL", ""):
        wanted = _FLAG.value("RABBITMQ_USE_SSL", use_ssl)
        if wanted and not endpoint.tls:
            raise SettingsError(
                f"RABBITMQ_USE_SSL is true, but {source} says amqp://, which is plain text; write amqps:// (and its port, "
                f"{DEFAULT_TLS_PORT}), or unset RABBITMQ_USE_SSL"
            )
        if not wanted and endpoint.tls:
            raise SettingsError(f"RABBITMQ_USE_SSL is false, but {source} says amqps://; keep one of them")
    files: dict[str, str] = {}
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
        files[name] = path
    return attrs.evolve(
        endpoint, cafile=files.get("cafile"), certfile=files.get("certfile"), keyfile=files.get("keyfile")
    )


# --- from text to values ----------------------------------------------------------------------------------------------


def _parsed(given: Mapping[str, _Given]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting, one in given.items():
        values[setting] = _TEXT_RULES[setting].value(setting, one.text, one.source)
    backoff = {name: values.pop(f"backoff_{name}") for name in _BACKOFF_RULES if f"backoff_{name}" in values}
    if backoff:
        values["backoff"] = Backoff(**backoff)
    breaker = {name: values.pop(f"breaker_{name}") for name in _BREAKER_RULES if f"breaker_{name}" in values}
    if values.pop("breaker", True):
        values["breaker"] = Breaker(**breaker)
    elif breaker:
        part = given[f"breaker_{next(iter(breaker))}"]
        raise SettingsError(f"{given['breaker'].source} turns the breaker off, but {part.source} sets it up; drop one")
    else:
        values["breaker"] = None
    return values


# --- the URL ----------------------------------------------------------------------------------------------------------

_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::([0-9]*))?", re.ASCII)
_PLAIN_HOST = re.compile(r"([\w.-]+)(?::([0-9]*))?")

_ESCAPING = "percent-encode / as %2F, ? as %3F, # as %23 and @ as %40 in user, password and virtual host"


def endpoint_from_url(url: str) -> Endpoint:
    """Return the address that an ``amqp://`` or ``amqps://`` URL names, whatever its query says.

    Raises `SettingsError`, which never quotes the URL.
    """
    return _parse_url(url, "the URL")[0]


def _url_text(url: str | Sequence[str] | None, environ: Mapping[str, str]) -> tuple[str, str]:
    if isinstance(url, str):
        return url, "the URL"
    if url is None:
        if text := environ.get("RABBITMQ_URL", ""):
            return text, "RABBITMQ_URL"
        raise SettingsError("no broker: pass a URL such as amqp://user:password@host/, or set RABBITMQ_URL")
    if isinstance(url, list | tuple):
        raise SettingsError("one URL, please: failover between several brokers is not there yet")
    raise SettingsError(f"the URL must be str, not {type(url).__name__}")


def _parse_url(url: str, source: str) -> tuple[Endpoint, str]:
    """Split a URL into its endpoint and its raw query. Nothing of it is quoted in an error (see the module's text)."""
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
    vhost = _decoded(path, source) if slash and path else "/"
    _check_vhost(vhost, source)
    endpoint = Endpoint(host=host, port=port, vhost=vhost, tls=tls)
    if at:
        endpoint = attrs.evolve(endpoint, credentials=_parse_userinfo(userinfo, source))
    elif not endpoint.local:
        # RabbitMQ lets guest in from its own machine only; elsewhere the default would be a password in code.
        raise SettingsError(f"{source} names no user; guest is assumed for a local broker only")
    return endpoint, query


def _decoded(text: str, source: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise SettingsError(f"a percent-encoded part of {source} is not UTF-8") from None


def _parse_userinfo(userinfo: str, source: str) -> Credentials:
    user, colon, password = userinfo.partition(":")
    if not user or not colon:
        missing = "user" if not user else "password"
        raise SettingsError(f"{source} has an '@' but no {missing} before it; write amqp://user:password@host/")
    credentials = Credentials(_decoded(user, source), _decoded(password, source))
    _check_credentials(credentials, source)
    return credentials


def _parse_address(address: str, source: str, *, tls: bool) -> tuple[str, int]:
    if "," in address:
        raise SettingsError(f"{source} names several hosts; failover between several brokers is not there yet")
    if not address or address.startswith(":"):
        raise SettingsError(f"{source} names no host")
    if match := _BRACKETED.fullmatch(address):
        host = _decoded(match[1], source)  # a zone is written fe80::1%25eth0 (RFC 6874)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise SettingsError(f"what stands in brackets in {source} is no IPv6 address") from None
        if not re.fullmatch(r"[\w:.%-]+", host, re.ASCII):
            raise SettingsError(f"what stands in brackets in {source} is no IPv6 address")
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


#: What other clients take from a query, and where it belongs here.
_REFUSED_PARAMETERS = {
    "cacertfile": "set RABBITMQ_SSL_CACERT",
    "cafile": "set RABBITMQ_SSL_CACERT",
    "certfile": "set RABBITMQ_SSL_CERTFILE",
    "keyfile": "set RABBITMQ_SSL_KEYFILE",
    "no_verify_ssl": "a URL cannot turn verification off; pass ssl_context in code",
    "verify": "a URL cannot turn verification off; pass ssl_context in code",
    "ssl_options": "a URL cannot turn verification off; pass ssl_context in code",
    "connection_timeout": "here it is connect_timeout, in seconds",
    "connection_attempts": "here it is backoff_attempts",
    "retry_delay": "here it is backoff_initial",
}


def _from_query(query: str, source: str) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition("=")
        name, value = _decoded(raw_name, source), _decoded(raw_value, source)
        shown = printable(name, 60)
        if name in _REFUSED_PARAMETERS:
            raise SettingsError(f"{source} cannot set {shown}: {_REFUSED_PARAMETERS[name]}")
        if name not in _TEXT_RULES:
            raise SettingsError(f"unknown query parameter {shown!r} in {source}{_did_you_mean(name, _TEXT_RULES)}")
        if not equals or not value:
            raise SettingsError(f"the query parameter {shown} in {source} has no value")
        if name in given:
            raise SettingsError(f"the query parameter {shown} is in {source} twice")
        if name == "require_tls" and _FLAGS.get(value.lower()) is False:
            raise SettingsError(f"{source} cannot set require_tls=false: a URL cannot lower security")
        given[name] = _Given(value, f"the query of {source}")
    return given
