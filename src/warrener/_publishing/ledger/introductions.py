"""Introductions: the first message to each exchange on each link, where it cannot close the main channel.

An exchange is *covered* when the broker has answered a message to it on this link. The default exchange is covered until the
broker refuses a message to it.
The first message to any other exchange goes to the suspects' channel; others to it wait. If the broker answers, or has not
closed the channel `PASSES_AFTER` seconds later, the exchange is covered, and the waiting messages go to the main channel, in
order. So a name that never existed closes the suspects' channel only. A probe of a remembered refusal of a topic or a
property is introduced in the same way, by exchange and routing key.

Introductions are pipelined: at first `AT_ONCE_FIRST` exchanges at a time, one more for each that is covered, at most
`AT_ONCE`, and one alone after a close. So an exchange that exists is written at most twice beside names that do not exist,
and waits for at most `AT_ONCE` - 1 of them. Exchanges that were covered on an earlier link come before unknown ones.
"""

from __future__ import annotations

import math
from collections import deque

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.queues import CountedQueue, WaitingQueue

__all__ = ["AT_ONCE", "PASSES_AFTER", "SUSPECT_PASSES_AFTER", "Introductions", "next_pass", "passes_at"]

#: Maximum number of exchanges that are introduced at the same time, and that number on a new link.
AT_ONCE = 16
AT_ONCE_FIRST = 4
#: A broker that has not closed the channel for this number of seconds after an introduction has accepted it.
PASSES_AFTER = 1.0
#: The same for a suspect that goes alone. It may be shorter: if the close comes later, the suspect is tried again.
SUSPECT_PASSES_AFTER = 0.25

#: An exchange, or an exchange and a routing key.
Key = str | tuple[str, str]


def passes_at(delivery: Delivery, clock_floor: float) -> float:
    """Return the instant at which a message on the suspects' channel passes, if the broker says nothing.

    Before `clock_floor` the broker could not read, or bytes of ours were still leaving.
    """
    return max(delivery.published_at, clock_floor) + (SUSPECT_PASSES_AFTER if delivery.alone else PASSES_AFTER)


def next_pass(epoch: Epoch | None, clock_floor: float) -> float:
    """Return the instant at which the oldest message on the suspects' channel passes; `math.inf` if there is none."""
    outstanding = () if epoch is None else epoch.outstanding.values()
    oldest = next((each for each in outstanding if not each.passed), None)
    return math.inf if oldest is None else passes_at(oldest, clock_floor)


class Introductions:
    """Which exchanges are covered on this link, and the messages that wait until theirs is."""

    def __init__(self) -> None:
        self.covered: set[str] = {""}
        #: Exchanges that were covered on an earlier link, and were not refused since.
        self._known: set[str] = set()
        #: Number of exchanges that are introduced at the same time now.
        self._at_once = AT_ONCE_FIRST
        #: Number and bytes of waiting messages that never had a tag, and of those that had one.
        self.unsent = 0
        self.unsent_size = 0
        self.tagged = 0
        self.tagged_size = 0
        self._queues: dict[Key, CountedQueue] = {}
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
        self._put_first(key)

    def _put_first(self, key: Key) -> None:
        waiting = self._to_introduce
        if waiting and waiting[-1] == key:  # a key that was just added stands last
            waiting.rotate(1)
        elif key in waiting:
            waiting.remove(key)
            waiting.appendleft(key)

    def _queue(self, key: Key) -> CountedQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = CountedQueue(self.count)
            (self.opened if self.covers(key) else self._to_introduce).append(key)
            if key in self._known:
                self._put_first(key)
        return queue

    def covers(self, key: Key) -> bool:
        """Whether messages with this key may go to the main channel."""
        return key in self.covered

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
        if len(self._under_way) >= self._at_once:
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
        self._at_once = min(AT_ONCE, self._at_once + 1)
        if isinstance(key, str):
            self.covered.add(key)
        if key in self._to_introduce:
            self._to_introduce.remove(key)
            self.opened.append(key)

    def refused(self, exchange: str) -> None:
        """The broker has refused a message to this exchange: the next one has to be introduced again."""
        self.covered.discard(exchange)
        self._known.discard(exchange)
        if exchange in self.opened:
            self.opened.remove(exchange)
            self._to_introduce.append(exchange)

    def channel_closed(self) -> None:
        """The broker has closed the suspects' channel: no introduction is under way any more, and the next one goes alone."""
        self._under_way.clear()
        self._at_once = 1

    def new_link(self) -> None:
        """A new link begins: every exchange has to be introduced again."""
        self._known |= self.covered
        self.covered = {""}
        self._at_once = AT_ONCE_FIRST
        self._under_way.clear()
        self.opened.clear()
        self._to_introduce = deque(sorted(self._queues, key=lambda key: key not in self._known))
