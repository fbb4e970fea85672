"""The endpoints of a producer: which one the next dial goes to.

A *pass* is one dial over all endpoints that can be dialed, one after the other; a pass is one attempt of the backoff. The
endpoints stand in a queue. A dial takes the first one of the queue that is ready and was not tried in this pass. An endpoint
that fails, or that shuts down, goes to the end of the queue. No endpoint ever leaves the queue.

Each endpoint has a backoff of its own: after a failure it is not *ready* before `retry_at`. A lasting refusal (for example a
wrong password) makes it wait as long as the backoff allows, while the other endpoints are used. If no endpoint is ready, a
pass dials the one that is ready first. A producer with one endpoint therefore dials it in every pass.

A name can have several addresses. A dial tries all of them, and `EndpointRecord.address` is the index of the address that it
begins with. The index moves on when a dial fails or when a link is lost before it was proven: the next dial then begins with
another address. A driver takes the index modulo the number of addresses.

The functions are pure: time is an argument, and the first order of the queue is an argument, so that the owner can shuffle.
"""

from __future__ import annotations

import math

from attrs import field, frozen

from warrener.errors import Fault
from warrener.machine.backoff import Backoff, retry_delay, slowest_delay

__all__ = [
    "EndpointRecord",
    "Endpoints",
    "begin_pass",
    "endpoint_failed",
    "endpoint_proven",
    "found",
    "hand_over_target",
    "hand_over_to",
    "in_order",
    "next_endpoint",
    "prefer_delay",
    "ready_at_once",
]


#: The longest time in seconds between two tries to go back to the first endpoint, unless `stable_for` is longer.
PREFER_CAP = 3600.0


@frozen
class EndpointRecord:
    """Everything that the machine remembers about one endpoint."""

    #: Failures since a link to this endpoint was last proven.
    failures: int = 0
    #: The instant from which the endpoint is ready for a dial again.
    retry_at: float = -math.inf
    #: The newest fault of this endpoint; it stays after the endpoint works again.
    last_fault: Fault | None = None
    #: The index of the address that the next dial begins with.
    address: int = 0

    @property
    def refused(self) -> bool:
        """Say whether the endpoint refuses the producer for a reason that time does not end."""
        return self.failures > 0 and self.last_fault is not None and self.last_fault.permanent


@frozen
class Endpoints:
    """All endpoints of a producer, known by their index in the configured list."""

    records: tuple[EndpointRecord, ...] = (EndpointRecord(),)
    #: Every index once; the next dial takes the first one that is ready.
    queue: tuple[int, ...] = (0,)
    #: The endpoint of the present link, or of the last one.
    current: int = 0
    #: The endpoints that were dialed in this pass.
    tried: frozenset[int] = field(default=frozenset())

    @property
    def record(self) -> EndpointRecord:
        """The record of the current endpoint."""
        return self.records[self.current]

    @property
    def all_refused(self) -> bool:
        """Say whether every endpoint refuses the producer for a reason that time does not end; False for no endpoint."""
        return bool(self.records) and all(record.refused for record in self.records)


def in_order(queue: tuple[int, ...]) -> Endpoints:
    """Return endpoints without failures; `queue` has every index from 0 once, in the order of the first pass.

    An empty queue means that the endpoints are not known yet.
    """
    return Endpoints((EndpointRecord(),) * len(queue), queue, queue[0] if queue else 0)


def found(endpoints: Endpoints, kept: tuple[int | None, ...], order: tuple[int, ...]) -> Endpoints:
    """Return the endpoints of a new list: those of the old list keep their record and their place in the queue.

    `kept` has for each new endpoint its index in the old list, None if it was not there. New endpoints are dialed before the
    others, in the order of `order`, which has every new index once.
    """
    known = range(len(endpoints.records))
    moved = {old: new for new, old in reversed(tuple(enumerate(kept))) if old is not None and old in known}
    records = [EndpointRecord()] * len(kept)
    for old, new in moved.items():
        records[new] = endpoints.records[old]
    stayed = tuple(moved[old] for old in endpoints.queue if old in moved)
    fresh = [new for new in range(len(kept)) if new not in stayed]
    if sorted(order) == list(range(len(kept))):
        fresh.sort(key=order.index)
    queue = (*fresh, *stayed)
    return Endpoints(tuple(records), queue, queue[0])


def ready_at_once(endpoints: Endpoints) -> Endpoints:
    """End the backoff of each endpoint."""
    records = tuple(_with_retry_at(record, -math.inf) for record in endpoints.records)
    return Endpoints(records, endpoints.queue, endpoints.current, endpoints.tried)


def begin_pass(endpoints: Endpoints, at: float, *, hinted: bool = False) -> Endpoints:
    """Begin a new pass and take its first endpoint. With `hinted`, every endpoint is ready at once.

    If no endpoint is ready, the pass takes the one that is ready first.
    """
    records = (ready_at_once(endpoints) if hinted else endpoints).records
    fresh = Endpoints(records, endpoints.queue)
    following = next_endpoint(fresh, at)
    if following is not None:
        return following
    return _taken(fresh, min(fresh.queue, key=lambda index: records[index].retry_at))


def next_endpoint(endpoints: Endpoints, at: float) -> Endpoints | None:
    """Take the next endpoint of this pass. None: every endpoint was tried, or is not ready."""
    for index in endpoints.queue:
        if index not in endpoints.tried and endpoints.records[index].retry_at <= at:
            return _taken(endpoints, index)
    return None


def endpoint_failed(endpoints: Endpoints, fault: Fault, backoff: Backoff, at: float, *, proven: bool) -> Endpoints:
    """Note that the dial to the current endpoint failed, or that its link was lost; `proven` is about that link.

    A shutdown that the broker announces is no failure, but the endpoint goes to the end of the queue all the same.
    """
    before = endpoints.record
    failures, retry_at = before.failures, before.retry_at
    if not fault.orderly:
        shortest, _ = slowest_delay(backoff) if fault.permanent else retry_delay(backoff, failures)
        failures, retry_at = failures + 1, at + shortest
    address = before.address if proven and not fault.orderly else before.address + 1
    after = EndpointRecord(failures, retry_at, fault, address)
    queue = (*(index for index in endpoints.queue if index != endpoints.current), endpoints.current)
    # A proven link has ended its pass with success. Its loss begins a new pass, in which this endpoint counts as tried.
    tried = frozenset((endpoints.current,)) if proven else endpoints.tried
    return Endpoints(_replaced(endpoints, after), queue, endpoints.current, tried)


def endpoint_proven(endpoints: Endpoints) -> Endpoints:
    """Note that the link to the current endpoint is proven: its failures are 0 again."""
    before = endpoints.record
    if before.failures == 0:
        return endpoints
    after = EndpointRecord(0, -math.inf, before.last_fault, before.address)
    return Endpoints(_replaced(endpoints, after), endpoints.queue, endpoints.current, endpoints.tried)


def hand_over_target(endpoints: Endpoints, at: float, asked: int | None) -> int | None:
    """Return the endpoint to which a hand-over goes. None: the endpoint that was asked for does not exist.

    Without `asked` it is the next endpoint of the queue that is ready; the current one only if no other one is.
    """
    if asked is not None:
        return asked if 0 <= asked < len(endpoints.records) else None
    others = (index for index in endpoints.queue if index != endpoints.current)
    return next((index for index in others if endpoints.records[index].retry_at <= at), endpoints.current)


def hand_over_to(endpoints: Endpoints, target: int) -> Endpoints:
    """Begin a new pass at `target`. The endpoint that is left is the last one of the pass, with its next address."""
    left = endpoints.current
    before = endpoints.record
    moved = EndpointRecord(before.failures, before.retry_at, before.last_fault, before.address + 1)
    others = tuple(index for index in endpoints.queue if index not in (target, left))
    queue = (target, *others) if target == left else (target, *others, left)
    return _taken(Endpoints(_replaced(endpoints, moved), queue), target)


def prefer_delay(endpoints: Endpoints, stable_for: float) -> float:
    """Return how long a link to another endpoint is up before the first endpoint is tried again.

    A try interrupts publishing, so each failure of the first endpoint doubles the delay, up to `PREFER_CAP`.
    """
    doublings = min(endpoints.records[0].failures, 30)
    return min(max(stable_for, PREFER_CAP), stable_for * 2.0**doublings)


def _taken(endpoints: Endpoints, index: int) -> Endpoints:
    return Endpoints(endpoints.records, endpoints.queue, index, endpoints.tried | {index})


def _replaced(endpoints: Endpoints, record: EndpointRecord) -> tuple[EndpointRecord, ...]:
    records = endpoints.records
    return (*records[: endpoints.current], record, *records[endpoints.current + 1 :])


def _with_retry_at(record: EndpointRecord, retry_at: float) -> EndpointRecord:
    return EndpointRecord(record.failures, retry_at, record.last_fault, record.address)
