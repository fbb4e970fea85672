"""Shared by several states: what counts as a failure, what a confirm proves, and what the breaker answers."""

from __future__ import annotations

from typing import assert_never

from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._record import Policy, Record, Step, next_record
from warrener.machine.breaker import Breaker, Permit, admit, cooled, failed, released, retry_after, succeeded
from warrener.machine.endpoints import endpoint_proven

__all__ = ["ask_breaker", "confirmed", "count_failure", "leave_up", "loss_counts", "unless_proven"]


def unless_proven(state: states.Up) -> tuple[effects.Effect, ...]:
    """Cancel the stable timer, which runs until the link is proven."""
    return () if state.proven else (effects.CancelTimer("stable"),)


def leave_up(record: Record, state: states.Up, policy: Policy) -> tuple[effects.Effect, ...]:
    """Cancel the timers that run while the machine is in `Up`."""
    prefers = policy.prefer == "first" and record.endpoints.current != 0
    return (*unless_proven(state), effects.CancelTimer("prefer")) if prefers else unless_proven(state)


def loss_counts(fault: Fault) -> bool:
    """Say whether the loss of an open link is a failure. A shutdown, our own close and a refused topology are none."""
    return not (fault.orderly or fault.kind is FaultKind.TOPOLOGY)


def count_failure(
    record: Record, at: float, permit: Permit | None
) -> tuple[int, Breaker | None, tuple[effects.Effect, ...]]:
    """Count one failure. Return the failures in a row, the breaker, and the timer if the breaker has opened."""
    failures, breaker = record.failures + 1, record.breaker
    if breaker is None:
        return failures, None, ()
    after = failed(breaker, permit, at)
    if after.generation == breaker.generation:
        return failures, after, ()
    return failures, after, (effects.StartCooldownTimer(after.generation, after.cooldown),)


def confirmed(record: Record, state: states.Up | states.HandingOver, permit: Permit | None, at: float) -> Step:
    """Mark the link as proven, set the failures to 0, and let a probe close the breaker."""
    breaker = record.breaker
    after = None if breaker is None else succeeded(breaker, permit, at)
    if state.proven and record.failures == 0 and after is breaker:
        return Step(record)
    endpoints = endpoint_proven(record.endpoints)
    proven: states.State = state
    orders: tuple[effects.Effect, ...] = ()
    if not state.proven:
        if isinstance(state, states.Up):
            proven, orders = states.Up(state.link, state.blocked, proven=True), unless_proven(state)
        else:
            proven = states.HandingOver(state.link, state.target, proven=True, closing=state.closing)
    after_confirm = next_record(record, at, proven, attempts=0, failures=0, breaker=after, endpoints=endpoints)
    return Step(after_confirm, orders)


def ask_breaker(
    record: Record, event: events.AdmissionRequested | events.PermitReleased | events.CooldownTimerFired, at: float
) -> Step:
    """Handle the events that concern the breaker alone. A breaker that is closed, or off, admits without a permit."""
    breaker = record.breaker
    if breaker is None or (breaker.state == "closed" and isinstance(event, events.AdmissionRequested)):
        return Step(record, (effects.Admit(None),) if isinstance(event, events.AdmissionRequested) else ())
    match event:
        case events.AdmissionRequested():
            after, permit = admit(breaker, at)
            if permit is None:
                return Step(record, (effects.Refuse(retry_after(breaker, at)),))
            late = (effects.CancelTimer("cooldown"),) if breaker.state == "open" else ()
            return Step(next_record(record, at, breaker=after), (effects.Admit(permit), *late))
        case events.PermitReleased(permit=permit):
            after = released(breaker, permit)
        case events.CooldownTimerFired(generation=generation):
            after = cooled(breaker) if generation == breaker.generation else breaker
        case _:
            assert_never(event)
    return Step(record) if after is breaker else Step(next_record(record, at, breaker=after))
