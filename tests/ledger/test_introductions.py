"""Introductions by themselves: which message may be written as one, which goes to the main channel, and in which order."""

from __future__ import annotations

import math
from collections import defaultdict
from random import Random

import pytest
from attrs import define, field

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.introductions import (
    AT_ONCE,
    AT_ONCE_FIRST,
    PASSES_AFTER,
    SUSPECT_PASSES_AFTER,
    Introductions,
    Key,
    passes_at,
)
from warrener.records import Envelope

#: Exchanges, and topics of them.
KEYS: tuple[Key, ...] = ("a", "b", "c", "d", "e", "f", ("a", "k"), ("b", "k"))


def message(key: Key, attempts: int = 0, size: int = 1) -> Delivery:
    exchange, routing_key = (key, "q") if isinstance(key, str) else key
    delivery = Delivery(Envelope(exchange=exchange, routing_key=routing_key), b"x" * size, "m", math.inf)
    delivery.attempts = attempts
    return delivery


@define
class Model:
    """The messages that wait by key, and the keys that are opened, under way or covered, without an order of the keys."""

    waiting: dict[Key, list[Delivery]] = field(factory=lambda: defaultdict(list))
    opened: list[Key] = field(factory=list)
    covered: set[str] = field(factory=lambda: {""})
    under_way: dict[Key, Delivery] = field(factory=dict)
    at_once: int = AT_ONCE_FIRST

    def came(self, key: Key) -> None:
        if key in self.covered and key not in self.opened:
            self.opened.append(key)

    def cover(self, key: Key) -> None:
        self.under_way.pop(key, None)
        self.at_once = min(AT_ONCE, self.at_once + 1)
        if isinstance(key, str):
            self.covered.add(key)
        if self.waiting[key] and key not in self.opened:
            self.opened.append(key)

    def ready(self) -> list[Delivery]:
        """Return the messages that may go to the main channel now, in order: those of one key."""
        while self.opened and not self.waiting[self.opened[0]]:
            self.opened.pop(0)
        return self.waiting[self.opened[0]] if self.opened else []

    def due(self) -> list[Delivery]:
        """Return the messages one of which may be introduced now: the first of each key."""
        if len(self.under_way) >= self.at_once:
            return []
        keys = [key for key in self.waiting if key not in self.opened and key not in self.under_way]
        return [self.waiting[key][0] for key in keys if self.waiting[key]]

    def all(self) -> list[Delivery]:
        return [each for group in self.waiting.values() for each in group]


def compare(introductions: Introductions, model: Model) -> None:
    everyone = model.all()
    unsent = [each.size for each in everyone if not each.attempts]
    tagged = [each.size for each in everyone if each.attempts]
    assert len(introductions) == len(everyone)
    assert (introductions.unsent, introductions.unsent_size) == (len(unsent), sum(unsent))
    assert (introductions.tagged, introductions.tagged_size) == (len(tagged), sum(tagged))
    live = introductions.live()
    assert len(live) == len(everyone)
    for key, group in model.waiting.items():
        assert [each for each in live if each in group] == group
        assert introductions.covers(key) == (key in model.covered)
    ready, main = introductions.ready(), model.ready()
    assert (None if ready is None else ready.head()) is (main[0] if main else None)
    due, firsts = introductions.due(), model.due()
    assert due.head() in firsts if due is not None else not firsts
    assert introductions.waiting or not firsts


STEPS: dict[str, float] = {
    "add": 8,
    "put back": 2,
    "introduce": 5,
    "write": 4,
    "answer": 4,
    "other": 1,
    "cancel": 2,
    "close": 1,
}
STEPS |= {"refuse": 2, "link": 0.5}


def tell(step: str, key: Key, introductions: Introductions, model: Model) -> None:
    """Tell both what the broker said of a key that is perhaps not under way, or of the channel, or that a link begins."""
    match step:
        case "other":
            introductions.answered(message(key))
            exchange = key if isinstance(key, str) else key[0]
            if exchange not in model.covered:
                model.cover(exchange)
        case "refuse" if isinstance(key, str):
            introductions.refused(key)
            model.covered.discard(key)
            if key in model.opened:
                model.opened.remove(key)
        case "close":
            introductions.channel_closed()
            model.under_way.clear()
            model.at_once = 1
        case "link":
            introductions.new_link()
            model.covered, model.opened, model.at_once = {""}, [], AT_ONCE_FIRST
            model.under_way.clear()
        case _:
            pass


@pytest.mark.parametrize("seed", range(8))
def test_introductions_are_what_a_naive_model_says(seed: int) -> None:
    """The counts, the order within a key, the number that is under way, and who may go where, after each step."""
    random = Random(seed)
    introductions, model = Introductions(), Model()
    for _ in range(250):
        key = random.choice(KEYS)
        match random.choices([*STEPS], [*STEPS.values()])[0]:
            case "add":
                delivery = message(key, random.choice([0, 0, 0, 1]), random.randint(1, 9))
                introductions.add(key, delivery)
                model.came(key)
                model.waiting[key].append(delivery)
            case "put back":
                group = [message(key, 1, random.randint(1, 9)) for _ in range(random.randint(1, 3))]
                introductions.put_back(key, group)
                model.came(key)
                model.waiting[key][:0] = group
            case "introduce":
                queue = introductions.due()
                if queue is not None and (head := queue.head()) is not None:
                    (key,) = (each for each, group in model.waiting.items() if head in group)
                    queue.take_head()
                    introductions.begin(key, head)
                    model.waiting[key].pop(0)
                    model.under_way[key] = head
                    assert introductions.under_way(head) == key
            case "write":
                queue = introductions.ready()
                if queue is not None:
                    queue.take_head()
                    model.ready().pop(0)
            case "answer" if model.under_way:
                key = random.choice([*model.under_way])
                introductions.answered(model.under_way[key])
                model.cover(key)
            case "cancel" if everyone := model.all():
                delivery = random.choice(everyone)
                assert delivery.queue is not None
                delivery.queue.remove(delivery)
                for group in model.waiting.values():
                    if delivery in group:
                        group.remove(delivery)
            case step:
                tell(step, key, introductions, model)
        compare(introductions, model)


def test_only_the_default_exchange_needs_no_introduction() -> None:
    """Before the first link and on each link, also after a refusal of it on an earlier one."""
    introductions = Introductions()
    assert introductions.covers("")
    assert not introductions.covers("a")
    introductions.refused("")
    assert not introductions.covers("")
    introductions.new_link()
    assert introductions.covers("")


def introduced(introductions: Introductions) -> list[str]:
    """Introduce the first message of every key, one after the other, and return their exchanges in order."""
    order: list[str] = []
    while (queue := introductions.due()) is not None and (head := queue.head()) is not None:
        queue.take_head()
        order.append(head.envelope.exchange)
    return order


@pytest.mark.parametrize("back", ["a", "b", "d"])
def test_an_exchange_whose_messages_come_back_is_introduced_first(back: str) -> None:
    """The exchange may be the first, one in the middle or the last; the others keep their order."""
    introductions = Introductions()
    for key in "abcd":
        introductions.add(key, message(key))
    introductions.put_back(back, [message(back, 1)])

    assert introduced(introductions) == [back, back, *(key for key in "abcd" if key != back)]


def test_an_exchange_that_comes_back_alone_is_introduced_first() -> None:
    """No message to it waits when its messages come back."""
    introductions = Introductions()
    for key in "abc":
        introductions.add(key, message(key))
    introductions.put_back("d", [message("d", 1)])

    assert introduced(introductions) == ["d", "a", "b", "c"]


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_refused_exchange_is_no_longer_known_on_the_next_link(refused: bool, before: bool) -> None:
    """A known exchange comes first, whether its message waits before the link begins or comes later."""
    introductions = Introductions()
    introductions.answered(message("c"))
    if refused:
        introductions.refused("c")
    keys = "abcd"
    if before:
        for key in keys:
            introductions.add(key, message(key))
    introductions.new_link()
    introductions.new_link()  # an exchange stays known although nothing was written on a link
    if not before:
        for key in keys:
            introductions.add(key, message(key))

    assert introduced(introductions) == (["a", "b", "c", "d"] if refused else ["c", "a", "b", "d"])


def test_a_refusal_of_a_known_exchange_is_told_on_a_later_link() -> None:
    """Covered on the first link, refused on the second one, unknown on the third one."""
    introductions = Introductions()
    introductions.answered(message("b"))
    introductions.new_link()
    introductions.refused("b")
    introductions.new_link()
    for key in "ab":
        introductions.add(key, message(key))

    assert introduced(introductions) == ["a", "b"]


@pytest.mark.parametrize(("alone", "seconds"), [(False, PASSES_AFTER), (True, SUSPECT_PASSES_AFTER)])
@pytest.mark.parametrize("floor", [-math.inf, 90.0, 110.0])
def test_the_time_of_an_introduction_begins_when_the_broker_can_read(alone: bool, seconds: float, floor: float) -> None:
    """The later one of the two instants counts."""
    delivery = message("a")
    delivery.published_at, delivery.alone = 100.0, alone

    assert passes_at(delivery, floor) == max(100.0, floor) + seconds
