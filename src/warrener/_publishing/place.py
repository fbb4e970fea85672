"""`Place`: the event loop in which a producer runs, and the errors for calls from other threads, loops and processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from weakref import WeakSet

from warrener.errors import ProducerClosed

__all__ = ["Place", "not_running"]

#: The thread of a place in a process that was forked from its own; no thread has this number.
FORKED = -1


class Place:
    """Where a producer runs. Every call that accepts a message compares its thread with `thread` first."""

    def __init__(self) -> None:
        #: The thread in which `enter` was called; 0 before that.
        self.thread = 0

    def enter(self) -> None:
        """The producer runs in the thread that calls this."""
        self.thread = threading.get_ident()
        _in_this_process.add(self)

    def leave(self) -> None:
        """The producer no longer runs."""
        _in_this_process.discard(self)

    def check(self) -> None:
        """Raise the RuntimeError for a call from elsewhere."""
        if threading.get_ident() != self.thread:
            raise self.error()

    def error(self) -> RuntimeError:
        """Return the error for a call from elsewhere."""
        if self.thread == FORKED:
            return RuntimeError(
                f"this producer runs in the process from which process {os.getpid()} was forked, and cannot be used here; "
                "make a new Producer in this process"
            )
        return RuntimeError(
            "this producer runs in the event loop of another thread, and nothing was accepted; call it in that loop, "
            "for instance with anyio.from_thread.run, or use a producer of its own in each thread"
        )


def not_running(*, closed: bool) -> Exception:
    """Return the error for a call to a producer that does not run yet, or that was closed before it ran."""
    if closed:
        return ProducerClosed("", "the producer is closed")
    return RuntimeError(
        "the producer is not running yet: await nursery.start(producer.run), or task_group.start(producer.run) with anyio, "
        "first; or use `async with` on it. asyncio.create_task(producer.run()) only schedules the start"
    )


_in_this_process: WeakSet[Place] = WeakSet()


def _after_fork_in_child() -> None:
    """The loops, tasks and sockets of these producers belong to the parent process."""
    for place in _in_this_process:
        place.thread = FORKED
    _in_this_process.clear()


_register: Callable[..., None] | None = getattr(os, "register_at_fork", None)
if _register is not None:  # Windows has no fork
    _register(after_in_child=_after_fork_in_child)
