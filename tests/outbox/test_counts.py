"""When the relay counts its outbox, and when it says that a backlog is old."""

from __future__ import annotations

import math

import pytest

from warrener.outbox._counts import Counts
from warrener.records import OutboxStatus


def counted(age: float | None) -> OutboxStatus:
    """Return a count of some rows, the oldest of this age."""
    return OutboxStatus(waiting=3, leased=1, set_aside=0, bytes=40, oldest_age=age)


def reported(counts: Counts, age: float | None, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Take a count, and return what the log says then."""
    caplog.clear()
    counts.take(counted(age), 0, 0.0, 0.0)
    return [record.getMessage() for record in caplog.records]


def test_an_old_backlog_is_reported_again_each_time_its_age_has_doubled(caplog: pytest.LogCaptureFixture) -> None:
    """From 300 s on; a younger one in between begins anew."""
    counts = Counts("tasks")
    ages = [299.0, 300.0, 301.0, 599.0, 600.0, 1199.0, 1200.0, None, 299.0, 300.0]
    assert [age for age in ages if reported(counts, age, caplog)] == [300.0, 600.0, 1200.0, 300.0]
    assert reported(counts, 700.0, caplog) == [
        "tasks: the oldest of 4 rows in the outbox has waited 700 s for its confirm"
    ]
    assert not reported(counts, 1399.0, caplog)
    assert reported(counts, 1400.0, caplog)


def test_a_count_takes_at_most_a_twentieth_of_the_time() -> None:
    """The next one is due after twenty times its duration, at least 0.1 s; a second later where nothing was written."""
    counts = Counts("tasks")
    assert counts.due == -math.inf
    counts.take(counted(None), 0, 10.0, 12.0)
    assert counts.due == 12.0 + 40.0 + 1.0
    counts.changed = True
    assert counts.due == 12.0 + 40.0
    counts.take(counted(None), 0, 60.0, 60.001)
    counts.changed = True
    assert counts.due == pytest.approx(60.101)


def test_rows_confirmed_since_the_count_do_not_wait() -> None:
    """So that confirmed and waiting never are more than there were; a claimed row is confirmed before one that waits."""
    counts = Counts("tasks")
    counts.take(counted(None), 10, 0.0, 0.0)
    shown = [counts.now(confirmed) for confirmed in (10, 11, 13, 14, 20)]
    assert [(each.waiting, each.leased) for each in shown] == [(3, 1), (3, 0), (1, 0), (0, 0), (0, 0)]
