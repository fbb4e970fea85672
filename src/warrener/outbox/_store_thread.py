"""The calls of the store: in a thread where they block, one at a time, and interrupted where they take too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel
import anyio.to_thread

from warrener.outbox._store import Store
from warrener.outbox.errors import OutboxUnusable

__all__ = ["StoreThread"]

#: Seconds; a call of the store that takes longer is interrupted.
_STORE_TIMEOUT = 20.0

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class StoreThread:
    """Calls one store. `begin` comes first, within the event loop that makes the calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clock: Callable[[], float] | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        #: When the call that runs now began.
        self._began: float | None = None

    def begin(self, clock: Callable[[], float]) -> None:
        """Take the clock of the event loop."""
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(1)

    async def call(self, function: Callable[[Unpack[Arguments]], Answer], *arguments: *Arguments) -> Answer:
        """Call the store, in a thread where it blocks; one call at a time."""
        if not self._store.blocks:
            await anyio.lowlevel.checkpoint()
            return function(*arguments)
        assert self._clock is not None
        assert self._limiter is not None
        async with self._limiter:
            self._began = self._clock()
            try:
                return await anyio.to_thread.run_sync(function, *arguments)
            finally:
                self._began = None

    async def call_alone(self, function: Callable[[Unpack[Arguments]], Answer], *arguments: *Arguments) -> None:
        """Call the store while no task runs `interrupt_late_calls`; a call that takes too long is interrupted too."""
        failure: OutboxUnusable | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.interrupt_late_calls)
            try:
                await self.call(function, *arguments)
            except OutboxUnusable as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def interrupt_late_calls(self) -> None:
        """Interrupt each call that takes too long; runs until it is cancelled."""
        assert self._clock is not None
        while True:
            await anyio.sleep(_STORE_TIMEOUT / 4)
            if self._began is not None and self._clock() - self._began >= _STORE_TIMEOUT:
                self._store.interrupt()
