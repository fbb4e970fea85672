"""What the end of a channel or a link does to the messages on it, where it depends on their lane, their tag or their past."""

from __future__ import annotations

import pytest
from attrs import evolve

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.introductions import PASSES_AFTER, SUSPECT_PASSES_AFTER
from warrener.errors import Fault, PublishRefused, Unroutable
from warrener.records import Lane

from .driving import INTERNAL, NOT_FOUND, Bench

NAMELESS = evolve(NOT_FOUND, text="PRECONDITION_FAILED - no", reply_code=406)


def look(bench: Bench) -> None:
    bench.ledger.look(bench.now, lambda channel: bench.last_tag[channel])


# --- the end of a link ------------------------------------------------------------------------------------------------


def test_a_close_that_no_suspect_has_explained_is_forgotten_with_its_link() -> None:
    """The suspects go on on the next link, and their acks there leave no close unexplained."""
    bench = Bench()
    suspects = bench.publish(2)
    bench.close_channel(NAMELESS)
    bench.lose()
    bench.up()
    channel = bench.open(Lane.SUSPECT)
    for each in suspects:
        assert bench.write() == [each]
        bench.ack(each.tag, channel=channel)
    assert bench.ledger.ends.unexplained() == 0


def test_messages_of_both_channels_come_back_in_the_order_of_acceptance() -> None:
    """The introduction was written before the message to the same exchange on the main channel."""
    bench = Bench()
    first = bench.accept(exchange="x")
    bench.write()
    bench.open(Lane.SUSPECT)
    bench.write()
    bench.now += PASSES_AFTER
    look(bench)
    second = bench.accept(exchange="x")
    bench.write()
    assert (first.lane, second.lane) == (Lane.SUSPECT, Lane.MAIN)
    bench.lose()
    bench.up()
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == [first]
    bench.ack(1, channel=channel)
    assert bench.write() == [second]


def test_a_message_can_be_overdue_once_on_each_link() -> None:
    """Its time begins anew when it is written again."""
    bench = Bench(confirm_timeout=10.0)
    message, unnoticed = bench.accept(timeout=500.0), bench.accept(timeout=500.0)
    bench.write(1)
    bench.now += 5.0
    bench.write()
    for link in (1, 2):
        bench.now += 5.0
        look(bench)
        assert (message.overdue, unnoticed.overdue) == (link == 1, False)
        if link == 1:
            bench.lose()
            bench.up()
            bench.write()
            assert bench.ledger.next_wakeup() == bench.now + 10.0
    bench.now += 5.0
    look(bench)
    assert message.overdue
    assert unnoticed.overdue
    assert bench.ledger.counters.overdue == 3


# --- returns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "certain"), [("", True), ("amq.topic", True), ("standard", True), ("plugin", False), ("xamq.", False)]
)
@pytest.mark.parametrize("end", ["ack", "close", "lose"])
def test_a_return_from_an_exchange_of_unknown_type_leaves_the_message_unknown(
    exchange: str, certain: bool, end: str
) -> None:
    """A plugin may return a message and deliver it later. Exchanges of AMQP itself do not."""
    bench = Bench()
    bench.ledger.declared("standard", standard=True)
    message = bench.accept(exchange=exchange)
    bench.write()
    lane, channel = Lane.MAIN, 1
    if message.epoch is None:
        lane, channel = Lane.SUSPECT, bench.open(Lane.SUSPECT)
        bench.write()
    bench.bounce(message, channel=channel)
    if end == "ack":
        ended = bench.ack(1, channel=channel)
    elif end == "close":
        ended = bench.close_channel(lane=lane)
    else:
        ended = bench.lose()
    assert ended == [message]
    assert isinstance(message.outcome, Unroutable)
    assert message.outcome.may_have_been_delivered is not certain


# --- the close of a channel: which tags it is about --------------------------------------------------------------------


def close(bench: Bench, fault: Fault, written: int, begun: int, lane: Lane = Lane.MAIN) -> list[Delivery]:
    """The broker closes the channel; tags up to `begun` were begun, and those up to `written` were written."""
    channel = bench.channels.pop(lane)
    return bench.ledger.ends.channel_closed(channel, fault, written, begun, bench.now)[0]


def covered_exchange(bench: Bench, name: str) -> None:
    """Let the broker answer a message to this exchange, so that others go to the main channel."""
    bench.accept(exchange=name)
    bench.ledger.next(bench.now)
    channel = bench.open(Lane.SUSPECT)
    bench.write()
    bench.ack(bench.last_tag[channel], channel=channel)


@pytest.mark.parametrize(
    ("count", "written", "begun", "attempts", "stored"),
    [
        (1, 1, 1, [1], [False]),  # the only one: it is certainly the cause
        (1, 0, 1, [0], [False]),  # it was begun, and the close came before the ledger heard that it was written
        (1, 1, 0, [1], [False]),  # a written message was begun
        (2, 2, 2, [1, 1], [True, True]),  # one of the two is the cause, the other one may be in a queue
        (2, 1, 2, [1, 0], [True, False]),
        (3, 2, 3, [1, 1, 0], [True, True, False]),
    ],
)
def test_of_the_guilty_messages_only_the_written_ones_may_be_stored(
    count: int, written: int, begun: int, attempts: list[int], stored: list[bool]
) -> None:
    """An attempt that was not written is not counted, and a message that was refused alone is in no queue."""
    bench = Bench()
    covered_exchange(bench, "x")
    guilty = bench.publish(count, exchange="x")
    assert close(bench, NOT_FOUND, written, begun) == guilty
    assert [each.attempts for each in guilty] == attempts
    outcomes = [each.outcome for each in guilty]
    assert [isinstance(each, PublishRefused) and each.may_have_been_delivered for each in outcomes] == stored


def test_a_guilty_message_with_an_unanswered_attempt_stays_unknown() -> None:
    """It was lost with an earlier link, and then refused beside another one."""
    bench = Bench()
    covered_exchange(bench, "x")
    guilty = bench.publish(2, exchange="x")
    bench.lose()
    bench.up()
    covered_exchange(bench, "y")
    channel = bench.channels[Lane.SUSPECT]
    bench.write()
    assert [each.lane for each in guilty] == [Lane.SUSPECT, Lane.MAIN]
    bench.ack(guilty[0].tag, channel=channel)
    bench.write()
    guilty = [guilty[1], *bench.publish(1, exchange="x")]
    assert {each.lane for each in guilty} == {Lane.MAIN}
    assert close(bench, NOT_FOUND, 2, 2) == guilty
    assert [isinstance(each.outcome, PublishRefused) for each in guilty] == [True, True]
    assert all(each.outcome.may_have_been_delivered for each in guilty)  # type: ignore[union-attr]


@pytest.mark.parametrize("code", [404, 541])
def test_only_messages_that_were_begun_and_not_checked_are_suspects(code: int) -> None:
    """Tag 1 was answered, tag 2 was returned, tags 3 and 4 were written, 5 was begun, and 6 was not: 3 to 5 are suspects."""
    bench = Bench()
    messages = bench.publish(6)
    bench.bounce(messages[1])
    bench.ack(1)
    nameless = evolve(NAMELESS, reply_code=code)
    assert close(bench, nameless, 4, 5) == [messages[1]]
    assert [each.alone for each in messages[2:]] == [True, True, True, False]
    assert [each.attempts for each in messages[2:]] == [1, 1, 0, 0]
    assert [each.unanswered for each in messages[2:]] == [1, 1, 0, 0]
    assert (bench.ledger.ends.doubtful, messages[5].outcome) == (int(code == 404), None)


def test_a_close_of_a_channel_that_is_not_open_is_stale() -> None:
    """It is counted, and it counts as explained: it says nothing about the link."""
    bench = Bench()
    bench.publish(1)
    assert bench.ledger.ends.channel_closed(7, NAMELESS, 1, 1, bench.now) == ([], True)
    assert bench.ledger.counters.stale == 1


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_close_that_names_another_message_leaves_the_suspects_their_attempts(written: int) -> None:
    """They were written before the guilty one. What was not written is not counted, and nothing is subtracted twice."""
    bench = Bench()
    suspects = bench.publish(2)
    bench.close_channel(NAMELESS)
    bench.open(Lane.MAIN)
    bench.open(Lane.SUSPECT)
    for each in suspects:
        assert bench.write() == [each]
        bench.now += SUSPECT_PASSES_AFTER
        look(bench)
    guilty = bench.accept(exchange="x")
    assert bench.write() == [guilty]
    assert guilty.lane is Lane.SUSPECT
    assert close(bench, NOT_FOUND, written, 3, Lane.SUSPECT) == [guilty]
    assert [each.suspected for each in suspects] == [0, 0]
    assert [each.attempts for each in suspects] == [2, 1 if written == 1 else 2]
    assert bench.ledger.ends.doubtful == 1  # a text that names its cause explains no other close


@pytest.mark.parametrize("code", [404, 541])
@pytest.mark.parametrize("closes", [1, 2])
def test_a_suspect_that_is_refused_alone_explains_one_close(closes: int, code: int) -> None:
    """Another close before it stays unexplained; a code that one publish cannot cause explains nothing."""
    bench = Bench()
    for _ in range(closes):
        bench.publish(2)
        bench.close_channel(NAMELESS)
        bench.open(Lane.MAIN)
    assert bench.ledger.ends.doubtful == closes
    channel = bench.open(Lane.SUSPECT)
    (first,) = bench.write()
    _, explained = bench.ledger.ends.channel_closed(channel, evolve(NAMELESS, reply_code=code), 1, 1, bench.now)
    assert explained == (code == 404)
    assert bench.ledger.ends.doubtful == (closes - 1 if code == 404 else closes)
    assert (first.outcome is None) == (code == 541)


def test_a_message_that_is_refused_alone_without_an_earlier_close_explains_itself() -> None:
    """There is nothing else to explain, before and after it."""
    bench = Bench()
    bench.publish(2)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    assert bench.ledger.ends.doubtful == 0
    bench.open(Lane.SUSPECT)
    bench.write()
    bench.close_channel(NAMELESS, lane=Lane.SUSPECT)
    assert bench.ledger.ends.doubtful == 0
    assert bench.ledger.ends.unexplained() == 0


def test_a_close_of_the_suspects_channel_is_not_doubtful() -> None:
    """Two introductions are on it, and the text names neither: nothing explains the close, whatever follows."""
    bench = Bench()
    introduced = [bench.accept(exchange=name) for name in "ab"]
    bench.ledger.next(bench.now)
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == introduced
    assert bench.ledger.ends.channel_closed(channel, NAMELESS, 2, 2, bench.now) == ([], False)
    assert bench.ledger.ends.doubtful == 0
    assert [each.alone for each in introduced] == [True, True]


def test_a_close_without_suspects_is_not_doubtful() -> None:
    """All messages on the channel were checked, so no message that is tried alone will explain the close."""
    bench = Bench()
    bench.publish(2)
    bench.ack(2)
    assert bench.ledger.ends.channel_closed(1, NAMELESS, 2, 2, bench.now) == ([], False)
    assert bench.ledger.ends.doubtful == 0
