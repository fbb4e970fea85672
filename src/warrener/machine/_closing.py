"""Shared by several states: the drain, the close handshake, and the end."""

from __future__ import annotations

from typing import get_args

from warrener.errors import Fault
from warrener.machine import effects, events, states
from warrener.machine._counting import leave_up
from warrener.machine._record import Policy, Record, Step, next_record

__all__ = ["closed", "stop"]

#: Cancelling a timer that does not run does nothing.
_CANCEL_ALL = tuple(effects.CancelTimer(timer) for timer in get_args(effects.Timer))


def stop(
    record: Record,
    state: states.Waiting | states.Dialing | states.Restoring | states.Up | states.HandingOver | states.Dropping,
    event: events.StopRequested | events.Drained | events.DrainTimerFired,
    at: float,
    policy: Policy,
) -> Step:
    """Begin a drain, end it, or close without a drain."""
    if isinstance(event, events.StopRequested):
        if event.drain and record.draining:
            return Step(record)
        if event.drain:
            orders = (effects.StartDrainTimer(policy.drain_timeout), effects.Announce(state, state))
            return Step(next_record(record, at, draining=True), orders)
    elif not record.draining:
        return Step(record)
    return _close(record, state, at, policy)


def _close(
    record: Record,
    state: states.Waiting | states.Dialing | states.Restoring | states.Up | states.HandingOver | states.Dropping,
    at: float,
    policy: Policy,
) -> Step:
    """Close the link, cancel the dial, or wait for the end of a link that is being aborted already."""
    orders: tuple[effects.Effect, ...]
    match state:
        case states.Waiting():
            return closed(record, at)
        case states.Dialing() | states.Restoring():
            orders = (effects.CloseLink(state.link),)
        case states.Up():
            # No publish is written after `connection.close`. Confirms can still arrive until the broker answers it.
            sender = () if state.blocked else (effects.PausePublishing(state.link),)
            orders = (*sender, *leave_up(record, state, policy), effects.CloseLink(state.link))
        case states.HandingOver():
            orders = () if state.closing else (effects.CancelTimer("hand_over"), effects.CloseLink(state.link))
        case states.Dropping():
            orders = ()
    closing = states.Closing(state.link)
    drain = (effects.CancelTimer("drain"),) if record.draining else ()
    timer = effects.StartCloseTimer(state.link, policy.close_timeout)
    return Step(next_record(record, at, closing), (*orders, *drain, timer, effects.Announce(state, closing)))


def closed(
    record: Record,
    at: float,
    *,
    fault: Fault | None = None,
    first: tuple[effects.Effect, ...] = (),
    ending: Fault | None = None,
) -> Step:
    """Enter `Closed`. `ending` is the fault that `run()` raises."""
    after = states.Closed(record.state.link)
    orders = (*first, *_CANCEL_ALL, effects.Announce(record.state, after, fault), effects.Finish(ending))
    return Step(next_record(record, at, after), orders)
