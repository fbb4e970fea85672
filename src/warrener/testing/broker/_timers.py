"""Timers as a heap, driven by the owner of the clock: virtual seconds under a MockClock, real seconds elsewhere."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TypeAlias

from attrs import define, field

__all__ = ["Timer", "Timers"]

Clock: TypeAlias = Callable[[], float]


@define(order=True)
class Timer:
    """Something due at an instant; equal instants keep the order in which they were set."""

    due: float
    number: int
    action: Callable[[], None] | None = field(order=False)

    def cancel(self) -> None:
        """Forget it; idempotent."""
        self.action = None


class Timers:
    """The broker's timers. Nothing here waits: `next_due` says when to call `fire`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        #: Called when a timer was set that is due before all others, so that the sleeper can be woken.
        self.on_sooner: Callable[[], None] = lambda: None
        self._heap: list[Timer] = []
        self._count = 0

    def now(self) -> float:
        """Return the present instant of the clock, in seconds."""
        return self.clock()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run `action` once when `seconds` have passed."""
        self._count += 1
        timer = Timer(self.clock() + seconds, self._count, action)
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self.on_sooner()
        return timer

    @property
    def next_due(self) -> float:
        """The instant at which `fire` is needed next, or infinity."""
        while self._heap and self._heap[0].action is None:
            heapq.heappop(self._heap)
        return self._heap[0].due if self._heap else math.inf

    def fire(self) -> None:
        """Run the timers that are due, in order; a timer that is set meanwhile runs in a later call."""
        now = self.clock()
        due: list[Timer] = []
        while self._heap and self._heap[0].due <= now:
            due.append(heapq.heappop(self._heap))
        for timer in due:
            action, timer.action = timer.action, None
            if action is not None:
                action()
