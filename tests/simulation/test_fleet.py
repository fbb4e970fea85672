"""A hundred producers that lose their broker at one instant."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from warrener import Backoff, Producer
from warrener.testing.scripted import ScriptedDriver, lives, refuses


def crowd(jitter: float, attempt: int) -> int:
    """Return how many of 100 producers make the same attempt within one second, at the worst."""
    drivers = [ScriptedDriver(lives(10.0), refuses()) for _ in range(100)]

    async def main() -> None:
        with trio.move_on_after(100):
            async with trio.open_nursery() as nursery:
                for driver in drivers:
                    producer = Producer("amqp://localhost/", driver=driver, backoff=Backoff(jitter=jitter))
                    nursery.start_soon(producer.run)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    dials = sorted(driver.dials[attempt] for driver in drivers)
    assert all(later >= earlier for driver in drivers for earlier, later in pairwise(driver.dials))
    return max(sum(at <= other < at + 1.0 for other in dials) for at in dials)


def test_a_fleet_does_not_dial_in_step() -> None:
    """With the default jitter at most a third of a fleet dials within a second at the fifth attempt (S8)."""
    assert crowd(0.5, 5) <= 33


@pytest.mark.slow
def test_a_fleet_without_jitter_does() -> None:
    """Without jitter all of them do, which is what the jitter is for."""
    assert 100 == crowd(0.0, 5)
