"""`reading`: reads a caller's asynchronous source of messages, and closes its generator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

__all__ = ["reading"]

Item = TypeVar("Item")


@asynccontextmanager
async def reading(source: AsyncIterable[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """Return the iterator of the source. If it is a generator, it is closed at the end of the body, in the same task.

    A generator that is not read to its end would otherwise be closed by the garbage collector, with a warning. Its cleanup
    is not shielded: where the caller is cancelled, the cleanup is too, as in any nursery.
    """
    iterator = aiter(source)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await cast("AsyncGenerator[Any, None]", iterator).aclose()
