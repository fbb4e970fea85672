"""One test for each line of docs/state-table.md, named for the line; what is expected is written here by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve, frozen

from warrener._cli import machine as machine_table
from warrener.errors import Fault, FaultKind
from warrener.machine import Breaker, EndpointRecord, Endpoints, Permit, Step, effects, events, states

#: Stand for what differs among the states and faults that share a line.
TOLD = "Announce(before, after)"
TOLD_WHY = "Announce(before, after, fault)"
CAUSE = "the fault"
#: Two endpoints, after the first one failed or shut down and the second one was taken.
FAILED_OVER = "the second of two endpoints"
#: The only endpoint, after a hand-over from it to itself, and after a confirm.
HANDED_OVER = "the next address"
PROVEN = "no failures"


@frozen
class Expected:
    """The state afterwards (None: as before), the effects, and the other fields that changed."""

    state: states.State | None
    orders: tuple[object, ...]
    changes: dict[str, Any]


def endpoints_after(row: machine_table.Row, after: states.State, cause: Fault | None) -> Endpoints:
    """What a line leads to for the only endpoint, by the event alone; lines with two endpoints say it themselves."""
    endpoints = row.record.endpoints
    if isinstance(row.event, events.EndpointsFound) and isinstance(after, states.Dialing):
        # A new one comes first; one that was known keeps its record, and its place behind it.
        count, old = len(row.event.kept), endpoints.records
        if not old:
            order = row.event.order
            return Endpoints((EndpointRecord(),) * count, order, order[0], frozenset({order[0]}))
        if count == 1:
            return endpoints
        return Endpoints((*old, EndpointRecord()), (1, 0), 1, frozenset({1}))
    if not endpoints.records:
        return endpoints
    record = endpoints.record
    second = endpoints.current == 1

    def known(after: EndpointRecord, *, last: bool = False) -> Endpoints:
        records = (endpoints.records[0], after) if second else (after,)
        return evolve(endpoints, records=records, queue=(0, 1) if second and last else endpoints.queue)

    lost = isinstance(row.event, events.DialFailed | events.LinkLost)
    dropped = isinstance(after, states.Dropping) and not isinstance(row.record.state, states.Dropping)
    open_ended = isinstance(row.record.state, states.Dialing | states.Restoring | states.Up)
    if dropped or (lost and open_ended):
        assert cause is not None
        proven = getattr(row.record.state, "proven", False)
        moved = record.address + int(cause.orderly or not proven)
        if cause.orderly:
            return known(evolve(record, last_fault=cause, address=moved), last=True)
        delay = 30.0 if cause.permanent else 0.5 * 2**record.failures
        return known(EndpointRecord(record.failures + 1, 100.0 + delay, cause, moved), last=True)
    if isinstance(row.event, events.StableTimerFired | events.PublishConfirmed) and after != row.record.state:
        return known(evolve(record, failures=0, retry_at=-math.inf))
    asked = row.policy.discovery and isinstance(row.record.state, states.Waiting)
    if isinstance(row.event, events.ReconnectRequested) and (after != row.record.state or asked):
        return known(evolve(record, retry_at=-math.inf))
    if isinstance(row.record.state, states.Idle) and isinstance(after, states.Dialing):
        return Endpoints(tried=frozenset({0}))
    return endpoints


def then(state: states.State | None, *orders: object, **changes: Any) -> Expected:
    """Say what a line leads to: the state (None: the same), the effects in order, the other fields that change."""
    return Expected(state, orders, changes)


CANCEL_ALL = tuple(
    effects.CancelTimer(name) for name in ("retry", "stable", "prefer", "cooldown", "drain", "hand_over", "close")
)
END = (*CANCEL_ALL, TOLD, effects.Finish())
CANCEL_STABLE, CANCEL_DRAIN = effects.CancelTimer("stable"), effects.CancelTimer("drain")
WAITING, GAVE_UP, CLOSING, CLOSED = states.Waiting(3), states.GaveUp(3), states.Closing(3), states.Closed(3)
UP, UP_BLOCKED, UP_PROVEN = states.Up(3), states.Up(3, blocked=True), states.Up(3, proven=True)
NEXT_DIAL = (effects.Dial(4, 0, 1), TOLD)
THIRD = effects.StartRetryTimer(3, 2.0, 4.0)  # attempt number 2, counted from 0: 1 s * 2 ** 2, jitter 0.5
FIRST = effects.StartRetryTimer(3, 0.5, 1.0)
SLOWEST = effects.StartRetryTimer(3, 30.0, 60.0)
ASK_AT_ONCE, ASK_AT_ONCE_FIRST = effects.StartRetryTimer(3, 0.0, 0.0), effects.StartRetryTimer(0, 0.0, 0.0)
TOLD_IF_ANY = "Announce(before, after, the event's fault)"
SHUT = "StopPublishing(3, fault)"
FAIL = "FailPending(fault)"
REFUSE = "RefusePublishing(fault)"
TO_THE_OTHER = (effects.Dial(4, 1, 0), TOLD_WHY)
FINISH = "Finish(fault)"
CLOSE_TIMER = effects.StartCloseTimer(3, 3.0)
LEFT = "StopPublishing(3, fault or handed over)"
HANDING_OVER = states.HandingOver(3, 0)
WAIT_FOR_CONFIRMS = (effects.StartHandOverTimer(3, 10.0), effects.ReportSettled(3), TOLD)
CANCEL_HAND_OVER = effects.CancelTimer("hand_over")
CANCEL_BOTH = (CANCEL_STABLE, effects.CancelTimer("prefer"))
NEXT_ADDRESS = (effects.Dial(4, 0, 2), TOLD_WHY)
LEAVING = Fault(FaultKind.CLOSED, "the producer goes on at another endpoint")
OVERDUE = Fault(FaultKind.CONFIRM_OVERDUE, "no confirm within confirm_timeout; the link is replaced")
STORM = Fault(FaultKind.CHANNEL_STORM, "the broker closed more than 5 channels within 10 s; the link is replaced")
UNANSWERED = Fault(FaultKind.CLOSED, "the close handshake was not answered within close_timeout")


def failures(count: int) -> dict[str, Any]:
    """The count of a record whose breaker is closed, below its threshold."""
    return {"failures": count, "breaker": Breaker(failures=count)}


TRIPPED = {"failures": 5, "breaker": Breaker(state="open", failures=5, generation=1, opened_at=100.0)}
COOLDOWN = effects.StartCooldownTimer(1, 30.0)
#: A half-open breaker (generation 2, five failures) that tripped anew.
TRIPPED_AGAIN = {"failures": 6, "breaker": Breaker(state="open", failures=6, generation=3, opened_at=100.0)}
COOLDOWN_AGAIN = effects.StartCooldownTimer(3, 30.0)
CLOSES = (91.0, 93.0, 95.0, 97.0, 99.0)


def dropping(fault: Fault, *orders: object, **changes: Any) -> Expected:
    """Aborting, with what comes before the abort and after it split by the word ABORT."""
    at = orders.index("ABORT")
    announce = "Announce(before, after, its fault)"
    orders = (*orders[:at], effects.AbortLink(3, fault), *orders[at + 1 :], announce)
    return then(states.Dropping(3, fault), *orders, last_fault=fault, **changes)


EXPECTED: dict[str, Expected] = {
    # Idle
    "Idle | StartRequested": then(states.Dialing(1), effects.Dial(1), TOLD, breaker=Breaker()),
    "Idle: start_jitter of 5 s | StartRequested": then(
        states.Waiting(0), effects.StartRetryTimer(0, 0.0, 5.0), TOLD, breaker=Breaker()
    ),
    "Idle: discovery | StartRequested": then(states.Waiting(0), ASK_AT_ONCE_FIRST, TOLD, breaker=Breaker()),
    "Idle, GaveUp, Closing, Closed | AdmissionRequested": then(None, effects.Refuse(math.inf)),
    "Idle, GaveUp | StopRequested, drain": then(CLOSED, *END),
    "Idle, Waiting, GaveUp | StopRequested, no drain": then(CLOSED, *END),
    # Dialing, and what it shares with others
    "Dialing | LinkLost, orderly": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing: never connected | DialFailed, permanent": then(
        WAITING, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE, **failures(2)
    ),
    "Dialing: another endpoint is ready | DialFailed / LinkLost": then(
        states.Dialing(4), *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Dialing, Restoring: another endpoint is ready | LinkLost, orderly": then(
        states.Dialing(4), *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Dialing: attempts used up | LinkLost, orderly": then(GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    'Dialing: attempts used up, when_exhausted="raise" | LinkLost, orderly': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE, **failures(2)
    ),
    "Dialing: draining, attempts used up | LinkLost, orderly": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE, **failures(2)
    ),
    "Dialing: one failure below the threshold | LinkLost, orderly": then(
        WAITING, THIRD, COOLDOWN, TOLD_WHY, last_fault=CAUSE, **TRIPPED
    ),
    "Dialing: breaker half open | LinkLost, orderly": then(
        WAITING, THIRD, COOLDOWN_AGAIN, TOLD_WHY, last_fault=CAUSE, **TRIPPED_AGAIN
    ),
    "Dialing | LinkOpened": then(states.Restoring(3), effects.ReplayTopology(3), TOLD),
    "Dialing | DialFailed": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing | DialFailed, permanent": then(WAITING, SLOWEST, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing, Restoring | LinkLost": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing, Restoring | LinkLost, topology refused": then(WAITING, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE),
    "Dialing | PublishingBlocked": then(states.Dialing(3, blocked=True)),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting | AdmissionRequested": then(None, effects.Admit(None)),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting | StopRequested, drain": then(
        None, effects.StartDrainTimer(10.0), TOLD, draining=True
    ),
    "Dialing, Restoring | StopRequested, no drain": then(CLOSING, effects.CloseLink(3), CLOSE_TIMER, TOLD),
    "Dialing: blocked | LinkOpened": then(states.Restoring(3, blocked=True), effects.ReplayTopology(3), TOLD),
    "Dialing, Restoring, Up: blocked | PublishingBlocked": then(None),
    "Dialing: blocked | PublishingUnblocked": then(states.Dialing(3)),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting: draining | StopRequested, drain": then(None),
    "Dialing, Restoring: draining | StopRequested, no drain / Drained / DrainTimerFired": then(
        CLOSING, effects.CloseLink(3), CANCEL_DRAIN, CLOSE_TIMER, TOLD
    ),
    "Dialing: attempts used up | DialFailed": then(GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing, Restoring: attempts used up | LinkLost": then(GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Dialing, Restoring: attempts used up | LinkLost, topology refused": then(
        GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE
    ),
    'Dialing: attempts used up, when_exhausted="raise" | DialFailed': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE, **failures(2)
    ),
    'Dialing, Restoring: attempts used up, when_exhausted="raise" | LinkLost': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE, **failures(2)
    ),
    'Dialing, Restoring: attempts used up, when_exhausted="raise" | LinkLost, topology refused': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE
    ),
    "Dialing: draining, attempts used up | DialFailed": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE, **failures(2)
    ),
    "Dialing, Restoring: draining, attempts used up | LinkLost": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE, **failures(2)
    ),
    "Dialing, Restoring: draining, attempts used up | LinkLost, topology refused": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE
    ),
    "Dialing: one failure below the threshold | DialFailed": then(
        WAITING, THIRD, COOLDOWN, TOLD_WHY, last_fault=CAUSE, **TRIPPED
    ),
    "Dialing: one failure below the threshold | DialFailed, permanent": then(
        WAITING, SLOWEST, COOLDOWN, TOLD_WHY, last_fault=CAUSE, **TRIPPED
    ),
    "Dialing, Restoring: one failure below the threshold | LinkLost": then(
        WAITING, THIRD, COOLDOWN, TOLD_WHY, last_fault=CAUSE, **TRIPPED
    ),
    "Dialing, Restoring: one failure below the threshold | LinkLost, topology refused": then(
        WAITING, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting: breaker open | AdmissionRequested": then(
        None, effects.Refuse(20.0)
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting, GaveUp: breaker open | CooldownTimerFired": then(
        None, breaker=Breaker(state="half_open", failures=5, generation=2, opened_at=90.0)
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting: breaker open, cooldown over | AdmissionRequested": then(
        None,
        effects.Admit(Permit(2, 1)),
        effects.CancelTimer("cooldown"),
        breaker=Breaker(
            state="half_open", failures=5, generation=2, opened_at=70.0, outstanding=frozenset({1}), issued=1
        ),
    ),
    "Dialing: breaker half open | DialFailed": then(
        WAITING, THIRD, COOLDOWN_AGAIN, TOLD_WHY, last_fault=CAUSE, **TRIPPED_AGAIN
    ),
    "Dialing: breaker half open | DialFailed, permanent": then(
        WAITING, SLOWEST, COOLDOWN_AGAIN, TOLD_WHY, last_fault=CAUSE, **TRIPPED_AGAIN
    ),
    "Dialing, Restoring: breaker half open | LinkLost": then(
        WAITING, THIRD, COOLDOWN_AGAIN, TOLD_WHY, last_fault=CAUSE, **TRIPPED_AGAIN
    ),
    "Dialing, Restoring: breaker half open | LinkLost, topology refused": then(
        WAITING, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting: breaker half open | AdmissionRequested": then(
        None,
        effects.Admit(Permit(2, 1)),
        breaker=Breaker(
            state="half_open", failures=5, generation=2, opened_at=70.0, outstanding=frozenset({1}), issued=1
        ),
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting: breaker half open, probe granted | AdmissionRequested": then(
        None, effects.Refuse(1.0)
    ),
    "Dialing, Restoring, Up, HandingOver, Dropping, Waiting, GaveUp: breaker half open, probe granted | PermitReleased": then(
        None, breaker=Breaker(state="half_open", failures=5, generation=2, opened_at=70.0, issued=1)
    ),
    # Restoring
    "Restoring | TopologyRestored": then(UP, effects.StartPublishing(3), effects.StartStableTimer(3, 10.0), TOLD),
    "Restoring: another endpoint is ready | LinkLost": then(
        states.Dialing(4), *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER, **failures(2)
    ),
    "Restoring: another endpoint is ready | LinkLost, topology refused": then(
        states.Dialing(4), *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Restoring | LinkLost, orderly": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE),
    "Restoring, Up | ChannelClosed": then(None, last_fault=CAUSE, channel_closes=(100.0,)),
    "Restoring | PublishingBlocked": then(states.Restoring(3, blocked=True)),
    "Restoring: blocked | TopologyRestored": then(
        UP_BLOCKED, effects.PausePublishing(3), effects.StartStableTimer(3, 10.0), TOLD
    ),
    "Restoring: blocked | PublishingUnblocked": then(states.Restoring(3)),
    "Restoring: five channels closed within 10 s | ChannelClosed": dropping(
        STORM, "ABORT", channel_closes=(*CLOSES, 100.0)
    ),
    "Restoring: attempts used up | LinkLost, orderly": then(GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE),
    'Restoring: attempts used up, when_exhausted="raise" | LinkLost, orderly': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE
    ),
    "Restoring: draining, attempts used up | LinkLost, orderly": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE
    ),
    "Restoring: one failure below the threshold | LinkLost, orderly": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE),
    "Restoring: breaker open | TopologyRestored": then(
        UP,
        effects.StartPublishing(3),
        effects.StartStableTimer(3, 10.0),
        effects.CancelTimer("cooldown"),
        TOLD,
        breaker=Breaker(state="half_open", failures=5, generation=2, opened_at=90.0),
    ),
    "Restoring: breaker half open | LinkLost, orderly": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE),
    # Up
    "Up: another endpoint is ready | LinkLost": then(
        states.Dialing(4),
        SHUT,
        CANCEL_STABLE,
        *TO_THE_OTHER,
        last_fault=CAUSE,
        endpoints=FAILED_OVER,
        **failures(2),
    ),
    "Up: another endpoint is ready | LinkLost, orderly": then(
        states.Dialing(4), SHUT, CANCEL_STABLE, *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Up: another endpoint is ready | LinkLost, topology refused": then(
        states.Dialing(4), SHUT, CANCEL_STABLE, *TO_THE_OTHER, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Up: proven, another endpoint is ready | LinkLost, orderly": then(
        states.Dialing(4), SHUT, *TO_THE_OTHER, attempts=1, last_fault=CAUSE, endpoints=FAILED_OVER
    ),
    "Up: proven, another endpoint is ready | LinkLost, topology refused": then(
        WAITING,
        SHUT,
        FIRST,
        TOLD_WHY,
        last_fault=CAUSE,
        endpoints=Endpoints(
            (EndpointRecord(1, 130.0, machine_table.MISMATCH, 1), EndpointRecord()), (1, 0), 0, frozenset({0})
        ),
    ),
    "Up | LinkLost": then(WAITING, SHUT, CANCEL_STABLE, THIRD, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Up | LinkLost, orderly": then(WAITING, SHUT, CANCEL_STABLE, THIRD, TOLD_WHY, last_fault=CAUSE),
    "Up | LinkLost, topology refused": then(WAITING, SHUT, CANCEL_STABLE, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE),
    "Up | StableTimerFired": then(UP_PROVEN, attempts=0),
    "Up | PublishConfirmed": then(UP_PROVEN, CANCEL_STABLE, attempts=0, **failures(0)),
    "Up | ConfirmOverdue": dropping(OVERDUE, effects.StopPublishing(3, OVERDUE), CANCEL_STABLE, "ABORT", **failures(2)),
    "Up | PublishingBlocked": then(UP_BLOCKED, effects.PausePublishing(3), TOLD),
    "Up | StopRequested, no drain": then(
        CLOSING, effects.PausePublishing(3), CANCEL_STABLE, effects.CloseLink(3), CLOSE_TIMER, TOLD
    ),
    "Up: blocked | StableTimerFired": then(states.Up(3, blocked=True, proven=True), attempts=0),
    "Up: blocked | PublishConfirmed": then(
        states.Up(3, blocked=True, proven=True), CANCEL_STABLE, attempts=0, **failures(0)
    ),
    "Up: blocked | ConfirmOverdue": then(None),
    "Up: blocked | PublishingUnblocked": then(UP, effects.StartPublishing(3), TOLD),
    "Up: blocked | StopRequested, no drain": then(CLOSING, CANCEL_STABLE, effects.CloseLink(3), CLOSE_TIMER, TOLD),
    "Up: proven | LinkLost": then(WAITING, SHUT, FIRST, TOLD_WHY, last_fault=CAUSE, **failures(2)),
    "Up: proven | LinkLost, orderly": then(WAITING, SHUT, FIRST, TOLD_WHY, last_fault=CAUSE),
    "Up: proven | LinkLost, topology refused": then(WAITING, SHUT, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE),
    "Up: proven | StableTimerFired": then(None),
    "Up: proven | PublishConfirmed": then(None, **failures(0)),
    "Up: proven | ConfirmOverdue": dropping(OVERDUE, effects.StopPublishing(3, OVERDUE), "ABORT", **failures(2)),
    "Up: proven | PublishingBlocked": then(states.Up(3, blocked=True, proven=True), effects.PausePublishing(3), TOLD),
    "Up: proven | StopRequested, no drain": then(
        CLOSING, effects.PausePublishing(3), effects.CloseLink(3), CLOSE_TIMER, TOLD
    ),
    "Up: proven, no failures | PublishConfirmed": then(None),
    "Up: five channels closed within 10 s | ChannelClosed": dropping(
        STORM, effects.StopPublishing(3, STORM), CANCEL_STABLE, "ABORT", channel_closes=(*CLOSES, 100.0)
    ),
    "Up: draining | StopRequested, no drain / Drained / DrainTimerFired": then(
        CLOSING, effects.PausePublishing(3), CANCEL_STABLE, effects.CloseLink(3), CANCEL_DRAIN, CLOSE_TIMER, TOLD
    ),
    "Up: attempts used up | LinkLost": then(
        GAVE_UP, SHUT, CANCEL_STABLE, FAIL, TOLD_WHY, last_fault=CAUSE, **failures(2)
    ),
    "Up: attempts used up | LinkLost, orderly": then(GAVE_UP, SHUT, CANCEL_STABLE, FAIL, TOLD_WHY, last_fault=CAUSE),
    "Up: attempts used up | LinkLost, topology refused": then(
        GAVE_UP, SHUT, CANCEL_STABLE, FAIL, TOLD_WHY, last_fault=CAUSE
    ),
    'Up: attempts used up, when_exhausted="raise" | LinkLost': then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE, **failures(2)
    ),
    'Up: attempts used up, when_exhausted="raise" | LinkLost, orderly': then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE
    ),
    'Up: attempts used up, when_exhausted="raise" | LinkLost, topology refused': then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE
    ),
    "Up: draining, attempts used up | LinkLost": then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE, **failures(2)
    ),
    "Up: draining, attempts used up | LinkLost, orderly": then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE
    ),
    "Up: draining, attempts used up | LinkLost, topology refused": then(
        CLOSED, SHUT, CANCEL_STABLE, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE
    ),
    "Up: one failure below the threshold | LinkLost": then(
        WAITING, SHUT, CANCEL_STABLE, THIRD, COOLDOWN, TOLD_WHY, last_fault=CAUSE, **TRIPPED
    ),
    "Up: one failure below the threshold | LinkLost, orderly": then(
        WAITING, SHUT, CANCEL_STABLE, THIRD, TOLD_WHY, last_fault=CAUSE
    ),
    "Up: one failure below the threshold | LinkLost, topology refused": then(
        WAITING, SHUT, CANCEL_STABLE, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE
    ),
    "Up: one failure below the threshold | ConfirmOverdue": dropping(
        OVERDUE, effects.StopPublishing(3, OVERDUE), CANCEL_STABLE, "ABORT", COOLDOWN, **TRIPPED
    ),
    "Up: breaker half open | LinkLost": then(
        WAITING, SHUT, CANCEL_STABLE, THIRD, COOLDOWN_AGAIN, TOLD_WHY, last_fault=CAUSE, **TRIPPED_AGAIN
    ),
    "Up: breaker half open | LinkLost, orderly": then(WAITING, SHUT, CANCEL_STABLE, THIRD, TOLD_WHY, last_fault=CAUSE),
    "Up: breaker half open | LinkLost, topology refused": then(
        WAITING, SHUT, CANCEL_STABLE, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE
    ),
    "Up: breaker half open | ConfirmOverdue": dropping(
        OVERDUE, effects.StopPublishing(3, OVERDUE), CANCEL_STABLE, "ABORT", COOLDOWN_AGAIN, **TRIPPED_AGAIN
    ),
    "Up: breaker half open, probe granted | PublishConfirmed, a probe": then(
        UP_PROVEN, CANCEL_STABLE, attempts=0, failures=0, breaker=Breaker(generation=3)
    ),
    "Up: another endpoint is ready | HandOverRequested": then(
        states.HandingOver(3, 1), effects.PausePublishing(3), CANCEL_STABLE, *WAIT_FOR_CONFIRMS
    ),
    "Up: proven, another endpoint is ready | HandOverRequested": then(
        states.HandingOver(3, 1, proven=True), effects.PausePublishing(3), *WAIT_FOR_CONFIRMS
    ),
    "Up | HandOverRequested": then(HANDING_OVER, effects.PausePublishing(3), CANCEL_STABLE, *WAIT_FOR_CONFIRMS),
    "Up: blocked | HandOverRequested": then(HANDING_OVER, CANCEL_STABLE, *WAIT_FOR_CONFIRMS),
    "Up: proven | HandOverRequested": then(
        states.HandingOver(3, 0, proven=True), effects.PausePublishing(3), *WAIT_FOR_CONFIRMS
    ),
    "Up: draining | HandOverRequested": then(None),
    # Not on the preferred endpoint: a timer leads back to the first one
    "Restoring: not on the preferred endpoint | TopologyRestored": then(
        UP, effects.StartPublishing(3), effects.StartStableTimer(3, 10.0), effects.StartPreferTimer(3, 20.0), TOLD
    ),
    "Up: not on the preferred endpoint | LinkLost": then(
        WAITING, SHUT, *CANCEL_BOTH, THIRD, TOLD_WHY, last_fault=CAUSE, **failures(2)
    ),
    "Up: not on the preferred endpoint | LinkLost, orderly": then(
        WAITING, SHUT, *CANCEL_BOTH, THIRD, TOLD_WHY, last_fault=CAUSE
    ),
    "Up: not on the preferred endpoint | LinkLost, topology refused": then(
        WAITING, SHUT, *CANCEL_BOTH, REFUSE, SLOWEST, TOLD_WHY, last_fault=CAUSE
    ),
    "Up: not on the preferred endpoint | HandOverRequested": then(
        states.HandingOver(3, 1), effects.PausePublishing(3), *CANCEL_BOTH, *WAIT_FOR_CONFIRMS
    ),
    "Up: not on the preferred endpoint | PreferTimerFired": then(
        HANDING_OVER, effects.PausePublishing(3), *CANCEL_BOTH, *WAIT_FOR_CONFIRMS
    ),
    "Up: not on the preferred endpoint | ConfirmOverdue": dropping(
        OVERDUE, effects.StopPublishing(3, OVERDUE), *CANCEL_BOTH, "ABORT", **failures(2)
    ),
    "Up: not on the preferred endpoint | StopRequested, no drain": then(
        CLOSING, effects.PausePublishing(3), *CANCEL_BOTH, effects.CloseLink(3), CLOSE_TIMER, TOLD
    ),
    # HandingOver
    "HandingOver | LinkLost / LinkClosed": then(
        states.Dialing(4), LEFT, CANCEL_HAND_OVER, *NEXT_ADDRESS, last_fault=CAUSE, endpoints=HANDED_OVER
    ),
    "HandingOver | InFlightSettled / HandOverTimerFired": then(
        states.HandingOver(3, 0, proven=True, closing=True), CANCEL_HAND_OVER, effects.CloseLink(3), CLOSE_TIMER
    ),
    "HandingOver | PublishConfirmed": then(None, attempts=0, endpoints=PROVEN, **failures(0)),
    "HandingOver | StopRequested, no drain": then(CLOSING, CANCEL_HAND_OVER, effects.CloseLink(3), CLOSE_TIMER, TOLD),
    "HandingOver | CloseTimerFired": then(None, effects.AbortLink(3, UNANSWERED)),
    "HandingOver: draining | StopRequested, no drain / Drained / DrainTimerFired": then(
        CLOSING, CANCEL_HAND_OVER, effects.CloseLink(3), CANCEL_DRAIN, CLOSE_TIMER, TOLD
    ),
    "HandingOver: breaker half open, probe granted | PublishConfirmed, a probe": then(
        None, attempts=0, failures=0, breaker=Breaker(generation=3), endpoints=PROVEN
    ),
    "HandingOver: closing | LinkLost / LinkClosed": then(
        states.Dialing(4),
        "StopPublishing(3, handed over)",
        effects.CancelTimer("close"),
        effects.Dial(4, 0, 2),
        TOLD,
        endpoints=HANDED_OVER,
    ),
    "HandingOver: closing | InFlightSettled / HandOverTimerFired": then(None),
    "HandingOver: closing | StopRequested, no drain": then(CLOSING, CLOSE_TIMER, TOLD),
    "HandingOver: closing, draining | StopRequested, drain": then(None),
    "HandingOver: closing, draining | StopRequested, no drain / Drained / DrainTimerFired": then(
        CLOSING, CANCEL_DRAIN, CLOSE_TIMER, TOLD
    ),
    # Dropping
    "Dropping | LinkLost / LinkClosed": then(WAITING, THIRD, TOLD_WHY, last_fault=CAUSE),
    "Dropping | StopRequested, no drain": then(CLOSING, CLOSE_TIMER, TOLD),
    "Dropping: draining | StopRequested, no drain / Drained / DrainTimerFired": then(
        CLOSING, CANCEL_DRAIN, CLOSE_TIMER, TOLD
    ),
    "Dropping: attempts used up | LinkLost / LinkClosed": then(GAVE_UP, FAIL, TOLD_WHY, last_fault=CAUSE),
    'Dropping: attempts used up, when_exhausted="raise" | LinkLost / LinkClosed': then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, FINISH, last_fault=CAUSE
    ),
    "Dropping: draining, attempts used up | LinkLost / LinkClosed": then(
        CLOSED, FAIL, *CANCEL_ALL, TOLD_WHY, effects.Finish(), last_fault=CAUSE
    ),
    # Waiting, GaveUp, Closing, Closed
    "Waiting | RetryTimerFired / EndpointsFound / DiscoveryFailed": then(
        states.Dialing(4), effects.Dial(4, 0, 1), TOLD_IF_ANY, attempts=3, last_fault=CAUSE
    ),
    "Waiting | EndpointsFound, one of them new": then(states.Dialing(4), effects.Dial(4, 1, 0), TOLD, attempts=3),
    "Waiting | EndpointsFound, none": then(None),
    "Waiting: discovery | ReconnectRequested": then(None, effects.CancelTimer("retry"), ASK_AT_ONCE, hinted_at=100.0),
    "Waiting: discovery, no endpoint known | RetryTimerFired / EndpointsFound, none": then(None),
    "Waiting: discovery, no endpoint known | EndpointsFound": then(
        states.Dialing(4), effects.Dial(4), TOLD, attempts=3
    ),
    "Waiting: discovery, no endpoint known | EndpointsFound, one of them new": then(
        states.Dialing(4), effects.Dial(4), TOLD, attempts=3
    ),
    "Waiting: discovery, no endpoint known | DiscoveryFailed": then(
        states.Waiting(4),
        effects.StartRetryTimer(4, 4.0, 8.0),
        TOLD_WHY,
        attempts=3,
        last_fault=CAUSE,
        **failures(2),
    ),
    "Waiting: discovery, no endpoint known, attempts used up | DiscoveryFailed": then(
        states.GaveUp(4), FAIL, TOLD_WHY, attempts=10, last_fault=CAUSE, **failures(2)
    ),
    "GaveUp: discovery | ReconnectRequested": then(WAITING, ASK_AT_ONCE, TOLD, attempts=0, hinted_at=100.0),
    "Waiting | ReconnectRequested": then(
        states.Dialing(4), effects.CancelTimer("retry"), *NEXT_DIAL, attempts=3, hinted_at=100.0
    ),
    "Waiting, GaveUp: less than 1 s after the last hint | ReconnectRequested": then(None),
    "Waiting: draining | Drained / DrainTimerFired": then(CLOSED, *END),
    "GaveUp | ReconnectRequested": then(states.Dialing(4), *NEXT_DIAL, attempts=0, hinted_at=100.0),
    "Closing | LinkOpened": then(None, effects.CloseLink(3)),
    "Closing | DialFailed / LinkLost / LinkClosed": then(CLOSED, *END),
    "Closing | CloseTimerFired": then(
        states.Closing(3, aborted=True), effects.AbortLink(3, UNANSWERED), effects.StartCloseTimer(3, 1.0)
    ),
    "Closing: aborted | CloseTimerFired": then(CLOSED, *END),
}


def expected_step(row: machine_table.Row, expected: Expected) -> Step:
    """Put the row's own state and fault in the places that its line leaves open."""
    before = row.record
    cause = before.state.fault if isinstance(before.state, states.Dropping) else getattr(row.event, "fault", None)
    after = before.state if expected.state is None else expected.state
    if isinstance(before.state, states.Idle) and isinstance(after, states.Closed):
        after = states.Closed(0)
    changes: dict[str, Any] = {name: cause if value is CAUSE else value for name, value in expected.changes.items()}
    if changes.get("last_fault", before) is None:
        del changes["last_fault"]
    if changes.get("endpoints") is FAILED_OVER:
        first = endpoints_after(row, after, cause).record
        changes["endpoints"] = Endpoints((first, EndpointRecord()), (1, 0), 1, frozenset({0, 1}))
    if changes.get("endpoints") is HANDED_OVER:
        changes["endpoints"] = evolve(before.endpoints, records=(evolve(before.endpoints.record, address=2),))
        if changes.get("last_fault", before) is None:
            del changes["last_fault"]
    if changes.get("endpoints") is PROVEN:
        record = evolve(before.endpoints.record, failures=0, retry_at=-math.inf)
        changes["endpoints"] = evolve(before.endpoints, records=(record,))
    changes.setdefault("endpoints", endpoints_after(row, after, changes.get("last_fault", cause)))
    if changes["endpoints"] is before.endpoints:
        del changes["endpoints"]
    if after != before.state or changes:
        record = evolve(before, state=after, at=100.0, **changes)
    else:
        record = before
    fill: dict[str, effects.Effect] = {
        TOLD: effects.Announce(before.state, after),
        TOLD_WHY: effects.Announce(before.state, after, cause),
        TOLD_IF_ANY: effects.Announce(before.state, after, cause),
        "Announce(before, after, its fault)": effects.Announce(before.state, after, record.last_fault),
    }
    fill[LEFT] = effects.StopPublishing(3, cause or LEAVING)
    fill["StopPublishing(3, handed over)"] = effects.StopPublishing(3, LEAVING)
    if cause is not None:
        fill |= {
            SHUT: effects.StopPublishing(3, cause),
            FAIL: effects.FailPending(cause),
            REFUSE: effects.RefusePublishing(cause),
            FINISH: effects.Finish(cause),
        }
    orders = tuple(fill[effect] if isinstance(effect, str) else effect for effect in expected.orders)
    return Step(record, orders)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", machine_table.lines(), ids=lambda line: line.name)
def test_line(line: machine_table.Line) -> None:
    """The machine answers as the line of the table says, in every state that the line names."""
    for row in line.rows:
        expected = expected_step(row, EXPECTED[line.name])

        assert expected == row.step


def test_every_expectation_belongs_to_a_line() -> None:
    """No line can vanish from the table unnoticed."""
    assert set(EXPECTED) == {line.name for line in machine_table.lines()}
