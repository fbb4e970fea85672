"""`running`: run a producer around the body of an ``async with`` statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc

if TYPE_CHECKING:
    from warrener._publishing.producer import Producer

__all__ = ["running"]


@asynccontextmanager
async def running(producer: Producer) -> AsyncIterator[Producer]:
    """Run this producer around a body, with the guarantees of `open_producer`."""
    with _one_task():
        async with _running(producer):
            yield producer


@contextmanager
def _one_task() -> Iterator[None]:
    """Explain the RuntimeError of a task group that one task enters and another task leaves."""
    entered = anyio.get_current_task().id
    try:
        yield
    except RuntimeError as error:
        if anyio.get_current_task().id == entered:
            raise
        raise RuntimeError(
            "one task began the producer's `async with` and another task ended it; begin and end it in one task. In a "
            "pytest-asyncio fixture, whose teardown is a task of its own, start a task that holds the `async with` open "
            "(docs/testing.md, 'A producer as a fixture of your own')"
        ) from error


@asynccontextmanager
async def _running(producer: Producer) -> AsyncIterator[None]:
    from_run: Exception | None = None
    from_body: BaseException | None = None
    cancelled = anyio.get_cancelled_exc_class()
    # A scope around the body alone. If `run()` fails, this scope cancels the body and absorbs that cancellation, so that
    # only errors of the body itself leave it.
    body = anyio.CancelScope()

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal from_run
        try:
            await producer.run(task_status=task_status)
        except Exception as error:  # noqa: BLE001 - raised again, without an ExceptionGroup, behind the task group
            from_run = error
            body.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(run)
            except RuntimeError:  # `run()` ended before it had started; its own error is raised below
                if from_run is None:
                    raise
            else:
                try:
                    with body:
                        yield
                except cancelled:
                    producer.abort()
                    raise
                except BaseException as error:  # noqa: BLE001 - raised again behind the task group, without an ExceptionGroup
                    from_body = error
                    producer.abort()
                    # A broker that does not answer connection.close may delay the error by this time at most.
                    tasks.cancel_scope.deadline = anyio.current_time() + producer.settings.abort_timeout
                else:
                    await producer.aclose()
    except cancelled:
        # An error that was on its way out is raised, not the cancellation that came later, as in any nursery.
        if from_body is None and from_run is None:
            raise
    if from_body is not None:
        context = from_run or from_body.__context__
        try:
            raise from_body
        finally:
            # `raise` sets the context of the error to the one that the caller of this generator is handling. Set it to
            # the error that ended `run()`, or to the context that the error had before, so that the traceback shows this.
            from_body.__context__ = context
    if from_run is not None:
        raise from_run
