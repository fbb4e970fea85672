"""Starting a thread without waiting for it.

`threading.Thread.start` waits until the new thread runs. Where the memory is short the thread may die before that, and the
caller, an event loop, would wait for ever. So a thread of a driver is started without a wait, and its owner does not rely on
it: a thread may never run.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

__all__ = ["start_thread"]


def start_thread(target: Callable[[], object]) -> None:
    """Start a daemon thread; raises RuntimeError where the operating system refuses it."""
    _thread.start_new_thread(target, ())
