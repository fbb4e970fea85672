"""What an outcome tells its caller: which message, in which words, and which fault lies behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from attrs import frozen

from warrener import Retry
from warrener._publishing.ledger import Delivery
from warrener.errors import (
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishError,
    PublishRefused,
    Unconfirmed,
    Unroutable,
)
from warrener.records import Lane, Receipt
from warrener.retry import retry_rules

from .driving import INTERNAL, LOST, NOT_FOUND, Bench, returned_of

EARLIER = Fault(FaultKind.UNREACHABLE, "connection refused")

Ending: TypeAlias = Callable[[], Receipt | PublishError | None]


@frozen
class Case:
    """How a publish ends, and what its caller is told."""

    ending: Ending
    kind: type[PublishError]
    reason: str
    fault: Fault | None


CASES: list[Case] = []


def tells(kind: type[PublishError], reason: str, fault: Fault | None = None) -> Callable[[Ending], Ending]:
    """Add a way to end, with the words that go with it."""

    def add(ending: Ending) -> Ending:
        CASES.append(Case(ending, kind, reason, fault))
        return ending

    return add


def late(bench: Bench) -> Receipt | PublishError:
    """The one outcome whose caller had left."""
    (outcome,) = bench.ledger.settlement.late
    assert outcome.message_id == "m1"
    return outcome.result


def lost_once(bench: Bench) -> Delivery:
    """A publish whose first attempt was lost without an answer, in flight again."""
    (delivery,) = bench.publish(1)
    bench.lose()
    bench.up()
    bench.write()
    return delivery


@tells(Nacked, "the broker refused it (basic.nack)")
def nacked() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.nack(1)
    return delivery.outcome


@tells(Unconfirmed, "the broker refused it (basic.nack), but an earlier attempt has no answer")
def nacked_after_a_lost_attempt() -> Receipt | PublishError | None:
    bench = Bench()
    delivery = lost_once(bench)
    bench.nack(1)
    return delivery.outcome


@tells(Unroutable, "the broker returned it: NO_ROUTE [312]")
def returned() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.bounce(delivery)
    bench.ack(1)
    return delivery.outcome


@tells(Unconfirmed, "the broker returned it: NO_ROUTE [312], but an earlier attempt has no answer")
def returned_after_a_lost_attempt() -> Receipt | PublishError | None:
    bench = Bench()
    delivery = lost_once(bench)
    bench.bounce(delivery)
    bench.ack(1)
    return delivery.outcome


@tells(Unconfirmed, "the broker acked it after a return that may be of this message or of another one")
def acked_in_doubt() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.answers.returned(1, returned_of(delivery, token=None, message_id=None))
    bench.ack(1)
    return delivery.outcome


@tells(PublishRefused, "the broker refused it: NOT_FOUND - no exchange 'x' [404]")
def refused_by_a_channel_close() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.close_channel()
    return delivery.outcome


@tells(InvalidMessage, "the header is too long")
def refused_before_writing() -> Receipt | PublishError | None:
    bench = Bench()
    delivery = bench.accept()
    bench.ledger.refuse(delivery, "the header is too long")
    return delivery.outcome


@tells(Unconfirmed, "the link ended before the broker's confirm", LOST)
def lost_and_not_to_be_sent_again() -> Receipt | PublishError | None:
    bench = Bench(at_least_once=False)
    (delivery,) = bench.publish(1)
    bench.lose()
    return delivery.outcome


@tells(Unconfirmed, "the channel was closed before the broker's confirm", INTERNAL)
def in_a_closed_channel_and_not_to_be_sent_again() -> Receipt | PublishError | None:
    bench = Bench(at_least_once=False)
    (delivery,) = bench.publish(1)
    bench.close_channel(INTERNAL)
    return delivery.outcome


@tells(Unconfirmed, "no confirm came in 4 attempts; in 3 of them it was the only message on its channel", INTERNAL)
def a_suspect_to_the_end() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.close_channel(INTERNAL)
    for _ in range(3):
        bench.open(Lane.SUSPECT)
        bench.write()
        bench.close_channel(INTERNAL, lane=Lane.SUSPECT)
    return delivery.outcome


@tells(Unconfirmed, "the link ended before the broker's confirm", LOST)
def left_and_perhaps_sent() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.cancel(delivery)
    bench.lose()
    return late(bench)


@tells(NotSent, "its publish call ended early, and the link was lost before the message was written", LOST)
def left_and_not_sent() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.cancel(delivery)
    bench.lose(written=0)
    return late(bench)


@tells(
    NotSent,
    "the link was lost before the message was written, and its retry policy does not wait for another link",
    LOST,
)
def not_written_and_impatient() -> Receipt | PublishError | None:
    bench = Bench(max_in_flight=1, retry=retry_rules(Retry.fire_and_confirm()))
    delivery = bench.accept()
    bench.lose()
    bench.ledger.ends.impatient(LOST)
    return delivery.outcome


@tells(Unconfirmed, "cancelled while it waited to be sent again", LOST)
def left_while_it_waited_to_be_sent_again() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.lose()
    bench.ledger.settlement.last_fault = LOST
    bench.ledger.cancel(delivery)
    return late(bench)


@tells(DeadlineExceeded, "its deadline passed while there was no connection", EARLIER)
def expired_without_a_connection() -> Receipt | PublishError | None:
    bench = Bench(up=False)
    bench.ledger.settlement.last_fault = EARLIER
    delivery = bench.accept()
    bench.ledger.expire(bench.now + 60)
    return delivery.outcome


@tells(DeadlineExceeded, "its deadline passed while the broker blocked publishers")
def expired_while_blocked() -> Receipt | PublishError | None:
    bench = Bench()
    bench.ledger.pause()
    delivery = bench.accept()
    bench.ledger.expire(bench.now + 60)
    return delivery.outcome


@tells(DeadlineExceeded, "its deadline passed before it was written")
def expired_in_the_buffer() -> Receipt | PublishError | None:
    bench = Bench()
    delivery = bench.accept()
    bench.ledger.expire(bench.now + 60)
    return delivery.outcome


@tells(Unconfirmed, "its deadline passed before the broker's confirm")
def expired_in_flight() -> Receipt | PublishError | None:
    bench = Bench()
    bench.ledger.settlement.last_fault = EARLIER  # from before: it has nothing to do with this publish
    (delivery,) = bench.publish(1)
    bench.ledger.expire(bench.now + 60)
    return delivery.outcome


@tells(Unconfirmed, "its deadline passed before the broker's confirm", LOST)
def expired_in_flight_for_the_second_time() -> Receipt | PublishError | None:
    bench = Bench()
    delivery = lost_once(bench)
    bench.ledger.settlement.last_fault = LOST
    bench.ledger.expire(bench.now + 60)
    return delivery.outcome


@tells(GaveUp, "the attempts to reconnect are used up", EARLIER)
def given_up_before_writing() -> Receipt | PublishError | None:
    bench = Bench(up=False)
    delivery = bench.accept()
    bench.ledger.give_up(EARLIER, bench.now)
    return delivery.outcome


@tells(Unconfirmed, "the attempts to reconnect are used up", EARLIER)
def given_up_before_it_was_sent_again() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.lose()
    bench.ledger.give_up(EARLIER, bench.now)
    return delivery.outcome


@tells(ProducerClosed, "the producer was closed", EARLIER)
def closed_before_writing() -> Receipt | PublishError | None:
    bench = Bench(up=False)
    bench.ledger.settlement.last_fault = EARLIER
    delivery = bench.accept()
    bench.ledger.close(bench.now)
    return delivery.outcome


@tells(Unconfirmed, "the producer was closed before the broker's confirm", LOST)
def closed_in_flight() -> Receipt | PublishError | None:
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.close(bench.now, LOST)
    return delivery.outcome


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.ending.__name__)
def test_an_outcome_says_which_message_what_happened_and_why(case: Case) -> None:
    """Every way to end without an ack has its class and its words, names the message and quotes the fault behind it."""
    outcome = case.ending()

    assert type(outcome) is case.kind
    assert isinstance(outcome, PublishError)
    assert (outcome.message_id, outcome.reason, outcome.last_fault) == ("m1", case.reason, case.fault)
    assert case.reason in str(outcome)


def test_what_is_returned_says_where_it_was_to_go() -> None:
    """`Unroutable` carries the broker's code, the exchange and the routing key."""
    bench = Bench()
    channel = bench.open(Lane.SUSPECT)
    delivery = bench.accept(exchange="x", routing_key="to.nobody")
    bench.write()
    bench.bounce(delivery, code=313, channel=channel)
    bench.ack(1, channel=channel)

    assert isinstance(delivery.outcome, Unroutable)
    assert (delivery.outcome.reply_code, delivery.outcome.exchange, delivery.outcome.routing_key) == (
        313,
        "x",
        "to.nobody",
    )


def test_a_refusal_carries_the_words_of_the_broker() -> None:
    """`PublishRefused` has the reply code and the reply text of the channel.close."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.close_channel(NOT_FOUND)

    assert isinstance(delivery.outcome, PublishRefused)
    assert (delivery.outcome.reply_code, delivery.outcome.reply_text) == (404, "NOT_FOUND - no exchange 'x'")
