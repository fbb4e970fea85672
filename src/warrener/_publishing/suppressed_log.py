"""The log line for further attempts that a retry budget has forbidden, at most one in 10 seconds."""

from __future__ import annotations

import logging
import math

__all__ = ["SuppressedLog"]

log = logging.getLogger("warrener")

#: Seconds between two lines.
WINDOW = 10.0


class SuppressedLog:
    """Logs how many further attempts were forbidden since the last line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged = 0
        self._next_at = -math.inf

    def note(self, suppressed: int, now: float) -> None:
        """Log the number of forbidden attempts, `suppressed` since the start, if it has grown and a line is due."""
        if suppressed == self._logged or now < self._next_at:
            return
        log.warning(
            "%s: the retry budget, or the share of a destination, forbade %d further attempts (%d since the start)",
            self._name,
            suppressed - self._logged,
            suppressed,
        )
        self._logged, self._next_at = suppressed, now + WINDOW
