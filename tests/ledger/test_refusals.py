"""Refusals and introductions: whom a channel close is about, what each one costs, and what a new exchange pays."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.ends import FEW, SWEEP_EVERY
from warrener._publishing.ledger.introductions import AT_ONCE, PASSES_AFTER, SUSPECT_PASSES_AFTER
from warrener.errors import Fault, PublishRefused
from warrener.records import Envelope, Lane, Receipt

from .driving import INTERNAL, NOT_FOUND, Bench


def missing(exchange: str) -> Fault:
    return evolve(NOT_FOUND, text=f"NOT_FOUND - no exchange '{exchange}' in vhost '/'")


def with_property(bench: Bench, name: str, value: Any) -> Delivery:
    """Accept a message that has one property."""
    bench.serial += 1
    envelope = evolve(Envelope(routing_key="q"), **{name: value})
    delivery = Delivery(envelope, b"body", f"m{bench.serial}", bench.now + 60.0)
    bench.ledger.accept(delivery)
    bench.accepted.append(delivery)
    return delivery


def introduce(bench: Bench) -> int:
    """Open the suspects' channel if messages wait for it."""
    bench.ledger.next(bench.now)
    return bench.open(Lane.SUSPECT) if bench.ledger.wants_suspect_channel else bench.channels[Lane.SUSPECT]


# --- a property that the broker does not take -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("expiration", "4294967296", "invalid expiration '4294967296': {value_too_large,4294967296}"),
        ("user_id", "mallory", "user_id property set to 'mallory' but authenticated user was 'guest'"),
        ("user_id", "o'hara", "user_id property set to 'o'hara' but authenticated user was 'guest'"),
        ("priority", 200, "invalid priority '200'"),
        ("content_type", "text/x", "invalid content-type 'text/x'"),
        ("reply_to", "amq.rabbitmq.reply-to", "fast reply consumer does not exist"),
        ("headers", {"CC": "other"}, 'invalid message: {unacceptable_type_in_header,"CC",longstr}'),
        ("headers", {"BCC": 5}, 'invalid message: {unacceptable_type_in_header,"BCC",signedint}'),
    ],
)
def test_a_property_that_the_broker_names_is_guilty(name: str, value: Any, text: str) -> None:
    """Every message with it is refused, those that wait included; the others are sent again and are no suspects."""
    bench = Bench(max_in_flight=6)
    innocent = [with_property(bench, "user_id", "guest"), with_property(bench, "headers", {"CC": ["a"]})]
    innocent += [bench.accept(), with_property(bench, "reply_to", "answers")]
    guilty = [with_property(bench, name, value) for _ in range(2)]
    waiting = with_property(bench, name, value)
    bench.write()
    fault = evolve(NOT_FOUND, reply_code=406, text=f"PRECONDITION_FAILED - {text}")
    bench.close_channel(fault)
    assert [type(each.outcome) for each in (*guilty, waiting)] == [PublishRefused] * 3
    assert isinstance(waiting.outcome, PublishRefused)
    assert not waiting.outcome.may_have_been_delivered
    channel = bench.open(Lane.MAIN)
    assert bench.write() == innocent
    for each in innocent:
        bench.ack(each.tag, channel=channel)
    assert {type(each.outcome) for each in innocent} == {Receipt}
    again = Delivery(guilty[0].envelope, b"body", "again", math.inf)
    assert isinstance(bench.ledger.refusal(again, bench.now + 0.5), PublishRefused)
    assert bench.ledger.refusal(again, bench.now + 1.0) is None  # the probe of this second


@pytest.mark.parametrize(
    ("code", "text", "exchange", "key"),
    [
        (404, "NOT_FOUND - no exchange '***.missing' in vhost '/'", "guest.missing", "q"),
        (
            403,
            "ACCESS_REFUSED - access to topic 'a.***' in exchange '***.topics' in vhost '/' refused",
            "guest.topics",
            "a.guest",
        ),
        (403, "ACCESS_REFUSED - access to exchange '***' in vhost '/' refused for user '***'", "guest", "q"),
        (404, "NOT_FOUND - no exchange 'it's' in vhost '/'", "it's", "q"),
    ],
)
def test_a_name_that_holds_the_password_is_recognised(code: int, text: str, exchange: str, key: str) -> None:
    """The password is masked in texts of the broker, and names may contain it: `guest` is a password, too."""
    bench = Bench()
    guilty = bench.accept(exchange=exchange, routing_key=key)
    other = bench.accept(exchange="" if exchange == "guest" else "other", routing_key=key)
    introduce(bench)
    bench.write()
    bench.close_channel(evolve(NOT_FOUND, text=text, reply_code=code), lane=Lane.SUSPECT)
    assert isinstance(guilty.outcome, PublishRefused)
    assert other.outcome is None
    assert isinstance(bench.ledger.refusal(Delivery(guilty.envelope, b"", "new", math.inf), bench.now), PublishRefused)


def test_the_default_exchange_can_be_refused_too() -> None:
    """RabbitMQ calls it amq.default. It closes the main channel once; its probes go to the suspects' channel."""
    bench = Bench()
    other = bench.accept(exchange="other")
    channel = introduce(bench)
    bench.write()
    bench.ack(1, channel=channel)
    guilty = bench.publish(3)
    other = bench.publish(1, exchange="other")[0]
    text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'ann'"
    forbidden = evolve(NOT_FOUND, text=text, reply_code=403)
    bench.close_channel(forbidden)
    assert [type(each.outcome) for each in guilty] == [PublishRefused] * 3
    bench.open(Lane.MAIN)
    assert bench.write() == [other]
    bench.now += 1.5
    probe = Delivery(guilty[0].envelope, b"", "probe", math.inf)
    assert bench.ledger.refusal(probe, bench.now) is None
    bench.ledger.accept(probe)
    assert bench.write() == [probe]
    assert probe.lane is Lane.SUSPECT
    bench.ack(probe.tag, channel=channel)
    assert covered(bench, "")


@pytest.mark.parametrize("family", ["property", "topic"])
def test_different_values_of_one_family_close_the_main_channel_twice(family: str) -> None:
    """Then each value is met on the suspects' channel; messages without it, and values that were taken, go on as before."""
    bench = Bench(max_in_flight=1000, max_buffered=1000)
    bench.accept(exchange="topics")
    channel = introduce(bench)
    bench.write()
    bench.ack(1, channel=channel)
    closes: list[Lane] = []

    def publish(value: str) -> Delivery:
        if family == "topic":
            return bench.accept(exchange="topics", routing_key=value)
        return with_property(bench, "user_id", value)

    bad = [publish(f"bad-{number}") for number in range(30)]
    free = bench.publish(1, exchange="topics" if family == "property" else "")[0]
    while any(each.outcome is None for each in bad):
        for lane in (Lane.MAIN, Lane.SUSPECT):
            if lane not in bench.channels:
                bench.open(lane)
        bench.write()
        first = min(
            (each for each in bad if each.epoch is not None), key=lambda each: (each.lane is Lane.SUSPECT, each.tag)
        )
        value = f"bad-{bad.index(first)}"
        text = f"user_id property set to '{value}' but authenticated user was 'guest'"
        code = 406
        if family == "topic":
            code, text = 403, f"access to topic '{value}' in exchange 'topics' in vhost '/' refused for user 'guest'"
        closes.append(first.lane)
        bench.close_channel(evolve(NOT_FOUND, text=text, reply_code=code), lane=first.lane)
    assert closes.count(Lane.MAIN) == 2
    assert len(closes) == 30
    assert free.attempts <= 3
    for lane in (Lane.MAIN, Lane.SUSPECT):
        if lane not in bench.channels:
            bench.open(lane)
    good = publish("good")
    assert bench.write()[-1] is good
    assert good.lane is Lane.SUSPECT
    bench.ack(good.tag, channel=bench.channels[Lane.SUSPECT])
    again = publish("good")
    assert bench.write() == [again]
    assert again.lane is Lane.MAIN
    bench.now += 6.0
    forgotten = publish("unknown")
    assert bench.ledger.refusal(forgotten, bench.now) is None
    assert bench.write() == [forgotten]
    assert forgotten.lane is Lane.MAIN


def test_a_close_that_a_suspect_explains_later_counts_for_no_storm() -> None:
    """The close names nobody; the message that is refused alone explains it, and without one it is unexplained after all."""
    nameless = evolve(NOT_FOUND, text="PRECONDITION_FAILED - no", reply_code=406)
    for guilty in (True, False):
        bench = Bench()
        suspects = bench.publish(3)
        main = bench.channels[Lane.MAIN]
        assert bench.ledger.ends.channel_closed(main, nameless, 3, 3, bench.now) == ([], True)
        bench.open(Lane.MAIN)
        for each in suspects:
            assert bench.ledger.ends.unexplained() == 0
            channel = bench.open(Lane.SUSPECT) if bench.ledger.wants_suspect_channel else bench.channels[Lane.SUSPECT]
            assert bench.write() == [each]
            assert bench.ledger.ends.unexplained() == 0  # also while the last one is in flight
            if guilty and each is suspects[1]:
                bench.close_channel(nameless, lane=Lane.SUSPECT)
            else:
                bench.ack(each.tag, channel=channel)
        assert bench.ledger.ends.unexplained() == (0 if guilty else 1)
        assert bench.ledger.ends.unexplained() == 0


# --- what a refusal costs ---------------------------------------------------------------------------------------------


def test_many_refusals_search_the_waiting_messages_ten_times_a_second() -> None:
    """Refusals that follow each other quickly share one search; its messages are refused a tenth of a second later."""
    bench = Bench(max_buffered=10_000, max_in_flight=1)
    bench.publish(1)
    crowd = [bench.accept(exchange=f"missing-{number}") for number in range(FEW)]
    later = [bench.accept(exchange=f"missing-{number}", routing_key="later") for number in range(FEW)]
    bench.ack(1)
    for number in range(20):
        introduce(bench)
        assert bench.write() == [crowd[number]]
        bench.close_channel(missing(f"missing-{number}"), lane=Lane.SUSPECT)
    assert bench.ledger.ends.sweeps == 1
    assert bench.ledger.ends.sweep_at == bench.now + SWEEP_EVERY
    bench.now += SWEEP_EVERY
    assert set(bench.ledger.expire(bench.now)) == set(later[1:20])
    assert {type(each.outcome) for each in later[:20]} == {PublishRefused}
    reason = "the broker has just refused a message for the same reason: "
    assert all(each.outcome.reason.startswith(reason) for each in later[1:20])  # type: ignore[union-attr]
    assert bench.ledger.ends.sweeps == 2
    assert all(each.outcome is None for each in later[20:])


@pytest.mark.parametrize("left", [FEW, FEW + 1])
def test_the_messages_are_searched_at_each_refusal_if_they_are_few(left: int) -> None:
    """The second refusal of one instant waits for its search only if more than `FEW` messages wait then."""
    bench = Bench(max_buffered=10_000, max_in_flight=10_000)
    waiting = [bench.accept(exchange=f"missing-{number}") for number in range(left + 1)]
    second = bench.accept(exchange="missing-1", routing_key="other")
    for number in range(2):
        introduce(bench)
        bench.write(1)
        bench.close_channel(missing(f"missing-{number}"), lane=Lane.SUSPECT)
    assert isinstance(waiting[1].outcome, PublishRefused)
    assert bench.ledger.ends.sweeps == (2 if left == FEW else 1)
    assert (second.outcome is None) == (left > FEW)


def test_a_waiter_asks_for_no_probe() -> None:
    """A publisher that waits for capacity is refused from memory; the probe of that second stays for a message that can go."""
    bench = Bench()
    bench.accept(exchange="x")
    introduce(bench)
    bench.write()
    bench.close_channel(missing("x"), lane=Lane.SUSPECT)
    waiter, new = (Delivery(Envelope(exchange="x", routing_key="q"), b"", name, math.inf) for name in "ab")
    bench.now += 1.5
    assert isinstance(bench.ledger.remembered(waiter, bench.now), PublishRefused)
    assert bench.ledger.refusal(new, bench.now) is None
    assert bench.ledger.remembered(waiter, bench.now + 5.0) is None


# --- introductions ----------------------------------------------------------------------------------------------------


def covered(bench: Bench, exchange: str) -> bool:
    """Whether a message to this exchange could go with others."""
    return bench.ledger.batching.can_join(Envelope(exchange=exchange, routing_key="q"))


@pytest.mark.parametrize("cause", ["blocked", "slow line"])
def test_an_introduction_passes_only_after_a_second_in_which_the_broker_could_read(cause: str) -> None:
    """Time while the broker blocks, and while bytes of ours still leave, does not count."""
    bench = Bench()
    bench.accept(exchange="x")
    introduce(bench)
    bench.write()
    if cause == "blocked":
        bench.ledger.pause()
        bench.now += 10.0
        bench.ledger.resume(bench.now)
    else:
        bench.now += 10.0
        bench.ledger.progressed(bench.now)
    bench.ledger.look(bench.now, lambda _: 1)
    assert not covered(bench, "x")
    assert bench.ledger.next_wakeup(bench.now) == bench.now + PASSES_AFTER
    bench.now += PASSES_AFTER
    bench.ledger.look(bench.now, lambda _: 1)
    assert covered(bench, "x")


def test_each_message_on_the_suspects_channel_passes() -> None:
    """An introduction and the message that takes its place pass both, so that no suspect waits behind them for ever."""
    bench = Bench()
    first = bench.accept(exchange="x")
    channel = introduce(bench)
    bench.write()
    bench.ledger.declared("x", standard=True)
    bench.now += PASSES_AFTER
    bench.ledger.look(bench.now, lambda _: 1)
    # Its exchange is refused on the main channel, and introduced again while the first message still waits.
    other = bench.accept(exchange="x")
    bench.write()
    bench.close_channel(missing("x"))
    bench.open(Lane.MAIN)
    assert isinstance(other.outcome, PublishRefused)
    bench.now += PASSES_AFTER
    second = bench.accept(exchange="x")
    assert bench.write() == [second]
    assert (second.lane, second.tag) == (Lane.SUSPECT, 2)
    bench.now += PASSES_AFTER
    bench.ledger.look(bench.now, lambda _: 2)
    assert first.passed
    assert second.passed
    assert bench.ledger.channel(Lane.SUSPECT) == channel


@pytest.mark.parametrize("place", [0, 1, 3, 10, 50])
def test_an_exchange_that_exists_is_written_twice_at_most_beside_names_that_do_not(place: int) -> None:
    """A close lets the next introduction go alone, and each one that passes lets one more go at the same time."""
    bench = Bench(max_buffered=300, max_in_flight=300)
    names = [f"missing-{number}" for number in range(60)]
    names.insert(place, "good")
    accepted = {name: bench.accept(exchange=name, timeout=math.inf) for name in names}
    good, closes = accepted["good"], 0
    while good.outcome is None:
        channel = introduce(bench)
        for each in bench.write():
            name = each.envelope.exchange
            if name != "good":
                bench.close_channel(missing(name), lane=Lane.SUSPECT)
                closes += 1
                break
            bench.ack(each.tag, channel=channel)
    assert good.attempts <= 2
    assert closes <= max(place, AT_ONCE)


def test_a_suspect_goes_on_when_the_introduction_before_it_has_left() -> None:
    """They take turns; a message that was cancelled before its introduction takes none."""
    bench = Bench()
    bench.publish(2)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    introduce(bench)
    assert bench.write() == bench.accepted[:1]
    introduction = bench.accept(exchange="x")
    assert bench.write() == []
    assert bench.ledger.cancel(introduction)
    bench.now += SUSPECT_PASSES_AFTER
    bench.ledger.look(bench.now, lambda _: 1)
    assert bench.write() == bench.accepted[1:2]


def test_suspects_and_introductions_take_turns() -> None:
    """A suspect goes alone, and so does the introduction between two suspects; without suspects they go together again."""
    bench = Bench()
    suspects = bench.publish(3)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    introduced = [bench.accept(exchange=f"good-{number}") for number in range(5)]
    channel = introduce(bench)
    turns: list[list[Delivery]] = []
    while written := bench.write():
        turns.append([each for each in written if each.lane is Lane.SUSPECT])
        bench.ack(bench.last_tag[channel], multiple=True, channel=channel)
    one, two, three = suspects
    assert turns == [[one], [introduced[0]], [two], [introduced[1]], [three], introduced[2:]]


def test_introductions_grow_with_each_that_passes() -> None:
    """Two hundred exchanges that exist are soon introduced 16 at a time."""
    bench = Bench(max_buffered=300, max_in_flight=300)
    for number in range(100):
        bench.accept(exchange=f"good-{number}")
    channel = introduce(bench)
    sizes: list[int] = []
    while written := bench.write():
        sizes.append(len(written))
        bench.ack(written[-1].tag, multiple=True, channel=channel)
    assert sizes == [4, 8, 16, 16, 16, 16, 16, 8]


def test_exchanges_before_the_missing_one_are_covered() -> None:
    """A broker takes publishes in order: they are sent again on the main channel, and the ones behind are introduced."""
    bench = Bench()
    names = ("first", "second", "missing", "third")
    deliveries = [bench.accept(exchange=name) for name in names]
    introduce(bench)
    assert bench.write() == deliveries
    bench.close_channel(missing("missing"), lane=Lane.SUSPECT)
    bench.write()
    assert [each.lane for each in deliveries if each.outcome is None and each.epoch] == [Lane.MAIN, Lane.MAIN]
    introduce(bench)
    assert bench.write() == deliveries[3:]


def test_exchanges_of_an_earlier_link_come_before_unknown_ones() -> None:
    """After a reconnect, names that never existed do not stand before an exchange that was covered."""
    bench = Bench(max_buffered=300)
    old = bench.accept(exchange="old")
    channel = introduce(bench)
    bench.write()
    bench.ack(old.tag, channel=channel)
    bench.lose()
    for number in range(50):
        bench.accept(exchange=f"missing-{number}")
    again = bench.accept(exchange="old")
    bench.up()
    introduce(bench)
    assert bench.write()[0] is again


def test_a_declared_exchange_of_a_standard_type_gives_certain_returns() -> None:
    """Declared with another type later, it does not; a declaration that does not know the type changes nothing."""
    ledger = Bench().ledger
    ledger.declared("x", standard=True)
    ledger.declared("y", standard=True)
    ledger.declared("x", standard=None)
    assert ledger.rules.standard_exchanges == {"x", "y"}
    ledger.declared("x", standard=False)
    assert ledger.rules.standard_exchanges == {"y"}
