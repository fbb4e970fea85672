"""A producer against a real RabbitMQ for an hour, with faults drawn at random: is its account true, and does it stay small?

    python -m tests.soak [--minutes 60] [--seed N]

One process publishes without pause (tests/soak/publisher.py). Between it and a private RabbitMQ stands a proxy. Round by round
one fault is drawn: the broker is killed, frozen, stopped, blocked by memory or by disk, hidden and shown in quick turn; its
connections are closed; the network is cut, falls silent or becomes slow; a burst is published. Each round has its own queue,
which is read, once, when all its messages have had their outcome. So what the queue holds can be compared with what the
publishers were told, message by message:

* what was confirmed is in the queue;
* what was certainly not sent is not;
* what is there twice was announced as a possible duplicate;
* nothing else is there.

Memory and descriptors of the publishing process are measured every few seconds and plotted: build/soak/soak.png. The status is
1 if the account is not true, or if memory or descriptors grow.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
from attrs import define, field

from tests.broker.reader import message_ids
from warrener.testing import FaultProxy
from warrener.testing.rabbitmq import PrivateRabbitMQ

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "soak"

#: Seconds between two measurements, and of one round without its fault.
SAMPLE, QUIET = 2.0, 6.0
#: Rounds after which a queue is read: longer than the longest deadline of its messages.
SETTLED = 5
#: Below so many minutes there is too little to say whether it grows.
ENOUGH = 4.0


@define
class Account:
    """What was found, over all queues read."""

    told: Counter[str] = field(factory=Counter)
    in_queues: int = 0
    twice: int = 0
    faults: list[str] = field(factory=list)

    def settle(self, queue: str, outcomes: Path, held: list[str]) -> None:
        """Compare one queue with what was told about its messages."""
        verdicts = dict(line.split("\t") for line in outcomes.read_text().splitlines()) if outcomes.exists() else {}
        counts = Counter(held)
        self.told.update(verdicts.values())
        self.in_queues += len(held)
        self.twice += sum(count > 1 for count in counts.values())
        wrong = {
            "confirmed and not there": [
                one for one, said in verdicts.items() if said in ("confirmed", "duplicate?") and not counts[one]
            ],
            "certainly not sent, and there": [
                one for one, said in verdicts.items() if said == "not sent" and counts[one]
            ],
            "there twice, and nobody was told": [
                one for one, count in counts.items() if count > 1 and verdicts.get(one) == "confirmed"
            ],
            "there, and no publisher knows it": [one for one in counts if one not in verdicts],
        }
        self.faults += [f"{queue}: {len(ids)} {what}, such as {ids[0]}" for what, ids in wrong.items() if ids]


@define
class Samples:
    """Memory and descriptors of a process, over time."""

    pid: int
    rows: list[tuple[float, float, int]] = field(factory=list)
    #: When each fault was inflicted.
    faults: list[float] = field(factory=list)
    _began: float = field(factory=time.monotonic)
    _done: threading.Event = field(factory=threading.Event)

    def take(self) -> None:
        """Measure until `stop`."""
        while not self._done.wait(SAMPLE):
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
                descriptors = len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
            except OSError:
                return
            kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
            self.rows.append((time.monotonic() - self._began, kib / 1024, descriptors))

    def note_fault(self) -> None:
        """A fault is inflicted now."""
        self.faults.append(time.monotonic() - self._began)

    def stop(self) -> None:
        """Measure no more."""
        self._done.set()

    def growth(self) -> list[str]:
        """What grew from the second quarter of the time to the last one."""
        quarter = len(self.rows) // 4
        before, after = self.rows[quarter : 2 * quarter], self.rows[-quarter:]
        memory = [statistics.median(row[1] for row in rows) for rows in (before, after)]
        descriptors = [statistics.median(row[2] for row in rows) for rows in (before, after)]
        grown = []
        if memory[1] > 1.1 * memory[0] + 8:
            grown.append(f"memory grew from {memory[0]:.0f} to {memory[1]:.0f} MiB")
        if descriptors[1] > descriptors[0] + 2:
            grown.append(f"descriptors grew from {descriptors[0]:g} to {descriptors[1]:g}")
        return grown


@define
class Faults:
    """The faults, each with how it is undone."""

    broker: PrivateRabbitMQ
    proxy: FaultProxy
    order: Callable[[str], None]
    rng: random.Random

    def inflict(self, name: str) -> None:
        """Inflict one and undo it."""
        getattr(self, name)()

    def kill(self) -> None:
        self.broker.kill()
        time.sleep(self.rng.uniform(0, 3))
        self.broker.start()

    def stop(self) -> None:
        self.broker.restart()

    def freeze(self) -> None:
        self.broker.freeze()
        time.sleep(self.rng.uniform(1, 7))
        self.broker.thaw()

    def memory(self) -> None:
        self.broker.memory_alarm(True)
        time.sleep(self.rng.uniform(1, 4))
        self.broker.memory_alarm(False)

    def full_disk(self) -> None:
        self.broker.eval("rabbit_disk_monitor:set_disk_free_limit(1000000000000000)")
        time.sleep(self.rng.uniform(1, 4))
        self.broker.eval("rabbit_disk_monitor:set_disk_free_limit(1000000)")

    def flood_of_blocked(self) -> None:
        for _ in range(30):
            self.broker.memory_alarm(True)
            self.broker.memory_alarm(False)

    def operator(self) -> None:
        self.broker.close_all_connections("the soak goes on")

    def cut(self) -> None:
        for _ in range(self.rng.randrange(1, 5)):
            self.proxy.reset()
            time.sleep(self.rng.uniform(0, 0.5))

    def refused(self) -> None:
        self.proxy.refuse()
        self.proxy.fin()
        time.sleep(self.rng.uniform(1, 4))
        self.proxy.heal()

    def silence(self) -> None:
        self.proxy.black_hole()
        time.sleep(self.rng.uniform(1, 7))
        # A stream with a hole in it cannot go on: TCP would have sent the bytes again, or have ended the connection.
        self.proxy.reset()
        self.proxy.heal()

    def slow(self) -> None:
        self.proxy.latency(0.2)
        time.sleep(4)
        self.proxy.heal()

    def burst(self) -> None:
        self.order("burst 3000")

    def burst_and_kill(self) -> None:
        self.order("burst 3000")
        self.kill()


KINDS = tuple(name for name in vars(Faults) if name != "inflict" and callable(getattr(Faults, name)) and name[0] != "_")


def declare(broker: PrivateRabbitMQ, queue: str) -> None:
    """Declare a durable queue, on disk when this returns."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    connection.channel().queue_declare(queue, durable=True)
    connection.close()
    broker.sync()


def soak(minutes: float, seed: int) -> int:
    """Run, account, plot."""
    rng = random.Random(seed)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    account, met = Account(), Counter[str]()
    with ExitStack() as stack:
        broker = stack.enter_context(PrivateRabbitMQ(start_timeout=600))  # other programs may have the processors
        proxy = stack.enter_context(FaultProxy.in_thread(broker.url))
        declare(broker, "soak-0")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.publisher", proxy.url, str(WORK), str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stack.enter_context((WORK / "publisher.log").open("w")),
            text=True,
        )
        orders, said = process.stdin, process.stdout
        assert orders is not None
        assert said is not None

        def order(text: str) -> None:
            print(text, file=orders, flush=True)

        def read(number: int) -> None:
            queue = f"soak-{number}"
            account.settle(queue, WORK / f"{queue}.outcomes", message_ids(broker.url, queue))

        samples = Samples(process.pid)
        measuring = threading.Thread(target=samples.take)
        measuring.start()
        faults = Faults(broker, proxy, order, rng)
        order("queue soak-0")
        ends, number = time.monotonic() + 60 * minutes, 0
        try:
            while time.monotonic() < ends and process.poll() is None:
                time.sleep(QUIET)
                name = rng.choice(KINDS)
                met[name] += 1
                samples.note_fault()
                faults.inflict(name)
                number += 1
                declare(broker, f"soak-{number}")
                order(f"queue soak-{number}")
                if number >= SETTLED:
                    read(number - SETTLED)
        finally:
            samples.stop()
            process.send_signal(signal.SIGTERM)
            orders.close()
            last = said.read().splitlines()
            status = process.wait(120)
            measuring.join()
        for rest in range(max(0, number - SETTLED + 1), number + 1):
            read(rest)
    counters: dict[str, int] = json.loads(last[-1]) if last else {}
    return report(minutes, seed, account, met, samples, counters, status)


def report(
    minutes: float,
    seed: int,
    account: Account,
    met: Counter[str],
    samples: Samples,
    counters: dict[str, int],
    status: int,
) -> int:
    """Say what came of it, and plot."""
    wrong = list(account.faults)
    if status:
        wrong.append(f"the publishing process ended with status {status}")
    settled = sum(counters.get(name, 0) for name in ("confirmed", "rejected", "nacked", "unknown"))
    if counters.get("accepted") != settled:
        wrong.append(f"accepted {counters.get('accepted')}, settled {settled}")
    grown = samples.growth() if minutes >= ENOUGH else []
    wrong += grown
    result: dict[str, Any] = {
        "minutes": minutes,
        "seed": seed,
        "faults": dict(met),
        "told": dict(account.told),
        "in queues": account.in_queues,
        "twice": account.twice,
        "counters": counters,
        "samples": samples.rows,
        "wrong": wrong,
    }
    (WORK / "soak.json").write_text(json.dumps(result, indent=1))
    plot(samples)
    print(
        f"{minutes:g} minutes, seed {seed}: {met.total()} faults: {', '.join(f'{n} {k}' for k, n in sorted(met.items()))}"
    )
    print(
        f"told: {', '.join(f'{n:,} {k}' for k, n in account.told.most_common())}; in the queues {account.in_queues:,}"
    )
    print(f"in a queue twice: {account.twice:,}, each announced as a possible duplicate" if not account.faults else "")
    memory, descriptors = [row[1] for row in samples.rows], [row[2] for row in samples.rows]
    if samples.rows:
        print(
            f"memory {min(memory):.0f} to {max(memory):.0f} MiB, descriptors {min(descriptors)} to {max(descriptors)}"
        )
    print(
        *(wrong or ["The account is true, and nothing grew." if minutes >= ENOUGH else "The account is true."]),
        sep="\n",
    )
    return int(bool(wrong))


def plot(samples: Samples) -> None:
    """Memory and descriptors over time, as PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(9, 5), layout="constrained")
    at = [row[0] / 60 for row in samples.rows]
    upper.plot(at, [row[1] for row in samples.rows])
    upper.set(ylabel="resident memory, MiB", ylim=(0, None), title="One producer under random faults")
    lower.plot(at, [row[2] for row in samples.rows], color="tab:orange")
    lower.set(xlabel="minutes; each grey line is a fault", ylabel="file descriptors", ylim=(0, None))
    for axes in (upper, lower):
        for instant in samples.faults:
            axes.axvline(instant / 60, color="0.85", linewidth=0.6, zorder=0)
    figure.savefig(WORK / "soak.png", dpi=110)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    return soak(options.minutes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
