"""Random walks over relays that are paused, cut off and killed at each commit point, with a broker that answers anything.

S10: a row that is gone was confirmed; a committed row ends confirmed once the faults end; a rolled-back row is never
published. Order: the first deliveries of a key come in the order of its commits.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.outbox.memory import Database, MemoryStore
from warrener.errors import DeadlineExceeded, Nacked, PublishError, Unconfirmed, Unroutable
from warrener.outbox._decisions import RelayPolicy, Run, Window
from warrener.outbox._rows import encode
from warrener.outbox.records import NewRow, Row, Settlement, Work
from warrener.records import Message, Receipt

LEASE = 30.0
POLICY = RelayPolicy(attempts=3, lease=LEASE, window=8, per_key=3, run=4, runs=3)
KEYS = st.sampled_from([None, "a", "a", "b"])
ANSWERS = st.sampled_from(["ack", "ack", "ack", "late", "lost", "unsent", "nack", "return"])


class Crash(Exception):
    """The relay's process is gone."""


class AnswerLost(Exception):
    """The transaction was committed, and the relay cannot know it."""


@define(eq=False)
class Relay:
    """A relay without its tasks: the window, the store, and the runs that the producer has."""

    store: MemoryStore
    token: str
    window: Window = field(factory=lambda: Window(POLICY))
    runs: list[Run] = field(factory=list)
    scan_from: int = 0

    def transact(self, now: float, new: Sequence[NewRow] = ()) -> None:
        want = None if new else self.window.want(self.scan_from)
        settlement = self.window.orders() if self.window.has_orders else Settlement()
        take = bool(new) and self.window.can_take(new)
        work = Work(new, take=take, settlement=settlement, renew=len(self.window) > 0, want=want)
        done = self.store.transact(work, self.token, LEASE)
        if not done.owned:
            self.window.lost()
            self.token += "'"
            return
        if settlement:
            self.window.written(settlement)
        if settlement or work.renew or done.claimed.rows or done.claim is not None:
            self.window.leased_until = now + LEASE
        if done.claim is not None:
            taken = ((row, at) for row, at in zip(new, done.stored, strict=True) if row.key is None)
            self.window.take_new(
                Row(at, done.claim, None, Message(b"", message_id=row.message_id)) for row, at in taken
            )
        if want is not None:
            self.window.take(done.claimed, want)
            self.scan_from = done.claimed.scanned_to if done.claimed.more else 0


class Walk(RuleBasedStateMachine):
    """Three relays on one outbox."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.database = Database()
        self.started = 0
        self.relays = [self.start_relay() for _ in range(3)]
        #: Every copy that reached a queue, in order: message ids.
        self.delivered: list[str] = []
        self.confirmed: set[str] = set()
        self.committed: dict[str, tuple[int, str | None]] = {}
        self.rolled_back: set[str] = set()
        self.dropped: set[str] = set()

    def store(self) -> MemoryStore:
        return MemoryStore(self.database, lambda: self.now)

    def start_relay(self) -> Relay:
        self.started += 1
        return Relay(self.store(), f"relay {self.started}")

    # --- the application -------------------------------------------------------------------------------------------

    @rule(keys=st.lists(KEYS, min_size=1, max_size=4), commits=st.booleans(), overtaken=st.booleans())
    def transaction(self, keys, commits, overtaken):
        """Some rows in one transaction; `overtaken`: an older transaction runs on, as PostgreSQL sees it."""
        rows = [encode(Message(b"", routing_key="q"), key) for key in keys]
        if not commits:
            self.database.next_position += len(rows)  # a sequence keeps its gaps
            self.rolled_back |= {row.message_id for row in rows}
            return
        done = self.store().transact(Work(inserts=rows), "application", 0.0)
        for row, key, position in zip(rows, keys, done.stored, strict=True):
            self.committed[row.message_id] = (position, key)
            if overtaken:
                self.database.rows[position] = evolve(self.database.rows[position], settled_in_time=False)

    @rule()
    def the_older_transaction_ends(self):
        rows = self.database.rows
        rows.update({position: evolve(kept, settled_in_time=True) for position, kept in rows.items()})

    # --- the relays -------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2), crash=st.sampled_from([None, "before", "after", "answer"]))
    def transact(self, which, crash):
        relay = self.relays[which]
        if crash == "before":
            relay.store.fail_before = Crash()
        elif crash == "after":
            relay.store.fail_after = Crash()
        elif crash == "answer":
            relay.store.fail_after = AnswerLost()
        try:
            relay.transact(self.now)
        except Crash:
            self.kill(which)
        except AnswerLost:
            pass  # committed, and the relay goes on without knowing it

    @rule(
        which=st.integers(0, 2),
        keys=st.lists(KEYS, min_size=1, max_size=4),
        crash=st.sampled_from([None, "after", "answer"]),
    )
    def enqueue(self, which, keys, crash):
        """The relay stores rows of its own process, and takes those without a key at once."""
        relay = self.relays[which]
        rows = [encode(Message(b"", routing_key="q"), key) for key in keys]
        first = self.database.next_position
        self.committed |= {row.message_id: (first + at, row.key) for at, row in enumerate(rows)}
        if crash is not None:
            relay.store.fail_after = Crash() if crash == "after" else AnswerLost()
        try:
            relay.transact(self.now, rows)
        except Crash:
            self.kill(which)
        except AnswerLost:
            pass

    @rule(which=st.integers(0, 2), answers=st.lists(ANSWERS, min_size=1, max_size=4))
    def turn(self, which, answers):
        """Claim, publish, and write down what became of it."""
        relay = self.relays[which]
        relay.transact(self.now)
        relay.runs += relay.window.runs(self.now)
        for run in relay.runs:
            outcomes = [self.answer(row, answers[n % len(answers)]) for n, row in enumerate(run.rows)]
            relay.window.landed(run, outcomes, self.now)
        relay.runs.clear()
        relay.transact(self.now)

    @rule(which=st.integers(0, 2))
    def publish(self, which):
        relay = self.relays[which]
        relay.runs += relay.window.runs(self.now)

    @precondition(lambda self: any(relay.runs for relay in self.relays))
    @rule(data=st.data())
    def land(self, data):
        which = data.draw(st.sampled_from([n for n, relay in enumerate(self.relays) if relay.runs]))
        relay = self.relays[which]
        run = relay.runs.pop(data.draw(st.integers(0, len(relay.runs) - 1)))
        relay.window.landed(run, [self.answer(row, data.draw(ANSWERS)) for row in run.rows], self.now)

    def answer(self, row, answer) -> Receipt | PublishError:
        message_id = row.message.message_id
        if answer in ("ack", "late"):
            self.delivered.append(message_id)
        if answer == "ack":
            self.confirmed.add(message_id)
            return Receipt(message_id, 1, False, 1)
        if answer in ("late", "lost"):
            return Unconfirmed(message_id, "no answer")
        if answer == "unsent":
            return DeadlineExceeded(message_id, "no link")
        return Nacked(message_id, "full") if answer == "nack" else Unroutable(message_id, "no queue")

    @rule(which=st.integers(0, 2))
    def late_confirm(self, which):
        """The broker confirms a row whose publish had ended without an answer."""
        waiting = [held.row for held in self.relays[which].window._held.values() if held.row.attempts]
        for row in waiting:
            if row.message.message_id in self.delivered:
                self.confirmed.add(row.message.message_id)
                self.relays[which].window.late(row.message.message_id, Receipt(row.message.message_id, 1, False, 1))

    @rule(which=st.integers(0, 2))
    def kill(self, which):
        # Bytes that were on their way may still arrive, the rows of a run in order.
        for run in self.relays[which].runs:
            self.delivered += [row.message.message_id for row in run.rows[:1]]
        self.relays[which] = self.start_relay()

    @rule(which=st.integers(0, 2))
    def lose_link(self, which):
        self.relays[which].window.release_unsent()

    @rule(seconds=st.sampled_from([1.0, 20.0, 40.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(retry=st.booleans())
    def person(self, retry):
        for position, (kept, _) in sorted(self.database.aside.items())[:1]:
            if retry:
                self.store().retry([position])
            else:
                self.dropped.add(kept.row.message_id)
                self.store().drop([position])

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def gone_rows_were_confirmed(self):
        kept = {kept.row.message_id for kept in self.database.rows.values()}
        kept |= {kept.row.message_id for kept, _ in self.database.aside.values()}
        assert set(self.committed) - kept - self.dropped <= self.confirmed

    @invariant()
    def rolled_back_rows_are_not_published(self):
        assert not self.rolled_back & set(self.delivered)

    @invariant()
    def first_deliveries_keep_the_order_of_commits(self):
        firsts: dict[str | None, list[int]] = {}
        for message_id in dict.fromkeys(self.delivered):
            position, key = self.committed[message_id]
            firsts.setdefault(key, []).append(position)
        for key in ("a", "b"):
            assert firsts.get(key, []) == sorted(firsts.get(key, []))

    @invariant()
    def no_row_is_claimed_twice(self):
        positions = [position for _, held in self.database.claims.values() for position in held]
        assert len(set(positions)) == len(positions)

    def teardown(self):
        """Liveness: with faults over, every committed row ends confirmed; one relay that goes on is enough."""
        self.the_older_transaction_ends()
        self.kill(1)
        self.kill(2)
        del self.relays[1:]
        for _ in range(100):
            self.now += LEASE / 2
            self.store().retry(list(self.database.aside))
            for relay in self.relays:
                relay.transact(self.now)
                relay.runs += relay.window.runs(self.now)
                for run in relay.runs:
                    relay.window.landed(run, [self.answer(row, "ack") for row in run.rows], self.now)
                relay.runs.clear()
            if not self.database.rows and not self.database.aside:
                break
        assert not self.database.rows, "the outbox was not emptied"
        assert set(self.committed) - self.dropped <= self.confirmed
        self.first_deliveries_keep_the_order_of_commits()


def test_walks():
    """Every walk keeps the invariants, and ends with an empty outbox."""
    run_state_machine_as_test(
        Walk, settings=settings(stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow])
    )
