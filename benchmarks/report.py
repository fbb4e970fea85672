"""What was measured, as tables, as JSON and in docs/performance.md.

``python -m benchmarks.report [FOLDER]`` puts the tables and plots of the last run (build/benchmarks) into the document,
between its two marks; the words around them stay as they are.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runner import AMQPLIB, LIMIT, ROOT, Figures, Series, Sweep

DOCUMENT = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "performance"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

TRIO, ASYNCIO, MANY = "warrener, Trio", "warrener, asyncio", "warrener publish_many, Trio"


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _figures(each: Figures) -> dict[str, Any]:
    return {
        "confirmed": each.confirmed,
        "seconds": each.seconds,
        "rate": each.rate,
        "cpu_microseconds": each.cpu,
        "resident_kib": each.resident_kib,
        "latency_ms": {str(share): each.latency(share) for share in (0.5, 0.9, 0.99, 0.999)} if each.latencies else {},
    }


def _rounds(clients: Mapping[str, Series]) -> dict[str, list[dict[str, Any]]]:
    return {name: [_figures(each) for each in series.rounds] for name, series in clients.items()}


def _point(value: int, series: Series) -> dict[str, Any]:
    rounds = [_figures(each) for each in series.rounds]
    medians = {figure: _median(rounds, figure) for figure in ("rate", "cpu_microseconds", "resident_kib")}
    return {"at": value, "rounds": len(rounds), **medians}


def as_json(
    machine: Mapping[str, Any],
    clients: Mapping[str, Series],
    bare: Mapping[str, Series],
    guarantees: Mapping[str, Series],
    one_at_a_time: Mapping[str, Series],
    sweep: Sweep,
    alone: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that was measured, without the single latencies."""
    return {
        "machine": machine,
        "clients": _rounds(clients),
        "bare": _rounds(bare),
        "guarantees": _rounds(guarantees),
        "one at a time": _rounds(one_at_a_time),
        "sweep": {
            axis: {name: [_point(*point) for point in sorted(points.items())] for name, points in by_client.items()}
            for axis, by_client in sweep.items()
        },
        "alone": alone,
    }


# --- tables: all of them from the JSON, so that they can be made anew without measuring -----------------------------------


def _median(rounds: Sequence[Mapping[str, Any]], figure: str) -> float:
    return statistics.median(each[figure] for each in rounds)


def _ratio(results: Mapping[str, Any], name: str, other: str, figure: str, part: str = "clients") -> float | None:
    """The median of the ratios round by round; None where one of the two was not measured."""
    mine, theirs = results[part].get(name), results[part].get(other)
    if not mine or not theirs:
        return None
    return statistics.median(one[figure] / two[figure] for one, two in zip(mine, theirs, strict=True))


def _shown(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def comparison(results: Mapping[str, Any], part: str) -> str:
    """Return one comparison of clients: "clients" (equal work), "bare" or "guarantees"."""
    header = (
        "client",
        "msg/s",
        "of the limit",
        f"× {AMQPLIB}",
        "CPU per message",
        f"× {AMQPLIB}",
        "p50",
        "p99",
        "memory",
    )
    rows: list[list[str]] = []
    for name, rounds in results[part].items():
        latencies = [
            f"{statistics.median(each['latency_ms'][share] for each in rounds):.3g} ms"
            if rounds[0]["latency_ms"]
            else ""
            for share in ("0.5", "0.99")
        ]
        rows.append([
            name,
            f"{_median(rounds, 'rate'):,.0f}",
            _shown(_ratio(results, name, LIMIT, "rate", part)),
            _shown(_ratio(results, name, AMQPLIB, "rate", part)),
            f"{_median(rounds, 'cpu_microseconds'):.1f} µs",
            _shown(_ratio(results, name, AMQPLIB, "cpu_microseconds", part)),
            *latencies,
            f"{_median(rounds, 'resident_kib') / 1024:.0f} MiB",
        ])  # fmt: skip
    return _rows(header, rows)


def comparisons(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tables of all clients, each under its title."""
    titles = {
        "clients": "Equal work: persistent, mandatory, a message_id of 32 characters, a handler for returned messages",
        "bare": "Bare: persistent and confirmed (warrener still sends its message_id)",
        "guarantees": "What one guarantee costs: each raw line adds one thing, each line of warrener changes one thing",
    }
    return tuple(f"**{title}**\n\n{comparison(results, part)}" for part, title in titles.items() if results.get(part))


def _at(results: Mapping[str, Any], axis: str, name: str, value: int, figure: str) -> float | None:
    points = results["sweep"].get(axis, {}).get(name, [])
    found = [point for point in points if point["at"] == value and point.get(figure)]
    return found[0][figure] if found else None


def _quotient(one: float | None, two: float | None) -> float | None:
    return None if one is None or not two else one / two


def _latency(results: Mapping[str, Any], name: str) -> float | None:
    rounds = results["one at a time"].get(name)
    return statistics.median(each["latency_ms"]["0.5"] for each in rounds) if rounds else None


def _alone(results: Mapping[str, Any], name: str, figure: str) -> float | None:
    return (results["alone"].get(name) or {}).get(figure)


#: What was aimed at: its words, the bound, whether it is a least, and how to find the figure.
Target = tuple[str, float, bool, Callable[[Mapping[str, Any]], "float | None"]]
_CPU, _RATE = "cpu_microseconds", "rate"
TARGETS: tuple[Target, ...] = (
    (f"publish on Trio: CPU × {AMQPLIB}", 0.65, False, lambda r: _ratio(r, TRIO, AMQPLIB, _CPU)),
    (f"publish on asyncio: CPU × {AMQPLIB}", 0.55, False, lambda r: _ratio(r, ASYNCIO, AMQPLIB, _CPU)),
    (f"publish on Trio: throughput × {AMQPLIB}", 1.0, True, lambda r: _ratio(r, TRIO, AMQPLIB, _RATE)),
    (f"publish on Trio: throughput × {LIMIT}", 0.90, True, lambda r: _ratio(r, TRIO, LIMIT, _RATE)),
    (f"publish_many: CPU × {AMQPLIB}", 0.12, False, lambda r: _ratio(r, MANY, AMQPLIB, _CPU)),
    (f"publish_many: throughput × {LIMIT}", 0.95, True, lambda r: _ratio(r, MANY, LIMIT, _RATE)),
    (
        "one at a time: median latency × raw socket, Trio", 1.25, False,
        lambda r: _quotient(_latency(r, TRIO), _latency(r, LIMIT)),
    ),
    (
        "aiormq driver on Trio: throughput × aiormq", 0.65, True,
        lambda r: _ratio(r, "warrener on aiormq, Trio", "aiormq", _RATE),
    ),
    (
        "aiormq driver on asyncio: throughput × aiormq", 0.9, True,
        lambda r: _ratio(r, "warrener on aiormq, asyncio", "aiormq", _RATE),
    ),
    (
        "CPU at 10,000 in flight × at 500", 1.25, False,
        lambda r: _quotient(_at(r, "in flight", TRIO, 10_000, _CPU), _at(r, "in flight", TRIO, 500, _CPU)),
    ),
    (
        "CPU over the longest run × over the shortest", 1.25, False,
        lambda r: _quotient(_end(r, -1, _CPU), _end(r, 0, _CPU)),
    ),
    (
        "memory: the longest run × the shortest", 1.25, False,
        lambda r: _quotient(_end(r, -1, "resident_kib"), _end(r, 0, "resident_kib")),
    ),
    ("memory per message in flight, bytes", 1024, False, lambda r: _alone(r, "memory", "bytes per message in flight")),
    ("transition(), worst event, µs", 5, False, lambda r: _alone(r, "transitions", "worst")),
    (
        "idle wake-ups per heartbeat sent or received", 2, False,
        lambda r: _quotient(_alone(r, "idleness", "wake-ups"), 4 * (_alone(r, "idleness", "seconds") or 0)),
    ),
    (
        "reconnect beyond the backoff × raw handshake", 3, False,
        lambda r: _quotient(_alone(r, "reconnecting", "median"), _alone(r, "reconnecting", "raw handshake")),
    ),
)  # fmt: skip


def one_at_a_time(results: Mapping[str, Any]) -> str:
    """Return the latencies of clients that have one message in flight."""
    limit = _latency(results, LIMIT)
    rows: list[list[str]] = []
    for name, rounds in results["one at a time"].items():
        latencies = [
            f"{statistics.median(each['latency_ms'][share] for each in rounds):.3g} ms"
            for share in ("0.5", "0.9", "0.99")
        ]
        rows.append([name, *latencies, _shown(_quotient(_latency(results, name), limit))])
    return _rows(("one at a time", "p50", "p90", "p99", f"p50 × {LIMIT}"), rows)


def _end(results: Mapping[str, Any], index: int, figure: str) -> float | None:
    points = results["sweep"].get("total sent", {}).get(TRIO, [])
    return points[index][figure] if len(points) > 1 else None


def targets(results: Mapping[str, Any]) -> str:
    """Return what was aimed at and what was measured."""
    rows: list[list[str]] = []
    for words, bound, least, find in TARGETS:
        figure = find(results)
        if figure is None:
            continue
        met = figure >= bound if least else figure <= bound
        shown = f"{figure:,.2f}" if figure < 100 else f"{figure:,.0f}"
        rows.append([words, f"{'≥' if least else '≤'} {bound:,.3g}", shown, "yes" if met else "**no**"])
    return _rows(("target", "bound", "measured", "met"), rows)


def machine(results: Mapping[str, Any]) -> str:
    """Return one sentence about the machine."""
    about = results["machine"]
    return (
        f"{about['when']}: {about['cores']} cores of {about['processor']}, {about['system']}, Python {about['python']},"
        f" Node {about['node']}, RabbitMQ {about['rabbitmq']}; load average {about['load_average']:.1f} when it began;"
        f" {max(map(len, results['clients'].values()), default=0)} rounds."
    )


def document(folder: Path) -> None:
    """Put the figures of a run into docs/performance.md."""
    results = json.loads((folder / "results.json").read_text())
    PICTURES.mkdir(exist_ok=True)
    pictures: list[str] = []
    for picture in sorted(folder.glob("*.png")):
        shutil.copy(picture, PICTURES / picture.name)
        pictures.append(f"![{picture.stem.replace('-', ' ')}](performance/{picture.name})")
    figures = "\n\n".join(
        (machine(results), *comparisons(results), one_at_a_time(results), targets(results), *pictures)
    )
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}")


if __name__ == "__main__":
    document(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "benchmarks")
