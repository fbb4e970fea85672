"""Would the walk notice? Known mistakes of clients with several brokers, planted one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.test_walks import Walk
from warrener.machine import _handing_over, _reconnecting
from warrener.machine._record import Step
from warrener.machine.endpoints import Endpoints, endpoint_failed

pytestmark = pytest.mark.full

Planted = tuple[Any, str, Callable[..., Any]]


def _first_address_always_first() -> Planted:
    def planted(before: Endpoints, *args: Any, **kwargs: Any) -> Endpoints:
        after = endpoint_failed(before, *args, **kwargs)
        return evolve(after, records=tuple(evolve(record, address=0) for record in after.records))

    return _reconnecting, "endpoint_failed", planted


def _just_failed_endpoint_first() -> Planted:
    def planted(before: Endpoints, *args: Any, **kwargs: Any) -> Endpoints:
        after = endpoint_failed(before, *args, **kwargs)
        return evolve(after, queue=(after.queue[-1], *after.queue[:-1]))

    return _reconnecting, "endpoint_failed", planted


def _forgotten_endpoint() -> Planted:
    def planted(before: Endpoints, *args: Any, **kwargs: Any) -> Endpoints:
        after = endpoint_failed(before, *args, **kwargs)
        return evolve(after, queue=after.queue[:-1] or after.queue)

    return _reconnecting, "endpoint_failed", planted


def _no_delay_after_a_pass() -> Planted:
    def planted(before: Endpoints, *args: Any, **kwargs: Any) -> Endpoints:
        return evolve(endpoint_failed(before, *args, **kwargs), tried=frozenset())

    return _reconnecting, "endpoint_failed", planted


def _hand_over_that_drops_what_is_in_flight() -> Planted:
    begin = _handing_over._begin

    def planted(record: Any, state: Any, target: Any, at: Any, policy: Any) -> Step:
        waiting = begin(record, state, target, at, policy)
        closing = _handing_over.close_link(waiting.record, waiting.record.state, at, policy)  # type: ignore[arg-type]
        return Step(closing.record, (*waiting.effects, *closing.effects))

    return _handing_over, "_begin", planted


@pytest.mark.parametrize(
    "plant",
    [
        _first_address_always_first,
        _just_failed_endpoint_first,
        _forgotten_endpoint,
        _no_delay_after_a_pass,
        _hand_over_that_drops_what_is_in_flight,
    ],
    ids=lambda plant: plant.__name__.strip("_").replace("_", " "),
)
def test_the_walk_notices(plant: Callable[[], Planted], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake fails the walk within 200 examples."""
    monkeypatch.setattr(*plant())
    quick = settings(
        max_examples=200,
        stateful_step_count=50,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )

    with pytest.raises((AssertionError, IndexError)):
        run_state_machine_as_test(Walk, settings=quick)
