"""The window has a reserve: no destination takes it alone, so one that never answers stops no other one."""

from __future__ import annotations

import math
import random

import pytest

from tests.ledger.driving import INTERNAL, Bench, books_balance
from tests.ledger.flying import Together
from warrener._publishing.ledger import Ticket
from warrener._publishing.ledger.waiting import PATIENCE
from warrener._publishing.ledger.window import COUNT_LASTS
from warrener.errors import DeadlineExceeded
from warrener.records import Envelope, Lane, Receipt


def later(bench: Bench, seconds: float) -> None:
    """Let the time pass; the timer looks twice, and the sender asks what it may write."""
    for _ in range(2):
        bench.now += seconds / 2
        bench.ledger.look(bench.now, bench.last_tag.__getitem__)
        bench.ledger.next(bench.now)
        if isinstance(bench, Together) and (flight := bench.ledger.batching.next_flight(bench.now)) is not None:
            bench.fly(flight)


MUTE, GOOD = Envelope(routing_key="mute"), Envelope(routing_key="good")


@pytest.mark.parametrize("burst", [90, 100, 190])
def test_a_burst_to_a_mute_queue_leaves_the_last_tenth(burst: int) -> None:
    """It holds 90 of 100 places; others wait behind it for `PATIENCE` seconds at most, and are confirmed from then on."""
    bench = Bench(max_in_flight=100, max_buffered=200)
    mute = [bench.accept(routing_key="mute", timeout=math.inf) for _ in range(burst)]
    assert bench.write() == mute[:90]
    good = [bench.accept(routing_key="good") for _ in range(5)]
    assert bench.write() == (good if burst == 90 else [])
    assert bench.ledger.next_wakeup(bench.now) == (bench.now + (30 if burst == 90 else PATIENCE / 2))
    later(bench, PATIENCE)
    assert bench.write() == ([] if burst == 90 else good)
    assert bench.ledger.buffered == burst - 90
    for each in good:
        bench.ack(each.tag)
    for _ in range(20):
        more = bench.publish(5, routing_key="good")
        for each in more:
            bench.ack(each.tag)
        assert {type(each.outcome) for each in more} == {Receipt}
        assert bench.ledger.in_flight <= 100
        later(bench, 0.02)
    # When it answers again, its messages go on, in their order, and before younger ones.
    late = bench.accept(routing_key="mute")
    bench.ack(45, multiple=True)
    later(bench, COUNT_LASTS)
    assert bench.write() == [*mute[90:], late][:45]
    books_balance(bench.ledger, bench.accepted)


def test_the_same_for_messages_of_batches() -> None:
    """They are expanded only if messages to other destinations wait behind the first one."""
    bench = Together(max_in_flight=100, max_buffered=200)
    batching = bench.ledger.batching

    def join(envelope: Envelope, count: int) -> None:
        assert batching.can_join(envelope)
        for _ in range(count):
            assert batching.join(envelope, b"body", Ticket(), 60.0, bench.now)

    def in_flight() -> tuple[int, int]:
        bench.write()
        return bench.ledger.in_flight, bench.ledger.buffered

    join(MUTE, 95)
    assert in_flight() == (90, 5)
    assert bench.ledger.next_wakeup(bench.now) == bench.now + PATIENCE / 2
    later(bench, 1.0)
    assert (in_flight(), batching.batches.count) == ((90, 5), 5)
    join(GOOD, 5)
    assert (in_flight(), batching.batches.count) == ((95, 5), 0)
    later(bench, 10.0)
    assert in_flight() == (95, 5)
    bench.ack(90, multiple=True)
    later(bench, COUNT_LASTS)
    assert in_flight() == (10, 0)
    assert batching.can_join(GOOD)
    bench.ack(100, multiple=True)
    assert in_flight() == (0, 0)


def test_several_mute_destinations_leave_a_place() -> None:
    """Each later one takes at most half of what the earlier ones left; one that holds nothing gets any free place."""
    bench = Bench(max_in_flight=1000, max_buffered=10_000, max_buffered_bytes=10**6)
    held = []
    for number in range(5):
        bench.publish(1100, routing_key=f"mute-{number}")
        later(bench, PATIENCE)
        bench.write()
        held.append(bench.ledger.in_flight)
    assert held == [900, 950, 975, 987, 993]
    for number in range(6):
        assert len(bench.publish(1, routing_key=f"lone-{number}")) == 1
    assert bench.ledger.in_flight == 999
    good = bench.accept(routing_key="good")
    assert bench.write() == [good]
    assert bench.write() == []
    bench.ack(good.tag)
    assert [each.tag for each in bench.publish(1, routing_key="good")] == [1001]


def test_the_reserve_counts_bytes_too() -> None:
    """Four bodies of a quarter of the bytes: three are in flight, and small ones go beside them."""
    size = 1 << 20
    bench = Bench(max_buffered_bytes=1 << 30, max_in_flight_bytes=size)
    mute = [bench.accept(routing_key="mute", body=bytes(size // 4), timeout=math.inf) for _ in range(6)]
    assert bench.write() == mute[:3]
    good = bench.accept(routing_key="good", timeout=math.inf)
    later(bench, PATIENCE)
    assert bench.write() == [good]
    assert bench.ledger.in_flight == 4


def test_a_large_message_is_not_passed_for_ever() -> None:
    """It waits for bytes, and its own destination holds nothing: smaller ones wait behind it."""
    size = 1 << 20
    bench = Bench(max_buffered_bytes=1 << 30, max_in_flight_bytes=size)
    small = bench.publish(12, routing_key="small", body=bytes(size // 16))
    large = bench.accept(routing_key="large", body=bytes(size // 2))
    behind = bench.accept(routing_key="small", body=bytes(size // 16))
    assert bench.write() == []
    later(bench, 2 * PATIENCE)
    assert bench.write() == []
    bench.ack(small[7].tag, multiple=True)
    assert bench.write() == [large, behind]


def test_messages_set_aside_keep_their_deadlines_and_come_back_with_a_new_link() -> None:
    """They are counted, cancelled and ended as all others are."""
    bench = Bench(max_in_flight=10, max_buffered=5)
    mute = bench.publish(9, routing_key="mute", timeout=math.inf)
    aside = [bench.accept(routing_key="mute", timeout=6.0) for _ in range(2)]
    aside += [bench.accept(routing_key="mute", timeout=60.0) for _ in range(2)]
    good = bench.accept(routing_key="good", timeout=math.inf)
    assert bench.ledger.full(4)
    bench.write()
    later(bench, PATIENCE)
    assert bench.write() == [good]
    assert (bench.ledger.buffered, bench.ledger.buffered_bytes, bench.ledger.full(4)) == (4, 16, False)
    assert bench.ledger.cancel(aside[3])
    later(bench, 6.0)
    assert bench.ledger.expire(bench.now) == aside[:2]
    assert {type(each.outcome) for each in aside[:2]} == {DeadlineExceeded}
    books_balance(bench.ledger, bench.accepted)
    bench.lose()
    bench.up()
    assert bench.write() == [*mute, good]
    bench.ack(9, multiple=True, channel=bench.channels[Lane.MAIN])
    assert bench.write() == aside[2:3]


@pytest.mark.parametrize("seed", range(20))
def test_the_counts_allow_what_an_exact_count_allows(seed: int) -> None:
    """Random traffic to a few destinations: the window is never exceeded, and nothing waits that an exact count would let in."""
    rng = random.Random(seed)
    window = rng.choice((10, 20, 100, 300))
    bench = Bench(max_in_flight=window, max_buffered=10_000, max_buffered_bytes=10**6)
    keys = [f"q{number}" for number in range(rng.randint(1, 6))]
    mute = set(rng.sample(keys, rng.randint(0, len(keys) - 1)))
    open_ones: list[tuple[str, int]] = []

    def write() -> None:
        open_ones.extend((each.envelope.routing_key, each.tag) for each in bench.write())

    for _ in range(300):
        for _ in range(rng.choice((0, 1, 5, 40))):
            bench.accept(routing_key=rng.choice(keys), timeout=math.inf)
        write()
        rng.shuffle(open_ones)
        for key, tag in [each for each in open_ones[: rng.choice((0, 3, 50))] if each[0] not in mute]:
            open_ones.remove((key, tag))
            bench.ack(tag)
        write()
        assert bench.ledger.in_flight == len(open_ones) <= window
        later(bench, rng.choice((0.0, 0.01, 0.3)))
    # Whatever the old counts said: with time, all that may go has gone.
    for _ in range(20):
        later(bench, PATIENCE)
        write()
    free = window - len(open_ones)
    waiting = {each.envelope.routing_key for each in bench.ledger._waiting.live()}
    for routing_key in waiting if free else ():
        held = sum(key == routing_key for key, _ in open_ones)
        assert held
        assert held + 1 >= free
        assert len(open_ones) >= window - window // 10
    while answered := [each for each in open_ones if each[0] not in mute]:
        for key, tag in answered:
            bench.ack(tag)
            open_ones.remove((key, tag))
        later(bench, PATIENCE)
        write()
    waiting = {each.envelope.routing_key for each in bench.ledger._waiting.live()}
    assert waiting <= mute or len(open_ones) == window
    books_balance(bench.ledger, bench.accepted)


def test_messages_set_aside_that_are_cancelled_leave_no_queue_behind() -> None:
    """Each has a destination of its own, as reply queues have; the ledger keeps nothing of them."""
    bench = Bench(max_in_flight=100, max_buffered=200)
    bench.publish(90, routing_key="mute", timeout=math.inf)
    for number in range(20):
        key = f"reply-{number}"
        first = bench.publish(1, routing_key=key)
        second = [bench.accept(routing_key=key, timeout=math.inf) for _ in range(9)]
        assert bench.write() == second[:4]
        later(bench, PATIENCE)
        for each in second[4:]:
            assert bench.ledger.cancel(each)
        for each in [*first, *second[:4]]:
            bench.ack(each.tag)
    assert len(bench.ledger._waiting.aside.queues) == 0
    books_balance(bench.ledger, bench.accepted)


def test_a_stopped_destination_in_front_hides_no_other_one() -> None:
    """Messages of two destinations are set aside; the first of them gets no place, the second one does."""
    bench = Bench(max_in_flight=100, max_buffered=200)
    bench.publish(90, routing_key="mute", timeout=math.inf)
    held = bench.publish(1, routing_key="good", timeout=math.inf)
    mute = [bench.accept(routing_key="mute", timeout=math.inf) for _ in range(2)]
    good = [bench.accept(routing_key="good", timeout=math.inf) for _ in range(9)]
    bench.write()
    later(bench, PATIENCE)
    written = bench.write()
    assert written == good[: len(written)]
    assert [*bench.ledger._waiting.aside.queues] == [("", "mute"), ("", "good")]
    bench.ack(held[0].tag)
    for each in written:
        bench.ack(each.tag)
    later(bench, COUNT_LASTS)
    assert bench.write() == good[len(written) : len(written) + 5]
    assert mute[0].queue is not None
    books_balance(bench.ledger, bench.accepted)


def test_a_second_destination_takes_half_of_the_bytes_that_are_left() -> None:
    """The first one takes nine tenths of the bytes, to the last one; one that holds nothing may take all that are left."""
    bench = Bench(max_in_flight=1000, max_buffered=1000, max_buffered_bytes=10**7, max_in_flight_bytes=100_000)
    mute = [bench.accept(routing_key="mute", body=bytes(30_000)) for _ in range(4)]
    assert bench.write() == mute[:3]
    late = [bench.accept(routing_key="late", body=bytes(1000)) for _ in range(20)]
    later(bench, PATIENCE)
    assert bench.write() == late[:5]
    whole = bench.accept(routing_key="whole", body=bytes(5000))
    assert bench.write() == [whole]
    assert bench.write() == []
    assert bench.ledger._in_flight.size == 100_000


@pytest.mark.parametrize("where", ["resend", "suspects", "introductions"])
def test_messages_that_come_back_keep_their_places(where: str) -> None:
    """In number and in bytes: whatever they wait for, no younger message takes a place of theirs."""
    bench = Bench(max_in_flight=10, max_in_flight_bytes=100)
    exchange = "x" if where == "introductions" else ""
    if exchange:
        bench.ledger.declared(exchange, standard=True)
        covering = bench.accept(exchange=exchange, body=b"")
        bench.write()
        channel = bench.open(Lane.SUSPECT)
        bench.write()
        bench.ack(covering.tag, channel=channel)
    first = [bench.accept(exchange=exchange, routing_key="back", body=bytes(20)) for _ in range(4)]
    assert bench.write() == first
    if where == "suspects":
        bench.close_channel(INTERNAL)
        bench.open(Lane.MAIN)
    else:
        bench.lose()
        bench.begin()
        bench.ledger.link_up(bench.ledger.link)
    window = bench.ledger.window
    assert (window._held(), window._held_size()) == (4, 80)
    assert window.has_place(20)
    assert not window.has_place(21)
    assert not window.has_place(1, beside=[first[0]])
    assert not Bench(max_in_flight=4).ledger.window.has_place(0, beside=first)
    window._count(bench.now)
    assert {key: (held.places, held.size) for key, held in window._held_by.items()} == {(exchange, "back"): (4, 80)}
    assert window._counted == 4


def test_a_count_is_made_again_when_the_channel_is_another_one() -> None:
    """And after a tenth of a second, if anything has changed; otherwise it stays."""
    bench = Bench(max_in_flight=100, max_buffered=200)
    window = bench.ledger.window
    bench.publish(95, routing_key="mute", timeout=math.inf)
    counted = window._counted_at
    assert counted == bench.now
    bench.now += COUNT_LASTS
    assert not window._outdated(bench.now)
    bench.ack(1)
    assert window._outdated(bench.now)
    assert not window._outdated(counted + 0.9 * COUNT_LASTS)
    assert window._outdated(counted - 1.0)
    bench.lose()
    bench.up()
    assert window._outdated(counted)


def test_a_message_above_the_limit_of_bytes_goes_alone() -> None:
    """When nothing else is in flight; beside it goes nothing."""
    bench = Bench(max_in_flight_bytes=10, max_buffered_bytes=1000)
    assert bench.ledger.window.has_place(11)
    small, large = bench.accept(body=b"x"), bench.accept(body=bytes(11))
    assert bench.write() == [small]
    assert not bench.ledger.window.has_place(11)
    bench.ack(1)
    assert bench.write() == [large]
    assert not bench.ledger.window.has_place(0)


def test_the_bytes_of_messages_that_were_passed_count_against_the_buffer() -> None:
    """And a later message of their destination joins them at once, without a wait of its own."""
    bench = Bench(max_in_flight=10, max_buffered=100, max_buffered_bytes=100)
    bench.publish(9, routing_key="mute", body=b"", timeout=math.inf)
    first = bench.accept(routing_key="mute", body=bytes(40), timeout=math.inf)
    good = bench.accept(routing_key="good", body=b"", timeout=math.inf)
    assert bench.write() == []
    later(bench, PATIENCE)
    assert bench.write() == [good]
    assert (bench.ledger.full(60), bench.ledger.full(61)) == (False, True)
    second = bench.accept(routing_key="mute", body=bytes(10), timeout=math.inf)
    other = bench.accept(routing_key="other", body=b"", timeout=math.inf)
    bench.ack(good.tag)
    assert bench.write() == [other]
    assert bench.ledger._waiting.aside.live() == [first, second]
    assert (bench.ledger.full(50), bench.ledger.full(51)) == (False, True)
