"""Which endpoint, and which of its addresses, the next dial goes to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from warrener.errors import Fault, FaultKind
from warrener.machine import (
    Backoff,
    Breaker,
    EndpointRecord,
    Endpoints,
    Policy,
    Record,
    effects,
    events,
    initial,
    states,
    transition,
)
from warrener.machine.endpoints import (
    begin_pass,
    endpoint_failed,
    endpoint_proven,
    found,
    hand_over_target,
    hand_over_to,
    in_order,
    next_endpoint,
    prefer_delay,
)
from warrener.testing.strategies import backoffs, endpoints, faults, instants

LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
FOREVER = Policy(backoff=Backoff(initial=1, cap=15, jitter=0, attempts=None))


def dials(step_effects: tuple[effects.Effect, ...]) -> list[effects.Dial]:
    return [effect for effect in step_effects if isinstance(effect, effects.Dial)]


def started(count: int, policy: Policy = FOREVER) -> Record:
    return transition(initial(), events.StartRequested(0.0, tuple(range(count))), policy).record


def up(record: Record, *, proven: bool) -> Record:
    for event in (events.LinkOpened(record.link, record.at), events.TopologyRestored(record.link, record.at)):
        record = transition(record, event, FOREVER).record
    if proven:
        record = transition(record, events.PublishConfirmed(record.link, record.at), FOREVER).record
    return record


def failing(record: Record, fault_of: dict[int, Fault], policy: Policy) -> Iterator[tuple[float, int]]:
    """Fail every dial for ever; yield the instant and the endpoint of each."""
    at = record.at
    while True:
        current = record.endpoints.current
        yield at, current
        step = transition(record, events.DialFailed(record.link, fault_of[current], at), policy)
        if not dials(step.effects):
            (timer,) = [effect for effect in step.effects if isinstance(effect, effects.StartRetryTimer)]
            at += timer.longest
            step = transition(step.record, events.RetryTimerFired(timer.link, at), policy)
        record = step.record


# --- a new list --------------------------------------------------------------------------------------------------


@given(endpoints(), st.lists(st.none() | st.integers(min_value=0, max_value=3), min_size=1, max_size=4), st.data())
def test_a_new_list_has_every_endpoint_once(before: Endpoints, kept: list[int | None], data: st.DataObject) -> None:
    """Whatever the owner says, the queue has every endpoint of the new list once; a kept one has its record."""
    order = data.draw(st.permutations(range(len(kept))))
    after = found(before, tuple(kept), tuple(order))

    assert sorted(after.queue) == list(range(len(kept)))
    assert len(after.records) == len(kept)
    for new, old in enumerate(kept):
        first = old is not None and old < len(before.records) and kept.index(old) == new
        assert after.records[new] == (before.records[old] if first and old is not None else EndpointRecord())


def test_a_new_endpoint_is_dialed_first_and_a_failed_one_last() -> None:
    """A list that has lost its second endpoint and got two new ones: they come first, the order among the others stays."""
    before = evolve(in_order((2, 1, 0)), records=(EndpointRecord(1), EndpointRecord(2), EndpointRecord(3)))
    after = found(before, (0, None, None, 2), (3, 2, 1, 0))

    assert after.queue == (2, 1, 3, 0)
    assert [record.failures for record in after.records] == [1, 0, 0, 3]


def test_no_endpoint_refuses_for_good_while_none_is_known() -> None:
    """Publishes wait for the first answer of discovery."""
    assert not in_order(()).all_refused


def test_discovery_that_fails_is_an_attempt_until_an_endpoint_is_known() -> None:
    """Each failed question costs a delay of the backoff; after an answer, the endpoints of that answer are dialed."""
    policy = Policy(backoff=Backoff(initial=1, cap=15, jitter=0, attempts=2), discovery=True)
    record = transition(initial(), events.StartRequested(0.0, ()), policy).record
    for expected in (1.0, 2.0):
        step = transition(record, events.DiscoveryFailed(record.link, REFUSED, 0.0), policy)
        record = step.record
        assert [each.longest for each in step.effects if isinstance(each, effects.StartRetryTimer)] == [expected]
    step = transition(record, events.DiscoveryFailed(record.link, REFUSED, 0.0), policy)
    assert isinstance(step.record.state, states.GaveUp)

    step = transition(record, events.EndpointsFound(record.link, (None, None), (1, 0), 0.0), policy)
    assert [each.endpoint for each in dials(step.effects)] == [1]
    step = transition(step.record, events.DialFailed(step.record.link, LOST, 0.0), policy)
    step = transition(step.record, events.DialFailed(step.record.link, LOST, 0.0), policy)
    assert isinstance(step.record.state, states.GaveUp)


# --- the queue ---------------------------------------------------------------------------------------------------


@given(endpoints(), faults(), backoffs(), instants(), st.booleans())
def test_no_endpoint_is_forgotten_or_doubled(
    before: Endpoints, fault: Fault, backoff: Backoff, at: float, proven: bool
) -> None:
    """Whatever happens, the queue has every endpoint once, and the one that failed is its last."""
    after = endpoint_failed(before, fault, backoff, at, proven=proven)

    assert sorted(after.queue) == list(range(len(before.records)))
    assert after.queue[-1] == before.current
    for made in (begin_pass(after, at), begin_pass(after, at, hinted=True), endpoint_proven(after)):
        assert sorted(made.queue) == list(range(len(before.records)))
        assert len(made.records) == len(before.records)


@given(endpoints(), faults(), backoffs(), instants())
def test_an_endpoint_that_has_just_failed_is_not_the_next(
    before: Endpoints, fault: Fault, backoff: Backoff, at: float
) -> None:
    """As long as another endpoint is ready, the next pass begins with another one."""
    after = endpoint_failed(before, fault, backoff, at, proven=True)
    others = [index for index in after.queue[:-1] if after.records[index].retry_at <= at]
    assume(others)

    assert begin_pass(after, at).current == others[0]


@given(endpoints(), instants())
def test_a_pass_dials_each_ready_endpoint_once(before: Endpoints, at: float) -> None:
    """A pass ends, and by then it has dialed exactly the endpoints that were ready, in the order of the queue."""
    ready = [index for index in before.queue if before.records[index].retry_at <= at]
    following: Endpoints | None = begin_pass(before, at)
    dialed: list[int] = []
    while following is not None:
        dialed.append(following.current)
        following = next_endpoint(following, at)

    soonest = min(before.queue, key=lambda index: before.records[index].retry_at)
    assert dialed == (ready or [soonest])


@given(endpoints())
def test_a_hint_makes_every_endpoint_ready(before: Endpoints) -> None:
    """`reconnect()` says that a broker is back, and does not say which one."""
    after = begin_pass(before, 0.0, hinted=True)

    assert after.current == before.queue[0]
    assert {record.retry_at for record in after.records} == {-math.inf}


@given(st.lists(st.sampled_from((REFUSED, PASSWORD)), min_size=1, max_size=3))
def test_every_endpoint_is_dialed_again_and_again(each: list[Fault]) -> None:
    """With all of them failing, no endpoint waits longer than the longest delay of the backoff and one more pass."""
    last: dict[int, float] = {}
    for at, endpoint in failing(started(len(each)), dict(enumerate(each)), FOREVER):
        assert at - last.get(endpoint, 0.0) <= 2 * FOREVER.backoff.cap
        last[endpoint] = at
        if at > 300:
            break

    assert set(last) == set(range(len(each)))


def test_an_endpoint_that_refuses_for_good_is_dialed_at_the_slowest_pace() -> None:
    """A wrong password on one endpoint does not slow the other one down, and is not tried with each pass."""
    instants_of: dict[int, list[float]] = {0: [], 1: []}
    for at, endpoint in failing(started(2), {0: PASSWORD, 1: REFUSED}, FOREVER):
        if at > 60:
            break
        instants_of[endpoint].append(at)

    assert instants_of == {0: [0.0, 15.0, 30.0, 45.0, 60.0], 1: [0.0, 1.0, 3.0, 7.0, 15.0, 30.0, 45.0, 60.0]}


def test_a_single_endpoint_keeps_the_delays_of_the_backoff() -> None:
    """With one endpoint, each failed dial is a pass and is followed by a delay."""
    instants_of = [at for at, _ in zip(failing(started(1), {0: REFUSED}, FOREVER), range(7), strict=False)]

    assert [at for at, _ in instants_of] == [0.0, 1.0, 3.0, 7.0, 15.0, 30.0, 45.0]


def test_a_pass_counts_one_failure_and_one_attempt() -> None:
    """Three endpoints that refuse are one failure for the breaker, and the delay comes after the third."""
    record = started(3)
    for endpoint in (1, 2):
        step = transition(record, events.DialFailed(record.link, REFUSED, 1.0), FOREVER)
        assert dials(step.effects) == [effects.Dial(record.link + 1, endpoint, 0)]
        record = step.record
        assert (record.failures, record.attempts) == (0, 0)
    step = transition(record, events.DialFailed(record.link, REFUSED, 1.0), FOREVER)

    assert step.record.state == states.Waiting(3)
    assert (step.record.failures, step.record.attempts) == (1, 0)
    assert transition(step.record, events.RetryTimerFired(3, 2.0), FOREVER).record.attempts == 1


# --- the address -------------------------------------------------------------------------------------------------


@given(endpoints(), faults(), backoffs(), instants(), st.booleans())
def test_the_next_dial_begins_with_another_address(
    before: Endpoints, fault: Fault, backoff: Backoff, at: float, proven: bool
) -> None:
    """The address moves on after a failed dial, an unproven link and a shutdown, and stays after a proven link's loss."""
    after = endpoint_failed(before, fault, backoff, at, proven=proven)

    moved = after.records[before.current].address - before.record.address
    assert moved == (0 if proven and not fault.orderly else 1)


def test_the_order_to_dial_carries_the_address() -> None:
    """A mute first address costs one dial: the next dial begins with the second one, also after an unproven link."""
    record, addresses = started(1), []
    for _ in range(3):
        step = transition(record, events.DialFailed(record.link, REFUSED, record.at), FOREVER)
        step = transition(step.record, events.RetryTimerFired(record.link, record.at + 20), FOREVER)
        addresses += [dial.address for dial in dials(step.effects)]
        record = step.record
    lost = events.LinkLost(record.link, LOST, record.at)
    step = transition(up(record, proven=False), lost, FOREVER)
    step = transition(step.record, events.RetryTimerFired(record.link, record.at + 20), FOREVER)

    assert [*addresses, dials(step.effects)[0].address] == [1, 2, 3, 4]


def test_a_dropped_link_moves_the_address_on_unless_it_was_proven() -> None:
    """A link on which no confirm arrives is as good as a failed dial."""
    for proven, address in ((False, 1), (True, 0)):
        record = up(started(1), proven=proven)
        dropped = transition(record, events.ConfirmOverdue(1, record.at), FOREVER).record

        assert dropped.endpoints.record.address == address


# --- failing over ------------------------------------------------------------------------------------------------


def test_a_shutdown_leads_to_another_endpoint_at_once() -> None:
    """320 from a proven link is no failure, and no delay comes before the next endpoint."""
    record = up(started(2), proven=True)

    step = transition(record, events.LinkLost(1, SHUTDOWN, record.at), FOREVER)

    assert dials(step.effects) == [effects.Dial(2, 1, 0)]
    assert (step.record.failures, step.record.endpoints.records[0].failures) == (0, 0)


def test_a_shutdown_begins_a_new_pass() -> None:
    """The endpoint that failed before the link was proven is tried again, once its own delay is over."""
    record = on_the_second(FOREVER)

    early = transition(record, events.LinkLost(2, SHUTDOWN, 0.5), FOREVER)
    late = transition(record, events.LinkLost(2, SHUTDOWN, 5.0), FOREVER)

    assert early.record.state == states.Waiting(2)
    assert dials(late.effects) == [effects.Dial(3, 0, 1)]


def test_two_endpoints_that_shut_down_cannot_cause_fast_dials() -> None:
    """Without a proven link in between, the second shutdown ends the pass, and a delay follows."""
    record = up(started(2), proven=True)
    record = transition(record, events.LinkLost(1, SHUTDOWN, record.at), FOREVER).record
    record = up(record, proven=False)

    step = transition(record, events.LinkLost(2, SHUTDOWN, record.at), FOREVER)

    assert step.record.state == states.Waiting(2)


def test_a_shutdown_does_not_lead_beyond_the_last_attempt() -> None:
    """With no attempt left the producer gives up, whatever other endpoints there are."""
    policy = Policy(backoff=Backoff(attempts=0))
    record = up(started(2, policy), proven=True)

    assert transition(record, events.LinkLost(1, SHUTDOWN, record.at), policy).record.state == states.GaveUp(1)


def test_the_loss_of_a_proven_link_waits_and_then_begins_with_another_endpoint() -> None:
    """A whole fleet loses its broker at once: the delay is what spreads its dials to the next endpoint."""
    record = up(started(2), proven=True)

    step = transition(record, events.LinkLost(1, LOST, 5.0), FOREVER)
    assert step.record.state == states.Waiting(1)
    step = transition(step.record, events.RetryTimerFired(1, 6.0), FOREVER)

    assert dials(step.effects) == [effects.Dial(2, 1, 0)]


# --- refusals ----------------------------------------------------------------------------------------------------


def refusals(step_effects: tuple[effects.Effect, ...]) -> list[Fault]:
    return [effect.fault for effect in step_effects if isinstance(effect, effects.RefusePublishing)]


def test_a_lasting_refusal_before_the_first_connection_ends_the_waiting_messages() -> None:
    """A wrong password at the start is told at once; after a first connection the messages wait for the broker."""
    first = started(1)
    later = transition(up(first, proven=True), events.LinkLost(1, LOST, 1.0), FOREVER).record
    later = transition(later, events.RetryTimerFired(1, 2.0), FOREVER).record

    assert refusals(transition(first, events.DialFailed(1, PASSWORD, 0.5), FOREVER).effects) == [PASSWORD]
    assert refusals(transition(first, events.DialFailed(1, REFUSED, 0.5), FOREVER).effects) == []
    assert refusals(transition(later, events.DialFailed(2, PASSWORD, 2.5), FOREVER).effects) == []


def test_a_refused_topology_ends_the_waiting_messages_also_later() -> None:
    """Nothing can be published while a declaration is refused, at the first connection and after a reconnect."""
    mismatch = Fault(FaultKind.TOPOLOGY, "PRECONDITION_FAILED", reply_code=406, entity="queue 'tasks'")
    record = transition(up(started(1), proven=True), events.LinkLost(1, LOST, 1.0), FOREVER).record
    record = transition(record, events.RetryTimerFired(1, 2.0), FOREVER).record
    record = transition(record, events.LinkOpened(2, 2.5), FOREVER).record

    assert refusals(transition(record, events.LinkLost(2, mismatch, 3.0), FOREVER).effects) == [mismatch]


def test_messages_wait_while_one_endpoint_does_not_refuse() -> None:
    """Only when every endpoint refuses the producer for good are the waiting messages ended."""
    record = transition(started(2), events.DialFailed(1, PASSWORD, 0.5), FOREVER).record

    assert refusals(transition(record, events.DialFailed(2, REFUSED, 1.0), FOREVER).effects) == []
    assert refusals(transition(record, events.DialFailed(2, PASSWORD, 1.0), FOREVER).effects) == [PASSWORD]


@given(endpoints())
def test_a_proven_link_clears_the_failures_of_its_endpoint(before: Endpoints) -> None:
    """The other endpoints keep theirs, and the last fault stays for the status."""
    after = endpoint_proven(before)

    assert after.record == EndpointRecord(
        0,
        -math.inf if before.record.failures else before.record.retry_at,
        before.record.last_fault,
        before.record.address,
    )
    assert evolve(after, records=()) == evolve(before, records=())
    assert [index for index in before.queue if after.records[index] != before.records[index]] in ([], [before.current])


def test_the_first_order_is_the_owner_s() -> None:
    """A shuffled order is drawn by the owner and given with the start."""
    step = transition(initial(), events.StartRequested(0.0, (2, 0, 1)), Policy(breaker=Breaker()))

    assert dials(step.effects) == [effects.Dial(1, 2, 0)]
    assert step.record.endpoints == evolve(in_order((2, 0, 1)), tried=frozenset({2}))


def test_a_loss_that_leads_to_another_endpoint_still_opens_the_breaker() -> None:
    """The link was up, so its loss is a failure of its own, at its own instant."""
    policy = evolve(FOREVER, breaker=Breaker(threshold=1, cooldown=7.0))
    record = transition(initial(), events.StartRequested(0.0, (0, 1)), policy).record
    for event in (events.LinkOpened(1, 1.0), events.TopologyRestored(1, 1.0)):
        record = transition(record, event, policy).record

    step = transition(record, events.LinkLost(1, LOST, 5.0), policy)

    assert step.record.breaker == Breaker(1, 7.0, state="open", failures=1, generation=1, opened_at=5.0)
    assert effects.StartCooldownTimer(1, 7.0) in step.effects
    assert dials(step.effects) == [effects.Dial(2, 1, 0)]


# --- handing over ------------------------------------------------------------------------------------------------

FIRST = Policy(backoff=FOREVER.backoff, prefer="first")


def on_the_second(policy: Policy) -> Record:
    """Proven on endpoint 1, after endpoint 0 refused once."""
    record = transition(started(2, policy), events.DialFailed(1, REFUSED, 0.0), policy).record
    for event in (events.LinkOpened(2, 0.0), events.TopologyRestored(2, 0.0), events.PublishConfirmed(2, 0.0)):
        record = transition(record, event, policy).record
    return record


def test_a_hand_over_waits_for_the_confirms_and_goes_on_at_the_other_endpoint() -> None:
    """Pause, wait, close, dial: the order in which no message becomes unknown."""
    record, seen = up(started(2), proven=True), []
    for event in (events.HandOverRequested(1.0), events.InFlightSettled(1, 2.0), events.LinkClosed(1, 2.5)):
        step = transition(record, event, FOREVER)
        record, seen = step.record, [*seen, *(type(effect).__name__ for effect in step.effects)]

    assert seen == [
        *("PausePublishing", "StartHandOverTimer", "ReportSettled", "Announce"),
        *("CancelTimer", "CloseLink", "StartCloseTimer"),
        *("StopPublishing", "CancelTimer", "Dial", "Announce"),
    ]
    assert record.state == states.Dialing(2)
    assert (record.endpoints.current, record.attempts, record.failures) == (1, 0, 0)


def test_a_hand_over_that_fails_goes_back_at_once() -> None:
    """The endpoint that was left is the last one of the pass, without a delay before it."""
    record = transition(up(started(2), proven=True), events.HandOverRequested(1.0, 1), FOREVER).record
    record = transition(record, events.HandOverTimerFired(1, 11.0), FOREVER).record
    record = transition(record, events.LinkClosed(1, 11.0), FOREVER).record

    step = transition(record, events.DialFailed(2, REFUSED, 12.0), FOREVER)

    assert dials(step.effects) == [effects.Dial(3, 0, 1)]


def test_a_confirm_during_a_hand_over_proves_the_link() -> None:
    """The attempts start again from 0; the hand-over goes on, to the same target and as far as it was."""
    for closing in (False, True):
        state = states.HandingOver(1, 1, proven=False, closing=closing)
        record = evolve(up(started(2), proven=False), state=state, attempts=3)

        step = transition(record, events.PublishConfirmed(1, 1.0), FOREVER)

        assert step.record.state == states.HandingOver(1, 1, proven=True, closing=closing)
        assert (step.record.attempts, step.effects) == (0, ())


def test_a_broker_that_dies_during_a_hand_over_leads_to_the_target_at_once() -> None:
    """The loss is remembered as the last fault; it is no failure, because the link was about to end."""
    gone = Fault(FaultKind.SILENT, "nothing was heard for 20 s")
    record = transition(up(started(2), proven=True), events.HandOverRequested(1.0), FOREVER).record

    step = transition(record, events.LinkLost(1, gone, 2.0), FOREVER)

    assert dials(step.effects) == [effects.Dial(2, 1, 0)]
    assert step.effects[0] == effects.StopPublishing(1, gone)
    assert (step.record.last_fault, step.record.failures, step.record.at) == (gone, 0, 2.0)


def test_a_hand_over_to_an_endpoint_that_does_not_exist_changes_nothing() -> None:
    """An index outside the list, or a producer that drains, keeps its link."""
    record = up(started(2), proven=True)
    draining = transition(record, events.StopRequested(1.0, drain=True), FOREVER).record

    assert transition(record, events.HandOverRequested(1.0, 2), FOREVER).record is record
    assert transition(record, events.HandOverRequested(1.0, -1), FOREVER).record is record
    assert transition(draining, events.HandOverRequested(1.0, 1), FOREVER).record is draining


def test_the_first_endpoint_is_preferred_again_after_a_while() -> None:
    """After `stable_for`, doubled for each failure of the first endpoint, the link is handed over to it."""
    record = transition(started(2, FIRST), events.DialFailed(1, REFUSED, 0.0), FIRST).record
    record = transition(record, events.LinkOpened(2, 0.0), FIRST).record
    step = transition(record, events.TopologyRestored(2, 0.0), FIRST)
    assert effects.StartPreferTimer(2, 20.0) in step.effects

    record = transition(step.record, events.PreferTimerFired(2, 20.0), FIRST).record
    assert record.state == states.HandingOver(2, 0)
    record = transition(record, events.InFlightSettled(2, 20.0), FIRST).record
    step = transition(record, events.LinkClosed(2, 20.0), FIRST)
    assert dials(step.effects) == [effects.Dial(3, 0, 1)]

    back = transition(step.record, events.DialFailed(3, REFUSED, 20.0), FIRST).record
    back = transition(back, events.LinkOpened(4, 20.0), FIRST).record
    assert effects.StartPreferTimer(4, 40.0) in transition(back, events.TopologyRestored(4, 20.0), FIRST).effects


def test_the_delay_before_going_back_has_a_cap() -> None:
    """An endpoint that stays away costs at most one interruption an hour."""
    gone = evolve(in_order((0, 1)), records=(EndpointRecord(1000), EndpointRecord()), current=1)

    assert prefer_delay(gone, 10.0) == 3600.0
    assert prefer_delay(gone, 7200.0) == 7200.0
    assert prefer_delay(gone, 0.0) == 0.0
    assert prefer_delay(gone, 2.0**-20) == 2.0**10


def test_nothing_is_handed_over_while_blocked_or_draining() -> None:
    """The timer is started again; on the first endpoint it does nothing."""
    record = on_the_second(FIRST)
    blocked = transition(record, events.PublishingBlocked(2, 1.0), FIRST).record
    draining = transition(record, events.StopRequested(1.0, drain=True), FIRST).record
    for busy in (blocked, draining):
        step = transition(busy, events.PreferTimerFired(2, 20.0), FIRST)
        assert (step.record, step.effects) == (busy, (effects.StartPreferTimer(2, 20.0),))

    first = up(started(2, FIRST), proven=True)
    assert transition(first, events.PreferTimerFired(1, 20.0), FIRST).effects == ()


@given(endpoints(), instants(), st.data())
def test_a_hand_over_begins_with_its_target_and_ends_with_the_endpoint_it_left(
    before: Endpoints, at: float, data: st.DataObject
) -> None:
    """No endpoint is forgotten by a hand-over, and the address of the one that was left moves on."""
    target = data.draw(st.integers(min_value=0, max_value=len(before.records) - 1))

    after = hand_over_to(before, target)

    assert sorted(after.queue) == list(range(len(before.records)))
    assert (after.current, after.queue[0], after.tried) == (target, target, frozenset({target}))
    assert after.queue[-1] == before.current or target == before.current
    assert after.records[before.current].address == before.record.address + 1
    assert hand_over_target(before, at, target) == target
    chosen = hand_over_target(before, at, None)
    assert chosen is not None
    assert chosen != before.current or all(
        record.retry_at > at for index, record in enumerate(before.records) if index != before.current
    )


# --- the first dial ----------------------------------------------------------------------------------------------


def test_the_first_dial_can_be_delayed_and_is_not_an_attempt() -> None:
    """A fleet that is deployed at one instant spreads its first dials; a hint does not wait for them."""
    policy = Policy(backoff=FOREVER.backoff, start_jitter=5.0)
    step = transition(initial(), events.StartRequested(0.0, (1, 0)), policy)
    assert (step.record.state, dials(step.effects)) == (states.Waiting(0), [])

    for event in (events.RetryTimerFired(0, 3.0), events.ReconnectRequested(3.0)):
        dialing = transition(step.record, event, policy)
        assert dials(dialing.effects) == [effects.Dial(1, 1, 0)]
        assert dialing.record.attempts == 0
