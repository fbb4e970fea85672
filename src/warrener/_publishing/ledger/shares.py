"""`Shares`: how much of the window and of the buffer an unhealthy destination holds, at most 10 %."""

from __future__ import annotations

import math

from attrs import define

from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.waiting import SHARE, Waiting

__all__ = ["Shares"]

#: Seconds for which a count is used before the messages are counted again.
COUNT_LASTS = 0.1


@define
class _Count:
    at: float
    in_flight: int = 0
    in_flight_size: int = 0
    waiting: int = 0
    waiting_size: int = 0


class Shares:
    """Counts the messages of unhealthy destinations. Nothing is counted for healthy ones, so they cost nothing."""

    def __init__(self, in_flight: InFlight, waiting: Waiting) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._counts: dict[tuple[str, str], _Count] = {}
        self._freed_at = -math.inf

    def used(self, destination: tuple[str, str], size: int, now: float) -> bool:
        """Whether one more message of `size` bytes is more than the share of this destination."""
        count = self._counts.get(destination)
        if count is None or not count.at <= now < count.at + COUNT_LASTS:
            self._counts = {each: kept for each, kept in self._counts.items() if now < kept.at + COUNT_LASTS}
            count = self._counts[destination] = self._counted(destination, now)
        limits = self._waiting.limits
        over = (
            count.in_flight + 1 > max(1, limits.max_in_flight * SHARE)
            or count.in_flight_size + size > max(1, limits.max_in_flight_bytes * SHARE)
            or count.waiting + 1 > max(1, limits.max_buffered * SHARE)
            or count.waiting_size + size > max(1, limits.max_buffered_bytes * SHARE)
        )
        if not over:
            # It will wait, and then be in flight; until the next count it counts as both.
            count.in_flight += 1
            count.in_flight_size += size
            count.waiting += 1
            count.waiting_size += size
        return over

    def _counted(self, destination: tuple[str, str], now: float) -> _Count:
        count = _Count(now)
        for delivery in self._in_flight.deliveries():
            envelope = delivery.envelope
            if (envelope.exchange, envelope.routing_key) == destination:
                count.in_flight += 1
                count.in_flight_size += delivery.size
        for delivery in self._waiting.live():
            envelope = delivery.envelope
            if (envelope.exchange, envelope.routing_key) == destination:
                count.waiting += 1
                count.waiting_size += delivery.size
        return count

    def free(self, now: float) -> None:
        """Take the places that overdue destinations hold beyond their share out of the window, if it is full.

        Messages that were written before their destination was known to be unhealthy may fill the window. From then on the
        others get `confirm_timeout` for an answer before the link is silent.
        """
        waiting, in_flight = self._waiting, self._in_flight
        if not in_flight.overdue:
            waiting.excess = waiting.excess_size = 0
            return
        if self._freed_at <= now < self._freed_at + COUNT_LASTS:
            return
        self._freed_at = now
        crowded, waiting.excess, waiting.excess_size = waiting.crowded, 0, 0
        if waiting.has_place(1):
            return
        counts: dict[tuple[str, str], _Count] = {}
        for delivery in in_flight.deliveries():
            destination = delivery.envelope.exchange, delivery.envelope.routing_key
            if destination in in_flight.overdue:
                count = counts.setdefault(destination, _Count(now))
                count.in_flight += 1
                count.in_flight_size += delivery.size
        limits = waiting.limits
        excess = sum(max(0, each.in_flight - max(1, int(limits.max_in_flight * SHARE))) for each in counts.values())
        size = sum(max(0, each.in_flight_size - int(limits.max_in_flight_bytes * SHARE)) for each in counts.values())
        waiting.excess = min(excess, limits.max_in_flight)
        waiting.excess_size = min(size, limits.max_in_flight_bytes)
        if waiting.crowded and not crowded:
            in_flight.answered_at = now
