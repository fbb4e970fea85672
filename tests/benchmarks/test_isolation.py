"""The isolation benchmark's schedule and table; its figures are nobody's promise."""

from __future__ import annotations

from benchmarks.isolation import table
from benchmarks.isolation_clients import GOOD_RATE, Load


def test_the_schedule_has_both_rates_in_order() -> None:
    """Good ones at their rate, bad ones at the load's, sorted by when they are due."""
    schedule = list(Load("amqp://", "full queue", 20, 2.0).schedule())
    assert schedule == sorted(schedule)
    assert (2 * GOOD_RATE, 40) == (sum(good for _, good in schedule), sum(not good for _, good in schedule))


def test_the_table_names_failures() -> None:
    """A client that did not finish has no figures to be read as good ones."""
    line = {"client": "c", "kind": "full queue", "rate": 2, "p50": 1.0, "p99": 2.0, "p99.9": 3.0, "confirmed": 90}
    rows = table([{**line, "failed": 10, "reopened": 3}, {**line, "failed": -1, "reopened": 0}]).splitlines()
    assert rows[2] == "| 2/s, full queue | c | 1.0 ms | 2.0 ms | 3.0 ms | 10 of 100 | 3 |"
    assert "did not finish" in rows[3]
