"""`Shares`: how much of the window and of the buffer an unhealthy destination holds, at most 10 %."""

from __future__ import annotations

from attrs import define

from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.waiting import Waiting

__all__ = ["SHARE", "Shares"]

#: The part of each limit that an unhealthy destination may hold.
SHARE = 0.1
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
            # The new message first waits and then is in flight; until the next count it is in both numbers.
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
