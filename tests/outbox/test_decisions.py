"""Which rows a claim takes, and what the relay does with each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener.errors import (
    CircuitOpen,
    DeadlineExceeded,
    InvalidMessage,
    Nacked,
    PublishRefused,
    SettingsError,
    Unconfirmed,
    Unroutable,
)
from warrener.outbox._decisions import RelayPolicy, Window, choose, gather, verdict
from warrener.outbox.records import Candidate, Claimed, Row, Want
from warrener.records import Message, Receipt

WANT = Want(rows=100, bytes=1 << 20, per_key=3)
POLICY = RelayPolicy()


def candidate(position, key=None, *, size=1, ready=True, taken=False, first=None):
    return Candidate(position, key, size, ready, taken, position if first is None else first)


def row(position, key=None, *, claim=1, attempts=0, nacks=0):
    message = Message(b"body", routing_key="q", message_id=f"m{position}")
    return Row(position, claim, key, message, attempts, nacks, attempts > 0)


def window(*rows, policy=POLICY):
    made = Window(policy)
    made.take(Claimed(tuple(rows)), WANT)
    made.leased_until = 30.0
    return made


def receipt(which):
    return Receipt(which.message.message_id, 1, False, 1)


def positions(runs):
    return [[one.position for one in run.rows] for run in runs]


# --- claims -------------------------------------------------------------------------------------------------------

rows_of_an_outbox = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans(), st.booleans(), st.integers(0, 40)), max_size=30
)


@given(rows_of_an_outbox, st.integers(1, 12), st.integers(1, 100), st.integers(1, 4))
def test_claims_a_key_from_its_first_row_without_a_gap(made, rows, size, per_key):
    """Of each key a prefix is taken, of ready rows that nobody has; and never more than asked for, one row apart."""
    first = {}
    for position, (key, *_) in enumerate(made):
        first.setdefault(key, position)
    outbox = [
        Candidate(position, key, weight, ready, taken, position if key is None else first[key])
        for position, (key, ready, taken, weight) in enumerate(made)
    ]

    picked, unfinished = choose(outbox, Want(rows=rows, bytes=size, per_key=per_key))

    assert len(picked) <= rows
    assert len(picked) == 1 or sum(one.size for one in picked) <= size
    assert all(one.ready and not one.taken for one in picked)
    for key in "abc":
        of_key = [one.position for one in outbox if one.key == key]
        of_picked = [one.position for one in picked if one.key == key]
        assert of_picked == of_key[: len(of_picked)]
        assert len(of_picked) <= per_key
        assert key not in unfinished or len(of_key) > len(of_picked)


def test_a_row_that_is_not_ready_holds_up_its_key():
    """A later row of a key does not pass one whose retry time has not come; rows of other keys do."""
    outbox = [
        candidate(1, "a"), candidate(2, "a", ready=False, first=1), candidate(3, "a", first=1), candidate(4), candidate(5, "b"),
    ]  # fmt: skip

    picked, _ = choose(outbox, WANT)

    assert [one.position for one in picked] == [1, 4, 5]


class Listed:
    def __init__(self, outbox):
        self.outbox = outbox

    def after(self, position, limit):
        return [one for one in self.outbox if one.position > position][:limit]

    def of_key(self, key, limit):
        return [one for one in self.outbox if one.key == key][:limit]

    def newest(self, limit):
        return self.outbox[-limit:]


def test_the_newest_rows_are_not_starved_by_a_backlog():
    """An eighth of a claim goes to the newest rows, while the backlog is larger than the relay."""
    gathered = gather(Want(rows=80, bytes=1 << 20, per_key=3), Listed([candidate(n) for n in range(1, 1001)]))

    assert [one.position for one in gathered.picked] == [*range(1, 71), *range(991, 1001)]
    assert (gathered.scanned_to, gathered.more) == (70, True)


def test_a_scan_goes_on_where_it_ended():
    """A claim that looked at as many rows as it may does not look at them again in the next one."""
    outbox = [candidate(n, taken=True) for n in range(1, 101)]

    gathered = gather(Want(rows=8, bytes=1 << 20, per_key=3, scan=60), Listed(outbox))

    assert (gathered.scanned_to, gathered.more) == (60, True)


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "nacks", "expected"),
    [
        (Receipt("m", 1, False, 1), 0, "confirmed"),
        (Unconfirmed("m", "no answer"), 0, "unknown"),
        (Unroutable("m", "returned"), 0, "poison"),
        (PublishRefused("m", "closed", reply_code=404, reply_text="no exchange"), 0, "poison"),
        (InvalidMessage("m", "too long"), 0, "poison"),
        (Nacked("m", "full"), 3, "nacked"),
        (Nacked("m", "full"), 4, "poison"),
        (DeadlineExceeded("m", "no link"), 0, "unsent"),
        (CircuitOpen("m", "open", retry_after=1.0), 0, "unsent"),
    ],
)
def test_verdict(outcome, nacks, expected):
    """Each kind of outcome has one meaning; the fifth nack of five attempts is poison."""
    assert verdict(row(1, nacks=nacks), outcome, RelayPolicy(attempts=5)) == expected


# --- the window ---------------------------------------------------------------------------------------------------


def test_one_row_of_a_key_at_a_time():
    """Rows without a key go together with the first row of each key; the second follows when the first is confirmed."""
    first, second, other, free = row(1, "a"), row(2, "a"), row(3, "b"), row(4)
    held = window(first, second, other, free)

    (run,) = held.runs(0.0)
    assert [one.position for one in run.rows] == [1, 3, 4]
    assert held.runs(0.0) == []
    held.landed(run, [receipt(one) for one in run.rows], 1.0)

    assert positions(held.runs(1.0)) == [[2]]
    assert held.orders().confirmed == ((1, 1), (3, 1), (4, 1))


def test_a_row_of_unknown_outcome_goes_again_alone_and_flagged():
    """It is noted as a possible duplicate before it is published again, and its key waits for it."""
    first, second = row(1, "a"), row(2, "a")
    held = window(first, second)
    (run,) = held.runs(0.0)

    held.landed(run, [Unconfirmed("m1", "no answer")], 1.0)

    (again,) = held.orders().again
    assert (again.position, again.attempts, again.possible_duplicate, again.delay) == (1, 1, True, None)
    (resend,) = held.runs(1.0)
    assert resend.alone
    assert [(one.position, one.possible_duplicate) for one in resend.rows] == [(1, True)]


def test_a_late_confirm_ends_a_row():
    """The confirm of an earlier attempt counts while the row is held; the outcome of the resend changes nothing more."""
    first, second = row(1, "a"), row(2, "a")
    held = window(first, second)
    (run,) = held.runs(0.0)
    held.landed(run, [Unconfirmed("m1", "no answer")], 1.0)
    (resend,) = held.runs(1.0)

    assert held.late("m1", receipt(first))
    assert positions(held.runs(1.0)) == [[2]]
    held.landed(resend, [Unconfirmed("m1", "no answer")], 2.0)

    assert held.orders().confirmed == ((1, 1),)
    assert held.possible_duplicates == 1


def test_a_late_confirm_for_an_id_that_two_rows_have_ends_neither():
    """Nothing says which of the two was confirmed."""
    twins = [Row(position, 1, None, Message(b"", routing_key="q", message_id="m"), 1, 0, True) for position in (1, 2)]
    held = window(*twins)

    assert not held.late("m", Receipt("m", 1, False, 1))
    assert len(held) == 2


def test_a_nacked_row_waits_in_the_outbox_and_its_key_with_it():
    """The row and the rows behind it are given back; the delay doubles with each nack."""
    held = window(row(1, "a", nacks=1), row(2, "a"), row(3))
    (run,) = held.runs(0.0)
    held.landed(run, [Nacked("m1", "full"), receipt(row(3))], 1.0)

    orders = held.orders()
    assert [(one.position, one.nacks, one.delay) for one in orders.again] == [(1, 2, 2.0)]
    assert orders.claims == {1: ()}
    assert len(held) == 0


def test_a_row_that_is_set_aside_leaves_the_stored_claim():
    """Otherwise it would still be claimed after a retry, as long as another row of that claim is held."""
    held = window(row(1), row(2))
    (run,) = held.runs(0.0)
    held.landed(run, [Unroutable("m1", "returned"), Unconfirmed("m2", "no confirm")], 1.0)

    assert held.orders().claims == {1: (2,)}


@pytest.mark.parametrize(("on_poison", "next_rows"), [("hold", []), ("skip", [[2]])])
def test_poison_holds_its_key_or_is_skipped(on_poison, next_rows):
    """A returned row is set aside with its reason; the policy says what its key does."""
    held = window(row(1, "a"), row(2, "a"), policy=RelayPolicy(on_poison=on_poison))
    (run,) = held.runs(0.0)
    held.landed(run, [Unroutable("m1", "returned")], 1.0)

    (aside,) = held.orders().set_aside
    assert (aside.position, aside.reason, aside.holds) == (1, "Unroutable", on_poison == "hold")
    assert positions(held.runs(1.0)) == next_rows


def test_a_row_that_is_no_message_is_set_aside():
    """It is never published; the rows of its key are held up."""
    held = window(Row(1, 1, "a", None, problem="column properties is not JSON"), row(2, "a"))

    (aside,) = held.orders().set_aside
    assert (aside.reason, aside.error) == ("InvalidRow", "column properties is not JSON")
    assert held.runs(0.0) == []


def test_a_row_that_was_not_sent_is_tried_again_later():
    """Nothing is written down; a breaker that stays open for longer than half the lease gives the row back."""
    held = window(row(1), row(2))
    (run,) = held.runs(0.0)
    held.landed(run, [CircuitOpen("m1", "open", retry_after=2.0), CircuitOpen("m2", "open", retry_after=20.0)], 1.0)

    assert held.wakes_at() == 3.0
    assert held.runs(2.9) == []
    assert positions(held.runs(3.0)) == [[1]]
    assert [(one.position, one.delay) for one in held.orders().again] == [(2, 20.0)]
    assert held.orders().claims == {1: (1,)}


def test_nothing_is_published_after_the_lease():
    """The relay's own clock ends the lease before another relay can have the rows."""
    held = window(row(1))

    assert held.runs(30.0) == []
    assert positions(held.runs(29.9)) == [[1]]


def test_what_another_relay_took_over_is_forgotten():
    """An outcome that comes afterwards changes nothing, also when the same row was claimed again."""
    old = row(1)
    held = window(old)
    (run,) = held.runs(0.0)
    held.lost()
    held.take(Claimed((row(1, claim=2),)), WANT)
    held.landed(run, [receipt(old)], 1.0)

    assert not held.has_orders
    assert len(held) == 1


def test_orders_stay_until_they_are_written():
    """A failed write loses nothing, and what is ordered meanwhile is kept for the next one."""
    held = window(row(1), row(2), policy=RelayPolicy(run=1))
    first, second = held.runs(0.0)
    held.landed(first, [receipt(row(1))], 1.0)
    orders = held.orders()
    assert held.orders() == orders
    held.landed(second, [receipt(row(2))], 1.0)
    held.written(orders)

    assert held.orders().confirmed == ((2, 1),)
    assert held.orders().claims == {1: ()}


def test_at_the_end_rows_of_unknown_outcome_are_flagged_and_all_are_given_back():
    """The next relay knows which rows may be in a queue already."""
    held = window(row(1), row(2, "a"), row(3, "a"))
    held.runs(0.0)
    held.abandon()

    assert [(one.position, one.possible_duplicate) for one in held.orders().again] == [(1, True), (2, True)]
    assert held.orders().claims == {1: ()}


def test_few_rows_that_failed_go_at_once():
    """Rows that go alone take at most half of the runs, so that they cannot hold up the others."""
    held = window(*(row(n, attempts=1) for n in range(1, 9)), row(9), policy=RelayPolicy(runs=4))

    assert positions(held.runs(0.0)) == [[1], [2], [9]]


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"attempts": True}, {"on_poison": "drop"}, {"lease": 0.5}, {"lease": float("nan")}]
)
def test_a_policy_that_cannot_be_meant_is_refused(wrong):
    """The error names the argument."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        RelayPolicy(**wrong)


def test_a_window_knows_whether_it_holds_rows_up_to_a_position():
    """A flush up to a position is asked for only after the rows up to it were confirmed."""
    held = window(row(3), row(5))
    assert [held.holds_up_to(position) for position in (2, 3, 4)] == [False, True, True]

    (run,) = held.runs(0.0)
    held.landed(run, [Receipt(run.rows[0].message.message_id, 1, False, 1), Unconfirmed("5", "lost")], 0.0)
    assert [held.holds_up_to(position) for position in (4, 5)] == [False, True]
