"""Further attempts after a nack and of overdue messages: when, how many, at whose cost, and what the outcome then says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener import Backoff, Budget, Nacked, Receipt, Retry, Unconfirmed
from warrener._publishing.ledger import Delivery
from warrener._retry_rules import RetryRules
from warrener.errors import DeadlineExceeded, NotSent, ProducerClosed, PublishRefused, Unroutable
from warrener.records import Lane, Outcome
from warrener.retry import retry_rules

from .driving import INTERNAL, LOST, Bench, books_balance, returned_of

STEADY = Backoff(initial=2.0, cap=8.0, jitter=0)
NACKED = Retry(on={"unknown", "nacked", "not_sent"}, backoff=STEADY)
OVERDUE = Retry(on={"unknown", "overdue", "not_sent"})


def bench(policy: Retry = NACKED, *, max_buffered: int = 100, max_in_flight: int = 100) -> Bench:
    return Bench(retry=retry_rules(policy), max_buffered=max_buffered, max_in_flight=max_in_flight)


def look(bench: Bench) -> None:
    bench.ledger.look(bench.now, lambda channel: bench.last_tag[channel])


# --- after a nack ----------------------------------------------------------------------------------------------------


def test_a_nacked_message_is_written_again_after_its_delay() -> None:
    """Not before, under the next tag of the same channel, and its receipt says that there may be two of it."""
    b = bench()
    (message,) = b.publish(1)

    assert b.nack(1) == []
    assert (b.ledger.buffered, b.ledger.in_flight, b.ledger.delayed.due_at()) == (1, 0, 102.0)
    b.now = 101.9
    assert b.write() == []
    b.now = 102.0
    assert b.write() == [message]
    assert b.ack(2) == [message]
    assert message.outcome == Receipt(message.message_id, 2, True, 1)
    assert b.ledger.counters.resent == 1
    books_balance(b.ledger, b.accepted)


def test_the_delay_grows_with_each_nack_and_has_a_cap() -> None:
    """2, 4, 8 and again 8 seconds; a link that is lost meanwhile changes nothing in that."""
    b = bench()
    (message,) = b.publish(1)
    waits = []
    for tag in range(1, 5):
        b.nack(tag)
        waits.append(b.ledger.delayed.due_at() - b.now)
        b.now = b.ledger.delayed.due_at()
        assert b.write() == [message]

    assert waits == [2.0, 4.0, 8.0, 8.0]


def test_the_delay_is_within_its_range_and_the_same_for_the_same_message() -> None:
    """The ledger draws nothing: equal facts give equal instants, and different messages are spread."""
    delays = set()
    for number in range(50):
        instants = []
        for _ in range(2):
            b = Bench(retry=RetryRules(nacked=True))
            b.publish(1, message_id=f"m{number}")
            b.nack(1)
            instants.append(b.ledger.delayed.due_at() - b.now)
        assert instants[0] == instants[1]
        assert 0.5 <= instants[0] <= 1.0
        delays.add(instants[0])

    assert len(delays) > 40
    assert max(delays) - min(delays) > 0.4


def test_others_pass_a_message_that_waits_after_a_nack() -> None:
    """It holds no place in the window; when its instant comes it goes before younger ones."""
    b = bench(max_in_flight=1)
    first, second = b.accept(), b.accept()
    b.write()
    b.nack(1)

    assert b.write() == [second]
    b.now = 102.0
    third = b.accept()
    assert b.write() == []
    b.ack(2)
    assert b.write() == [first]
    b.ack(3)
    assert b.write() == [third]


def test_the_number_of_attempts_is_limited() -> None:
    """The last nack ends it, and the error says why."""
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, backoff=STEADY, attempts=2))
    (message,) = b.publish(1)
    b.nack(1)
    b.now = 102.0
    b.write()

    assert b.nack(2) == [message]
    assert isinstance(message.outcome, Nacked)
    assert "its policy allows 2 attempts" in message.outcome.reason


def test_an_attempt_that_would_come_after_the_deadline_is_not_waited_for() -> None:
    """The nack is told at once."""
    b = bench()
    message = b.accept(timeout=2.0)
    b.write()

    assert b.nack(1) == [message]
    assert isinstance(message.outcome, Nacked)
    assert message.outcome.reason.endswith("(basic.nack); the next attempt would come after its deadline")


def test_without_the_policy_a_nack_ends_the_message() -> None:
    """The default."""
    b = Bench()
    (message,) = b.publish(1)

    assert b.nack(1) == [message]
    assert isinstance(message.outcome, Nacked)
    assert message.outcome.cause is None


def test_the_policy_of_a_message_replaces_that_of_the_producer() -> None:
    """Both ways: more patient than the producer, and less."""
    b = Bench()
    patient, plain = b.accept(retry=retry_rules(NACKED)), b.accept()
    b.write()
    assert b.nack(2, multiple=True) == [plain]
    assert b.ledger.delayed.due_at() == 102.0

    once = b.accept(retry=retry_rules(Retry.at_most_once()))
    b.write()
    assert b.lose() == [once]
    assert isinstance(once.outcome, Unconfirmed)
    assert patient.outcome is None


def test_a_message_that_is_nacked_again_waits_once() -> None:
    """It comes back behind one that has waited all the while."""
    b = bench()
    slow, fast = b.publish(2)
    b.nack(1)
    b.now = 102.0
    b.write()
    b.nack(3)  # waits for 4 s
    b.nack(2)  # waits for 2 s
    b.now = 104.0
    assert b.write() == [fast]
    b.nack(4)

    assert b.ledger.buffered == 2
    assert b.ledger.close(b.now) == [slow, fast]
    books_balance(b.ledger, b.accepted)


# --- how a message that waits after a nack ends ----------------------------------------------------------------------------


def nacked_and_waiting() -> tuple[Bench, Delivery]:
    b = bench()
    message = b.accept(timeout=10.0)
    b.write()
    b.nack(1)
    return b, message


def test_its_deadline_ends_it_as_nacked() -> None:
    """It was written, so it is not `DeadlineExceeded`; the broker answered, so it is not unknown."""
    b, message = nacked_and_waiting()
    b.lose()
    b.now = 110.0

    assert b.ledger.expire(b.now) == [message]
    assert isinstance(message.outcome, Nacked)
    assert message.outcome.reason == (
        "the broker refused it (basic.nack), and it was not written again: "
        "its deadline passed during the delay before the next attempt"
    )
    books_balance(b.ledger, b.accepted)


def test_a_cancellation_ends_it_as_nacked() -> None:
    """Its caller has left: the late outcome says so, and nothing is written any more."""
    b, message = nacked_and_waiting()

    assert b.ledger.cancel(message) is False
    assert isinstance(message.outcome, Nacked)
    assert list(b.ledger.settlement.late) == [Outcome(message.message_id, message.outcome)]
    b.now = 105.0
    assert b.write() == []
    books_balance(b.ledger, b.accepted)


@pytest.mark.parametrize("end", ["close", "give_up"])
def test_the_end_of_the_producer_ends_it_as_nacked(end: str) -> None:
    """Also if no link comes any more."""
    b, message = nacked_and_waiting()
    b.lose()
    ended = b.ledger.close(b.now) if end == "close" else b.ledger.give_up(LOST, b.now)

    assert ended == [message]
    assert isinstance(message.outcome, Nacked)
    books_balance(b.ledger, b.accepted)


def test_a_link_that_is_lost_meanwhile_does_not_touch_it() -> None:
    """It is written on the next link, when its instant has come."""
    b, message = nacked_and_waiting()
    assert b.lose() == []
    b.up()
    assert b.write() == []
    b.now = 102.0

    assert b.write() == [message]
    b.ack(1)
    assert message.outcome == Receipt(message.message_id, 2, True, 2)


def test_the_worst_certain_answer_wins() -> None:
    """Nacked, then lost: unknown. Nacked, then returned: nacked. Lost, then nacked for the last time: unknown."""
    b, message = nacked_and_waiting()
    b.now = 102.0
    b.write()
    b.lose()
    assert b.ledger.cancel(message) is False
    assert isinstance(message.outcome, Unconfirmed)

    b, message = nacked_and_waiting()
    b.now = 102.0
    b.write()
    b.bounce(message)
    assert b.ack(2) == [message]
    assert isinstance(message.outcome, Nacked)
    assert "returned" in message.outcome.reason

    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, attempts=2))
    (message,) = b.publish(1)
    b.lose()
    b.up()
    b.write()
    assert b.nack(1) == [message]
    assert isinstance(message.outcome, Unconfirmed)


def test_an_attempt_that_was_not_written_leaves_it_nacked() -> None:
    """The second attempt never left: the outcome is that of the first."""
    b, message = nacked_and_waiting()
    b.now = 102.0
    b.write()
    b.lose(written=0)
    assert (message.attempts, message.outcome) == (1, None)

    assert b.ledger.give_up(LOST, b.now) == [message]
    assert isinstance(message.outcome, Nacked)


def test_a_refusal_after_a_nack_does_not_say_that_no_queue_holds_it() -> None:
    """The nacked attempt may be in a queue."""
    b, message = nacked_and_waiting()
    b.now = 102.0
    b.write()
    b.close_channel()

    assert isinstance(message.outcome, PublishRefused)
    assert message.outcome.may_have_been_delivered


def test_a_return_of_the_second_attempt_is_matched() -> None:
    """In one epoch, with and without a token: the message is listed once, whatever was indexed before."""
    for token in (None, "t"):
        b = bench()
        other = b.accept()
        message = b.accept(message_id="own", token=token)
        b.write()
        b.bounce(other)  # from here on returns are matched by an index
        b.ack(1)
        b.nack(2)
        b.now = 102.0
        b.write()
        b.bounce(message)
        assert isinstance(other.outcome, Unroutable)
        assert b.ledger.counters.anomalies == 0
        assert b.ack(3) == [message]
        assert isinstance(message.outcome, Nacked)


def test_a_suspect_that_is_nacked_is_no_suspect_any_more() -> None:
    """The broker has checked it; its next attempt goes to the main channel."""
    b = bench()
    messages = b.publish(2)
    b.close_channel(INTERNAL)
    b.open(Lane.MAIN)
    channel = b.open(Lane.SUSPECT)
    b.write()
    b.nack(1, channel=channel)
    b.now = 105.0
    b.write()

    assert messages[0].lane is Lane.MAIN
    assert not messages[0].alone


# --- limits ------------------------------------------------------------------------------------------------------------


def test_messages_that_wait_after_a_nack_count_against_the_buffer() -> None:
    """New messages find that much less room."""
    b = bench(max_buffered=10)
    b.publish(1)
    b.nack(1)
    for _ in range(9):
        assert not b.ledger.full(4)
        b.accept()

    assert b.ledger.full(4)
    assert b.ledger.buffered == 10


def test_one_destination_holds_a_tenth_of_the_buffer_and_all_of_them_half() -> None:
    """What finds no place ends as nacked at once, and is counted."""
    b = bench(max_buffered=20)
    one = b.publish(3, routing_key="one")
    b.nack(3, multiple=True)
    assert [each.outcome is None for each in one] == [True, True, False]
    assert isinstance(one[2].outcome, Nacked)
    assert one[2].outcome.cause == "suppressed"
    assert one[2].outcome.reason.endswith("; the buffer has no place for it, or none for its destination")

    others = [b.publish(1, routing_key=f"k{number}")[0] for number in range(10)]
    b.nack(13, multiple=True)
    assert sum(each.outcome is None for each in others) == 8
    assert b.ledger.counters.suppressed == 3
    books_balance(b.ledger, b.accepted)


def test_a_full_buffer_takes_no_message_back() -> None:
    """The buffer never holds more than its limit."""
    b = bench(max_buffered=2, max_in_flight=1)
    (message,) = b.publish(1)
    b.publish(2)
    assert b.ledger.full(4)

    assert b.nack(1) == [message]
    assert b.ledger.buffered == 2


# --- the budget --------------------------------------------------------------------------------------------------------


def test_a_budget_forbids_and_that_is_told() -> None:
    """Two tokens, three nacks: the third ends as nacked, with its cause, and is counted."""
    budget = Budget(ratio=0, floor=0.2, window=10)
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=budget))
    messages = b.publish(3)

    assert b.nack(3, multiple=True) == [messages[2]]
    assert isinstance(messages[2].outcome, Nacked)
    assert messages[2].outcome.cause == "suppressed"
    assert "the retry budget allows no further attempt now" in str(messages[2].outcome)
    assert b.ledger.counters.suppressed == 1
    books_balance(b.ledger, b.accepted)


def test_a_budget_does_not_gate_the_attempts_after_a_lost_link_or_a_closed_channel() -> None:
    """Without them nothing would be sent at all."""
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget(ratio=0, floor=0)))
    messages = b.publish(5)
    b.lose()
    b.up()
    assert b.write() == messages
    b.close_channel(INTERNAL)
    b.open(Lane.MAIN)
    b.open(Lane.SUSPECT)
    b.write()

    assert [each.outcome for each in messages] == [None] * 5
    assert b.ledger.counters.suppressed == 0


def test_the_budget_grows_with_the_accepted_messages() -> None:
    """A tenth of them: 50 messages pay for 5 further attempts."""
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget(ratio=0.1, floor=0)))
    for _ in range(5):
        b.publish(10)
    b.nack(10, multiple=True)

    assert (b.ledger.buffered, b.ledger.counters.suppressed) == (5, 5)


def test_one_budget_is_shared_by_all_that_hold_it() -> None:
    """By two ledgers, and by the policy of one message; an equal one is another account."""
    budget = Budget(ratio=0, floor=0.2)
    policy = Retry(on={"unknown", "nacked", "not_sent"}, budget=budget)
    one, two = bench(policy), Bench()
    one.publish(1)
    one.nack(1)
    rules = retry_rules(Retry(on={"unknown", "nacked", "not_sent"}, attempts=5, budget=budget))
    overriding = [two.accept(retry=rules), two.accept(retry=rules)]
    two.write()
    two.nack(2, multiple=True)

    assert [each.outcome is None for each in overriding] == [True, False]
    equal = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget(ratio=0, floor=0.2)))
    equal.publish(2)
    assert equal.nack(2, multiple=True) == []


def test_messages_with_their_own_budget_pay_into_that_one() -> None:
    """And not into the producer's."""
    own, common = Budget(ratio=1, floor=0), Budget(ratio=1, floor=0)
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=common))
    b.accept(retry=retry_rules(Retry(on={"unknown", "nacked", "not_sent"}, budget=own)))
    look(b)

    assert not common.paid(1, b.now)
    assert own.paid(1, b.now)


def test_a_nack_of_a_message_of_unknown_fate_costs_two() -> None:
    """Its next attempt may be the third copy."""
    b = bench(Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget(ratio=0, floor=0.15)))
    (message,) = b.publish(1)
    b.lose()
    b.up()
    b.write()

    assert b.nack(1) == [message]
    assert isinstance(message.outcome, Unconfirmed)
    assert message.outcome.cause == "suppressed"


@given(st.lists(st.sampled_from(["publish", "nack", "ack", "tick"]), max_size=60))
def test_no_sequence_of_nacks_exceeds_the_budget(steps: list[str]) -> None:
    """All further attempts: at most the full floor, the floor of the time, and the ratio of the accepted (R14, I27)."""
    b = bench(
        Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget(ratio=0.2, floor=0.1, window=10), backoff=STEADY)
    )
    for step in steps:
        open_tags = sorted(tag for (_, _, tag), each in b.wire.items() if each.tag == tag and each.epoch is not None)
        if step == "publish":
            b.publish(3)
        elif step == "tick":
            b.now += 2.0
            b.write()
        elif open_tags:
            (b.nack if step == "nack" else b.ack)(open_tags[0])
    b.now += 100
    b.write()

    assert b.ledger.counters.resent <= 0.1 * (10 + b.now - 100.0) + 0.2 * len(b.accepted) + 1e-6


# --- overdue messages ----------------------------------------------------------------------------------------------------


def overdue_bench(policy: Retry = OVERDUE, **limits: int) -> tuple[Bench, Delivery]:
    """One message that waits for 31 s while the broker answers a later one."""
    b = bench(policy, **limits)
    message = b.accept(routing_key="mute", timeout=200.0)
    b.write()
    b.now += 20
    b.publish(1)
    b.ack(2)
    b.now += 11
    look(b)
    return b, message


def test_an_overdue_message_is_written_again_and_the_first_ack_counts() -> None:
    """The later attempt's, and then the earlier one's changes nothing."""
    b, message = overdue_bench()
    assert b.write() == [message]
    assert (b.ledger.in_flight, b.ledger.pending) == (2, 1)

    assert b.ack(3) == [message]
    assert message.outcome == Receipt(message.message_id, 2, True, 1)
    assert b.ack(1) == []
    assert (b.ledger.in_flight, b.ledger.pending, b.ledger.counters.late) == (0, 0, 0)
    books_balance(b.ledger, b.accepted)


def test_an_ack_of_the_earlier_attempt_confirms_the_message() -> None:
    """While the later one is in flight (two copies are possible), and while it waits (there is one)."""
    b, message = overdue_bench()
    b.write()
    assert b.ack(1) == [message]
    assert message.outcome == Receipt(message.message_id, 2, True, 1)
    assert (b.ledger.in_flight, b.ledger.pending) == (1, 0)
    assert b.nack(3) == []
    assert b.lose() == []
    books_balance(b.ledger, b.accepted)

    b, message = overdue_bench()
    assert b.ack(1) == [message]
    assert message.outcome == Receipt(message.message_id, 1, False, 1)
    assert b.write() == []
    books_balance(b.ledger, b.accepted)


@pytest.mark.parametrize("returned", [False, True])
def test_one_ack_of_both_attempts_leaves_no_tag_behind(returned: bool) -> None:
    """An ack of several tags confirms the message once, even if the later attempt was returned."""
    b, message = overdue_bench()
    b.write()
    if returned:
        b.bounce(message)
    assert b.ack(3, multiple=True) == [message]
    assert message.outcome == Receipt(message.message_id, 2, True, 1)
    assert (b.ledger.in_flight, b.ledger.pending) == (0, 0)
    assert b.ledger.next_wakeup() == float("inf")
    books_balance(b.ledger, b.accepted)


def test_a_nack_of_the_earlier_attempt_leaves_the_outcome_to_the_later_one() -> None:
    """Both nacked: nacked. The earlier nacked and the later lost: unknown."""
    b, message = overdue_bench()
    b.write()
    assert b.nack(1) == []
    assert b.nack(3) == [message]
    assert isinstance(message.outcome, Nacked)

    b, message = overdue_bench(Retry(on={"unknown", "overdue", "not_sent"}, attempts=2))
    b.write()
    b.nack(1)
    assert b.lose() == [message]
    assert isinstance(message.outcome, Unconfirmed)
    books_balance(b.ledger, b.accepted)


def test_a_nack_of_each_attempt_makes_the_delay_longer() -> None:
    """The nack of an earlier attempt counts too."""
    b, message = overdue_bench(Retry(on={"unknown", "overdue", "nacked", "not_sent"}, backoff=STEADY))
    b.write()
    assert b.nack(1) == b.nack(3) == []
    assert message.nacks == 2
    assert b.ledger.delayed.due_at() == b.now + 4.0


@pytest.mark.parametrize("second", ["nacked", "lost"])
def test_each_attempt_without_an_answer_leaves_the_message_unknown(second: str) -> None:
    """Three attempts: the message is nacked only if the broker has nacked each of them."""
    b, message = overdue_bench()
    b.write()
    b.publish(1)
    b.ack(4)
    b.now += 31
    look(b)
    assert b.write() == [message]
    assert message.unanswered == 2
    if second == "nacked":
        b.nack(3)
    b.nack(1)
    assert b.nack(5) == [message]
    assert type(message.outcome) is (Nacked if second == "nacked" else Unconfirmed)
    books_balance(b.ledger, b.accepted)


@pytest.mark.parametrize("certain", [True, False])
def test_an_ack_of_a_returned_earlier_attempt_confirms_nothing(certain: bool) -> None:
    """The broker acks what it has returned; the later attempt decides."""
    b = bench(OVERDUE)
    (message,) = b.publish(1)
    if certain:
        b.bounce(message)
    else:
        b.ledger.answers.returned(1, returned_of(message, token=None, message_id=None))
    b.now += 20
    b.publish(1)
    b.ack(2)
    b.now += 11
    look(b)
    assert b.write() == [message]
    assert b.ack(1) == []
    assert message.outcome is None


def test_a_lost_link_ends_both_attempts_as_unknown() -> None:
    """The message is written again on the next link, once."""
    b, message = overdue_bench()
    b.write()
    assert b.lose() == []
    b.up()

    assert b.write() == [message]
    b.ack(1)
    assert message.outcome == Receipt(message.message_id, 3, True, 2)
    books_balance(b.ledger, b.accepted)


def test_a_closed_channel_ends_both_attempts() -> None:
    """The earlier attempt was checked by the broker, and is no suspect."""
    b, message = overdue_bench()
    b.write()
    assert b.close_channel(INTERNAL) == []
    assert message.alone
    b.open(Lane.MAIN)
    b.open(Lane.SUSPECT)

    assert b.write() == [message]
    books_balance(b.ledger, b.accepted)


def test_a_return_is_about_the_later_attempt() -> None:
    """The broker has routed the earlier one long ago, because it has answered a later tag."""
    b, message = overdue_bench()
    b.write()
    b.bounce(message)
    assert b.ledger.counters.anomalies == 0
    assert b.ack(3) == [message]
    assert isinstance(message.outcome, Unconfirmed)
    assert b.ack(1) == []


@pytest.mark.parametrize("end", ["deadline", "cancel", "close"])
def test_an_overdue_message_that_ends_meanwhile_leaves_two_tags(end: str) -> None:
    """One outcome; both tags keep their place until the broker answers."""
    b, message = overdue_bench()
    b.write()
    if end == "deadline":
        b.now = message.deadline
        assert b.ledger.expire(b.now) == [message]
        assert isinstance(message.outcome, Unconfirmed)
    elif end == "cancel":
        assert b.ledger.cancel(message) is False
    else:
        assert b.ledger.close(b.now) == [message]
        assert (b.ledger.in_flight, b.ledger.pending) == (0, 0)
        return
    assert b.ledger.in_flight == 2
    b.ack(1)
    assert [type(each.result) for each in b.ledger.settlement.late] == [Receipt]
    b.ack(3)
    assert (b.ledger.in_flight, b.ledger.pending) == (0, 0)
    books_balance(b.ledger, b.accepted)


def test_a_message_is_not_written_again_before_the_broker_has_answered_a_later_one() -> None:
    """Until then a return of its first attempt may still come."""
    b = bench(OVERDUE)
    b.publish(1)
    b.now += 20
    (message,) = b.publish(1, timeout=200.0)
    b.ack(1)
    b.now += 31
    look(b)
    assert b.write() == []
    assert b.ledger.next_wakeup(b.now) <= b.now + 30 / 8

    b.publish(1)
    b.ack(3)
    b.now += 4
    look(b)
    assert b.write() == [message]


def test_an_overdue_message_waits_on_while_the_broker_blocks() -> None:
    """It could not be written again then. It is queued after the block ends, if its answer has not come."""
    b = bench(OVERDUE)
    (message,) = b.publish(1, timeout=200.0)
    b.now += 31
    look(b)
    assert message.overdue
    b.publish(1)
    b.ack(2)
    b.ledger.pause()
    b.now += 10
    look(b)
    assert (b.ledger.buffered, b.ledger.in_flight) == (0, 1)
    b.ledger.resume(b.now)
    look(b)
    assert b.write() == [message]


def test_overdue_messages_stay_within_the_share_of_their_destination() -> None:
    """A tenth of the window, earlier attempts included; the others wait on for their confirm."""
    b = bench(OVERDUE, max_in_flight=40)
    for number in range(3):
        b.accept(routing_key="mute", timeout=200.0, message_id=f"mute{number}")
    b.write()
    b.now += 20
    b.publish(1)
    b.ack(4)
    b.now += 11
    look(b)

    assert len(b.write()) == 1
    assert b.ledger.in_flight == 4


def test_a_full_window_lets_no_message_be_written_twice() -> None:
    """in flight + resend stays within the window."""
    b = bench(OVERDUE, max_in_flight=2)
    b.accept(routing_key="mute", timeout=200.0)
    b.publish(1, timeout=200.0)
    b.ack(2)
    b.now += 20
    b.publish(1, timeout=200.0)
    b.now += 11
    look(b)
    assert b.write() == []
    assert b.ledger.in_flight == 2


def test_an_overdue_message_costs_three() -> None:
    """What the budget forbids waits on for its confirm, and says so at its deadline."""
    b, message = overdue_bench(Retry(on={"unknown", "overdue", "not_sent"}, budget=Budget(ratio=0, floor=0.29)))
    assert b.write() == []
    assert b.ledger.counters.suppressed == 1
    b.now = message.deadline
    assert b.ledger.expire(b.now) == [message]
    assert isinstance(message.outcome, Unconfirmed)
    assert message.outcome.cause == "suppressed"
    assert "the retry budget allowed no further attempt" in message.outcome.reason

    b, message = overdue_bench(Retry(on={"unknown", "overdue", "not_sent"}, budget=Budget(ratio=0, floor=0.3)))
    assert b.write() == [message]


def test_the_attempts_of_an_overdue_message_are_limited() -> None:
    """Two attempts: then it waits for its confirm."""
    b, message = overdue_bench(Retry(on={"unknown", "overdue", "not_sent"}, attempts=2))
    assert b.write() == [message]
    b.now += 20
    b.publish(1)
    b.ack(4)
    b.now += 31
    look(b)

    assert b.write() == []
    assert b.ledger.in_flight == 2


def test_by_default_an_overdue_message_waits() -> None:
    """Unknown is not overdue: the link works, and its confirm may still come."""
    b, message = overdue_bench(Retry())

    assert b.write() == []
    assert message.overdue


# --- policies that do not wait -----------------------------------------------------------------------------------------------


def test_a_message_whose_policy_does_not_wait_ends_with_its_link() -> None:
    """Others wait on."""
    b = Bench(max_in_flight=1)
    b.publish(1)
    impatient, patient = b.accept(retry=retry_rules(Retry.fire_and_confirm())), b.accept()
    b.lose()

    assert b.ledger.ends.impatient(LOST) == [impatient]
    assert isinstance(impatient.outcome, NotSent)
    assert not isinstance(impatient.outcome, DeadlineExceeded | ProducerClosed)
    assert patient.outcome is None
