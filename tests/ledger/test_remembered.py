"""What is remembered of refusals, beside a naive model of it: a list, scanned for each question."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.refusals import PROBE_EVERY, Refusals, Target, named
from warrener.errors import Fault, FaultKind
from warrener.records import Envelope, FieldValue

MEMORY = 5.0
LIMIT = 4

EXCHANGES = ("", "a", "b")
KEYS = ("k", "l", "m")
ENVELOPES = [Envelope(exchange=exchange, routing_key=key) for exchange in EXCHANGES for key in KEYS]
ENVELOPES += [
    Envelope(exchange=exchange, routing_key="k", user_id=user_id, expiration=expiration)
    for exchange in ("", "a")
    for user_id, expiration in (("u", None), ("v", None), (None, "u"), ("w", "x"))
]


def message(envelope: Envelope, size: int = 4) -> Delivery:
    return Delivery(envelope, b"x" * size, "m", math.inf)


#: One message of each envelope, and one that is larger.
MESSAGES = [message(each) for each in ENVELOPES] + [message(ENVELOPES[0], 20)]

TARGETS = [Target(exchange) for exchange in EXCHANGES]
TARGETS += [Target(exchange, key) for exchange in EXCHANGES for key in KEYS]
TARGETS += [Target(with_property=(name, value)) for name in ("user_id", "expiration") for value in "uvwx"]


@define
class Entry:
    """One refusal that is remembered."""

    target: Target
    fault: Fault
    until: float
    probe_at: float


def properties(envelope: Envelope) -> list[tuple[str, str]]:
    found = {"user_id": envelope.user_id, "expiration": envelope.expiration}
    return [(name, str(value)) for name, value in found.items() if value is not None]


def about(target: Target, envelope: Envelope) -> bool:
    """Whether the refusal is about messages with this envelope."""
    if target.with_property is not None:
        return target.with_property in properties(envelope)
    return target.exchange == envelope.exchange and target.routing_key in (None, envelope.routing_key)


@define
class Model:
    """The refusals, the oldest first, and what follows from them."""

    entries: list[Entry] = field(factory=list)
    distrusted: set[tuple[str, str]] = field(factory=set)
    trusted: list[tuple[str, str]] = field(factory=list)
    new: list[Target] = field(factory=list)
    too_large: tuple[float, Fault | None] = (math.inf, None)

    def remember(self, target: Target, fault: Fault, now: float) -> None:
        self.new.append(target)
        self.entries = [each for each in self.entries if each.target != target]
        self.entries.append(Entry(target, fault, now + MEMORY, now + PROBE_EVERY))
        family = [each for each in self.entries if each.target.family == target.family is not None]
        if len(family) > 1 and target.family is not None:
            self.distrusted.add(target.family)
        self.keep(self.entries[-LIMIT:])

    def keep(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.distrusted &= {each.target.family for each in entries if each.target.family is not None}
        if not entries:
            self.trusted = []

    def of(self, envelope: Envelope) -> list[Entry]:
        """Return the refusals of an envelope in the order in which they are asked for: exchange, topic, properties."""
        found = [each for each in self.entries if about(each.target, envelope)]
        return sorted(
            found, key=lambda each: (each.target.with_property is not None, each.target.routing_key is not None)
        )

    def distrusted_keys(self, envelope: Envelope) -> Iterator[tuple[str, str]]:
        if ("topic", envelope.exchange) in self.distrusted:
            yield envelope.exchange, envelope.routing_key
        yield from (each for each in properties(envelope) if ("property", each[0]) in self.distrusted)

    def write(self, delivery: Delivery, now: float) -> Fault | None:
        """Return the refusal of a message; None: it is written, as the probe of each refusal of it."""
        if delivery.size > self.too_large[0]:
            return self.too_large[1]
        for each in self.of(delivery.envelope):
            if now < each.probe_at:
                return each.fault
            each.probe_at = now + PROBE_EVERY
        return None

    def declared(self, exchange: str) -> None:
        self.keep([e for e in self.entries if e.target.exchange != exchange or e.target.with_property])

    def passed(self, envelope: Envelope) -> None:
        self.keep([each for each in self.entries if not about(each.target, envelope)])
        new = [each for each in self.distrusted_keys(envelope) if each not in self.trusted]
        self.trusted = [*self.trusted, *new][-LIMIT:]

    def doubts(self, envelope: Envelope) -> set[tuple[str, str]]:
        if any(not each.target.whole_exchange for each in self.of(envelope)):
            return {(envelope.exchange, envelope.routing_key)}
        return {each for each in self.distrusted_keys(envelope) if each not in self.trusted}


def compare(refusals: Refusals, model: Model, now: float) -> None:
    """Ask all questions that make no probe about every message."""
    assert refusals.active == bool(model.entries)
    largest, too_large = model.too_large
    assert refusals.max_size == largest
    for each in MESSAGES:
        entries = model.of(each.envelope)
        faults = [entry.fault for entry in entries]
        new = [entry.fault for entry in entries if entry.target in model.new]
        answered, newly = refusals.answers(each, now), refusals.newly(each)
        if each.size > largest:
            assert answered == newly == too_large
        else:
            assert answered in faults if faults else answered is None
            assert newly in new if new else newly is None
        doubts = model.doubts(each.envelope)
        doubt = refusals.doubt(each.envelope)
        assert doubt in doubts if doubts else doubt is None
        assert refusals.concern(each.envelope) == (
            bool(doubts) or any(entry.target.whole_exchange for entry in entries)
        )


STEPS = {"remember": 6, "write": 4, "pass": 3, "tick": 2, "size": 1, "declare": 1, "search": 1, "clear": 0.3}


@pytest.mark.parametrize("seed", range(12))
def test_refusals_are_remembered_as_a_list_of_them_would_be(seed: int) -> None:
    """Which message is refused from memory, is a probe, or goes to the suspects' channel: what the model says (R26)."""
    random = Random(seed)
    refusals, model, now = Refusals(MEMORY, LIMIT), Model(), 100.0
    targets = random.sample(TARGETS, 7)
    for number in range(150):
        fault = Fault(FaultKind.CHANNEL_CLOSED, f"refused {number}", reply_code=403)
        match random.choices([*STEPS], [*STEPS.values()])[0]:
            case "remember":
                target = random.choice(targets)
                refusals.remember(target, fault, now)
                model.remember(target, fault, now)
            case "write":
                # The order of a message's properties is not promised.
                asked = random.choice([each for each in MESSAGES if len(properties(each.envelope)) < 2])
                assert refusals.of(asked, now) == model.write(asked, now)
            case "pass":
                passed = random.choice(MESSAGES)
                refusals.passed(passed)
                model.passed(passed.envelope)
            case "tick":
                now += random.choice([0.25, 0.75, 1.0, 1.0, 4.0])
                refusals.expire(now)
                model.keep([each for each in model.entries if now < each.until])
            case "size":
                size = random.choice([4, 10])
                refusals.remember(Target(max_size=size), fault, now)
                model.too_large = size, fault
            case "declare":
                exchange = random.choice(EXCHANGES)
                refusals.declared(exchange)
                model.declared(exchange)
            case "search":
                refusals.new.clear()
                model.new.clear()
            case _:
                refusals.clear()
                model = Model()
        compare(refusals, model, now)


@given(st.permutations([Target("a"), Target("a", "k"), Target(with_property=("user_id", "u"))]))
def test_a_refusal_is_over_at_its_instant_also_before_it_is_forgotten(order: list[Target]) -> None:
    """The oldest ones end first; the message is refused until the last one has ended, without a call of `expire`."""
    refusals = Refusals(2 * PROBE_EVERY, LIMIT)
    asked = message(Envelope(exchange="a", routing_key="k", user_id="u"))
    for number, target in enumerate(order):
        refusals.remember(target, Fault(FaultKind.CHANNEL_CLOSED, str(number)), number * PROBE_EVERY)
    last = (len(order) - 1) * PROBE_EVERY
    assert refusals.answers(asked, last) is not None
    refused = refusals.answers(asked, last + 2 * PROBE_EVERY - 0.125)
    assert refused is not None
    assert refused.text == "2"
    assert refusals.answers(asked, last + 2 * PROBE_EVERY) is None
    assert refusals.active
    assert refusals.of(asked, last + 2 * PROBE_EVERY) is None
    assert not refusals.active


@pytest.mark.parametrize(
    ("text", "exchange", "recognised"),
    [
        ("no exchange '{}…", "X" * 150, True),
        ("no exchange '{}…", "it's " * 30, True),
        ("no exchange '{}", "X" * 150, True),
        ("access to topic-less exchange 'other' and exchange '{}…", "X" * 150, True),
        ("no exchange '{}…", "Y" + "X" * 149, False),
        ("no queue '{}…", "X" * 150, False),
        ("{}", "X" * 150, False),
    ],
)
@pytest.mark.parametrize("length", [20, 100, 101, 120])
def test_the_beginning_of_a_long_name_names_its_exchange(
    text: str, exchange: str, recognised: bool, length: int
) -> None:
    """The broker cuts its text at 255 bytes. A short beginning could be that of many names, and says nothing."""
    beginning = ("X" * length) if exchange[0] == "Y" else exchange[:length]
    fault = Fault(FaultKind.CHANNEL_CLOSED, text.format(beginning), reply_code=404)
    candidates = [message(Envelope(exchange=each, routing_key="k")) for each in ("", exchange)]
    expected = Target(exchange) if recognised and length > 100 else None
    assert named(fault, candidates) == expected


SIZE = "message size 20 is larger than configured max size 10"


@pytest.mark.parametrize(
    ("code", "text", "addresses", "expected"),
    [
        # A topic that no candidate has: its exchange is not refused as a whole.
        (403, "access to topic 'other' in exchange 'a' in vhost '/' refused", [("a", "k")], None),
        (403, "access to topic 'k' in exchange 'a' in vhost '/' refused", [("a", "k")], Target("a", "k")),
        (403, "access to topic 'k' in exchange 'a' in vhost '/' refused", [("b", "k")], None),
        # A name that could be any is the one that has these very letters, if there is one.
        (404, "no exchange '***' in vhost '/'", [("***", "k"), ("a", "k"), ("zz", "k")], Target("***")),
        (404, "no exchange '***' in vhost '/'", [("a", "k"), ("zz", "k")], None),
        (404, "no exchange '***' in vhost '/'", [("a", "k"), ("a", "l")], Target("a")),
        (403, "access to exchange 'amq.default' in vhost '/' refused", [("", "k"), ("a", "k")], Target("")),
        (
            403,
            "access to exchange 'amq.default' in vhost '/'",
            [("", "k"), ("amq.default", "k")],
            Target("amq.default"),
        ),
        (404, "no exchange 'a' in vhost '/'", [("b", "k")], None),
        (406, "no exchange 'a' in vhost '/'", [("a", "k")], None),
        (311, SIZE, [("a", "k")], Target(max_size=10)),
        (406, SIZE, [("a", "k")], Target(max_size=10)),
        (404, SIZE, [("a", "k")], None),
        (312, SIZE, [("a", "k")], None),
        (406, SIZE.replace("10", "20"), [("a", "k")], None),  # a message of that size is not too large
        (406, SIZE.replace("max", "maximum"), [("a", "k")], Target(max_size=10)),
    ],
)
def test_a_text_names_only_what_one_of_the_messages_has(
    code: int, text: str, addresses: list[tuple[str, str]], expected: Target | None
) -> None:
    """Each message has 20 bytes. A text of which more than one name is possible names none."""
    candidates = [message(Envelope(exchange=exchange, routing_key=key), 20) for exchange, key in addresses]
    assert named(Fault(FaultKind.CHANNEL_CLOSED, text, reply_code=code), candidates) == expected


@pytest.mark.parametrize("size", [9, 10, 11])
def test_a_message_of_the_largest_size_is_taken(size: int) -> None:
    """In each question: a larger one is refused."""
    refusals, fault = Refusals(MEMORY, LIMIT), Fault(FaultKind.CHANNEL_CLOSED, SIZE, reply_code=406)
    refusals.remember(Target(max_size=10), fault, 0.0)
    asked = message(ENVELOPES[0], size)
    expected = fault if size > 10 else None
    assert refusals.answers(asked, 0.0) == refusals.newly(asked) == refusals.of(asked, 0.0) == expected
    assert not refusals.active


def test_a_probe_of_each_second() -> None:
    """One message in each second is written although its refusal is remembered; its answer decides."""
    refusals, asked = Refusals(MEMORY, LIMIT), message(ENVELOPES[0])
    fault = Fault(FaultKind.CHANNEL_CLOSED, "", reply_code=403)
    refusals.remember(Target(""), fault, 0.0)
    refused = [refusals.of(asked, quarter / 4) is not None for quarter in range(21)]
    assert [quarter / 4 for quarter, each in enumerate(refused) if not each] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_values_that_were_taken_are_remembered_up_to_the_limit() -> None:
    """Two refused topics make the exchange doubtful; each taken topic is trusted until `LIMIT` newer ones were taken."""
    refusals = Refusals(MEMORY, 4)
    for bad in ("bad-1", "bad-2"):
        refusals.remember(Target("a", bad), Fault(FaultKind.CHANNEL_CLOSED, "", reply_code=403), 0.0)
    envelopes = [Envelope(exchange="a", routing_key=f"good-{number}") for number in range(5)]
    for each in envelopes[:4]:
        assert refusals.doubt(each) == ("a", each.routing_key)
        refusals.passed(message(each))
    assert [refusals.doubt(each) for each in envelopes[:4]] == [None] * 4
    refusals.passed(message(envelopes[4]))
    assert [refusals.doubt(each) is None for each in envelopes] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("value", "covered"), [("k", True), ("other", True), (5, False), (["k"], False), (None, False)]
)
def test_a_bad_type_of_a_list_of_routes_is_refused_with_all_its_values(value: FieldValue, covered: bool) -> None:
    """The text names the header and no value: messages with another type of it, with a list or without it go on."""
    fault = Fault(
        FaultKind.CHANNEL_CLOSED, 'invalid message: {unacceptable_type_in_header,"CC",longstr}', reply_code=406
    )
    target = named(fault, [message(Envelope(routing_key="q", headers={"CC": "k"}))])
    assert target is not None
    assert target.covers(message(Envelope(routing_key="q", headers={"CC": value}))) == covered
    assert not target.covers(message(Envelope(routing_key="q", headers={"BCC": "k"})))
    assert not target.covers(message(Envelope(routing_key="q")))
