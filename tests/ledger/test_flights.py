"""Flights, in which most messages go, against the same messages one by one; and where their truth could get lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import asdict
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ledger.driving import NOT_FOUND
from tests.ledger.flying import FIRST, QUEUE, Numbered, Together, id_of, ready
from warrener._publishing.ledger import Ticket
from warrener._publishing.ledger.flights import Flight
from warrener._publishing.runs import Run
from warrener._retry_rules import RetryRules
from warrener.errors import DeadlineExceeded, Fault, FaultKind, Nacked, Unconfirmed, Unroutable
from warrener.records import Envelope, Lane, Receipt

NEVER = RetryRules(unknown=False)
UNKNOWN = RetryRules(unknown=True)
ALL = RetryRules(unknown=True, nacked=True, overdue=True)
POLICIES = [NEVER, UNKNOWN, ALL]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "publish", "publish", "some", "some", "ack", "ack", "ack all", "ack all", "nack", "bounce", "pause",
             "resume", "lose", "up", "close channel", "open", "tick", "cancel"]
        ),
        st.integers(0, 7),
    ),
    max_size=40,
)  # fmt: skip


def perform(bench: Numbered, operation: str, number: int) -> None:
    """Do one thing to a bench; the same thing, whichever bench it is."""
    ledger = bench.ledger
    main = bench.channels.get(Lane.MAIN, 1)
    match operation:
        case "publish" if not ledger.full(4):
            bench.accept()
        case "some":
            for _ in range(number):
                if not ledger.full(4):
                    bench.accept()
        case "ack" | "ack all" | "nack":
            tell = bench.nack if operation == "nack" else bench.ack
            tell(number, multiple=operation == "ack all", channel=main)
        case "bounce" if bench.serial:
            bench.ledger.answers.returned(main, bench.returned((bench.serial - 1) * number // 7))
        case "pause":
            ledger.pause()
        case "resume":
            ledger.resume(bench.now)
        case "lose":
            bench.lose(written=number)
            bench.channels.clear()
            bench.opened = 0
        case "up" if not bench.opened:
            bench.up()
        case "close channel" if Lane.MAIN in bench.channels:
            bench.close_channel(written=number)
        case "open":
            lane = Lane.SUSPECT if number % 2 and ledger.wants_suspect_channel else Lane.MAIN
            if bench.opened and lane not in bench.channels:
                bench.open(lane)
        case "tick":
            bench.now += number * 10
            ledger.look(bench.now, lambda _channel: 1_000_000)
            ledger.expire(bench.now)
        case "cancel" if bench.serial:
            bench.leave(number % bench.serial)
        case _:
            pass
    bench.write()


def seen(bench: Numbered) -> dict[str, Any]:
    """Everything that shows."""
    ledger = bench.ledger
    return {
        "counters": asdict(ledger.counters),
        "counts": (ledger.in_flight, ledger.buffered, ledger.buffered_bytes, ledger.pending),
        "times": (ledger.next_wakeup(), ledger.silent(bench.now)),
        "overdue": dict(ledger.overdue),
        "wire": {place: getattr(message, "message_id", message) for place, message in bench.wire.items()},
        "outcomes": [repr(bench.outcome(number)) for number in range(bench.serial)],
        "late": [(outcome.message_id, repr(outcome.result)) for outcome in ledger.settlement.late],
    }


@given(OPERATIONS, st.integers(1, 6), st.sampled_from(POLICIES))
@example([("some", 3), ("bounce", 7), ("publish", 0), ("bounce", 0), ("ack", 2)], 4, UNKNOWN)
@example([("some", 4), ("close channel", 7), ("open", 0), ("publish", 0)], 4, UNKNOWN)
@example([("some", 4), ("lose", 2), ("up", 0), ("publish", 0)], 4, UNKNOWN)
@example([("some", 5), ("ack", 2), ("ack", 4), ("ack", 1), ("tick", 3), ("ack all", 5)], 6, UNKNOWN)
@example([("some", 5), ("cancel", 2), ("ack", 4), ("tick", 7)], 6, NEVER)
@example([("some", 5), ("some", 2), ("ack", 1), ("ack", 2), ("ack", 3), ("ack", 6)], 4, NEVER)
@example([("some", 3), ("tick", 2), ("ack", 2), ("tick", 1), ("ack all", 4)], 6, ALL)
@example([("some", 3), ("tick", 2), ("ack", 2), ("tick", 1), ("bounce", 0), ("ack all", 4)], 6, ALL)
def test_flights_show_no_difference(operations: list[tuple[str, int]], max_in_flight: int, retry: RetryRules) -> None:
    """Whatever happens before, between and after: tags, order, ids, counts, timers and outcomes are those of single messages."""
    single, together = (make(max_in_flight=max_in_flight, max_buffered=5, retry=retry) for make in (Numbered, Together))
    for operation, number in operations:
        for bench in (single, together):
            perform(bench, operation, number)
        assert seen(together) == seen(single)


def test_messages_of_a_healthy_link_fly() -> None:
    """In one entry, under consecutive tags, with ids in the same order."""
    bench = Together()
    bench.publish(5)
    assert bench.flights == [5]
    assert [bench.wire[1, 1, tag] for tag in range(1, 6)] == [id_of(number) for number in range(5)]
    assert (bench.ledger.in_flight, bench.ledger.counters.accepted) == (5, 5)
    assert all(ticket.delivery is None for ticket in bench.tickets)


def test_messages_that_wait_together_are_accepted_and_buffered() -> None:
    """Before they are written."""
    bench = Together()
    for _ in range(3):
        bench.accept()
    ledger = bench.ledger
    assert (ledger.counters.accepted, ledger.buffered, ledger.buffered_bytes, ledger.pending) == (3, 3, 12, 3)
    assert ledger.in_flight == 0


@pytest.mark.parametrize("why", ["down", "paused", "waiting", "suspects", "not covered", "refusal", "overdue"])
def test_flights_are_not_offered(why: str) -> None:
    """Nobody overtakes, and nothing goes where it must not."""
    bench, envelope = Together(up=why != "down", max_in_flight=2), QUEUE
    match why:
        case "paused":
            bench.ledger.pause()
        case "waiting":
            bench.ledger.pause()
            bench.accept()
            bench.ledger.resume(bench.now)
        case "suspects":
            bench.publish(2)
            bench.close_channel(Fault(FaultKind.CHANNEL_CLOSED, "INTERNAL_ERROR", reply_code=541))
            bench.open(Lane.MAIN)
        case "not covered":
            envelope = Envelope("x", "q")
        case "refusal":
            bench.accept(exchange="x")
            bench.open(Lane.SUSPECT)
            bench.write()
            bench.close_channel(NOT_FOUND, lane=Lane.SUSPECT)
            assert bench.ledger.batching.can_join(envelope)
            envelope = Envelope("x", "q")
        case "overdue":
            bench.publish(1)
            bench.now += 40
            bench.ledger.look(bench.now, lambda _channel: 1)
            assert bench.ledger.batching.can_join(Envelope(routing_key="other"))
        case _:
            pass
    assert not bench.ledger.batching.can_join(envelope)


def test_trouble_makes_no_envelope_ready_any_more() -> None:
    """Each of these ends what the sender has found out about envelopes."""
    for trouble in ("pause", "nack", "close channel", "lose", "accept", "cancel"):
        bench = Together()
        bench.publish(2)
        bench.accept()
        ready = bench.ledger.batching.ready
        ready.add(QUEUE)
        match trouble:
            case "pause":
                bench.ledger.pause()
            case "nack":
                bench.nack(1)
            case "close channel":
                bench.close_channel()
            case "lose":
                bench.lose()
            case "accept":
                bench.accept(exchange="x")
            case _:
                bench.leave(2)
        assert not ready, trouble


def test_a_full_window_takes_a_part_of_a_batch() -> None:
    """The rest follows when there is room, with the ids and the deadline that it had."""
    bench = Together(max_in_flight=3)
    bench.publish(5)
    assert bench.flights == [3]
    bench.now += 5
    bench.ack(2, multiple=True)
    bench.write()
    assert bench.flights == [3, 2]
    assert bench.wire[1, 1, 5] == id_of(4)
    assert bench.ledger.next_wakeup() == pytest.approx(bench.now + 25)  # the confirm clock of the first ones
    bench.ack(5, multiple=True)
    assert [bench.outcome(number) for number in range(5)] == [
        Receipt(id_of(number), 1, False, 1) for number in range(5)
    ]
    assert len(bench.ledger.settlement.deadlines) == 0


def test_a_full_window_of_bytes_takes_what_fits() -> None:
    """One message above the limit goes alone."""
    bench = Together(max_in_flight_bytes=10)
    bench.publish(5)
    assert bench.flights == [2]
    bench = Together(max_in_flight_bytes=3)
    bench.publish(5)
    assert bench.flights == [1]
    bench.ack(1)
    bench.write()
    assert bench.flights == [1, 1]


def test_single_acks_leave_holes() -> None:
    """Out of order, in the middle, then at the front: each message is settled once, and the front moves over the holes."""
    bench = Together()
    bench.publish(3)
    bench.publish(3)
    epoch = bench.ledger._in_flight.main
    assert epoch is not None
    for tag, oldest in [(2, 1), (5, 1), (4, 1), (1, 3), (3, 6)]:
        bench.ack(tag)
        assert bench.take_landed() == [tag - 1]
        assert epoch.flights[0].first_tag + epoch.flights[0].at == oldest
    assert (bench.ledger.in_flight, epoch.holes) == (1, set())
    bench.ack(6)
    assert (bench.take_landed(), len(epoch.flights), bench.ledger.in_flight) == ([5], 0, 0)
    assert bench.ledger.counters.anomalies == 0


def test_a_settled_front_is_not_overdue() -> None:
    """A hole behind the acked front would make an answered message look as if it waited."""
    bench = Together()
    bench.publish(2)
    bench.now += 10
    bench.publish(1)
    bench.ack(2)
    bench.ack(1)
    bench.now += 25
    bench.ledger.look(bench.now, lambda _channel: 3)
    assert (bench.ledger.counters.overdue, bench.ledger.silent(bench.now)) == (0, False)
    assert bench.ledger.next_wakeup() == pytest.approx(140.0)


@pytest.mark.parametrize("tag", [0, 7, -1])
def test_an_ack_of_no_tag_settles_nothing(tag: int) -> None:
    """Tag 0, one that was never assigned, and one that was answered before are anomalies."""
    bench = Together()
    bench.publish(3)
    for multiple in (False, True):
        bench.ack(tag, multiple=multiple)
    bench.ack(2)
    bench.ack(2)
    assert bench.take_landed() == [1]
    assert bench.ledger.counters.anomalies == 3


def test_a_multiple_ack_whose_top_is_settled_settles_the_rest() -> None:
    """As the standard says: all outstanding ones up to it."""
    bench = Together()
    bench.publish(4)
    bench.ack(3)
    bench.ack(3, multiple=True)
    assert bench.take_landed() == [2, 0, 1]
    assert bench.ledger.in_flight == 1


def test_tags_follow_on_each_other_in_both_forms() -> None:
    """A single message, a flight, a single message: the tags of the channel count on."""
    bench = Together()
    bench.publish(2)
    bench.accept(timeout=60.0)
    bench.write()
    bench.publish(2)
    assert sorted(tag for _, _, tag in bench.wire) == [1, 2, 3, 4, 5]
    assert bench.flights == [2, 2]
    bench.ack(4, multiple=True)
    assert [type(bench.outcome(number)) for number in range(5)] == [Receipt] * 4 + [type(None)]
    bench.ledger.answers.returned(1, bench.returned(4))
    bench.ack(5)
    assert isinstance(bench.outcome(4), Unroutable)


def test_a_tag_out_of_step_is_refused() -> None:
    """Tags are 1, 2, 3 … of the main channel (I6); anything else would confirm the wrong publish."""
    bench = Together()
    bench.accept()
    flight = bench.ledger.batching.next_flight(bench.now)
    assert flight is not None
    with pytest.raises(RuntimeError, match="tag 2 is not the next"):
        bench.ledger.batching.flown(flight, 2, bench.now)


def test_a_nack_in_a_flight_hits_one_message() -> None:
    """The others go on."""
    bench = Together()
    bench.publish(4)
    bench.ack(1)
    bench.nack(3)
    bench.ack(4, multiple=True)
    kinds = [type(bench.outcome(number)) for number in range(4)]
    assert kinds == [Receipt, Receipt, Nacked, Receipt]


def test_a_message_that_leaves_a_batch_is_not_sent_and_moves_no_id() -> None:
    """The ids behind it stay as they are."""
    bench = Together()
    for _ in range(4):
        bench.accept()
    bench.leave(1)
    bench.write()
    assert list(bench.wire.values()) != []
    sent = [getattr(message, "message_id", message) for message in bench.wire.values()]
    assert sent == [id_of(0), id_of(2), id_of(3)]
    assert bench.ledger.counters.cancelled == 1
    bench.accept()
    bench.write()
    assert bench.wire[1, 1, 4] == id_of(4)


def test_a_flight_has_the_deadline_of_its_first_message() -> None:
    """Later ones join it only while the difference is too small to matter."""
    bench = Together()
    batching = bench.ledger.batching
    assert ready(batching, QUEUE)
    for _ in range(5):
        assert batching.join(QUEUE, b"body", Ticket(), 60.0, bench.now)
        bench.now += 0.0006
    assert [len(batch) for batch in batching.batches.flights] == [2, 2, 1]
    assert [batch.deadline for batch in batching.batches.flights] == pytest.approx([160.0, 160.0012, 160.0024])
    assert batching.join(QUEUE, b"body", Ticket(), 5.0, bench.now)
    assert bench.ledger.next_wakeup() == pytest.approx(bench.now + 5.0)
    assert batching.batches.flights[-1].deadline == bench.now + 5.0


def test_a_batch_past_its_deadline_is_not_written() -> None:
    """Each message ends by itself."""
    bench = Together()
    for _ in range(3):
        bench.accept()
    bench.now += 60
    bench.write()
    bench.ledger.expire(bench.now)
    assert bench.wire == {}
    assert [type(bench.outcome(number)) for number in range(3)] == [DeadlineExceeded] * 3


def test_a_flight_past_its_deadline_is_unconfirmed() -> None:
    """And its tags stay taken until the broker answers."""
    bench = Together()
    bench.publish(3)
    bench.ack(1)
    bench.now += 60
    bench.ledger.expire(bench.now)
    assert [type(bench.outcome(number)) for number in range(3)] == [Receipt, Unconfirmed, Unconfirmed]
    assert (bench.ledger.in_flight, bench.ledger.pending) == (2, 0)


def test_without_a_deadline_a_flight_waits() -> None:
    """`math.inf` is a timeout."""
    bench = Together()
    bench.ledger.batching.join(QUEUE, b"body", Ticket(), math.inf, bench.now)
    assert bench.ledger.expire(1e9) == []
    assert bench.ledger.buffered == 1


def test_the_numbers_of_ids_are_given_out_once() -> None:
    """A number that is taken in between ends the batch: ids follow places."""
    bench = Together()
    batching = bench.ledger.batching
    assert ready(batching, QUEUE)
    assert batching.join(QUEUE, b"body", Ticket(), 60.0, bench.now) == FIRST
    assert batching.batches.numbers(10) == FIRST + 1
    assert batching.join(QUEUE, b"body", Ticket(), 60.0, bench.now) == FIRST + 11
    assert [len(batch) for batch in batching.batches.flights] == [1, 1]


def test_the_messages_of_a_flight_can_have_ids_of_their_own() -> None:
    """Each is matched by a token then, which counts as ids do."""
    flight = Flight("0" * 20, FIRST + 7, 0.0, 60.0, 0.0)
    flight.envelopes, flight.bodies, flight.ids = [QUEUE] * 2, [b"body"] * 2, ["same", "same"]
    flight.run, flight.start = Run(60.0), 5
    deliveries = [flight.delivery(index) for index in range(2)]
    assert [(each.message_id, each.token) for each in deliveries] == [("same", id_of(7)), ("same", id_of(8))]
    assert flight.run.singles == {5: deliveries[0], 6: deliveries[1]}


def test_nothing_is_left_after_many_flights() -> None:
    """A thousand flights in every order of acks."""
    bench = Together(max_in_flight=1000, max_buffered=1000)
    for round_ in range(200):
        bench.publish(5)
        last = bench.last_tag[1]
        for tag in (last - 2, last - 4, last, last - 1, last - 3) if round_ % 2 else (last - 1, last):
            bench.ack(tag, multiple=round_ % 2 == 0)
    epoch = bench.ledger._in_flight.main
    assert epoch is not None
    assert (len(epoch), epoch.flown, len(epoch.flights), epoch.holes) == (0, 0, 0, set())
    assert (bench.ledger._in_flight.size, len(bench.ledger.settlement.deadlines)) == (0, 0)
    assert bench.ledger.counters.confirmed == 1000


@pytest.mark.parametrize("returned", [False, True])
def test_an_ack_of_both_attempts_and_of_flights_between_leaves_no_tag_behind(returned: bool) -> None:
    """The first attempt went in a flight. The ack ends within the last flight, whose rest stays outstanding."""
    bench, other = Together(retry=ALL), Envelope(routing_key="other")
    ledger = bench.ledger

    def fly_elsewhere(count: int) -> None:
        for _ in range(count):
            bench.tickets.append(ticket := Ticket())
            assert ready(ledger.batching, other)
            assert ledger.batching.join(other, b"body", ticket, 200.0, bench.now)
            bench.serial += 1
        assert bench.write() == []

    bench.publish(1)
    bench.now += 20
    fly_elsewhere(3)
    bench.ack(4)
    bench.now += 11
    ledger.look(bench.now, lambda channel: bench.last_tag[channel])
    (message,) = bench.write()
    assert (message, message.tag) == (bench.tickets[0].delivery, 5)
    fly_elsewhere(3)
    if returned:
        bench.bounce(message)
    assert ledger.in_flight == 7

    assert message in bench.ack(7, multiple=True)
    assert bench.outcome(0) == Receipt(id_of(0), 2, True, 1)
    assert (ledger.in_flight, ledger.pending, dict(ledger.overdue)) == (1, 1, {})
    assert ledger.next_wakeup() == bench.now + 30.0

    bench.ack(8)
    assert [type(bench.outcome(number)) for number in range(7)] == [Receipt] * 7
    assert (ledger.in_flight, ledger.pending, ledger.next_wakeup()) == (0, 0, math.inf)


def held(bench: Together) -> tuple[int, int]:
    """Return the number of messages, and the bytes, that the flights of the main channel hold."""
    epoch = bench.ledger._in_flight.main
    assert epoch is not None
    bodies = [body for flight in epoch.flights for body in flight.bodies]
    return len(bodies), sum(map(len, bodies))


def test_one_slow_message_holds_no_others() -> None:
    """A broker that has not answered the first of many acks all others one by one."""
    bench = Together(max_in_flight=1000, max_buffered=1000)
    slow = bench.accept()
    bench.write()
    for number in range(1, 10_001, 100):
        for _ in range(100):
            bench.accept()
        bench.write()
        for tag in range(number + 1, number + 101):
            bench.ack(tag)
        bench.take_landed()
        bench.now += 0.01
        messages, size = held(bench)
        assert size <= 100 * len(b"body")
        assert messages <= 2 * 1024
    assert len(bench.flights) == 101
    assert bench.ledger.in_flight == 1
    assert bench.ledger.buffered_bytes == bench.ledger._in_flight.size - len(b"body") == 0
    assert isinstance(bench.outcome(10_000), Receipt)
    assert bench.outcome(0) is None
    assert slow is bench.tickets[0]
    bench.ack(1)
    assert isinstance(bench.outcome(0), Receipt)
    assert held(bench) == (0, 0)


def test_an_answered_front_holds_no_bytes() -> None:
    """Nor do messages of a batch that were written before the rest of it."""
    bench = Together(max_in_flight=6)
    for _ in range(10):
        bench.accept()
    bench.write()
    bench.ack(4, multiple=True)
    bench.write()
    assert bench.flights == [6, 4]
    assert held(bench)[1] == 6 * len(b"body") == bench.ledger._in_flight.size


class Counted(Ticket):
    """A ticket that counts how often it was compared with another one."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return self is other

    __hash__ = Ticket.__hash__


@pytest.mark.parametrize("newest_first", [False, True])
def test_many_publishers_that_leave_together_cost_no_square(
    monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:
    """Each has a flight of its own; each message is still confirmed under its own tag."""
    monkeypatch.setattr("tests.ledger.flying.Ticket", Counted)
    monkeypatch.setattr(Counted, "compared", 0)
    bench = Together(max_in_flight=1000, max_buffered=1000)
    for _ in range(500):
        bench.publish(1)
    assert len(bench.flights) == 500
    numbers = range(500)
    for number in reversed(numbers) if newest_first else numbers:
        bench.leave(number)
    assert Counted.compared <= 500
    bench.publish(1)
    bench.ack(501, multiple=True)
    assert [late.message_id for late in bench.ledger.settlement.late] == [id_of(number) for number in numbers]
    assert all(isinstance(late.result, Receipt) for late in bench.ledger.settlement.late)
    assert isinstance(bench.outcome(500), Receipt)
    assert bench.ledger.in_flight == 0
