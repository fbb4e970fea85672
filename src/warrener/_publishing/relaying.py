"""How a producer runs the relay of its outbox; `warrener.outbox` has the outboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import anyio.abc

from warrener.records import Message, OutboxStatus, Receipt, Stored

__all__ = ["OutboxLike", "RelayLike", "running_beside"]


class RelayLike(Protocol):
    """The relay of one outbox through one producer."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = ...) -> None:
        """Relay until `stop`."""
        ...

    def stop(self) -> None:
        """Accept and claim nothing more; `run` returns when each known outcome is stored."""
        ...

    async def enqueue(self, message: Message, *, key: str | None = None) -> Stored:
        """Store one message."""
        ...

    async def enqueue_and_wait(self, message: Message, *, key: str | None = None, patience: float) -> Receipt | Stored:
        """Store one message, and wait for its confirm for `patience` seconds."""
        ...

    async def wait_flushed(self, timeout: float) -> None:
        """Wait until everything stored so far is confirmed or set aside."""
        ...

    def status(self) -> OutboxStatus:
        """The counts of the outbox, from the last time they were taken."""
        ...


class OutboxLike(Protocol):
    """What a producer takes as its outbox."""

    def relay(self, producer: Any) -> RelayLike:
        """Make the relay that publishes this outbox through the producer."""
        ...


@asynccontextmanager
async def running_beside(relay: RelayLike | None) -> AsyncIterator[None]:
    """Run the relay around a body, which calls `stop` at its end. Errors are raised without an ExceptionGroup.

    An outbox that cannot be opened raises before the body begins.
    """
    if relay is None:
        yield
        return
    from_relay: Exception | None = None
    from_body: Exception | None = None
    body = anyio.CancelScope()

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal from_relay
        try:
            await relay.run(task_status=task_status)
        except Exception as error:  # noqa: BLE001 - raised again behind the task group, without an ExceptionGroup
            from_relay = error
            body.cancel()

    cancelled = anyio.get_cancelled_exc_class()
    try:
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(run)
            except RuntimeError:  # `run()` ended before it had started; its own error is raised below
                if from_relay is None:
                    raise
            else:
                try:
                    with body:
                        yield
                except Exception as error:  # noqa: BLE001 - raised again behind the task group
                    from_body = error
                finally:
                    relay.stop()
    except cancelled:
        if from_body is None and from_relay is None:
            raise
    failure = from_body or from_relay
    if failure is not None:
        raise failure
