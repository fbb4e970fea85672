"""The plots of a run, as PNG, from its JSON. matplotlib is imported here alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import TRIO
from benchmarks.runner import AMQPLIB, LIMIT, ONE_AT_A_TIME

#: Ours stand out; everybody else is grey or a shade of it.
_OURS = "#1f6feb"
_OTHERS = "#8b949e"
_COLOURS = {TRIO: _OURS, LIMIT: _OTHERS, AMQPLIB: "#d29922"}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _bars(results: Mapping[str, Any], figure: str, title: str, unit: str, path: Path, *, log: bool) -> None:
    medians = {name: _median([each[figure] for each in rounds]) for name, rounds in results["clients"].items()}
    names = sorted(medians, key=medians.__getitem__, reverse=figure != "rate")
    drawing, axes = plt.subplots(figsize=(8, 0.36 * len(names) + 1.1))
    bars = axes.barh(
        names,
        [medians[name] for name in names],
        color=[_OURS if name.startswith("warrener") else _OTHERS for name in names],
    )
    axes.bar_label(bars, [f"{medians[name]:,.0f}" if figure == "rate" else f"{medians[name]:.1f}" for name in names],
                   padding=3, fontsize=8)  # fmt: skip
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_title(title)
    axes.set_xlabel(unit)
    _finish(drawing, axes, path)


def _latencies(results: Mapping[str, Any], path: Path) -> None:
    shares = ("0.5", "0.9", "0.99", "0.999")
    drawing, axes = plt.subplots(figsize=(8, 4.2))
    shown = [
        name for name, rounds in results["clients"].items() if rounds[0]["latency_ms"] and name not in ONE_AT_A_TIME
    ]
    for name in shown:
        rounds = results["clients"][name]
        values = [_median([each["latency_ms"][share] for each in rounds]) for share in shares]
        ours = name.startswith("warrener")
        axes.plot(range(len(shares)), values, marker="o", label=name, linewidth=2.4 if ours else 1.2,
                  linestyle="-" if ours else "--")  # fmt: skip
    axes.set_xticks(range(len(shares)), ["p50", "p90", "p99", "p99.9"])
    axes.set_yscale("log")
    axes.set_ylabel("ms from the call to the confirm")
    axes.set_title("Latency with 500 messages in flight")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _finish(drawing, axes, path)


def _sweep(results: Mapping[str, Any], axis: str, figure: str, title: str, labels: tuple[str, str], path: Path) -> None:
    by_client = results["sweep"].get(axis)
    if not by_client:
        return
    drawing, axes = plt.subplots(figsize=(6, 3.6))
    for name, points in by_client.items():
        scale = 1 / 1024 if figure == "resident_kib" else 1.0
        # A size of 0 has no place on a logarithmic axis; it is drawn at its left end.
        values = [(max(point["at"], 16 if axis == "size" else 1), point[figure] * scale) for point in points]
        axes.plot(*zip(*values, strict=True), marker="o", label=name, color=_COLOURS.get(name))
    axes.set_xscale("log")
    if figure != "resident_kib":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(fontsize=8)
    _finish(drawing, axes, path)


def _finish(drawing: Any, axes: Axes, path: Path) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(drawing)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draw every plot that the results have figures for."""
    if results["clients"]:
        _bars(results, "rate", "Throughput: confirmed messages per second", "messages per second",
              folder / "1-throughput.png", log=False)  # fmt: skip
        _bars(results, "cpu_microseconds", "CPU of the client per confirmed message", "µs, logarithmic",
              folder / "2-cpu.png", log=True)  # fmt: skip
        _latencies(results, folder / "3-latency.png")
    cpu = "µs of CPU per message"
    for axis, number, title, label in (
        ("in flight", 4, "Cost against messages in flight", "messages in flight"),
        ("size", 5, "Cost against the size of the body", "bytes (leftmost: 0)"),
        ("total sent", 6, "Cost against messages sent", "messages sent over one link"),
    ):
        path = folder / f"{number}-{axis.replace(' ', '-')}.png"
        _sweep(results, axis, "cpu_microseconds", title, (label, cpu), path)
    _sweep(results, "total sent", "resident_kib", "Memory against messages sent",
           ("messages sent over one link", "MiB resident, at most"), folder / "7-memory.png")  # fmt: skip
