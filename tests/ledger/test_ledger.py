"""One test per rule of the delivery ledger."""

from __future__ import annotations

import hashlib
import math

import pytest
from attrs import evolve

from warrener._publishing.ledger import Delivery, Ticket, Verdict, verdict_of
from warrener._publishing.ledger.introductions import AT_ONCE, PASSES_AFTER
from warrener.errors import (
    DeadlineExceeded,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishRefused,
    Unconfirmed,
    Unroutable,
)
from warrener.records import Envelope, Lane, Outcome, Receipt, Returned

from .driving import INTERNAL, LOST, NOT_FOUND, Bench, books_balance, returned_of

INVALID = evolve(NOT_FOUND, text="PRECONDITION_FAILED - invalid", reply_code=406)


def kinds(deliveries: list[Delivery]) -> list[type]:
    """Return the classes of the outcomes."""
    return [type(each.outcome) for each in deliveries]


# --- writing ------------------------------------------------------------------------------------------------------


def test_an_ack_confirms() -> None:
    """The ack of a tag gives its publish, and no other, a receipt."""
    bench = Bench()
    first, second = bench.publish(2)
    assert bench.ack(2) == [second]
    assert second.outcome == Receipt("m2", attempts=1, possible_duplicate=False, link=1)
    assert first.outcome is None
    books_balance(bench.ledger, bench.accepted)


def test_order_of_acceptance_is_order_of_writing() -> None:
    """First attempts go out in the order in which they were accepted (R7)."""
    bench = Bench(up=False)
    accepted = [bench.accept() for _ in range(5)]
    bench.up()
    assert bench.write() == accepted


def test_asking_what_is_next_changes_nothing() -> None:
    """`next` names the same delivery until it is sent."""
    bench = Bench()
    delivery = bench.accept()
    assert [bench.ledger.next(0.0) for _ in range(3)] == [delivery] * 3
    assert bench.ledger.buffered == 1


@pytest.mark.parametrize("shut", ["no link", "link not up", "blocked", "window", "channel"])
def test_nothing_is_written_past_a_shut_gate(shut: str) -> None:
    """No link, no topology yet, blocked, window full, channel closed: each alone holds everything back."""
    bench = Bench(up=False, max_in_flight=1)
    if shut == "link not up":
        bench.begin()
    elif shut != "no link":
        bench.up()
    if shut == "blocked":
        bench.ledger.pause()
    if shut == "window":
        bench.publish(1)
    if shut == "channel":
        bench.close_channel()
    bench.accept()
    assert bench.ledger.next(bench.now) is None
    assert bench.ledger.buffered == 1


def test_the_window_opens_with_each_answer() -> None:
    """`max_in_flight` unanswered tags at most; an answer lets the next one go."""
    bench = Bench(max_in_flight=2)
    for _ in range(4):
        bench.accept()
    assert len(bench.write()) == 2
    bench.nack(2)
    assert len(bench.write()) == 1
    assert bench.ledger.in_flight == 2


def test_old_link_numbers_do_not_open_the_gate() -> None:
    """`link_up` of a link that is gone changes nothing."""
    bench = Bench()
    bench.lose()
    bench.begin()
    bench.accept()
    bench.ledger.link_up(1)
    assert bench.ledger.next(bench.now) is None
    bench.ledger.link_up(2)
    assert bench.ledger.next(bench.now) is not None


def test_a_link_number_not_begun_is_begun_by_link_up() -> None:
    """`link_up` alone starts a link; its channels may be reported afterwards."""
    bench = Bench(up=False)
    bench.ledger.link_up(7)
    bench.open(Lane.MAIN)
    assert bench.ledger.link == 7
    assert bench.write(1) == []
    bench.accept()
    assert len(bench.write()) == 1


def test_a_link_cannot_begin_over_one_that_was_not_lost() -> None:
    """Tags of the old link would have nobody to settle them."""
    bench = Bench()
    bench.publish(1)
    with pytest.raises(RuntimeError, match="not lost: 1 in flight"):
        bench.ledger.begin_link(2)


@pytest.mark.parametrize(("channel", "tag"), [(1, 2), (1, 0), (2, 1)])
def test_a_tag_out_of_step_is_refused(channel: int, tag: int) -> None:
    """Tags are 1, 2, 3 … of an open channel (I6); anything else would confirm the wrong publish."""
    bench = Bench()
    delivery = bench.accept()
    with pytest.raises(RuntimeError, match=f"tag {tag} on channel {channel}"):
        bench.ledger.published(delivery, channel, tag, bench.now)
    assert bench.ledger.next(bench.now) is delivery


def test_only_what_is_next_can_be_sent() -> None:
    """Sending past the head would break the order; sending twice would lose a tag; a lane is not to be changed."""
    bench = Bench()
    first, second = bench.accept(), bench.accept()
    with pytest.raises(RuntimeError, match="m2"):
        bench.ledger.published(second, 1, 1, bench.now)
    bench.write(1)
    with pytest.raises(RuntimeError, match="m1"):
        bench.ledger.published(first, 1, 2, bench.now)
    suspect = bench.open(Lane.SUSPECT)
    with pytest.raises(RuntimeError, match="m2"):
        bench.ledger.published(second, suspect, 1, bench.now)


def test_what_cannot_be_framed_ends_without_a_tag() -> None:
    """`refuse` resolves as `InvalidMessage`, quotes no fault, and the next tag is still 1."""
    bench = Bench()
    bench.ledger.settlement.last_fault = LOST
    bad, good = bench.accept(), bench.accept()
    assert bench.ledger.refuse(bad, "the header is too long") == [bad]
    assert isinstance(bad.outcome, InvalidMessage)
    assert bad.outcome.last_fault is None
    assert bench.write() == [good]
    assert good.tag == 1
    assert bench.ledger.refuse(bad, "again") == []
    books_balance(bench.ledger, bench.accepted)


# --- bounds -------------------------------------------------------------------------------------------------------


def test_the_buffer_is_bounded_by_count_and_by_octets() -> None:
    """`full` answers for messages and for bytes, and a body beyond the whole buffer never fits (R8)."""
    bench = Bench(up=False, max_buffered=2, max_buffered_bytes=10)
    assert bench.ledger.largest == 10
    assert (bench.ledger.full(10), bench.ledger.full(11)) == (False, True)
    bench.accept(body=b"123456")
    assert (bench.ledger.full(4), bench.ledger.full(5)) == (False, True)
    bench.accept(body=b"")
    assert bench.ledger.full(0)
    assert (bench.ledger.buffered, bench.ledger.buffered_bytes) == (2, 6)


def test_each_way_out_of_the_buffer_makes_room() -> None:
    """Written, cancelled, expired or refused: the room is free at once."""
    bench = Bench(max_buffered=1, max_in_flight=1)
    bench.publish(1)
    delivery = bench.accept()
    assert bench.ledger.full(0)
    bench.ledger.cancel(delivery)
    assert not bench.ledger.full(0)
    delivery = bench.accept(timeout=1.0)
    bench.now += 1.0
    bench.ledger.expire(bench.now)
    assert not bench.ledger.full(0)
    delivery = bench.accept()
    bench.ledger.refuse(delivery, "no")
    assert not bench.ledger.full(0)
    bench.accept()
    bench.ack(1)
    bench.write()
    assert not bench.ledger.full(0)
    assert bench.ledger.buffered_bytes == 0


def test_what_comes_back_does_not_take_the_room_of_new_messages() -> None:
    """What returns from in flight is bounded by `max_in_flight`, on top of `max_buffered` (R8)."""
    bench = Bench(max_buffered=3, max_in_flight=5)
    bench.publish(5)
    bench.lose()
    assert bench.ledger.buffered == 5
    assert not bench.ledger.full(4)
    for _ in range(3):
        bench.accept()
    assert bench.ledger.full(4)
    assert bench.ledger.buffered_bytes == 8 * 4


def test_suspects_keep_their_place_in_the_window() -> None:
    """While suspects wait, the main lane may write only what the window has left; poison cannot pile up."""
    bench = Bench(max_in_flight=3)
    bench.publish(2)
    bench.close_channel()
    bench.open(Lane.MAIN)
    for _ in range(4):
        bench.accept()
    assert len(bench.write()) == 1
    bench.open(Lane.SUSPECT)
    assert [each.lane for each in bench.write()] == [Lane.SUSPECT]
    assert bench.ledger.in_flight == 2


def test_the_dead_leave_the_buffer() -> None:
    """Publishes that expire while there is no link do not pile up behind one that waits for ever."""
    bench = Bench(up=False)
    waiting = bench.accept(timeout=math.inf)
    for _ in range(10_000):
        bench.ledger.cancel(bench.accept())
    assert len(bench.ledger._waiting.unsent.entries) < 200
    assert bench.ledger.buffered == 1
    bench.up()
    assert bench.write() == [waiting]


# --- confirms -----------------------------------------------------------------------------------------------------


def test_multiple_covers_what_is_outstanding_up_to_its_tag() -> None:
    """ack(3, multiple) settles 1 and 3, not 2, which is settled, and not 4 (F4, I8)."""
    bench = Bench()
    one, two, three, four = bench.publish(4)
    bench.nack(2)
    assert bench.ack(3, multiple=True) == [one, three]
    assert kinds([one, two, three]) == [Receipt, Nacked, Receipt]
    assert four.outcome is None
    assert bench.nack(4, multiple=True) == [four]
    assert bench.ledger.counters.anomalies == 0


def test_multiple_with_a_settled_top_tag_still_settles_the_lower_ones() -> None:
    """An ack that aiormq drops, stranding the lower tags (F4)."""
    bench = Bench()
    deliveries = bench.publish(3)
    bench.ack(3)
    assert bench.ack(3, multiple=True) == deliveries[:2]
    assert bench.ledger.counters.anomalies == 1


@pytest.mark.parametrize("tag", [0, -1, 4, 1_000_000_000])
@pytest.mark.parametrize("multiple", [False, True])
def test_a_tag_never_assigned_confirms_nobody(tag: int, multiple: bool) -> None:
    """Tag 0 and tags beyond the last one are counted and nothing else (I9)."""
    bench = Bench()
    bench.publish(3)
    assert bench.ack(tag, multiple=multiple) == []
    assert bench.nack(tag, multiple=multiple) == []
    assert bench.ledger.in_flight == 3
    assert bench.ledger.counters.anomalies == 2


def test_a_settled_tag_never_changes() -> None:
    """A nack after the ack is an anomaly, not an outcome (I10)."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ack(1)
    receipt = delivery.outcome
    assert bench.nack(1) == []
    assert bench.ack(1) == []
    assert delivery.outcome is receipt
    assert bench.ledger.counters.anomalies == 2


def test_a_nack_is_raised_and_not_sent_again() -> None:
    """A refusal says nothing certain about storage (F2), and is final."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    assert bench.nack(1) == [delivery]
    assert isinstance(delivery.outcome, Nacked)
    assert delivery.outcome.may_have_been_delivered
    assert bench.write() == []
    books_balance(bench.ledger, bench.accepted)


def test_facts_about_a_channel_that_is_not_open_change_nothing() -> None:
    """An epoch that has ended, or never was, is only counted (I14)."""
    bench = Bench()
    bench.publish(2)
    bench.close_channel()
    bench.open(Lane.MAIN)
    (delivery,) = bench.publish(1)
    for channel in (1, 3):
        assert bench.ack(1, channel=channel, multiple=True) == []
        assert bench.nack(1, channel=channel) == []
        bench.bounce(delivery, channel=channel)
        assert bench.ledger.ends.channel_closed(channel, NOT_FOUND, 9, 9, bench.now)[0] == []
    assert bench.ledger.counters.stale == 8
    assert bench.ack(1, channel=2) == [delivery]
    assert isinstance(delivery.outcome, Receipt)


# --- returns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["ack", "nack", "ack many", "lost", "closed by the broker", "deadline", "close"])
@pytest.mark.parametrize("at_least_once", [True, False])
def test_a_returned_message_is_unroutable_whatever_follows(answer: str, at_least_once: bool) -> None:
    """A return resolves nothing; then ack, nack, loss, deadline and close all end as `Unroutable` (I12)."""
    bench = Bench(at_least_once=at_least_once)
    (delivery,) = bench.publish(1)
    bench.bounce(delivery)
    assert delivery.outcome is None
    bench.now += 60.0
    resolved = {
        "ack": lambda: bench.ack(1),
        "nack": lambda: bench.nack(1),
        "ack many": lambda: bench.ack(1, multiple=True),
        "lost": bench.lose,
        "closed by the broker": bench.close_channel,
        "deadline": lambda: bench.ledger.expire(bench.now),
        "close": lambda: bench.ledger.close(bench.now - 1),
    }[answer]()
    assert resolved == [delivery]
    assert isinstance(delivery.outcome, Unroutable)
    assert (delivery.outcome.reply_code, delivery.outcome.routing_key) == (312, "q")
    books_balance(bench.ledger, bench.accepted)


def test_confirms_between_a_return_and_its_own_do_not_disturb_it() -> None:
    """return(9), ack(5, multiple), ack(9): the server's coalescing, replayed (F3, I13)."""
    bench = Bench()
    deliveries = bench.publish(9)
    bench.bounce(deliveries[8])
    assert kinds(bench.ack(5, multiple=True)) == [Receipt] * 5
    assert kinds(bench.ack(9)) == [Unroutable]
    assert kinds(bench.ack(8, multiple=True)) == [Receipt] * 3


def test_equal_ids_keys_and_bodies_are_told_apart_by_their_tokens() -> None:
    """Only the publish whose token came back is unroutable (I37)."""
    bench = Bench()
    first = bench.accept(message_id="same", token="t1")
    second = bench.accept(message_id="same", token="t2")
    bench.write()
    bench.bounce(second)
    bench.ack(2, multiple=True)
    assert kinds([first, second]) == [Receipt, Unroutable]


def test_without_a_token_a_unique_id_of_ours_matches() -> None:
    """A message_id that this producer made is unique in the epoch (F3)."""
    bench = Bench()
    first, second = bench.publish(2)
    bench.bounce(second)
    bench.ack(2, multiple=True)
    assert kinds([first, second]) == [Receipt, Unroutable]


def test_a_publish_after_the_first_return_is_found_by_its_id_too() -> None:
    """The index that the first return makes takes in what is published later (F3)."""
    bench = Bench()
    (first,) = bench.publish(1)
    bench.bounce(first)
    second, third = bench.publish(2)
    bench.ledger.answers.returned(1, returned_of(second, token=None))
    bench.ack(3, multiple=True)
    assert kinds([first, second, third]) == [Unroutable, Unroutable, Receipt]


@pytest.mark.parametrize("token", [None, "foreign"])
def test_a_return_without_its_token_falls_back_to_what_is_unique(token: str | None) -> None:
    """No token or a foreign one: message_id, address, size and hash decide, where one open attempt has them."""
    bench = Bench()
    delivery = bench.accept(message_id="mine", token="t1", body=b"12345")
    bench.publish(1)
    digest = hashlib.blake2b(b"12345", digest_size=16).digest()
    bench.ledger.answers.returned(1, returned_of(delivery, token=token, body_hash=digest))
    bench.ack(2, multiple=True)
    assert isinstance(delivery.outcome, Unroutable)


@pytest.mark.parametrize("differs", ["exchange", "routing_key", "size", "hash", "mandatory", "two carriers"])
def test_a_return_that_does_not_agree_makes_nobody_unroutable(differs: str) -> None:
    """The fallback never guesses: any difference, or a second carrier of the id, and no match is made (I12)."""
    bench = Bench()
    delivery = bench.accept(message_id="mine", token="t1", mandatory=differs != "mandatory")
    other = bench.accept(message_id="mine" if differs == "two carriers" else "other", token="t2")
    bench.write()
    returned = Returned(
        312,
        "NO_ROUTE",
        "x" if differs == "exchange" else "",
        "k" if differs == "routing_key" else "q",
        "mine",
        None,
        5 if differs == "size" else 4,
        b"not its hash" if differs == "hash" else b"",
    )
    bench.ledger.answers.returned(1, returned)
    assert bench.ledger.counters.anomalies == 1
    bench.ack(2, multiple=True)
    # Where it can have been its own, the ack is no longer proof; where it cannot, it still is.
    doubtful = differs in ("size", "hash", "two carriers")
    assert isinstance(delivery.outcome, Unconfirmed if doubtful else Receipt)
    assert isinstance(other.outcome, Unconfirmed if differs == "two carriers" else Receipt)


def test_a_return_of_nobody_downgrades_only_the_candidates() -> None:
    """Without token and id: mandatory publishes to the same address end `Unconfirmed` on their ack, others do not."""
    bench = Bench()
    candidate = bench.accept()
    optional = bench.accept(mandatory=False)
    elsewhere = bench.accept(routing_key="other")
    known = bench.accept()
    refused = bench.accept()
    bench.write()
    bench.bounce(known)
    bench.ledger.answers.returned(1, returned_of(candidate, token=None, message_id=None))
    later = bench.publish(1)
    assert kinds(bench.nack(5)) == [Nacked]
    assert kinds(bench.ack(6, multiple=True)) == [Unconfirmed, Receipt, Receipt, Unroutable, Receipt]
    assert [candidate.outcome is None, later[0].outcome is None, optional.outcome is None] == [False] * 3
    assert verdict_of(candidate.outcome) is Verdict.UNKNOWN  # type: ignore[arg-type]
    assert (elsewhere.attempts, refused.attempts) == (1, 1)
    books_balance(bench.ledger, bench.accepted)


def test_doubt_ends_with_the_epoch() -> None:
    """A message that was in doubt and is sent again is judged by its new attempt."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.answers.returned(1, returned_of(delivery, message_id=None))
    bench.lose()
    bench.up()
    bench.write()
    bench.ack(1)
    assert delivery.outcome == Receipt("m1", 2, True, 2)


def test_a_second_return_of_one_publish_is_an_anomaly() -> None:
    """It changes nothing but the counter."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.bounce(delivery)
    bench.bounce(delivery)
    assert bench.ledger.counters.anomalies == 1
    assert kinds(bench.ack(1)) == [Unroutable]


def test_a_return_after_the_answer_touches_nobody() -> None:
    """The attempt it is about is settled; nobody else carries its id."""
    bench = Bench()
    first, second = bench.publish(2)
    bench.ack(1)
    bench.bounce(first)
    assert kinds(bench.ack(2)) == [Receipt]
    assert isinstance(first.outcome, Receipt)
    assert second.attempts == 1


@pytest.mark.parametrize("window", [1, 90])
def test_messages_sent_after_the_first_return_are_found_too(window: int) -> None:
    """The index of ids and tokens, made at the first return, is kept up to date, and holds little beyond what is open."""
    bench = Bench()
    bench.publish(window - 1)
    for round_ in range(window, 1_000):
        (delivery,) = bench.publish(1, message_id="same" if round_ % 2 else None, token=f"t{round_}")
        bench.bounce(delivery)
        answered = round_ - window + 1
        assert kinds(bench.ack(answered)) == [Receipt if answered < window else Unroutable]
        epoch = bench.ledger._in_flight.epochs[1]
        assert sum(map(len, (epoch.open_ids or {}).values())) <= 2 * window + 64
        assert len(epoch.open_tokens) <= 2 * window + 64


def test_returns_and_anomalies_are_counted() -> None:
    """Each return counts as one, and each that is nobody's, or somebody's a second time, as an anomaly besides."""
    bench = Bench()
    one, two = bench.publish(2)
    bench.bounce(one)
    for count in (1, 2):
        bench.bounce(one)
        bench.bounce(two) if count == 1 else None
        bench.ledger.answers.returned(1, returned_of(two, token=None, message_id="nobody"))
        assert bench.ledger.counters.anomalies == 2 * count
    assert bench.ledger.counters.returned == 6


# --- the end of an epoch ------------------------------------------------------------------------------------------


def test_at_least_once_sends_the_unknown_again_in_order_and_first() -> None:
    """In flight: front of the buffer, original order, before younger ones; the receipt tells (R6, I35)."""
    bench = Bench(max_in_flight=3)
    for _ in range(5):
        bench.accept()
    one, two, three = bench.write()
    bench.ack(2)
    assert bench.lose() == []
    younger = bench.accept()
    bench.up()
    assert bench.write() == [one, three, bench.accepted[3]]
    assert one.tag == 1
    bench.ack(3, multiple=True)
    assert one.outcome == Receipt("m1", attempts=2, possible_duplicate=True, link=2)
    assert two.outcome == Receipt("m2", attempts=1, possible_duplicate=False, link=1)
    assert bench.accepted[3].outcome == Receipt("m4", attempts=1, possible_duplicate=False, link=2)
    assert bench.write() == [bench.accepted[4], younger]
    assert bench.ledger.counters.resent == 2


def test_order_survives_two_losses() -> None:
    """What was written again goes back before what still waits to be."""
    bench = Bench()
    deliveries = bench.publish(4)
    bench.lose()
    bench.up()
    bench.write(2)
    bench.lose()
    bench.up()
    assert bench.write() == deliveries


def test_at_most_once_never_sends_twice_what_may_have_left() -> None:
    """Tags up to `written` end `Unconfirmed`, the rest wait for the next link (I17)."""
    bench = Bench(at_least_once=False)
    one, two, three = bench.publish(3)
    assert bench.lose(written=2) == [one, two]
    assert kinds([one, two]) == [Unconfirmed] * 2
    assert isinstance(one.outcome, Unconfirmed)
    assert one.outcome.last_fault is LOST
    bench.up()
    assert bench.write() == [three]
    bench.ack(1)
    assert three.outcome == Receipt("m3", attempts=1, possible_duplicate=False, link=2)
    assert bench.ledger.counters.resent == 0


def test_what_was_not_offered_was_not_sent() -> None:
    """Above `written` an attempt is unmade: it does not count, and does not make a duplicate possible (P0, P1)."""
    bench = Bench()
    one, two = bench.publish(2)
    bench.lose(written=1)
    bench.up()
    assert bench.write() == [one, two]
    bench.ack(2, multiple=True)
    assert one.outcome == Receipt("m1", 2, True, 2)
    assert two.outcome == Receipt("m2", 1, False, 2)


def test_each_channel_has_its_own_offered() -> None:
    """When a link is lost, every channel is asked how far it got: what the one has sent says nothing about the other."""
    bench = Bench()
    (suspect, _) = bench.publish(2)
    bench.close_channel(INTERNAL)
    bench.open(Lane.MAIN)
    bench.open(Lane.SUSPECT)
    bench.write()
    (plain,) = bench.publish(1)

    bench.ledger.ends.link_lost(LOST, {2: 1, 3: 0}.__getitem__)

    assert (plain.attempts, plain.unanswered) == (1, 1)
    assert (suspect.attempts, suspect.suspected) == (1, 0)


def test_unsent_messages_can_still_end_as_not_sent() -> None:
    """A message that was handed over and never written ends `DeadlineExceeded`, one that may have left does not."""
    bench = Bench()
    one, two = bench.publish(2)
    bench.lose(written=1)
    bench.now += 60.0
    assert bench.ledger.expire(bench.now) == [one, two]
    assert kinds([one, two]) == [Unconfirmed, DeadlineExceeded]


@pytest.mark.parametrize("then", ["nack", "return", "refuse", "give up", "close", "deadline"])
def test_unknown_beats_every_later_bad_news(then: str) -> None:
    """An attempt lost without an answer may be in a queue, whatever the next one says (R5)."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.lose()
    if then == "give up":
        bench.ledger.give_up(LOST, bench.now)
    elif then == "close":
        bench.ledger.close(bench.now)
    elif then == "deadline":
        bench.ledger.expire(bench.now + 60)
    else:
        bench.up()
        if then == "refuse":
            bench.ledger.refuse(delivery, "the header is too long for this link")
        else:
            bench.write()
            if then == "return":
                bench.bounce(delivery)
                bench.ack(1)
            else:
                bench.nack(1)
    assert isinstance(delivery.outcome, Unconfirmed)
    books_balance(bench.ledger, bench.accepted)


# --- a channel closed by the broker -------------------------------------------------------------------------------


@pytest.mark.parametrize("at_least_once", [True, False])
@pytest.mark.parametrize("code", [403, 404, 406])
def test_the_sole_outstanding_publish_is_the_guilty_one(at_least_once: bool, code: int) -> None:
    """Checks precede routing, so it is in no queue: `PublishRefused`, with the broker's words."""
    bench = Bench(at_least_once=at_least_once)
    innocent, guilty, unseen = bench.publish(3)
    bench.ack(1)
    fault = evolve(NOT_FOUND, reply_code=code)
    assert bench.close_channel(fault, written=2) == [guilty]
    assert isinstance(guilty.outcome, PublishRefused)
    assert (guilty.outcome.reply_code, guilty.outcome.reply_text) == (code, NOT_FOUND.text)
    assert not guilty.outcome.may_have_been_delivered
    assert "it is in no queue" in str(guilty.outcome)
    bench.open(Lane.MAIN)
    assert bench.write() == [unseen]
    assert isinstance(innocent.outcome, Receipt)
    books_balance(bench.ledger, bench.accepted)


def test_a_returned_neighbour_does_not_hide_the_guilty_one() -> None:
    """A returned publish passed the checks before it was routed; it cannot have closed the channel."""
    bench = Bench()
    returned, guilty = bench.publish(2)
    bench.bounce(returned)
    assert bench.close_channel() == [guilty, returned]
    assert kinds([returned, guilty]) == [Unroutable, PublishRefused]


def test_a_callers_absence_does_not_make_a_neighbour_guilty() -> None:
    """An abandoned or expired publish on the channel may be the guilty one as well."""
    bench = Bench()
    expired = bench.publish(1, timeout=1.0)[0]
    abandoned, third = bench.publish(2)
    bench.now += 1.0
    bench.ledger.expire(bench.now)
    bench.ledger.cancel(abandoned)
    assert bench.close_channel() == [abandoned]
    assert kinds([expired, abandoned]) == [Unconfirmed, Unconfirmed]
    assert third.outcome is None
    assert third.lane is Lane.SUSPECT


def test_a_crowd_goes_on_as_suspects_one_at_a_time() -> None:
    """Nobody can be named: each is sent alone on its own channel; bystanders are confirmed, the guilty one is named."""
    bench = Bench()
    one, guilty, three = bench.publish(3)
    assert bench.close_channel() == []
    assert bench.ledger.wants_suspect_channel
    bench.open(Lane.MAIN)
    (bystander,) = bench.publish(1)
    assert bystander.lane is Lane.MAIN
    channel = bench.open(Lane.SUSPECT)
    assert not bench.ledger.wants_suspect_channel
    assert bench.write() == [one]
    assert bench.ack(1, channel=channel) == [one]
    assert one.outcome == Receipt("m1", 2, True, 1)
    assert bench.write() == [guilty]
    assert bench.close_channel(lane=Lane.SUSPECT) == [guilty]
    assert isinstance(guilty.outcome, PublishRefused)
    assert bench.ledger.wants_suspect_channel
    channel = bench.open(Lane.SUSPECT)
    assert bench.write() == [three]
    bench.ack(1, channel=channel)
    assert three.outcome == Receipt("m3", 2, True, 1)
    assert bench.ack(1, channel=2) == [bystander]
    assert not bench.ledger.pending
    books_balance(bench.ledger, bench.accepted)


def test_a_suspect_refused_alone_may_have_arrived_with_the_crowd() -> None:
    """Its first attempt is unknown for good (F5): refused, and yet it may have been delivered; counted as unknown."""
    bench = Bench()
    guilty, _ = bench.publish(2)
    bench.close_channel()
    bench.open(Lane.SUSPECT)
    bench.write()
    bench.close_channel(lane=Lane.SUSPECT)
    assert isinstance(guilty.outcome, PublishRefused)
    assert guilty.outcome.may_have_been_delivered
    assert "because of an earlier attempt" in str(guilty.outcome)
    assert bench.ledger.counters.unknown == 1
    assert not PublishRefused("m", "r", reply_code=404, reply_text="t").may_have_been_delivered


def test_a_suspect_gets_three_attempts() -> None:
    """Closes that cannot be pinned on it end it as `Unconfirmed` after three lone attempts."""
    bench = Bench()
    (poison,) = bench.publish(1)
    assert bench.close_channel(INTERNAL) == []
    for attempt in (1, 2):
        bench.open(Lane.SUSPECT)
        assert bench.write() == [poison]
        assert bench.close_channel(INTERNAL, lane=Lane.SUSPECT) == [], attempt
    bench.open(Lane.SUSPECT)
    bench.write()
    assert bench.close_channel(INTERNAL, lane=Lane.SUSPECT) == [poison]
    assert isinstance(poison.outcome, Unconfirmed)
    assert poison.attempts == 4
    assert "4 attempts; in 3 of them it was the only message" in str(poison.outcome)


def test_a_lone_attempt_that_was_not_offered_does_not_count() -> None:
    """Only attempts that may have reached the broker use up a suspect's three."""
    bench = Bench()
    (poison,) = bench.publish(1)
    bench.close_channel(INTERNAL)
    for _ in range(10):
        bench.open(Lane.SUSPECT)
        assert bench.write() == [poison]
        assert bench.close_channel(lane=Lane.SUSPECT, written=0) == []
    assert (poison.attempts, poison.suspected) == (1, 0)


def test_a_suspect_that_passed_is_not_charged_for_a_later_one() -> None:
    """A suspect that closed nothing for a second is not charged for a close that comes after the next suspect."""
    bench = Bench()
    slow, guilty = bench.publish(2)
    bench.close_channel(INVALID)
    bench.open(Lane.MAIN)
    bench.open(Lane.SUSPECT)
    assert bench.write() == [slow]
    bench.now += PASSES_AFTER
    bench.ledger.look(bench.now, lambda _channel: 1)
    assert bench.write() == [guilty]
    bench.close_channel(INVALID, lane=Lane.SUSPECT)
    assert slow.suspected == 0
    bench.open(Lane.SUSPECT)
    assert bench.write() == [guilty]
    assert bench.close_channel(INVALID, lane=Lane.SUSPECT) == [guilty]
    assert isinstance(guilty.outcome, PublishRefused)
    bench.open(Lane.SUSPECT)
    assert bench.write() == [slow]
    bench.ack(1, channel=bench.channels[Lane.SUSPECT])
    assert isinstance(slow.outcome, Receipt)
    books_balance(bench.ledger, bench.accepted)


def test_an_exchange_met_among_names_that_do_not_exist_is_not_met_last() -> None:
    """Introductions that a close cut short come before new ones: each costs them one re-send, and there are 15 at most."""
    bench = Bench(max_buffered=300, max_in_flight=300)
    for number in range(100):
        bench.accept(exchange=f"before-{number}", timeout=math.inf)
    good = bench.accept(exchange="good", timeout=math.inf)
    for number in range(100):
        bench.accept(exchange=f"after-{number}", timeout=math.inf)
    while good.outcome is None:
        bench.ledger.next(bench.now)
        channel = bench.open(Lane.SUSPECT)
        first = bench.write()[0]
        if first is good:
            bench.ack(first.tag, channel=channel)
        else:
            text = f"NOT_FOUND - no exchange '{first.envelope.exchange}'"
            bench.close_channel(evolve(NOT_FOUND, text=text), lane=Lane.SUSPECT)
    assert good.attempts <= AT_ONCE


@pytest.mark.parametrize("text", ["NOT_FOUND - no exchange 'x'", "message size 9 is larger than configured max size 5"])
def test_a_refusal_ends_flights_for_its_own_time_only(text: str) -> None:
    """When a refusal is no longer remembered, and for messages that it is not about, publishing costs what it did before."""
    bench = Bench()
    if "size" in text:
        bench.accept(body=b"too large")
    else:
        bench.accept(exchange="x")
    bench.ledger.next(bench.now)
    bench.open(Lane.SUSPECT)
    (bad,) = bench.write()
    code = 406 if "size" in text else 404
    assert bench.close_channel(evolve(NOT_FOUND, text=text, reply_code=code), lane=bad.lane) == [bad]
    if bad.lane is Lane.MAIN:
        bench.open(Lane.MAIN)
    bench.now += 5.0
    small = Delivery(Envelope(exchange="", routing_key="q", mandatory=True), b"x", "small", math.inf)
    assert bench.ledger.refusal(small, bench.now) is None
    batching = bench.ledger.batching
    assert batching.can_join(small.envelope)
    assert batching.join(small.envelope, small.body, Ticket(), 60.0, bench.now)
    if "size" in text:
        large = Delivery(small.envelope, b"too large", "large", math.inf)
        assert not batching.join(large.envelope, large.body, Ticket(), 60.0, bench.now)
        assert isinstance(bench.ledger.refusal(large, bench.now), PublishRefused)


def test_a_suspect_stays_one_on_the_next_link() -> None:
    """The link is lost while suspects wait, and while one is in flight: they still go alone, in order."""
    bench = Bench()
    suspects = bench.publish(3)
    bench.close_channel()
    bench.open(Lane.SUSPECT)
    assert bench.write() == suspects[:1]
    bench.lose()
    bench.up()
    assert bench.write() == []
    assert bench.ledger.wants_suspect_channel
    bench.open(Lane.SUSPECT)
    for suspect in suspects:
        assert bench.write() == [suspect]
        bench.ack(suspect.tag, channel=2)
    assert not bench.ledger.pending


def test_at_most_once_has_no_suspects() -> None:
    """A crowd that may have been sent ends `Unconfirmed`."""
    bench = Bench(at_least_once=False)
    deliveries = bench.publish(2)
    assert bench.close_channel() == deliveries
    assert kinds(deliveries) == [Unconfirmed] * 2
    assert "channel was closed" in str(deliveries[0].outcome)
    assert not bench.ledger.wants_suspect_channel


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_a_deadline_before_writing_is_a_not_sent() -> None:
    """`DeadlineExceeded`, with the last fault and the reason, at the deadline and not before (I19, I20)."""
    bench = Bench(up=False)
    bench.ledger.settlement.last_fault = LOST
    delivery = bench.accept(timeout=5.0)
    assert bench.ledger.next_wakeup() == 105.0
    assert bench.ledger.expire(104.999) == []
    assert bench.ledger.expire(105.0) == [delivery]
    assert bench.ledger.expire(105.0) == []
    assert isinstance(delivery.outcome, DeadlineExceeded)
    assert delivery.outcome.last_fault is LOST
    assert "no connection" in str(delivery.outcome)
    assert bench.ledger.next_wakeup() == math.inf
    books_balance(bench.ledger, bench.accepted)


@pytest.mark.parametrize(("state", "words"), [("blocked", "blocked publishers"), ("busy", "before it was written")])
def test_the_reason_says_what_held_it_back(state: str, words: str) -> None:
    """Blocked by the broker, or no room in the window."""
    bench = Bench(max_in_flight=1)
    bench.publish(1)
    delivery = bench.accept(timeout=1.0)
    if state == "blocked":
        bench.ledger.pause()
    bench.ledger.expire(bench.now + 1.0)
    assert words in str(delivery.outcome)


def test_deadlines_out_of_order_pass_in_order() -> None:
    """Mixed timeouts resolve by instant, not by order of acceptance; none means never."""
    bench = Bench(up=False)
    for timeout in (5.0, 1.0, math.inf, 3.0, 9.0, 1.0, 4.0):
        bench.accept(timeout=timeout)
    ids = []
    while (instant := bench.ledger.next_wakeup()) < math.inf:
        ids += [(instant - 100.0, each.message_id) for each in bench.ledger.expire(instant)]
    assert ids == [(1.0, "m2"), (1.0, "m6"), (3.0, "m4"), (4.0, "m7"), (5.0, "m1"), (9.0, "m5")]


def test_an_expired_message_is_never_written() -> None:
    """`next` passes it over though nobody has called `expire`; then `expire` reports it, at once."""
    bench = Bench()
    late = [bench.accept(timeout=1.0) for _ in range(3)]
    good = bench.accept()
    bench.now += 1.0
    assert bench.ledger.next(bench.now) is good
    assert bench.ledger.next_wakeup() == -math.inf
    books_balance(bench.ledger, bench.accepted)
    assert bench.ledger.expire(bench.now) == late
    assert bench.ledger.next_wakeup() == 130.0 + 30.0


def test_a_deadline_in_flight_leaves_a_tombstone() -> None:
    """`Unconfirmed` at the deadline; the slot stays taken; the late ack frees it and is one late outcome."""
    bench = Bench(max_in_flight=1)
    (delivery,) = bench.publish(1, timeout=5.0)
    bench.now += 5.0
    assert bench.ledger.expire(bench.now) == [delivery]
    told = delivery.outcome
    assert isinstance(told, Unconfirmed)
    assert (bench.ledger.in_flight, bench.ledger.pending) == (1, 0)
    bench.accept()
    assert bench.write() == []
    assert bench.ack(1) == []
    assert delivery.outcome is told
    assert list(bench.ledger.settlement.late) == [Outcome("m1", Receipt("m1", 1, False, 1))]
    assert len(bench.write()) == 1
    assert (bench.ledger.counters.unknown, bench.ledger.counters.confirmed, bench.ledger.counters.late) == (1, 0, 1)
    books_balance(bench.ledger, bench.accepted)


@pytest.mark.parametrize(
    ("answer", "kind"), [("nack", Nacked), ("return", Unroutable), ("lost", Unconfirmed), ("unsent", NotSent)]
)
def test_a_tombstone_gets_one_late_outcome_and_is_not_sent_again(answer: str, kind: type) -> None:
    """Whatever settles it is the final word, told once."""
    bench = Bench()
    (delivery,) = bench.publish(1, timeout=5.0)
    bench.now += 5.0
    bench.ledger.expire(bench.now)
    if answer == "return":
        bench.bounce(delivery)
    resolved = {
        "nack": lambda: bench.nack(1),
        "return": lambda: bench.ack(1),
        "lost": bench.lose,
        "unsent": lambda: bench.lose(written=0),
    }[answer]()
    assert resolved == []
    assert [type(each.result) for each in bench.ledger.settlement.late] == [kind]
    bench.lose()
    bench.up()
    assert bench.write() == []
    books_balance(bench.ledger, bench.accepted)


def test_each_late_answer_is_counted() -> None:
    """Two acks after two deadlines are two late answers and two late outcomes."""
    bench = Bench()
    bench.publish(2, timeout=5.0)
    bench.ledger.expire(bench.now + 5.0)
    bench.ack(1)
    bench.ack(2)
    assert bench.ledger.counters.late == 2
    assert [each.message_id for each in bench.ledger.settlement.late] == ["m1", "m2"]


def test_unroutable_at_the_deadline_needs_no_second_word() -> None:
    """What the caller was told is certain; the ack that follows says nothing new."""
    bench = Bench()
    (delivery,) = bench.publish(1, timeout=5.0)
    bench.bounce(delivery)
    bench.ledger.expire(bench.now + 5.0)
    assert bench.ack(1) == []
    assert list(bench.ledger.settlement.late) == []
    assert bench.ledger.in_flight == 0


# --- the confirm clock --------------------------------------------------------------------------------------------


def test_the_oldest_publish_makes_the_link_overdue() -> None:
    """`confirm_timeout` after its hand-over, and `next_wakeup` says so beforehand."""
    bench = Bench(confirm_timeout=30.0)
    bench.publish(1, timeout=600.0)
    bench.now += 10.0
    bench.publish(1, timeout=600.0)
    assert bench.ledger.next_wakeup() == 130.0
    assert (bench.ledger.silent(129.9), bench.ledger.silent(130.0)) == (False, True)
    assert bench.ledger.next_wakeup(130.0) == 700.0
    bench.ack(1)
    assert bench.ledger.next_wakeup() == 140.0
    bench.ack(2)
    assert not bench.ledger.silent(1e9)
    assert bench.ledger.next_wakeup() == math.inf


def test_the_confirm_clock_stands_still_while_blocked() -> None:
    """No overdue while blocked, however long; it starts anew at the end of it, once (R9)."""
    bench = Bench(confirm_timeout=30.0)
    bench.publish(1, timeout=math.inf)
    bench.ledger.pause()
    bench.ledger.pause()
    assert not bench.ledger.silent(10_000.0)
    assert bench.ledger.next_wakeup() == math.inf
    bench.ledger.resume(500.0)
    assert bench.ledger.next_wakeup() == 530.0
    bench.ledger.resume(510.0)
    assert (bench.ledger.silent(529.0), bench.ledger.silent(530.0)) == (False, True)


def test_a_suspect_counts_for_the_confirm_clock() -> None:
    """Each open channel's oldest publish does."""
    bench = Bench()
    bench.publish(2, timeout=math.inf)
    bench.close_channel()
    bench.open(Lane.SUSPECT)
    bench.now += 50.0
    bench.write()
    assert bench.ledger.next_wakeup() == 150.25  # the broker has had the suspect for a quarter of a second
    assert bench.ledger.next_wakeup(150.25) == 180.0


def test_a_new_link_starts_unblocked_with_its_own_clock() -> None:
    """Blocked ends with the link (I33), and an unblocked of the old one does not stretch the clock of the new."""
    bench = Bench()
    bench.publish(1, timeout=math.inf)
    bench.ledger.pause()
    bench.lose()
    bench.up()
    assert len(bench.write()) == 1
    bench.ledger.resume(10_000.0)
    assert bench.ledger.silent(130.0)


def test_blocked_holds_back_and_goes_on_in_order() -> None:
    """Nothing new is written, what is in flight is still confirmed, and the order stays (I33)."""
    bench = Bench()
    (flying,) = bench.publish(1)
    bench.ledger.pause()
    waiting = [bench.accept() for _ in range(3)]
    assert bench.write() == []
    assert bench.ack(1) == [flying]
    bench.ledger.resume(bench.now)
    assert bench.write() == waiting


# --- cancellation -------------------------------------------------------------------------------------------------


def test_cancelled_before_hand_over_is_gone() -> None:
    """Nothing was sent and no tag is used; saying it again changes nothing (I36)."""
    bench = Bench(up=False)
    gone, stays = bench.accept(), bench.accept()
    assert bench.ledger.cancel(gone) is True
    assert bench.ledger.cancel(gone) is True
    assert gone.outcome is None
    assert not gone.abandoned
    bench.up()
    assert bench.write() == [stays]
    assert stays.tag == 1
    books_balance(bench.ledger, bench.accepted)


def test_cancelled_after_hand_over_is_tracked() -> None:
    """Abandoned: its ack frees the slot and is told in `late`; its deadline is over; its waiter is let go (R10)."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    delivery.waiter = object()
    assert bench.ledger.cancel(delivery) is False
    assert bench.ledger.cancel(delivery) is False
    assert delivery.abandoned
    assert delivery.waiter is None
    assert bench.ledger.pending
    assert bench.ledger.expire(bench.now + 60.0) == []
    assert bench.ack(1) == [delivery]
    assert list(bench.ledger.settlement.late) == [Outcome("m1", Receipt("m1", 1, False, 1))]
    assert bench.ledger.cancel(delivery) is False
    books_balance(bench.ledger, bench.accepted)


def test_a_late_receipt_tells_of_the_first_attempt() -> None:
    """A caller who left after the message had been sent again is told, late, that it may be there twice."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.lose()
    bench.up()
    bench.write()
    bench.ledger.cancel(delivery)
    bench.ack(1)
    assert list(bench.ledger.settlement.late) == [
        Outcome("m1", Receipt("m1", attempts=2, possible_duplicate=True, link=2))
    ]


@pytest.mark.parametrize(("written", "kind"), [(1, Unconfirmed), (0, NotSent)])
def test_abandoned_is_never_sent_again(written: int, kind: type) -> None:
    """The link is lost: it ends there, `Unconfirmed` if it may have left, else not sent."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ledger.cancel(delivery)
    assert bench.lose(written=written) == [delivery]
    assert [type(each.result) for each in bench.ledger.settlement.late] == [kind]
    bench.up()
    assert bench.write() == []
    books_balance(bench.ledger, bench.accepted)


def test_cancelled_while_waiting_to_be_sent_again() -> None:
    """An attempt of it may have arrived, so it is not gone: abandoned and `Unconfirmed`, at once, and never re-sent."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    delivery.waiter = object()
    bench.lose()
    assert bench.ledger.cancel(delivery) is False
    assert delivery.abandoned
    assert delivery.waiter is None
    assert [type(each.result) for each in bench.ledger.settlement.late] == [Unconfirmed]
    assert not bench.ledger.pending
    bench.up()
    assert bench.write() == []
    books_balance(bench.ledger, bench.accepted)


def test_cancelling_what_was_unmade_is_gone() -> None:
    """Handed over, never written, back in the buffer: cancelled there it is gone for certain."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.lose(written=0)
    assert bench.ledger.cancel(delivery) is True
    books_balance(bench.ledger, bench.accepted)


def test_an_outcome_is_not_cancelled() -> None:
    """It is returned instead."""
    bench = Bench()
    (delivery,) = bench.publish(1)
    bench.ack(1)
    assert bench.ledger.cancel(delivery) is False
    assert not delivery.abandoned


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "kind"), [("give up", GaveUp), ("close", ProducerClosed)])
def test_the_end_resolves_everything(way: str, kind: type) -> None:
    """Never sent: `GaveUp` or `ProducerClosed`; may have been: `Unconfirmed`; returned: `Unroutable`."""
    bench = Bench(max_in_flight=3)
    flying, returned, third = bench.publish(3)
    bench.bounce(returned)
    bench.ledger.cancel(third)
    waiting = bench.accept()
    end = bench.ledger.give_up if way == "give up" else lambda fault, now: bench.ledger.close(now, fault)
    assert end(LOST, bench.now) == [flying, returned, third, waiting]
    assert kinds([flying, returned, third, waiting]) == [Unconfirmed, Unroutable, Unconfirmed, kind]
    assert isinstance(waiting.outcome, NotSent)
    assert waiting.outcome.last_fault is LOST
    assert [each.message_id for each in bench.ledger.settlement.late] == ["m3"]
    assert not bench.ledger.pending
    assert bench.ledger.in_flight == 0
    assert bench.ledger.next_wakeup() == math.inf
    books_balance(bench.ledger, bench.accepted)
    assert end(LOST, bench.now) == []


def test_the_end_includes_what_lapsed() -> None:
    """A publish that `next` found expired is reported by whatever comes first."""
    bench = Bench()
    delivery = bench.accept(timeout=1.0)
    bench.ledger.next(bench.now + 1.0)
    assert bench.ledger.close(bench.now + 1.0) == [delivery]
    assert isinstance(delivery.outcome, DeadlineExceeded)


def test_closed_is_closed_and_given_up_is_not() -> None:
    """A closed ledger is full for ever; one that gave up takes new messages and can be revived."""
    bench = Bench()
    bench.ledger.give_up(LOST, bench.now)
    assert not bench.ledger.full(1)
    bench.up()
    (delivery,) = bench.publish(1)
    assert bench.ack(1) == [delivery]
    bench.ledger.close(bench.now)
    assert bench.ledger.full(0)


def test_the_reason_of_not_sent_falls_back_to_the_last_fault() -> None:
    """`close` without a fault quotes what the owner knows."""
    bench = Bench(up=False)
    delivery = bench.accept()
    bench.ledger.settlement.last_fault = LOST
    bench.ledger.close(bench.now)
    assert isinstance(delivery.outcome, ProducerClosed)
    assert delivery.outcome.last_fault is LOST


def test_a_new_delivery_is_nobodys() -> None:
    """Who waits, and with which permit, is said by the owner; until then neither is there, nor an outcome."""
    delivery = Delivery(Envelope(), b"", "id", 1.0)
    assert (delivery.waiter, delivery.permit, delivery.outcome) == (None, None, None)


def test_a_deliverys_text_shows_no_body() -> None:
    """Bodies are nobody's business, ids are made safe."""
    delivery = Delivery(Envelope(), b"secret", "id\n", 1.0)
    assert repr(delivery) == "<Delivery id\\n attempts=0 outcome=None>"


def test_the_open_channels_are_known() -> None:
    """`channel` answers per lane; before the first link there is none."""
    bench = Bench(up=False)
    assert (bench.ledger.channel(Lane.MAIN), bench.ledger.channel(Lane.SUSPECT)) == (None, None)
    bench.up()
    assert (bench.ledger.channel(Lane.MAIN), bench.ledger.channel(Lane.SUSPECT)) == (1, None)
    bench.open(Lane.SUSPECT)
    assert bench.ledger.channel(Lane.SUSPECT) == 2
    bench.lose()
    assert bench.ledger.channel(Lane.MAIN) is None


def test_what_waits_to_be_sent_again_waits_once_after_two_lost_links() -> None:
    """Cancelled in the middle, and moved to its place for the next link: nothing stands in a queue twice."""
    bench = Bench()
    deliveries = bench.publish(4)
    bench.lose()
    bench.ledger.cancel(deliveries[1])
    bench.begin()
    bench.ledger.ends.link_lost(LOST, lambda _channel: 0)
    bench.up()
    assert bench.ledger.buffered == 3
    assert bench.write() == [deliveries[0], deliveries[2], deliveries[3]]
    assert bench.ledger.buffered == 0
