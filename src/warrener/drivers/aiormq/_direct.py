"""The link on asyncio: the engine runs in the owner's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from warrener.drivers.aiormq._engine import Engine
from warrener.drivers.aiormq._link import AiormqLink, TaskEndpoint
from warrener.drivers.base import Link, LinkDown, LinkListener, LinkOptions
from warrener.errors import Fault
from warrener.records import Endpoint

__all__ = ["open_direct"]


@asynccontextmanager
async def open_direct(endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> AsyncGenerator[Link]:
    """Open a link in the running asyncio loop; see `warrener.drivers.base`."""
    loop = asyncio.get_running_loop()
    body = anyio.CancelScope()
    fault: Fault | None = None

    def down(reason: Fault) -> None:
        nonlocal fault
        fault = fault or reason
        body.cancel()

    def sent(size: int) -> None:
        if link.sent(size):
            task_endpoint.writable()

    async def call(method: str, *args: Any) -> Any:
        return await _answer(engine.spawn(getattr(engine.requests, method)(*args)))

    def wake() -> None:
        engine.work.set()

    def fail(reason: Fault) -> None:
        engine.fail(reason)

    link = AiormqLink(wake=wake, soon=loop.call_soon, call=call, fail=fail, pull=listener.pull)
    task_endpoint = TaskEndpoint(link, listener)
    engine = Engine(endpoint, options, task_endpoint, down=down, sent=sent)
    link.attach(engine)
    left = False
    try:
        link.peer = await _answer(engine.spawn(engine.open()))
        with body:
            yield link
            left = True
    finally:
        with anyio.CancelScope(shield=True):
            await _answer(loop.create_task(engine.stop(graceful=left and fault is None)))
        link.ended = True
    if fault is not None:
        raise LinkDown(fault) from None


async def _answer(task: asyncio.Task[Any]) -> Any:
    """Wait for a task of the engine's; a caller that is cancelled cancels it and does not wait."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        raise
    return task.result()
