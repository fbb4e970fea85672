"""``python -m benchmarks.isolation``: what bad destinations do to the good messages of the same connection.

Each client publishes 50 good messages a second beside none, 2, 20 and 200 bad ones a second, one kind of badness at a
time, to a private RabbitMQ. The table has the latencies of the good messages and the number that failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.isolation_clients import BAD, CLIENTS, GOOD_QUEUE, Load
from benchmarks.report import DOCUMENT, PICTURES
from benchmarks.runner import AMQPLIB, HERE, NODE_PEERS, ROOT, install_node_peers, missing
from warrener.testing import PrivateRabbitMQ

__all__ = ["main"]

RATES = (0, 2, 20, 200)
BEGIN, END = "<!-- isolation: begin -->", "<!-- isolation: end -->"
USER, PASSWORD = "isolation", "isolation"


def _prepared(broker: PrivateRabbitMQ) -> str:
    """Make the queues and the user; return the user's URL."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare(GOOD_QUEUE, durable=True, arguments={"x-max-length": 10_000})
    channel.queue_declare("isolation.full", durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    channel.exchange_declare("isolation.forbidden", durable=True)
    connection.close()
    broker.add_user(USER, PASSWORD)
    broker.set_permissions(USER, configure=".*", write="^(?!isolation.forbidden$)", read=".*")
    return broker.url.replace("guest:guest", f"{USER}:{PASSWORD}")


def _run(name: str, load: Load) -> dict[str, Any]:
    """Run one client in a process of its own."""
    about = {"url": load.url, "kind": load.kind, "rate": load.rate, "seconds": load.seconds}
    command = [sys.executable, "-m", "benchmarks.isolation_clients", name, json.dumps(about)]
    environment = None
    if name == AMQPLIB:
        exchange, key, user_id = BAD[load.kind]
        bad = {"exchange": exchange, "key": key, "user_id": user_id}
        more = {**about, "bad": bad, "good_queue": GOOD_QUEUE, "schedule": list(load.schedule())}
        command = ["node", str(HERE / "isolation.js"), json.dumps(more)]
        environment = {**os.environ, "NODE_PATH": str(NODE_PEERS / "node_modules")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=load.seconds + 90
    )
    if done.returncode:
        return {"latencies": [], "failed": -1, "reopened": 0, "error": done.stderr[-500:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _share(latencies: list[float], share: float) -> float:
    """Return the latency that this share of the messages did not exceed, in milliseconds."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else float("nan")


def measure(seconds: float, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Measure each client, kind and rate, and yield one line of the table after the other."""
    with PrivateRabbitMQ() as broker:
        url = _prepared(broker)
        for kind in BAD:
            for rate in RATES:
                for name in names:
                    if rate == 0 and kind != next(iter(BAD)):
                        continue
                    found = _run(name, Load(url, kind, rate, seconds))
                    line = {
                        "client": name,
                        "kind": kind if rate else "none",
                        "rate": rate,
                        **{f"p{share}": _share(found["latencies"], share / 100) for share in (50, 99, 99.9)},
                        "confirmed": len(found["latencies"]),
                        "failed": found["failed"],
                        "reopened": found["reopened"],
                    }
                    print(line, found.get("error", ""), flush=True)
                    yield line


def table(lines: list[Mapping[str, Any]]) -> str:
    """Return the measurements as a table."""
    rows = ["| beside | client | p50 | p99 | p99.9 | good ones failed | reopened |", "|---|---|--:|--:|--:|--:|--:|"]
    for line in lines:
        beside = "none" if not line["rate"] else f"{line['rate']}/s, {line['kind']}"
        # Where no good message was confirmed there is no latency.
        values = [line[f"p{share}"] for share in (50, 99, 99.9)]
        shares = " | ".join("none" if math.isnan(value) else f"{value:.1f} ms" for value in values)
        failed = "did not finish" if line["failed"] < 0 else f"{line['failed']} of {line['failed'] + line['confirmed']}"
        rows.append(f"| {beside} | {line['client']} | {shares} | {failed} | {line['reopened']} |")
    return "\n".join(rows)


def plot(lines: list[Mapping[str, Any]], path: Path) -> None:
    """Draw the 99th percentile of good messages over the rate of bad ones, one panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, panels = plt.subplots(1, len(BAD), figsize=(3.4 * len(BAD), 3.6), sharey=True)
    for axes, kind in zip(panels, BAD, strict=True):
        for name in dict.fromkeys(line["client"] for line in lines):
            mine = [line for line in lines if line["client"] == name and line["kind"] in ("none", kind)]
            values = [statistics.median(line["p99"] for line in mine if line["rate"] == rate) for rate in RATES]
            ours = name.startswith("warrener")
            axes.plot(range(len(RATES)), values, marker="o", label=name, linewidth=2.4 if ours else 1.2)
        axes.set_xticks(range(len(RATES)), [str(rate) for rate in RATES])
        axes.set_yscale("log")
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("bad messages a second")
    panels[0].set_ylabel("p99 of good messages, ms")
    panels[0].legend(fontsize=7)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)


def document(text: str) -> None:
    """Put the table between its marks in docs/performance.md."""
    page = DOCUMENT.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(
        f"{before}{BEGIN}\n\n{text}\n\n![p99 of good messages](performance/isolation.png)\n\n{END}{after}"
    )


def main() -> None:
    """Measure, print and document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each measurement (20)")
    parser.add_argument("--only", metavar="CLIENTS", help="these clients, joined by ';'")
    parser.add_argument("--document", action="store_true", help="put table and plot into docs/performance.md")
    options = parser.parse_args()
    complaint = install_node_peers()
    if complaint:
        print(complaint)
    names = options.only.split(";") if options.only else [*CLIENTS, *([] if missing(AMQPLIB) else [AMQPLIB])]
    lines = list(measure(options.seconds, names))
    print(table(lines))
    if options.document:
        plot(lines, PICTURES / "isolation.png")
        document(table(lines))


if __name__ == "__main__":
    main()
