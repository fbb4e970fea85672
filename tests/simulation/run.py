"""One run: broker, network, producer and callers in one Trio program in virtual time, decided by the seed alone.

Trio's scheduler shuffles the tasks that are ready. For a run to be repeatable the shuffle has to be seeded, and the only
switch for that is private (``trio._core._run``; Hypothesis sets the same one). It is set here, for the length of a run,
and put back afterwards; nothing else in the library or its tools touches it.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress

import attrs
import trio
import trio._core._run as trio_run
from attrs import define, field
from trio.testing import MockClock

from tests.simulation.faults import USER, VHOST, FaultInjector
from tests.simulation.neighbours import prepare
from tests.simulation.network import FIRST_PORT, Network
from tests.simulation.recorder import RecordingDriver
from tests.simulation.schedule import FRAME_MAX, LARGEST, Call, Item, Plan, ProducerPlan, RetryPlan, stream
from tests.simulation.trace import Trace
from tests.simulation.workload import Workload, describe
from warrener import Budget, ClosingReport, ConnectionState, Producer, Retry, Status
from warrener._settings.settings import Settings
from warrener.drivers.native import NativeDriver
from warrener.errors import CircuitOpen, ConnectError, PublishError
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.records import Credentials, Endpoint, Receipt
from warrener.retry import Cause
from warrener.testing.broker import EmbeddedBroker, Ended, Enqueued, Tuning, Violation
from warrener.topology import Binding, Exchange, Queue

__all__ = ["Run", "aftermath", "broker_of", "in_virtual_time", "settings_of", "simulate"]

TOPOLOGY = (
    Exchange("work"),
    Queue("jobs"),
    Queue("quorum", arguments={"x-queue-type": "quorum"}),
    Queue("small", arguments={"x-max-length": 4, "x-overflow": "reject-publish"}),
    Binding(source="work", destination="jobs", routing_key="jobs"),
    Binding(source="work", destination="jobs", routing_key="both"),
    Binding(source="work", destination="small", routing_key="both"),
    Binding(source="work", destination="quorum", routing_key="quorum"),
)
#: Virtual seconds that a run lasts at least.
LEAST = 120.0
#: Probes are messages from this number on.
PROBES = 1000


@define(eq=False)
class Run:
    """Everything that is known about a run when it is over; `checks` judges it."""

    plan: Plan
    trace: Trace
    password: str = field(repr=False)
    #: Samples, each with whether the link that it names has a connection.
    statuses: list[tuple[float, Status, bool]] = field(factory=list[tuple[float, Status, bool]])
    changes: list[tuple[float, Status]] = field(factory=list[tuple[float, Status]])
    #: What was enqueued, and how connections ended, with the number of the broker.
    log: list[tuple[int, Enqueued]] = field(factory=list[tuple[int, Enqueued]])
    #: What is left in the queues at the end, by the name of the queue, on any broker.
    left: dict[str, set[bytes]] = field(factory=dict[str, set[bytes]])
    violations: list[Violation] = field(factory=list[Violation])
    ended: list[tuple[int, Ended]] = field(factory=list[tuple[int, Ended]])
    clients_left: int = 0
    network: Network | None = None
    injector: FaultInjector | None = None
    workload: Workload | None = None
    driver: RecordingDriver | None = None
    #: The most tasks that the producer had at one time.
    peak_tasks: int = 0
    counters: dict[str, int] = field(factory=dict[str, int])
    #: Sums that did not hold while the run went on.
    unbalanced: list[str] = field(factory=list[str])
    report: ClosingReport | None = None
    crash: BaseException | None = None
    closing_began_at: float = 0.0
    closed_at: float | None = None
    calls_left: int = 0
    outcomes_missed: int = 0
    stray: list[str] = field(factory=list[str])
    #: When all was well again in liveness mode, and the link was seen up; None: it never was.
    up_again_at: float | None = None
    probes: list[Receipt | PublishError | None] = field(factory=list[Receipt | PublishError | None])
    faults_seen: dict[str, int] = field(factory=dict[str, int])
    texts: list[str] = field(factory=list[str])
    ended_at: float = 0.0
    hash: str = ""


def simulate(plan: Plan) -> Run:
    """Run a plan from beginning to end; the same plan gives the same `Run.hash`."""
    with in_virtual_time(plan.seed) as (clock, texts):
        run = trio.run(_main, plan, clock, clock=clock)
    run.texts = texts
    run.hash = run.trace.hash(run.log)
    return run


@contextmanager
def in_virtual_time(seed: int) -> Iterator[tuple[MockClock, list[str]]]:
    """Give the clock for a run that its seed decides, and the texts that the library logs meanwhile."""
    with _deterministic(stream(seed, "tasks")), _listening() as texts:
        yield MockClock(autojump_threshold=0), texts


@contextmanager
def _deterministic(rng: random.Random) -> Iterator[None]:
    """Have Trio sort and shuffle its tasks by the seed; the garbage collector must not choose an instant either."""
    switches = {"_ALLOW_DETERMINISTIC_SCHEDULING": True, "_r": rng}
    scheduler = trio_run.__dict__
    before = {name: scheduler[name] for name in switches}
    collecting = gc.isenabled()
    scheduler.update(switches)
    gc.disable()
    try:
        yield
    finally:
        scheduler.update(before)
        if collecting:
            gc.enable()


class _Listener(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what the library logs, and keep it off the terminal."""
    texts: list[str] = []
    log = logging.getLogger("warrener")
    handler = _Listener(texts)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield texts
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _endpoints(plan: Plan, password: str) -> tuple[Endpoint, ...]:
    """One name for all brokers, or one endpoint for each, told apart by its port."""
    one = Endpoint("localhost", vhost=VHOST, credentials=Credentials(USER, password))
    if plan.brokers == 1 or not plan.several_endpoints:
        return (one,)
    return tuple(attrs.evolve(one, port=FIRST_PORT + number) for number in range(plan.brokers))


def settings_of(whole: Plan, password: str) -> Settings:
    plan = whole.producer
    return Settings(
        endpoints=_endpoints(whole, password),
        prefer="first" if whole.seed % 3 == 0 else "any",
        name="simulated",
        topology=TOPOLOGY,
        heartbeat=plan.heartbeat,
        connect_timeout=plan.connect_timeout,
        backoff=Backoff(initial=plan.initial, cap=plan.cap, attempts=plan.attempts, jitter=plan.jitter),
        breaker=None if plan.breaker is None else Breaker(*plan.breaker),
        stable_for=plan.stable_for,
        publish_timeout=plan.publish_timeout,
        confirm_timeout=plan.confirm_timeout,
        delivery="at_least_once" if plan.at_least_once else "at_most_once",
        retry=_policy(plan.retry, plan),
        max_buffered=plan.max_buffered,
        max_buffered_bytes=plan.max_buffered_bytes,
        max_block=plan.max_block,
        max_in_flight=plan.max_in_flight,
        drain_timeout=plan.drain_timeout,
        write_stall_timeout=plan.write_stall_timeout,
        frame_timeout=plan.frame_timeout,
        max_inbound_body=plan.max_inbound_body,
        links=whole.links,
    )


def _policy(retry: RetryPlan | None, plan: ProducerPlan) -> Retry | None:
    """Make the policy of a plan; each call makes a `Budget` of its own."""
    if retry is None:
        return None
    on: set[Cause] = {"unknown", "not_sent"}
    if retry.nacked:
        on.add("nacked")
    if retry.overdue and plan.confirm_timeout < plan.publish_timeout:
        on.add("overdue")
    budget = (
        None if retry.budget is None else Budget(**dict(zip(("ratio", "floor", "window"), retry.budget, strict=True)))
    )
    backoff = Backoff(initial=retry.initial, cap=8 * retry.initial) if retry.nacked else None
    return Retry(on=frozenset(on), attempts=retry.attempts, backoff=backoff, budget=budget)


async def _main(plan: Plan, clock: MockClock) -> Run:
    trace = Trace(trio.current_time)
    password = f"s3cret-{stream(plan.seed, 'password').getrandbits(64):x}"
    run = Run(plan, trace, password)
    async with trio.open_nursery() as wires, AsyncExitStack() as stack:
        count = 1 if plan.shared_queues else plan.brokers
        brokers = [await stack.enter_async_context(broker_of(plan, number)) for number in range(count)]
        for broker in brokers:
            broker.add_vhost(VHOST)
            broker.add_user(USER, password, VHOST)
        if plan.neighbours:
            prepare(plan, brokers, USER, VHOST, wires)
        nodes = brokers * plan.brokers if plan.shared_queues else brokers
        run.network = Network(plan.network, stream(plan.seed, "network"), trace, wires, nodes)
        run.network.fixed_order = plan.neighbours
        run.injector = FaultInjector(brokers, run.network, trace, stream(plan.seed, "injector"), clock, password)
        await _Program(run).play()
        await aftermath(run, brokers)
        wires.cancel_scope.cancel()
    return run


def broker_of(plan: Plan, number: int) -> EmbeddedBroker:
    return EmbeddedBroker(
        listen=False,
        strict=False,
        delayed_messages=True,
        rng=stream(plan.seed, f"broker {number}"),
        sync_interval=plan.sync_interval,
        tuning=Tuning(frame_max=FRAME_MAX, max_message_size=LARGEST, closing_timeout=5.0),
    )


class _Program:
    """The program that uses the producer, from its start to its end."""

    def __init__(self, run: Run) -> None:
        assert run.network is not None
        short_bodies: dict[bytes, int] = {}
        self._run = run
        plan = run.plan
        run.driver = RecordingDriver(NativeDriver(run.network.dial), run.trace, short_bodies, chatty=plan.chatty)
        self._producer = Producer(settings_of(plan, run.password), driver=run.driver, rng=stream(plan.seed, "jitter"))
        self._workload = run.workload = Workload(self._producer, run.trace, run.network, plan.seed, short_bodies)
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        #: Where the producer's tasks live.
        self._nursery: trio.Nursery

    async def play(self) -> None:
        run, plan = self._run, self._run.plan
        assert run.injector is not None
        async with trio.open_nursery() as watchers:
            await watchers.start(self._run_producer)
            watchers.start_soon(self._listen)
            watchers.start_soon(self._watch)
            watchers.start_soon(self._sample)
            if len(self._producer.settings.endpoints) > 1 and plan.seed % 2 == 0:
                watchers.start_soon(self._hand_over)
            async with trio.open_nursery() as others:
                others.start_soon(run.injector.run, plan.faults)
                async with trio.open_nursery() as callers:
                    callers.start_soon(self._workload.run, plan.calls, callers)
                    if plan.mode == "liveness":
                        await self._recover(callers)
                    await trio.sleep_until(plan.ends_at)
                    await self._end()
                    # Everything was settled; what still waits now would wait for ever.
                    await self._workload.all_called.wait()
                    await trio.sleep(1.0)
                    run.calls_left = self._workload.open_calls
                    callers.cancel_scope.cancel()
                others.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            watchers.cancel_scope.cancel()
        self._settle_accounts()

    # --- the producer -------------------------------------------------------------------------------------------------

    async def _run_producer(self, *, task_status: trio.TaskStatus[None]) -> None:
        run = self._run
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await nursery.start(self._producer.run)
                    task_status.started()
        except BaseException as error:
            run.crash = error
            if isinstance(error, trio.Cancelled):
                raise
        finally:
            run.closed_at = trio.current_time()
            run.trace.note("run() has ended")
            self._over.set()

    async def _hand_over(self) -> None:
        """Now and then an operator wants the producer on another endpoint."""
        rng = stream(self._run.plan.seed, "operator")
        while True:
            await trio.sleep(rng.uniform(10, 50))
            self._run.trace.note("hand_over()")
            with suppress(ConnectError, PublishError):
                await self._producer.hand_over()

    async def _end(self) -> None:
        run, producer = self._run, self._producer
        run.closing_began_at = trio.current_time()
        if producer.status().blocked:
            run.trace.see("blocked, then close")
        run.trace.note(f"ENDING: {run.plan.ending}")
        match run.plan.ending:
            case "close" | "close under load":
                with trio.move_on_after(120):
                    run.report = await producer.aclose()
            case "abort":
                producer.abort()
            case "kill":
                self._scope.cancel()
        with trio.move_on_after(120):
            await self._over.wait()
        run.report = run.report or await producer.aclose()

    async def _recover(self, callers: trio.Nursery) -> None:
        """Faults are over: within a bound the link is up, and a publish is confirmed."""
        run, plan = self._run, self._run.plan.producer
        assert run.injector is not None
        await trio.sleep_until(self._run.plan.healed_at)
        run.trace.note("HEALED")
        run.injector.heal()
        noticed = max(
            3 * plan.heartbeat, plan.frame_timeout + plan.heartbeat, plan.write_stall_timeout, plan.connect_timeout,
            plan.confirm_timeout,
        )  # fmt: skip
        bound = trio.current_time() + noticed + plan.connect_timeout + plan.cap + 10.0
        await trio.sleep_until(bound)
        try:
            # A channel storm that the callers themselves have brought about may be under way in this very instant.
            await self._producer.wait_connected(plan.connect_timeout + plan.cap)
            run.up_again_at = trio.current_time()
        except (ConnectError, PublishError):
            run.trace.note("no link within the bound")
        for number in range(PROBES, PROBES + 3):
            run.probes.append(await self._probe(number, callers))

    async def _probe(self, number: int, callers: trio.Nursery) -> Receipt | PublishError | None:
        publish = None
        for attempt in range(8):
            item = Item(number + 100 * attempt, 20, "jobs")
            await self._workload.make(Call(trio.current_time(), "publish", (item,), 20.0), callers)
            publish = self._run.trace.publishes[item.number]
            if isinstance(publish.result, Receipt):
                break
            # A probe of the breaker may be under way, or a neighbour may have had the channel closed.
            await trio.sleep(publish.result.retry_after + 0.1 if isinstance(publish.result, CircuitOpen) else 1.0)
        return None if publish is None else publish.result

    # --- looking on ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        run = self._run
        async with self._producer.outcomes() as outcomes:
            async for outcome in outcomes:
                run.trace.note(f"late: {describe(outcome.result)}")
                self._attribute(outcome.message_id, outcome.result)
            run.outcomes_missed = outcomes.missed

    def _attribute(self, message_id: str, result: Receipt | PublishError) -> None:
        """Find whose late outcome it is; of several with one id, those that miss one come first."""
        candidates = [publish for publish in self._run.trace.publishes.values() if publish.message_id == message_id]
        if not candidates:
            self._run.stray.append(f"{message_id}: {describe(result)}")
            return
        # A cancelled publish waits for its outcome; one that timed out waits for its late one.
        waiting = [publish for publish in candidates if not publish.late] or candidates
        waiting.sort(key=lambda publish: (not publish.cancelled, publish.result is None))
        waiting[0].late.append(result)

    async def _watch(self) -> None:
        run = self._run
        async with self._producer.changes() as changes:
            async for status in changes:
                run.trace.note(f"state {status.connection_state.value} link {status.link}")
                run.changes.append((trio.current_time(), status))

    async def _sample(self) -> None:
        run = self._run
        assert run.network is not None
        while True:
            status = self._producer.status()
            run.statuses.append((trio.current_time(), status, self._holds(status)))
            self._weigh(status)
            run.peak_tasks = max(run.peak_tasks, _count_tasks(self._nursery))
            await trio.sleep(2.7)

    def _holds(self, status: Status) -> bool:
        """Whether each link that is said to be up has a connection."""
        network, trace = self._run.network, self._run.trace
        assert network is not None
        members = enumerate(status.links, 1) if status.links else ((0, status),)
        up = [(place, each.link) for place, each in members if each.connection_state is ConnectionState.CONNECTED]
        records = [trace.link_of(place, number) for place, number in up]
        return all(record is not None and network.holds(record.number) for record in records)

    def _weigh(self, status: Status) -> None:
        counters = self._producer.counters
        settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
        pending = counters["accepted"] - settled
        if not 0 <= pending <= status.in_flight + status.buffered:
            self._run.unbalanced.append(f"{trio.current_time():.3f}: pending {pending}, {dict(counters)}, {status}")

    def _settle_accounts(self) -> None:
        run = self._run
        run.counters = dict(self._producer.counters)
        run.faults_seen = {kind.value: count for kind, count in self._producer.faults.items()}
        status = self._producer.status()
        run.statuses.append((trio.current_time(), status, False))
        run.texts += [repr(self._producer), repr(status), str(self._producer.settings)]


def _count_tasks(nursery: trio.Nursery) -> int:
    return sum(1 + sum(_count_tasks(inner) for inner in task.child_nurseries) for task in nursery.child_tasks)


async def aftermath(run: Run, brokers: Sequence[EmbeddedBroker]) -> None:
    """End all faults, let the network deliver its last bytes, and collect what the brokers hold."""
    assert run.injector is not None
    run.trace.note("AFTERMATH")
    run.injector.heal()
    run.injector.thaw()
    # A broker does not report when its last client is gone, and virtual time costs nothing.
    while trio.current_time() < LEAST or (any(broker.clients for broker in brokers) and _patient(run)):
        await trio.sleep(5.0)
    for place, broker in enumerate(brokers):
        broker.stall_confirms(on=False)
        broker.sync()
        run.log += [(place, line) for line in broker.log]
        for queue in broker.queues(VHOST):
            run.left.setdefault(queue, set()).update(broker.messages(queue, VHOST))
        run.violations += broker.violations
        run.ended += [(place, ended) for ended in broker.ended]
        run.clients_left += len(broker.clients)
    run.ended_at = trio.current_time()


def _patient(run: Run) -> bool:
    return trio.current_time() < run.plan.duration + 400
