"""Batches: which messages join the one that is open, and what no batch takes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.driving import Bench
from tests.ledger.flying import FIRST, QUEUE, Together, ready
from warrener._publishing.ledger import Ticket
from warrener._publishing.ledger.batching import FEW, LARGEST
from warrener._publishing.ledger.flights import TOGETHER
from warrener.records import Envelope

OTHER = Envelope(routing_key="other")


def bench(**limits: Any) -> Bench:
    """Return a bench that takes messages of two envelopes into batches."""
    made = Bench(**limits)
    assert ready(made.ledger.batching, QUEUE)
    assert ready(made.ledger.batching, OTHER)
    return made


def join(b: Bench, body: bytes = b"body", *, envelope: Envelope = QUEUE, timeout: float = 60.0) -> int:
    """Return the place of the message among all, from 1; 0: it was not taken."""
    number = b.ledger.batching.join(envelope, body, Ticket(), timeout, b.now)
    return number - FIRST + 1 if number else 0


def add(b: Bench, body: bytes = b"body", *, envelope: Envelope = QUEUE, timeout: float = 60.0) -> bool:
    """Whether the batch that is open takes the message."""
    return b.ledger.batching.add(envelope, body, Ticket(), timeout, b.now) > 0


def batches(b: Bench) -> list[int]:
    """Return the number of messages of each batch."""
    return [len(each) for each in b.ledger.batching.batches.flights]


def test_no_batch_is_open_at_first() -> None:
    """`add` takes a message only into one that `join` has begun."""
    b = bench()
    assert not add(b)
    assert join(b) == 1
    assert add(b)
    assert join(b) == 3
    assert batches(b) == [3]
    assert b.ledger.buffered == 3
    assert b.ledger.buffered_bytes == 12


def test_messages_of_one_batch_have_one_timeout_and_come_within_a_millisecond() -> None:
    """Their deadline is that of the first one. Any other one begins a batch."""
    b = bench()
    join(b)
    assert not add(b, timeout=59.0)
    b.now += 0.9 * TOGETHER
    assert add(b)
    assert add(b, envelope=OTHER)
    b.now += 0.2 * TOGETHER
    assert not add(b)
    join(b)
    join(b, timeout=59.0)
    assert batches(b) == [3, 1, 1]
    deadlines = [each.deadline for each in b.ledger.batching.batches.flights]
    assert deadlines == [160.0, b.now + 60.0, b.now + 59.0]


def test_an_envelope_that_is_not_ready_joins_no_batch() -> None:
    """Trouble with its destination may have made it so."""
    b = bench()
    join(b)
    b.ledger.batching.ready.discard(OTHER)
    assert not add(b, envelope=OTHER)
    assert add(b)


@pytest.mark.parametrize("limit", [1, 5, 6])
def test_a_batch_takes_what_the_buffer_has_room_for(limit: int) -> None:
    """In number: exactly as many as the limit, in one batch or in several."""
    b = bench(max_buffered=limit)
    assert [join(b) for _ in range(limit + 1)] == [*range(1, limit + 1), 0]
    assert not add(b)
    b = bench(max_buffered=limit)
    for place in range(1, limit + 1):
        assert join(b) == place
        b.now += 2 * TOGETHER
    assert join(b) == 0
    assert b.ledger.buffered == limit


def test_a_message_that_has_left_takes_no_room_although_it_is_still_counted() -> None:
    """The counts of `join` are of the instant at which its envelope was made ready; the exact ones decide."""
    b = Bench(max_buffered=2)
    left = b.accept(exchange="x")
    b.write()
    assert ready(b.ledger.batching, QUEUE)
    assert b.ledger.cancel(left)
    assert [join(b) for _ in range(3)] == [1, 2, 0]
    assert b.ledger.buffered == 2


def test_a_batch_takes_as_many_bytes_as_the_buffer_has_room_for() -> None:
    """The last byte too; in one batch or in several."""
    b = bench(max_buffered_bytes=20)
    assert [join(b, b"x" * 8) for _ in range(2)] == [1, 2]
    assert not add(b, b"x" * 5)
    assert join(b, b"x" * 5) == 0
    assert add(b, b"x" * 4)
    assert join(b, b"x") == 0
    assert join(b, b"") == 4
    b = bench(max_buffered_bytes=20)
    for body in (b"x" * 8, b"x" * 8, b"x" * 4):
        assert join(b, body)
        b.now += 2 * TOGETHER
    assert join(b, b"x") == 0
    assert b.ledger.buffered_bytes == 20


def test_messages_that_wait_elsewhere_count_against_the_buffer() -> None:
    """Such as those that wait for the introduction of their exchange; they stay behind it while others join batches."""
    b = Bench(max_buffered=5, max_buffered_bytes=100)
    for _ in range(3):
        b.accept(exchange="new", body=b"x" * 20)
    assert ready(b.ledger.batching, QUEUE) is False  # a message has to be written first: it was not routed yet
    b.write()
    assert ready(b.ledger.batching, QUEUE)
    assert join(b, b"x" * 20) == 1
    assert join(b, b"x" * 21) == 0
    assert join(b, b"x" * 20) == 2
    assert join(b, b"") == 0
    assert (b.ledger.buffered, b.ledger.buffered_bytes) == (5, 100)


def test_a_body_above_the_largest_size_joins_no_batch() -> None:
    """One of exactly that size does. A body above the broker's own limit is not taken at all."""
    b = bench(max_buffered_bytes=1 << 30)
    join(b)
    assert add(b, bytes(LARGEST))
    assert not add(b, bytes(LARGEST + 1))
    b.ledger.batching._refusals.max_size = 10
    b.now += 1.0
    assert join(b, bytes(11)) == 0
    assert join(b, bytes(10))
    assert b.ledger.batching.largest == 10


def test_an_exchange_joins_batches_once_it_is_covered_and_while_its_destination_is_healthy() -> None:
    """Neither without a link, nor while the broker blocks."""
    batching = Bench(up=False).ledger.batching
    assert not batching.can_join(QUEUE)
    b = Bench()
    batching = b.ledger.batching
    assert batching.can_join(QUEUE)
    assert not batching.can_join(Envelope(exchange="new", routing_key="q"))
    b.ledger.pause()
    assert not batching.can_join(QUEUE)
    b.ledger.resume(b.now)
    assert batching.can_join(QUEUE)
    (overdue,) = b.publish(1, routing_key="slow")
    b.now += 31
    b.ledger.look(b.now, lambda _channel: 1)
    assert overdue.overdue
    assert not batching.can_join(Envelope(routing_key="slow"))
    assert batching.can_join(QUEUE)
    b.lose()
    assert not batching.can_join(QUEUE)


def test_no_batch_flies_without_a_channel_or_while_the_broker_blocks() -> None:
    """It waits, and keeps its place."""
    b = bench()
    join(b)
    batching = b.ledger.batching
    b.ledger.pause()
    assert batching.next_flight(b.now) is None
    b.ledger.resume(b.now)
    flight = batching.next_flight(b.now)
    assert flight is not None
    with pytest.raises(RuntimeError, match="tag 2 is not the next of the main channel"):
        batching.flown(flight, 2, b.now)
    batching.flown(flight, 1, b.now)
    assert (b.ledger.in_flight, batching._in_flight.size) == (1, 4)
    assert batching.next_flight(b.now) is None


@pytest.mark.parametrize("flights", [1, FEW, FEW + 1])
def test_a_ticket_is_found_in_its_flight(flights: int) -> None:
    """Of a few flights only its own is expanded; of many, all are. Each other message stays with its publisher."""
    b = Together(max_in_flight=1000, max_buffered=1000)
    for _ in range(flights):
        b.accept()
        b.accept()
        b.write()
    delivery = b.ledger.batching.delivery_of(b.tickets[-1])
    assert b.tickets[-1].delivery is delivery
    assert delivery.tag == 2 * flights
    expanded = sum(each.delivery is not None for each in b.tickets)
    assert expanded == (2 if flights <= FEW else 2 * flights)
    assert b.ledger.batching.delivery_of(b.tickets[-1]) is delivery


def test_a_ticket_is_found_in_a_batch_that_waits() -> None:
    """A flight keeps the tickets of its messages that were answered, and such a ticket may be used again by a message that waits."""
    b = Together(max_in_flight=10)
    for _ in range(2):
        b.accept()
    b.write()
    b.ack(1)
    b.take_landed()
    again = b.tickets[0]
    again.code = 0
    assert b.ledger.batching.join(QUEUE, b"again", again, 60.0, b.now)
    delivery = b.ledger.batching.delivery_of(again)
    assert delivery.body == b"again"
    assert b.ledger.buffered == 1
