"""What was measured, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.runner import Figures, Series


def _rate(figures: Figures) -> float:
    return figures.rate


def _cpu(figures: Figures) -> float:
    return figures.cpu


def table(results: Mapping[str, Series], *, limit: str, reference: str) -> str:
    """Return the comparison as a Markdown table; ratios are taken round by round."""
    lines = [
        f"| client | msg/s | of the limit | × {reference} | CPU per message | × {reference} | p50 | p99 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, series in results.items():

        def ratio(other: str, figure: Any, series: Series = series) -> str:
            return f"{series.ratio(results[other], figure):.2f}" if other in results else ""

        latencies = (
            [f"{series.median(lambda each, share=share: each.latency(share)):.3g} ms" for share in (0.5, 0.99)]
            if series.rounds and series.rounds[0].latencies
            else ["", ""]
        )
        cells = [
            name,
            f"{series.median(_rate):,.0f}",
            ratio(limit, _rate),
            ratio(reference, _rate),
            f"{series.median(_cpu):.1f} µs",
            ratio(reference, _cpu),
            *latencies,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(results: Mapping[str, Series]) -> dict[str, Any]:
    """Return the rounds of each client, without the single latencies."""
    return {
        name: [
            {
                "confirmed": each.confirmed,
                "seconds": each.seconds,
                "rate": each.rate,
                "cpu_microseconds": each.cpu,
                "resident_kib": each.resident_kib,
                "latency_ms": {str(share): each.latency(share) for share in (0.5, 0.9, 0.99, 0.999)}
                if each.latencies
                else {},
            }
            for each in series.rounds
        ]
        for name, series in results.items()
    }
