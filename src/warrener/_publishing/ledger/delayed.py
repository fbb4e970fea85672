"""`Delayed`: the messages that the broker nacked and that wait for the delay before their next attempt."""

from __future__ import annotations

import heapq
import math

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.queues import SLACK, WaitingQueue

__all__ = ["TOTAL", "Delayed"]

#: The part of the buffer that one destination's delayed messages may hold, and that of all destinations together.
SHARE = 0.1
TOTAL = 0.5


class Delayed(WaitingQueue):
    """Messages that wait for an instant. They count against the buffer, and no other message waits behind them.

    A message can come back after it has left, so no dead entry stays behind.
    """

    __slots__ = ("_by_destination", "_heap", "_max", "_max_size", "_serial")

    size: int

    def __init__(self, max_buffered: int, max_buffered_bytes: int) -> None:
        super().__init__()
        self._max = max_buffered
        self._max_size = max_buffered_bytes
        #: (instant, serial, message), earliest first; an entry is dead if the message left or waits for another instant.
        self._heap: list[tuple[float, int, Delivery]] = []
        self._serial = 0
        #: Number and bytes of the messages of each destination.
        self._by_destination: dict[tuple[str, str], tuple[int, int]] = {}

    def fits(self, delivery: Delivery) -> bool:
        """Whether the message stays within the share of its destination, and within that of all destinations."""
        count, size = self._by_destination.get(_destination(delivery), (0, 0))
        return (
            count + 1 <= max(1, self._max * SHARE)
            and size + delivery.size <= max(delivery.size, self._max_size * SHARE)
            and len(self) + 1 <= max(1, self._max * TOTAL)
            and self.size + delivery.size <= max(delivery.size, self._max_size * TOTAL)
        )

    def add(self, delivery: Delivery, ready_at: float) -> None:
        """Let the message wait until this instant."""
        delivery.ready_at = ready_at
        self.append(delivery)
        self._count(delivery, 1)
        self._serial += 1
        heapq.heappush(self._heap, (ready_at, self._serial, delivery))

    def remove(self, delivery: Delivery) -> None:
        """Remove one live entry."""
        delivery.queue = None
        self.size -= delivery.size
        self.entries.remove(delivery)
        self._count(delivery, -1)
        if len(self._heap) > 2 * len(self) + SLACK:
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def due_at(self) -> float:
        """Return the instant at which the next message is due, or `math.inf`."""
        heap = self._heap
        while heap and not self._is_live(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> Delivery | None:
        """Return the message that has been due for the longest time; None if none is due."""
        return self._heap[0][2] if self.due_at() <= now else None

    def _is_live(self, entry: tuple[float, int, Delivery]) -> bool:
        return entry[2].queue is self and entry[2].ready_at == entry[0]

    def _count(self, delivery: Delivery, by: int) -> None:
        destination = _destination(delivery)
        count, size = self._by_destination.get(destination, (0, 0))
        if count + by:
            self._by_destination[destination] = count + by, size + by * delivery.size
        else:
            del self._by_destination[destination]


def _destination(delivery: Delivery) -> tuple[str, str]:
    return delivery.envelope.exchange, delivery.envelope.routing_key
