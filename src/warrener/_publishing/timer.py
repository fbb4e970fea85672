"""The timer: the one task of a producer that waits for an instant."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio
import anyio.lowlevel

from warrener._backend import Backend

__all__ = ["Timer"]

#: A timer that wakes this number of seconds too late was held up: the process slept, or its event loop stood still.
LATE = 0.01
#: After such a wake-up, the reader of the link gets this number of checkpoints before deadlines are checked.
GRACE = 5


class Timer:
    """Calls `look(now)`, and calls it again at the instant that `look` returns. `look` ends messages whose deadline has passed."""

    def __init__(self, backend: Backend, look: Callable[[float], float]) -> None:
        self._clock = backend.clock
        self._look = look
        #: When it wakes; minus infinity: as soon as its task runs.
        self.at = -math.inf
        self._poke = anyio.Event()

    def poke(self) -> None:
        """Look as soon as the task runs."""
        self.at = -math.inf
        self._poke.set()

    def wake_by(self, at: float) -> None:
        """Look again no later than at this instant.

        A new message wakes the timer only if it is due before the timer would wake. With equal timeouts, a
        new message is never due before that. So an idle producer has no wake-ups, and a busy one has a few in
        `confirm_timeout`.
        """
        if at < self.at:
            self.poke()

    async def run(self) -> None:
        """Look, and wait for the next time. Runs until it is cancelled."""
        while True:
            self.at = wake_at = self._look(self._clock())
            self._poke = anyio.Event()
            with anyio.move_on_after(max(wake_at - self._clock(), 0.0) if wake_at < math.inf else None):
                await self._poke.wait()
            if self._clock() > wake_at + LATE:
                # The broker may have answered meanwhile: its answers are read before deadlines are checked.
                for _ in range(GRACE):
                    await anyio.lowlevel.checkpoint()
