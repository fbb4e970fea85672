"""What holds for every record, reachable or not, every event and every policy (I1, I2, I14, I20-I25, I40)."""

from __future__ import annotations

import copy
import doctest
import math
from typing import get_args

import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from warrener import machine
from warrener.errors import Fault, FaultKind, SettingsError
from warrener.machine import (
    Backoff,
    Breaker,
    Event,
    Permit,
    Policy,
    Record,
    Step,
    connection_state,
    effects,
    initial,
    retry_delay,
    slowest_delay,
    transition,
)
from warrener.records import ConnectionState
from warrener.testing.strategies import backoffs, events, faults, instants, link_events, policies, records, states


@st.composite
def live_events(draw: st.DrawFn) -> tuple[Record, Event]:
    """Any record, with an event that is about its own link."""
    record = draw(records())
    return record, draw(events(link=record.link))


def visible(record: Record) -> object:
    """What is announced when it changes: the state without its bookkeeping, and whether a drain is under way."""
    state = record.state
    if isinstance(state, machine.states.Up):
        return machine.states.Up, state.link, state.blocked, record.draining
    return type(state), state.link, record.draining


@given(live_events(), policies())
def test_pure(live: tuple[Record, Event], policy: Policy) -> None:
    """The same input gives the same answer, and no input is modified (I1)."""
    before = copy.deepcopy((*live, policy))

    first, second = transition(*live, policy), transition(*live, policy)

    assert first == second
    assert before == (*live, policy)


@given(records(), events(), policies())
def test_total(record: Record, event: Event, policy: Policy) -> None:
    """Any event is answered in any state, with a record and effects (I2)."""
    step = transition(record, event, policy)

    assert isinstance(step, Step)
    assert isinstance(step.record.state, get_args(machine.states.State))
    assert all(isinstance(effect, get_args(effects.Effect)) for effect in step.effects)


@st.composite
def foreign_events(draw: st.DrawFn) -> tuple[Record, Event]:
    """Any record, with an event about another link than its own, older ones and ones that never were."""
    record = draw(records())
    apart = draw(st.sampled_from((-3, -2, -1, 1, 2)))
    return record, draw(link_events(st.just(record.link + apart)))


@given(foreign_events(), policies())
def test_old_links_change_nothing(foreign: tuple[Record, Event], policy: Policy) -> None:
    """A fact about any link but the present one leaves the very same record, and orders nothing (I14)."""
    record, event = foreign

    step = transition(record, event, policy)

    assert step.record is record
    assert step.effects == ()


@given(records(), st.integers(min_value=0, max_value=9), policies())
def test_the_cooldown_timer_of_an_old_trip_changes_nothing(record: Record, generation: int, policy: Policy) -> None:
    """A breaker that has tripped again since is not opened halfway by the timer of its former trip (I26)."""
    assume(record.breaker is None or record.breaker.generation != generation)

    assert transition(record, machine.events.CooldownTimerFired(generation, record.at), policy) == Step(record)


@given(live_events(), policies(), st.floats(min_value=0, max_value=100))
def test_time_does_not_run_backwards(live: tuple[Record, Event], policy: Policy, ago: float) -> None:
    """An event from before the last one is treated as simultaneous with it (I21)."""
    record, event = live
    assume(not isinstance(record.state, machine.states.Idle))

    assert transition(record, evolve(event, at=record.at), policy) == transition(
        record, evolve(event, at=record.at - ago), policy
    )


#: Which states may follow which, written down a second time and by hand.
GRAPH: dict[type[machine.states.State], set[type[machine.states.State]]] = {
    machine.states.Idle: {machine.states.Dialing, machine.states.Waiting, machine.states.Closed},
    machine.states.Dialing: {
        machine.states.Restoring,
        machine.states.Waiting,
        machine.states.GaveUp,
        machine.states.Closing,
        machine.states.Closed,
    },
    machine.states.Restoring: {
        machine.states.Dialing,
        machine.states.Up,
        machine.states.Dropping,
        machine.states.Waiting,
        machine.states.GaveUp,
        machine.states.Closing,
        machine.states.Closed,
    },
    machine.states.Up: {
        machine.states.Dialing,
        machine.states.HandingOver,
        machine.states.Dropping,
        machine.states.Waiting,
        machine.states.GaveUp,
        machine.states.Closing,
        machine.states.Closed,
    },
    machine.states.HandingOver: {
        machine.states.Dialing,
        machine.states.Closing,
        machine.states.Closed,
    },
    machine.states.Dropping: {
        machine.states.Waiting,
        machine.states.GaveUp,
        machine.states.Closing,
        machine.states.Closed,
    },
    machine.states.Waiting: {machine.states.Dialing, machine.states.GaveUp, machine.states.Closed},
    machine.states.GaveUp: {machine.states.Dialing, machine.states.Waiting, machine.states.Closed},
    machine.states.Closing: {machine.states.Closed},
    machine.states.Closed: set(),
}


@given(live_events(), policies())
def test_states_move_along_the_graph(live: tuple[Record, Event], policy: Policy) -> None:
    """Closed is absorbing; what gave up comes back by a hint or closes; every other move is declared (I22)."""
    record, event = live

    step = transition(*live, policy)

    before, after = type(record.state), type(step.record.state)
    assert before is after or after in GRAPH[before]
    if before is machine.states.Closed:
        assert step.record is record
    if before is machine.states.GaveUp and after is not machine.states.GaveUp:
        assert isinstance(event, (machine.events.ReconnectRequested, machine.events.StopRequested))


@given(live_events(), policies())
def test_a_dial_is_ordered_only_where_there_is_no_link(live: tuple[Record, Event], policy: Policy) -> None:
    """A dial starts without a link, or with the event that ends it; it takes the next number and the endpoint (I23)."""
    record, event = live

    step = transition(*live, policy)

    dials = [effect for effect in step.effects if isinstance(effect, effects.Dial)]
    entered = isinstance(step.record.state, machine.states.Dialing) and step.record.link != record.link
    assert len(dials) == int(entered)
    if dials:
        without = isinstance(record.state, (machine.states.Idle, machine.states.Waiting, machine.states.GaveUp))
        ended = isinstance(event, (machine.events.DialFailed, machine.events.LinkLost, machine.events.LinkClosed))
        assert without or ended
        endpoints = step.record.endpoints
        assert dials == [effects.Dial(record.link + 1, endpoints.current, endpoints.record.address)]
        assert step.record.link == record.link + 1


@given(live_events(), policies())
def test_attempts_start_again_only_from_proven_health(live: tuple[Record, Event], policy: Policy) -> None:
    """Attempts grow by one with a pass, and become 0 by a confirm, stability or revival: nothing else (I25)."""
    record, event = live

    after = transition(*live, policy).record

    if after.attempts == record.attempts + 1:
        left_in_order = isinstance(event, machine.events.LinkLost) and event.fault.orderly
        was_proven = isinstance(record.state, machine.states.Up) and record.state.proven
        assert isinstance(record.state, machine.states.Waiting) or (left_in_order and was_proven)
        assert isinstance(after.state, machine.states.Dialing) or isinstance(event, machine.events.DiscoveryFailed)
    elif after.attempts != record.attempts:
        assert after.attempts == 0
        if record.state == machine.states.Waiting(0):
            return
        proven = isinstance(event, (machine.events.PublishConfirmed, machine.events.StableTimerFired)) and isinstance(
            record.state, (machine.states.Up, machine.states.HandingOver)
        )
        revived = isinstance(event, machine.events.ReconnectRequested) and isinstance(
            record.state, machine.states.GaveUp
        )
        started = isinstance(event, machine.events.StartRequested) and isinstance(record.state, machine.states.Idle)
        assert proven or revived or started


@given(live_events(), policies())
def test_each_visible_change_is_announced_once(live: tuple[Record, Event], policy: Policy) -> None:
    """What users can see of the state is announced exactly when it changes, with the states on both sides (R24)."""
    record, _ = live

    step = transition(*live, policy)

    told = [effect for effect in step.effects if isinstance(effect, effects.Announce)]
    # The end of an abort that took too long, and a block noticed before publishers are let in, are not seen by users.
    assert len(told) == int(visible(record) != visible(step.record))
    for announcement in told:
        assert (announcement.before, announcement.after) == (record.state, step.record.state)


@given(live_events(), policies())
def test_no_change_without_cause(live: tuple[Record, Event], policy: Policy) -> None:
    """Where nothing changes, the very same record comes back; where something does, its instant never decreases."""
    record, _ = live

    after = transition(*live, policy).record

    assert (after is record) == (evolve(after, at=record.at) == record)
    assert after.at >= record.at


@st.composite
def timers_fired(draw: st.DrawFn) -> tuple[Record, Event]:
    """Any record, with a timer of its link, of its breaker or of a drain; the one that runs, where one does."""
    record = draw(records())
    at = draw(instants())
    generation = 0 if record.breaker is None else record.breaker.generation
    retry, stable = machine.events.RetryTimerFired(record.link, at), machine.events.StableTimerFired(record.link, at)
    return record, draw(
        st.sampled_from(
            (retry, stable, machine.events.CooldownTimerFired(generation, at), machine.events.DrainTimerFired(at))
        )
    )


@given(timers_fired(), policies())
def test_a_timer_that_fires_twice_fires_once(fired: tuple[Record, Event], policy: Policy) -> None:
    """A second firing of the same timer changes nothing (I20); only the close timer is waited for twice."""
    record, event = fired

    once = transition(record, event, policy).record

    assert transition(once, event, policy) == Step(once)


@given(records(), policies(), faults())
def test_finish_comes_once_and_last(record: Record, policy: Policy, fault: Fault) -> None:
    """Whatever ends everything leaves no timer and ends with one `Finish`."""
    for event in (
        machine.events.StopRequested(record.at, drain=False),
        machine.events.LinkLost(record.link, fault, record.at),
    ):
        step = transition(record, event, policy)
        if isinstance(step.record.state, machine.states.Closed) and not isinstance(record.state, machine.states.Closed):
            cancelled = {effect.timer for effect in step.effects if isinstance(effect, effects.CancelTimer)}
            assert cancelled == set(get_args(effects.Timer))
            assert [effect for effect in step.effects if isinstance(effect, effects.Finish)] == [step.effects[-1]]


@st.composite
def recoverable(draw: st.DrawFn) -> tuple[Record, Policy]:
    """Any record that is neither closing nor closed, with a policy that leaves it an attempt."""
    open_ended = states().filter(lambda state: not isinstance(state, (machine.states.Closing, machine.states.Closed)))
    limit = draw(st.none() | st.integers(min_value=1, max_value=12))
    attempts = draw(st.integers(min_value=0, max_value=12 if limit is None else limit - 1))
    policy = draw(policies())
    return (
        evolve(draw(records(open_ended)), attempts=attempts),
        evolve(policy, backoff=evolve(policy.backoff, attempts=limit)),
    )


@given(recoverable())
def test_a_friendly_script_brings_it_up(start: tuple[Record, Policy]) -> None:
    """From every state but the closing ones, a broker that answers is connected to, within five answers (I40)."""
    record, policy = start
    lost = Fault(FaultKind.CONNECTION_LOST, "aborted")
    for _ in range(5):
        at, link = record.at + 2, record.link
        event: Event
        match record.state:
            case machine.states.Idle():
                event = machine.events.StartRequested(at)
            case machine.states.Waiting():
                known = bool(record.endpoints.records)
                fired = machine.events.RetryTimerFired(link, at)
                event = fired if known else machine.events.EndpointsFound(link, (None, None), (1, 0), at)
            case machine.states.GaveUp():
                event = machine.events.ReconnectRequested(at)
            case machine.states.Dialing():
                event = machine.events.LinkOpened(link, at)
            case machine.states.Restoring():
                event = machine.events.TopologyRestored(link, at)
            case machine.states.Dropping() | machine.states.HandingOver():
                event = machine.events.LinkLost(link, lost, at)
            case _:
                break
        record = transition(record, event, policy).record

    assert isinstance(record.state, machine.states.Up)


@given(records(), policies(), st.booleans())
def test_closing_ends_whatever_the_peer_does(record: Record, policy: Policy, answers: bool) -> None:
    """A stop reaches Closed: at once without a link, by the link's answer, or by two close timers (R11)."""
    record = transition(record, machine.events.StopRequested(record.at, drain=False), policy).record
    for _ in range(2):
        if isinstance(record.state, machine.states.Closing):
            event = (
                machine.events.LinkClosed(record.link, record.at)
                if answers
                else machine.events.CloseTimerFired(record.link, record.at)
            )
            record = transition(record, event, policy).record

    assert isinstance(record.state, machine.states.Closed)


@given(records())
def test_users_see_closing_while_draining(record: Record) -> None:
    """A drain is shown as CLOSING until all is closed, and the machine's own states otherwise."""
    seen = connection_state(record)

    if isinstance(record.state, machine.states.Closed):
        assert seen is ConnectionState.CLOSED
    elif record.draining:
        assert seen is ConnectionState.CLOSING
    else:
        assert seen is connection_state(record.state)


# --- backoff -----------------------------------------------------------------------------------------------------


@given(backoffs(), st.integers(min_value=0, max_value=1_000_000))
def test_delays_stay_within_their_bounds(backoff: Backoff, attempt: int) -> None:
    """(1 - jitter) * d <= shortest <= longest <= d <= cap, but never under min_gap, for a million attempts (I24)."""
    shortest, longest = retry_delay(backoff, attempt)

    assert backoff.min_gap <= shortest <= longest <= max(backoff.cap, backoff.min_gap)
    assert longest >= max(backoff.initial, backoff.min_gap)
    assert shortest >= (1 - backoff.jitter) * longest or shortest == backoff.min_gap
    assert retry_delay(backoff, attempt + 1)[1] >= longest


@given(backoffs(), st.integers(min_value=0, max_value=1000))
def test_permanent_refusals_wait_longest(backoff: Backoff, attempt: int) -> None:
    """A refusal that time does not mend is never retried sooner than another failure (R17)."""
    assert slowest_delay(backoff) >= retry_delay(backoff, attempt)


def test_without_jitter_the_delays_are_the_documented_sequence() -> None:
    """1, 2, 4, 8, 16, 32 and then 60 seconds: 303 in all."""
    delays = [retry_delay(Backoff(jitter=0, cap=60), attempt) for attempt in range(10)]

    assert delays == [(d, d) for d in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)]


def test_full_jitter_has_a_floor() -> None:
    """With jitter 1 a delay may be short, but not shorter than min_gap."""
    assert retry_delay(Backoff(jitter=1), 3) == (0.1, 8.0)


# --- the whole sequence, without a clock -----------------------------------------------------------------------------


def failed_dials_until_giving_up(record: Record, policy: Policy, at: float) -> tuple[int, float]:
    """Fail every dial, wait out every delay; return how many dials failed and when the machine gave up."""
    failed = 0
    while True:
        refused = Fault(FaultKind.UNREACHABLE, "connection refused")
        step = transition(record, machine.events.DialFailed(record.link, refused, at), policy)
        failed += 1
        if isinstance(step.record.state, machine.states.GaveUp):
            return failed, at
        (timer,) = [effect for effect in step.effects if isinstance(effect, effects.StartRetryTimer)]
        at += timer.longest
        record = transition(step.record, machine.events.RetryTimerFired(timer.link, at), policy).record


NO_JITTER = Policy(backoff=Backoff(jitter=0, cap=60, attempts=10))


def test_eleven_dials_fail_at_start_before_it_gives_up() -> None:
    """The dial at start is not one of the ten attempts: eleven failures, after 303 seconds."""
    record = transition(initial(), machine.events.StartRequested(0.0), NO_JITTER).record

    assert failed_dials_until_giving_up(record, NO_JITTER, 0.0) == (11, 303.0)


def test_ten_dials_fail_after_a_loss_before_it_gives_up() -> None:
    """A proven link that is lost leaves ten attempts; the first delay is one second again."""
    record = Record(machine.states.Up(7, proven=True), breaker=Breaker(), at=0.0)
    lost = transition(record, machine.events.LinkLost(7, Fault(FaultKind.CONNECTION_LOST, "reset"), 0.0), NO_JITTER)
    dialing = transition(lost.record, machine.events.RetryTimerFired(7, 1.0), NO_JITTER).record

    assert failed_dials_until_giving_up(dialing, NO_JITTER, 1.0) == (10, 303.0)


def test_accept_then_drop_cannot_spin() -> None:
    """A broker that accepts and drops uses up the attempts, since an opened link proves nothing (R13)."""
    dropped = Fault(FaultKind.CONNECTION_LOST, "dropped")
    record, waited, links = transition(initial(), machine.events.StartRequested(0.0), NO_JITTER).record, 0.0, 0
    while not isinstance(record.state, machine.states.GaveUp):
        links += 1
        for event in (machine.events.LinkOpened(links, waited), machine.events.TopologyRestored(links, waited)):
            record = transition(record, event, NO_JITTER).record
        step = transition(record, machine.events.LinkLost(links, dropped, waited), NO_JITTER)
        waited += sum(effect.longest for effect in step.effects if isinstance(effect, effects.StartRetryTimer))
        record = transition(step.record, machine.events.RetryTimerFired(links, waited), NO_JITTER).record

    assert (links, waited) == (11, 303.0)


def test_hints_are_heeded_once_a_second() -> None:
    """Hints cannot be used to hammer the broker: the second within a second changes nothing."""
    refused = Fault(FaultKind.UNREACHABLE, "connection refused")
    record = transition(initial(), machine.events.StartRequested(0.0), NO_JITTER).record
    record = transition(record, machine.events.DialFailed(1, refused, 5.0), NO_JITTER).record
    hinted = transition(record, machine.events.ReconnectRequested(5.0), NO_JITTER).record
    waiting = transition(hinted, machine.events.DialFailed(2, refused, 5.0), NO_JITTER).record

    gave_up = evolve(waiting, state=machine.states.GaveUp(2))
    for record in (waiting, gave_up):
        assert transition(record, machine.events.ReconnectRequested(5.9), NO_JITTER) == Step(record)
        assert effects.Dial(3, 0, 2) in transition(record, machine.events.ReconnectRequested(6.0), NO_JITTER).effects


def test_without_a_breaker_a_confirm_proves_the_link_all_the_same() -> None:
    """Attempts and failures start again from 0, and the stable timer is no longer needed."""
    record = Record(machine.states.Up(1), attempts=3, failures=3, at=7.0)

    step = transition(record, machine.events.PublishConfirmed(1, 8.0, None), NO_JITTER)

    assert step.record == Record(machine.states.Up(1, proven=True), at=8.0)
    assert step.effects == (effects.CancelTimer("stable"),)


def test_a_permit_that_is_not_out_changes_nothing() -> None:
    """Given back a second time, or after its generation, it leaves the very same record."""
    half_open = Breaker(state="half_open", failures=5, generation=2, outstanding=frozenset({2}), issued=2)
    record = Record(machine.states.Up(1), failures=5, breaker=half_open, at=7.0)

    for permit in (Permit(2, 1), Permit(1, 2)):
        assert transition(record, machine.events.PermitReleased(permit, 8.0), NO_JITTER).record is record


def test_channel_closes_are_forgotten_after_ten_seconds_and_with_their_link() -> None:
    """Only more than five within ten seconds on one link replace it."""
    gone = Fault(FaultKind.CHANNEL_CLOSED, "NOT_FOUND", reply_code=404)
    record = Record(machine.states.Up(1), at=0.0)
    for at in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0):
        record = transition(record, machine.events.ChannelClosed(1, gone, at), NO_JITTER).record

    assert record.state == machine.states.Up(1)
    assert record.channel_closes == (4.0, 6.0, 8.0, 10.0, 12.0)

    lost = transition(
        record, machine.events.LinkLost(1, Fault(FaultKind.CONNECTION_LOST, "reset"), 12.0), NO_JITTER
    ).record
    assert transition(lost, machine.events.RetryTimerFired(1, 13.0), NO_JITTER).record.channel_closes == ()


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Backoff(initial=0), "initial"),
        (lambda: Backoff(initial=math.inf, cap=math.inf), "initial"),
        (lambda: Backoff(initial=10, cap=9), "cap"),
        (lambda: Backoff(cap=math.inf), "cap"),
        (lambda: Backoff(factor=0.5), "factor"),
        (lambda: Backoff(factor=math.inf), "factor"),
        (lambda: Backoff(attempts=-1), "attempts"),
        (lambda: Backoff(jitter=1.5), "jitter"),
        (lambda: Backoff(jitter=float("nan")), "jitter"),
        (lambda: Backoff(min_gap=-0.1), "min_gap"),
        (lambda: Backoff(min_gap=math.inf), "min_gap"),
        (lambda: Breaker(threshold=0), "threshold"),
        (lambda: Breaker(cooldown=-1), "cooldown"),
        (lambda: Breaker(cooldown=math.inf), "cooldown"),
        (lambda: Breaker(threshold=1, cooldown=0, probes=0), "probes"),
        (lambda: Policy(stable_for=-1), "stable_for"),
        (lambda: Policy(start_jitter=-1), "start_jitter"),
        (lambda: Policy(drain_timeout=float("nan")), "drain_timeout"),
        (lambda: Policy(close_timeout=-1), "close_timeout"),
        (lambda: Policy(abort_timeout=-1), "abort_timeout"),
        (lambda: Policy(prefer="last"), "prefer"),  # type: ignore[arg-type]
        (lambda: Policy(when_exhausted="retry"), "when_exhausted"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_contradict_themselves_raise(make: object, name: str) -> None:
    """What cannot be meant is refused when it is constructed, and the error names it (R26)."""
    with pytest.raises(SettingsError, match=rf"(^|: ){name} must"):
        make()  # type: ignore[operator]


def test_the_example_in_the_docstring_runs() -> None:
    """What the package's docstring shows is what happens."""
    assert doctest.testmod(machine) == doctest.TestResults(failed=0, attempted=8)
