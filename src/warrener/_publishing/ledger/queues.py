"""`WaitingQueue`: messages that wait to be written, first in, first out; `CountedQueue`: one of several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from warrener._publishing.ledger.delivery import Delivery

__all__ = ["SLACK", "CountedQueue", "WaitingQueue"]

#: A structure that deletes lazily may hold this many dead entries beyond the number of its live ones.
SLACK = 64


class WaitingQueue:
    """Messages that wait to be written, first in, first out; removing one from the middle costs O(1).

    A removed message leaves a dead entry behind. Dead entries are dropped when they reach the head, and all at once
    when they outnumber the live ones by `SLACK`.
    """

    __slots__ = ("dead", "entries", "size")

    def __init__(self) -> None:
        self.entries: deque[Delivery] = deque()
        #: Bytes of the bodies of the live entries.
        self.size = 0
        self.dead = 0

    def __len__(self) -> int:
        return len(self.entries) - self.dead

    def live(self) -> list[Delivery]:
        """Return the live entries, in order."""
        return [delivery for delivery in self.entries if delivery.queue is self]

    def append(self, delivery: Delivery) -> None:
        """Put the message behind all others."""
        delivery.queue = self
        self.size += delivery.size
        self.entries.append(delivery)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Put the messages, in their order, in front of all others."""
        for delivery in deliveries:
            delivery.queue = self
            self.size += delivery.size
        self.entries.extendleft(reversed(deliveries))

    def take_all(self) -> list[Delivery]:
        """Remove and return the live entries, in order. No dead entry stays, so that they may come back."""
        taken = self.live()
        for delivery in taken:
            delivery.queue = None
        self.entries.clear()
        self.size = self.dead = 0
        return taken

    def head(self) -> Delivery | None:
        """Return the first live entry."""
        entries = self.entries
        while entries:
            delivery = entries[0]
            if delivery.queue is self:
                return delivery
            entries.popleft()
            self.dead -= 1
        return None

    def take_head(self) -> None:
        """Remove the first entry, which the caller has seen to be live."""
        delivery = self.entries.popleft()
        self.size -= delivery.size
        delivery.queue = None

    def remove(self, delivery: Delivery) -> None:
        """Remove one live entry, wherever it stands."""
        delivery.queue = None
        self.size -= delivery.size
        if self.entries[0] is delivery:
            self.entries.popleft()
            return
        self.dead += 1
        if self.dead > len(self) + SLACK:
            self.entries = deque(self.live())
            self.dead = 0


class CountedQueue(WaitingQueue):
    """One of several queues that are counted together.

    It calls `count(delivery, 1)` for each message that comes, and `count(delivery, -1)` for each message that leaves.
    """

    __slots__ = ("_count",)

    def __init__(self, count: Callable[[Delivery, int], None]) -> None:
        super().__init__()
        self._count = count

    def append(self, delivery: Delivery) -> None:
        """Put the message behind all others."""
        super().append(delivery)
        self._count(delivery, 1)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Put the messages, in their order, in front of all others."""
        super().put_back(deliveries)
        for delivery in deliveries:
            self._count(delivery, 1)

    def take_head(self) -> None:
        """Remove the first entry."""
        self._count(self.entries[0], -1)
        super().take_head()

    def remove(self, delivery: Delivery) -> None:
        """Remove one live entry."""
        self._count(delivery, -1)
        super().remove(delivery)
