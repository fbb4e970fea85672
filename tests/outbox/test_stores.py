"""What both stores do: keep rows, claim them under a lease, and write down what became of them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import psycopg
import pytest
from attrs import evolve

from tests.outbox.rows import LEASE, WANT, claim, insert, positions
from warrener.outbox import OutboxFull
from warrener.outbox._owner import has_ended, this_process
from warrener.outbox._postgres_store import PostgresStore
from warrener.outbox._rows import encode
from warrener.outbox._sqlite_store import SQLiteStore
from warrener.outbox.records import Again, SetAside, Settlement, Want, Work
from warrener.records import Message


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def open_store(request, tmp_path):
    """Make stores of one outbox."""
    stores = []
    dsn = request.getfixturevalue("outbox_dsn") if request.param == "postgres" else None

    def make(*, max_rows=1_000, max_bytes=1 << 20):
        limits = {"max_rows": max_rows, "max_bytes": max_bytes}
        store = SQLiteStore(tmp_path / "tasks.db", **limits) if dsn is None else PostgresStore([dsn], **limits)
        stores.append(store)
        store.open()
        return store

    def execute(statement):
        """As another program does it."""
        with closing(sqlite3.connect(tmp_path / "tasks.db") if dsn is None else psycopg.connect(dsn)) as db, db:
            db.execute(statement)

    make.execute = execute
    yield make
    for store in stores:
        store.close()


def test_rows_outlive_the_connection(open_store):
    """Another connection finds them, in their order, with every column."""
    first = open_store()
    message = Message(b"\x00\xff", exchange="x", routing_key="q", headers={"a": 1}, priority=3)
    first.transact(Work(inserts=[encode(message, "key")]), "", 0.0)
    first.close()

    (row,) = claim(open_store())
    assert (row.message, row.key, row.attempts, row.possible_duplicate) == (message, "key", 0, False)


@pytest.mark.parametrize("size", [10, 5_000], ids=["small bodies", "large bodies"])
def test_many_rows_come_back_as_they_were_stored(open_store, size):
    """More rows than one statement inserts or reads, in their order, each with its own values."""
    store = open_store(max_rows=2_000, max_bytes=1 << 30)
    messages = [
        Message(bytes([n % 256]) * size, routing_key=f'q"\u00fc{n}', headers={"n": n}, message_id=f"id {n}")
        for n in range(1_030)
    ]
    done = store.transact(Work(inserts=[encode(message) for message in messages]), "", 0.0)
    rows = store.transact(Work(want=Want(rows=1_200, bytes=1 << 30, per_key=10)), "relay", LEASE).claimed.rows

    assert positions(rows) == list(done.stored)
    assert [row.message for row in rows] == messages


def test_a_full_outbox_says_how_full(open_store):
    """`OutboxFull` carries the counts; rows of the same transaction that had a place are stored."""
    store = open_store(max_rows=2)
    first, second, refused = insert(store, None, None, None)

    assert (first, second) == (1, 2)
    assert isinstance(refused, OutboxFull)
    assert (refused.rows, refused.max_rows) == (2, 2)
    assert store.status().waiting == 2


def test_bytes_are_bounded_too(open_store):
    """The bodies of set-aside rows count as well."""
    store = open_store(max_bytes=10)
    insert(store, None, body=b"12345678")
    (row,) = claim(store)
    aside = SetAside(row.position, row.claim, 1, False, "Unroutable", "returned", holds=False)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={row.claim: ()})), "relay", LEASE)

    (refused,) = insert(store, None, body=b"12345678")
    assert isinstance(refused, OutboxFull)
    assert (refused.rows, refused.bytes) == (1, 8)


def test_a_position_is_never_given_twice(open_store):
    """A claim that lists a deleted row claims nothing that comes later."""
    store = open_store()
    insert(store, None)
    (row,) = claim(store)
    store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE)

    assert insert(store, None) == [2]
    assert store.last_position() == 2


def test_a_claimed_row_is_nobody_elses(open_store):
    """Neither for another relay, nor to drop."""
    store = open_store()
    insert(store, "a", None)

    assert positions(claim(store)) == [1, 2]
    assert positions(claim(open_store(), "other")) == []
    assert store.drop([1]) == 0
    assert [entry.state for entry in store.entries(None, None, 10, bodies=False)] == ["leased", "leased"]


def test_a_relay_whose_lease_ran_out_deletes_nothing(open_store):
    """Its rows are flagged and another relay's; the old token is told that it owns nothing."""
    store, other = open_store(), open_store()
    insert(store, None)
    (row,) = claim(store, "slow", lease=-1.0)
    (taken,) = claim(other, "other")
    done = store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "slow", LEASE)

    assert not done.owned
    assert (taken.position, taken.attempts, taken.possible_duplicate) == (1, 1, True)
    assert store.status().leased == 1


def test_new_rows_without_a_key_are_claimed_as_they_are_stored(open_store):
    """With `take`: under one claim with the lease, and rows with a key or without a place are left out."""
    store, other = open_store(max_rows=4), open_store()
    rows = [encode(Message(b"body", routing_key="q"), key) for key in (None, "a", None, None, None)]
    done = store.transact(Work(inserts=rows, take=True), "relay", LEASE)

    assert [*done.stored[:4]] == [1, 2, 3, 4]
    assert isinstance(done.stored[4], OutboxFull)
    assert done.claim is not None
    assert (store.status().waiting, store.status().leased) == (1, 3)
    assert positions(claim(other, "other")) == [2]
    confirmed = tuple((position, done.claim) for position in (1, 3, 4))
    settlement = Settlement(confirmed=confirmed, claims={done.claim: ()})
    assert store.transact(Work(settlement=settlement), "relay", LEASE).owned
    assert [entry.position for entry in store.entries(None, None, 10, bodies=False)] == [2]


def test_orders_and_new_rows_share_a_transaction(open_store):
    """A claim that has no orders stays as it is; the new rows get a claim of their own."""
    store = open_store()
    insert(store, None)
    (held,) = claim(store)
    new = [encode(Message(b"new", routing_key="q")) for _ in range(2)]
    first = store.transact(Work(inserts=new, take=True, renew=True), "relay", LEASE)
    assert (first.owned, [*first.stored]) == (True, [2, 3])
    settlement = Settlement(confirmed=((2, first.claim), (1, first.claim)), claims={first.claim: (3,)})
    second = store.transact(Work(inserts=new, take=True, settlement=settlement), "relay", LEASE)

    assert (second.owned, [*second.stored], second.claim != first.claim) == (True, [4, 5], True)
    assert [entry.position for entry in store.entries("leased", None, 10, bodies=False)] == [1, 3, 4, 5]
    rest = {held.claim: (), first.claim: (), second.claim: ()}
    orders = ((1, held.claim), (3, first.claim), (4, second.claim), (5, second.claim))
    assert store.transact(Work(settlement=Settlement(confirmed=orders, claims=rest)), "relay", LEASE).owned
    assert store.entries(None, None, 10, bodies=False) == []


def test_a_relay_that_lost_its_lease_takes_no_new_rows(open_store):
    """They are stored all the same, and wait for whichever relay claims them."""
    store, other = open_store(), open_store()
    insert(store, None)
    (row,) = claim(store, "slow", lease=-1.0)
    claim(other, "other")
    settlement = Settlement(confirmed=((1, row.claim),))
    new = [encode(Message(b"new", routing_key="q"))]
    done = store.transact(Work(inserts=new, take=True, settlement=settlement), "slow", LEASE)

    assert (done.owned, done.claim, [*done.stored]) == (False, None, [2])
    assert positions(claim(other, "other")) == [2]


def test_without_a_new_row_to_take_there_is_no_claim(open_store):
    """Only keyed rows: none is taken."""
    store = open_store()
    assert (
        store.transact(Work(inserts=[encode(Message(b"", routing_key="q"), "a")], take=True), "r", LEASE).claim is None
    )
    assert positions(claim(store)) == [1]


def test_a_claim_whose_answer_was_lost_is_ended(open_store):
    """The relay does not know it, and nothing of it was published: the next claim takes its rows, unflagged."""
    store = open_store()
    insert(store, "a", None)
    known = claim(store)
    insert(store, "a", None)
    claim(store)  # committed, and its answer never came

    want = evolve(WANT, claims=(known[0].claim,))
    assert positions(store.transact(Work(want=want), "relay", LEASE).claimed.rows) == [4]
    again = store.transact(Work(want=evolve(WANT, claims=())), "relay", LEASE).claimed.rows
    assert [(row.position, row.attempts, row.possible_duplicate) for row in again] == [
        (position, 0, False) for position in (1, 2, 3, 4)
    ]


def test_an_order_for_a_row_that_was_given_back_changes_nothing(open_store):
    """A settlement that was committed without an answer is written again, when the row may be another relay's."""
    store, other = open_store(), open_store()
    insert(store, None, None)
    row, kept = claim(store)
    again = Again(row.position, row.claim, 1, 1, True, None, "nacked")
    settlement = Settlement(again=(again,), claims={row.claim: (kept.position,)})
    store.transact(Work(settlement=settlement), "relay", LEASE)
    (taken,) = claim(other, "other")
    more = Settlement(again=(evolve(again, attempts=2, nacks=2, position=1, claim=taken.claim),))
    other.transact(Work(settlement=more), "other", LEASE)
    store.transact(Work(settlement=settlement), "relay", LEASE)

    assert [entry.attempts for entry in store.entries(None, None, 10, bodies=False)] == [2, 0]


def test_a_late_confirm_deletes_a_row_that_is_still_owned(open_store):
    """A lease that ran out is prolonged, as long as no other relay has taken it over."""
    store = open_store()
    insert(store, None)
    (row,) = claim(store, lease=-1.0)
    done = store.transact(Work(settlement=Settlement(confirmed=((1, row.claim),))), "relay", LEASE)

    assert done.owned
    assert store.status().backlog == 0


def test_a_living_process_is_not_taken_for_a_dead_one():
    """Nor is one of which nothing can be told."""
    assert not has_ended(this_process())
    assert not has_ended("somebody")
    assert not has_ended('{"pid": 1}')


def test_a_key_continues_behind_its_first_rows(open_store):
    """`unfinished` names a key with more rows than one claim takes, and the next claim begins with them."""
    store = open_store()
    insert(store, *["a"] * 4)
    want = Want(rows=100, bytes=1 << 20, per_key=2)
    claimed = store.transact(Work(want=want), "relay", LEASE).claimed
    (number,) = {row.claim for row in claimed.rows}
    settlement = Settlement(confirmed=((1, number), (2, number)), claims={number: ()})
    want = Want(rows=100, bytes=1 << 20, per_key=2, after=99, keys=("a",))
    again = store.transact(Work(settlement=settlement, want=want), "relay", LEASE).claimed

    assert (positions(claimed.rows), claimed.unfinished) == ([1, 2], {"a"})
    assert (positions(again.rows), again.unfinished) == ([3, 4], frozenset())


def test_what_an_attempt_taught_is_kept(open_store):
    """Attempts, nacks, the flag, the error, and the instant before which the row is not published."""
    store = open_store()
    insert(store, "a", "a")
    rows = claim(store)
    number = rows[0].claim
    again = Again(1, number, attempts=2, nacks=1, possible_duplicate=True, delay=60.0, error="full")
    store.transact(Work(settlement=Settlement(again=(again,), claims={number: ()})), "relay", LEASE)

    assert claim(store) == ()
    entry, _ = store.entries("waiting", None, 10, bodies=True)
    assert (entry.attempts, entry.possible_duplicate, entry.last_error) == (2, True, "full")
    assert entry.not_before is not None
    assert entry.not_before > entry.stored_at
    assert store.retry([1]) == 1
    assert [(row.position, row.nacks) for row in claim(store)] == [(1, 1), (2, 0)]


def test_a_row_that_was_set_aside_comes_back_to_its_place(open_store):
    """It holds up its key until it is retried or dropped; then its key goes on, in order."""
    store = open_store()
    insert(store, "a", "a", "b")
    number = claim(store)[0].claim
    aside = SetAside(1, number, 1, False, "Unroutable", "returned", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={number: ()})), "relay", LEASE)

    held = claim(store)
    assert positions(held) == [3]
    (entry,) = store.entries("set_aside", None, 10, bodies=True)
    assert (entry.reason, entry.last_error, entry.body) == ("Unroutable", "returned", b"body")
    assert store.retry([entry.message_id]) == 1
    assert positions(claim(store)) == [1, 2]


def test_a_set_aside_row_may_be_dropped(open_store):
    """The rows that it held up go on."""
    store = open_store()
    insert(store, "a", "a")
    number = claim(store)[0].claim
    aside = SetAside(1, number, 1, False, "Unroutable", "returned", holds=True)
    store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={number: ()})), "relay", LEASE)

    assert store.drop([1]) == 1
    assert positions(claim(store)) == [2]


def test_rows_of_a_dead_process_need_not_wait_for_the_lease(open_store, monkeypatch):
    """The process id and its start say that it has ended."""
    store = open_store()
    insert(store, None)
    gone = json.dumps(json.loads(this_process()) | {"started": 1})
    for module in ("_sqlite_store", "_postgres_store"):
        monkeypatch.setattr(f"warrener.outbox.{module}.this_process", lambda: gone)
    claim(store, "dead")

    claimed = open_store().transact(Work(want=WANT), "living", LEASE).claimed
    assert [row.possible_duplicate for row in claimed.rows] == [True]
    assert claimed.taken_over == 1


def test_a_row_that_is_held_up_names_the_row_that_holds_it(open_store):
    """The first one, where several do; other keys, and a row that holds nothing up, are not named."""
    store = open_store()
    insert(store, "a", "b", "a", "a", None, "b")
    rows = {row.position: row for row in claim(store)}
    asides = [
        SetAside(position, rows[position].claim, 1, False, "Unroutable", "returned", holds=holds)
        for position, holds in ((1, True), (2, False), (3, True))
    ]
    number = rows[1].claim
    store.transact(Work(settlement=Settlement(set_aside=tuple(asides), claims={number: ()})), "relay", LEASE)

    held = {entry.position: entry.held_by for entry in store.entries(None, None, 100, bodies=False)}
    assert held == {1: None, 2: None, 3: None, 4: 1, 5: None, 6: None}


def test_a_position_of_another_programs_own_is_a_place_like_any_other(open_store):
    """A row with a negative position goes first, and can be named; the positions that follow stay as they were."""
    store = open_store()
    insert(store, None)
    for position in (0, -5, 10**15):
        open_store.execute(
            f"INSERT INTO warrener_outbox (position, routing_key, body) VALUES ({position}, 'q', 'x')"  # noqa: S608
        )
    assert positions(claim(store)) == [-5, 0, 1, 10**15]
    assert [entry.position for entry in store.entries("leased", [-5], 10, bodies=False)] == [-5]
    store.release("relay")
    assert store.drop([-5, 10**15]) == 2


def test_a_number_that_no_position_can_be_names_no_row(open_store):
    """It is no error of the database."""
    store = open_store()
    insert(store, None)
    assert store.entries(None, [2**63, -(2**63) - 1, 10**30], 9, bodies=False) == []
    assert store.retry([2**63]) == store.drop([10**30]) == 0


def test_the_position_of_a_set_aside_row_may_be_used_again(open_store):
    """By another program. Both rows can be set aside, and both come back: one at that position, one at a new one."""
    store = open_store()
    insert(store, None)
    for _ in range(2):
        (row,) = claim(store)
        assert row.position == 1
        aside = SetAside(1, row.claim, 1, False, "Unroutable", "returned", holds=False)
        store.transact(Work(settlement=Settlement(set_aside=(aside,), claims={row.claim: ()})), "relay", LEASE)
        open_store.execute("INSERT INTO warrener_outbox (position, routing_key, body) VALUES (1, 'q', 'x')")
    assert [entry.position for entry in store.entries("set_aside", None, 10, bodies=False)] == [1, 2]

    assert store.retry([1, 2]) == 2
    found = positions(claim(store)) + positions(claim(store))
    assert (len(found), len(set(found)), found[:2]) == (3, 3, [1, 2])


def test_the_newest_rows_have_their_share(open_store):
    """A claim that cannot take all takes an eighth from the end."""
    store = open_store()
    insert(store, *[None] * 30)
    want = Want(rows=8, bytes=1 << 20, per_key=2)
    claimed = store.transact(Work(want=want), "relay", LEASE).claimed

    assert positions(claimed.rows) == [1, 2, 3, 4, 5, 6, 7, 30]
    assert (claimed.scanned_to, claimed.more) == (7, True)


def test_counts_and_whether_all_is_flushed(open_store):
    """In the same transaction as the rest."""
    store = open_store()
    insert(store, None, "a")
    rows = claim(store)
    settlement = Settlement(confirmed=((1, rows[0].claim),))
    done = store.transact(Work(settlement=settlement, count=True, flushed_to=1), "relay", LEASE)

    assert done.flushed
    assert (done.status.waiting, done.status.leased, done.status.bytes) == (0, 1, 4)
    assert not store.transact(Work(flushed_to=2), "relay", LEASE).flushed
    assert store.last_position() == 2


def test_released_rows_are_anybodys(open_store):
    """A relay that ends in order gives all back, and nothing is flagged."""
    store = open_store()
    insert(store, None)
    claim(store)
    store.release("relay")

    (row,) = claim(open_store(), "other")
    assert not row.possible_duplicate


def test_an_outbox_in_use_is_dropped_row_by_row(open_store):
    """`drop` and `entries` take positions and message ids."""
    store = open_store()
    insert(store, None, None, None)
    entries = store.entries(None, None, 10, bodies=False)

    assert store.drop([entries[0].message_id, entries[2].position, 99]) == 2
    (left,) = store.entries("waiting", [entries[1].position, "nobody"], 10, bodies=True)
    assert (left.position, left.body) == (2, b"body")
