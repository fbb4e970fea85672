"""Discovery: the program itself is asked for the endpoints before each pass, when the delay of the backoff is over.

With `Policy.discovery` the owner asks when the retry timer fires, and answers with `EndpointsFound` or `DiscoveryFailed` in
place of `RetryTimerFired`. While it asks, the state is `Waiting`. A question that fails is a failed pass, unless endpoints of
an earlier answer are known: then the pass dials those.
"""

from __future__ import annotations

from warrener.errors import Fault
from warrener.machine import effects, events, states
from warrener.machine._reconnecting import dial, retry
from warrener.machine._record import Policy, Record, Step, next_record
from warrener.machine.endpoints import begin_pass, found, ready_at_once

__all__ = ["ask_now", "discovery_failed", "endpoints_found", "next_attempt"]


def next_attempt(record: Record) -> int:
    """Return the number of the pass that begins; the first pass of all is not counted."""
    return record.attempts + 1 if record.state.link else 0


def ask_now(record: Record, at: float, *, attempts: int, first: tuple[effects.Effect, ...] = ()) -> Step:
    """Obey a hint: ask for the endpoints at once. Each one that is known already is ready for a dial."""
    waiting = states.Waiting(record.state.link)
    endpoints = ready_at_once(record.endpoints)
    told = () if isinstance(record.state, states.Waiting) else (effects.Announce(record.state, waiting),)
    after = next_record(record, at, waiting, attempts=attempts, hinted_at=at, endpoints=endpoints)
    return Step(after, (*first, effects.StartRetryTimer(waiting.link, 0.0, 0.0), *told))


def endpoints_found(record: Record, event: events.EndpointsFound, at: float) -> Step:
    """Dial the first endpoint of the new list. An empty list changes nothing: the owner reports it as a failure."""
    if not event.kept:
        return Step(record)
    endpoints = begin_pass(found(record.endpoints, event.kept, event.order), at)
    return dial(next_record(record, at, endpoints=endpoints), attempts=next_attempt(record))


def discovery_failed(record: Record, fault: Fault, at: float, policy: Policy) -> Step:
    """Dial the endpoints that are known, or wait for the next attempt."""
    attempts = next_attempt(record)
    if record.endpoints.queue:
        known = next_record(record, at, last_fault=fault, endpoints=begin_pass(record.endpoints, at))
        return dial(known, attempts=attempts, fault=fault)
    # The pass has used up a link number: a late answer with that number changes nothing.
    failed = next_record(record, at, attempts=attempts)
    return retry(failed, fault, at, policy, failure=True, link=record.state.link + 1)
