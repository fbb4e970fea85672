"""Aside: the messages that were passed, one queue for each destination."""

from __future__ import annotations

from tests.ledger.driving import Bench
from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.aside import Aside

MUTE, LATE = ("", "mute"), ("", "late")


def messages(*sizes: int) -> list[Delivery]:
    """Return messages whose bodies have these sizes."""
    bench = Bench(up=False)
    return [bench.accept(body=bytes(size)) for size in sizes]


def counts(aside: Aside) -> tuple[int, int]:
    """Return the number of messages and their bytes."""
    return aside.count, aside.size


def test_it_counts_all_messages_and_those_of_each_destination() -> None:
    """Those that left the queue are not counted; an empty queue is like none."""
    aside, (first, second, other) = Aside(), messages(1, 2, 4)
    assert (counts(aside), aside.held(MUTE), aside.has(MUTE), aside.passed) == ((0, 0), (0, 0), False, False)
    aside.add(MUTE, first)
    aside.add(MUTE, second)
    aside.add(LATE, other)
    assert counts(aside) == (3, 7)
    assert (aside.held(MUTE), aside.held(LATE)) == ((2, 3), (1, 4))
    assert (aside.has(MUTE), aside.has(LATE), aside.has(("x", "mute"))) == (True, True, False)
    assert aside.live() == [first, second, other]
    aside.passed = True
    aside.queues[MUTE].remove(first)
    aside.queues[MUTE].take_head()
    assert (counts(aside), aside.has(MUTE), aside.held(MUTE), aside.passed) == ((1, 4), False, (0, 0), True)


def test_nobody_is_passed_once_it_is_empty() -> None:
    """The last message that leaves takes the empty queues with it."""
    aside, (only,) = Aside(), messages(5)
    aside.add(MUTE, only)
    aside.passed = True
    aside.queues[MUTE].remove(only)
    assert (counts(aside), aside.passed, aside.queues) == ((0, 0), False, {})


def test_all_are_taken_destination_by_destination() -> None:
    """They stand in no queue then, and nobody was passed."""
    aside, (first, other, second) = Aside(), messages(1, 2, 4)
    for destination, each in ((MUTE, first), (LATE, other), (MUTE, second)):
        aside.add(destination, each)
    aside.passed = True
    assert aside.take_all() == [first, second, other]
    assert [each.queue for each in (first, second, other)] == [None] * 3
    assert (counts(aside), aside.passed, aside.queues) == ((0, 0), False, {})
