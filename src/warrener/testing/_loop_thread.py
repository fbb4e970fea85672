"""Plain functions of an object that lives in an event loop, callable from the thread of a synchronous test as well."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


__all__ = ["LoopThread", "runs_in_loop"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class LoopThread:
    """The thread of an object's event loop and, when that is not the user's thread, the portal to it."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self.portal: BlockingPortal | None = None

    def enter(self) -> None:
        """Make the present thread the loop's thread."""
        self._thread = threading.get_ident()

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a plain function in the loop's thread, and wait for it when that is another thread."""
        if self._thread in (None, threading.get_ident()):
            return function()
        if self.portal is None:
            raise RuntimeError(
                "a method was called from another thread than that of the object's event loop; to call methods from "
                "any thread, make the object with in_thread()"
            )
        return self.portal.call(function)


class _InLoopThread(Protocol):
    @property
    def loop_thread(self) -> LoopThread: ...


Owner = TypeVar("Owner", bound=_InLoopThread)


def runs_in_loop(
    method: Callable[Concatenate[Owner, Parameters], Result],
) -> Callable[Concatenate[Owner, Parameters], Result]:
    """Have a plain method run in the thread of the object's event loop, wherever it is called."""

    @functools.wraps(method)
    def called(self: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self.loop_thread.call(lambda: method(self, *args, **kwargs))

    return called
