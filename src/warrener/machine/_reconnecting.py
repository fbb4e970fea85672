"""Shared by several states: dialing, coming up, and the loss of a link."""

from __future__ import annotations

from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._closing import closed
from warrener.machine._counting import count_failure, leave_up
from warrener.machine._record import Policy, Record, Step, next_record
from warrener.machine.backoff import retry_delay, slowest_delay
from warrener.machine.breaker import cooled
from warrener.machine.endpoints import endpoint_failed, in_order, next_endpoint, prefer_delay

__all__ = ["channel_closed", "come_up", "dial", "drop", "link_lost", "retry", "wait_for_the_start"]

#: The storm limit: a link is replaced when more than `CHANNEL_CLOSES` channels are closed within `CHANNEL_WINDOW` seconds.
CHANNEL_CLOSES = 5
CHANNEL_WINDOW = 10.0

_STORM = Fault(FaultKind.CHANNEL_STORM, "the broker closed more than 5 channels within 10 s; the link is replaced")


def dial(record: Record, *, attempts: int, first: tuple[effects.Effect, ...] = (), fault: Fault | None = None) -> Step:
    """Dial the next link. `record` has the new instant and the endpoint already; its state is the one before the dial."""
    dialing = states.Dialing(record.state.link + 1)
    endpoints = record.endpoints
    dial = effects.Dial(dialing.link, endpoints.current, endpoints.record.address)
    orders = (*first, dial, effects.Announce(record.state, dialing, fault))
    return Step(next_record(record, record.at, dialing, attempts=attempts, channel_closes=()), orders)


def wait_for_the_start(record: Record, event: events.StartRequested, at: float, policy: Policy) -> Step:
    """Wait a random time before the first dial."""
    waiting = states.Waiting(record.state.link)
    after = next_record(record, at, waiting, breaker=policy.breaker, endpoints=in_order(event.order))
    timer = effects.StartRetryTimer(waiting.link, 0.0, policy.start_jitter)
    return Step(after, (timer, effects.Announce(record.state, waiting)))


def come_up(record: Record, state: states.Restoring, at: float, policy: Policy) -> Step:
    """Start publishing, or pause it if the broker has blocked the connection already."""
    up = states.Up(state.link, state.blocked)
    breaker = record.breaker
    cooldown: tuple[effects.Effect, ...] = ()
    if breaker is not None and breaker.state == "open":
        breaker = cooled(breaker)
        cooldown = (effects.CancelTimer("cooldown"),)
    sender = effects.PausePublishing(state.link) if state.blocked else effects.StartPublishing(state.link)
    timers: tuple[effects.Effect, ...] = (effects.StartStableTimer(state.link, policy.stable_for),)
    if policy.prefer == "first" and record.endpoints.current != 0:
        delay = prefer_delay(record.endpoints, policy.stable_for)
        timers = (*timers, effects.StartPreferTimer(state.link, delay))
    after = next_record(record, at, up, breaker=breaker, connected_once=True)
    return Step(after, (sender, *timers, *cooldown, effects.Announce(state, up)))


def channel_closed(
    record: Record, state: states.Restoring | states.Up, fault: Fault, at: float, policy: Policy
) -> Step:
    """Remember the instant, and replace the link at the storm limit. Below it the driver opens the next channel."""
    recent = tuple(instant for instant in record.channel_closes if at - instant < CHANNEL_WINDOW)
    noted = next_record(record, at, last_fault=fault, channel_closes=(*recent, at))
    if len(recent) < CHANNEL_CLOSES:
        return Step(noted)
    return drop(noted, state, _STORM, at, policy, failure=False)


def drop(
    record: Record, state: states.Restoring | states.Up, fault: Fault, at: float, policy: Policy, *, failure: bool
) -> Step:
    """Replace a link that is still alive: abort it, and wait for its end before the next dial."""
    dropping = states.Dropping(state.link, fault)
    sender: tuple[effects.Effect, ...] = ()
    proven = False
    if isinstance(state, states.Up):
        sender = (effects.StopPublishing(state.link, fault), *leave_up(record, state, policy))
        proven = state.proven
    endpoints = endpoint_failed(record.endpoints, fault, policy.backoff, at, proven=proven)
    failures, breaker, tripped = count_failure(record, at, None) if failure else (None, None, ())
    after = next_record(record, at, dropping, failures=failures, breaker=breaker, last_fault=fault, endpoints=endpoints)
    return Step(
        after, (*sender, effects.AbortLink(state.link, fault), *tripped, effects.Announce(state, dropping, fault))
    )


def link_lost(
    record: Record,
    fault: Fault,
    at: float,
    policy: Policy,
    *,
    failure: bool,
    proven: bool = False,
    first: tuple[effects.Effect, ...] = (),
) -> Step:
    """The dial or the link has ended. Dial the next endpoint of the pass at once, or end the pass.

    The loss of a proven link ends the pass, and a delay follows. After a shutdown that the broker announced, the next endpoint is
    dialed at once.
    """
    endpoints = endpoint_failed(record.endpoints, fault, policy.backoff, at, proven=proven)
    following = next_endpoint(endpoints, at) if fault.orderly or not proven else None
    limit = policy.backoff.attempts
    if following is None or (proven and limit is not None and record.attempts >= limit):
        return retry(next_record(record, at, endpoints=endpoints), fault, at, policy, failure=failure, first=first)
    # A failed dial counts once for each pass, when the pass has ended.
    counts = failure and not isinstance(record.state, states.Dialing)
    failures, breaker, tripped = count_failure(record, at, None) if counts else (None, None, ())
    after = next_record(record, at, failures=failures, breaker=breaker, last_fault=fault, endpoints=following)
    return dial(after, attempts=record.attempts + int(proven), first=(*first, *tripped), fault=fault)


def retry(
    record: Record,
    fault: Fault,
    at: float,
    policy: Policy,
    *,
    failure: bool,
    first: tuple[effects.Effect, ...] = (),
    link: int | None = None,
) -> Step:
    """The link has ended: wait for the next attempt, or give up if all attempts are used.

    `link` is the number of a pass that ended before its dial; None: the pass has the number of its last dial.
    """
    state, backoff = record.state, policy.backoff
    number = state.link if link is None else link
    failures, breaker, tripped = count_failure(record, at, None) if failure else (None, None, ())
    if backoff.attempts is None or record.attempts < backoff.attempts:
        waiting = states.Waiting(number)
        after = next_record(record, at, waiting, failures=failures, breaker=breaker, last_fault=fault)
        refused = record.endpoints.all_refused
        shortest, longest = slowest_delay(backoff) if refused else retry_delay(backoff, record.attempts)
        timer = effects.StartRetryTimer(number, shortest, longest)
        # A producer that was connected before waits for its broker, but not for a topology that the broker refuses.
        if refused and (not record.connected_once or fault.kind is FaultKind.TOPOLOGY):
            first = (*first, effects.RefusePublishing(fault))
        return Step(after, (*first, timer, *tripped, effects.Announce(state, waiting, fault)))
    if record.draining or policy.when_exhausted == "raise":
        after = next_record(record, at, failures=failures, breaker=breaker, last_fault=fault)
        # During a drain, the closing report of `aclose()` tells the result; `run()` raises nothing.
        ending = None if record.draining else fault
        return closed(after, at, fault=fault, first=(*first, effects.FailPending(fault)), ending=ending)
    gave_up = states.GaveUp(number)
    after = next_record(record, at, gave_up, failures=failures, breaker=breaker, last_fault=fault)
    return Step(after, (*first, effects.FailPending(fault), *tripped, effects.Announce(state, gave_up, fault)))
