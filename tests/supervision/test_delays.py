"""Properties over time: plain functions, because a clock belongs to one example and not to the test."""

from __future__ import annotations

import random

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from warrener import Backoff, Producer
from warrener.testing.scripted import Life, ScriptedDriver, lives, refuses

URL = "amqp://localhost/"


@given(jitter=st.floats(0, 1), seed=st.integers(), losses=st.lists(st.floats(0.01, 9.0), min_size=1, max_size=8))
def test_delays_stay_in_their_range_with_jitter(jitter: float, seed: int, losses: list[float]) -> None:
    """Each gap between a failure and the next dial lies in [(1 - jitter) * d, d] and is never under min_gap."""
    backoff = Backoff(jitter=jitter, cap=60)
    script: list[Life] = [lives(seconds) for seconds in losses]
    driver = ScriptedDriver(*script, refuses())

    async def main() -> None:
        with trio.move_on_after(400):
            await Producer(URL, driver=driver, backoff=backoff, rng=random.Random(seed)).run()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    ends = [at + (losses[n] if n < len(losses) else 0.0) for n, at in enumerate(driver.dials)]
    for n, (end, dial) in enumerate(zip(ends, driver.dials[1:], strict=False)):
        longest = min(60.0, 2.0**n)
        assert max(0.1, (1 - jitter) * longest) - 1e-6 <= dial - end <= longest + 1e-6
