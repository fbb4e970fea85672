"""``python -m benchmarks``: start a private broker, measure, print the table, write JSON and plots; see the package."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.raw import shake_hands
from benchmarks.report import ASYNCIO, TRIO, as_json, comparisons, document, one_at_a_time, targets
from benchmarks.report import machine as describe
from benchmarks.runner import (
    ALONE,
    AMQPLIB,
    GUARANTEES,
    LIMIT,
    LINEUP,
    ROOT,
    Runner,
    Series,
    Sweep,
    install_node_peers,
    missing,
)
from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQMissing
from warrener.topology import Queue
from warrener.wire import requests

QUEUE = "warrener.benchmark"


def machine(broker: PrivateRabbitMQ) -> dict[str, Any]:
    """Describe what the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, ": ").partition(":")[2].strip()
    try:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        node = "none"
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "node": node,
        "rabbitmq": broker.eval("rabbit_misc:version()").strip('"'),
        "load_average": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


@contextmanager
def private_broker(*, pinned: bool) -> Iterator[PrivateRabbitMQ]:
    """Run a broker, bound to all CPUs but the last where `pinned`, with the queue that everybody publishes to."""
    everywhere = os.sched_getaffinity(0)
    if pinned:
        os.sched_setaffinity(0, everywhere - {max(everywhere)})
    with PrivateRabbitMQ() as broker:
        os.sched_setaffinity(0, everywhere)
        peer, session, _ = shake_hands(broker.url)
        with peer:
            limits = {"x-max-length": 10_000, "x-max-length-bytes": 50_000_000}
            session.request(requests.declare(Queue(QUEUE, arguments=limits)))
            answers: list[object] = []
            while not answers:
                while data := session.data_to_send():
                    peer.sendall(data)
                answers = list(session.receive(peer.recv(65536)))
        yield broker


def _sweeps(*, quick: bool) -> Iterator[tuple[str, str, int, dict[str, int]]]:
    """What is run beside the comparison: the clients of a value next to each other, the whole again for each round."""
    clients = [name for name in (LIMIT, TRIO, AMQPLIB) if missing(name) is None]
    base = 4_000 if quick else 15_000
    for number in range(1 if quick else 3):
        if number == 1:
            for total in (10_000, 20_000, 100_000, 300_000, 1_000_000):
                yield TRIO, "total sent", total, {"count": total, "warm_up": 1_000, "timeout": 240}
        for in_flight in (1, 500, 10_000) if quick else (1, 10, 100, 500, 2_000, 10_000):
            # One at a time is a matter of round trips: fewer will do.
            count = base // 10 if in_flight < 10 else max(base, 2 * in_flight)
            for name in clients:
                yield name, "in flight", in_flight, {"count": count, "warm_up": count // 4, "in_flight": in_flight}
        for size in (0, 256, 65_536, 1_048_576) if quick else (0, 256, 4_096, 65_536, 262_144, 1_048_576):
            count = max(100, min(base, (50_000_000 if quick else 200_000_000) // max(1, size)))
            in_flight = max(8, min(500, 32_000_000 // max(1, size)))
            for name in clients:
                yield name, "size", size, {"count": count, "warm_up": count // 4, "in_flight": in_flight, "size": size}
    if quick:
        for total in (10_000, 100_000):
            yield TRIO, "total sent", total, {"count": total, "warm_up": 1_000}


def _measure(runner: Runner, names: list[str], options: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """Measure everything that the options ask for, within their time."""
    quick = options.quick
    began = time.monotonic()

    def progress(text: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {text}", flush=True)

    # Each part ends in time for the others, whatever the machine does.
    clients = runner.compare(
        names,
        rounds=options.rounds or (2 if quick else 5),
        count=options.count or (6_000 if quick else 20_000),
        until=began + (60 if quick else 360),
        progress=progress,
    )
    bare: dict[str, Series] = {}
    guarantees: dict[str, Series] = {}
    singles: dict[str, Series] = {}
    alone: dict[str, Any] = {}
    sweep: Sweep = {}
    if not options.only:
        bare = runner.compare(
            clients,
            rounds=1 if quick else 3,
            count=options.count or (4_000 if quick else 15_000),
            until=began + (90 if quick else 540),
            progress=lambda text: progress(f"bare: {text}"),
            equal=False,
        )
        guarantees = runner.compare(
            GUARANTEES,
            rounds=1 if quick else 5,
            count=options.count or (4_000 if quick else 20_000),
            until=began + (110 if quick else 640),
            progress=lambda text: progress(f"guarantees: {text}"),
        )
        singles = runner.compare(
            [name for name in (LIMIT, TRIO, ASYNCIO, AMQPLIB) if name in clients],
            rounds=2 if quick else 5,
            count=300 if quick else 1_000,
            until=began + (125 if quick else 720),
            progress=lambda text: progress(f"one at a time: {text}"),
            in_flight=1,
        )
        for measure in ALONE:
            found = runner.measure(measure)
            if found is not None:
                alone[measure] = found
                progress(f"{measure}: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}")
        sweep = runner.sweep(_sweeps(quick=quick), until=began + (190 if quick else 1080), progress=progress)
    return as_json(about, clients, bare, guarantees, singles, sweep, alone)


def main(arguments: list[str] | None = None) -> None:
    """Run; never fails because of a figure, a missing peer or a missing broker."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about four minutes in place of about twenty")
    parser.add_argument("--only", metavar="CLIENTS", help="the comparison alone, of these clients, joined by ';'")
    parser.add_argument("--rounds", type=int, help="how often each client runs, at most")
    parser.add_argument("--count", type=int, help="confirmed messages of the fast clients in a round")
    parser.add_argument("--pin", action="store_true", help="bind the broker and the clients to different CPUs")
    parser.add_argument("--document", action="store_true", help="put the figures into docs/performance.md as well")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="folder for JSON and plots")
    options = parser.parse_args(arguments)

    chosen = options.only.split(";") if options.only else list(LINEUP)
    if unknown := [name for name in chosen if name not in LINEUP | GUARANTEES]:
        parser.error(f"--only: there is no client {unknown[0]!r}; there are: {'; '.join(LINEUP | GUARANTEES)}")
    complaint = install_node_peers()
    if complaint:
        print(complaint)
    names: list[str] = []
    for name in chosen:
        reason = missing(name)
        if reason is None:
            names.append(name)
        else:
            print(f"skipped {name}: {reason}")

    try:
        with private_broker(pinned=options.pin) as broker:
            runner = Runner(broker.url, QUEUE, client_cpu=max(os.sched_getaffinity(0)) if options.pin else None)
            results = _measure(runner, names, options, machine(broker))
    except RabbitMQMissing as error:
        print(error)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "results.json"
    written.write_text(json.dumps(results, indent=1) + "\n")
    parts = (describe(results), *comparisons(results), one_at_a_time(results), targets(results))
    print("\n" + "\n\n".join(parts))
    try:
        from benchmarks.plots import draw
    except ImportError:
        print("\nno plots: matplotlib is not installed")
    else:
        draw(results, options.out)
    print(f"\nwritten: {written} and the plots beside it")
    if options.document:
        document(options.out)


if __name__ == "__main__":
    sys.exit(main())
