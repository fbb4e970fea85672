"""`OutcomeStream`: the outcomes of one `publish_stream`, in the order of its source, at most a window of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from warrener._publishing.handles import PublishHandle, leave, outcome_of
from warrener._sources import reading
from warrener.errors import PublishError
from warrener.records import Body, Message, Receipt

__all__ = ["OutcomeStream", "streaming"]

#: Accepts one message, waiting for capacity, or returns the error with which it is refused.
Accept = Callable[[Body | Message], Awaitable[PublishHandle | PublishError]]


class OutcomeStream(AsyncIterator[Receipt | PublishError]):
    """The outcomes of one `publish_stream`; an error is an item and is not raised.

    An exception of the source is raised behind the outcomes of the messages that came before it.
    """

    def __init__(self, accept: Accept, window: int) -> None:
        self._accept = accept
        self._window = window
        #: Accepted or refused, and not read yet; in the order of the source.
        self._items: deque[PublishHandle | PublishError] = deque()
        self._ended = False
        #: The part of `feed` that ends with the body; the close of a generator goes on behind it.
        self._taking = anyio.CancelScope()
        self._error: Exception | None = None
        #: Whether the body has ended.
        self._left = False
        #: The exception that the source raised after the end of the body.
        self.from_close: Exception | None = None
        self._reading = anyio.ResourceGuard("reading from")
        #: `_news` is set when an item was added or the source has ended, `_room` when there is room for one more item.
        self._news = anyio.Event()
        self._room = anyio.Event()

    async def feed(self, source: AsyncIterable[Body | Message] | Iterable[Body | Message]) -> None:
        """Accept the messages of the source, as long as fewer than `window` outcomes are held."""
        try:
            if isinstance(source, AsyncIterable):
                async with reading(source) as messages:
                    with self._taking:
                        async for message in messages:
                            await self._add(message)
            else:
                with self._taking:
                    for message in source:
                        await self._add(message)
        except Exception as error:  # noqa: BLE001 - raised to the reader, or after the body if the body has ended
            if self._left:
                self.from_close = error
            else:
                self._error = error
        self._ended = True
        self._news.set()

    async def _add(self, message: Body | Message) -> None:
        if self._left:
            # The body ended after this task was woken: the checkpoint raises the cancellation; no message is accepted.
            await anyio.lowlevel.checkpoint()
        item = await self._accept(message)
        self._items.append(item)
        if self._left:
            self.leave()
        self._news.set()
        while len(self._items) >= self._window:
            self._room = anyio.Event()
            await self._room.wait()
            if self._left:
                # The cancellation is raised here, and not in a generator that would be asked for its next message.
                await anyio.lowlevel.checkpoint()

    async def __anext__(self) -> Receipt | PublishError:
        """Wait for the outcome of the next message. Only one task may wait at a time (`anyio.BusyResourceError`)."""
        with self._reading:
            return await self._next()

    async def _next(self) -> Receipt | PublishError:
        while not self._items:
            if self._ended:
                await anyio.lowlevel.checkpoint()
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        item = self._items[0]
        if isinstance(item, PublishError):
            await anyio.lowlevel.checkpoint()
            outcome: Receipt | PublishError = item
        else:
            outcome = await outcome_of(item)
        # No await follows: a cancelled reader leaves the outcome for the next one.
        self._items.popleft()
        self._room.set()
        return outcome

    def leave(self) -> None:
        """The body has ended: each message without an outcome is cancelled as if it had been published alone."""
        self._left = True
        self._taking.cancel()
        items, self._items = self._items, deque()
        for item in items:
            if isinstance(item, PublishHandle):
                leave(item)


@asynccontextmanager
async def streaming(
    accept: Accept, source: AsyncIterable[Body | Message] | Iterable[Body | Message], window: int
) -> AsyncIterator[OutcomeStream]:
    """Publish the source beside a body that reads the outcomes. The body's exception is raised without an ExceptionGroup."""
    if window < 1:
        raise ValueError(f"window must be the number of outcomes that are held, 1 or more, not {window!r}")
    stream = OutcomeStream(accept, window)
    from_body: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.feed, source)
        try:
            yield stream
        except Exception as error:  # noqa: BLE001 - raised again behind the task group, without an ExceptionGroup
            from_body = error
        finally:
            stream.leave()
    if from_body is not None:
        raise from_body
    if stream.from_close is not None:
        raise stream.from_close
