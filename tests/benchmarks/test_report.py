"""The benchmark's own arithmetic: what is counted, how ratios are taken, what gets into the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import report
from benchmarks.load import Load, Meter
from benchmarks.raw import Acks
from benchmarks.runner import Figures, Series
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.far_side import ack


def rounds(*rates: float, cpu: float = 10.0) -> Series:
    """A client that confirmed 1,000 messages a round, at these rates and this many microseconds each."""
    return Series([
        Figures(confirmed=1000, seconds=1000 / rate, cpu_seconds=cpu / 1e3, latencies=[0.001, 0.002], resident_kib=2048)
        for rate in rates
    ])  # fmt: skip


def results(**clients: Series) -> dict[str, Any]:
    """What a run writes, of these clients alone."""
    about = {"when": "now", "cores": 2, "processor": "P", "system": "S", "python": "3", "node": "n", "rabbitmq": "r"}
    return report.as_json(about | {"load_average": 0.5}, clients, {}, {}, {}, {}, {})


def test_the_warm_up_is_not_counted() -> None:
    """The meter runs from the first confirm behind the warm-up to the first behind the count; groups count as they come."""
    meter = Meter(Load("amqp://x", "q", count=10, warm_up=5))
    meter.confirm(4)
    meter.latencies.append(1.0)
    meter.confirm(3)
    assert (meter.done, meter.latencies) == (False, [])
    meter.confirm(9)
    assert not meter.done
    meter.confirm(4)
    assert (meter.done, meter.report()["confirmed"]) == (True, 13)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=20), st.integers(1, 40))
def test_acks_count_each_message_once(confirms: list[tuple[int, bool]], piece: int) -> None:
    """Single and multiple acks in any order and any pieces: as many as the tags that they cover."""
    acks, covered = Acks(), set[int]()
    stream = b""
    for tag, multiple in confirms:
        if tag not in covered:  # a broker settles a tag once
            stream += ack(tag, multiple)
            covered |= set(range(1, tag + 1)) if multiple else {tag}
    for at in range(0, len(stream), piece):
        acks.feed(stream[at : at + piece])
    assert acks.confirmed == len(covered)


def test_ratios_are_taken_within_the_rounds() -> None:
    """A drift of the machine meets both: the median of the ratios, not the ratio of the medians."""
    table = report.comparison(
        results(**{"raw blaster": rounds(100, 1000, 400), "amqplib": rounds(50, 800, 300)}), "clients"
    )
    (row,) = [line for line in table.splitlines() if line.startswith("| amqplib")]
    assert [cell.strip() for cell in row.split("|")][2:4] == ["300", "0.75"]


def test_a_target_is_met_or_named() -> None:
    """A figure within its bound is met, one beyond it is not; what was not measured is left out."""
    clients = {"warrener, Trio": rounds(900, cpu=4), "amqplib": rounds(1000, cpu=10)}
    table = report.targets(results(**clients))
    assert "| publish on Trio: CPU × amqplib | ≤ 0.65 | 0.40 | yes |" in table
    assert "| publish on Trio: throughput × amqplib | ≥ 1 | 0.90 | **no** |" in table
    assert "pika" not in table


def test_the_page_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures go between the marks, as often as one likes, and nothing else changes."""
    import json

    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    (tmp_path / "results.json").write_text(json.dumps(results(amqplib=rounds(100))))
    monkeypatch.setattr(report, "DOCUMENT", page)
    monkeypatch.setattr(report, "PICTURES", tmp_path / "performance")
    report.document(tmp_path)
    once = page.read_text()
    report.document(tmp_path)
    assert page.read_text() == once
    assert (once.startswith(f"before\n{report.BEGIN}\n"), once.endswith(f"{report.END}\nafter\n")) == (True, True)
    assert "| amqplib | 100 |" in once
    assert "old" not in once
