"""Messages that wait for an instant: their shares of the buffer, their order, and what is kept of those that left."""

from __future__ import annotations

import math
from random import Random

import pytest

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.delayed import Delayed
from warrener._publishing.ledger.queues import SLACK
from warrener.records import Envelope


def message(key: str = "q", size: int = 1) -> Delivery:
    return Delivery(Envelope(routing_key=key), b"x" * size, "m", math.inf)


@pytest.mark.parametrize(
    ("held", "size", "fits"),
    [
        ([("q", 60)], 40, True),  # a tenth of the bytes, to the last one
        ([("q", 60)], 41, False),
        ([("p", 60)], 100, True),
        ([], 101, True),  # a larger message may wait alone
        ([("p", 100)] * 4, 100, True),  # half of the bytes for all destinations
        ([("p", 100)] * 4, 101, False),
        ([("q", 1)] * 9, 1, True),
        ([("q", 1)] * 10, 1, False),
        ([(f"p{number}", 1) for number in range(49)], 1, True),
        ([(f"p{number}", 1) for number in range(50)], 1, False),
    ],
)
def test_a_message_fits_up_to_the_last_byte_of_its_share(held: list[tuple[str, int]], size: int, fits: bool) -> None:
    """100 messages and 1000 bytes: a tenth for each destination, half for all of them."""
    delayed = Delayed(100, 1000)
    for key, each in held:
        delayed.add(message(key, each), 1.0)
    assert delayed.fits(message("q", size)) == fits


@pytest.mark.parametrize("seed", range(3))
def test_messages_are_due_in_order_although_most_of_them_left(seed: int) -> None:
    """The earliest one first, those of one instant in the order of `add`; the dead entries stay fewer than the bound."""
    random = Random(seed)
    delayed, waiting = Delayed(10_000, 10_000), list[tuple[float, int, Delivery]]()
    for number in range(600):
        each = message(f"q{number % 3}")
        ready_at = float(random.randrange(20))
        delayed.add(each, ready_at)
        waiting.append((ready_at, number, each))
        if random.random() < 0.9:
            left = waiting.pop(random.randrange(len(waiting)))[2]
            delayed.remove(left)
            assert len(delayed._heap) <= 2 * len(waiting) + SLACK + 1
        first = min(waiting, default=(math.inf, 0, None))
        assert delayed.due_at() == first[0]
        assert delayed.due(1000.0) is first[2]
        assert len(delayed) == delayed.size == len(waiting)
    while waiting:
        ready_at, _, each = first = min(waiting)
        assert delayed.due(ready_at - 1.0) is None
        assert delayed.due(ready_at) is each
        delayed.remove(each)
        waiting.remove(first)
    assert delayed.due_at() == math.inf
