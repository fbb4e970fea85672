"""Shares: an unhealthy destination holds at most a tenth of each limit; and who crowds others out of the buffer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.ledger.driving import Bench
from warrener._publishing.ledger.shares import COUNT_LASTS
from warrener._publishing.ledger.waiting import PATIENCE

MUTE, GOOD = ("", "mute"), ("", "good")


def admitted(bench: Bench, destination: tuple[str, str], size: int = 4) -> int:
    """Return how many messages are still within the share; each is asked about, and accepted by nobody."""
    number = 0
    while number < 1000 and not bench.ledger.share_used(destination, size, bench.now):
        number += 1
    return number


LIMITS: list[tuple[dict[str, Any], int, int]] = [
    ({"max_in_flight": 50, "max_buffered": 1000}, 4, 5),
    ({"max_in_flight": 1000, "max_buffered": 70}, 4, 7),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_in_flight_bytes": 200, "max_buffered_bytes": 9999}, 4, 5),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_in_flight_bytes": 9999, "max_buffered_bytes": 280}, 4, 7),
    ({"max_in_flight": 3, "max_buffered": 3}, 4, 1),
    ({"max_in_flight": 1000, "max_buffered": 3}, 4, 1),
    ({"max_in_flight": 3, "max_buffered": 1000}, 4, 1),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_in_flight_bytes": 5}, 1, 1),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_buffered_bytes": 5}, 1, 1),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_in_flight_bytes": 5}, 2, 0),
    ({"max_in_flight": 1000, "max_buffered": 1000, "max_buffered_bytes": 5}, 2, 0),
]


@pytest.mark.parametrize(("limits", "size", "share"), LIMITS)
def test_a_share_is_a_tenth_of_each_limit_and_at_least_one_message(
    limits: dict[str, Any], size: int, share: int
) -> None:
    """The smallest of the four limits decides. The messages that were asked about count, before they are accepted."""
    bench = Bench(**limits)
    assert admitted(bench, MUTE, size) == share
    assert admitted(bench, MUTE, size) == 0
    assert admitted(bench, GOOD, size) == share


@pytest.mark.parametrize("waiting", [True, False])
def test_messages_count_that_wait_or_are_in_flight(waiting: bool) -> None:
    """With their bytes; those to other destinations do not."""
    bench = Bench(
        up=not waiting, max_in_flight=100, max_buffered=100, max_buffered_bytes=2000, max_in_flight_bytes=2000
    )
    bench.publish(4, routing_key="mute", body=b"x" * 10)
    bench.publish(3, routing_key="mute", exchange="other")
    bench.publish(5, routing_key="good")
    assert admitted(bench, MUTE, 1) == 6
    bench.now += COUNT_LASTS
    assert admitted(bench, MUTE, 40) == 4
    bench.now += COUNT_LASTS
    assert admitted(bench, MUTE, 41) == 3
    bench.now += COUNT_LASTS
    assert admitted(bench, GOOD, 1) == 5


def test_a_count_is_used_for_a_tenth_of_a_second() -> None:
    """Then the messages are counted again: one that has ended makes room, one that was only asked about takes none."""
    bench = Bench(max_in_flight=100, max_buffered=100)
    mine = bench.publish(10, routing_key="mute")
    assert admitted(bench, MUTE) == 0
    bench.ack(mine[3].tag, multiple=True)
    bench.now += 0.9 * COUNT_LASTS
    assert admitted(bench, MUTE) == 0
    bench.now += 0.1 * COUNT_LASTS
    assert admitted(bench, MUTE) == 4
    assert admitted(bench, MUTE) == 0
    bench.now += COUNT_LASTS
    assert admitted(bench, MUTE) == 4
    bench.now -= 2 * COUNT_LASTS  # a count of later than now is not used either
    assert admitted(bench, MUTE) == 4


def crowd(limit: int, held: int, **limits: Any) -> Bench:
    """Return a bench whose window is full of messages to a mute queue, which `held` others wait for, and were passed."""
    bench = Bench(max_in_flight=20, max_buffered=limit, **limits)
    for _ in range(18 + held):
        bench.accept(routing_key="mute", timeout=math.inf)
    bench.write()
    bench.accept(routing_key="good")
    for _ in range(3):
        bench.now += PATIENCE / 2
        bench.ledger.look(bench.now, lambda _channel: 100)
        bench.write()
    return bench


def test_a_destination_that_others_have_passed_leaves_a_tenth_of_the_buffer() -> None:
    """It may hold nine tenths, in number and in bytes; another destination is not held up."""
    bench = crowd(100, 89)
    assert bench.ledger.buffered == 89
    assert not bench.ledger.crowds(MUTE, 4)
    bench = crowd(100, 90)
    assert bench.ledger.crowds(MUTE, 4)
    assert not bench.ledger.crowds(GOOD, 4)
    bench = crowd(100, 20, max_buffered_bytes=1000)
    assert not bench.ledger.crowds(MUTE, 820)
    assert bench.ledger.crowds(MUTE, 821)
    assert not bench.ledger.crowds(GOOD, 1000)


def test_nobody_crowds_before_others_have_passed() -> None:
    """A program that fills its buffer with messages to one queue hurts nobody else."""
    bench = Bench(max_in_flight=20, max_buffered=100)
    for _ in range(18 + 95):
        bench.accept(routing_key="mute", timeout=math.inf)
    bench.write()
    assert bench.ledger.buffered == 95
    assert not bench.ledger.crowds(MUTE, 4)
    assert not crowd(9, 9).ledger.crowds(MUTE, 4)
    assert crowd(10, 9).ledger.crowds(MUTE, 4)


def test_old_counts_are_forgotten() -> None:
    """A program with many unhealthy destinations keeps no count of each."""
    bench = Bench(max_in_flight=100, max_buffered=100)
    for number in range(50):
        bench.ledger.share_used(("", f"q{number}"), 4, bench.now)
    bench.now += 2 * COUNT_LASTS
    bench.ledger.share_used(MUTE, 4, bench.now)
    assert len(bench.ledger._shares._counts) == 1
