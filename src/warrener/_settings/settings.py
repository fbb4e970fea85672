"""`Settings`: one frozen record of all settings of a producer, checked when it is made.

Precedence, highest first: explicit arguments, the query of the URL, the environment, a settings file, the defaults. Each
mistake is one `SettingsError` that names the setting, its value, its source and the allowed values, and no secret.

What must stay true:

* A URL cannot lower security: no parameter of the query turns verification off, ``require_tls=false`` is refused there.
* TLS that one source asks for is never dropped because of another: ``RABBITMQ_USE_SSL=true`` or certificate files
  beside an ``amqp://`` URL are refused by name.
"""

from __future__ import annotations

import math
import os
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack

import attrs
from attrs import Factory, field, frozen

from warrener._settings.addresses import (
    TLS_VARIABLES,
    Addresses,
    CredentialsSource,
    EndpointsSource,
    from_queries,
    url_texts,
    without_user,
)
from warrener._settings.endpoints import ENDPOINT_RULES, check_endpoint
from warrener._settings.rules import (
    FLAG,
    NAME,
    Rule,
    count,
    is_integer,
    is_number,
    one_of,
    row,
    rules_of,
    seconds,
)
from warrener._settings.sources import Given, Rank, from_environment, refuse_unknown
from warrener._settings.url import BrokerURL
from warrener.drivers.base import LinkOptions
from warrener.errors import SettingsError, printable
from warrener.machine.backoff import Backoff, retry_delay
from warrener.machine.breaker import Breaker
from warrener.records import Endpoint, Mechanism
from warrener.retry import Retry
from warrener.topology import Binding, Declaration, Exchange, Queue

__all__ = [
    "RULES",
    "SHARED_LIMITS",
    "BreakerScope",
    "Delivery",
    "EndpointOrder",
    "Prefer",
    "Settings",
    "SettingsFields",
    "TopologyErrors",
    "WhenExhausted",
    "endpoint_from_url",
]

#: Limits of a producer, of which each of several links has an equal share.
SHARED_LIMITS: Final = ("max_buffered", "max_buffered_bytes", "max_in_flight", "max_in_flight_bytes")

Delivery: TypeAlias = Literal["at_least_once", "at_most_once"]
WhenExhausted: TypeAlias = Literal["stay", "raise"]
TopologyErrors: TypeAlias = Literal["strict", "report"]
EndpointOrder: TypeAlias = Literal["shuffled", "ordered"]
Prefer: TypeAlias = Literal["any", "first"]
BreakerScope: TypeAlias = Literal["destination", "exchange"]

#: From this number of seconds on a `connect_timeout` is refused: it was probably meant in milliseconds.
_SURELY_MILLISECONDS = 1000

# --- the rules that only a producer has -------------------------------------------------------------------------------

_HEARTBEAT = Rule(
    "whole seconds from 0 (off) to 65535, the largest value in AMQP",
    float,
    lambda value: is_number(value) and 0 <= value <= 65535 and value == int(value),
)

_CONNECT_TIMEOUT = Rule(
    f"a number of seconds, more than 0 and less than {_SURELY_MILLISECONDS} (seconds, not milliseconds)",
    float,
    lambda value: is_number(value) and 0 < value < _SURELY_MILLISECONDS,
)

_ATTEMPTS = Rule(
    "a whole number, at least 0, or 'forever' (None in code)",
    lambda text: None if text.lower() == "forever" else int(text),
    lambda value: value is None or (is_integer(value) and value >= 0),
)

_JITTER = Rule("a number from 0 to 1", float, lambda value: is_number(value) and 0 <= value <= 1)
_FACTOR = Rule("a finite number, at least 1", float, lambda value: is_number(value) and 1 <= value < math.inf)


def _or_off(allowed: str, parse: Callable[[str], object], holds: Callable[[Any], bool]) -> Rule:
    """Make the rule of a number that can be switched off: by "off" in text, by None in code."""
    return Rule(
        f"{allowed}, or 'off' (None in code)",
        lambda text: None if text.lower() == "off" else parse(text),
        lambda value: value is None or holds(value),
    )


# Backoff and Breaker refuse bad numbers themselves; these rules add the types, and name the source of a text.
_BACKOFF_RULES: Mapping[str, Rule] = {
    "initial": seconds(forever=False),
    "factor": _FACTOR,
    "cap": seconds(forever=False),
    "attempts": _ATTEMPTS,
    "jitter": _JITTER,
    "min_gap": seconds(zero=True, forever=False),
}

_BREAKER_RULES: Mapping[str, Rule] = {
    "threshold": count(1),
    "cooldown": seconds(zero=True, forever=False),
    "probes": count(1),
    "rate": _or_off("a number more than 0 and at most 1", float, lambda value: is_number(value) and 0 < value <= 1),
    "over": _or_off("a whole number of results, at least 1", int, lambda value: is_integer(value) and value >= 1),
    "within": _or_off(
        "a number of seconds, more than 0", float, lambda value: is_number(value) and 0 < value < math.inf
    ),
    "slow": _or_off("a number of seconds, more than 0", float, lambda value: is_number(value) and 0 < value < math.inf),
}


def _program_name() -> str:
    """Return ``warrener:<program>:<pid>``, the default of the client property `connection_name`."""
    path = Path(sys.argv[0] if sys.argv else "")
    program = path.parent.name if path.name == "__main__.py" else path.name
    return f"warrener:{printable(program or 'python', 200)}:{os.getpid()}"


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
    endpoint_order: EndpointOrder
    start_jitter: float
    prefer: Prefer
    links: int
    mechanism: Mechanism | None
    server_hostname: str | None
    connect_timeout: float
    heartbeat: float
    prefetch: int
    backoff: Backoff
    backoff_initial: float
    backoff_factor: float
    backoff_cap: float
    backoff_attempts: int | None
    backoff_jitter: float
    backoff_min_gap: float
    breaker: Breaker | None
    breaker_threshold: int
    breaker_cooldown: float
    breaker_probes: int
    breaker_rate: float | None
    breaker_over: int | None
    breaker_within: float | None
    breaker_slow: float | None
    breaker_scope: BreakerScope
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
    credentials: CredentialsSource | None
    endpoints: EndpointsSource
    retry: Retry | None
    topology: Iterable[Declaration]


# --- the record -------------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Settings:
    """All settings of a producer, checked when the record is made; durations are float seconds.

    Make it with `Settings.resolve`, or directly from an `Endpoint`. Raises `SettingsError`, which never shows a secret.
    """

    #: One for each broker or node; a failed one is followed by another one.
    endpoints: tuple[Endpoint, ...]
    #: The order of the first dials: drawn at random, or as listed.
    endpoint_order: EndpointOrder = row(one_of("shuffled", "ordered"), "shuffled")
    #: The longest random delay before the first dial, so that a fleet does not start at one instant.
    start_jitter: float = row(seconds(zero=True, forever=False), 0.0)
    #: "first": the producer goes back to the first endpoint of the list when another one was used for a while.
    prefer: Prefer = row(one_of("any", "first"), "any")
    #: How many links the producer has at once, each with its own connection and its share of the capacity.
    links: int = row(count(1, 64), 1)
    #: The client property `connection_name`, as the broker's management pages show it.
    name: str = row(NAME, Factory(_program_name))
    #: One deadline from name resolution to confirm.select-ok.
    connect_timeout: float = row(_CONNECT_TIMEOUT, 10.0)
    #: Negotiated as the smaller of both sides; 0 is off.
    heartbeat: float = row(_HEARTBEAT, 60.0)
    #: basic.qos on the channel; 0 is no limit.
    prefetch: int = row(count(0, 65535), 100)
    backoff: Backoff = field(factory=Backoff)
    #: None: off.
    breaker: Breaker | None = field(factory=Breaker)
    #: Nacks are counted for each exchange and routing key, or for each exchange.
    breaker_scope: BreakerScope = row(one_of("destination", "exchange"), "destination")
    #: The counter of attempts goes back to 0 when a link was up for this time, or after one confirm.
    stable_for: float = row(seconds(forever=False), 10.0)
    #: After the last attempt `run()` stays and waits for `reconnect()`, or raises.
    when_exhausted: WhenExhausted = row(one_of("stay", "raise"), "stay")
    #: The deadline of a publish that names none; `math.inf`: no deadline.
    publish_timeout: float = row(seconds(), 60.0)
    # The argument, or None: the default follows `publish_timeout`, also in a copy with another `publish_timeout`.
    _confirm_timeout: float | None = row(seconds(), None, optional=True, alias="confirm_timeout")
    delivery: Delivery = row(one_of("at_least_once", "at_most_once"), "at_least_once")
    #: In code only: the whole policy; None: the one that `delivery` names.
    retry: Retry | None = None
    #: Messages accepted and not yet written.
    max_buffered: int = row(count(1), 10_000)
    max_buffered_bytes: int = row(count(1), 64 * 1024 * 1024)
    #: The longest wait of a publish for room while the link is down or blocked.
    max_block: float = row(seconds(zero=True), 5.0)
    #: Messages written and not yet confirmed.
    max_in_flight: int = row(count(1), 10_000)
    #: The bytes of their bodies; one message that is larger is in flight alone.
    max_in_flight_bytes: int = row(count(1), 64 * 1024 * 1024)
    #: The longest wait for the broker's answer to one declaration of the topology.
    declare_timeout: float = row(seconds(forever=False), 10.0)
    #: After a refused declaration: "strict", each publish fails with the refusal; "report", publishers go on.
    topology_errors: TopologyErrors = row(one_of("strict", "report"), "strict")
    #: After the broker refused a destination, further publishes to it fail with that refusal for this time; 0 is off.
    refusal_memory: float = row(seconds(zero=True, forever=False), 5.0)
    #: The largest number of destinations (exchange and routing key) for which a breaker is kept.
    max_destinations: int = row(count(1), 1000)
    #: The longest wait of closing for the outcomes of accepted messages.
    drain_timeout: float = row(seconds(zero=True), 10.0)
    #: The longest time for the close handshake.
    close_timeout: float = row(seconds(forever=False), 3.0)
    #: The longest time for a shielded abort.
    abort_timeout: float = row(seconds(forever=False), 1.0)
    #: A write that takes longer ends the link.
    write_stall_timeout: float = row(seconds(), 30.0)
    #: An inbound frame that takes longer from first to last byte ends the link.
    frame_timeout: float = row(seconds(), 30.0)
    #: Of a returned body that is larger (in bytes) only the hash is kept.
    max_inbound_body: int = row(count(0), 1024 * 1024)
    #: Refuse to send credentials without TLS to a host that is not local.
    require_tls: bool = row(FLAG, False)
    #: In code only: replaces the context that is made from the endpoint's files. A context that does not verify the
    #: broker is used all the same, and logged.
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    #: In code only: an async callable that returns the credentials, asked before each dial. They are renewed on the live
    #: link before they expire (`Credentials.expires_in`).
    credentials: CredentialsSource | None = field(default=None, repr=False)
    #: In code only, as the keyword `endpoints`: an async callable that returns the endpoints, asked before each pass.
    discovery: EndpointsSource | None = field(default=None, repr=False)
    #: What each endpoint of `discovery` has besides its URL.
    addresses: Addresses = field(factory=Addresses, repr=False)
    #: Declared on each new link before publishers are let in.
    topology: tuple[Declaration, ...] = field(default=(), converter=_as_tuple)

    def __attrs_post_init__(self) -> None:
        _check_backoff(self.backoff)
        _check_breaker(self.breaker)
        _check_retry(self.retry, self.delivery, self.publish_timeout, self.confirm_timeout)
        for declaration in self.topology:
            if not isinstance(declaration, Exchange | Queue | Binding):
                raise SettingsError(f"topology must hold Exchange, Queue and Binding, not {type(declaration).__name__}")
        if sum(isinstance(each, Queue) and each.is_server_named for each in self.topology) > 1:
            raise SettingsError("topology may hold one server-named queue; declare the others with producer.declare()")
        if self.links > 1 and any(
            isinstance(each, Queue) and (each.is_server_named or each.exclusive) for each in self.topology
        ):
            raise SettingsError(
                f"links is {self.links}, but topology holds a server-named or exclusive queue, which belongs to one connection"
            )
        for limit in SHARED_LIMITS:
            if getattr(self, limit) < self.links:
                raise SettingsError(
                    f"{limit} is {getattr(self, limit)}, which is too few for links={self.links}: each link gets an equal share; "
                    f"raise {limit} to at least {self.links}, or lower links"
                )
        if self.confirm_timeout > self.publish_timeout:
            raise SettingsError(
                f"confirm_timeout ({self.confirm_timeout:g} s) is longer than publish_timeout ({self.publish_timeout:g} s), "
                "so each publish would end before its confirm is overdue; lower confirm_timeout or raise publish_timeout"
            )
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise SettingsError(f"ssl_context must be an ssl.SSLContext, not {type(self.ssl_context).__name__}")
        for name in ("credentials", "discovery"):
            source = getattr(self, name)
            if source is not None and not callable(source):
                keyword = "endpoints" if name == "discovery" else name
                raise SettingsError(f"{keyword} must be an async function, not {type(source).__name__}")
        if type(self.endpoints) is not tuple or not (self.endpoints or self.discovery):
            raise SettingsError("endpoints must be a tuple of at least one Endpoint")
        if self.endpoints and self.discovery is not None:
            raise SettingsError("discovery and a tuple of endpoints are both given; keep one of them")
        for endpoint in self.endpoints:
            self._check_endpoint(endpoint)

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        check_endpoint(endpoint, require_tls=self.require_tls, ssl_context=self.ssl_context)
        if self.credentials is not None and endpoint.mechanism == "EXTERNAL":
            raise SettingsError(
                "mechanism is EXTERNAL, which logs in by the client's certificate, but credentials is given; keep one of them"
            )

    async def discover(self) -> tuple[Endpoint, ...]:
        """Ask `discovery` for the endpoints, and check its answer. Raises `SettingsError`, and whatever `discovery` raises."""
        assert self.discovery is not None
        endpoints = self.addresses.discovered(await self.discovery())
        for endpoint in endpoints:
            self._check_endpoint(endpoint)
        return endpoints

    @property
    def confirm_timeout(self) -> float:
        """A link on which nothing was confirmed for this time is replaced.

        Not longer than `publish_timeout`; by default the smaller of 30 s and `publish_timeout`.
        """
        return min(30.0, self.publish_timeout) if self._confirm_timeout is None else self._confirm_timeout

    @property
    def retry_policy(self) -> Retry:
        """What the producer does by itself after an attempt that was not confirmed: `retry`, or what `delivery` names."""
        if self.retry is not None:
            return self.retry
        return Retry.at_least_once() if self.delivery == "at_least_once" else Retry.at_most_once()

    @property
    def endpoint(self) -> Endpoint:
        """The address of the first broker of the list. A `Settings` with `discovery` has none."""
        return self.endpoints[0]

    def link_options(self) -> LinkOptions:
        """Return the part that a driver is opened with."""
        return LinkOptions(
            connection_name=self.name,
            **{
                attribute.name: getattr(self, attribute.name)
                for attribute in attrs.fields(LinkOptions)
                if attribute.name not in ("connection_name", "first_address")
            },
        )

    @classmethod
    def resolve(
        cls,
        url: str | Sequence[str] | Settings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        below: Mapping[str, Given] | None = None,
        **explicit: Unpack[SettingsFields],
    ) -> Settings:
        """Put settings together. The highest wins: `explicit`, the URL's query, the environment, `below`, the defaults.

        Several URLs, in a list or with commas between them, are failover: a producer uses one of them at a time.
        `url` None means ``RABBITMQ_URL``. If `url` is a `Settings`, only `explicit` changes it, and neither URL nor
        environment is read. `environ` replaces `os.environ`; variables that are set but empty count as not set.

        Raises `SettingsError`: it names the unknown, out of range or contradictory setting, and never shows a secret.
        """
        code: dict[str, Any] = {**explicit}
        for name in code:
            refuse_unknown(name, _KEYWORDS, "setting")
        if code.get("name", ...) is None:
            del code["name"]
        if isinstance(url, Settings):
            if "endpoints" in code:
                raise SettingsError("a Settings has its endpoints already; drop the keyword endpoints")
            values = _assembled({}, code, url.backoff, url.breaker)
            changes = _popped(values, "", ENDPOINT_RULES)
            endpoints = tuple(attrs.evolve(endpoint, **changes) for endpoint in url.endpoints)
            return attrs.evolve(url, endpoints=endpoints, **values)
        if environ is None:
            environ = os.environ
        source_of_endpoints = code.pop("endpoints", None)
        if source_of_endpoints is not None and url is not None:
            raise SettingsError("a URL and endpoints are both given; keep one of them")
        texts, source = ([], "") if source_of_endpoints is not None else url_texts(url, environ)
        urls = [BrokerURL.parse(text, source) for text in texts]
        given = {
            **(below or {}),
            **from_environment(environ, VARIABLES, PREFIX),
            **from_queries(urls, source, RULES),
        }
        values = _assembled(given, code, Backoff(), Breaker())
        addresses = Addresses(
            {name: environ[name] for name in TLS_VARIABLES if name in environ},
            _popped(values, "", ENDPOINT_RULES),
            can_mix="require_tls" in values,
            needs_no_user=values.get("credentials") is not None,
        )
        if source_of_endpoints is not None:
            return cls(endpoints=(), discovery=source_of_endpoints, addresses=addresses, **values)
        return cls(endpoints=addresses.endpoints(urls, source), **values)


def endpoint_from_url(url: str) -> Endpoint:
    """Return the address that an ``amqp://`` or ``amqps://`` URL names; its query is not read.

    Raises `SettingsError`, which never quotes the URL.
    """
    parsed = BrokerURL.parse(url, "the URL")
    return parsed.endpoint if parsed.names_user else without_user(parsed.endpoint, "the URL")


# --- the one table of rules: every row that text can set --------------------------------------------------------------

RULES: dict[str, Rule] = (
    rules_of(Settings)
    | {f"backoff_{name}": rule for name, rule in _BACKOFF_RULES.items()}
    | {f"breaker_{name}": rule for name, rule in _BREAKER_RULES.items()}
    | {"breaker": Rule("on or off", FLAG.parse, FLAG.holds)}
    | ENDPOINT_RULES
)

#: Keywords in code: these rows, and those that only code can set.
_KEYWORDS = frozenset(RULES) | {"backoff", "credentials", "endpoints", "retry", "ssl_context", "topology"}

PREFIX = "WARRENER_"

#: Each environment variable and its setting: one for each row, and three older names.
VARIABLES: dict[str, str] = {f"{PREFIX}{name.upper()}": name for name in RULES} | {
    "RABBITMQ_HEARTBEAT": "heartbeat",
    "RABBITMQ_CONNECTION_TIMEOUT": "connect_timeout",
    "RABBITMQ_RECONNECT_ATTEMPTS": "backoff_attempts",
}

# --- from the sources to the values of the record ---------------------------------------------------------------------


def _assembled(
    given: Mapping[str, Given], code: Mapping[str, Any], backoff: Backoff, breaker: Breaker | None
) -> dict[str, Any]:
    """Return the rows of the record: each value comes from `code`, or else from `given`, where its rule parses it.

    Parts such as `backoff_cap` are put into their row.
    """
    values = {name: one.read(name, RULES[name]) for name, one in given.items() if name not in code}
    sources = {name: given[name] for name in values}
    for name, value in code.items():
        if name in _PARTS:
            RULES[name].check(name, value)
        values[name] = value
        sources[name] = Given(value, f"the keyword {name}", Rank.CODE)
    _put_backoff_in(values, sources, backoff)
    _put_breaker_in(values, sources, breaker)
    return values


_PARTS = frozenset(RULES) - frozenset(rules_of(Settings)) - {"breaker"}


def _popped(values: dict[str, Any], prefix: str, rules: Mapping[str, Rule]) -> dict[str, Any]:
    return {name: values.pop(prefix + name) for name in rules if prefix + name in values}


def _put_backoff_in(values: dict[str, Any], sources: Mapping[str, Given], base: Backoff) -> None:
    parts = _popped(values, "backoff_", _BACKOFF_RULES)
    if "backoff" in values:  # in code only, so it wins over the parts that other sources set
        _refuse_both("backoff", parts, sources)
    elif parts:
        values["backoff"] = attrs.evolve(base, **parts)


def _put_breaker_in(values: dict[str, Any], sources: Mapping[str, Given], base: Breaker | None) -> None:
    parts = _popped(values, "breaker_", _BREAKER_RULES)
    switch = sources.get("breaker")
    if switch is not None and switch.rank is Rank.CODE:
        _refuse_both("breaker", parts, sources)
        return
    if not values.pop("breaker", base is not None):
        off = switch or Given(False, "the Settings record", Rank.DEFAULTS)
        for name in parts:
            part = sources[f"breaker_{name}"]
            if part.rank >= off.rank:
                raise SettingsError(
                    f"{off.source} turns the breaker off, but {part.source} sets it up; drop one of them"
                )
        values["breaker"] = None
    elif parts:
        values["breaker"] = attrs.evolve(base or Breaker(), **parts)


def _refuse_both(whole: str, parts: Iterable[str], sources: Mapping[str, Given]) -> None:
    for part in parts:
        if sources[f"{whole}_{part}"].rank is Rank.CODE:
            raise SettingsError(f"{whole} and {whole}_{part} are both given as keywords; keep one of them")


# --- checks of values made in code ------------------------------------------------------------------------------------


def _check_backoff(backoff: Backoff) -> None:
    if not isinstance(backoff, Backoff):
        raise SettingsError(f"backoff must be a Backoff, not {type(backoff).__name__}")
    for name, rule in _BACKOFF_RULES.items():
        rule.check(f"backoff.{name}", getattr(backoff, name))


def _check_retry(retry: Retry | None, delivery: Delivery, publish_timeout: float, confirm_timeout: float) -> None:
    if retry is None:
        return
    if not isinstance(retry, Retry):
        raise SettingsError(f"retry must be a Retry or None, not {type(retry).__name__}")
    if delivery == "at_most_once" and retry.on & {"unknown", "nacked", "overdue"}:
        raise SettingsError("delivery is at_most_once, but retry writes messages again; drop one of them")
    if "nacked" in retry.on and retry_delay(retry.backoff or Backoff(), 0)[0] >= publish_timeout:
        raise SettingsError(
            f"retry: the delay after the first nack is as long as publish_timeout ({publish_timeout:g} s) or longer, so no "
            "message would be written again; lower backoff.initial or raise publish_timeout"
        )
    if "overdue" in retry.on and confirm_timeout >= publish_timeout:
        raise SettingsError(
            f"retry: `on` contains 'overdue', but confirm_timeout ({confirm_timeout:g} s) is not shorter than publish_timeout "
            f"({publish_timeout:g} s), so no message would be overdue before its deadline; lower confirm_timeout"
        )


def _check_breaker(breaker: Breaker | None) -> None:
    if breaker is None:
        return
    if not isinstance(breaker, Breaker):
        raise SettingsError(f"breaker must be a Breaker or None (off), not {type(breaker).__name__}")
    for name, rule in _BREAKER_RULES.items():
        rule.check(f"breaker.{name}", getattr(breaker, name))
    given = {name: getattr(breaker, name) for name in _BREAKER_RULES}
    if breaker != Breaker(**given):
        raise SettingsError(f"breaker must be new: set only {', '.join(given)}, and not its state")
