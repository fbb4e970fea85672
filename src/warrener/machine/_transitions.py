"""The transition function: one record and one event in, the next record and a list of orders out.

**The machine.** A producer holds at most one link at a time. It dials; an opened link has its topology declared;
then publishers are let in. When the link dies, it waits and dials again, until the attempts are used up. Closing is
asked for from outside and may be preceded by a drain, during which everything goes on as usual.

    Idle -> Dialing -> Restoring -> Up -> Dropping -> Waiting -> Dialing …    GaveUp    Closing -> Closed

The functions below are the whole truth about it: one for each state, in it one case for each event, and the events
that a state ignores are listed by name, so that a new event does not type-check until every state has decided about it.
docs/state-table.md is printed by running them.

**What must stay true.**

* Pure (I1). No clock: the instant of an event is `event.at`. No rng: a delay leaves as a range.
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

**Order of effects.** What concerns the sender comes first, so that nothing is written to a link that is gone; then links
and timers; then `Announce`, when everything that a status shows has been done; `Finish` is the last ever.
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

#: Hints are heeded at most once in so many seconds.
HINT_GAP = 1.0
#: A link is replaced when the broker closes more than `CHANNEL_CLOSES` channels within `CHANNEL_WINDOW` seconds.
CHANNEL_CLOSES = 5
CHANNEL_WINDOW = 10.0

_OVERDUE = Fault(FaultKind.CONFIRM_OVERDUE, "no confirm within confirm_timeout; the link is replaced")
_STORM = Fault(FaultKind.CHANNEL_STORM, "the broker closed more than 5 channels within 10 s; the link is replaced")
_UNANSWERED = Fault(FaultKind.CLOSED, "the close handshake was not answered within close_timeout")

#: Nothing may run once everything is closed; a timer that does not run is none the worse for being stopped.
_CANCEL_ALL = tuple(effects.CancelTimer(timer) for timer in get_args(effects.Timer))


def transition(record: Record, event: events.Event, policy: Policy) -> Step:
    """Return what is true after `event`, and what is to be done about it. Never raises; changes none of its arguments.

    An event that changes nothing is answered with the very same record.
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
            # A broker that has blocked us owes no confirms (R9); a silent one is found by its heartbeats.
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
            # What made us drop the link is the cause, and was counted then; how its end looks is our own doing.
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
            # The dial ended well just before it was cancelled: the order to close did not reach a link, so repeat it.
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


# --- what several states share: the life of a link ------------------------------------------------------------------


def _dial(record: Record, *, attempts: int, first: tuple[effects.Effect, ...] = ()) -> Step:
    """Dial the next link. `record` already carries the instant; its state is the one that is left."""
    dialing = states.Dialing(record.state.link + 1)
    orders = (*first, effects.Dial(dialing.link), effects.Announce(record.state, dialing))
    return Step(_next(record, record.at, dialing, attempts=attempts, channel_closes=()), orders)


def _come_up(record: Record, state: states.Restoring, at: float, policy: Policy) -> Step:
    """Let publishers in, or hold them back where the broker has blocked us already."""
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
    """Remember the instant; the driver opens the next channel on the same link, unless this happens too often."""
    recent = tuple(instant for instant in record.channel_closes if at - instant < CHANNEL_WINDOW)
    noted = _next(record, at, last_fault=fault, channel_closes=(*recent, at))
    if len(recent) < CHANNEL_CLOSES:
        return Step(noted)
    return _drop(noted, state, _STORM, at, failure=False)


def _drop(record: Record, state: states.Restoring | states.Up, fault: Fault, at: float, *, failure: bool) -> Step:
    """Give a link up that is still there: abort it, and await its end before the next dial."""
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
    """There is no link any more: wait for the next attempt, or give up where the attempts are used up."""
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
        # Whoever asked to close is told by the closing report; an error would be news to nobody.
        ending = None if record.draining else fault
        return _closed(after, at, fault=fault, first=(*first, effects.FailPending(fault)), ending=ending)
    gave_up = states.GaveUp(state.link)
    after = _next(record, at, gave_up, failures=failures, breaker=breaker, last_fault=fault)
    return Step(after, (*first, effects.FailPending(fault), *tripped, effects.Announce(state, gave_up, fault)))


def _unless_proven(state: states.Up) -> tuple[effects.Effect, ...]:
    """Stop the stable timer, which runs until a link has proven itself."""
    return () if state.proven else (effects.CancelTimer("stable"),)


# --- what several states share: closing ------------------------------------------------------------------------------


def _stop(
    record: Record,
    state: states.Waiting | states.Dialing | states.Restoring | states.Up | states.Dropping,
    event: events.StopRequested | events.Drained | events.DrainTimerFired,
    at: float,
    policy: Policy,
) -> Step:
    """Begin to drain, or end the drain, or close without one."""
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
    """Close the link, cancel the dial, or await the end of a link that is being aborted already."""
    orders: tuple[effects.Effect, ...]
    match state:
        case states.Waiting():
            return _closed(record, at)
        case states.Dialing() | states.Restoring():
            orders = (effects.CloseLink(state.link),)
        case states.Up():
            # Nothing is written behind connection.close; what is in flight may still be confirmed before it is answered.
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
    """Everything ends here, once; `ending` is what `run()` raises."""
    closed = states.Closed(record.state.link)
    orders = (*first, *_CANCEL_ALL, effects.Announce(record.state, closed, fault), effects.Finish(ending))
    return Step(_next(record, at, closed), orders)


# --- what several states share: failures, confirms and the breaker ------------------------------------------------------


def _loss_counts(fault: Fault) -> bool:
    """Whether the loss of an open link is a failure: not where it was announced, ours, or about the topology."""
    return not (fault.orderly or fault.kind is FaultKind.TOPOLOGY)


def _count(record: Record, at: float, permit: Permit | None) -> tuple[int, Breaker | None, tuple[effects.Effect, ...]]:
    """Count one failure: the failures in a row, the breaker after it, and the timer that a trip starts."""
    failures, breaker = record.failures + 1, record.breaker
    if breaker is None:
        return failures, None, ()
    after = failed(breaker, permit, at)
    if after.generation == breaker.generation:
        return failures, after, ()
    return failures, after, (effects.StartCooldownTimer(after.generation, after.cooldown),)


def _nacked(record: Record, permit: Permit | None, at: float) -> Step:
    """A refusal is a failure of the publish; a half-open breaker listens to its probes only."""
    breaker = record.breaker
    if permit is None and breaker is not None and breaker.state == "half_open":
        return Step(_next(record, at, failures=record.failures + 1))
    failures, after, tripped = _count(record, at, permit)
    return Step(_next(record, at, failures=failures, breaker=after), tripped)


def _confirmed(record: Record, state: states.Up, permit: Permit | None, at: float) -> Step:
    """The link is proven, the failures in a row are over, and a probe closes the breaker."""
    breaker = record.breaker
    after = None if breaker is None else succeeded(breaker, permit, at)
    if state.proven and record.failures == 0 and after is breaker:
        return Step(record)
    up = state if state.proven else states.Up(state.link, state.blocked, proven=True)
    return Step(_next(record, at, up, attempts=0, failures=0, breaker=after), _unless_proven(state))


def _ask_breaker(
    record: Record, event: events.AdmissionRequested | events.PermitReleased | events.CooldownTimerFired, at: float
) -> Step:
    """What concerns the breaker alone. A breaker that is closed, or off, admits without a permit."""
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
