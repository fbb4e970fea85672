"""How RabbitMQ turns settled publishes into basic.ack and basic.nack.

The rules are those of RabbitMQ's channel process, as its source (3.10) has them:

* queues answer with messages to the channel, which wait in its mailbox among the client's methods;
* after each method, and when the mailbox runs empty, the channel *flushes*: it sends everything that has been settled
  since the last flush, acks before nacks;
* in one flush, one ``multiple`` ack covers all acked tags that are lower than each unconfirmed and each nacked tag;
* in the same way one ``multiple`` nack covers all nacked tags that are lower than each unconfirmed and each acked tag;
* each other tag has an ack or a nack of its own, in ascending order;
* a single ack is never ``multiple``.

So a return may be followed by the confirms of other messages before its own ack comes. In RabbitMQ timing decides how many
waiting answers the channel sees before its next method; here a `Coalescing` decides it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from attrs import frozen

__all__ = ["Coalescing", "Confirms", "EveryBatch", "RandomCoalescing"]

QueueKey = TypeVar("QueueKey")


class Coalescing(Protocol):
    """Decides how many answers of queues are sent in one ack."""

    def taken(self, waiting: int, *, idle: bool) -> int:
        """Say how many of the waiting answers the channel takes before its next method, or, when idle, its next flush.

        Called when at least one waits; when idle, at least one is taken.
        """
        ...


class EveryBatch:
    """The default: take no answer between methods and all answers when idle, so answers that arrive together are one flush."""

    def taken(self, waiting: int, *, idle: bool) -> int:
        """See `Coalescing`."""
        return waiting if idle else 0


class RandomCoalescing:
    """Flush points drawn from an injected `random.Random`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def taken(self, waiting: int, *, idle: bool) -> int:
        """See `Coalescing`."""
        return self._rng.randint(1 if idle else 0, waiting)


@frozen
class Confirm:
    """One basic.ack or basic.nack."""

    accepted: bool
    tag: int
    multiple: bool


class Confirms(Generic[QueueKey]):
    """The confirms of one channel: the queues that each tag waits for, and the settled tags whose ack or nack is not sent yet."""

    def __init__(self) -> None:
        #: Tags in ascending order, each with the queues that have not answered.
        self._unconfirmed: dict[int, set[QueueKey]] = {}
        self._mailbox: deque[tuple[int, QueueKey, bool]] = deque()
        self._confirmed: list[int] = []
        self._rejected: list[int] = []
        self._last = 0

    def next_tag(self) -> int:
        """Count one publish."""
        self._last += 1
        return self._last

    def expect(self, tag: int, queues: set[QueueKey]) -> None:
        """Wait for these queues; without any, the publish is settled at once (an unroutable publish is acked)."""
        if queues:
            self._unconfirmed[tag] = queues
        else:
            self._confirmed.append(tag)

    def answer(self, tag: int, queue: QueueKey, accepted: bool) -> None:
        """Put a queue's answer into the mailbox."""
        self._mailbox.append((tag, queue, accepted))

    @property
    def waiting(self) -> int:
        """How many answers wait in the mailbox."""
        return len(self._mailbox)

    @property
    def pending(self) -> int:
        """Number of tags for which no ack or nack was sent."""
        return len(self._unconfirmed) + len(self._confirmed) + len(self._rejected)

    def take(self, count: int) -> None:
        """Take the oldest answers of the queues out of the mailbox, where they wait for the channel."""
        for _ in range(count):
            tag, queue, accepted = self._mailbox.popleft()
            queues = self._unconfirmed.get(tag)
            if queues is None:  # another queue refused it already
                continue
            if not accepted:
                del self._unconfirmed[tag]
                self._rejected.append(tag)
                continue
            queues.discard(queue)
            if not queues:
                del self._unconfirmed[tag]
                self._confirmed.append(tag)

    def flush(self) -> Iterator[Confirm]:
        """Yield the acks and nacks that are to be sent now."""
        confirmed, self._confirmed = sorted(self._confirmed), []
        rejected, self._rejected = sorted(self._rejected), []
        if len(confirmed) == 1:
            yield Confirm(True, confirmed[0], multiple=False)
        else:
            yield from self._coalesced(True, confirmed, rejected)
        yield from self._coalesced(False, rejected, confirmed)

    def _coalesced(self, accepted: bool, tags: list[int], others: list[int]) -> Iterator[Confirm]:
        if not tags:
            return
        cutoff = min([next(iter(self._unconfirmed), tags[-1] + 1), *others])
        together = [tag for tag in tags if tag < cutoff]
        if together:
            yield Confirm(accepted, together[-1], multiple=True)
        for tag in tags[len(together) :]:
            yield Confirm(accepted, tag, multiple=False)
