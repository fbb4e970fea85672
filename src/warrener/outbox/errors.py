"""The errors of an outbox. Each text is one sentence: what is wrong, that nothing was changed, and what to do."""

from __future__ import annotations

import enum

from warrener.errors import WarrenerError

__all__ = ["OutboxError", "OutboxFull", "OutboxNotFlushed", "OutboxProblem", "OutboxUnusable"]


class OutboxError(WarrenerError):
    """The base of every error of an outbox.

    If `enqueue` raises one, its message was not stored, unless the error's text says that the message may be stored.
    """


class OutboxFull(OutboxError):
    """The outbox holds `max_rows` rows or `max_bytes` bytes; the new message was not stored, the stored ones stay."""

    def __init__(self, *, rows: int, size: int, max_rows: int, max_bytes: int) -> None:
        super().__init__(rows, size, max_rows, max_bytes)
        self.rows = rows
        self.bytes = size
        self.max_rows = max_rows
        self.max_bytes = max_bytes

    def __str__(self) -> str:
        return (
            f"the outbox is full: it holds {self.rows:,} of at most {self.max_rows:,} rows and {self.bytes:,} of at most"
            f" {self.max_bytes:,} bytes; this message was not stored, all stored messages stay"
        )


class OutboxNotFlushed(OutboxError, TimeoutError):
    """`wait_flushed` ended at its timeout; the rows that still wait stay in the outbox. `reason` says why they wait."""

    def __init__(self, *, timeout: float, waiting: int, reason: str) -> None:
        super().__init__(timeout, waiting, reason)
        self.timeout = timeout
        self.waiting = waiting
        self.reason = reason

    def __str__(self) -> str:
        rows = "1 waiting row" if self.waiting == 1 else f"{self.waiting:,} waiting rows"
        return (
            f"after {self.timeout:g} s the outbox still holds {rows}, because {self.reason}; every waiting row stays"
            " stored and is published later"
        )


class OutboxProblem(enum.Enum):
    """Why an outbox cannot be used."""

    MISSING = "missing"
    """The database has no outbox table, or there is no such file or folder."""
    NOT_OURS = "not_ours"
    """The file belongs to another program, or is no SQLite database."""
    NEWER_SCHEMA = "newer_schema"
    CORRUPT = "corrupt"
    READ_ONLY = "read_only"
    FULL_DISK = "full_disk"
    LOCKED = "locked"
    """Another program held the database's write lock for longer than `busy_timeout`."""
    NETWORK_FILE = "network_file"
    UNREACHABLE = "unreachable"
    """The database server does not answer, or it refuses the connection."""
    FAILED = "failed"
    """Another error of the database; the text quotes it."""


class OutboxUnusable(OutboxError):
    """The outbox cannot be opened or written; `problem` says why, and nothing was overwritten."""

    def __init__(self, problem: OutboxProblem, text: str) -> None:
        super().__init__(problem, text)
        self.problem = problem
        self.text = text

    def __str__(self) -> str:
        return self.text
