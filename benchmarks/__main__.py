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
from benchmarks.report import as_json, table
from benchmarks.runner import AMQPLIB, LIMIT, LINEUP, Runner, install_node_peers, missing
from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQMissing
from warrener.topology import Queue

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
            session.declare(Queue(QUEUE, arguments={"x-max-length": 10_000}))
            answers: list[object] = []
            while not answers:
                while data := session.data_to_send():
                    peer.sendall(data)
                answers = list(session.receive(peer.recv(65536)))
        yield broker


def main(arguments: list[str] | None = None) -> None:
    """Run; never fails because of a figure, a missing peer or a missing broker."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about three minutes in place of about twenty")
    parser.add_argument("--only", metavar="CLIENTS", help="the comparison alone, of these clients, joined by ';'")
    parser.add_argument("--rounds", type=int, help="how often each client runs")
    parser.add_argument("--count", type=int, help="confirmed messages of the fast clients in a round")
    parser.add_argument("--pin", action="store_true", help="bind the broker and the clients to different CPUs")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for JSON and plots")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (2 if options.quick else 5)
    count = options.count or (10_000 if options.quick else 40_000)

    complaint = install_node_peers()
    if complaint:
        print(complaint)
    names: list[str] = []
    for name in options.only.split(";") if options.only else LINEUP:
        reason = missing(name)
        if reason is None:
            names.append(name)
        else:
            print(f"skipped {name}: {reason}")

    try:
        with private_broker(pinned=options.pin) as broker:
            runner = Runner(broker.url, QUEUE, client_cpu=max(os.sched_getaffinity(0)) if options.pin else None)
            about = machine(broker)
            results = runner.compare(names, rounds=rounds, count=count, progress=lambda text: print(text, flush=True))
    except RabbitMQMissing as error:
        print(error)
        return
    print()
    print(table(results, limit=LIMIT, reference=AMQPLIB))
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / "results.json"
    written.write_text(json.dumps({"machine": about, "clients": as_json(results)}, indent=1) + "\n")
    print(f"\nwritten: {written}")


if __name__ == "__main__":
    sys.exit(main())
