"""The window, step by step, beside a model that knows exactly who holds which places.

The model counts the contents anew for each question. The window keeps counts, and may use old ones for `COUNT_LASTS` seconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain, repeat

import pytest

from warrener._publishing.ledger.deadlines import Deadlines
from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.flights import Batches, Flight, Ticket
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.introductions import Introductions
from warrener._publishing.ledger.queues import WaitingQueue
from warrener._publishing.ledger.window import COUNT_LASTS, FEW_BYTES, Limits, Window, _Held
from warrener.records import Envelope, Lane


def destination(envelope: Envelope) -> tuple[str, str]:
    return envelope.exchange, envelope.routing_key


class Noted(Window):
    """A window that notes when it counts."""

    counts = 0

    def _count(self, now: float) -> None:
        self.counts += 1
        super()._count(now)


class Link:
    """A link with its window, without the queues of new messages; and the exact rule of the reserve."""

    def __init__(self, places: int = 100, size: int = 1 << 20) -> None:
        self.limits = Limits(10_000, 1 << 30, places, size)
        #: The number of messages that the counts may miss.
        self.slack = places // 64
        deadlines = Deadlines()
        self.in_flight = InFlight(30.0, deadlines)
        self.batches = Batches(deadlines, "")
        self.introductions = Introductions()
        self.resend = WaitingQueue()
        self.suspects = WaitingQueue()
        self.window: Noted = self.another()
        self.now = 100.0
        self.channel = 0
        self.open_channel(Lane.MAIN)

    def another(self) -> Noted:
        """Return a window that has counted nothing so far."""
        return Noted(self.limits, self.in_flight, self.introductions, self.resend, self.suspects)

    def open_channel(self, lane: Lane) -> None:
        self.channel += 1
        self.in_flight.open(lane, self.channel)

    def write(self, delivery: Delivery, lane: Lane = Lane.MAIN) -> Delivery:
        """Put it on the wire; the window was asked about it before."""
        epoch = self.in_flight.main if lane is Lane.MAIN else self.in_flight.suspect
        assert epoch is not None
        self.in_flight.size += delivery.size
        delivery.attempts += 1
        epoch.add(delivery, epoch.last + 1, self.now)
        return delivery

    def fly(self, envelopes: list[Envelope], bodies: list[bytes]) -> None:
        """Put them on the wire together."""
        main = self.in_flight.main
        assert main is not None
        flight = Flight("", 1, 60.0, 160.0, self.now)
        flight.envelopes, flight.bodies, flight.tickets = envelopes, bodies, [Ticket() for _ in bodies]
        flight.size = sum(map(len, bodies))
        self.in_flight.size += flight.size
        main.fly(flight, main.last + 1, 1, self.now)

    def answer(self, rng: random.Random) -> Delivery | None:
        """Take any message out of the main channel, as an ack does; return it if it is not of a flight."""
        main = self.in_flight.main
        assert main is not None
        tag = rng.randint(1, max(main.last, 1))
        for flight, start, stop in main.land(tag, False):
            self.in_flight.size -= flight.take(start, stop)
        for each in main.take(tag, False):
            self.in_flight.left([each])
            each.epoch = None
            return each
        return None

    def look(self, seconds: float) -> None:
        """Let the time pass, as the timer of the ledger does."""
        self.now += seconds
        due = self.window.look_at
        self.window.looked(self.now)
        assert self.window.look_at == (math.inf if due <= self.now else due)
        assert self.window.looked_at == self.now

    def contents(self) -> list[tuple[tuple[str, str], int]]:
        """Return the destination and the bytes of each message that holds a place; this leaves flights as they are."""
        tagged = [each for each in self.introductions.live() if each.attempts]
        alone = [*self.resend.live(), *self.suspects.live(), *tagged]
        found: list[tuple[tuple[str, str], int]] = []
        for epoch in self.in_flight.epochs.values():
            alone += epoch.outstanding.values()
            for flight in epoch.flights:
                found += [
                    (destination(flight.envelopes[index]), len(flight.bodies[index]))
                    for index in range(flight.at, len(flight))
                    if flight.first_tag + index not in epoch.holes
                ]
        return found + [(destination(each.envelope), each.size) for each in alone]

    def __len__(self) -> int:
        return len(self.contents())

    def held_by(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return the places, and the bytes, of each destination."""
        places: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for key, each in self.contents():
            places[key] += 1
            size[key] += each
        return {key: (places[key], size[key]) for key in places}

    def open(self) -> bool:
        """Whether a place is free that is open to all destinations."""
        return self.limits.max_in_flight - len(self) > self.limits.max_in_flight // 10

    def allows(
        self, envelope: Envelope, size: int, beside: Sequence[tuple[Envelope, bytes]] = (), *, less: int = 0
    ) -> bool:
        """Whether one more message may be written, beside these: the rule, in places and in bytes, of an exact count.

        `less`: the number of places of its destination that a count may have missed.
        """
        limits = self.limits
        contents = [*self.contents(), *((destination(each), len(body)) for each, body in beside)]
        held, held_size = len(contents), sum(each for _, each in contents)
        free, free_size = limits.max_in_flight - held, limits.max_in_flight_bytes - held_size
        asking = destination(envelope)
        mine = [each for key, each in contents if key == asking]
        places, mine_size = max(0, len(mine) - less), sum(mine)
        if free <= 0 or (held and free_size < size):
            return False
        reserve = limits.max_in_flight // 10
        reserved = 0 if limits.max_in_flight_bytes < FEW_BYTES else limits.max_in_flight_bytes // 10
        if not places or (free > reserve and (not held or free_size - size >= reserved)):
            return True
        # Once it is written, it holds at most as much as is still free.
        fair = free > reserve or places + 1 <= free - 1
        return fair and (free_size - size >= reserved or mine_size + size <= free_size - size)

    def check(self, rng: random.Random) -> None:
        """Compare the sums of the window with its contents, and all answers that need no count by destination."""
        window, contents, limits = self.window, self.contents(), self.limits
        held, held_size = len(contents), sum(each for _, each in contents)
        assert (window._held(), window._held_size()) == (held, held_size)
        assert window.full == (held >= limits.max_in_flight)
        assert window.free >= limits.max_in_flight - held
        assert window._counted == sum(each.places for each in window._held_by.values())
        beside = [Delivery(KEYS[0], b"x" * 7, "", math.inf)] * rng.choice((0, 0, 1, 2))
        free, free_size = (
            limits.max_in_flight - held - len(beside),
            limits.max_in_flight_bytes - held_size - 7 * len(beside),
        )
        for size in {0, 1, max(free_size, 0), max(free_size, 0) + 1}:
            alone = held + len(beside) == 0
            assert window.has_place(size, beside=beside) == (free > 0 and (alone or size <= free_size))
        for each in KEYS:
            waits = held < limits.max_in_flight and window._held_by.get(destination(each), _Held()).places > 0
            assert window.stops(each) == waits
        if not len(self.resend) + len(self.suspects):
            self.check_room([b"x" * rng.choice((0, 1, 10, 5000)) for _ in range(rng.choice((1, 3, 200)))], rng)

    def check_room(self, bodies: list[bytes], rng: random.Random) -> None:
        """The open places are all but a tenth of the places, and of the bytes. Messages that come back are never beside them."""
        contents, limits = self.contents(), self.limits
        few = limits.max_in_flight_bytes < FEW_BYTES
        left = limits.max_in_flight - limits.max_in_flight // 10 - len(contents)
        left_size = limits.max_in_flight_bytes - (0 if few else limits.max_in_flight_bytes // 10)
        left_size -= sum(each for _, each in contents)
        at = rng.choice((0, len(bodies) // 2))
        sizes = [*accumulate(map(len, bodies[at:]))]
        expected = sum(number <= left and size <= left_size for number, size in enumerate(sizes, 1))
        assert self.window.room(bodies, at, sizes[-1]) == expected
        assert self.window.taken == len(contents)


#: The first and the last one have the same destination.
KEYS = [*(Envelope(routing_key=f"q{number}") for number in range(4)), Envelope(routing_key="q0", mandatory=False)]


@pytest.mark.parametrize("seed", range(30))
def test_the_window_gives_the_places_that_an_exact_count_gives(seed: int) -> None:
    """It refuses one that a count would give only while its counts are old, and for a tenth of a second; it gives no other."""
    rng = random.Random(seed)
    places = rng.choice((4, 10, 30, 63, 150, 200))
    # A large window may miss a few messages in its counts; then all have the same size.
    size = rng.choice((1 << 40, FEW_BYTES - 1, FEW_BYTES, 100_000, 20 * places)) if places < 64 else 1 << 40
    bodies = [b"", b"x" * 10, b"x" * (size // 20), b"x" * (size // 6)] if size < 1 << 40 else [b"body"]
    link = Link(places, size)
    kinds = rng.choice(
        (
            ["ask"] * 20 + ["answer"] * 4 + ["wait", "together", "back"],
            ["ask"] * 20 + ["answer"] * 2 + ["wait", "unwritten", "again"],
            ["together"] * 4 + ["answer"] * 8 + ["wait", "new channel"],
        )
    )
    link.check(rng)
    for _ in range(places // 2):
        together(link, [rng.choice(KEYS) for _ in range(2)], [rng.choice(bodies) for _ in range(2)])
    for _ in range(200):
        kind = rng.choice(kinds)
        envelope, body = rng.choice(KEYS[: rng.choice((1, 2, 5))]), rng.choice(bodies)
        if kind in {"ask", "unwritten"}:
            message = Delivery(envelope, body, "", math.inf)
            given = asked(link, message)
            for _ in range(rng.choice((0, 0, 1))):
                assert link.window.enters(message, link.now) == given, "it is asked about one message again"
            if given and kind == "ask":
                link.write(message)
        elif kind == "together":
            count = rng.choice((1, 3, 40))
            envelopes = [rng.choice((envelope, envelope, rng.choice(KEYS))) for _ in range(count)]
            together(link, envelopes, [rng.choice(bodies) for _ in envelopes])
        elif kind == "answer":
            for _ in range(rng.choice((1, 1, 2, 6, 30))):
                link.answer(rng)
        elif kind == "back" and (back := link.answer(rng)) is not None:
            where = rng.choice((link.resend.append, link.suspects.append, partial(link.introductions.add, "x")))
            where(back)
        elif kind == "again" and (head := link.resend.head()) is not None:
            link.resend.take_head()
            link.write(head)
        elif kind == "new channel":
            ended = link.in_flight.close(link.channel)
            assert ended is not None
            link.resend.put_back([*ended.outstanding.values()])
            for each in ended.outstanding.values():
                each.epoch = None
            link.open_channel(Lane.MAIN)
            for each in link.resend.take_all():
                link.write(each)
        elif kind == "wait":
            link.look(rng.choice((0.01, COUNT_LASTS)))
        link.check(rng)


def asked(link: Link, message: Delivery) -> bool:
    """Ask both windows for a place; the one that has counted nothing yet answers exactly as the rule says."""
    window, now, envelope = link.window, link.now, message.envelope
    exact = link.allows(envelope, message.size)
    fresh = link.another()
    assert fresh.enters(message, now) == exact
    assert fresh.look_at == math.inf
    counts, outdated, news = window.counts, window._outdated(now), news_of(link, envelope)
    given = window.enters(message, now)
    assert link.allows(envelope, message.size, less=link.slack) or not given, "a count that is too low"
    if exact and not given:
        refused_by_old_counts(link, envelope)
    elif given and not link.open():
        # What the window knows is hardly ever too low; the message that it let in is not written yet.
        missing = 0
        for key, (places, size) in link.held_by().items():
            known, one = window._held_by[key], key == destination(envelope)
            missing += max(0, places + one - known.places)
            assert link.slack or known.size >= size + one * message.size
        assert missing <= link.slack
    # A count takes as long as the window is large: without enough news, none is made.
    assert window.counts - counts <= int(outdated) + news
    return given


def together(link: Link, envelopes: list[Envelope], bodies: list[bytes]) -> None:
    """Ask for places of the reserve for several messages, and write those that get one."""
    window, now = link.window, link.now
    counts, outdated, news = window.counts, window._outdated(now), news_of(link, envelopes[0])
    number = window.room_in_reserve(chain(envelopes, repeat(envelopes[0])), iter(bodies), now)
    assert window.counts - counts <= int(outdated) + news
    given = list(zip(envelopes[:number], bodies, strict=False))
    for at, (envelope, body) in enumerate(given):
        assert link.allows(envelope, len(body), given[:at], less=link.slack), "a count that is too low"
    if number < len(envelopes) and link.allows(envelopes[number], len(bodies[number]), given):
        if number:
            assert now < window.look_at <= now + COUNT_LASTS
        else:
            refused_by_old_counts(link, envelopes[0])
    if number:
        link.fly(envelopes[:number], bodies[:number])
    if window.counts > counts:
        assert window._counted == len(link), "nothing has left since"


def news_of(link: Link, envelope: Envelope) -> bool:
    """Whether so many messages have left since the last count that another one is made at once."""
    window, held = link.window, len(link)
    known = window._held_by.get(destination(envelope))
    return window._counted - held > max(held // 64, min(held // 4, 0 if known is None else known.places // 2))


def refused_by_old_counts(link: Link, envelope: Envelope) -> None:
    """The counts are old, and too few messages have left since for another count at once; one is made soon."""
    assert not news_of(link, envelope)
    assert link.now < link.window.look_at <= link.now + COUNT_LASTS


def test_an_old_count_is_not_the_last_word() -> None:
    """One message left, another one was written without a question: their sum is as before, but one destination has a place."""
    link = Link(100)
    mute, good = KEYS[1], KEYS[2]
    for _ in range(81):
        link.write(Delivery(mute, b"", "", math.inf))
    mine = [link.write(Delivery(good, b"", "", math.inf)) for _ in range(9)]
    late = Delivery(good, b"", "", math.inf)
    assert not link.window.enters(late, link.now)
    assert link.window.look_at == math.inf, "the count is new: only an answer helps"
    assert mine[0].epoch is not None
    for each in mine[0].epoch.take(mine[0].tag, False):
        link.in_flight.left([each])
    link.write(Delivery(mute, b"", "", math.inf))
    assert not link.window.enters(late, link.now)
    assert link.window.look_at == link.now + COUNT_LASTS
    link.look(COUNT_LASTS)
    assert link.window.enters(late, link.now)


def test_counts_are_made_again_before_a_64th_of_the_window_is_unknown() -> None:
    """Up to that number, messages that were written without a question cause no count."""
    link = Link(640)
    for _ in range(580):
        link.write(Delivery(KEYS[1], b"", "", math.inf))
    asked_for = Delivery(KEYS[2], b"", "", math.inf)
    assert link.window.enters(asked_for, link.now)
    link.write(asked_for)
    for _ in range(640 // 64):
        link.write(Delivery(KEYS[2], b"", "", math.inf))
        assert not link.window._outdated(link.now)
    link.write(Delivery(KEYS[2], b"", "", math.inf))
    assert link.window._outdated(link.now)


def test_a_full_window_is_not_counted() -> None:
    """It gives no place, whatever the count says; a count takes long."""
    link = Link(4)
    for _ in range(4):
        link.write(Delivery(KEYS[0], b"", "", math.inf))
    assert not link.window.enters(Delivery(KEYS[1], b"", "", math.inf), link.now)
    assert not link.window.room_in_reserve([KEYS[1]], [b""], link.now)
    assert link.window.counts == 0


@pytest.mark.parametrize("size", [FEW_BYTES, FEW_BYTES + 9, FEW_BYTES - 1, 100_000])
@pytest.mark.parametrize("places", [9, 10, 19, 20])
def test_the_reserve_is_a_tenth_rounded_down(places: int, size: int) -> None:
    """Of the places, and of the bytes; a window of few places or bytes has none."""
    link = Link(places, size)
    window = link.window
    open_places, open_size = {9: 9, 10: 9, 19: 18, 20: 18}[places], size - (0 if size < FEW_BYTES else size // 10)
    assert window.room([b""] * 30, 0, 0) == open_places
    assert window.room([b"x", bytes(open_size - 1)], 0, open_size) == 2
    assert window.room([b"x", bytes(open_size)], 0, open_size + 1) == 1
    tagged = Delivery(KEYS[0], b"x", "", math.inf)
    tagged.attempts = 1
    link.introductions.add("x", tagged)
    assert window.room([b"", bytes(open_size - 1)], 0, open_size - 1) == 2
    assert window.room([b"", bytes(open_size)], 0, open_size) == 1


def test_a_message_that_lost_its_place_does_not_wait_for_its_own_destination() -> None:
    """It was let in, and not written; now other messages have the bytes. It is not passed, as its destination holds nothing."""
    link = Link(100, 100_000)
    for _ in range(18):
        link.write(Delivery(KEYS[1], bytes(5000), "", math.inf))
    large = Delivery(KEYS[2], bytes(10_000), "", math.inf)
    assert link.window.enters(large, link.now)
    assert link.window.stops(KEYS[2])
    link.write(Delivery(KEYS[1], bytes(6000), "", math.inf))
    assert not link.window.enters(large, link.now)
    assert not link.window.stops(KEYS[2])


def test_a_message_is_counted_once_however_often_it_is_asked_about() -> None:
    """And those that were let in and written are known: nothing is counted again because of them."""
    link = Link(100)
    for _ in range(90):
        link.write(Delivery(KEYS[1], b"body", "", math.inf))
    for number in (1, 2):
        message = Delivery(KEYS[2], b"body", "", math.inf)
        for _ in range(3):
            assert link.window.enters(message, link.now)
            known = link.window._held_by[destination(KEYS[2])]
            assert (known.places, known.size, link.window._counted) == (number, 4 * number, 90 + number)
        link.write(message)
        assert not link.window._outdated(link.now)
    assert link.window.counts == 1


def test_one_message_that_left_is_news_for_later() -> None:
    """It is too little for another count at once, and the timer has an instant to look at."""
    link = Link(100)
    for _ in range(90):
        link.write(Delivery(KEYS[1], b"", "", math.inf))
    mine = [Delivery(KEYS[2], b"", "", math.inf) for _ in range(5)]
    for each in mine:
        assert link.window.enters(each, link.now)
        link.write(each)
    late = Delivery(KEYS[2], b"", "", math.inf)
    assert not link.window.enters(late, link.now)
    assert link.window.look_at == math.inf
    assert mine[0].epoch is not None
    link.in_flight.left(mine[0].epoch.take(mine[0].tag, False))
    assert not link.window.enters(late, link.now)
    assert link.window.look_at == link.now + COUNT_LASTS


def test_the_share_of_the_bytes_is_exact() -> None:
    """The open bytes to the last one; in the reserve, as many bytes as are free after that."""
    link = Link(100, 100_000)
    for _ in range(17):
        link.write(Delivery(KEYS[1], bytes(5000), "", math.inf))
    assert not link.another().room_in_reserve([KEYS[1]], [bytes(5001)], link.now)
    assert link.another().room_in_reserve([KEYS[1]], [bytes(5000)], link.now)
    link.write(Delivery(KEYS[1], bytes(5000), "", math.inf))
    link.write(Delivery(KEYS[2], bytes(2000), "", math.inf))
    assert not link.another().room_in_reserve([KEYS[2]], [bytes(3001)], link.now)
    assert link.another().room_in_reserve([KEYS[2]], [bytes(3000)], link.now)
