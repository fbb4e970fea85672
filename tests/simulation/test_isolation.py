"""The check of isolation can fail in each of its parts, and passes where each destination is well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve

from tests.simulation.checks import Evidence
from tests.simulation.isolation import compare
from tests.simulation.neighbours import BAD, FIRST_BAD, alone, beside
from tests.simulation.run import Run, simulate
from tests.simulation.schedule import Plan
from warrener import NotSent
from warrener.errors import Fault, FaultKind

Falsify = Callable[[Run], None]


def well() -> Plan:
    """Return the plan of a seed that has two addresses and a forbidden exchange, with each destination well."""
    plans = (beside(seed) for seed in range(100))
    return alone(next(plan for plan in plans if plan.brokers == 2 and "forbidden" in plan.bad and not plan.faults))


def other_outcome(run: Run) -> None:
    run.trace.publishes[0].result = NotSent("id", "it was not sent")


def later(run: Run) -> None:
    publish = run.trace.publishes[0]
    assert publish.ended_at is not None
    publish.ended_at += 1.1


def lost_link(run: Run) -> None:
    run.trace.links[1].ended_at = 10.0
    run.trace.links[1].fault = Fault(FaultKind.CHANNEL_STORM, "more than 5 channels")


def closed_for_an_exchange(run: Run) -> None:
    run.trace.channel_ends[1, 1] = (5.0, 404)


def closed_twice(run: Run) -> None:
    publish = run.trace.publishes[0]
    publish.item = evolve(publish.item, poison=True)
    publish.attempts = [evolve(publish.attempts[0], answer=None, channel=channel) for channel in (1, 3)]
    run.trace.channel_ends |= {(1, 1): (5.0, 406), (1, 3): (6.0, 406)}


def not_refused(run: Run) -> None:
    """Each destination is well, so the messages to the forbidden exchange are confirmed, and not refused."""


def same_address(run: Run) -> None:
    assert run.network is not None
    first = run.trace.links[1]
    run.trace.links[1] = evolve(first, opened_at=None)
    run.trace.links[2] = evolve(first, number=2)
    run.network.first_addresses = {1: "10.0.0.1", 2: "10.0.0.1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "falsify"),
    [
        ("A1", other_outcome),
        ("A1", later),
        ("A2", lost_link),
        ("A3", closed_for_an_exchange),
        ("A3", closed_twice),
        ("A4", not_refused),
        ("A5", same_address),
    ],
)
def test_each_part_can_fail(check: str, falsify: Falsify) -> None:
    """One thing is made wrong, and its check alone says so."""
    plan = well()
    with_bad, without = simulate(plan), simulate(plan)
    falsify(with_bad)
    findings = {finding.check.split()[0] for finding in compare(Evidence(with_bad), Evidence(without))}
    assert {check, "A4"} == findings | {"A4"}


@pytest.mark.parametrize("seed", range(20))
def test_each_plan_has_several_bad_destinations_beside_sound_ones(seed: int) -> None:
    """At least three kinds, messages to each of them, and forty to sound ones."""
    plan = beside(seed)
    addresses = {item.address for call in plan.calls for item in call.messages if item.number >= FIRST_BAD}
    assert 3 <= len(plan.bad) == len({*plan.bad} & {*BAD})
    assert {BAD[kind][0] for kind in plan.bad} == addresses
    assert sum(item.number < FIRST_BAD for call in plan.calls for item in call.messages) >= 40
