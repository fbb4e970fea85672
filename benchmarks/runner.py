"""Starts clients, one process each, in alternation; keeps what they measured.

Alternation: every round runs each client once, so that a drift of the machine meets all of them. The figure of a client
is the median of its rounds, and a ratio of two clients is the median of the ratios round by round.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from attrs import define, field, frozen

from benchmarks.clients import CLIENTS
from benchmarks.load import Load

HERE = Path(__file__).parent
ROOT = HERE.parent
#: Where the peers from npm are installed.
NODE_PEERS = ROOT / "build" / "peers"

LIMIT = "raw blaster"
AMQPLIB = "amqplib"
MANAGER = "amqp-connection-manager"

#: What each peer needs, by the name of a Python module.
_MODULES = {
    "pika SelectConnection, pipelined": "pika",
    "pika BlockingConnection": "pika",
    "aiormq": "aiormq",
    "aio-pika robust": "aio_pika",
    "kombu": "kombu",
    "amqpstorm": "amqpstorm",
    "warrener, uvloop": "uvloop",
    "warrener Target, uvloop": "uvloop",
}
_ON_NODE = (AMQPLIB, MANAGER)

#: They wait for each confirm before they publish again, whatever the load says.
ONE_AT_A_TIME = ("pika BlockingConnection", "kombu", "amqpstorm")

#: In the order of the table. After each: what part of the messages it gets; the slow ones need no more.
LINEUP: dict[str, float] = {
    LIMIT: 1,
    "warrener, Trio": 1,
    "warrener, asyncio": 1,
    "warrener, uvloop": 1,
    "warrener Target, Trio": 1,
    "warrener Target, asyncio": 1,
    "warrener Target, uvloop": 1,
    "warrener publish_many, Trio": 1,
    "warrener publish_many of 1,000, Trio": 1,
    AMQPLIB: 1,
    MANAGER: 1,
    "pika SelectConnection, pipelined": 1,
    "warrener on aiormq, Trio": 0.2,
    "warrener on aiormq, asyncio": 0.2,
    "aiormq": 0.2,
    "aio-pika robust": 0.2,
    "pika BlockingConnection": 0.05,
    "kombu": 0.05,
    "amqpstorm": 0.01,
}

#: What one guarantee costs: run as a comparison of its own, each line beside the ones above it.
GUARANTEES: dict[str, float] = {
    "raw frames: persistent": 1,
    "raw frames: + mandatory": 1,
    "raw frames: + message_id": 1,
    "raw frames: + return token": 1,
    "warrener, Trio": 1,
    "warrener, Trio: not mandatory": 1,
    "warrener, Trio: return token": 1,
    "warrener, Trio: no deadline": 1,
}


@frozen
class Figures:
    """One run of one client."""

    confirmed: int
    seconds: float
    cpu_seconds: float
    latencies: list[float] = field(repr=False)
    resident_kib: int

    @property
    def rate(self) -> float:
        """Confirmed messages per second."""
        return self.confirmed / self.seconds

    @property
    def cpu(self) -> float:
        """Microseconds of the client's CPU per confirmed message."""
        return self.cpu_seconds / self.confirmed * 1e6

    def latency(self, share: float) -> float:
        """Return the latency that `share` of the witnesses' messages did not exceed, in milliseconds."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))] * 1e3


@define
class Series:
    """The rounds of one client under one load."""

    rounds: list[Figures] = field(factory=list[Figures])

    def median(self, figure: Callable[[Figures], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(map(figure, self.rounds))

    def ratio(self, other: Series, figure: Callable[[Figures], float]) -> float:
        """Return the median of the ratios to another client, round by round."""
        return statistics.median(
            figure(mine) / figure(theirs) for mine, theirs in zip(self.rounds, other.rounds, strict=True)
        )


def missing(name: str) -> str | None:
    """Say why a client cannot run here, or None."""
    if name in _ON_NODE:
        if shutil.which("node") is None:
            return "there is no node"
        if not (NODE_PEERS / "node_modules" / name).exists():
            return f"{name} is not installed (npm)"
    module = _MODULES.get(name)
    if module is not None and find_spec(module) is None:
        return f"{module} is not installed"
    return None


def install_node_peers() -> str | None:
    """Install the peers from npm where node is there; say why that did not work, or None."""
    npm = shutil.which("npm")
    if npm is None or all(missing(name) is None for name in _ON_NODE):
        return None
    NODE_PEERS.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "install", "--no-fund", "--no-audit", "--silent", *_ON_NODE],
        cwd=NODE_PEERS,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return None if done.returncode == 0 else f"npm install failed: {done.stderr.strip()[-300:]}"


#: By axis and client: what was measured at each value.
Sweep: TypeAlias = "dict[str, dict[str, dict[int, Series]]]"

#: The arguments of each measure of `benchmarks.alone`.
ALONE: dict[str, Callable[[Runner], list[str]]] = {
    "memory": lambda _: [],
    "transitions": lambda _: [],
    "publishing": lambda _: [],
    "idleness": lambda runner: [runner.url],
    "reconnecting": lambda runner: [runner.url, runner.queue],
}


@frozen
class Runner:
    """Runs clients against one broker."""

    url: str
    queue: str
    #: The CPU that clients are bound to, where the broker is bound to others.
    client_cpu: int | None = None
    #: Told about a client that failed.
    complain: Callable[[str], None] = print

    def run(
        self,
        name: str,
        *,
        count: int,
        warm_up: int,
        in_flight: int = 500,
        size: int = 256,
        equal: bool = True,
        timeout: float = 120,
    ) -> Figures | None:
        """Run one client once, `timeout` seconds long; None when it failed, which is told and nothing else."""
        load = Load(self.url, self.queue, count=count, warm_up=warm_up, in_flight=in_flight, size=size, equal=equal)
        if name in CLIENTS:
            command = [sys.executable, "-m", "benchmarks.clients", name, load.to_json()]
        else:
            command = ["node", str(HERE / "amqplib.js"), name, load.to_json()]
        found = self.start(command, name, timeout)
        return None if found is None else Figures(**found)

    def start(self, command: list[str], name: str, timeout: float = 120) -> dict[str, Any] | None:
        """Run a program to its end; the JSON of its last line, or None when it failed."""
        if self.client_cpu is not None and shutil.which("taskset") is not None:
            command = ["taskset", "-c", str(self.client_cpu), *command]
        environment = os.environ | {"NODE_PATH": str(NODE_PEERS / "node_modules")}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            self.complain(f"{name}: not done within {timeout:g} s")
            return None
        try:
            if done.returncode == 0:
                found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
                return found
        except (ValueError, IndexError):
            pass
        self.complain(f"{name}: status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
        return None

    def measure(self, name: str) -> dict[str, float] | None:
        """Measure one thing of `benchmarks.alone`; None when it failed, which is told and nothing else."""
        return self.start([sys.executable, "-m", "benchmarks.alone", name, *ALONE[name](self)], name)

    def compare(
        self,
        names: Iterable[str],
        *,
        rounds: int,
        count: int,
        until: float,
        progress: Callable[[str], None],
        in_flight: int = 500,
        equal: bool = True,
    ) -> dict[str, Series]:
        """Run the clients in alternation; a client that failed once is left out.

        No round but the first begins after `until` (`time.monotonic`), and no round is left half done.
        """
        results = {name: Series() for name in names}
        for number in range(rounds):
            if number and time.monotonic() >= until:
                progress(f"{number} of {rounds} rounds: the time is up")
                break
            for name in list(results):
                share = max(100, round(count * (LINEUP | GUARANTEES)[name]))
                figures = self.run(name, count=share, warm_up=share // 4, in_flight=in_flight, equal=equal)
                if figures is None:
                    del results[name]
                    continue
                results[name].rounds.append(figures)
                progress(f"round {number + 1} of {rounds}: {name}: {figures.rate:,.0f}/s, {figures.cpu:.1f} µs")
        return results

    def sweep(
        self, loads: Iterable[tuple[str, str, int, dict[str, int]]], *, until: float, progress: Callable[[str], None]
    ) -> Sweep:
        """Run loads one after the other: (client, name of the axis, value on it, what `run` takes); stops at `until`.

        A load that comes again is one more round of the same point.
        """
        found: Sweep = {}
        for name, axis, value, load in loads:
            if time.monotonic() >= until:
                progress(f"{axis}: the time is up")
                break
            figures = self.run(name, **load)
            if figures is not None:
                found.setdefault(axis, {}).setdefault(name, {}).setdefault(value, Series()).rounds.append(figures)
                progress(f"{axis} {value:,}: {name}: {figures.rate:,.0f}/s, {figures.cpu:.1f} µs")
        return found
