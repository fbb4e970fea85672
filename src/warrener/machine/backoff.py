"""The delay before the next dial, as a range of seconds. The owner of the record draws a number from the range.

Delays stay in range: the delay d = min(cap, initial * factor ** n) becomes the range [(1 - jitter) * d, d]. With jitter
0 and a cap of 60 seconds the sequence is exactly 1, 2, 4, 8, 16, 32, 60, 60 …; jitter 1 is called full jitter. No delay
is shorter than `min_gap`, whatever the jitter.
"""

from __future__ import annotations

import math

from attrs import field, frozen

from warrener.errors import SettingsError

__all__ = ["Backoff", "retry_delay", "slowest_delay"]


@frozen
class Backoff:
    """Exponential backoff with jitter; durations are in seconds.

    Raises `SettingsError` if the values contradict each other.
    """

    initial: float = field(default=1.0, converter=float)
    factor: float = field(default=2.0, converter=float)
    cap: float = field(default=15.0, converter=float)
    #: The producer gives up after this number of dials in a row (the dial at the start does not count); None: never.
    attempts: int | None = None
    #: 0 to 1: a delay d is drawn from [(1 - jitter) * d, d].
    jitter: float = field(default=0.5, converter=float)
    #: No delay is shorter than this, whatever the jitter.
    min_gap: float = field(default=0.1, converter=float)

    def __attrs_post_init__(self) -> None:
        """Refuse values that make no sense."""
        if not 0 < self.initial < math.inf:
            raise SettingsError(f"backoff: initial must be more than 0 seconds, not {self.initial}")
        if not self.initial <= self.cap < math.inf:
            raise SettingsError(f"backoff: cap must be at least initial ({self.initial} s), not {self.cap}")
        if not 1 <= self.factor < math.inf:
            raise SettingsError(f"backoff: factor must be at least 1, not {self.factor}")
        if self.attempts is not None and self.attempts < 0:
            raise SettingsError(f"backoff: attempts must be 0 or more, or None for ever, not {self.attempts}")
        if not 0 <= self.jitter <= 1:
            raise SettingsError(f"backoff: jitter must be between 0 and 1, not {self.jitter}")
        if not 0 <= self.min_gap < math.inf:
            raise SettingsError(f"backoff: min_gap must be 0 seconds or more, not {self.min_gap}")


def retry_delay(backoff: Backoff, attempt: int) -> tuple[float, float]:
    """Return the shortest and the longest delay, in seconds, before reconnect attempt `attempt` (0 is the first).

    Every attempt has an answer, however large its number is: the delay never exceeds the cap.
    """
    try:
        delay = backoff.initial * backoff.factor**attempt
    except OverflowError:
        delay = backoff.cap
    return _spread(backoff, min(delay, backoff.cap))


def slowest_delay(backoff: Backoff) -> tuple[float, float]:
    """Return the range at the cap. It is for lasting refusals, for example a wrong password."""
    return _spread(backoff, backoff.cap)


def _spread(backoff: Backoff, delay: float) -> tuple[float, float]:
    return max(backoff.min_gap, (1 - backoff.jitter) * delay), max(backoff.min_gap, delay)
