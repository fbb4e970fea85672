"""Small plans, run exhaustively: a cut at every byte of a publish and of a confirm, a cancel at every tick, a kill at many instants."""

from __future__ import annotations

from typing import Literal

import pytest
from attrs import evolve

from tests.simulation.checks import Evidence, judge
from tests.simulation.run import Run, simulate
from tests.simulation.schedule import Call, Fault, Item, Plan, calm
from tests.simulation.trace import Publish
from warrener import Receipt, Unconfirmed

pytestmark = pytest.mark.slow

#: The bytes of the confirm of one message: a frame of type 1 with basic.ack (class, method, tag, bits).
CONFIRM = 7 + 4 + 8 + 1 + 1


def well(plan: Plan) -> Run:
    """Run a plan that has to pass every check."""
    run = simulate(plan)
    assert [] == judge(Evidence(run))
    return run


def cut_one(kind: str, data: int, *, at_least_once: bool) -> tuple[Publish, int]:
    """Publish one message over a wire that is cut behind this number of bytes; return it, and how often it was enqueued."""
    call = Call(5.0, "publish", (Item(1, 30, "jobs"),), 30.0)
    run = well(calm((call,), (Fault(4.9, kind, 0.0, data),), at_least_once=at_least_once))
    return run.trace.publishes[1], len(run.log)


@pytest.mark.parametrize("reset", [False, pytest.param(True, marks=pytest.mark.full)], ids=["fin", "rst"])
@pytest.mark.parametrize(
    "at_least_once", [True, pytest.param(False, marks=pytest.mark.full)], ids=["at_least_once", "at_most_once"]
)
def test_a_cut_at_every_byte_of_a_publish(reset: bool, at_least_once: bool) -> None:
    """Up to its last byte nothing is enqueued, and the outcome is unknown: sent again, or Unconfirmed."""
    data = 0
    while True:
        publish, enqueued = cut_one("cut to broker", -data if reset else data, at_least_once=at_least_once)
        if enqueued > at_least_once:
            break  # the whole message got through
        if at_least_once:
            assert isinstance(publish.result, Receipt)
            assert (2, True, 1) == (publish.result.attempts, publish.result.possible_duplicate, enqueued)
        else:
            assert isinstance(publish.result, Unconfirmed)
            assert 0 == enqueued
        data += 1
    # basic.publish, the content header with message_id and delivery mode, and the body, each with eight bytes around it.
    assert (8 + 4 + 2 + 1 + 5 + 1) + (8 + 12 + 2 + 1 + 33) + (8 + 30) == data


@pytest.mark.parametrize("reset", [False, pytest.param(True, marks=pytest.mark.full)], ids=["fin", "rst"])
@pytest.mark.parametrize("at_least_once", [True, False], ids=["at_least_once", "at_most_once"])
def test_a_cut_at_every_byte_of_a_confirm(reset: bool, at_least_once: bool) -> None:
    """The message is stored. Up to the last byte of the confirm its outcome is unknown: sent again, or Unconfirmed."""
    for data in range(CONFIRM):
        publish, enqueued = cut_one("cut to client", -data if reset else data, at_least_once=at_least_once)
        if at_least_once:
            assert isinstance(publish.result, Receipt)
            assert (2, True, 2) == (publish.result.attempts, publish.result.possible_duplicate, enqueued)
        else:
            assert isinstance(publish.result, Unconfirmed)
            assert 1 == enqueued
    publish, enqueued = cut_one("cut to client", -CONFIRM if reset else CONFIRM, at_least_once=at_least_once)
    assert isinstance(publish.result, Receipt)  # what came whole before the end counts (row 21)
    assert (1, False, 1) == (publish.result.attempts, publish.result.possible_duplicate, enqueued)


@pytest.mark.parametrize("how", ["publish", "many", "nowait"])
@pytest.mark.parametrize("broken", [False, True], ids=["calm", "link lost"])
def test_a_cancel_at_every_tick(how: Literal["publish", "many", "nowait"], broken: bool) -> None:
    """Whenever a call is cancelled: not sent, or tracked to its outcome, or answered in time; every check passes."""
    seen: set[str] = set()
    items = tuple(Item(number, 100, "jobs") for number in range(1, 2 if how == "publish" else 4))
    plain = Call(5.0, how, items, 30.0)
    calls = [evolve(plain, cancel_ticks=ticks) for ticks in range(25)]
    # A confirm takes some 50 ms, a new link up to a second more.
    calls += [evolve(plain, cancel_after=step * (0.05 if broken else 0.002)) for step in range(30)]
    for call in calls:
        run = well(calm((call,), (Fault(5.0, "rst"),) if broken else ()))
        for publish in run.trace.publishes.values():
            seen.add("answered" if publish.result is not None else "in flight" if publish.attempts else "not sent")

    assert ({"answered"} if how == "nowait" else {"answered", "in flight"}) <= seen


@pytest.mark.parametrize("window", [400, 65536])
def test_the_nursery_is_cancelled_at_many_instants(window: int) -> None:
    """Wherever a cancelled nursery meets a burst of publishes, every one has its outcome and nothing is left."""
    calls = tuple(Call(5.0 + number / 10_000, "publish", (Item(number, 500, "jobs"),), 30.0) for number in range(8))
    plan = evolve(calm(calls), ending="kill")
    plan = evolve(plan, network=evolve(plan.network, window=window))
    outcomes: set[str] = set()
    for step in range(80):
        run = well(evolve(plan, ends_at=5.0 + step / 1000 if step > 20 else 5.0 + step / 20_000))
        outcomes |= {type(publish.result).__name__ for publish in run.trace.publishes.values()}

    assert {"Receipt", "Unconfirmed", "ProducerClosed"} <= outcomes
