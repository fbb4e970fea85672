"""The transition function: it takes one record and one event, and returns the next record and a tuple of effects.

Theory of operation
===================

A producer has at most one link at a time. The machine dials, declares the topology on the open link, and then starts
publishing. When the link is lost, the machine waits and dials again, until all attempts are used. The owner can ask it to
close, with or without a drain. During a drain the machine dials and reconnects as usual.

    Idle -> Dialing -> Restoring -> Up -> Dropping -> Waiting -> Dialing …    GaveUp    Closing -> Closed
    Up -> HandingOver -> Dialing …

There is one function for each state, and in it one case for each event. The events that a state ignores are listed by
name: a new event fails the type check until every state has a case for it. docs/state-table.md is printed by running
these functions.

Invariants:

* The core is pure. The time of an event is `event.at`; a random delay is an effect with a range.
* Every event has an answer. An event that makes no sense in a state changes nothing.
* Old numbers change nothing. Each event about a link or its timers carries the number of the link. The check stands once,
  at the top of `transition`; below it, an event with a link is about the present link.
* Time does not run backwards. An event with an older `at` is handled at the record's instant.
* `Closed` is final. `GaveUp` ends only by `ReconnectRequested` or `StopRequested`.
* One link at a time. `Dial` is ordered only if there is no link, and every dial ends with exactly one of `DialFailed`,
  `LinkLost` and `LinkClosed`.
* The number of attempts returns to 0 only when a link is proven. A link is proven by a confirm, or by being up for `stable_for`. A TCP connection, a
  handshake and a declared topology prove nothing, so a broker that accepts and then drops cannot cause fast dials.
* Every endpoint is tried. A pass dials all endpoints that are ready, an endpoint that fails goes to the end of the queue,
  and only a pass is followed by a delay.
* The breaker refuses new calls only, and never delays a dial. A link that comes up makes an open breaker half open.

A failure is one of these, and each counts once: a pass whose last dial failed, a lost link, a link that is replaced because confirms are
missing. These are no failures: a shutdown that the broker announces (320), our own close, a refused topology, a
closed channel, a nack, a blocked connection. A confirm sets the count to 0.

Order of effects: first the effects for the sender, so that nothing is written to a link that is gone; then links and
timers; then `Announce`, when everything that a status shows is done. `Finish` is the last effect of all.
"""

from __future__ import annotations

import math
from typing import assert_never

from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._closing import closed, stop
from warrener.machine._counting import ask_breaker, confirmed, leave_up, loss_counts
from warrener.machine._discovering import ask_now, discovery_failed, endpoints_found, next_attempt
from warrener.machine._handing_over import close_link, go_on, hand_over, prefer_first
from warrener.machine._reconnecting import channel_closed, come_up, dial, drop, link_lost, retry, wait_for_the_start
from warrener.machine._record import Policy, Record, Step, next_record
from warrener.machine.endpoints import begin_pass, endpoint_proven, in_order

__all__ = ["transition"]

#: The shortest time in seconds between two `ReconnectRequested` that are obeyed.
HINT_GAP = 1.0

_OVERDUE = Fault(FaultKind.CONFIRM_OVERDUE, "no confirm within confirm_timeout; the link is replaced")
_UNANSWERED = Fault(FaultKind.CLOSED, "the close handshake was not answered within close_timeout")


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
        case states.HandingOver():
            return _while_handing_over(record, state, event, at, policy)
        case states.Dropping():
            return _while_dropping(record, state, event, at, policy)
        case states.GaveUp():
            return _having_given_up(record, event, at, policy)
        case states.Closing():
            return _while_closing(record, state, event, at, policy)
        case states.Closed():
            return _once_closed(record, event)
        case _:
            assert_never(state)


def _while_idle(record: Record, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.StartRequested():
            if policy.start_jitter > 0 or policy.discovery or not event.order:
                return wait_for_the_start(record, event, at, policy)
            endpoints = begin_pass(in_order(event.order), at)
            return dial(next_record(record, at, breaker=policy.breaker, endpoints=endpoints), attempts=0)
        case events.StopRequested():
            return closed(record, at)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.ReconnectRequested() | events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired()
            | events.HandOverTimerFired() | events.PermitReleased() | events.Drained() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CooldownTimerFired() | events.DrainTimerFired() | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed()
            | events.LinkLost() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked()
            | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_waiting(record: Record, state: states.Waiting, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.RetryTimerFired():
            if not record.endpoints.queue:
                return Step(record)
            endpoints = begin_pass(record.endpoints, at)
            return dial(next_record(record, at, endpoints=endpoints), attempts=next_attempt(record))
        case events.EndpointsFound():
            return endpoints_found(record, event, at)
        case events.DiscoveryFailed(fault=fault):
            return discovery_failed(record, fault, at, policy)
        case events.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            first = (effects.CancelTimer("retry"),)
            if policy.discovery or not record.endpoints.queue:
                return ask_now(record, at, attempts=record.attempts, first=first)
            hinted = next_record(record, at, hinted_at=at, endpoints=begin_pass(record.endpoints, at, hinted=True))
            return dial(hinted, attempts=next_attempt(record), first=first)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.StableTimerFired() | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed()
            | events.LinkLost() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked()
            | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dialing(record: Record, state: states.Dialing, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkOpened():
            restoring = states.Restoring(state.link, state.blocked)
            return Step(
                next_record(record, at, restoring),
                (effects.ReplayTopology(state.link), effects.Announce(state, restoring)),
            )
        case events.DialFailed(fault=fault) | events.LinkLost(fault=fault):
            return link_lost(record, fault, at, policy, failure=fault.kind is not FaultKind.TOPOLOGY)
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(next_record(record, at, states.Dialing(state.link, blocked)))
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkClosed() | events.TopologyRestored() | events.ChannelClosed() | events.ConfirmOverdue()
            | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_restoring(record: Record, state: states.Restoring, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.TopologyRestored():
            return come_up(record, state, at, policy)
        case events.LinkLost(fault=fault):
            return link_lost(record, fault, at, policy, failure=loss_counts(fault))
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            return Step(next_record(record, at, states.Restoring(state.link, blocked)))
        case events.ChannelClosed(fault=fault):
            return channel_closed(record, state, fault, at, policy)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkClosed() | events.ConfirmOverdue()
            | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_up(record: Record, state: states.Up, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.PublishConfirmed(permit=permit):
            return confirmed(record, state, permit, at)
        case events.LinkLost(fault=fault):
            first = (effects.StopPublishing(state.link, fault), *leave_up(record, state, policy))
            failure = loss_counts(fault)
            return link_lost(record, fault, at, policy, failure=failure, proven=state.proven, first=first)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case events.StableTimerFired():
            if state.proven:
                return Step(record)
            up, endpoints = states.Up(state.link, state.blocked, proven=True), endpoint_proven(record.endpoints)
            return Step(next_record(record, at, up, attempts=0, endpoints=endpoints))
        case events.PublishingBlocked() | events.PublishingUnblocked():
            blocked = isinstance(event, events.PublishingBlocked)
            if state.blocked is blocked:
                return Step(record)
            after = states.Up(state.link, blocked, state.proven)
            sender = effects.PausePublishing(state.link) if blocked else effects.StartPublishing(state.link)
            return Step(next_record(record, at, after), (sender, effects.Announce(state, after)))
        case events.ConfirmOverdue():
            # A missing confirm of a blocked broker is no failure. If the broker is silent, missing heartbeats show it.
            return Step(record) if state.blocked else drop(record, state, _OVERDUE, at, policy, failure=True)
        case events.ChannelClosed(fault=fault):
            return channel_closed(record, state, fault, at, policy)
        case events.HandOverRequested():
            return Step(record) if record.draining else hand_over(record, state, event, at, policy)
        case events.PreferTimerFired():
            return prefer_first(record, state, at, policy)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case (
            events.InFlightSettled() | events.HandOverTimerFired()
            | events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.CloseTimerFired()
            | events.LinkOpened() | events.DialFailed() | events.LinkClosed() | events.TopologyRestored()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_handing_over(
    record: Record, state: states.HandingOver, event: events.Event, at: float, policy: Policy
) -> Step:
    match event:
        case events.InFlightSettled() | events.HandOverTimerFired():
            return close_link(record, state, at, policy)
        case events.LinkClosed():
            return go_on(record, state, at)
        case events.LinkLost(fault=fault):
            return go_on(record, state, at, None if state.closing else fault)
        case events.CloseTimerFired():
            return Step(record, (effects.AbortLink(state.link, _UNANSWERED),))
        case events.PublishConfirmed(permit=permit):
            return confirmed(record, state, permit, at)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.StartRequested() | events.ReconnectRequested() | events.HandOverRequested() | events.RetryTimerFired()
            | events.StableTimerFired() | events.PreferTimerFired() | events.LinkOpened() | events.DialFailed()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked()
            | events.PublishingUnblocked() | events.ConfirmOverdue()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_dropping(record: Record, state: states.Dropping, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkLost() | events.LinkClosed():
            # The cause is the fault for which the link was aborted; it was counted then.
            return retry(record, state.fault, at, policy, failure=False)
        case events.StopRequested() | events.Drained() | events.DrainTimerFired():
            return stop(record, state, event, at, policy)
        case events.AdmissionRequested() | events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.ReconnectRequested() | events.RetryTimerFired() | events.StableTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.TopologyRestored() | events.ChannelClosed()
            | events.PublishingBlocked() | events.PublishingUnblocked() | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _having_given_up(record: Record, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.ReconnectRequested():
            if at - record.hinted_at < HINT_GAP:
                return Step(record)
            if policy.discovery or not record.endpoints.queue:
                return ask_now(record, at, attempts=0)
            endpoints = begin_pass(record.endpoints, at, hinted=True)
            return dial(next_record(record, at, hinted_at=at, endpoints=endpoints), attempts=0)
        case events.StopRequested():
            return closed(record, at)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case events.PermitReleased() | events.CooldownTimerFired():
            return ask_breaker(record, event, at)
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.Drained() | events.RetryTimerFired() | events.StableTimerFired() | events.DrainTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkLost() | events.LinkClosed()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _while_closing(record: Record, state: states.Closing, event: events.Event, at: float, policy: Policy) -> Step:
    match event:
        case events.LinkClosed() | events.LinkLost() | events.DialFailed():
            return closed(record, at)
        case events.LinkOpened():
            # The dial ended just before it was cancelled, so `CloseLink` did not reach a link. Order it again.
            return Step(record, (effects.CloseLink(state.link),))
        case events.CloseTimerFired():
            if state.aborted:
                return closed(record, at)
            aborted = states.Closing(state.link, aborted=True)
            orders = (
                effects.AbortLink(state.link, _UNANSWERED),
                effects.StartCloseTimer(state.link, policy.abort_timeout),
            )
            return Step(next_record(record, at, aborted), orders)
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.StopRequested() | events.ReconnectRequested() | events.PermitReleased() | events.Drained()
            | events.RetryTimerFired() | events.StableTimerFired() | events.CooldownTimerFired() | events.DrainTimerFired()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)


def _once_closed(record: Record, event: events.Event) -> Step:
    match event:
        case events.AdmissionRequested():
            return Step(record, (effects.Refuse(math.inf),))
        case (
            events.HandOverRequested() | events.InFlightSettled() | events.PreferTimerFired() | events.HandOverTimerFired()
            | events.StartRequested() | events.StopRequested() | events.ReconnectRequested() | events.PermitReleased() | events.Drained()
            | events.RetryTimerFired() | events.StableTimerFired() | events.CooldownTimerFired() | events.DrainTimerFired()
            | events.CloseTimerFired() | events.LinkOpened() | events.DialFailed() | events.LinkLost() | events.LinkClosed()
            | events.TopologyRestored() | events.ChannelClosed() | events.PublishingBlocked() | events.PublishingUnblocked()
            | events.ConfirmOverdue() | events.PublishConfirmed()
            | events.EndpointsFound() | events.DiscoveryFailed()
        ):  # fmt: skip
            return Step(record)
        case _:
            assert_never(event)
