"""Confirms are coalesced as RabbitMQ's channel process does it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from warrener.testing.broker._confirms import Confirm, Confirms, RandomCoalescing

ACK, NACK = True, False


def publishes(count: int) -> Confirms[str]:
    """Return a channel that has published to one queue."""
    confirms: Confirms[str] = Confirms()
    for _ in range(count):
        confirms.expect(confirms.next_tag(), {"q"})
    return confirms


def answered(confirms: Confirms[str], **tags: bool) -> list[tuple[bool, int, bool]]:
    """Answer some tags (t1=ACK …) and flush."""
    for tag, accepted in tags.items():
        confirms.answer(int(tag[1:]), "q", accepted)
    confirms.take(confirms.waiting)
    return [(confirm.accepted, confirm.tag, confirm.multiple) for confirm in confirms.flush()]


def test_the_confirms_of_others_flush_between_a_return_and_its_ack() -> None:
    """Tags 1 to 5 settled, 6 to 8 pending, 9 unroutable: return(9), ack(5, multiple), ack(9) (F3)."""
    confirms = publishes(8)
    for tag in range(1, 6):
        confirms.answer(tag, "q", ACK)
    confirms.take(5)
    confirms.expect(confirms.next_tag(), set())

    assert [Confirm(ACK, 5, True), Confirm(ACK, 9, False)] == list(confirms.flush())


def test_a_nack_multiple_may_follow_an_ack_of_an_earlier_flush() -> None:
    """ack(1), later nack(3, multiple): it covers 2 and 3 only (F4)."""
    confirms = publishes(3)

    assert [(ACK, 1, False)] == answered(confirms, t1=ACK)
    assert [(NACK, 3, True)] == answered(confirms, t2=NACK, t3=NACK)


def test_in_one_flush_acks_go_before_nacks_and_nothing_crosses() -> None:
    """Neither sign's multiple covers a tag of the other (F4)."""
    assert [(ACK, 1, True), (ACK, 3, False), (NACK, 2, False), (NACK, 4, False)] == answered(
        publishes(4), t1=ACK, t2=NACK, t3=ACK, t4=NACK
    )


def test_acks_out_of_order_go_one_by_one_above_the_first_pending_tag() -> None:
    """With tag 1 pending nothing is multiple."""
    assert [(ACK, 2, False), (ACK, 3, False)] == answered(publishes(3), t3=ACK, t2=ACK)


def test_one_refusal_nacks_a_publish_to_several_queues_at_once() -> None:
    """The other queue's answer changes nothing any more (F2)."""
    confirms: Confirms[str] = Confirms()
    confirms.expect(confirms.next_tag(), {"a", "b"})
    confirms.answer(1, "a", NACK)
    confirms.answer(1, "b", ACK)
    confirms.take(2)

    assert [Confirm(NACK, 1, True)] == list(confirms.flush())


@given(st.integers(), st.lists(st.booleans(), min_size=1, max_size=20))
def test_any_flush_points_settle_each_tag_once_as_it_was_answered(seed: int, answers: list[bool]) -> None:
    """A reader that applies the confirms gets each queue's answer, coalesced or not (I8, I11)."""
    rng = random.Random(seed)
    policy = RandomCoalescing(rng)
    confirms = publishes(len(answers))
    order = list(enumerate(answers, start=1))
    rng.shuffle(order)
    for tag, accepted in order:
        confirms.answer(tag, "q", accepted)
    outstanding, heard = set(range(1, len(answers) + 1)), {}
    while confirms.pending:
        if confirms.waiting:
            confirms.take(policy.taken(confirms.waiting, idle=True))
        for confirm in confirms.flush():
            covered = {t for t in outstanding if t <= confirm.tag} if confirm.multiple else {confirm.tag}
            assert covered <= outstanding
            outstanding -= covered
            heard.update(dict.fromkeys(covered, confirm.accepted))

    assert dict(enumerate(answers, start=1)) == heard
