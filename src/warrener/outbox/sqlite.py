"""`SQLiteOutbox`: an outbox in a SQLite file, on this machine's disk."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

from warrener.errors import SettingsError
from warrener.outbox._outbox import Outbox
from warrener.outbox._sqlite_store import SQLiteStore

__all__ = ["SQLiteOutbox"]


class SQLiteOutbox(Outbox):
    """An outbox in a SQLite file, which may be the application's own database.

    The tables are made when they are missing; nothing else in the file is changed, except that its journal mode becomes
    WAL. Any number of processes of one machine may use the file. Nothing is opened before a producer runs or a method is
    called. Raises `SettingsError` for an argument that is not allowed.

    Args:
        path: the file. Its folder must exist, on a disk of this machine.
        max_rows: `enqueue` raises `OutboxFull` when the file holds this number of rows.
        max_bytes: the same for the bytes of all bodies.
        attempts: a row is set aside after this number of nacks.
        on_poison: "hold": a set-aside row holds up the later rows of its key; "skip": they go on.
        lease: seconds for which a relay claims rows; it renews the lease while it lives.
        poll_interval: seconds between two looks for rows that another program has stored.
        publish_timeout: seconds for one attempt to publish.
        synchronous: "FULL": a stored message survives a power cut. "NORMAL" is faster, and a power cut or a crash of
            the operating system can lose the messages of the last moments; a crash of the process loses none.
        busy_timeout: seconds to wait while another program writes to the file.
        secure_delete: overwrite deleted rows with zeros.
        make: make the file and the tables when they are missing; False: `OutboxUnusable` is raised when they are.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        max_rows: int = 1_000_000,
        max_bytes: int = 1 << 30,
        attempts: int = 5,
        on_poison: Literal["hold", "skip"] = "hold",
        lease: float = 30.0,
        poll_interval: float = 0.25,
        publish_timeout: float = 30.0,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        busy_timeout: float = 5.0,
        secure_delete: bool = False,
        make: bool = True,
    ) -> None:
        if not str(path) or str(path) == ":memory:":
            raise SettingsError("outbox: a database in memory keeps nothing; give the path of a file")
        if synchronous not in ("FULL", "NORMAL"):
            raise SettingsError(f'outbox: synchronous must be "FULL" or "NORMAL", not {synchronous!r}')
        self.path = Path(path)
        super().__init__(
            partial(
                SQLiteStore,
                self.path,
                max_rows=max_rows,
                max_bytes=max_bytes,
                synchronous=synchronous,
                busy_timeout=busy_timeout,
                secure_delete=secure_delete,
                make=make,
            ),
            attempts=attempts,
            on_poison=on_poison,
            lease=lease,
            poll_interval=poll_interval,
            publish_timeout=publish_timeout,
        )

    def __repr__(self) -> str:
        return f"<SQLiteOutbox {str(self.path)!r}>"

    def create(self) -> None:
        """Make the tables where they are missing; a producer does this itself."""
        self.status()
