"""``python -m benchmarks.isolation``: what bad destinations do to the good messages of the same connection.

Each client publishes 50 good messages a second to a private RabbitMQ: for some seconds alone, then beside bad ones of one
kind, 2, 20 and 200 a second (bodies over the broker's limit: one a minute). The table has the latencies of the good
messages and the number that failed. The limit for the 99th percentile is twice that of the seconds alone, plus 10 ms; all
seconds alone of one client and one run are taken together.

Each run adds its clients to `isolation.json` beside the other figures, so that drivers and peers can be measured one after
the other; ``--document`` puts all that is there into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from benchmarks.__main__ import machine
from benchmarks.isolation_clients import BAD, CLIENTS, GOOD_QUEUE, MAX_SIZE, PATIENCE, Load
from benchmarks.report import DOCUMENT, PICTURES
from benchmarks.runner import AMQPLIB, HERE, NODE_PEERS, ROOT, install_node_peers, missing
from warrener.testing import PrivateRabbitMQ

__all__ = ["main"]

RATES = (2.0, 20.0, 200.0)
#: The rates of kinds that are not measured at all of these.
RARE = {"body over the limit": (1 / 60,)}
BEGIN, END = "<!-- isolation: begin -->", "<!-- isolation: end -->"
USER, PASSWORD = "isolation", "isolation"
OUT = ROOT / "build" / "benchmarks" / "isolation.json"


@frozen
class Length:
    """How long a measurement of one client is: seconds with bad messages, and before that without."""

    seconds: float
    alone: float
    #: Seconds of a measurement with one bad message a minute.
    rare: float


#: The whole matrix takes about 11 minutes for warrener, 5 for warrener on aiormq, and 4 for each other client.
FULL = {"warrener": Length(20, 7, 60), "warrener on aiormq": Length(8, 3, 60)}
PEER = Length(5, 2, 20)
QUICK = Length(2, 1, 2)


@contextmanager
def _broker(root: Path | None) -> Iterator[PrivateRabbitMQ]:
    """Run a broker with the queues, the exchange and the user of the benchmark."""
    import pika

    with PrivateRabbitMQ(extra_config=f"max_message_size = {MAX_SIZE}", root=root) as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        for queue in (GOOD_QUEUE, "isolation.mute"):
            channel.queue_declare(queue, durable=True, arguments={"x-max-length": 10_000})
        limits = {"x-max-length": 0, "x-overflow": "reject-publish"}
        channel.queue_declare("isolation.full", durable=True, arguments=limits)
        channel.exchange_declare("isolation.forbidden", durable=True)
        connection.close()
        broker.add_user(USER, PASSWORD)
        broker.set_permissions(USER, configure=".*", write="^(?!isolation.forbidden$)", read=".*")
        yield broker


@contextmanager
def _mute_queue(broker: PrivateRabbitMQ) -> Iterator[None]:
    """Have a queue that never confirms: its process stands still.

    The broker's flow control would stop the whole connection after some hundreds of messages to it, whatever the client
    does; so the credit that the queue owes to the channels is given in its place.
    """
    broker.eval(
        """{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"isolation.mute">>)),"""
        """ Pid = amqqueue:get_pid(Q), register(isolation_mute, Pid), sys:suspend(Pid),"""
        """ register(isolation_bump, spawn(fun F() -> [Channel ! {bump_credit, {Pid, 400}} ||"""
        """ Channel <- rabbit_channel:list_local()], timer:sleep(50), F() end))"""
    )
    try:
        yield
    finally:
        broker.eval(
            "exit(whereis(isolation_bump), kill), sys:resume(whereis(isolation_mute), 60000), unregister(isolation_mute)"
        )


def _run(name: str, load: Load) -> dict[str, Any]:
    """Run one client in a process of its own."""
    about = asdict(load)
    command = [sys.executable, "-m", "benchmarks.isolation_clients", name, json.dumps(about)]
    environment = None
    if name == AMQPLIB:
        bad = asdict(BAD[load.kind])
        more = {**about, "bad": bad, "good_queue": GOOD_QUEUE, "schedule": list(load.schedule()), "patience": PATIENCE}
        command = ["node", str(HERE / "isolation.js"), json.dumps(more)]
        environment = {**os.environ, "NODE_PATH": str(NODE_PEERS / "node_modules")}
    limit = load.alone + load.seconds + PATIENCE + 30
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it did not end within {limit:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": done.stderr[-500:] or f"exit status {done.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def share(latencies: list[float], part: float) -> float:
    """Return the latency that this part of the messages did not exceed, in milliseconds."""
    ordered = sorted(latencies)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3 if ordered else math.nan


def line_of(name: str, kind: str, rate: float, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the table from what a client reported."""
    line: dict[str, Any] = {"client": name, "kind": kind, "rate": rate}
    if "error" in found:
        return {**line, "error": found["error"]}
    return {
        **line,
        **{f"p{part}": share(found["beside"], part / 100) for part in (50, 99, 99.9)},
        "alone": found["alone"],
        "confirmed": len(found["alone"]) + len(found["beside"]),
        "failed": found["failed"],
        "reopened": found["reopened"],
        "bad": found["bad"],
    }


def measure(
    names: Iterable[str], kinds: Iterable[str], about: dict[str, Any], *, root: Path | None, quick: bool
) -> Iterator[dict[str, Any]]:
    """Measure each client, kind and rate, and yield one line of the table after the other; note in `about` on what."""
    began = time.monotonic()
    with _broker(root) as broker:
        about.update(machine(broker))
        url = broker.url.replace("guest:guest", f"{USER}:{PASSWORD}")
        for name in names:
            length = QUICK if quick else FULL.get(name, PEER)
            for kind in kinds:
                for rate in RARE.get(kind, RATES):
                    load = Load(url, kind, rate, length.rare if kind in RARE else length.seconds, length.alone)
                    if kind == "queue that never confirms":
                        with _mute_queue(broker):
                            found = _run(name, load)
                    else:
                        found = _run(name, load)
                    line = line_of(name, kind, rate, found)
                    shown = {key: value for key, value in line.items() if key != "alone"}
                    print(f"{time.monotonic() - began:4.0f} s  {shown}", flush=True)
                    yield line


# --- the table and the plot ---------------------------------------------------------------------------------------------


def limits(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each client the 99th percentile of its seconds alone, in milliseconds."""
    alone: dict[str, list[float]] = {}
    for line in lines:
        alone.setdefault(line["client"], []).extend(line.get("alone", ()))
    return {name: share(latencies, 0.99) for name, latencies in alone.items()}


def beyond(line: Mapping[str, Any], alone: float) -> list[str]:
    """Return what is not as it is promised: no good message failed, no link lost, p99 at most 2 x that alone + 10 ms."""
    if "error" in line:
        return ["did not finish"]
    found: list[str] = []
    if line["failed"]:
        found.append(f"{line['failed']} good ones failed")
    if line["reopened"]:
        found.append(f"{line['reopened']} links lost")
    if not line["p99"] <= 2 * alone + 10:
        found.append(f"p99 {line['p99']:.1f} ms, {alone:.1f} ms alone")
    return found


def _how_often(rate: float) -> str:
    return f"{rate:g} a second" if rate >= 1 else f"{rate * 60:g} a minute"


def table(lines: list[Mapping[str, Any]]) -> str:
    """Return the measurements as a table."""
    rows = [
        "| bad messages | client | p50 | p99 | p99.9 | p99 alone | good ones failed | reopened |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    alone = limits(lines)
    order = list(BAD)
    for line in sorted(lines, key=lambda line: (order.index(line["kind"]), line["rate"])):
        start = f"| {_how_often(line['rate'])}: {line['kind']} | {line['client']} |"
        if "error" in line:
            rows.append(f"{start} | | | | did not finish | |")
            continue
        # Where no good message was confirmed there is no latency.
        values = [*(line[f"p{part}"] for part in (50, 99, 99.9)), alone[line["client"]]]
        shares = " | ".join("none" if math.isnan(value) else f"{value:.1f} ms" for value in values)
        failed = f"{line['failed']} of {line['failed'] + line['confirmed']}"
        rows.append(f"{start} {shares} | {failed} | {line['reopened']} |")
    return "\n".join(rows)


def plot(lines: list[Mapping[str, Any]], path: Path) -> None:
    """Draw the 99th percentile of good messages over the rate of bad ones, one panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in BAD if kind not in RARE]
    columns = math.ceil(len(kinds) / 2)
    drawing, panels = plt.subplots(2, columns, figsize=(3.2 * columns, 6.4), sharey=True, squeeze=False)
    alone = limits(lines)
    for axes, kind in zip(panels.flat, kinds, strict=False):
        for name in dict.fromkeys(line["client"] for line in lines):
            found = {
                line["rate"]: line.get("p99", math.nan)
                for line in lines
                if (line["client"], line["kind"]) == (name, kind)
            }
            values = [alone[name], *(found.get(rate, math.nan) for rate in RATES)]
            axes.plot(range(len(values)), values, marker="o", label=name, linewidth=2.4 if name in FULL else 1.2)
        axes.set_xticks(range(len(RATES) + 1), ["0", *(f"{rate:g}" for rate in RATES)])
        axes.set_yscale("log")
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("bad messages a second")
    for axes in list(panels.flat)[len(kinds) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("p99 of good messages, ms")
    panels[0][0].legend(fontsize=7)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def document(text: str, about: Mapping[str, Any]) -> None:
    """Put the table between its marks in docs/performance.md."""
    where = f"RabbitMQ {about['rabbitmq']} and the clients on one machine: {about['cores']} x {about['processor']}"
    text = f"{where}, Python {about['python']}, {about['when']}.\n\n{text}"
    page = DOCUMENT.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(
        f"{before}{BEGIN}\n\n{text}\n\n![p99 of good messages](performance/isolation.png)\n\n{END}{after}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and document; return 1 if a good message of warrener was hurt."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument("--only", metavar="CLIENTS", help="these clients, joined by ';'")
    parser.add_argument("--kinds", metavar="KINDS", help="these kinds of bad messages, joined by ';'")
    parser.add_argument(
        "--quick", action="store_true", help="3 s for each measurement: to find faults, not for figures"
    )
    parser.add_argument(
        "--rabbitmq", type=Path, metavar="FOLDER", help="a folder with another RabbitMQ; see `make rabbitmq4`"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the figures of all clients are kept")
    parser.add_argument("--document", action="store_true", help="put table and plot into docs/performance.md")
    options = parser.parse_args(arguments)
    names = options.only.split(";") if options.only else [*CLIENTS, AMQPLIB]
    if AMQPLIB in names:
        complaint = install_node_peers()
        if complaint or missing(AMQPLIB):
            print(complaint or missing(AMQPLIB))
            names.remove(AMQPLIB)
    kinds = options.kinds.split(";") if options.kinds else list(BAD)
    about: dict[str, Any] = {}
    mine = list(measure(names, kinds, about, root=options.rabbitmq, quick=options.quick))
    known = json.loads(options.out.read_text())["lines"] if options.out.exists() else []
    measured = {(line["client"], line["kind"]) for line in mine}
    lines = [line for line in known if (line["client"], line["kind"]) not in measured] + mine
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "lines": lines}) + "\n")
    print(table(lines))
    alone = limits(mine)
    hurt = [(line, found) for line in mine if line["client"] in FULL and (found := beyond(line, alone[line["client"]]))]
    for line, found in hurt:
        print(f"beyond the limit: {line['client']}, {_how_often(line['rate'])}, {line['kind']}: {'; '.join(found)}")
    if options.document:
        plot(lines, PICTURES / "isolation.png")
        document(table(lines), about)
    return bool(hurt)


if __name__ == "__main__":
    sys.exit(main())
