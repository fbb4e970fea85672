"""`Aside`: the messages that let younger ones pass, because their destination may take no more of the window."""

from __future__ import annotations

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.queues import CountedQueue

__all__ = ["Aside"]


class Aside:
    """Messages that never had a tag, in one queue for each destination. They go before younger messages to it."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], CountedQueue] = {}
        #: Number of messages, and bytes of their bodies.
        self.count = 0
        self.size = 0
        #: Whether a message of another destination has passed them since.
        self.passed = False

    def _note(self, delivery: Delivery, by: int) -> None:
        self.count += by
        self.size += by * delivery.size
        if not self.count:
            self.passed = False
            self.queues.clear()  # `Waiting.next` drops empty queues only while messages wait here

    def has(self, destination: tuple[str, str]) -> bool:
        """Whether messages of this destination were set aside, and wait."""
        queue = self.queues.get(destination)
        return queue is not None and len(queue) > 0

    def held(self, destination: tuple[str, str]) -> tuple[int, int]:
        """Return how many messages of this destination wait, and the bytes of their bodies."""
        queue = self.queues.get(destination)
        return (0, 0) if queue is None else (len(queue), queue.size)

    def add(self, destination: tuple[str, str], delivery: Delivery) -> None:
        """Let the message wait behind the others of its destination."""
        queue = self.queues.get(destination)
        if queue is None:
            queue = self.queues[destination] = CountedQueue(self._note)
        queue.append(delivery)

    def live(self) -> list[Delivery]:
        """Return all messages that wait."""
        return [delivery for queue in self.queues.values() for delivery in queue.live()]

    def take_all(self) -> list[Delivery]:
        """Remove and return all messages that wait, destination by destination."""
        taken = self.live()
        for delivery in taken:
            delivery.queue = None
        self.queues.clear()
        self.count = self.size = 0
        self.passed = False
        return taken
