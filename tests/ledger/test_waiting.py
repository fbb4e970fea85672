"""Which message is next, while others wait for a place, for an answer or for an instant."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import pytest

from tests.ledger.driving import INTERNAL, Bench, books_balance
from tests.ledger.flying import QUEUE, Together, ready
from warrener._publishing.ledger import Ticket
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.waiting import PATIENCE
from warrener._publishing.ledger.window import COUNT_LASTS
from warrener._retry_rules import RetryRules
from warrener.records import Envelope, Lane


def join(bench: Together, *envelopes: Envelope) -> None:
    """Let one message of each envelope join a batch."""
    for envelope in envelopes:
        assert ready(bench.ledger.batching, envelope)
        assert bench.ledger.batching.join(envelope, b"body", Ticket(), 60.0, bench.now)


def to(*keys: str) -> list[Envelope]:
    return [Envelope(routing_key=key) for key in keys]


def written(bench: Together) -> list[str]:
    """Write what may be written; return the routing keys of the messages."""
    main = bench.channels[Lane.MAIN]
    before = bench.last_tag[main]
    bench.write()
    keys: dict[int, str] = {}
    epoch = bench.ledger._in_flight.epochs[main]
    for tag, each in epoch.outstanding.items():
        keys[tag] = each.envelope.routing_key
    for flight in epoch.flights:
        keys.update((flight.first_tag + at, flight.envelopes[at].routing_key) for at in range(flight.at, len(flight)))
    return [keys[tag] for tag in range(before + 1, bench.last_tag[main] + 1)]


def crowded() -> Together:
    """Return a bench with 95 of 100 places taken: five by `good`, as many as are free, and 90 by `mute`."""
    bench = Together(max_in_flight=100, max_buffered=1000)
    join(bench, *to(*["mute"] * 90))
    assert len(written(bench)) == 90
    join(bench, *to(*["good"] * 5))
    assert written(bench) == ["good"] * 5
    return bench


def test_messages_of_a_batch_get_places_of_the_reserve() -> None:
    """Each by its own destination, from the first one that was not written; the batch is not expanded for that."""
    bench = crowded()
    join(bench, *to("a", "b", "good", "a"))
    assert written(bench) == ["a", "b"]
    assert bench.ledger.batching.batches.count == 2
    bench.ack(91)
    bench.now += COUNT_LASTS
    # `good` holds four places now, and four are free; `a` has one of its own.
    assert written(bench) == []
    bench.ack(92)
    bench.ack(93)
    assert written(bench) == ["good", "a"]
    assert bench.ledger.batching.batches.count == 0


def test_a_place_that_came_free_is_used_at_once() -> None:
    """Without a wait for the next look of the timer."""
    bench = crowded()
    join(bench, *to("good"))
    assert written(bench) == []
    assert written(bench) == []
    for tag in (91, 92, 93):
        bench.ack(tag)
    assert written(bench) == ["good"]


def test_a_first_message_that_was_not_refused_is_asked_about_at_once() -> None:
    """Another one was, at the same instant, and no place came free since."""
    bench = crowded()
    join(bench, *to("good"))
    assert written(bench) == []
    bench.ledger.batching.expand()
    for each in bench.ledger._waiting.unsent.live():
        assert bench.ledger.cancel(each)
    join(bench, *to("other"))
    assert written(bench) == ["other"]


def test_a_refused_message_is_asked_about_again_at_the_instant_that_was_named() -> None:
    """The counts were old; when the timer looks, they are made again."""
    bench = crowded()
    join(bench, *to("good"))
    assert written(bench) == []
    bench.ack(91)
    assert written(bench) == []
    instant = bench.ledger.next_wakeup(bench.now)
    assert instant == bench.now + COUNT_LASTS
    bench.now = instant
    bench.ledger.look(bench.now, bench.last_tag.__getitem__)
    assert written(bench) == ["good"]


def test_a_batch_is_expanded_only_for_messages_that_wait_behind_it() -> None:
    """Messages to other destinations that were written from the same batch are no reason."""
    bench = Together(max_in_flight=100, max_buffered=1000)
    join(bench, *to(*["good"] * 45, *["mute"] * 60))
    assert len(written(bench)) == 90
    for _ in range(20):
        bench.now += PATIENCE
        bench.ledger.look(bench.now, bench.last_tag.__getitem__)
        written(bench)
    assert bench.ledger.batching.batches.count == bench.ledger.buffered > 0
    join(bench, *to("mute", "late"))
    assert written(bench) == ["late"]
    assert bench.ledger.batching.batches.count == 0
    assert bench.ledger.counters.accepted == 107


@pytest.mark.parametrize(
    ("waiting", "size", "crowds"),
    [(94, 0, False), (95, 0, True), (1, 946, False), (1, 947, True), (0, 5000, False)],
)
def test_messages_that_were_passed_leave_a_tenth_of_the_buffer(waiting: int, size: int, crowds: bool) -> None:
    """Of its messages and of its bytes, rounded down; one that waits alone is never too many."""
    bench = Bench(max_buffered=105, max_buffered_bytes=1055)
    held = bench.ledger._waiting
    for _ in range(waiting):
        held.aside.add(("", "mute"), Delivery(Envelope(routing_key="mute"), b"xxxx", "", math.inf))
    held.aside.passed = True
    assert held.crowds(("", "mute"), size) is crowds
    held.aside.passed = False
    assert not held.crowds(("", "mute"), size)


def test_messages_whose_delay_is_over_take_the_places_that_are_free() -> None:
    """All at the same instant, and no more of them than the window has places."""
    bench = Bench(max_in_flight=4, retry=RetryRules(nacked=True, delays=lambda _: (1.0, 1.0)))
    first = bench.publish(4)
    bench.nack(4, multiple=True)
    new = bench.publish(2)
    assert bench.ledger.in_flight == 2
    bench.now += 10.0
    assert bench.write() == first[:2]
    assert bench.ledger.in_flight == 4
    for each in new:
        bench.ack(each.tag)
    assert bench.write() == first[2:]


def test_suspects_of_a_destination_without_an_answer_go_behind_others() -> None:
    """The first one was not answered in time: the next one of its queue waits behind that of another queue."""
    bench = Bench()
    slow = [bench.accept(routing_key="slow") for _ in range(2)]
    other = bench.accept(routing_key="other")
    bench.write()
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    bench.open(Lane.SUSPECT)
    assert bench.write() == slow[:1]
    bench.now += 10.0
    bench.ledger.look(bench.now, bench.last_tag.__getitem__)
    assert bench.write() == [other]
    bench.ack(other.tag, channel=bench.channels[Lane.SUSPECT])
    assert bench.write() == slow[1:]
    books_balance(bench.ledger, bench.accepted)


def test_no_introduction_goes_beside_a_suspect_without_an_answer() -> None:
    """A close would not say which of the two it is about. Once the broker has had time to close the channel, it goes."""
    bench = Bench()
    suspects = bench.publish(2)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    bench.open(Lane.SUSPECT)
    assert bench.write() == suspects[:1]
    late = bench.accept(exchange="x")
    assert bench.write() == []
    assert bench.write() == []
    bench.now += 10.0
    bench.ledger.look(bench.now, bench.last_tag.__getitem__)
    assert bench.write() == [late]


class Noted(list[Envelope]):
    """A list that notes how many of its slices were read."""

    slices = 0

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            Noted.slices += 1
        return super().__getitem__(at)


def test_asking_again_and_again_costs_little() -> None:
    """The link asks with each new message. While no place came free, nothing is asked of the window, and no batch is read twice."""
    bench = crowded()
    for _ in range(5):
        join(bench, *to("good", "good"))
        bench.now += 0.002
    bench.ledger.batching.batches.close()
    for batch in bench.ledger.batching.batches.flights:
        batch.envelopes = Noted(batch.envelopes)
    window, asked = bench.ledger.window, 0
    ask = window.room_in_reserve

    def noted(envelopes: Iterable[Envelope], bodies: Iterable[bytes], now: float) -> int:
        nonlocal asked
        asked += 1
        return ask(envelopes, bodies, now)

    with patch.object(window, "room_in_reserve", noted):
        for _ in range(5):
            assert written(bench) == []
        assert asked == 1
        for _ in range(4):
            bench.now += PATIENCE
            bench.ledger.look(bench.now, bench.last_tag.__getitem__)
            assert written(bench) == []
    Noted.slices = 0
    assert written(bench) == []
    first = Noted.slices
    for _ in range(5):
        assert written(bench) == []
    assert Noted.slices <= first + 5, "one for each look, at the last batch"
    assert bench.ledger.buffered == 10


@pytest.mark.parametrize("where", ["batch", "unsent", "introductions", "delayed", "aside"])
def test_the_buffer_is_bounded_wherever_its_messages_wait(where: str) -> None:
    """By their number, and by the bytes of their bodies."""
    bench = Together(max_buffered=3, max_buffered_bytes=10)
    waiting = bench.ledger._waiting

    def wait() -> None:
        delivery = Delivery(QUEUE, b"abc", "", 60.0)
        if where == "batch":
            assert ready(bench.ledger.batching, QUEUE)
            assert bench.ledger.batching.join(QUEUE, b"abc", Ticket(), 60.0, bench.now)
        elif where == "unsent":
            waiting.unsent.append(delivery)
        elif where == "introductions":
            waiting.introductions.add("x", delivery)
        elif where == "aside":
            waiting.aside.add(("", "q"), delivery)
        else:
            waiting.delayed.add(delivery, bench.now + 1.0)

    wait()
    wait()
    assert (waiting.full(4), waiting.full(5)) == (False, True)
    wait()
    assert waiting.full(0)
    assert (len(waiting), waiting.size) == (3, 9)


def test_a_message_that_was_passed_is_introduced_if_its_exchange_was_refused_since() -> None:
    """On the suspects' channel, as all others to that exchange; its empty queue is dropped, although others wait aside."""
    bench = Bench(max_in_flight=100, max_buffered=1000)
    covered = bench.ledger._waiting.introductions.covered
    covered.add("x")
    bench.publish(90, routing_key="mute", timeout=math.inf)
    mine = bench.publish(5, exchange="x", timeout=math.inf)
    mute = bench.accept(routing_key="mute", timeout=math.inf)
    late, next_one = (bench.accept(exchange="x", timeout=math.inf) for _ in range(2))
    for _ in range(4):
        assert bench.write() == []
        bench.now += PATIENCE
        bench.ledger.look(bench.now, bench.last_tag.__getitem__)
    aside = bench.ledger._waiting.aside
    assert aside.live() == [mute, late, next_one]
    covered.discard("x")
    for each in mine:
        bench.ack(each.tag)
    bench.now += COUNT_LASTS
    assert bench.write() == []
    assert list(aside.queues) == [("", "mute")]
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == [late]
    assert late.lane is Lane.SUSPECT
    bench.ack(1, channel=channel)
    assert bench.write() == [next_one]
    assert next_one.lane is Lane.MAIN


def test_a_suspect_goes_before_an_introduction_and_then_they_take_turns() -> None:
    """On a channel on which nothing was written so far."""
    bench = Bench()
    suspects = bench.publish(2)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    introduced = bench.accept(exchange="x")
    assert bench.write() == []
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == suspects[:1]
    bench.ack(1, channel=channel)
    assert bench.write() == [introduced]
    bench.ack(2, channel=channel)
    assert bench.write() == suspects[1:]


def test_nothing_is_passed_before_the_timer_has_looked() -> None:
    """However often the link asks."""
    bench = crowded()
    bench.ledger.batching.expand()
    bench.accept(routing_key="good")
    bench.accept(routing_key="other")
    for _ in range(5):
        assert bench.write() == []
        bench.now += PATIENCE


def look(bench: Bench, seconds: float) -> list[Delivery]:
    """Let the timer look after these seconds; return what is written then."""
    bench.now += seconds
    bench.ledger.look(bench.now, bench.last_tag.__getitem__)
    return bench.write()


def set_aside(bench: Bench, *waiting: Delivery) -> None:
    """Let the messages that wait be passed by younger ones."""
    assert look(bench, 0.0) == look(bench, PATIENCE / 2) == look(bench, PATIENCE / 2) == []
    assert bench.ledger._waiting.aside.live() == [*waiting]


def introducing(**limits: Any) -> tuple[Bench, int]:
    """Return a bench with an introduction of the exchange `x` under way, and its channel."""
    bench = Bench(**limits)
    channel = bench.open(Lane.SUSPECT)
    first = bench.accept(exchange="x", timeout=math.inf)
    assert bench.write() == [first]
    assert first.lane is Lane.SUSPECT
    return bench, channel


def test_messages_of_a_covered_exchange_go_to_the_main_channel_in_their_order() -> None:
    """Before younger ones of other exchanges; those past their deadline are not written."""
    bench, channel = introducing()
    waiting = [bench.accept(exchange="x", timeout=timeout) for timeout in (60.0, 1.0, 60.0)]
    assert bench.write() == []
    bench.now += 2.0
    young = bench.accept()
    bench.ack(1, channel=channel)
    assert bench.write() == [waiting[0], waiting[2], young]
    assert {each.lane for each in (waiting[0], waiting[2], young)} == {Lane.MAIN}
    assert bench.ledger.expire(bench.now) == [waiting[1]]
    books_balance(bench.ledger, bench.accepted)


def test_messages_of_a_covered_exchange_get_places_as_all_others() -> None:
    """One that gets no place waits, and is passed after a while; younger ones of its destination stay behind it."""
    bench, channel = introducing(max_in_flight=10)
    mute = [bench.accept(exchange="x", timeout=math.inf) for _ in range(11)]
    bench.write()
    bench.ack(1, channel=channel)
    assert bench.write() == mute[:9]
    other = bench.accept(timeout=math.inf)
    set_aside_first = [look(bench, 0.0), look(bench, PATIENCE / 2)]
    assert set_aside_first == [[], []]
    assert look(bench, PATIENCE / 2) == [other]
    assert bench.ledger._waiting.aside.live() == mute[9:]
    bench.ack(9, multiple=True)
    assert look(bench, COUNT_LASTS) == mute[9:]


def test_a_message_that_comes_back_keeps_its_place_though_its_exchange_was_introduced_meanwhile() -> None:
    """It had a tag; so no rule of the reserve holds it back."""
    bench, channel = introducing(max_in_flight=10)
    bench.ack(1, channel=channel)
    mine = bench.publish(9, exchange="x", timeout=math.inf)
    bench.lose()
    bench.up()
    assert bench.write() == []
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == mine[:1]
    bench.ack(1, channel=channel)
    assert bench.write() == mine[1:]
    assert {each.lane for each in mine[1:]} == {Lane.MAIN}


def test_a_destination_is_passed_only_when_another_one_was_written() -> None:
    """From then on its messages may not fill the whole buffer."""
    bench = Bench(max_in_flight=10, max_buffered=100)
    bench.publish(9, routing_key="mute", timeout=math.inf)
    mute = bench.accept(routing_key="mute", timeout=math.inf)
    set_aside(bench, mute)
    assert not bench.ledger._waiting.aside.passed
    good = bench.publish(1, routing_key="good")
    assert good[0].tag == 10
    assert bench.ledger._waiting.aside.passed


def test_the_same_after_a_message_of_a_covered_exchange() -> None:
    """Which is written before those that had no tag and need no introduction."""
    bench, channel = introducing(max_in_flight=10)
    bench.publish(8, routing_key="mute", timeout=math.inf)
    mute = [bench.accept(routing_key="mute", timeout=math.inf) for _ in range(2)]
    good = bench.accept(exchange="x", timeout=math.inf)
    set_aside(bench, *mute)
    assert not bench.ledger._waiting.aside.passed
    bench.ack(1, channel=channel)
    assert bench.write() == [mute[0], good]
    assert bench.ledger._waiting.aside.live() == mute[1:]
    assert bench.ledger._waiting.aside.passed


def test_a_message_is_passed_after_two_looks_of_the_timer() -> None:
    """Each half of `PATIENCE` after the one before; a look that is too early does not count."""
    bench = Bench(max_in_flight=10, max_buffered=100)
    bench.publish(9, routing_key="mute", timeout=math.inf)
    bench.accept(routing_key="mute", timeout=math.inf)
    good = bench.accept(routing_key="good", timeout=math.inf)
    assert bench.write() == []
    assert look(bench, PATIENCE / 2 - 0.01) == []
    assert look(bench, 0.01) == []
    assert bench.ledger.next_wakeup(bench.now) == bench.now + PATIENCE / 2
    assert look(bench, PATIENCE / 2 - 0.01) == []
    assert look(bench, 0.01) == [good]


def test_a_small_message_does_not_pass_a_large_one_of_its_destination() -> None:
    """The large one waits for bytes; order within a destination counts more than a place that is free."""
    bench = Bench(max_in_flight=100, max_buffered_bytes=10**6, max_in_flight_bytes=100_000)
    bench.publish(18, routing_key="mute", body=bytes(5000), timeout=math.inf)
    held = bench.publish(1, routing_key="mine", body=bytes(2000), timeout=math.inf)
    large = bench.accept(routing_key="mine", body=bytes(20_000), timeout=math.inf)
    set_aside(bench, large)
    bench.accept(routing_key="mine", body=b"", timeout=math.inf)
    assert bench.write() == []
    # Now its destination holds nothing; there are too few bytes all the same.
    bench.ack(held[0].tag)
    assert look(bench, COUNT_LASTS) == []
    assert bench.ledger._in_flight.size == 90_000


def test_the_only_message_that_was_passed_is_introduced() -> None:
    """Nothing else waits aside then."""
    bench = Bench(max_in_flight=10, max_buffered=100)
    bench.ledger._waiting.introductions.covered.add("x")
    mine = bench.publish(9, exchange="x", timeout=math.inf)
    late = bench.accept(exchange="x", timeout=math.inf)
    set_aside(bench, late)
    bench.ledger._waiting.introductions.covered.discard("x")
    for each in mine:
        bench.ack(each.tag)
    assert look(bench, COUNT_LASTS) == []
    bench.open(Lane.SUSPECT)
    assert bench.write() == [late]


def test_messages_of_a_batch_that_is_expanded_are_counted_as_accepted() -> None:
    """Once, and beside those that were accepted before."""
    bench = Together(max_buffered=100)
    join(bench, *to("a", "b"))
    assert written(bench) == ["a", "b"]
    join(bench, *to("a", "b", "a"))
    bench.ledger.batching.expand()
    assert bench.ledger.counters.accepted == 5
    assert written(bench) == ["a", "b", "a"]
    assert bench.ledger.counters.accepted == 5
