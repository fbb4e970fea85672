"""``python -m benchmarks.flat``: whether a message costs the same however many and however large they are; a table.

Each row has a small load and a large one, run in alternation on a private RabbitMQ. The ratio is the median of the ratios
round by round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from benchmarks.__main__ import QUEUE, private_broker
from benchmarks.report import ASYNCIO, TRIO
from benchmarks.runner import LIMIT, Figures, Runner, Series

KIB = 1024


@frozen
class Row:
    """Two loads of one client."""

    client: str
    about: str
    small: Mapping[str, Any]
    large: Mapping[str, Any]


def rows(*, sent: int) -> Iterator[Row]:
    """What is compared; `sent` messages are the long run."""
    for client in (TRIO, ASYNCIO):
        small: dict[str, Any] = {"count": 20_000, "warm_up": 5_000}
        many = {"count": 30_000, "warm_up": 10_000, "in_flight": 10_000}
        yield Row(client, "10,000 in flight × 500", small, many)
        yield Row(client, f"{sent:,} sent × 20,000", small, {"count": sent, "warm_up": 5_000, "timeout": 600})


def sizes() -> Iterator[tuple[int, dict[str, Any]]]:
    """Body sizes, each with a load of at most 200 MB."""
    for size in (256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, KIB * KIB):
        count = max(150, min(10_000, 200_000_000 // size))
        yield (
            size,
            {"size": size, "count": count, "warm_up": count // 4, "in_flight": max(8, min(500, 32_000_000 // size))},
        )


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    for line in (header, ("---", *("--:" for _ in header[1:])), *lines):
        print(f"| {' | '.join(line)} |")
    print(flush=True)


def _shown(series: Series, figure: Callable[[Figures], float]) -> str:
    return f"{series.median(figure):,.1f}" if series.rounds else ""


def _cpu(figures: Figures) -> float:
    return figures.cpu


def _memory(figures: Figures) -> float:
    return float(figures.resident_kib)


def counts(runner: Runner, *, rounds: int, sent: int) -> None:
    """Print the rows: CPU per message at both loads, and the ratios of CPU and memory."""
    lines: list[tuple[str, ...]] = []
    for row in rows(sent=sent):
        small, large = Series(), Series()
        for _ in range(rounds):
            pair = (runner.run(row.client, **row.small), runner.run(row.client, **row.large))
            if pair[0] is not None and pair[1] is not None:
                small.rounds.append(pair[0])
                large.rounds.append(pair[1])
        if small.rounds:
            ratios = (f"{large.ratio(small, _cpu):.2f}", f"{large.ratio(small, _memory):.2f}")
            lines.append((row.client, row.about, _shown(small, _cpu), _shown(large, _cpu), *ratios))
    _table(("client", "load", "µs", "µs", "ratio of CPU", "ratio of memory"), lines)


def bodies(runner: Runner, *, rounds: int) -> None:
    """Print for each size the rates and the CPU per message, and the rate against the raw blaster's."""
    clients = (LIMIT, TRIO, ASYNCIO)
    lines: list[tuple[str, ...]] = []
    for size, load in sizes():
        found = {client: Series() for client in clients}
        for _ in range(rounds):
            done = {client: runner.run(client, **load) for client in clients}
            for client, figures in done.items():
                if figures is not None and None not in done.values():
                    found[client].rounds.append(figures)
        if not found[LIMIT].rounds:
            continue
        line = [f"{size:,}"]
        for client in clients:
            line += [_shown(found[client], lambda figures: figures.rate), _shown(found[client], _cpu)]
        ratios = [found[client].ratio(found[LIMIT], lambda figures: figures.rate) for client in clients[1:]]
        lines.append((*line, *(f"{ratio:.2f}" for ratio in ratios)))
    head = ("bytes", *(text for client in clients for text in (f"{client}: msg/s", "µs")))
    _table((*head, "Trio × blaster", "asyncio × blaster"), lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sent", type=int, default=1_000_000, help="messages of the long run")
    options = parser.parse_args()
    with private_broker(pinned=False) as broker:
        runner = Runner(broker.url, QUEUE, complain=lambda text: print(text, file=sys.stderr))
        memory = runner.measure("memory")
        print(f"memory: {memory}\n", flush=True)
        counts(runner, rounds=options.rounds, sent=options.sent)
        bodies(runner, rounds=options.rounds)


if __name__ == "__main__":
    main()
