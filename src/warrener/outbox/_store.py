"""The interface between a relay and a database. Each call blocks: the relay makes it in a thread, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from warrener.outbox.records import Done, Entry, EntryState, OutboxStatus, Work

__all__ = ["Store"]


class Store(Protocol):
    """One connection to one outbox. Every method raises each error of the database as `OutboxUnusable`."""

    #: What the command line calls the outbox, as a shell takes it; never with a password.
    place: str
    #: Whether a call can take long, so that it must be made in a thread.
    blocks: bool

    def open(self) -> None:
        """Connect, and check that the database holds an outbox; idempotent."""
        ...

    def close(self) -> None:
        """Disconnect; idempotent."""
        ...

    def transact(self, work: Work, token: str, lease: float) -> Done:
        """Do the work in one transaction, which is on disk when this returns."""
        ...

    def release(self, token: str) -> None:
        """Give up the relay's claims and its lease."""
        ...

    def interrupt(self) -> None:
        """From another thread: make the call that is under way fail soon."""
        ...

    async def wait_hint(self) -> None:
        """Return when another program may have stored a row; a store without hints waits for ever."""
        ...

    def last_position(self) -> int:
        """The highest position that was ever given."""
        ...

    def status(self) -> OutboxStatus:
        """Count the rows."""
        ...

    def entries(
        self, state: EntryState | None, ids: Sequence[int | str] | None, limit: int, *, bodies: bool
    ) -> list[Entry]:
        """Rows in their order."""
        ...

    def retry(self, ids: Sequence[int | str]) -> int:
        """Let set-aside rows, and rows that wait for their retry, be published now; return how many."""
        ...

    def drop(self, ids: Sequence[int | str]) -> int:
        """Delete rows that no relay has claimed; return how many."""
        ...
