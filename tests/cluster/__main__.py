"""A cluster under random faults of its nodes, with a producer that publishes without pause: is the account true, how long is it dark?

    python -m tests.cluster [--minutes 60] [--seed N] [--client warrener] [--separate] [--root FOLDER] [--demo]

Three private nodes of RabbitMQ are one cluster with three quorum queues. One process publishes to all three queues
(publisher.py, publisher.js). Event by event one node is killed, frozen, put into maintenance or restarted; the events are drawn
from the seed alone, so `--client aio-pika` and `--client amqp-connection-manager` meet the same ones. After each event the
cluster becomes whole again, so two nodes of three always run.

An independent client reads the queues, and each message that was confirmed must be there. For each kind of event, the time
without service is the longest time without a confirm in the queue that was affected most.

`--separate` takes two single brokers that share nothing in place of the cluster: a message stays on the broker that stored it,
so the account is that of both. `--demo` shows four events with a line for each second. The result, and a plot, are in
build/cluster. The status is 1 if the account of this library's producer is not true.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pika
from attrs import define, field

from tests.cluster.account import Account, Event, Outcome, read_outcomes, silences, summary
from tests.cluster.plan import DEMO, Step, plan
from warrener.testing.cluster import PrivateCluster
from warrener.testing.rabbitmq import PrivateRabbitMQ

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "cluster"
HERE = Path(__file__).parent
CLIENTS = ("warrener", "warrener-persistent", "aio-pika", "amqp-connection-manager")
PLACES = 3
#: Events for which a set of queues is used, and how many sets later it is read: longer than the deadline of its messages.
EVENTS_OF_A_SET, SETTLED = 4, 2


@define
class Brokers:
    """The nodes, and what differs between a cluster and brokers that share nothing."""

    nodes: tuple[PrivateRabbitMQ, ...]
    cluster: PrivateCluster | None

    @property
    def holders(self) -> tuple[PrivateRabbitMQ, ...]:
        """The brokers that hold messages of their own."""
        return self.nodes[:1] if self.cluster is not None else self.nodes

    def declare(self, queues: list[str]) -> None:
        """Declare the queues wherever they have to be."""
        quorum = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced"}
        for node in self.holders:
            with _channel(node) as channel:
                for queue in queues:
                    channel.queue_declare(queue, durable=True, arguments=quorum if self.cluster is not None else None)
            node.sync()

    def wait_whole(self, queues: list[str]) -> None:
        """Wait until every node runs, and every queue has all its members."""
        if self.cluster is not None:
            self.cluster.wait_running(120)
            self.cluster.wait_replicated(queues, 120)

    def read(self, queue: str) -> list[str]:
        """Take all messages of the queue, and delete it."""
        return [message_id for node in self.holders for message_id in _emptied(node, queue)]

    def own_node(self) -> int:
        """The index of the node to which the client is connected; 0 if it is not connected."""
        counts = [node.connection_count() for node in self.nodes]
        return counts.index(max(counts))


@contextmanager
def _channel(node: PrivateRabbitMQ) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(f"{node.url}?heartbeat=0"))
    try:
        yield connection.channel()
    finally:
        connection.close()


def _emptied(node: PrivateRabbitMQ, queue: str) -> list[str]:
    found: list[str] = []
    with _channel(node) as channel:
        channel.basic_qos(prefetch_count=2000)
        for method, properties, _body in channel.consume(queue, inactivity_timeout=5):
            if method is None:
                break
            found.append(properties.message_id)
            if len(found) % 500 == 0:
                channel.basic_ack(method.delivery_tag, multiple=True)
        channel.cancel()
        channel.queue_delete(queue)
    return found


@contextmanager
def brokers(*, separate: bool, root: Path | None) -> Iterator[Brokers]:
    """Start a cluster, or two brokers that share nothing."""
    with ExitStack() as stack:
        if separate:
            yield Brokers(tuple(stack.enter_context(PrivateRabbitMQ(root=root)) for _ in range(2)), None)
        else:
            cluster = stack.enter_context(PrivateCluster(root=root))
            yield Brokers(cluster.nodes, cluster)


@define
class Run:
    """One client under a plan of events."""

    brokers: Brokers
    client: str
    live: bool
    began: float = field(factory=time.monotonic)
    account: Account = field(factory=Account)
    events: list[Event] = field(factory=list)
    outcomes: list[tuple[int, Outcome]] = field(factory=list)
    sets: list[list[str]] = field(factory=list)
    settled: int = 0
    counters: dict[str, int] = field(factory=dict)
    status: int = 0

    def run(self, steps: Iterable[Step], seconds: float) -> None:
        """Let the client publish, and inflict the events of the plan until the time is over."""
        with (WORK / "publisher.log").open("w") as log, _publisher(self.client, self.brokers, log) as process:
            self._next_set(process)
            self._wait(8)
            ends = time.monotonic() + seconds
            for number, step in enumerate(steps, 1):
                if time.monotonic() >= ends or process.poll() is not None:
                    break
                self._inflict(step)
                if number % EVENTS_OF_A_SET == 0 and not self.live:
                    self._next_set(process)
                    self._settle(len(self.sets) - SETTLED)
            self._stop(process)
        self.brokers.wait_whole(self.sets[-1])
        self._settle(len(self.sets))

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def _next_set(self, process: subprocess.Popen[str]) -> None:
        queues = [f"cluster-{len(self.sets)}-{place}" for place in range(PLACES)]
        self.brokers.declare(queues)
        self.brokers.wait_whole(queues)
        self.sets.append(queues)
        assert process.stdin is not None
        print("queues", *queues, file=process.stdin, flush=True)

    def _inflict(self, step: Step) -> None:
        own = self.brokers.own_node()
        place = (own + step.offset) % len(self.brokers.nodes)
        node = self.brokers.nodes[place]
        self._say(f"{step.kind} of node {place + 1}, the client is on node {own + 1}")
        begun = time.monotonic()
        match step.kind:
            case "kill":
                node.kill()
                self._wait(step.hold)
                node.start()
            case "freeze":
                node.freeze()
                self._wait(step.hold)
                node.thaw()
            case "maintenance":
                node.drain()
                self._wait(step.hold)
                node.revive()
            case _:
                node.restart()
        self._say(f"node {place + 1} is back")
        self.brokers.wait_whole(self.sets[-1])
        self._wait(step.rest)
        self.events.append(Event(step.kind, place == own, begun, time.monotonic()))

    def _wait(self, seconds: float) -> None:
        """Wait; the demo shows each second how many confirms there were."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            if self.live:
                since = time.monotonic() - 1.0
                last = [self._confirms_since(queue, since) for queue in self.sets[-1]]
                self._say(f"{sum(last):4d} confirms in the last second, by queue: {' '.join(f'{n:3d}' for n in last)}")

    @staticmethod
    def _confirms_since(queue: str, since: float) -> int:
        outcomes = read_outcomes(WORK / f"{queue}.outcomes")
        return sum(each.at > since and each.verdict in ("confirmed", "duplicate?") for each in outcomes)

    def _settle(self, before: int) -> None:
        """Read the sets of queues before this one, and hold them against what was told."""
        for queues in self.sets[self.settled : max(self.settled, before)]:
            for place, queue in enumerate(queues):
                outcomes = read_outcomes(WORK / f"{queue}.outcomes")
                self.account.settle(outcomes, self.brokers.read(queue))
                self.outcomes += ((place, outcome) for outcome in outcomes)
            self.settled += 1

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        said, _ = process.communicate(timeout=180)
        self.status = process.returncode
        self.counters = json.loads(said.splitlines()[-1]) if said else {}

    def confirms(self) -> dict[str, list[float]]:
        """The instants of the confirms of each place, in order."""
        found: dict[str, list[float]] = defaultdict(list)
        for place, outcome in self.outcomes:
            if outcome.verdict in ("confirmed", "duplicate?"):
                found[str(place)].append(outcome.at)
        return {place: sorted(instants) for place, instants in found.items()}


@contextmanager
def _publisher(client: str, brokers: Brokers, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Start the client's process; it does not outlive the block."""
    urls = [node.url for node in brokers.nodes]
    if client == "amqp-connection-manager":
        from benchmarks.runner import NODE_PEERS, install_node_peers

        if why := install_node_peers():
            raise SystemExit(why)
        command = ["node", str(HERE / "publisher.js"), str(WORK), *urls]
        environment = os.environ | {"NODE_PATH": str(NODE_PEERS / "node_modules")}
    else:
        command = [sys.executable, "-m", "tests.cluster.publisher", client, str(WORK), *urls]
        environment = dict(os.environ)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def report(run: Run, minutes: float, seed: int) -> int:
    """Say what came of it, and plot it."""
    met = Counter(event.kind for event in run.events)
    confirms = run.confirms()
    rows = summary(silences(run.events, confirms))
    version = ".".join(map(str, run.brokers.nodes[0].version))
    kind = "three nodes, quorum queues" if run.brokers.cluster is not None else "two brokers that share nothing"
    lines = [
        f"{run.client}, RabbitMQ {version}, {kind}, {minutes:.1f} minutes, seed {seed}",
        f"events:      {', '.join(f'{count} {name}' for name, count in sorted(met.items()))}",
        *run.account.lines(),
        "time without a confirm in the queue that was affected most, in seconds:",
        f"  {'event':<28}{'count':>6}{'p50':>8}{'max':>8}",
        *(f"  {name:<28}{count:>6}{median:>8.2f}{longest:>8.2f}" for name, count, median, longest in rows),
    ]
    print(*lines, sep="\n")
    result = {
        "client": run.client, "rabbitmq": version, "kind": kind, "minutes": minutes, "seed": seed, "events": dict(met),
        "told": dict(run.account.told), "in queues": run.account.in_queues, "lost": run.account.lost,
        "duplicates announced": run.account.twice_told, "duplicates not announced": run.account.twice_untold,
        "silences": {name: {"count": count, "p50": p50, "max": longest} for name, count, p50, longest in rows},
        "counters": run.counters,
    }  # fmt: skip
    (WORK / f"{run.client}.json").write_text(json.dumps(result, indent=1))
    plot(run, confirms, rows)
    if not run.client.startswith("warrener"):
        return 0
    if run.status:
        print(f"the publishing process ended with status {run.status}; see {WORK / 'publisher.log'}")
    print("The account is true." if run.account.true else "The account is NOT true.")
    return int(not run.account.true or run.status != 0)


def plot(run: Run, confirms: dict[str, list[float]], rows: list[tuple[str, int, float, float]]) -> None:
    """Confirms for each second with the events, and the time without service of each kind."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 7), layout="constrained")
    for place, instants in sorted(confirms.items()):
        seconds = Counter(int(instant - run.began) for instant in instants)
        span = range(max(seconds, default=0) + 1)
        upper.plot(span, [seconds[second] for second in span], linewidth=0.8, label=f"queue {int(place) + 1}")
    colours = {"kill": "tab:red", "freeze": "tab:blue", "maintenance": "tab:green", "restart": "tab:orange"}
    for event in run.events:
        upper.axvspan(event.begun - run.began, event.ended - run.began, color=colours[event.kind], alpha=0.12)
    upper.set(xlabel="seconds", ylabel="confirms a second", ylim=(0, None), title=f"{run.client}: events are shaded")
    upper.legend(loc="lower right")
    names = [name for name, *_ in rows]
    lower.barh(names, [longest for *_, longest in rows], color="lightgrey", label="longest")
    lower.barh(names, [median for _, _, median, _ in rows], color="tab:blue", label="median")
    lower.set(xlabel="seconds without a confirm in the queue that was affected most")
    lower.legend()
    figure.savefig(WORK / f"{run.client}.svg")


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--client", choices=CLIENTS, default="warrener")
    parser.add_argument("--separate", action="store_true", help="two brokers that share nothing, in place of a cluster")
    parser.add_argument("--root", type=Path, help="a folder that holds another RabbitMQ (as root)")
    parser.add_argument("--demo", action="store_true", help="four events, shown live")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    for old in WORK.glob("*.outcomes"):
        old.unlink()
    print("starting the brokers ...", flush=True)
    with brokers(separate=options.separate, root=options.root) as started:
        run = Run(started, options.client, options.demo)
        steps = DEMO if options.demo else plan(options.seed)
        run.run(steps, 3600.0 if options.demo else 60 * options.minutes)
        return report(run, (time.monotonic() - run.began) / 60, 0 if options.demo else options.seed)


if __name__ == "__main__":
    sys.exit(main())
