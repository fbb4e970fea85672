"""The streams that a producer feeds and a user reads: `Changes` and `Outcomes`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from warrener.records import Outcome, Status

__all__ = ["Changes", "Outcomes", "Streams"]

#: Maximum number of items that wait for the reader of `changes()`; then the oldest one is dropped and counted.
CHANGES_LIMIT = 256
#: The same for `outcomes()`.
OUTCOMES_LIMIT = 1000

Item = TypeVar("Item")


class _Stream(Generic[Item]):
    """A bounded queue with one reader. The producer never waits for the reader."""

    def __init__(self, limit: int) -> None:
        self._items: deque[Item] = deque()
        self._limit = limit
        self._news = anyio.Event()
        self._ended = False
        self._being_read = False
        #: Number of items that were dropped because the reader was too slow.
        self.missed = 0

    def put(self, item: Item) -> None:
        """Add an item; the producer calls it."""
        if len(self._items) >= self._limit:
            self._items.popleft()
            self.missed += 1
        self._items.append(item)
        self._news.set()

    def end(self) -> None:
        """End the stream behind its last item; the producer calls it."""
        self._ended = True
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._being_read:
            raise RuntimeError("another task reads this stream already; open a second stream for a second reader")
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._being_read = True
        try:
            while not self._items:
                if self._ended:
                    raise StopAsyncIteration
                self._news = anyio.Event()
                await self._news.wait()
            return self._items.popleft()
        finally:
            self._being_read = False


class Changes(_Stream[Status]):
    """The items of `Producer.changes()`: the present status, then one for each change, until CLOSED."""

    def __init__(self, present: Status) -> None:
        super().__init__(CHANGES_LIMIT)
        self.put(present)


class Outcomes(_Stream[Outcome]):
    """The items of `Producer.outcomes()`."""

    def __init__(self) -> None:
        super().__init__(OUTCOMES_LIMIT)


AnyStream = TypeVar("AnyStream", Changes, Outcomes)


class Streams:
    """All open streams of one producer."""

    def __init__(self) -> None:
        self._streams: set[Changes | Outcomes] = set()
        self._ended = False

    @contextmanager
    def open(self, stream: AnyStream) -> Iterator[AnyStream]:
        """Feed this stream while the body runs."""
        if self._ended:
            stream.end()
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    def changed(self, status: Callable[[], Status]) -> None:
        """Tell the readers of changes; the status is made only if there is one."""
        present = None
        for stream in self._streams:
            if isinstance(stream, Changes):
                present = present or status()
                stream.put(present)

    def told(self, outcome: Outcome) -> None:
        """Tell the readers of outcomes."""
        for stream in self._streams:
            if isinstance(stream, Outcomes):
                stream.put(outcome)

    def end(self) -> None:
        """The producer is closed: end all streams, and those that are opened later."""
        self._ended = True
        for stream in self._streams:
            stream.end()
