"""A histogram as plain numbers; `warrener.metrics` turns it into a Prometheus series."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["RECONNECT_BOUNDS", "Histogram"]

#: Bounds in seconds for the time of a reconnect: from one round trip to all attempts of the ML service.
RECONNECT_BOUNDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of observations between bounds, as Prometheus understands them; `counts[-1]` is beyond the last bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        #: The sum of all observations.
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a value equal to a bound is within it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count all observations of another histogram with the same bounds."""
        self.counts = [own + more for own, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)
