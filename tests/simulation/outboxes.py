"""Plans with an outbox: processes that are killed in virtual time, at any instant and at each commit, and started again.

What is on disk is a `Database` in memory. A process is a producer with a relay; the decisions are those of
`warrener.outbox`, and only the tables are simulated. A killed process reaches neither disk nor network any more: what it
had sent may still arrive, what it had not committed is gone. Each seed has one plan of this kind; `judge` holds S10.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Literal, TypeAlias

import trio
from attrs import define, evolve, field, frozen
from trio.testing import MockClock

from tests.outbox.memory import Database, MemoryStore
from tests.simulation.checks import QUEUES, Finding
from tests.simulation.faults import USER, VHOST, FaultInjector
from tests.simulation.network import PROCESS, Network
from tests.simulation.recorder import RecordingDriver
from tests.simulation.run import Run, aftermath, broker_of, in_virtual_time, settings_of
from tests.simulation.schedule import ADDRESSES, FAULTS, Call, Fault, Item, Plan, calm, network_of, producer_of, stream
from tests.simulation.trace import Publish, Trace
from tests.simulation.workload import body_of
from warrener import Message, NotSent, Producer, PublishError, Receipt
from warrener.drivers.native import NativeDriver
from warrener.errors import WarrenerError
from warrener.outbox import OutboxProblem, OutboxUnusable
from warrener.outbox._decisions import RelayPolicy
from warrener.outbox._outbox import Outbox
from warrener.outbox._rows import DUPLICATE_HEADER, encode
from warrener.outbox.records import Done, Work

__all__ = ["CHECKS", "OutboxPlan", "OutboxRun", "calm_outbox", "draw_outbox", "judge", "met", "run_outbox", "run_seed"]

#: One seed in this number runs twice, and must have the same trace both times.
TWICE: Final = 50
#: Virtual seconds: rows are stored before the first, faults and deaths end at the second, the outbox is empty by the last.
STORED_BY, HEALED_AT, EMPTY_BY = 70.0, 80.0, 400.0
#: Faults of network, broker and machine that leave the queues as they are.
KINDS: Final = (
    "rst", "fin", "freeze", "freeze to broker", "freeze to client", "slow", "cut to broker", "cut to client", "refuse",
    "black hole", "mute", "accept then drop", "crash", "stop", "operator close", "close 5xx", "freeze broker", "alarm",
    "stall", "close channels", "jump",
)  # fmt: skip

#: "enqueue" by a process; "commit" and "rollback" by another program, which inserts rows in its own transaction.
How: TypeAlias = Literal["enqueue", "commit", "rollback"]


@frozen
class Storing:
    """Rows that are stored at an instant."""

    at: float
    how: How
    #: (number, key, address) of each row.
    rows: tuple[tuple[int, str | None, str], ...]
    #: Which process; the call is left out while it is not alive.
    process: int = 0
    #: Seconds after which the call is cancelled.
    patience: float | None = None


@frozen
class Death:
    """The end of a process: by itself, or by SIGKILL, at an instant or in the middle of its next commit."""

    at: float
    process: int
    how: Literal["close", "kill", "before the commit", "after the commit"]
    #: Seconds until it is started again.
    pause: float
    #: Whether the kernel resets its connections; otherwise what was written arrives, then a FIN.
    resets: bool


@frozen
class OutboxPlan:
    """Everything that decides a run, beside the random streams of the seed."""

    plan: Plan
    policy: RelayPolicy
    publish_timeout: float
    poll_interval: float
    processes: int
    #: Whether a process can tell that another one has ended; otherwise a dead one's rows wait for the lease's end.
    one_machine: bool
    stored: tuple[Storing, ...]
    deaths: tuple[Death, ...]
    #: Instants after which the next commit that writes a row happens, and its answer is lost.
    lost_answers: tuple[float, ...]
    #: (from, until): the database does not answer.
    outages: tuple[tuple[float, float], ...]


def draw_outbox(seed: int) -> OutboxPlan:
    """Return the plan of a seed."""
    rng = stream(seed, "outbox")
    pick = rng.choice
    processes = pick((1, 1, 2, 3))
    producer = evolve(producer_of(seed, "liveness", quiet=False), max_buffered=1000, max_in_flight=1000)
    network = network_of(seed, quiet=False)
    plan = evolve(
        calm((), _faults(rng), seed=seed),
        producer=producer,
        # With two addresses, a handshake must succeed within half of `connect_timeout`.
        network=evolve(
            network,
            latency=min(network.latency, 0.03),
            window=max(network.window, 4096),
            bandwidth=max(network.bandwidth, 1e6),
            slices=0,
        ),
        brokers=pick((1, 1, 1, 2)),
        sync_interval=pick((0.0, 0.05, 0.2)),
        duration=EMPTY_BY,
        ends_at=EMPTY_BY,
    )
    deaths = [
        Death(
            rng.uniform(0.5, HEALED_AT - 5.0),
            rng.randrange(processes),
            pick(("close", "kill", "kill", "before the commit", "after the commit", "after the commit")),
            pick((0.0, 0.5, 5.0)),
            rng.random() < 0.5,
        )
        for _ in range(rng.randint(1, 6))
    ]
    return OutboxPlan(
        plan=plan,
        policy=RelayPolicy(
            attempts=3, on_poison=pick(("hold", "skip")), lease=pick((3.0, 10.0, 30.0)), window=pick((4, 16, 200)),
            per_key=pick((2, 8)), run=pick((1, 4, 50)), runs=pick((1, 3, 8)),
        ),
        publish_timeout=pick((4.0, 10.0, 30.0)),
        poll_interval=pick((0.5, 1.0, 3.0)),
        processes=processes,
        one_machine=rng.random() < 0.5,
        stored=_storings(rng, processes),
        deaths=tuple(sorted(deaths, key=lambda death: death.at)),
        lost_answers=tuple(sorted(rng.uniform(0.0, HEALED_AT) for _ in range(pick((0, 0, 2, 5))))),
        outages=tuple((at, at + rng.uniform(0.1, 8.0)) for at in (rng.uniform(0.0, 60.0) for _ in range(pick((0, 0, 1, 2))))),
    )  # fmt: skip


def _faults(rng: random.Random) -> tuple[Fault, ...]:
    faults: list[Fault] = []
    for kind in KINDS:
        for _ in range(rng.choice((1, 1, 2)) if rng.random() < FAULTS[kind][0] else 0):
            longest = FAULTS[kind][1]
            at = rng.uniform(0.5, HEALED_AT - 1.0)
            lasting = rng.uniform(0.5, longest) if longest else 0.0
            faults.append(Fault(at, kind, lasting, rng.randrange(8, 2000) * rng.choice((1, -1))))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _storings(rng: random.Random, processes: int) -> tuple[Storing, ...]:
    keys = rng.choice(((None, "a"), (None, "a", "a", "b"), ("a", "b", "c"), (None,)))
    cancels, unroutable = rng.choice((0.0, 0.2)), rng.choice((0.0, 0.0, 0.05))
    storings: list[Storing] = []
    number = 0
    while number < 70:
        at = rng.uniform(0.0, STORED_BY)
        for _ in range(rng.choice((1, 3, 8))):
            how: How = rng.choice(("enqueue", "enqueue", "enqueue", "commit", "rollback"))
            rows = tuple(
                (number + index, rng.choice(keys), "nowhere" if rng.random() < unroutable else rng.choice(("jobs", "quorum")))
                for index in range(1 if how == "enqueue" else rng.randint(1, 3))
            )  # fmt: skip
            number += len(rows)
            patience = rng.choice((0.0, 0.001)) if how == "enqueue" and rng.random() < cancels else None
            storings.append(Storing(at, how, rows, rng.randrange(processes), patience))
            at += rng.choice((0.0, 0.0, 0.01, 0.3))
    return tuple(sorted(storings, key=lambda storing: storing.at))


def calm_outbox(rows: int = 100) -> OutboxPlan:
    """Store rows through one process that lives, with a broker and a network without a fault."""
    stored = tuple(
        Storing(1.0 + number // 10, "enqueue", ((number, f"k{number % 7}", "jobs"),)) for number in range(rows)
    )
    return OutboxPlan(
        plan=evolve(calm(()), duration=EMPTY_BY, ends_at=EMPTY_BY),
        policy=RelayPolicy(),
        publish_timeout=30.0,
        poll_interval=0.5,
        processes=1,
        one_machine=False,
        stored=stored,
        deaths=(),
        lost_answers=(),
        outages=(),
    )


# --- a run ----------------------------------------------------------------------------------------------------------


@define(eq=False)
class Handed:
    """A row that a relay gave to its producer."""

    at: float
    process: str
    flagged: bool
    #: None: its process died before.
    outcome: Receipt | PublishError | None = None


@define(eq=False)
class OutboxRun:
    """Everything that is known about a run when it is over."""

    plan: OutboxPlan
    run: Run
    database: Database = field(factory=Database)
    #: message id → (position, key), as they were committed.
    committed: dict[str, tuple[int, str | None]] = field(factory=dict[str, tuple[int, str | None]])
    #: Ids that `enqueue` returned `Stored` for; that it raised the cancellation for; of transactions that were rolled back.
    reported: set[str] = field(factory=set[str])
    cancelled: set[str] = field(factory=set[str])
    rolled_back: set[str] = field(factory=set[str])
    #: position → when its row was deleted because it was confirmed.
    deleted: dict[int, float] = field(factory=dict[int, float])
    #: Ids of the rows that a person dropped.
    dropped: set[str] = field(factory=set[str])
    handed: dict[str, list[Handed]] = field(factory=dict[str, list[Handed]])
    #: The processes that were killed.
    killed: set[str] = field(factory=set[str])
    wrong: list[str] = field(factory=list[str])


class _Dead(OutboxUnusable):
    """The process is dead: nothing reaches the disk."""

    def __init__(self) -> None:
        super().__init__(OutboxProblem.UNREACHABLE, "the process is dead")


class _Trace(Trace):
    """The trace of one process, told as a part of the whole one."""

    def __init__(self, whole: Trace, process: str) -> None:
        super().__init__(whole.clock)
        self._whole, self._process = whole, process
        self.publishes, self.seen = whole.publishes, whole.seen

    def note(self, what: str) -> None:
        self._whole.note(f"{self._process}, {what}")


class _Store(MemoryStore):
    """The disk as one process sees it: its commits are where it may die, and where an answer may be lost."""

    def __init__(self, process: _Process) -> None:
        super().__init__(process.seen.database, trio.current_time)
        self._process = process
        self.tokens: set[str] = set()

    def transact(self, work: Work, token: str, lease: float) -> Done:
        process, seen, now = self._process, self._process.seen, trio.current_time()
        if process.dead:
            raise _Dead
        if any(begin <= now < end for begin, end in seen.plan.outages):
            raise OutboxUnusable(OutboxProblem.UNREACHABLE, "the database does not answer")
        self.tokens.add(token)
        if process.dies == "before the commit":
            process.kill()
            raise _Dead
        confirmed = set(self.database.confirmed)
        done = super().transact(work, token, lease)
        for row, answer in zip(work.inserts, done.stored, strict=True):
            if isinstance(answer, int):
                seen.committed[row.message_id] = (answer, row.key)
        seen.deleted |= dict.fromkeys(self.database.confirmed - confirmed, now)
        if process.dies == "after the commit":
            process.kill()
            raise _Dead
        telling = bool(work.inserts or work.settlement or done.claimed.rows)
        if telling and process.answers_to_lose and process.answers_to_lose[0] <= now:
            process.answers_to_lose.pop(0)
            seen.run.trace.note(f"{process.name}, an answer of the database is lost")
            raise OutboxUnusable(OutboxProblem.UNREACHABLE, "the answer to the commit was lost")
        return done

    def release(self, token: str) -> None:
        if self._process.dead:
            raise _Dead
        super().release(token)


class _Process:
    """One life of one of the processes."""

    def __init__(self, seen: OutboxRun, number: int, life: int, answers_to_lose: list[float]) -> None:
        self.seen = seen
        self.name = f"process {number}.{life}"
        self.dead = False
        #: How it dies in its next commit.
        self.dies = ""
        self._resets = False
        self.answers_to_lose = answers_to_lose
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        whole, plan = seen.run, seen.plan
        assert whole.network is not None
        trace = _Trace(whole.trace, self.name)
        self._driver = RecordingDriver(NativeDriver(whole.network.dial), trace, {}, chatty=False)
        self._store = _Store(self)
        outbox = Outbox(
            lambda: self._store, attempts=3, on_poison=plan.policy.on_poison, lease=plan.policy.lease,
            poll_interval=plan.poll_interval, publish_timeout=plan.publish_timeout,
        )  # fmt: skip
        outbox._policy = plan.policy
        settings = settings_of(plan.plan, whole.password)
        rng = stream(plan.plan.seed, f"jitter {self.name}")
        self.producer = Producer(settings, driver=self._driver, rng=rng, outbox=outbox)
        self.producer.publish_many = self._telling(self.producer.publish_many)  # type: ignore[method-assign]

    def _telling(self, publish_many: Callable[..., Any]) -> Callable[..., Any]:
        async def told(messages: Sequence[Message], **arguments: Any) -> Sequence[Receipt | PublishError]:
            now, handed = trio.current_time(), []
            for message in messages:
                handed.append(Handed(now, self.name, DUPLICATE_HEADER in message.headers))
                self.seen.handed.setdefault(message.message_id, []).append(handed[-1])
            outcomes: Sequence[Receipt | PublishError] = await publish_many(messages, **arguments)
            if not self.dead:
                for one, outcome in zip(handed, outcomes, strict=True):
                    one.outcome = outcome
            return outcomes

        return told

    async def live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run until it is closed or killed."""
        PROCESS.set(self.name)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.producer.run)
                    task_status.started()
        except Exception as error:  # noqa: BLE001 - whatever it is, a check says so
            if not self.dead:
                self.seen.wrong.append(f"{self.name}: run() raised {error!r}")
        finally:
            self.ended.set()

    def end(self, death: Death) -> None:
        """Let it die as planned."""
        self._resets = death.resets
        self.seen.run.trace.note(f"{self.name}: {death.how}")
        if death.how == "kill":
            self.kill()
        elif death.how != "close":
            self.dies = death.how

    def kill(self) -> None:
        """SIGKILL: nothing more is written to the disk or to the network."""
        seen = self.seen
        assert seen.run.network is not None
        self.dead = True
        seen.killed.add(self.name)
        seen.run.trace.note(f"{self.name} is dead")
        if seen.plan.one_machine:
            seen.database.ended |= self._store.tokens
        for wire in seen.run.network.wires:
            if wire.process == self.name:
                wire.client.die(reset=self._resets)
        self._scope.cancel()

    async def store(self, storing: Storing) -> None:
        """Call `enqueue`."""
        ((number, key, address),) = storing.rows
        message = self.seen_message(number, address)
        name = message.message_id
        try:
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + (1e9 if storing.patience is None else storing.patience)
                await self.producer.enqueue(message, key=key)
                if not self.dead:
                    self.seen.reported.add(name)
                return
            if not self.dead:
                self.seen.cancelled.add(name)
        except (WarrenerError, RuntimeError):
            pass  # not stored, or perhaps stored: nothing was promised

    def seen_message(self, number: int, address: str) -> Message:
        """Make the message, known to the recorders."""
        return _message(self.seen.run, number, address)


def _message(run: Run, number: int, address: str) -> Message:
    item = Item(number, 20, address)
    exchange, routing_key = ADDRESSES[address]
    name, now = f"m{number}", run.trace.clock()
    run.trace.publishes[number] = Publish(item, Call(now, "many", (item,)), body_of(item), now, number, message_id=name)
    return Message(body_of(item), exchange=exchange, routing_key=routing_key, message_id=name)


def run_outbox(plan: OutboxPlan) -> OutboxRun:
    """Run a plan from beginning to end; the same plan gives the same `run.hash`."""
    with in_virtual_time(plan.plan.seed) as (clock, texts):
        seen = trio.run(_main, plan, clock, clock=clock)
    seen.run.texts = texts
    seen.run.hash = seen.run.trace.hash(seen.run.log, sorted(seen.deleted.items()))
    return seen


async def _main(plan: OutboxPlan, clock: MockClock) -> OutboxRun:
    whole = plan.plan
    run = Run(whole, Trace(trio.current_time), "s3cret")
    seen = OutboxRun(plan, run)
    async with trio.open_nursery() as wires, AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(broker_of(whole, number)) for number in range(whole.brokers)]
        for broker in brokers:
            broker.add_vhost(VHOST)
            broker.add_user(USER, run.password, VHOST)
        run.network = Network(whole.network, stream(whole.seed, "network"), run.trace, wires, brokers)
        run.injector = FaultInjector(
            brokers, run.network, run.trace, stream(whole.seed, "injector"), clock, run.password
        )
        async with trio.open_nursery() as tasks:
            tasks.start_soon(run.injector.run, whole.faults)
            slots = [_Slot(seen, number) for number in range(plan.processes)]
            for slot in slots:
                tasks.start_soon(slot.run)
            await _store_rows(seen, slots, tasks)
            await trio.sleep_until(HEALED_AT)
            run.trace.note("HEALED")
            run.injector.heal()
            run.injector.thaw()
            await _empty(seen)
            for slot in slots:
                await slot.stop()
            tasks.cancel_scope.cancel()
        await aftermath(run, brokers)
        wires.cancel_scope.cancel()
    return seen


class _Slot:
    """A process that is started again each time it has ended."""

    def __init__(self, seen: OutboxRun, number: int) -> None:
        self._seen = seen
        self._number = number
        self._deaths = [death for death in seen.plan.deaths if death.process == number]
        self._answers_to_lose = [
            at for place, at in enumerate(seen.plan.lost_answers) if place % seen.plan.processes == number
        ]
        self.process: _Process | None = None

    async def run(self) -> None:
        life = 0
        async with trio.open_nursery() as lives:
            while True:
                life += 1
                process = _Process(self._seen, self._number, life, self._answers_to_lose)
                await lives.start(process.live)
                self.process = process
                if not self._deaths:
                    return
                death = self._deaths.pop(0)
                await trio.sleep_until(death.at)
                if trio.current_time() >= HEALED_AT:
                    return  # the clock jumped past the end of the faults
                process.end(death)
                if death.how == "close":
                    await process.producer.aclose()
                with trio.move_on_at(HEALED_AT):
                    await process.ended.wait()
                process.dies = ""  # it may have had nothing more to commit
                if not process.dead and not process.ended.is_set():
                    return
                await process.ended.wait()
                self.process = None
                await trio.sleep(death.pause)

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.producer.aclose()


async def _store_rows(seen: OutboxRun, slots: Sequence[_Slot], tasks: trio.Nursery) -> None:
    database, run = seen.database, seen.run
    for storing in seen.plan.stored:
        await trio.sleep_until(storing.at)
        process = slots[storing.process].process
        if storing.how == "enqueue":
            if process is not None and not process.dead:
                tasks.start_soon(process.store, storing)
            continue
        rows = [encode(_message(run, number, address), key) for number, key, address in storing.rows]
        if storing.how == "rollback":
            database.next_position += len(rows)  # a sequence keeps its gaps
            seen.rolled_back |= {row.message_id for row in rows}
            continue
        done = MemoryStore(database, trio.current_time).transact(Work(inserts=rows), "application", 0.0)
        for row, position in zip(rows, done.stored, strict=True):
            assert isinstance(position, int)
            seen.committed[row.message_id] = (position, row.key)


async def _empty(seen: OutboxRun) -> None:
    """Wait until everything is confirmed; a person drops what was set aside."""
    database = seen.database
    while trio.current_time() < EMPTY_BY and (database.rows or database.aside):
        for position, (kept, aside) in sorted(database.aside.items()):
            seen.dropped.add(kept.row.message_id)
            if (kept.row.exchange, kept.row.routing_key) != ADDRESSES["nowhere"]:
                seen.wrong.append(f"{kept.row.message_id} was set aside: {aside.reason}: {aside.error}")
            MemoryStore(database, trio.current_time).drop([position])
        await trio.sleep(2.0)


# --- what must hold -------------------------------------------------------------------------------------------------


def _deleted_rows_were_confirmed(seen: OutboxRun) -> Iterator[str]:
    """A row is deleted only after a broker has acknowledged its message, and the message is in its queue."""
    names = {position: name for name, (position, _) in seen.committed.items()}
    for position, at in seen.deleted.items():
        publish = seen.run.trace.publishes[int(names[position][1:])]
        acks = [each.answered_at for each in publish.attempts if each.answer == "ack" and not each.returned]
        if not any(answered is not None and answered <= at for answered in acks):
            yield f"the row of {names[position]} was deleted at {at:.3f}, and its acks came at {acks}"
        for queue in QUEUES[publish.item.address]:
            if publish.body not in seen.run.left.get(queue, ()):
                yield f"the row of {names[position]} was deleted, and its message is not in {queue!r}"


def _committed_rows_end_confirmed(seen: OutboxRun) -> Iterator[str]:
    """Once the faults are over each committed row is confirmed, or a person has dropped it."""
    for name, (position, key) in seen.committed.items():
        if position not in seen.deleted and name not in seen.dropped:
            yield f"{name} (key {key}) was committed at position {position} and is neither confirmed nor set aside"
    yield from (f"{name} was reported as stored and never committed" for name in seen.reported - seen.committed.keys())
    yield from (f"{name} was cancelled and stored" for name in seen.cancelled & seen.committed.keys())


def _rolled_back_rows_are_nowhere(seen: OutboxRun) -> Iterator[str]:
    """A queue holds committed rows only."""
    for name in {line.message_id for _, line in seen.run.log} - seen.committed.keys():
        yield f"{name} is in a queue, and was {'rolled back' if name in seen.rolled_back else 'never committed'}"


def _order_of_keys(seen: OutboxRun) -> Iterator[str]:
    """The first delivery of a row comes before the first delivery of a later row of its key."""
    last: dict[str, int] = {}
    for name in dict.fromkeys(line.message_id for _, line in sorted(seen.run.log, key=lambda each: each[1].at)):
        position, key = seen.committed.get(name, (0, None))
        if key is not None:
            if position < last.get(key, 0):
                yield f"{name}, position {position} of key {key}, came after position {last[key]}"
            last[key] = max(position, last.get(key, 0))


def _copies_are_flagged(seen: OutboxRun) -> Iterator[str]:
    """A message that an earlier relay, or an earlier attempt, may have delivered is published with the header."""
    for name, handed in seen.handed.items():
        unknown = False
        for each in handed:
            if unknown and not each.flagged:
                yield f"{name} was published again by {each.process} at {each.at:.3f} without a flag"
            unknown = unknown or not isinstance(each.outcome, NotSent) or each.outcome.may_have_been_delivered


def _nothing_fails(seen: OutboxRun) -> Iterator[str]:
    """No process ends by itself, and no row is set aside without a reason."""
    yield from seen.wrong


#: Every check by its name.
CHECKS: Final[dict[str, Callable[[OutboxRun], Iterator[str]]]] = {
    "S10 a deleted row was confirmed": _deleted_rows_were_confirmed,
    "S10 a committed row ends confirmed": _committed_rows_end_confirmed,
    "S10 a rolled-back row is nowhere": _rolled_back_rows_are_nowhere,
    "S10 order of keys": _order_of_keys,
    "S10 copies are flagged": _copies_are_flagged,
    "S10 nothing fails": _nothing_fails,
}


def judge(seen: OutboxRun) -> list[Finding]:
    """Return what is wrong with a run; nothing, if all is well."""
    return [Finding(name, text) for name, check in CHECKS.items() for text in check(seen)]


def met(seen: OutboxRun) -> frozenset[str]:
    """Return the rows of the fault matrix that it met: 44, where a killed process had published a row, and a later one did again."""
    again = any(
        handed[-1].process != each.process
        for handed in seen.handed.values()
        for each in handed
        if each.outcome is None and each.process in seen.killed
    )
    return frozenset({"44"} if again else ())


def run_seed(seed: int) -> tuple[list[Finding], frozenset[str]]:
    """Run the plan of a seed, some of them twice; return what is wrong, and the rows of the fault matrix that it met."""
    seen = run_outbox(draw_outbox(seed))
    findings = judge(seen)
    if seed % TWICE == 0 and (again := run_outbox(draw_outbox(seed)).run.hash) != seen.run.hash:
        findings.append(Finding("R22 equal seed, equal trace", f"the hashes are {seen.run.hash} and {again}"))
    return findings, met(seen)
