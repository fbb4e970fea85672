"""What the end of a channel or a link does to the messages on it, where it depends on their lane, their tag or their past."""

from __future__ import annotations

import pytest
from attrs import evolve

from warrener._publishing.ledger.introductions import PASSES_AFTER
from warrener.errors import Unroutable
from warrener.records import Lane

from .driving import NOT_FOUND, Bench

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
