"""The transition function: one record and one event in, the next record and a list of orders out.

**The machine.** A producer holds at most one link at a time. It dials; an opened link has its topology declared;
then publishers are let in. When the link dies, it waits and dials again, until the attempts are used up. Closing is
asked for from outside and may be preceded by a drain, during which everything goes on as usual.

    Idle -> Dialing -> Restoring -> Up -> Dropping -> Waiting -> Dialing …    GaveUp    Closing -> Closed

The functions below are the whole truth about it: one for each state, in it one case for each event, and the events
that a state ignores are listed by name, so that a new event does not type-check until every state has decided about it.
docs/state-table.md is printed by running them.

**What must stay true.**

* Pure (I1). No clock: the instant of an event is `event.at`. No chance: a delay leaves as a range.
* Total (I2). Any event may come in any state; what makes no sense there changes nothing.
* *Old numbers change nothing* (I14). Each fact about a link or its timers carries the link's number. The guard is in
  one place, at the top of `transition`; below it, an event that has a link is about the present one. A timer that could
  not be stopped in time, or a report that was under way when its link died, needs no other care.
* Time does not run backwards (I21): an event older than the last one is treated as simultaneous with it.
* `Closed` is absorbing, and what gave up comes back only by a hint (I22). At most one link is dialed or alive (I23):
  a `Dial` is ordered only where there is no link, and every dial ends in exactly one of `DialFailed`, `LinkLost`,
  `LinkClosed`.
* The attempts start again from 0 only when a link has *proven* itself, by a confirm or by staying up for `stable_for`
  (R13, I25). A broker that accepts and then drops cannot make the producer spin, because a TCP connection, a handshake
  and a declared topology prove nothing.
* The breaker gates publishers, never a dial (R15). It follows the link only in this: a link that comes up makes an open
  breaker half open.

**What is a failure** (one each, in a row, for the breaker and for `Record.failures`): a failed dial; a link lost before
or after it was up; a link dropped because a confirm is overdue; a nack. Never one: an orderly end announced by the broker
(320), our own close, a refused topology, closed channels, being blocked. A confirm sets the count
to 0.

**Order of effects.** What concerns the gate comes first, so that nothing is written to a link that is gone; then links
and timers; then `Announce`, when everything that a status shows has been done; `Finish` is the last ever.
"""

from __future__ import annotations

import math
from typing import assert_never, get_args

from warrener.errors import Fault, FaultKind
from warrener.machine import breaker as circuit
from warrener.machine import effects as do
from warrener.machine import events as on
from warrener.machine import states as now
from warrener.machine.backoff import retry_delay, slowest_delay
from warrener.machine.breaker import Breaker, Permit
from warrener.machine.record import Policy, Record, Step

__all__ = ["transition"]

#: Hints are heeded at most once in so many seconds.
HINT_GAP = 1.0
#: A link is replaced when the broker closes more than `CHANNEL_CLOSES` channels within `CHANNEL_WINDOW` seconds.
CHANNEL_CLOSES = 5
CHANNEL_WINDOW = 10.0

_OVERDUE = Fault(FaultKind.CONFIRM_OVERDUE, "no confirm within confirm_timeout; the link is replaced")
_STORM = Fault(FaultKind.CHANNEL_STORM, "the broker closed more than 5 channels within 10 s; the link is replaced")
_UNANSWERED = Fault(FaultKind.CLOSED, "the close handshake was not answered within close_timeout")

#: Nothing may run once everything is closed; a timer that does not run is none the worse for being stopped.
_CANCEL_ALL = tuple(do.CancelTimer(timer) for timer in get_args(do.Timer))


def transition(record: Record, event: on.Event, policy: Policy) -> Step:
    """Return what is true after `event`, and what is to be done about it. Never raises; changes none of its arguments.

    An event that changes nothing is answered with the very same record.
    """
    link: int | None = getattr(event, "link", None)
    if link is not None and link != record.state.link:
        return Step(record)
    at = max(record.at, event.at)
    state = record.state
    match state:
        case now.Up():
            return _while_up(record, state, event, at, policy)
        case now.Idle():
            return _while_idle(record, event, at, policy)
        case now.Waiting():
            return _while_waiting(record, state, event, at, policy)
        case now.Dialing():
            return _while_dialing(record, state, event, at, policy)
        case now.Restoring():
            return _while_restoring(record, state, event, at, policy)
        case now.Dropping():
            return _while_dropping(record, state, event, at, policy)
        case now.GaveUp():
            return _having_given_up(record, event, at)
        case now.Closing():
            return _while_closing(record, state, event, at, policy)
        case now.Closed():
            return _once_closed(record, event)
        case _:
            assert_never(state)


# --- one function for each state ---------------------------------------------------------------------------------


def _while_idle(record: Record, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.StartRequested():
            return _dial(_next(record, at, breaker=policy.breaker), attempts=0)
        case on.StopRequested():
            return _closed(record, at)
        case on.AdmissionRequested():
            return Step(record, (do.Refuse(math.inf),))
        case (
            on.ReconnectRequested() | on.PermitReleased() | on.Drained() | on.RetryTimerFired() | on.StableTimerFired()
            | on.CooldownTimerFired() | on.DrainTimerFired() | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed()
            | on.LinkLost() | on.LinkClosed() | on.TopologyRestored() | on.ChannelClosed() | on.PublishingBlocked()
            | on.PublishingUnblocked() | on.ConfirmOverdue() | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_waiting(record: Record, state: now.Waiting, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.RetryTimerFired():
            return _dial(_next(record, at), attempts=record.attempts + 1)
        case on.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            hinted = _next(record, at, hinted_at=at)
            return _dial(hinted, attempts=record.attempts + 1, first=(do.CancelTimer("retry"),))
        case on.StopRequested() | on.Drained() | on.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case on.AdmissionRequested() | on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            on.StartRequested() | on.StableTimerFired() | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed()
            | on.LinkLost() | on.LinkClosed() | on.TopologyRestored() | on.ChannelClosed() | on.PublishingBlocked()
            | on.PublishingUnblocked() | on.ConfirmOverdue() | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dialing(record: Record, state: now.Dialing, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.LinkOpened():
            restoring = now.Restoring(state.link, state.blocked)
            return Step(_next(record, at, restoring), (do.ReplayTopology(state.link), do.Announce(state, restoring)))
        case on.DialFailed(fault=fault) | on.LinkLost(fault=fault):
            return _retry(record, fault, at, policy, failure=fault.kind is not FaultKind.TOPOLOGY)
        case on.PublishingBlocked() | on.PublishingUnblocked():
            blocked = isinstance(event, on.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(_next(record, at, now.Dialing(state.link, blocked)))
        case on.StopRequested() | on.Drained() | on.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case on.AdmissionRequested() | on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            on.StartRequested() | on.ReconnectRequested() | on.RetryTimerFired() | on.StableTimerFired()
            | on.CloseTimerFired() | on.LinkClosed() | on.TopologyRestored() | on.ChannelClosed() | on.ConfirmOverdue()
            | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_restoring(record: Record, state: now.Restoring, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.TopologyRestored():
            return _come_up(record, state, at, policy)
        case on.LinkLost(fault=fault):
            return _retry(record, fault, at, policy, failure=_loss_counts(fault))
        case on.PublishingBlocked() | on.PublishingUnblocked():
            blocked = isinstance(event, on.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(_next(record, at, now.Restoring(state.link, blocked)))
        case on.ChannelClosed(fault=fault):
            return _channel_closed(record, state, fault, at)
        case on.StopRequested() | on.Drained() | on.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case on.AdmissionRequested() | on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            on.StartRequested() | on.ReconnectRequested() | on.RetryTimerFired() | on.StableTimerFired()
            | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed() | on.LinkClosed() | on.ConfirmOverdue()
            | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_up(record: Record, state: now.Up, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.PublishConfirmed(permit=permit):
            return _confirmed(record, state, permit, at)
        case on.PublishNacked(permit=permit):
            return _nacked(record, permit, at)
        case on.LinkLost(fault=fault):
            first = (do.ShutGate(state.link, fault), *_unless_proven(state))
            return _retry(record, fault, at, policy, failure=_loss_counts(fault), first=first)
        case on.AdmissionRequested() | on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case on.StableTimerFired():
            if state.proven:
                return Step(record)
            return Step(_next(record, at, now.Up(state.link, state.blocked, proven=True), attempts=0))
        case on.PublishingBlocked() | on.PublishingUnblocked():
            blocked = isinstance(event, on.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            after = now.Up(state.link, blocked, state.proven)
            gate = do.PauseGate(state.link) if blocked else do.OpenGate(state.link)
            return Step(_next(record, at, after), (gate, do.Announce(state, after)))
        case on.ConfirmOverdue():
            # A broker that has blocked us owes no confirms (R9); a silent one is found by its heartbeats.
            return Step(record) if state.blocked else _drop(record, state, _OVERDUE, at, failure=True)
        case on.ChannelClosed(fault=fault):
            return _channel_closed(record, state, fault, at)
        case on.StopRequested() | on.Drained() | on.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case (
            on.StartRequested() | on.ReconnectRequested() | on.RetryTimerFired() | on.CloseTimerFired()
            | on.LinkOpened() | on.DialFailed() | on.LinkClosed() | on.TopologyRestored()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dropping(record: Record, state: now.Dropping, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.LinkLost() | on.LinkClosed():
            # What made us drop the link is the cause, and was counted then; how its end looks is our own doing.
            return _retry(record, state.fault, at, policy, failure=False)
        case on.StopRequested() | on.Drained() | on.DrainTimerFired():
            return _stop(record, state, event, at, policy)
        case on.AdmissionRequested() | on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            on.StartRequested() | on.ReconnectRequested() | on.RetryTimerFired() | on.StableTimerFired()
            | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed() | on.TopologyRestored() | on.ChannelClosed()
            | on.PublishingBlocked() | on.PublishingUnblocked() | on.ConfirmOverdue() | on.PublishConfirmed()
            | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _having_given_up(record: Record, event: on.Event, at: float) -> Step:
    match event:
        case on.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            return _dial(_next(record, at, hinted_at=at), attempts=0)
        case on.StopRequested():
            return _closed(record, at)
        case on.AdmissionRequested():
            return Step(record, (do.Refuse(math.inf),))
        case on.PermitReleased() | on.CooldownTimerFired():
            return _ask_breaker(record, event, at)
        case (
            on.StartRequested() | on.Drained() | on.RetryTimerFired() | on.StableTimerFired() | on.DrainTimerFired()
            | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed() | on.LinkLost() | on.LinkClosed()
            | on.TopologyRestored() | on.ChannelClosed() | on.PublishingBlocked() | on.PublishingUnblocked()
            | on.ConfirmOverdue() | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_closing(record: Record, state: now.Closing, event: on.Event, at: float, policy: Policy) -> Step:
    match event:
        case on.LinkClosed() | on.LinkLost() | on.DialFailed():
            return _closed(record, at)
        case on.LinkOpened():
            # The dial ended well just before it was cancelled: the order to close did not reach a link, so repeat it.
            return Step(record, (do.CloseLink(state.link),))
        case on.CloseTimerFired():
            if state.aborted:
                return _closed(record, at)
            aborted = now.Closing(state.link, aborted=True)
            effects = (do.AbortLink(state.link, _UNANSWERED), do.StartCloseTimer(state.link, policy.abort_timeout))
            return Step(_next(record, at, aborted), effects)
        case on.AdmissionRequested():
            return Step(record, (do.Refuse(math.inf),))
        case (
            on.StartRequested() | on.StopRequested() | on.ReconnectRequested() | on.PermitReleased() | on.Drained()
            | on.RetryTimerFired() | on.StableTimerFired() | on.CooldownTimerFired() | on.DrainTimerFired()
            | on.TopologyRestored() | on.ChannelClosed() | on.PublishingBlocked() | on.PublishingUnblocked()
            | on.ConfirmOverdue() | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _once_closed(record: Record, event: on.Event) -> Step:
    match event:
        case on.AdmissionRequested():
            return Step(record, (do.Refuse(math.inf),))
        case (
            on.StartRequested() | on.StopRequested() | on.ReconnectRequested() | on.PermitReleased() | on.Drained()
            | on.RetryTimerFired() | on.StableTimerFired() | on.CooldownTimerFired() | on.DrainTimerFired()
            | on.CloseTimerFired() | on.LinkOpened() | on.DialFailed() | on.LinkLost() | on.LinkClosed()
            | on.TopologyRestored() | on.ChannelClosed() | on.PublishingBlocked() | on.PublishingUnblocked()
            | on.ConfirmOverdue() | on.PublishConfirmed() | on.PublishNacked()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


# --- what several states share: the life of a link ------------------------------------------------------------------


def _dial(record: Record, *, attempts: int, first: tuple[do.Effect, ...] = ()) -> Step:
    """Dial the next link. `record` already carries the instant; its state is the one that is left."""
    dialing = now.Dialing(record.state.link + 1)
    effects = (*first, do.Dial(dialing.link), do.Announce(record.state, dialing))
    return Step(_next(record, record.at, dialing, attempts=attempts, channel_closes=()), effects)


def _come_up(record: Record, state: now.Restoring, at: float, policy: Policy) -> Step:
    """Let publishers in, or hold them back where the broker has blocked us already."""
    up = now.Up(state.link, state.blocked)
    breaker = record.breaker
    cooldown: tuple[do.Effect, ...] = ()
    if breaker is not None and breaker.state == "open":
        breaker = circuit.cooled(breaker)
        cooldown = (do.CancelTimer("cooldown"),)
    gate = do.PauseGate(state.link) if state.blocked else do.OpenGate(state.link)
    timer = do.StartStableTimer(state.link, policy.stable_for)
    return Step(_next(record, at, up, breaker=breaker), (gate, timer, *cooldown, do.Announce(state, up)))


def _channel_closed(record: Record, state: now.Restoring | now.Up, fault: Fault, at: float) -> Step:
    """Remember the instant; the driver opens the next channel on the same link, unless this happens too often."""
    recent = tuple(instant for instant in record.channel_closes if at - instant < CHANNEL_WINDOW)
    noted = _next(record, at, last_fault=fault, channel_closes=(*recent, at))
    if len(recent) < CHANNEL_CLOSES:
        return Step(noted)
    return _drop(noted, state, _STORM, at, failure=False)


def _drop(record: Record, state: now.Restoring | now.Up, fault: Fault, at: float, *, failure: bool) -> Step:
    """Give a link up that is still there: abort it, and await its end before the next dial."""
    dropping = now.Dropping(state.link, fault)
    gate: tuple[do.Effect, ...] = ()
    if isinstance(state, now.Up):
        gate = (do.ShutGate(state.link, fault), *_unless_proven(state))
    failures, breaker, tripped = _count(record, at, None) if failure else (None, None, ())
    after = _next(record, at, dropping, failures=failures, breaker=breaker, last_fault=fault)
    return Step(after, (*gate, do.AbortLink(state.link, fault), *tripped, do.Announce(state, dropping, fault)))


def _retry(
    record: Record, fault: Fault, at: float, policy: Policy, *, failure: bool, first: tuple[do.Effect, ...] = ()
) -> Step:
    """There is no link any more: wait for the next attempt, or give up where the attempts are used up."""
    state, backoff = record.state, policy.backoff
    failures, breaker, tripped = _count(record, at, None) if failure else (None, None, ())
    if backoff.attempts is None or record.attempts < backoff.attempts:
        waiting = now.Waiting(state.link)
        after = _next(record, at, waiting, failures=failures, breaker=breaker, last_fault=fault)
        shortest, longest = slowest_delay(backoff) if fault.permanent else retry_delay(backoff, record.attempts)
        timer = do.StartRetryTimer(state.link, shortest, longest)
        return Step(after, (*first, timer, *tripped, do.Announce(state, waiting, fault)))
    if record.draining or policy.when_exhausted == "raise":
        after = _next(record, at, failures=failures, breaker=breaker, last_fault=fault)
        # Whoever asked to close is told by the closing report; an error would be news to nobody.
        ending = None if record.draining else fault
        return _closed(after, at, fault=fault, first=(*first, do.FailPending(fault)), ending=ending)
    gave_up = now.GaveUp(state.link)
    after = _next(record, at, gave_up, failures=failures, breaker=breaker, last_fault=fault)
    return Step(after, (*first, do.FailPending(fault), *tripped, do.Announce(state, gave_up, fault)))


def _unless_proven(state: now.Up) -> tuple[do.Effect, ...]:
    """Stop the stable timer, which runs until a link has proven itself."""
    return () if state.proven else (do.CancelTimer("stable"),)


# --- what several states share: closing ------------------------------------------------------------------------------


def _stop(
    record: Record,
    state: now.Waiting | now.Dialing | now.Restoring | now.Up | now.Dropping,
    event: on.StopRequested | on.Drained | on.DrainTimerFired,
    at: float,
    policy: Policy,
) -> Step:
    """Begin to drain, or end the drain, or close without one."""
    if isinstance(event, on.StopRequested):
        if event.drain and record.draining:
            return Step(record)
        if event.drain:
            effects = (do.StartDrainTimer(policy.drain_timeout), do.Announce(state, state))
            return Step(_next(record, at, draining=True), effects)
    elif not record.draining:
        return Step(record)
    return _close(record, state, at, policy)


def _close(
    record: Record,
    state: now.Waiting | now.Dialing | now.Restoring | now.Up | now.Dropping,
    at: float,
    policy: Policy,
) -> Step:
    """Close the link, cancel the dial, or await the end of a link that is being aborted already."""
    effects: tuple[do.Effect, ...]
    match state:
        case now.Waiting():
            return _closed(record, at)
        case now.Dialing() | now.Restoring():
            effects = (do.CloseLink(state.link),)
        case now.Up():
            # Nothing is written behind connection.close; what is in flight may still be confirmed before it is answered.
            gate = () if state.blocked else (do.PauseGate(state.link),)
            effects = (*gate, *_unless_proven(state), do.CloseLink(state.link))
        case now.Dropping():
            effects = ()
    closing = now.Closing(state.link)
    drain = (do.CancelTimer("drain"),) if record.draining else ()
    timer = do.StartCloseTimer(state.link, policy.close_timeout)
    return Step(_next(record, at, closing), (*effects, *drain, timer, do.Announce(state, closing)))


def _closed(
    record: Record,
    at: float,
    *,
    fault: Fault | None = None,
    first: tuple[do.Effect, ...] = (),
    ending: Fault | None = None,
) -> Step:
    """Everything ends here, once; `ending` is what `run()` raises."""
    closed = now.Closed(record.state.link)
    effects = (*first, *_CANCEL_ALL, do.Announce(record.state, closed, fault), do.Finish(ending))
    return Step(_next(record, at, closed), effects)


# --- what several states share: failures, confirms and the breaker ------------------------------------------------------


def _loss_counts(fault: Fault) -> bool:
    """Whether the loss of an open link is a failure: not where it was announced, ours, or about the topology."""
    return not (fault.orderly or fault.kind is FaultKind.TOPOLOGY)


def _count(record: Record, at: float, permit: Permit | None) -> tuple[int, Breaker | None, tuple[do.Effect, ...]]:
    """Count one failure: the failures in a row, the breaker after it, and the timer that a trip starts."""
    failures, breaker = record.failures + 1, record.breaker
    if breaker is None:
        return failures, None, ()
    after = circuit.failed(breaker, permit, at)
    if after.generation == breaker.generation:
        return failures, after, ()
    return failures, after, (do.StartCooldownTimer(after.generation, after.cooldown),)


def _nacked(record: Record, permit: Permit | None, at: float) -> Step:
    """A refusal is a failure of the publish; a half-open breaker listens to its probes only."""
    breaker = record.breaker
    if permit is None and breaker is not None and breaker.state == "half_open":
        return Step(_next(record, at, failures=record.failures + 1))
    failures, after, tripped = _count(record, at, permit)
    return Step(_next(record, at, failures=failures, breaker=after), tripped)


def _confirmed(record: Record, state: now.Up, permit: Permit | None, at: float) -> Step:
    """The link is proven, the failures in a row are over, and a probe closes the breaker."""
    breaker = record.breaker
    after = None if breaker is None else circuit.succeeded(breaker, permit, at)
    if state.proven and record.failures == 0 and after is breaker:
        return Step(record)
    up = state if state.proven else now.Up(state.link, state.blocked, proven=True)
    return Step(_next(record, at, up, attempts=0, failures=0, breaker=after), _unless_proven(state))


def _ask_breaker(
    record: Record, event: on.AdmissionRequested | on.PermitReleased | on.CooldownTimerFired, at: float
) -> Step:
    """What concerns the breaker alone. A breaker that is closed, or off, admits without a permit."""
    breaker = record.breaker
    if breaker is None or (breaker.state == "closed" and isinstance(event, on.AdmissionRequested)):
        return Step(record, (do.Admit(None),) if isinstance(event, on.AdmissionRequested) else ())
    match event:
        case on.AdmissionRequested():
            after, permit = circuit.admit(breaker, at)
            if permit is None:
                return Step(record, (do.Refuse(circuit.retry_after(breaker, at)),))
            late = (do.CancelTimer("cooldown"),) if breaker.state == "open" else ()
            return Step(_next(record, at, breaker=after), (do.Admit(permit), *late))
        case on.PermitReleased(permit=permit):
            after = circuit.released(breaker, permit)
        case on.CooldownTimerFired(generation=generation):
            after = circuit.cooled(breaker) if generation == breaker.generation else breaker
        case _:
            assert_never(event)
    return Step(record) if after is breaker else Step(_next(record, at, breaker=after))


def _next(
    record: Record,
    at: float,
    state: now.State | None = None,
    *,
    attempts: int | None = None,
    failures: int | None = None,
    breaker: Breaker | None = None,
    last_fault: Fault | None = None,
    draining: bool | None = None,
    hinted_at: float | None = None,
    channel_closes: tuple[float, ...] | None = None,
) -> Record:
    """Return the record with what is given and the rest as it was; `attrs.evolve` takes several times as long."""
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
