"""Hypothesis strategies for the machine: faults, policies, breakers, records and events.

`records` makes any consistent record, reachable or not, for properties that hold everywhere (totality, old links).
To test a property of a whole history, start with `machine.initial()` and apply events that fit the record of that
moment, most of them about the live link. Random lists of events hardly ever get beyond a dial.
"""

from __future__ import annotations

import math

try:
    from hypothesis import strategies as st
except ModuleNotFoundError:
    raise ImportError("warrener.testing.strategies needs hypothesis: pip install 'warrener[testing]'") from None

from attrs import evolve

from warrener import machine
from warrener.errors import Fault, FaultKind
from warrener.machine import Backoff, Breaker, EndpointRecord, Endpoints, Event, Permit, Policy, Record, State

__all__ = [
    "backoffs",
    "breakers",
    "endpoints",
    "events",
    "faults",
    "instants",
    "link_events",
    "permits",
    "policies",
    "records",
    "states",
]

#: There are four link numbers only, so that events about the present link and about old links both occur.
_LINKS = st.integers(min_value=1, max_value=4)


def instants() -> st.SearchStrategy[float]:
    """Monotonic instants in seconds, within a few minutes."""
    return st.floats(min_value=0, max_value=300, allow_nan=False)


def faults() -> st.SearchStrategy[Fault]:
    """Faults of every kind, orderly shutdowns (320) among them."""
    shutdown = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
    return st.one_of(st.just(shutdown), st.builds(Fault, st.sampled_from(FaultKind), st.just("made by a test")))


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    """Every backoff that can be constructed with durations between a millisecond and an hour."""
    initial = draw(st.floats(min_value=0.001, max_value=60))
    return Backoff(
        initial=initial,
        factor=draw(st.floats(min_value=1, max_value=10)),
        cap=draw(st.floats(min_value=initial, max_value=3600)),
        attempts=draw(st.none() | st.integers(min_value=0, max_value=12)),
        jitter=draw(st.floats(min_value=0, max_value=1)),
        min_gap=draw(st.floats(min_value=0, max_value=1)),
    )


@st.composite
def breakers(draw: st.DrawFn, *, closed: bool = False) -> Breaker:
    """Breakers in any consistent state; with `closed`, as a user passes them."""
    threshold = draw(st.integers(min_value=1, max_value=6))
    cooldown = draw(st.floats(min_value=0, max_value=60))
    probes = draw(st.integers(min_value=1, max_value=3))
    state = "closed" if closed else draw(st.sampled_from(("closed", "open", "half_open")))
    if closed:
        return Breaker(threshold, cooldown, probes)
    if state == "closed":
        failures = draw(st.integers(min_value=0, max_value=threshold - 1))
        return Breaker(threshold, cooldown, probes, failures=failures, generation=draw(st.integers(0, 9)))
    generation = draw(st.integers(min_value=1, max_value=9))
    failures = draw(st.integers(min_value=0, max_value=threshold + 5))
    opened_at = draw(instants())
    if state == "open":
        return Breaker(
            threshold, cooldown, probes, state="open", failures=failures, generation=generation, opened_at=opened_at
        )
    issued = draw(st.integers(min_value=0, max_value=6))
    numbers = range(1, issued + 1)
    outstanding = draw(st.frozensets(st.sampled_from(numbers), max_size=probes)) if issued else frozenset[int]()
    return Breaker(
        threshold,
        cooldown,
        probes,
        state="half_open",
        failures=failures,
        generation=generation,
        opened_at=opened_at,
        outstanding=outstanding,
        issued=issued,
    )


def permits() -> st.SearchStrategy[Permit]:
    """Permits of a few generations, most of them stale or never granted."""
    return st.builds(Permit, st.integers(min_value=0, max_value=9), st.integers(min_value=0, max_value=6))


def policies() -> st.SearchStrategy[Policy]:
    """Every kind of policy: with and without a breaker, a limit of attempts, and ``when_exhausted="raise"``."""
    return st.builds(
        Policy,
        backoff=backoffs(),
        breaker=st.none() | breakers(closed=True),
        stable_for=st.floats(min_value=0, max_value=60),
        start_jitter=st.sampled_from((0.0, 5.0)),
        drain_timeout=st.floats(min_value=0, max_value=60),
        close_timeout=st.floats(min_value=0, max_value=60),
        abort_timeout=st.floats(min_value=0, max_value=60),
        prefer=st.sampled_from(("any", "first")),
        discovery=st.booleans(),
        when_exhausted=st.sampled_from(("stay", "raise")),
    )


def states() -> st.SearchStrategy[State]:
    """Every state, with every flag."""
    flag = st.booleans()
    return st.one_of(
        st.just(machine.states.Idle()),
        st.builds(machine.states.Waiting, _LINKS | st.just(0)),
        st.builds(machine.states.Dialing, _LINKS, flag),
        st.builds(machine.states.Restoring, _LINKS, flag),
        st.builds(machine.states.Up, _LINKS, flag, flag),
        st.builds(machine.states.HandingOver, _LINKS, st.integers(min_value=0, max_value=2), flag, flag),
        st.builds(machine.states.Dropping, _LINKS, faults()),
        st.builds(machine.states.GaveUp, _LINKS),
        st.builds(machine.states.Closing, _LINKS, flag),
        st.builds(machine.states.Closed, _LINKS),
    )


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoints:
    """Return one to three endpoints with any failures; the current endpoint was tried in this pass."""
    count = draw(st.integers(min_value=1, max_value=3))
    current = draw(st.integers(min_value=0, max_value=count - 1))
    one = st.builds(
        EndpointRecord,
        failures=st.integers(min_value=0, max_value=12),
        retry_at=st.just(-math.inf) | instants(),
        last_fault=st.none() | faults(),
        address=st.integers(min_value=0, max_value=9),
    )
    tried = draw(st.frozensets(st.integers(min_value=0, max_value=count - 1)))
    queue = tuple(draw(st.permutations(range(count))))
    return Endpoints(tuple(draw(one) for _ in range(count)), queue, current, tried | {current})


@st.composite
def records(draw: st.DrawFn, among: st.SearchStrategy[State] | None = None) -> Record:
    """Any consistent record; in one of the states of `among`, where that is given."""
    state = draw(states() if among is None else among)
    if isinstance(state, machine.states.Idle):
        return Record()
    at = draw(instants())
    ago = st.floats(min_value=0, max_value=12)
    drawn = draw(endpoints())
    if isinstance(state, machine.states.Waiting) and draw(st.integers(min_value=0, max_value=4)) == 0:
        drawn = Endpoints((), (), 0)  # discovery has not named any yet
    if isinstance(state, machine.states.HandingOver):
        state = evolve(state, target=state.target % len(drawn.records))
    return Record(
        state=state,
        attempts=draw(st.integers(min_value=0, max_value=12)),
        failures=draw(st.integers(min_value=0, max_value=12)),
        breaker=draw(st.none() | breakers()),
        last_fault=draw(st.none() | faults()),
        draining=draw(st.booleans()),
        hinted_at=at - draw(ago),
        channel_closes=tuple(sorted(at - seconds for seconds in draw(st.lists(ago, max_size=6)))),
        connected_once=draw(st.booleans()),
        endpoints=drawn,
        at=at,
    )


def _found(link: int, kept: list[int | None], at: float) -> Event:
    return machine.events.EndpointsFound(link, tuple(kept), tuple(range(len(kept)))[::-1], at)


def link_events(link: st.SearchStrategy[int] = _LINKS) -> st.SearchStrategy[Event]:
    """Every event that is about a link or about one of its timers; the link is drawn from `link`."""
    at = instants()
    about_a_link = (
        machine.events.RetryTimerFired,
        machine.events.StableTimerFired,
        machine.events.PreferTimerFired,
        machine.events.HandOverTimerFired,
        machine.events.InFlightSettled,
        machine.events.CloseTimerFired,
        machine.events.LinkOpened,
        machine.events.LinkClosed,
        machine.events.TopologyRestored,
        machine.events.PublishingBlocked,
        machine.events.PublishingUnblocked,
        machine.events.ConfirmOverdue,
    )
    with_a_fault = (
        machine.events.DialFailed,
        machine.events.DiscoveryFailed,
        machine.events.LinkLost,
        machine.events.ChannelClosed,
    )
    lists = st.lists(st.none() | st.integers(min_value=0, max_value=3), max_size=4)
    found = st.builds(_found, link, lists, at)
    with_a_permit = (machine.events.PublishConfirmed,)
    return st.one_of(
        *(st.builds(event, link, at) for event in about_a_link),
        *(st.builds(event, link, faults(), at) for event in with_a_fault),
        *(st.builds(event, link, at, st.none() | permits()) for event in with_a_permit),
        found,
    )


def events(*, link: int | None = None) -> st.SearchStrategy[Event]:
    """Every event; about link `link` where that is given, otherwise about any."""
    at = instants()
    plain = (
        machine.events.ReconnectRequested,
        machine.events.AdmissionRequested,
        machine.events.Drained,
        machine.events.DrainTimerFired,
    )
    return st.one_of(
        link_events(_LINKS if link is None else st.just(link)),
        *(st.builds(event, at) for event in plain),
        st.builds(machine.events.StartRequested, at, st.sampled_from(((0,), (1, 0), (2, 0, 1)))),
        st.builds(machine.events.HandOverRequested, at, st.none() | st.integers(min_value=0, max_value=3)),
        st.builds(machine.events.StopRequested, at, st.booleans()),
        st.builds(machine.events.PermitReleased, permits(), at),
        st.builds(machine.events.CooldownTimerFired, st.integers(min_value=0, max_value=9), at),
    )
