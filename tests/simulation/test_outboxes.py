"""The plans with an outbox: nothing is found, and a run that is well, falsified in one way, is found out by its check."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve

from tests.simulation.outboxes import (
    Death,
    Handed,
    OutboxRun,
    calm_outbox,
    draw_outbox,
    judge,
    met,
    run_outbox,
    run_seed,
)
from warrener.errors import DeadlineExceeded, Unconfirmed


def test_nothing_is_found() -> None:
    """The first seeds pass every check; some of them meet row 44 of the fault matrix."""
    results = [run_seed(seed) for seed in range(1, 9)]

    assert [] == [finding for findings, _ in results for finding in findings]
    assert "44" in {row for _, rows in results for row in rows}


def test_rows_without_a_fault() -> None:
    """A hundred rows are stored, confirmed and deleted, and none is sent twice."""
    seen = run_outbox(calm_outbox())

    assert [] == judge(seen)
    assert (100, 100, 100) == (len(seen.reported), len(seen.deleted), len(seen.run.log))
    assert frozenset() == met(seen)


@pytest.mark.parametrize("how", ["close", "kill", "before the commit", "after the commit"])
@pytest.mark.parametrize("one_machine", [False, True])
def test_each_death_is_outlived(how: str, one_machine: bool) -> None:
    """A process that ends in the middle of its work, in each way, loses nothing; where it was killed, row 44 is met."""
    deaths = tuple(Death(at, 0, how, 0.5, at > 4.0) for at in (1.0015, 3.0015, 5.0015))
    plan = evolve(calm_outbox(), deaths=deaths, one_machine=one_machine)
    seen = run_outbox(plan)

    assert [] == judge(seen)
    assert len(seen.killed) == (0 if how == "close" else 3)
    assert ("44" in met(seen)) <= (how != "close")


def test_equal_seeds_have_equal_traces() -> None:
    """A process that dies does not let chance in: the same plan gives the same trace."""
    assert run_outbox(draw_outbox(6)).run.hash == run_outbox(draw_outbox(6)).run.hash


# --- each check can fail ----------------------------------------------------------------------------------------------


def deleted_early(seen: OutboxRun) -> None:
    seen.deleted[1] = 0.5


def not_in_its_queue(seen: OutboxRun) -> None:
    seen.run.left["jobs"].discard(seen.run.trace.publishes[0].body)


def never_confirmed(seen: OutboxRun) -> None:
    del seen.deleted[1]


def reported_and_gone(seen: OutboxRun) -> None:
    seen.reported.add("m1000")


def cancelled_and_stored(seen: OutboxRun) -> None:
    seen.cancelled.add("m0")


def rolled_back_and_found(seen: OutboxRun) -> None:
    seen.rolled_back.add("m1000")
    place, line = seen.run.log[0]
    seen.run.log.append((place, evolve(line, message_id="m1000")))


def overtaken(seen: OutboxRun) -> None:
    places = {line.message_id: place for place, (_, line) in enumerate(seen.run.log)}
    (one, first), (other, later) = seen.run.log[places["m0"]], seen.run.log[places["m7"]]
    seen.run.log[places["m0"]] = (one, evolve(first, at=later.at))
    seen.run.log[places["m7"]] = (other, evolve(later, at=first.at))


def unflagged(seen: OutboxRun) -> None:
    seen.handed["m0"] = [Handed(1.0, "one", False, Unconfirmed("m0", "no answer")), Handed(2.0, "one", False)]


def set_aside_without_a_reason(seen: OutboxRun) -> None:
    seen.wrong.append("m0 was set aside")


@pytest.mark.parametrize(
    ("check", "falsify"),
    [
        ("S10 a deleted row was confirmed", deleted_early),
        ("S10 a deleted row was confirmed", not_in_its_queue),
        ("S10 a committed row ends confirmed", never_confirmed),
        ("S10 a committed row ends confirmed", reported_and_gone),
        ("S10 a committed row ends confirmed", cancelled_and_stored),
        ("S10 a rolled-back row is nowhere", rolled_back_and_found),
        ("S10 order of keys", overtaken),
        ("S10 copies are flagged", unflagged),
        ("S10 nothing fails", set_aside_without_a_reason),
    ],
)
def test_each_check_can_fail(check: str, falsify: Callable[[OutboxRun], None]) -> None:
    """One thing is made wrong, and its check alone says so."""
    seen = run_outbox(calm_outbox(20))
    falsify(seen)

    assert {check} == {finding.check for finding in judge(seen)}


def test_a_row_that_was_not_sent_needs_no_flag() -> None:
    """It is published again as it was."""
    seen = run_outbox(calm_outbox(1))
    seen.handed["m0"] = [Handed(1.0, "one", False, DeadlineExceeded("m0", "no link")), Handed(2.0, "two", False)]

    assert [] == judge(seen)
