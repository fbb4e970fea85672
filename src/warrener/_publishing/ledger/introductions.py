"""Introductions: the first message to each exchange on each link, where it cannot close the main channel.

An exchange is *covered* when the broker has answered a message to it on this link. The default exchange is always covered.
The first message to any other exchange goes to the suspects' channel; others to it wait. At most `AT_ONCE` exchanges are
introduced at a time, pipelined. If the broker answers, or has not closed the channel `PASSES_AFTER` seconds later, the
exchange is covered, and the waiting messages go to the main channel, in order. So a name that never existed closes the
suspects' channel only. A probe of a remembered topic refusal is introduced in the same way, by exchange and routing key.
"""

from __future__ import annotations

import math
from collections import deque

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.queues import WaitingQueue

__all__ = ["AT_ONCE", "PASSES_AFTER", "Introductions"]

#: Maximum number of exchanges that are introduced at the same time.
AT_ONCE = 16
#: A broker that has not closed the channel for this number of seconds after an introduction has accepted it.
PASSES_AFTER = 1.0

#: An exchange, or an exchange and a routing key.
Key = str | tuple[str, str]


class IntroductionQueue(WaitingQueue):
    """The messages that wait for one introduction, counted in `Introductions` as well."""

    __slots__ = ("_all",)

    def __init__(self, all_queues: Introductions) -> None:
        super().__init__()
        self._all = all_queues

    def append(self, delivery: Delivery) -> None:
        """Put the message behind all others."""
        super().append(delivery)
        self._all.count(delivery, 1)

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Put the messages, in their order, in front of all others."""
        super().put_back(deliveries)
        for delivery in deliveries:
            self._all.count(delivery, 1)

    def take_head(self) -> None:
        """Remove the first entry."""
        self._all.count(self.entries[0], -1)
        super().take_head()

    def remove(self, delivery: Delivery) -> None:
        """Remove one live entry."""
        self._all.count(delivery, -1)
        super().remove(delivery)


class Introductions:
    """Which exchanges are covered on this link, and the messages that wait until theirs is."""

    def __init__(self) -> None:
        self.covered: set[str] = {""}
        #: Number and bytes of waiting messages that never had a tag, and of those that had one.
        self.unsent = 0
        self.unsent_size = 0
        self.tagged = 0
        self.tagged_size = 0
        self._queues: dict[Key, IntroductionQueue] = {}
        #: Keys whose messages wait for their introduction.
        self._to_introduce: deque[Key] = deque()
        #: Keys that are covered, and whose messages wait for the main channel.
        self.opened: deque[Key] = deque()
        #: The introductions that the broker has not answered, in the order in which they were written.
        self._under_way: dict[Key, Delivery] = {}

    def __len__(self) -> int:
        """Number of messages that wait."""
        return self.unsent + self.tagged

    def count(self, delivery: Delivery, by: int) -> None:
        """A message came into one of the queues, or left it."""
        if delivery.attempts:
            self.tagged += by
            self.tagged_size += by * delivery.size
        else:
            self.unsent += by
            self.unsent_size += by * delivery.size

    @property
    def waiting(self) -> bool:
        """Whether messages wait for their introduction."""
        return bool(self._to_introduce)

    def live(self) -> list[Delivery]:
        """Return all messages that wait."""
        return [delivery for queue in self._queues.values() for delivery in queue.live()]

    # --- waiting ----------------------------------------------------------------------------------------------------

    def add(self, key: Key, delivery: Delivery) -> None:
        """Let the message wait behind the others with this key."""
        self._queue(key).append(delivery)

    def put_back(self, key: Key, deliveries: list[Delivery]) -> None:
        """Let messages that come back wait in front of the others with this key, and be introduced before other keys.

        So at most `AT_ONCE` - 1 closes of the suspects' channel, each by another exchange, come before an exchange's turn.
        """
        self._queue(key).put_back(deliveries)
        waiting = self._to_introduce
        if waiting and waiting[-1] == key:  # as a new one is
            waiting.rotate(1)
        elif key in waiting:
            waiting.remove(key)
            waiting.appendleft(key)

    def _queue(self, key: Key) -> IntroductionQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = IntroductionQueue(self)
            (self.opened if self.covers(key) else self._to_introduce).append(key)
        return queue

    def covers(self, key: Key) -> bool:
        """Whether messages with this key may go to the main channel."""
        return key in self.covered if isinstance(key, str) else False

    # --- writing ----------------------------------------------------------------------------------------------------

    def ready(self) -> WaitingQueue | None:
        """Return a queue whose messages may go to the main channel."""
        while self.opened:
            queue = self._queues[self.opened[0]]
            if len(queue):
                return queue
            del self._queues[self.opened.popleft()]
        return None

    def due(self) -> WaitingQueue | None:
        """Return a queue whose first message may be written as an introduction."""
        if len(self._under_way) >= AT_ONCE:
            return None
        for _ in range(len(self._to_introduce)):
            key = self._to_introduce[0]
            queue = self._queues[key]
            if not len(queue):
                del self._queues[self._to_introduce.popleft()]
            elif key in self._under_way:
                self._to_introduce.rotate(-1)
            else:
                return queue
        return None

    def begin(self, key: Key, delivery: Delivery) -> None:
        """The message was written as an introduction."""
        self._under_way[key] = delivery

    def under_way(self, delivery: Delivery) -> Key | None:
        """Return the key that this message introduces."""
        return next((key for key, each in self._under_way.items() if each is delivery), None)

    # --- answers ----------------------------------------------------------------------------------------------------

    def answered(self, delivery: Delivery) -> None:
        """The broker has answered a message on the suspects' channel, so its exchange exists."""
        key = self.under_way(delivery)
        if key is not None:
            self._cover(key)
        elif (exchange := delivery.envelope.exchange) not in self.covered:
            self._cover(exchange)

    def _cover(self, key: Key) -> None:
        self._under_way.pop(key, None)
        if isinstance(key, str):
            self.covered.add(key)
        if key in self._to_introduce:
            self._to_introduce.remove(key)
            self.opened.append(key)

    def refused(self, exchange: str) -> None:
        """The broker has refused a message to this exchange: the next one has to be introduced again."""
        if exchange:
            self.covered.discard(exchange)
        if exchange in self.opened:
            self.opened.remove(exchange)
            self._to_introduce.append(exchange)

    def channel_ended(self) -> None:
        """The suspects' channel was closed: no introduction is under way any more."""
        self._under_way.clear()

    def pass_old(self, now: float, written: int) -> list[Delivery]:
        """Cover the exchanges whose introduction the broker has had for long enough; return those introductions.

        `written` is the highest tag of the suspects' channel that was written.
        """
        passed = [
            each for each in self._under_way.values() if each.published_at + PASSES_AFTER <= now and each.tag <= written
        ]
        for delivery in passed:
            self.answered(delivery)
        return passed

    def passes_at(self) -> float:
        """Return the instant at which the oldest introduction passes, or `math.inf`."""
        oldest = next(iter(self._under_way.values()), None)
        return math.inf if oldest is None else oldest.published_at + PASSES_AFTER

    def new_link(self) -> None:
        """A new link begins: every exchange has to be introduced again."""
        self.covered = {""}
        self._under_way.clear()
        self.opened.clear()
        self._to_introduce = deque(self._queues)
