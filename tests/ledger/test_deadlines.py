"""The ordered structure of deadlines stays small, and cost per message does not grow with what is in flight."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener._publishing import ledger
from warrener.errors import DeadlineExceeded

from .driving import Bench, books_balance, returned_of

#: The folder of the ledger's files.
_LEDGER = str(Path(ledger.__file__).parent)


def held(bench: Bench) -> int:
    """Return how many deadlines are held, dead ones included."""
    return len(bench.ledger.settlement.deadlines)


@pytest.mark.slow
def test_a_hundred_thousand_settled_publishes_leave_no_deadline_behind() -> None:
    """Never more than twice what waits, and 64, though two early deadlines keep their places all the time."""
    rng = random.Random(1)
    bench = Bench()
    bench.publish(1, timeout=1_000.0)
    bench.publish(1, timeout=900.0)  # out of order
    waiting = 2
    most = 0
    for _ in range(100_000):
        bench.now += 0.001
        bench.publish(1, timeout=rng.choice((2_000.0, 3_000.0, 3_600.0, math.inf)))
        waiting += 1
        if waiting == 50:
            # Newest first, so that nothing leaves from the front.
            for tag in range(bench.last_tag[1], bench.last_tag[1] - 48, -1):
                assert len(bench.ack(tag)) == 1
                waiting -= 1
                most = max(most, held(bench))
                assert held(bench) <= 2 * waiting + 64
    assert most > 100  # the bound was tried
    assert bench.ledger.next_wakeup(1e9) == 1_000.0


@pytest.mark.parametrize("seed", range(2))
def test_mixed_timeouts_answers_and_lapses_stay_bounded(seed: int) -> None:
    """Answers in any order, lapses and a window that fills up: the same bound, and nothing once nothing waits."""
    rng = random.Random(seed)
    bench = Bench(max_buffered=10**6, max_buffered_bytes=10**9, max_in_flight=1_000)
    waiting = {bench.publish(1, timeout=1e9)[0]}
    for _ in range(20_000):
        bench.now += 0.001
        waiting.add(bench.accept(timeout=rng.choice((0.5, 5.0, 60.0, 3600.0, math.inf))))
        bench.write()
        waiting.difference_update(bench.ledger.expire(bench.now))
        top = bench.last_tag[1]
        if rng.random() < 0.9:
            waiting.difference_update(bench.ack(top - rng.randrange(min(top - 1, 200)) if top > 2 else 2))
        assert held(bench) <= 2 * len(waiting) + 64
    for _ in range(len(waiting)):
        waiting.difference_update(bench.ack(bench.last_tag[1], multiple=True))
        bench.write()
        if not bench.ledger.pending:
            break
    assert waiting == set()
    assert held(bench) == 0


def test_what_settles_in_order_leaves_in_order() -> None:
    """With one timeout and answers in order, no dead entry is kept at all."""
    bench = Bench(max_in_flight=10)
    for _ in range(1_000):
        bench.now += 0.1
        bench.publish(1)
        bench.ack(bench.last_tag[1])
        assert held(bench) == 0


@given(st.lists(st.floats(0, 10) | st.just(math.inf), max_size=200), st.lists(st.floats(0, 10), max_size=20))
def test_deadlines_pass_exactly_when_they_are_due(timeouts: list[float], ticks: list[float]) -> None:
    """After `expire(now)` nothing waits whose deadline is not after now, and nothing else was resolved (I19)."""
    bench = Bench(up=False, max_buffered=1_000)
    for timeout in timeouts:
        bench.accept(timeout=timeout)
    for tick in sorted(ticks):
        now = 100.0 + tick
        due = {each for each in bench.accepted if each.waiting and each.deadline <= now}
        resolved = bench.ledger.expire(now)
        assert set(resolved) == due
        assert [each.deadline for each in resolved] == sorted(each.deadline for each in resolved)
        assert all(isinstance(each.outcome, DeadlineExceeded) for each in resolved)
        left = [each.deadline for each in bench.accepted if each.waiting]
        assert bench.ledger.next_wakeup() == min(left, default=math.inf)
        # A second tick at the same instant, and one before the next wake-up, do nothing (I20).
        assert bench.ledger.expire(now) == []
        assert bench.ledger.expire(math.nextafter(bench.ledger.next_wakeup(), 0)) == []
    books_balance(bench.ledger, bench.accepted)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 5.0]), st.integers(0, 50)), max_size=60))
def test_cancelled_deadlines_do_not_wake_anybody(steps: list[tuple[float, int]]) -> None:
    """A caller who left has no deadline any more."""
    bench = Bench(up=False, max_buffered=1_000)
    for timeout, victim in steps:
        bench.accept(timeout=timeout)
        bench.ledger.cancel(bench.accepted[victim % len(bench.accepted)])
        left = [each.deadline for each in bench.accepted if each.waiting]
        assert bench.ledger.next_wakeup() == min(left, default=math.inf)
        assert held(bench) <= 2 * len(left) + 64


def acked(bench: Bench, number: int) -> None:
    bench.publish(1)
    bench.ack(number, multiple=number % 2 == 0)


def refused(bench: Bench, number: int) -> None:
    bench.publish(1)
    bench.nack(number)


def returned(bench: Bench, number: int) -> None:
    (delivery,) = bench.publish(1, token=f"t{number}")
    bench.bounce(delivery)
    bench.ack(number)


def in_doubt(bench: Bench, number: int) -> None:
    (delivery,) = bench.publish(1, message_id="same", routing_key="q")
    bench.ledger.answers.returned(1, returned_of(delivery, token="foreign", message_id=None))
    bench.ledger.answers.returned(1, returned_of(delivery, token="foreign"))
    bench.ack(number)


def cancelled_in_flight(bench: Bench, number: int) -> None:
    (delivery,) = bench.publish(1, timeout=30.0 + number % 7)  # out of order, too
    bench.ledger.cancel(delivery)
    bench.ack(number)


def cancelled_in_the_buffer(bench: Bench, number: int) -> None:
    delivery = bench.accept(timeout=30.0 + number % 7)
    bench.ledger.cancel(delivery)


def work_per_message(window: int, message: Callable[[Bench, int], None], *, before: int = 0) -> float:
    """Count the instructions of the ledger that run per message, `window` in flight, after `before` others; no time."""
    bench = Bench(max_buffered=20_000, max_buffered_bytes=10**9, max_in_flight=20_000)
    bench.publish(window, message_id="same" if message is in_doubt else None)
    bench.bounce(bench.accepted[-1])  # from the first return on there is an index, too
    if message is in_doubt:
        in_doubt(bench, window + 1)  # puts all that are in flight in doubt, once
        before += 1
    for number in range(1, before + 1):
        message(bench, number)
    instructions = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal instructions
        if not frame.f_code.co_filename.startswith(_LEDGER):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        instructions += event == "opcode"
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        for number in range(before + 1, before + 201):
            message(bench, number)
            bench.ledger.next_wakeup()
    finally:
        sys.settrace(tracer)
    return instructions / 200


MESSAGES = [acked, refused, returned, in_doubt, cancelled_in_flight, cancelled_in_the_buffer]


@pytest.mark.parametrize("message", MESSAGES)
def test_two_thousand_in_flight_cost_as_much_per_message_as_two_hundred(
    message: Callable[[Bench, int], None],
) -> None:
    """No walk over what is in flight hides in the path of a message, whatever becomes of it."""
    assert work_per_message(2_000, message) <= 1.1 * work_per_message(200, message)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_thousandth_message_costs_as_much_as_the_first(message: Callable[[Bench, int], None]) -> None:
    """Nor a walk over what was in flight and is settled; what is cleaned up now and then stays cheap on average."""
    assert work_per_message(300, message, before=2_000) <= 2 * work_per_message(300, message)
