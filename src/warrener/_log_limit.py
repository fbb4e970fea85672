"""A limit on log lines that a broker can cause: 10 in 10 seconds, then the others are counted."""

from __future__ import annotations

import math

__all__ = ["LINES", "WINDOW", "LogLimit"]

LINES = 10
#: Seconds.
WINDOW = 10.0


class LogLimit:
    """For one kind of line: whether the next one is logged, and how many were not."""

    __slots__ = ("_left_out", "_logged", "_since")

    def __init__(self) -> None:
        self._since = -math.inf
        self._logged = 0
        self._left_out = 0

    def left_out(self, now: float) -> int:
        """Return how many lines were left out in the last window, once it is over; the log says so in one line."""
        if now - self._since < WINDOW:
            return 0
        left_out = self._left_out
        self._since, self._logged, self._left_out = now, 0, 0
        return left_out

    def allows(self) -> bool:
        """Whether one more line is logged in this window; if not, it is counted."""
        if self._logged < LINES:
            self._logged += 1
            return True
        self._left_out += 1
        return False
