"""One channel beside a model that keeps every tag by itself: what is outstanding, what is oldest, and what a return finds."""

from __future__ import annotations

import random

import pytest
from attrs import define

from tests.ledger.driving import returned_of
from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.flights import Flight, Ticket
from warrener.records import Envelope, Lane

KEYS = [Envelope(routing_key="a"), Envelope(routing_key="b"), Envelope(routing_key="a", mandatory=False)]


@define
class Open:
    """One outstanding tag, as the model knows it."""

    envelope: Envelope
    size: int
    written_at: float
    #: Its message_id, if it was written alone.
    message_id: str | None
    overdue: bool = False


class Channel:
    """An epoch, and the model of it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.deadlines = Deadlines()
        self.epoch = Epoch(Lane.MAIN, 1, self.deadlines)
        self.model: dict[int, Open] = {}
        self.flights: list[Flight] = []
        self.last = 0
        self.checked = 0
        self.now = 100.0

    def add(self) -> None:
        """Write one message alone."""
        self.last += 1
        envelope, body = self.rng.choice(KEYS), b"x" * self.rng.randint(0, 3)
        delivery = Delivery(envelope, body, f"m{self.last}", 200.0, self.rng.choice((None, f"t{self.last}")))
        self.deadlines.add(delivery)
        delivery.attempts = 1
        self.epoch.add(delivery, self.last, self.now)
        self.model[self.last] = Open(envelope, len(body), self.now, delivery.message_id)

    def fly(self) -> None:
        """Write several messages together."""
        count = self.rng.choice((1, 2, 5, 9))
        gone = self.rng.choice((0, 0, 2))
        flight = Flight("f", 100 * self.last, 1.0, 200.0, self.now)
        one = self.rng.choice((None, self.rng.choice(KEYS)))
        flight.envelopes = [one or self.rng.choice(KEYS) for _ in range(gone + count)]
        flight.bodies = [b""] * gone + [b"x" * self.rng.randint(0, 3) for _ in range(count)]
        flight.tickets = [Ticket() for _ in flight.bodies]
        flight.size = sum(map(len, flight.bodies))
        flight.at = gone
        self.deadlines.add(flight)
        self.epoch.fly(flight, self.last + 1, 7, self.now)
        assert (flight.link, flight.published_at) == (7, self.now)
        for index in range(gone, len(flight)):
            self.last += 1
            self.model[self.last] = Open(flight.envelopes[index], len(flight.bodies[index]), self.now, None)
        self.flights.append(flight)

    def answer(self, tag: int, multiple: bool) -> None:
        """The broker answers; what is taken out is exactly what was outstanding up to there."""
        epoch = self.epoch
        known = 0 < tag <= self.last
        if known:
            self.checked = max(self.checked, tag)
        covered = {each for each in self.model if (each <= tag if multiple and known else each == tag)}
        flown = []
        for flight, start, stop in epoch.land(tag, multiple):
            assert start < stop
            flown += [flight.first_tag + index for index in range(start, stop)]
            flight.take(start, stop)
        alone = epoch.take(tag, multiple)
        tags = [each.tag for each in alone]
        assert tags == sorted(tags)
        assert flown == sorted(flown)
        assert sorted(flown + tags) == sorted(covered)
        for each in alone:
            each.epoch = None
            each.waiting = False
        self.deadlines.forget(len(alone))
        for one in covered:
            del self.model[one]

    def expand(self) -> None:
        """Make deliveries of one flight, or of all."""
        flights = list(self.epoch.flights)
        if flights and self.rng.random() < 0.5:
            one = self.rng.choice(flights)
            self.epoch.expand(one)
            assert one not in self.epoch.flights
        else:
            self.epoch.expand()
            assert not self.epoch.flights

    def find_overdue(self) -> None:
        """Find what the timer finds: first of all the oldest, of those that were written alone."""
        delivery = self.epoch.unwatched()
        alone = [tag for tag in sorted(self.model) if tag in self.epoch.outstanding and not self.model[tag].overdue]
        assert (None if delivery is None else delivery.tag) == (alone[0] if alone else None)
        if delivery is not None and self.rng.random() < 0.5:
            self.epoch.watched = delivery.tag
            delivery.overdue = self.model[delivery.tag].overdue = True

    def check(self) -> None:
        """Compare all that the epoch says with the model."""
        epoch, model = self.epoch, self.model
        assert (epoch.last, epoch.checked, len(epoch)) == (self.last, self.checked, len(model))
        flown = {tag for tag in range(-1, self.last + 3) if epoch.flying(tag)}
        assert flown == model.keys() - epoch.outstanding.keys()
        assert epoch.flown == len(flown)
        assert list(epoch.outstanding) == sorted(epoch.outstanding)
        here = {each.first_tag + index for each in epoch.flights for index in range(each.at, len(each))}
        assert epoch.holes == here - flown, "a tag that was answered is kept only while its flight is"
        assert len(epoch.holes) <= 2 * len(epoch) + 64
        for tag, each in epoch.outstanding.items():
            assert (each.tag, each.epoch, each.envelope, each.size) == (
                tag,
                epoch,
                model[tag].envelope,
                model[tag].size,
            )
            assert (each.published_at, each.attempts) == (model[tag].written_at, 1)
        if not epoch.holes:
            alike = [len(set(each.envelopes)) == 1 for each in epoch.flights]
            left = [len(each) - each.at for each in epoch.flights]
            # A flight to one destination is counted at once.
            entries = [1 if same else number for same, number in zip(alike, left, strict=True)]
            assert sum(1 for _ in epoch.held()) == len(epoch.outstanding) + sum(entries)
        places = {each: [0, 0] for each in KEYS}
        for envelope, count, size in epoch.held():
            places[envelope][0] += count
            places[envelope][1] += size
        for key, (count, size) in places.items():
            mine = [each.size for each in model.values() if each.envelope == key]
            assert (count, size) == (len(mine), sum(mine))
        oldest, alone = epoch.oldest(), min(epoch.outstanding, default=None)
        assert (None if oldest is None else oldest.tag) == alone
        assert epoch.oldest_at() == min((each.written_at for each in model.values()), default=None)
        new = [each.written_at for tag, each in model.items() if tag in flown or not each.overdue]
        assert epoch.unwatched_at() == min(new, default=None)
        waiting = [each for each in self.flights if each.waiting]
        assert waiting == list(epoch.flights)
        assert self.deadlines._live == len(epoch.outstanding) + len(waiting)

    def check_returns(self) -> None:
        """A return is matched with the one message that has its id or its token, and with no other."""
        for tag, each in list(self.epoch.outstanding.items()):
            mine = each.envelope.mandatory
            by_id, by_token = returned_of(each, token=None), returned_of(each, message_id=None)
            assert self.epoch.match(by_id) is (each if mine else None), tag
            assert self.epoch.match(by_token) is (each if each.token is not None else None)


@pytest.mark.parametrize("seed", range(12))
def test_a_channel_knows_what_a_list_of_tags_knows(seed: int) -> None:
    """Whatever is written alone or together, answered in any order, and expanded at any time."""
    rng = random.Random(seed)
    channel = Channel(rng)
    kinds = rng.choice((["add", "fly", "fly"], ["add", "add", "fly"], ["fly"]))
    kinds = [*kinds, "answer", "answer", "overdue", *rng.choice(([], ["expand"], ["expand", "returns"]))]
    for _ in range(150):
        channel.now += 1.0
        kind = rng.choice(kinds)
        if kind == "add":
            channel.add()
        elif kind == "fly":
            channel.fly()
        elif kind == "answer":
            for _ in range(rng.choice((1, 1, 5))):
                multiple = rng.random() < 0.1
                tag = rng.choice((rng.randint(-1, channel.last + 2), rng.choice([*channel.model, 0])))
                channel.answer(tag, multiple)
        elif kind == "expand":
            channel.expand()
        elif kind == "overdue":
            channel.find_overdue()
        else:
            channel.expand()
            channel.check_returns()
        if rng.random() < 0.6:  # a question can change what the channel knows
            channel.check()
    channel.check()


def test_answers_behind_one_slow_message_are_bounded() -> None:
    """Each message of a flight is answered but the first one; the tags that have to be remembered stay few."""
    channel = Channel(random.Random(0))
    for _ in range(200):
        channel.fly()
    slow = min(channel.model)
    most = 0
    for tag in sorted(channel.model, reverse=True):
        if tag == slow:
            continue
        channel.answer(tag, False)
        assert len(channel.epoch.holes) <= 2 * len(channel.epoch) + 64
        most = max(most, len(channel.epoch.holes))
    assert most > 64, "flights stay together for as long as that"
    assert len(channel.epoch) == 1


def test_only_an_open_attempt_can_be_what_an_unknown_return_is_about() -> None:
    """Not one that was answered, and not one that has its own return."""
    epoch = Epoch(Lane.MAIN, 1, Deadlines())
    answered, returned, still_open = (Delivery(KEYS[0], b"", "same", 200.0) for _ in range(3))
    for tag, each in enumerate((answered, returned, still_open), 1):
        epoch.add(each, tag, 100.0)
    unknown = returned_of(still_open, token=None, message_id=None)
    assert epoch.match(unknown) is None
    for each in epoch.take(1, False):
        each.epoch = None
    returned.returned = returned_of(returned)
    assert epoch.candidates(unknown) == [still_open]
    assert epoch.candidates(unknown) == []


def test_an_answer_that_finds_nothing_hides_nothing_later() -> None:
    """It was given twice; the next message is found by the next answer."""
    epoch = Epoch(Lane.MAIN, 1, Deadlines())
    first, second = (Delivery(KEYS[0], b"", "", 200.0) for _ in range(2))
    epoch.add(first, 1, 100.0)
    assert epoch.take(1, False) == [first]
    assert epoch.take(1, True) == []
    epoch.add(second, 2, 100.0)
    assert epoch.take(2, True) == [second]
