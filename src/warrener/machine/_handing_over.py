"""A planned change of the endpoint: stop writing, wait for the confirms, close the link, dial the next endpoint.

The wait is bounded by `drain_timeout`. A message that has no confirm by then is treated as after the loss of a link. If the
next endpoint cannot be reached, the pass goes on with the others; the endpoint that was left is its last one.
"""

from __future__ import annotations

from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._counting import leave_up
from warrener.machine._reconnecting import dial
from warrener.machine._record import Policy, Record, Step, next_record
from warrener.machine.endpoints import hand_over_target, hand_over_to, prefer_delay

__all__ = ["close_link", "go_on", "hand_over", "prefer_first"]

_HANDED_OVER = Fault(FaultKind.CLOSED, "the producer goes on at another endpoint")


def hand_over(record: Record, state: states.Up, event: events.HandOverRequested, at: float, policy: Policy) -> Step:
    """Stop writing, and wait for the confirms of the messages in flight."""
    target = hand_over_target(record.endpoints, at, event.endpoint)
    return Step(record) if target is None else _begin(record, state, target, at, policy)


def prefer_first(record: Record, state: states.Up, at: float, policy: Policy) -> Step:
    """Go back to the first endpoint. While the producer drains, or is blocked, try again after the same delay."""
    if record.endpoints.current == 0:
        return Step(record)
    if record.draining or state.blocked:
        delay = prefer_delay(record.endpoints, policy.stable_for)
        return Step(record, (effects.StartPreferTimer(state.link, delay),))
    return _begin(record, state, 0, at, policy)


def _begin(record: Record, state: states.Up, target: int, at: float, policy: Policy) -> Step:
    after = states.HandingOver(state.link, target, state.proven)
    sender = () if state.blocked else (effects.PausePublishing(state.link),)
    timer = effects.StartHandOverTimer(state.link, policy.drain_timeout)
    orders = (*sender, *leave_up(record, state, policy), timer, effects.ReportSettled(state.link))
    return Step(next_record(record, at, after), (*orders, effects.Announce(state, after)))


def close_link(record: Record, state: states.HandingOver, at: float, policy: Policy) -> Step:
    """The wait is over: close the link."""
    if state.closing:
        return Step(record)
    after = states.HandingOver(state.link, state.target, state.proven, closing=True)
    timer = effects.StartCloseTimer(state.link, policy.close_timeout)
    orders = (effects.CancelTimer("hand_over"), effects.CloseLink(state.link), timer)
    return Step(next_record(record, at, after), orders)


def go_on(record: Record, state: states.HandingOver, at: float, fault: Fault | None = None) -> Step:
    """The link is closed, or was lost by `fault`: dial the next endpoint at once. It is no failure in either case."""
    timer = effects.CancelTimer("close" if state.closing else "hand_over")
    first = (effects.StopPublishing(state.link, fault or _HANDED_OVER), timer)
    after = next_record(record, at, last_fault=fault, endpoints=hand_over_to(record.endpoints, state.target))
    return dial(after, attempts=record.attempts, first=first, fault=fault)
