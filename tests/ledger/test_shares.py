"""A destination that never answers and fills the window: the others get their places when it is known to be unhealthy."""

from __future__ import annotations

import math

import pytest

from warrener.errors import DeadlineExceeded
from warrener.records import Lane, Receipt

from .driving import Bench


@pytest.mark.parametrize("burst", [100, 150, 190])
def test_a_burst_to_a_mute_queue_does_not_keep_the_window(burst: int) -> None:
    """From `confirm_timeout` on, others are written and confirmed on the same link; the rest of the burst waits beside them."""
    bench = Bench(max_in_flight=100, max_buffered=200, confirm_timeout=5.0)
    mute = [bench.accept(routing_key="mute", timeout=math.inf) for _ in range(burst)]
    assert bench.write() == mute[:100]
    good = [bench.accept(routing_key="good") for _ in range(5)]
    assert bench.write() == []
    bench.now += 5.0
    bench.ledger.look(bench.now, lambda _: 100)
    assert not bench.ledger.silent(bench.now)
    assert bench.write() == good
    for each in good:
        bench.ack(each.tag)
    assert {type(each.outcome) for each in good} == {Receipt}
    assert not bench.ledger.full(4)
    # Later ones need no look of their own.
    more = bench.publish(20, routing_key="good")
    assert [each.tag for each in more] == list(range(106, 126))
    for each in more:
        bench.ack(each.tag)
    # When it answers again, its messages go on in their order.
    bench.now += 1.0
    bench.ack(100, multiple=True)
    bench.ledger.look(bench.now, lambda _: 125)
    assert bench.write() == mute[100:]


def test_a_mute_link_is_silent_all_the_same() -> None:
    """The others had `confirm_timeout` to be answered; the link is silent when they were not."""
    bench = Bench(max_in_flight=10, confirm_timeout=5.0)
    bench.publish(10, routing_key="mute", timeout=math.inf)
    good = bench.accept(routing_key="good", timeout=math.inf)
    bench.now += 5.0
    bench.ledger.look(bench.now, lambda _: 10)
    assert bench.write() == [good]
    bench.now += 4.9
    bench.ledger.look(bench.now, lambda _: 11)
    assert not bench.ledger.silent(bench.now)
    bench.now += 0.1
    bench.ledger.look(bench.now, lambda _: 11)
    assert bench.ledger.silent(bench.now)


def test_the_window_is_bounded_in_bytes_too() -> None:
    """64 MiB in few messages are a full window as well; what is in flight stays below twice the limit."""
    bench = Bench(max_in_flight=1000, max_buffered=1000, confirm_timeout=5.0)
    limits = bench.ledger._waiting.limits
    body = bytes(limits.max_in_flight_bytes // 4)
    bench.ledger._waiting.limits = type(limits)(1000, 1 << 40, 1000, limits.max_in_flight_bytes)
    mute = [bench.accept(routing_key="mute", body=body, timeout=math.inf) for _ in range(6)]
    assert bench.write() == mute[:4]
    good = bench.accept(routing_key="good", body=b"small", timeout=math.inf)
    bench.now += 5.0
    bench.ledger.look(bench.now, lambda _: 4)
    assert bench.write() == [good]


def test_parked_messages_keep_their_deadlines_and_come_back_with_a_new_link() -> None:
    """They are counted, cancelled and ended as all others are."""
    bench = Bench(max_in_flight=10, max_buffered=100, confirm_timeout=5.0)
    mute = bench.publish(10, routing_key="mute", timeout=math.inf)
    parked = [bench.accept(routing_key="mute", timeout=6.0) for _ in range(2)]
    parked += [bench.accept(routing_key="mute", timeout=60.0) for _ in range(2)]
    good = bench.accept(routing_key="good", timeout=math.inf)
    bench.now += 5.0
    bench.ledger.look(bench.now, lambda _: 10)
    assert bench.write() == [good]
    assert bench.ledger.buffered == 4
    assert bench.ledger.cancel(parked[3])
    bench.now += 1.0
    assert bench.ledger.expire(bench.now) == parked[:2]
    assert {type(each.outcome) for each in parked[:2]} == {DeadlineExceeded}
    bench.lose()
    bench.up()
    assert bench.write() == [*mute, good]
    bench.ack(11, multiple=True, channel=bench.channels[Lane.MAIN])
    assert bench.write() == parked[2:3]
