"""Intake: the calls of `enqueue` that wait until their rows are on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
from attrs import define

from warrener._backend import Backend
from warrener._ticket import Ticket
from warrener.outbox.errors import OutboxError
from warrener.outbox.records import NewRow, Stored
from warrener.records import Message

__all__ = ["Intake", "Pending"]

#: Rows and bytes that one transaction inserts, at most.
_INSERTS = 2_000
_INSERT_BYTES = 32 << 20


@define(eq=False)
class Pending:
    """One call of `enqueue`."""

    row: NewRow
    message: Message
    ticket: Ticket
    #: Whether the row is on its way to the disk; from here on cancelling takes nothing back.
    taken: bool = False
    result: int | OutboxError | None = None
    #: The argument of `Backend.wake`, while a cancelled caller waits for the disk.
    waiter: Any = None


class Intake:
    """Rows in the order of their calls; the relay takes them, and answers each once."""

    def __init__(self, wake: Callable[[], None]) -> None:
        #: Tells the relay that rows wait.
        self._wake = wake
        self._waiting: deque[Pending] = deque()
        self._backend: Backend | None = None
        self._cancelled: type[BaseException] = BaseException

    def begin(self, parking: Backend) -> None:
        """Callers wait on this backend."""
        self._backend = parking
        self._cancelled = anyio.get_cancelled_exc_class()
        parking.leave = _left

    @property
    def open(self) -> bool:
        """Whether `begin` was called."""
        return self._backend is not None

    async def store(self, row: NewRow, message: Message) -> Stored:
        """Return when the row is on disk; raise the store's error.

        Cancelled before the row was taken, nothing is stored. Cancelled later, the call waits for the disk and returns; the
        cancellation is raised at the next checkpoint, or by the next call where it was a `Task.cancel()`.
        """
        parking = self._backend
        assert parking is not None
        pending = Pending(row, message, parking.ticket() or await parking.checked_ticket())
        if not self._waiting:  # otherwise the relay knows already that rows wait
            self._wake()
        self._waiting.append(pending)
        before = parking.cancellations()
        try:
            await parking.wait(pending.ticket)
        except self._cancelled as cancelled:
            if not pending.taken:
                if pending.result is None:  # otherwise `end` has answered all calls
                    self._waiting.remove(pending)
                raise
            withheld = [cancelled]
            with anyio.CancelScope(shield=True):
                while pending.result is None:
                    try:
                        await parking.park(pending, _forget_waiter)
                    except self._cancelled as again:  # a `Task.cancel()`, which no scope keeps off
                        withheld.append(again)
            parking.withhold(withheld, before)
        result = pending.result
        if isinstance(result, int):
            return Stored(row.message_id, result)
        assert result is not None
        raise result

    def take(self) -> list[Pending]:
        """Return the rows of the next transaction."""
        taken: list[Pending] = []
        size = 0
        while self._waiting and len(taken) < _INSERTS and size < _INSERT_BYTES:
            one = self._waiting.popleft()
            one.taken = True
            size += len(one.row.body)
            taken.append(one)
        return taken

    def answer(self, pendings: Sequence[Pending], results: Iterable[int | OutboxError]) -> None:
        """Let each call return the position of its row, or raise its error."""
        assert self._backend is not None
        tickets: list[Ticket] = []
        for pending, result in zip(pendings, results, strict=True):
            pending.result = result
            ticket = pending.ticket
            if ticket.waiter is not None:
                tickets.append(ticket)
            elif pending.waiter is not None:
                waiter, pending.waiter = pending.waiter, None
                self._backend.wake(waiter)
        self._backend.land(tickets, 0)

    def end(self) -> None:
        """Nothing is stored any more: raise an error from each call whose row was not taken."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self.answer(waiting, [OutboxError("the producer closed before the message was stored") for _ in waiting])


def _left(ticket: Ticket) -> None:
    ticket.waiter = None


def _forget_waiter(pending: Pending) -> None:
    pending.waiter = None
