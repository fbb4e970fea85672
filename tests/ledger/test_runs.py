"""Runs in the ledger: how many messages of one call fly together, with which ids, and whom they let pass."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.driving import LOST, Bench
from tests.ledger.flying import FIRST, id_of
from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.batching import MOST_OF_RUN
from warrener._publishing.ledger.flights import Flight
from warrener.errors import Unconfirmed
from warrener.records import Envelope, Lane

QUEUE, OTHER = Envelope(routing_key="q"), Envelope(routing_key="other")


class Call:
    """The messages of one call, as the ledger sees them."""

    def __init__(self, bodies: list[bytes], *, deadline: float = 160.0, envelopes: Any = None, ids: Any = None) -> None:
        self.envelope, self.envelopes, self.ids = QUEUE, envelopes, ids
        self.bodies, self.deadline = bodies, deadline
        self.at = self.left = 0
        self.told: list[tuple[int, int]] = []
        self.deliveries: dict[int, Delivery] = {}

    @property
    def unaccepted(self) -> int:
        return len(self.bodies) - self.at

    @property
    def next_place(self) -> int:
        return self.at

    def confirmed(self, flight: Flight, start: int, stop: int) -> None:
        self.left -= stop - start
        self.told.append((flight.start + start, flight.start + stop))

    def expanded(self, place: int, delivery: Delivery) -> None:
        self.deliveries[place] = delivery


class Runs(Bench):
    """A bench that writes runs."""

    def fly(self, call: Call) -> Flight | None:
        flight = self.ledger.batching.next_of_run(call, self.now)
        if flight is not None:
            channel = self.channels[Lane.MAIN]
            self.ledger.batching.flown(flight, self.last_tag[channel] + 1, self.now)
            self.last_tag[channel] += len(flight)
        return flight

    def land(self) -> None:
        landed, self.ledger.settlement.landed = self.ledger.settlement.landed, []
        for flight, start, stop in landed:
            assert flight.run is not None
            flight.run.confirmed(flight, start, stop)


def flown(flight: Flight | None) -> Flight:
    assert flight is not None
    return flight


def test_a_run_flies_in_pieces_with_consecutive_ids() -> None:
    """A piece has at most `MOST_OF_RUN` messages; the first ack of each is told by the places in the call."""
    bench = Runs(max_in_flight=10_000)
    call = Call([b"x" * 3] * (MOST_OF_RUN + 7))
    pieces = [flown(bench.fly(call)) for _ in range(2)]
    assert [len(each) for each in pieces] == [MOST_OF_RUN, 7]
    assert [each.first_number - FIRST for each in pieces] == [0, MOST_OF_RUN]
    assert pieces[1].text(6) == id_of(MOST_OF_RUN + 6)
    assert [each.size for each in pieces] == [3 * MOST_OF_RUN, 21]
    assert [each.deadline for each in pieces] == [160.0, 160.0]
    assert [each.accepted_at for each in pieces] == [bench.now, bench.now]
    assert [each.timeout for each in pieces] == [0.0, 0.0]
    assert [each.start for each in pieces] == [0, MOST_OF_RUN]
    assert {*pieces[0].envelopes} == {QUEUE}
    assert len(pieces[1].envelopes) == 7
    assert (call.at, call.left, call.unaccepted) == (MOST_OF_RUN + 7, MOST_OF_RUN + 7, 0)
    assert bench.ledger.counters.accepted == bench.ledger.in_flight == MOST_OF_RUN + 7
    bench.ack(MOST_OF_RUN + 2, multiple=True)
    bench.land()
    assert call.told == [(0, MOST_OF_RUN), (MOST_OF_RUN, MOST_OF_RUN + 2)]
    assert (call.left, bench.ledger.in_flight) == (5, 5)
    assert bench.ledger.counters.confirmed == MOST_OF_RUN + 2


def test_each_message_may_have_a_destination_and_an_id_of_its_own() -> None:
    """Then each piece has its part of them, and a token for each id."""
    bench = Runs(max_in_flight=4)
    kinds = [QUEUE, OTHER, QUEUE, OTHER, QUEUE, OTHER]
    call = Call([b"%d" % n for n in range(6)], envelopes=kinds, ids=[f"id-{n}" for n in range(6)])
    first = flown(bench.fly(call))
    assert first.envelopes == kinds[:4]
    assert first.ids == ["id-0", "id-1", "id-2", "id-3"]
    assert first.bodies == [b"0", b"1", b"2", b"3"]
    assert (first.size, call.at) == (4, 4)
    assert bench.fly(call) is None
    bench.ack(4, multiple=True)
    second = flown(bench.fly(call))
    assert second.envelopes == kinds[4:]
    assert second.ids == ["id-4", "id-5"]
    assert [second.text(0), second.start] == ["id-4", 4]


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_to_a_mute_destination_leaves_the_reserve_and_lets_others_pass(shared: bool) -> None:
    """It holds nine tenths. Another run passes it, because it waits for its own destination; nobody passes a full window."""
    bench = Runs(max_in_flight=100)
    mute = Call([b"body"] * 95, envelopes=None if shared else [OTHER] * 95)
    assert len(flown(bench.fly(mute))) == 90
    assert bench.fly(mute) is None
    assert bench.ledger.batching.others_pass(mute)
    other = Call([b"body"] * 3, envelopes=[Envelope(routing_key="third")] * 3)
    assert len(flown(bench.fly(other))) == 3
    lone = [Envelope(routing_key=f"q{n}") for n in range(7)]
    assert len(flown(bench.fly(Call([b"body"] * 7, envelopes=lone)))) == 7
    assert bench.ledger.in_flight == 100
    assert bench.fly(mute) is None
    assert not bench.ledger.batching.others_pass(mute)


def test_a_run_takes_as_many_bytes_as_the_window_has() -> None:
    """A body larger than the window goes alone, if nothing else is in flight."""
    bench = Runs(max_in_flight_bytes=100)
    call = Call([b"x" * 40, b"x" * 40, b"x" * 40, b"x" * 500, b"x"])
    assert len(flown(bench.fly(call))) == 2
    assert bench.fly(call) is None
    bench.ack(1)
    assert len(flown(bench.fly(call))) == 1
    assert bench.fly(call) is None
    bench.ack(3, multiple=True)
    assert flown(bench.fly(call)).size == 500
    assert bench.fly(call) is None
    bench.ack(4)
    assert flown(bench.fly(call)).size == 1


def test_no_run_flies_without_a_channel_or_while_the_broker_blocks() -> None:
    """And nothing is accepted for it then."""
    bench = Runs(up=False)
    call = Call([b"body"])
    assert bench.fly(call) is None
    bench.begin()
    assert bench.fly(call) is None
    bench.ledger.link_up(1)
    bench.ledger.pause()
    assert bench.fly(call) is None
    bench.ledger.resume(bench.now)
    assert (call.at, bench.ledger.counters.accepted) == (0, 0)
    assert len(flown(bench.fly(call))) == 1


def test_only_the_run_that_leaves_is_expanded() -> None:
    """Its messages become deliveries, each at its place; those of another run stay together."""
    bench = Runs()
    leaving, staying = Call([b"a", b"b"]), Call([b"c", b"d"])
    for call in (leaving, staying):
        bench.fly(call)
    bench.ack(1)
    bench.ledger.batching.expand_run(leaving)
    assert {place: each.body for place, each in leaving.deliveries.items()} == {1: b"b"}
    assert not staying.deliveries
    assert bench.ledger.in_flight == 3


def test_messages_of_a_run_whose_link_is_lost_wait_for_the_next_one() -> None:
    """Or they end as unknown where a second attempt is not allowed; each at its place."""
    bench = Runs(at_least_once=False)
    call = Call([b"a", b"b"])
    bench.fly(call)
    settled = bench.lose(fault=LOST)
    assert [call.deliveries[place] for place in (0, 1)] == settled
    assert {type(each.outcome) for each in settled} == {Unconfirmed}
    assert [each.message_id for each in settled] == [id_of(0), id_of(1)]


def test_the_reserve_asks_for_the_destination_of_each_message() -> None:
    """A run to one queue that takes all open places, and then to another one, which takes half of the rest."""
    bench = Runs(max_in_flight=100)
    call = Call([b"body"] * 110, envelopes=[QUEUE] * 90 + [OTHER] * 20)
    assert [len(flown(bench.fly(call))) for _ in range(2)] == [90, 5]
    assert bench.fly(call) is None
    bench = Runs(max_in_flight=1000, max_in_flight_bytes=100_000)
    call = Call([bytes(10_000)] * 9 + [bytes(1000)] * 20, envelopes=[QUEUE] * 9 + [OTHER] * 20)
    assert [len(flown(bench.fly(call))) for _ in range(2)] == [9, 5]
    assert bench.fly(call) is None
    bench = Runs(max_in_flight=100)
    alone = Call([b"body"] * 93, envelopes=[QUEUE] * 90 + [Envelope(routing_key=f"q{n}") for n in range(3)])
    assert [len(flown(bench.fly(alone))) for _ in range(2)] == [90, 3]
