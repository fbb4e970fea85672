"""The transition function: it takes one record and one event, and returns the next record and a tuple of effects.

Theory of operation
===================

A producer has at most one link at a time. The machine dials, declares the topology on the open link, and then starts
publishing. When the link is lost, the machine waits and dials again, until all attempts are used. The owner can ask it to
close, with or without a drain. During a drain the machine dials and reconnects as usual.

    Idle -> Dialing -> Restoring -> Up -> Dropping -> Waiting -> Dialing …    GaveUp    Closing -> Closed

There is one function for each state, and in it one case for each event. The events that a state ignores are listed by
name: a new event fails the type check until every state has a case for it. docs/state-table.md is printed by running
these functions.

Invariants:

* The core is pure. The time of an event is `event.at`; a random delay is an effect with a range.
* Every event has an answer. An event that makes no sense in a state changes nothing.
* Old numbers change nothing. Each event about a link or its timers carries the number of the link. The check stands once,
  at the top of `transition`; below it, an event with a link is about the present link.
* Time does not run backwards. An event that is older than the last one is treated as if it had happened with it.
* `Closed` is final. `GaveUp` ends only by `ReconnectRequested` or `StopRequested`.
* One link at a time. `Dial` is ordered only if there is no link, and every dial ends with exactly one of `DialFailed`,
  `LinkLost` and `LinkClosed`.
* Attempts reset only when proven. A link is proven by a confirm, or by being up for `stable_for`. A TCP connection, a
  handshake and a declared topology prove nothing, so a broker that accepts and then drops cannot cause fast dials.
* The breaker refuses new calls only, and never delays a dial. A link that comes up makes an open breaker half open.

A failure is one of these, and each counts once: a failed dial, a lost link, a link that is replaced because confirms are
missing, a nack. These are no failures: a shutdown that the broker announces (320), our own close, a refused topology, a
closed channel, a blocked connection. A confirm sets the count to 0.

Order of effects: first the effects for the sender, so that nothing is written to a link that is gone; then links and
timers; then `Announce`, when everything that a status shows is done. `Finish` is the last effect of all.
"""

from __future__ import annotations

import math
from typing import assert_never, get_args

from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._record import Policy, Record, Step
from warrener.machine.backoff import retry_delay, slowest_delay
from warrener.machine.breaker import Breaker, Permit, admit, cooled, failed, released, retry_after, succeeded

__all__ = ["transition"]

#: The shortest time in seconds between two `ReconnectRequested` that are obeyed.
HINT_GAP = 1.0
#: The storm limit: a link is replaced when more than `CHANNEL_CLOSES` channels are closed within `CHANNEL_WINDOW` seconds.
CHANNEL_CLOSES = 5
CHANNEL_WINDOW = 10.0

_OVERDUE = Fault(FaultKind.CONFIRM_OVERDUE, "no confirm within confirm_timeout; the link is replaced")
_STORM = Fault(FaultKind.CHANNEL_STORM, "the broker closed more than 5 channels within 10 s; the link is replaced")
_UNANSWERED = Fault(FaultKind.CLOSED, "the close handshake was not answered within close_timeout")

#: Cancelling a timer that does not run does nothing.
_CANCEL_ALL = tuple(effects.CancelTimer(timer) for timer in get_args(effects.Timer))


def transition(record: Record, event: events.Event, policy: Policy) -> Step:
    """Return the record after `event`, and the effects. Never raises; changes none of its arguments.

    If the event changes nothing, the answer holds the same record object.
    """
    link: int | None = getattr(event, "link", None)
    if link is not None and link != record.state.link:
        return Step(record)
    at = max(record.at, event.at)
    state = record.state
    match state:
        case states.Up():
            return _while_up(record, state, event, at, policy)
        case states.Idle():
            return _while_idle(record, event, at, policy)
        case states.Waiting():
            return _while_waiting(record, state, event, at, policy)
        case states.Dialing():
            return _while_dialing(record, state, event, at, policy)
        case states.Restoring():
            return _while_restoring(record, state, event, at, policy)
        case states.Dropping():
            return _while_dropping(record, state, event, at, policy)
        case states.GaveUp():
            return _having_given_up(record, event, at)
        case states.Closing():
            return _while_closing(record, state, event, at, policy)
        case states.Closed():
            return _once_closed(record, event)
        case _:
            assert_never(state)


# --- one function for each state ---------------------------------------------------------------------------------


def _while_idle(record: Record, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.StartRequested():
            return _dial(_next(record, at, breaker=policy.breaker), attempts=0)
        case events.StopRequested():
            return _closed(record, at)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.ReconnectRequested() | events.PermitReleased() | events.Drained() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CooldownTimerFired() | events.DrainTimerFired() | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed()
            | events.LinkLost() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked()
            | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_waiting(record: Record, state: states.Waiting, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.RetryTimerFired():
            return _dial(_next(record, at), attempts=record.attempts + 1)
        case events.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            hinted = _next(record, at, hinted_at=at)
            return _dial(hinted, attempts=record.attempts + 1, first=(effects.CancelTimer("retry"),))
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.StableTimerFired() | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed()
            | events.LinkLost() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked()
            | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dialing(record: Record, state: states.Dialing, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkOpened():
            restoring = states.Restoring(state.link, state.blocked)
            return Step(
                _next(record, at, restoring), (effects.ReplayTopology(state.link), effects.Announce(state, restoring))
            )
        case events.DialFailed(fault=fault) | events.LinkLost(fault=fault):
            return _retry(record, fault, at, policy, failure=fault.kind is not FaultKind.TOPOLOGY)
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(_next(record, at, states.Dialing(state.link, blocked)))
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.ConfirmOverdue()
            | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_restoring(record: Record, state: states.Restoring, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.TopologyRestored():
            return _come_up(record, state, at, policy)
        case events.LinkLost(fault=fault):
            return _retry(record, fault, at, policy, failure=_loss_counts(fault))
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(_next(record, at, states.Restoring(state.link, blocked)))
        case events.ChannelClosed(fault=fault):
            return _channel_closed(record, state, fault, at)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkClosed() | events.ConfirmOverdue()
            | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_up(record: Record, state: states.Up, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.PublishConfirmed(permit=permit):
            return _confirmed(record, state, permit, at)
        case events.PublishNacked(permit=permit):
            return _nacked(record, permit, at)
        case events.LinkLost(fault=fault):
            first = (effects.StopPublishing(state.link, fault), *_unless_proven(state))
            return _retry(record, fault, at, policy, failure=_loss_counts(fault), first=first)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case events.StableTimerFired():
            if state.proven:
                return Step(record)
            return Step(_next(record, at, states.Up(state.link, state.blocked, proven=True), attempts=0))
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            after = states.Up(state.link, blocked, state.proven)
            sender = effects.PausePublishing(state.link) if blocked else effects.StartPublishing(state.link)
            return Step(_next(record, at, after), (sender, effects.Announce(state, after)))
        case events.ConfirmOverdue():
            # A blocked broker fails nothing: it owes no confirms. If it is silent, missing heartbeats show it.
            return Step(record) if state.blocked else _drop(record, state, _OVERDUE, at, failure=True)
        case events.ChannelClosed(fault=fault):
            return _channel_closed(record, state, fault, at)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case (
            events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.CloseTimerFired()
            | events.LinkOpened() | events.DialFailed() | events.LinkClosed() | events.TopologyRestored()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dropping(record: Record, state: states.Dropping, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkLost() | events.LinkClosed():
            # The cause is the fault for which the link was aborted; it was counted then.
            return _retry(record, state.fault, at, policy, failure=False)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.TopologyRestored() | events.ChannelClosed()
            | events.PublishingBlocked() | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _having_given_up(record: Record, event: events.Event, at: float) -> Step:
    match event:
        case events.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            return _dial(_next(record, at, hinted_at=at), attempts=0)
        case events.StopRequested():
            return _closed(record, at)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case events.PermitReleased() | events.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.Drained() | events.RetryTimerFired() | events.StableTimerFired() | events.DrainTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkLost() | events.LinkClosed()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_closing(record: Record, state: states.Closing, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkClosed() | events.LinkLost() | events.DialFailed():
            return _closed(record, at)
        case events.LinkOpened():
            # The dial ended just before it was cancelled, so `CloseLink` did not reach a link. Order it again.
            return Step(record, (effects.CloseLink(state.link),))
        case events.CloseTimerFired():
            if state.aborted:
                return _closed(record, at)
            aborted = states.Closing(state.link, aborted=True)
            orders = (
                effects.AbortLink(state.link, _UNANSWERED),
                effects.StartCloseTimer(state.link, policy.abort_timeout),
            )
            return Step(_next(record, at, aborted), orders)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.StartRequested() | events.StopRequested() | events.ReconnectRequested() | events.PermitReleased() | events.Drained()
            | events.RetryTimerFired() | events.StableTimerFired() | events.CooldownTimerFired() | events.DrainTimerFired()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _once_closed(record: Record, event: events.Event) -> Step:
    match event:
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.StartRequested() | events.StopRequested() | events.ReconnectRequested() | events.PermitReleased() | events.Drained()
            | events.RetryTimerFired() | events.StableTimerFired() | events.CooldownTimerFired() | events.DrainTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkLost() | events.LinkClosed()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed() | events.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


# --- shared by several states: dialing and losing a link --------------------------------------------------------


def _dial(record: Record, *, attempts: int, first: tuple[effects.Effect, ...] = ()) -> Step:
    """Dial the next link. `record` already has the new instant; its state is the one before the dial."""
    dialing = states.Dialing(record.state.link + 1)
    orders = (*first, effects.Dial(dialing.link), effects.Announce(record.state, dialing))
    return Step(_next(record, record.at, dialing, attempts=attempts, channel_closes=()), orders)


def _come_up(record: Record, state: states.Restoring, at: float, policy: Policy) -> Step:
    """Start publishing, or pause it if the broker has blocked the connection already."""
    up = states.Up(state.link, state.blocked)
    breaker = record.breaker
    cooldown: tuple[effects.Effect, ...] = ()
    if breaker is not None and breaker.state == "open":
        breaker = cooled(breaker)
        cooldown = (effects.CancelTimer("cooldown"),)
    sender = effects.PausePublishing(state.link) if state.blocked else effects.StartPublishing(state.link)
    timer = effects.StartStableTimer(state.link, policy.stable_for)
    return Step(_next(record, at, up, breaker=breaker), (sender, timer, *cooldown, effects.Announce(state, up)))


def _channel_closed(record: Record, state: states.Restoring | states.Up, fault: Fault, at: float) -> Step:
    """Remember the instant, and replace the link at the storm limit. Below it the driver opens the next channel."""
    recent = tuple(instant for instant in record.channel_closes if at - instant < CHANNEL_WINDOW)
    noted = _next(record, at, last_fault=fault, channel_closes=(*recent, at))
    if len(recent) < CHANNEL_CLOSES:
        return Step(noted)
    return _drop(noted, state, _STORM, at, failure=False)


def _drop(record: Record, state: states.Restoring | states.Up, fault: Fault, at: float, *, failure: bool) -> Step:
    """Replace a link that is still alive: abort it, and wait for its end before the next dial."""
    dropping = states.Dropping(state.link, fault)
    sender: tuple[effects.Effect, ...] = ()
    if isinstance(state, states.Up):
        sender = (effects.StopPublishing(state.link, fault), *_unless_proven(state))
    failures, breaker, tripped = _count(record, at, None) if failure else (None, None, ())
    after = _next(record, at, dropping, failures=failures, breaker=breaker, last_fault=fault)
    return Step(
        after, (*sender, effects.AbortLink(state.link, fault), *tripped, effects.Announce(state, dropping, fault))
    )


def _retry(
    record: Record, fault: Fault, at: float, policy: Policy, *, failure: bool, first: tuple[effects.Effect, ...] = ()
) -> Step:
    """The link has ended: wait for the next attempt, or give up if all attempts are used."""
    state, backoff = record.state, policy.backoff
    failures, breaker, tripped = _count(record, at, None) if failure else (None, None, ())
    if backoff.attempts is None or record.attempts < backoff.attempts:
        waiting = states.Waiting(state.link)
        after = _next(record, at, waiting, failures=failures, breaker=breaker, last_fault=fault)
        shortest, longest = slowest_delay(backoff) if fault.permanent else retry_delay(backoff, record.attempts)
        timer = effects.StartRetryTimer(state.link, shortest, longest)
        return Step(after, (*first, timer, *tripped, effects.Announce(state, waiting, fault)))
    if record.draining or policy.when_exhausted == "raise":
        after = _next(record, at, failures=failures, breaker=breaker, last_fault=fault)
        # During a drain, the closing report of `aclose()` tells the result; `run()` raises nothing.
        ending = None if record.draining else fault
        return _closed(after, at, fault=fault, first=(*first, effects.FailPending(fault)), ending=ending)
    gave_up = states.GaveUp(state.link)
    after = _next(record, at, gave_up, failures=failures, breaker=breaker, last_fault=fault)
    return Step(after, (*first, effects.FailPending(fault), *tripped, effects.Announce(state, gave_up, fault)))


def _unless_proven(state: states.Up) -> tuple[effects.Effect, ...]:
    """Cancel the stable timer, which runs until the link is proven."""
    return () if state.proven else (effects.CancelTimer("stable"),)


# --- shared by several states: closing --------------------------------------------------------------------------


def _stop(
    record: Record,
    state: states.Waiting | states.Dialing | states.Restoring | states.Up | states.Dropping,
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
            return Step(_next(record, at, draining=True), orders)
    elif not record.draining:
        return Step(record)
    return _close(record, state, at, policy)


def _close(
    record: Record,
    state: states.Waiting | states.Dialing | states.Restoring | states.Up | states.Dropping,
    at: float,
    policy: Policy,
) -> Step:
    """Close the link, cancel the dial, or wait for the end of a link that is being aborted already."""
    orders: tuple[effects.Effect, ...]
    match state:
        case states.Waiting():
            return _closed(record, at)
        case states.Dialing() | states.Restoring():
            orders = (effects.CloseLink(state.link),)
        case states.Up():
            # No publish is written after `connection.close`. Confirms can still arrive until the broker answers it.
            sender = () if state.blocked else (effects.PausePublishing(state.link),)
            orders = (*sender, *_unless_proven(state), effects.CloseLink(state.link))
        case states.Dropping():
            orders = ()
    closing = states.Closing(state.link)
    drain = (effects.CancelTimer("drain"),) if record.draining else ()
    timer = effects.StartCloseTimer(state.link, policy.close_timeout)
    return Step(_next(record, at, closing), (*orders, *drain, timer, effects.Announce(state, closing)))


def _closed(
    record: Record,
    at: float,
    *,
    fault: Fault | None = None,
    first: tuple[effects.Effect, ...] = (),
    ending: Fault | None = None,
) -> Step:
    """Enter `Closed`. `ending` is the fault that `run()` raises."""
    closed = states.Closed(record.state.link)
    orders = (*first, *_CANCEL_ALL, effects.Announce(record.state, closed, fault), effects.Finish(ending))
    return Step(_next(record, at, closed), orders)


# --- shared by several states: failures, confirms and the breaker -------------------------------------------------


def _loss_counts(fault: Fault) -> bool:
    """Say whether the loss of an open link is a failure. A shutdown, our own close and a refused topology are none."""
    return not (fault.orderly or fault.kind is FaultKind.TOPOLOGY)


def _count(record: Record, at: float, permit: Permit | None) -> tuple[int, Breaker | None, tuple[effects.Effect, ...]]:
    """Count one failure. Return the failures in a row, the breaker, and the timer if the breaker has opened."""
    failures, breaker = record.failures + 1, record.breaker
    if breaker is None:
        return failures, None, ()
    after = failed(breaker, permit, at)
    if after.generation == breaker.generation:
        return failures, after, ()
    return failures, after, (effects.StartCooldownTimer(after.generation, after.cooldown),)


def _nacked(record: Record, permit: Permit | None, at: float) -> Step:
    """Count a nack as a failure. A half-open breaker counts only the nacks of its probes."""
    breaker = record.breaker
    if permit is None and breaker is not None and breaker.state == "half_open":
        return Step(_next(record, at, failures=record.failures + 1))
    failures, after, tripped = _count(record, at, permit)
    return Step(_next(record, at, failures=failures, breaker=after), tripped)


def _confirmed(record: Record, state: states.Up, permit: Permit | None, at: float) -> Step:
    """Mark the link as proven, set the failures to 0, and let a probe close the breaker."""
    breaker = record.breaker
    after = None if breaker is None else succeeded(breaker, permit, at)
    if state.proven and record.failures == 0 and after is breaker:
        return Step(record)
    up = state if state.proven else states.Up(state.link, state.blocked, proven=True)
    return Step(_next(record, at, up, attempts=0, failures=0, breaker=after), _unless_proven(state))


def _ask_breaker(
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
            return Step(_next(record, at, breaker=after), (effects.Admit(permit), *late))
        case events.PermitReleased(permit=permit):
            after = released(breaker, permit)
        case events.CooldownTimerFired(generation=generation):
            after = cooled(breaker) if generation == breaker.generation else breaker
        case _:
            assert_never(event)
    return Step(record) if after is breaker else Step(_next(record, at, breaker=after))


def _next(
    record: Record,
    at: float,
    state: states.State | None = None,
    *,
    attempts: int | None = None,
    failures: int | None = None,
    breaker: Breaker | None = None,
    last_fault: Fault | None = None,
    draining: bool | None = None,
    hinted_at: float | None = None,
    channel_closes: tuple[float, ...] | None = None,
) -> Record:
    """Return the record with the given fields changed. `attrs.evolve` would take several times as long."""
    return Record(
        record.state if state is None else state,
        record.attempts if attempts is None else attempts,
        record.failures if failures is None else failures,
        record.breaker if breaker is None else breaker,
        record.last_fault if last_fault is None else last_fault,
        record.draining if draining is None else draining,
        record.hinted_at if hinted_at is None else hinted_at,
        record.channel_closes if channel_closes is None else channel_closes,
        at,
    )
