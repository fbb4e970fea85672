"""Every check of the simulation can fail: a run that is well, falsified in one way, is found out by that check."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from tests.simulation.checks import CHECKS, Evidence, judge
from tests.simulation.network import FIRST_PORT
from tests.simulation.run import Run, simulate
from tests.simulation.schedule import Call, Item, RetryPlan, calm
from tests.simulation.schedule import Fault as Trouble
from tests.simulation.trace import Publish
from warrener import CircuitOpen, Nacked, NotSent, Receipt, Unconfirmed
from warrener.errors import Fault, FaultKind
from warrener.testing.broker import Violation


def run_of(*, lost: bool = False) -> Run:
    """Ten messages, the first two at once, through one link, or through two; all is well."""
    calls = tuple(Call(1.0 + number // 2, "publish", (Item(number, 100, "jobs"),), 30.0) for number in range(10))
    return simulate(calm(calls, (Trouble(1.001, "rst"),) if lost else ()))


def first(run: Run) -> Publish:
    return run.trace.publishes[0]


def unstored(run: Run) -> None:
    run.log = [(place, line) for place, line in run.log if line.message_id != first(run).message_id]


def lost_in_a_crash(run: Run) -> None:
    run.left["jobs"].discard(first(run).body)


def unacked(run: Run) -> None:
    first(run).attempts[0].answer = None


def stored_though_rejected(run: Run) -> None:
    first(run).result = NotSent(first(run).message_id or "", "it was not sent")


def stored_though_cancelled(run: Run) -> None:
    first(run).result, first(run).cancelled = None, True
    first(run).attempts.clear()


def foreign_body(run: Run) -> None:
    place, line = run.log[0]
    run.log.append((place, evolve(line, body_hash=bytes(16))))


def stored_twice(run: Run) -> None:
    run.log.append(run.log[0])


def sent_twice_at_most_once(run: Run) -> None:
    run.plan = evolve(run.plan, producer=evolve(run.plan.producer, at_least_once=False))
    first(run).attempts *= 2


def not_flagged(run: Run) -> None:
    result = first(run).result
    assert isinstance(result, Receipt)
    first(run).result = Receipt(result.message_id, 2, result.possible_duplicate, result.link)


def without_outcome(run: Run) -> None:
    first(run).ended_at = None


def after_the_deadline(run: Run) -> None:
    first(run).ended_at = first(run).deadline + 0.01


def told_late(run: Run) -> None:
    assert first(run).ended_at is not None
    first(run).ended_at += 0.01  # type: ignore[operator]


def slow_to_fail_fast(run: Run) -> None:
    first(run).result = CircuitOpen("", "open", retry_after=1.0)
    first(run).ended_at = first(run).called_at + 1.0


def crashed(run: Run) -> None:
    run.crash = RuntimeError("oh")


def late_to_nobody(run: Run) -> None:
    first(run).late.append(first(run).result)  # type: ignore[arg-type]


def nacked_without_a_nack(run: Run) -> None:
    first(run).result = Nacked(first(run).message_id or "", "the connection was closed")


def unknown_without_a_cause(run: Run) -> None:
    first(run).result = Unconfirmed(first(run).message_id or "", "no reason")


def replaced_for_nothing(run: Run) -> None:
    run.trace.links[1].overdue = (None, 2.0)


def replaced_too_early(run: Run) -> None:
    run.trace.links[1].overdue = (1.0, 2.0)


def lost_for_nothing(run: Run) -> None:
    run.trace.links[1].fault = Fault(FaultKind.SILENT, "silent")


def overtaken(run: Run) -> None:
    run.trace.publishes[0].order, run.trace.publishes[1].order = (
        run.trace.publishes[1].order,
        run.trace.publishes[0].order,
    )


def tag_missing(run: Run) -> None:
    del run.trace.attempts[1, 1, 2]


def dialed_hot(run: Run) -> None:
    run.trace.links[2].at = run.trace.links[1].ended_at or 0.0


def dialed_beside(run: Run) -> None:
    run.trace.links[1].ended_at = None


def wire_left_open(run: Run) -> None:
    assert run.network is not None
    run.network.wires[0].client_closed_at = None


def too_many(run: Run) -> None:
    at, status, holds = run.statuses[0]
    run.statuses.append((at, evolve(status, in_flight=1001), holds))


def task_leak(run: Run) -> None:
    run.peak_tasks = 100


def closed_late(run: Run) -> None:
    assert run.closed_at is not None
    run.closed_at += 100


def reported_wrongly(run: Run) -> None:
    assert run.report is not None
    run.report = evolve(run.report, not_sent=(first(run).message_id or "",))


def confirmed_too_much(run: Run) -> None:
    assert run.report is not None
    run.report = evolve(run.report, confirmed=11)


def miscounted(run: Run) -> None:
    run.counters["confirmed"] -= 1
    run.counters["nacked"] += 1


def up_without_a_link(run: Run) -> None:
    at, status, _ = next(sample for sample in run.statuses if sample[1].healthy)
    run.statuses.append((at, status, False))


def told_the_password(run: Run) -> None:
    run.texts.append(f"login as {run.password}")


def held_through(attribute: str) -> Callable[[Run], None]:
    def falsify(run: Run) -> None:
        assert run.network is not None
        setattr(run.network.wires[0], attribute, 1000.0)

    return falsify


def illegal(run: Run) -> None:
    run.violations.append(Violation(1, "nonsense", 1.0))


def never_up(run: Run) -> None:
    run.plan = evolve(run.plan, mode="liveness", healed_at=0.0)
    run.up_again_at = None


def dialed_the_same_again(run: Run) -> None:
    run.plan = evolve(run.plan, brokers=2, several_endpoints=True)
    for record in run.trace.links.values():
        record.port = FIRST_PORT


def handed_over_unanswered(run: Run) -> None:
    run.trace.links[1].ended_at = 4.0
    run.trace.links[1].fault = None
    first(run).attempts[0].answered_at = None


def beyond_the_budget(run: Run) -> None:
    retry = RetryPlan(nacked=True, overdue=False, attempts=None, initial=1.0, budget=(0.0, 0.0, 10.0))
    run.plan = evolve(run.plan, producer=evolve(run.plan.producer, retry=retry))
    first(run).attempts[0].answer = "nack"
    first(run).attempts *= 2


def written_on_another_link(run: Run) -> None:
    run.trace.links[9] = evolve(run.trace.links[1], number=9, member=1)
    first(run).attempts.append(evolve(first(run).attempts[0], link=9))


def key_on_two_links(run: Run) -> None:
    run.trace.links[9] = evolve(run.trace.links[1], number=9, member=1)
    for link, publish in zip((1, 9), run.trace.publishes.values(), strict=False):
        publish.call = evolve(publish.call, key="customer")
        publish.attempts[0].link = link


FALSIFIED: list[tuple[str, Callable[[Run], None]]] = [
    ("S1 confirmed is stored", unstored),
    ("S1 confirmed is stored", lost_in_a_crash),
    ("S1 confirmed is stored", unacked),
    ("S2 rejected is nowhere", stored_though_rejected),
    ("S2 rejected is nowhere", stored_though_cancelled),
    ("S3 nothing unexpected", foreign_body),
    ("S4 no silent duplicates", stored_twice),
    ("S4 no silent duplicates", sent_twice_at_most_once),
    ("S4 no silent duplicates", not_flagged),
    ("S5 one outcome in time", without_outcome),
    ("S5 one outcome in time", after_the_deadline),
    ("S5 one outcome in time", told_late),
    ("S5 one outcome in time", slow_to_fail_fast),
    ("S5 one outcome in time", crashed),
    ("S5 one outcome in time", late_to_nobody),
    ("S5 outcomes match", nacked_without_a_nack),
    ("S6 unknown has a cause", unknown_without_a_cause),
    ("S6 unknown has a cause", replaced_for_nothing),
    ("S6 unknown has a cause", replaced_too_early),
    ("S6 unknown has a cause", lost_for_nothing),
    ("S6 hand-overs lose nothing", handed_over_unanswered),
    ("S7 order", overtaken),
    ("S7 order", tag_missing),
    ("S8 dials keep their distance", dialed_hot),
    ("S8 dials keep their distance", dialed_beside),
    ("S8 endpoints take turns", dialed_the_same_again),
    ("S8 budgets hold", beyond_the_budget),
    ("S9 limits", wire_left_open),
    ("S9 limits", too_many),
    ("S9 limits", task_leak),
    ("S9 limits", closed_late),
    ("S9 limits", reported_wrongly),
    ("S9 limits", confirmed_too_much),
    ("S11 counters and secrets", miscounted),
    ("S11 counters and secrets", up_without_a_link),
    ("S11 counters and secrets", told_the_password),
    ("S12 links are apart", written_on_another_link),
    ("S12 links are apart", key_on_two_links),
    ("R12 dead peers are noticed", held_through("silence")),
    ("R12 dead peers are noticed", held_through("unfinished")),
    ("R12 dead peers are noticed", held_through("stalled")),
    ("R18 every byte is legal", illegal),
    ("I40 it recovers", never_up),
]


@pytest.mark.parametrize(("check", "falsify"), FALSIFIED, ids=lambda value: getattr(value, "__name__", None))
def test_a_falsified_run_is_found_out(check: str, falsify: Callable[[Run], None]) -> None:
    """The check that is named finds it; without the falsification none finds anything."""
    run = run_of(lost=check.startswith("S8"))
    assert [] == judge(Evidence(run))

    falsify(run)

    assert check in {finding.check for finding in judge(Evidence(run))}


def test_every_check_is_put_to_the_test() -> None:
    """No check is left out above."""
    assert set(CHECKS) == {check for check, _ in FALSIFIED}


def test_a_lie_that_nobody_could_see_through_excuses_those_in_flight() -> None:
    """Where the simulated broker acked what it had not stored, the producer is not blamed for believing it."""
    run = run_of()
    unstored(run)
    assert run.injector is not None
    run.injector.credible_lies.append(first(run).called_at)

    assert [] == judge(Evidence(run))


def test_evidence_knows_jumps() -> None:
    """A deadline that falls into a jump of the clock is due at its end, and jumped seconds are not waited ones."""
    run = run_of()
    seen: Any = Evidence(run)
    seen.injector = SimpleNamespace(jumps=[(10.0, 20.0)])

    assert (20.0, 9.0) == (seen.stretched(15.0), seen.stretched(9.0))
    assert (10.0, 5.0, 0.0) == (seen.jumped(5.0, 25.0), seen.jumped(15.0, 25.0), seen.jumped(0.0, 5.0))
