"""Where a publisher waits for its outcome, and the clock it waits by.

A publisher that waits for its confirm is parked and woken directly, without an event object or a cancel scope:
`warrener._on_trio` and `warrener._on_asyncio` say how. Both give the same guarantees:

* a parked task goes on exactly once: by `wake`, or by cancellation, never by both;
* when cancellation comes first, the task raises it, whether or not a `wake` still follows;
* when `wake` comes first, the task returns normally, even if a cancel scope is cancelled before it runs.

anyio's functions look up the running backend at each call, which costs as much as the rest of a publish. So everything a
publisher needs of the backend is looked up once, when `run()` begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import anyio.lowlevel
from sniffio import current_async_library

from warrener._on_asyncio import AsyncioBackend
from warrener._on_trio import PublicTrioBackend, TrioBackend, cancellation_can_be_asked, messages_can_be_reused
from warrener._ticket import Parked, Ticket

__all__ = ["Backend", "Parked", "backend"]

What = TypeVar("What", bound=Parked)


class Backend(Protocol):
    """The backend's way to park; chosen once per `run()`."""

    def clock(self) -> float:
        """The monotonic clock of the running loop, in seconds."""
        ...

    async def checkpoint_if_cancelled(self) -> None:
        """Raise the backend's cancellation if it is due."""
        ...

    def park(self, what: What, on_cancel: Callable[[What], None], /) -> Awaitable[None]:
        """Leave a ticket in `what.waiter`, then wait until the task is woken.

        When the task is cancelled, `on_cancel(what)` is called before Cancelled is raised: it forgets the ticket.
        """
        ...

    def wake(self, ticket: Any, /) -> None:
        """Let the task that holds the ticket go on; once per ticket."""
        ...

    # --- publishers: the same, at less cost for each message

    #: Called with the ticket of a publisher that is cancelled.
    leave: Callable[[Ticket], None]

    def ticket(self) -> Ticket | None:
        """Return a ticket for one message of the running task; None: the task may be cancelled, take `checked_ticket`.

        A ticket is used again once its publisher was woken.
        """
        ...

    async def checked_ticket(self) -> Ticket:
        """Raise the backend's cancellation if it is due; otherwise return a ticket."""
        ...

    def cancellations(self) -> int:
        """Return how often the running task was cancelled by `asyncio.Task.cancel()`; 0 on Trio."""
        ...

    def withhold(self, caught: Sequence[BaseException], before: int, /) -> None:
        """The running task caught cancellations, and does not raise them: it has a result, which would be lost.

        `before` is what `cancellations` returned before the first of them.

        A cancel scope cancels the task again at its next checkpoint. `asyncio.Task.cancel()` does not, so this backend raises the
        cancellation when the task asks for its next ticket.
        """
        ...

    def wait(self, ticket: Any, /) -> Awaitable[None]:
        """Park a publisher with the ticket that `ticket` returned; `leave` is called before Cancelled is raised."""
        ...

    def land(self, tickets: Sequence[Ticket], code: int, /) -> None:
        """Give the tickets the codes `code`, `code` + 1 …, and wake the publishers that wait with these tickets."""
        ...

    #: Whether a parked publisher can be cancelled some time before `leave` is called for it.
    leaves_late: bool

    def leaving(self, tickets: Sequence[Ticket], /) -> Sequence[Ticket]:
        """Return the tickets whose publishers are cancelled, and for which `leave` was not called yet."""
        ...


def backend() -> Backend:
    """Return the `Backend` for the event loop that runs."""
    if current_async_library() != "trio":
        return AsyncioBackend(anyio.lowlevel.current_token())
    known = messages_can_be_reused() and cancellation_can_be_asked()
    return TrioBackend() if known else PublicTrioBackend()
