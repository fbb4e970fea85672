"""The isolation benchmark's schedule, table and limit; its figures are nobody's promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
from benchmarks.isolation import beyond, limits, line_of, table
from benchmarks.isolation_clients import BAD, GOOD_RATE, Load

FOUND: dict[str, Any] = {"alone": [0.004] * 100, "beside": [0.001] * 90, "failed": 0, "reopened": 0, "bad": {}}


def line(**differs: Any) -> dict[str, Any]:
    return line_of("c", "full queue", 2.0, {**FOUND, **differs})


def test_the_schedule_has_both_rates_in_order() -> None:
    """Good ones at their rate all the time, bad ones at the load's after the seconds alone."""
    schedule = list(Load("amqp://", "full queue", 20, 2.0, 1.0).schedule())
    assert schedule == sorted(schedule)
    assert (3 * GOOD_RATE, 40) == (sum(good for _, good, _ in schedule), sum(not good for _, good, _ in schedule))
    bad = [(due, number) for due, good, number in schedule if not good]
    assert 1.0 < bad[0][0] < bad[-1][0] < 3.0
    assert [number for _, number in bad] == list(range(40))


def test_one_a_minute_is_one_at_least() -> None:
    """A measurement that is shorter than a minute has one all the same."""
    assert [good for _, good, _ in Load("amqp://", "body over the limit", 1 / 60, 2.0, 1.0).schedule()].count(
        False
    ) == 1


def test_each_kind_of_badness_is_there() -> None:
    """What closes a channel by its exchange, by its property and by its size; what is nacked; what is never answered."""
    assert BAD.keys() == {
        "missing exchange", "missing exchanges, each another", "no permission", "full queue", "queue that never confirms",
        "refused user_id", "refused header", "body over the limit",
    }  # fmt: skip
    assert [BAD["missing exchanges, each another"].to(n) for n in range(2)] == [
        "isolation.missing.0",
        "isolation.missing.1",
    ]


def test_the_table_names_failures() -> None:
    """A client that did not finish has no figures to be read as good ones."""
    rows = table([line(failed=10, reopened=3), line(error="killed")]).splitlines()
    assert rows[2] == "| 2 a second: full queue | c | 1.0 ms | 1.0 ms | 1.0 ms | 4.0 ms | 10 of 200 | 3 |"
    assert "did not finish" in rows[3]
    assert "none" in table([line(beside=[])])


@pytest.mark.parametrize(
    ("differs", "found"),
    [
        ({}, []),
        ({"beside": [0.018] * 90}, []),
        ({"beside": [0.019] * 90}, ["p99 19.0 ms, 4.0 ms alone"]),
        ({"failed": 2, "reopened": 1}, ["2 good ones failed", "1 links lost"]),
        ({"beside": []}, ["p99 nan ms, 4.0 ms alone"]),
        ({"error": "killed"}, ["did not finish"]),
    ],
)
def test_the_limit_is_twice_that_of_the_seconds_alone_and_ten_ms(differs: dict[str, Any], found: list[str]) -> None:
    """0 links lost, 0 good messages failed."""
    measured = line(**differs)
    alone = limits([measured, line()])["c"]
    assert math.isclose(alone, 4.0)
    assert beyond(measured, alone) == found
