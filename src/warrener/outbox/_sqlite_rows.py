"""Rows and errors of sqlite3, as the outbox's own values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from warrener.errors import printable
from warrener.outbox._rows import decode
from warrener.outbox.errors import OutboxProblem, OutboxUnusable
from warrener.outbox.records import Entry, Row

__all__ = ["HAS_TIME", "entries", "entry_of", "row_of", "unusable", "which"]


#: False for a value that another program wrote and that is not seconds since 1970.
HAS_TIME: Final = "(typeof(stored_at) IN ('real', 'integer') AND stored_at BETWEEN 0 AND 253402300799)"


def row_of(claim: int, values: tuple[Any, ...]) -> Row:
    """SQLite keeps text in a column of numbers, and bytes in a column of text: another program may have stored them."""
    position, key, attempts, nacks, possible_duplicate, has_time, *columns = values
    try:
        message, problem = decode(*columns), None
    except ValueError as error:
        message, problem = None, str(error)
    if not isinstance(key, str | None):
        message, problem = None, "column key holds no text; it must hold text or NULL"
    if not has_time:
        message, problem = None, "column stored_at holds no time (seconds since 1970); leave the column out"
    return Row(position, claim, key, message, _number(attempts), _number(nacks), bool(possible_duplicate), problem)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def entries(condition: str, *, bodies: bool) -> str:
    """The query of the rows that `entry_of` takes. Its values: those of the condition twice, a state twice, the limit."""
    body = "body" if bodies else "x''"
    return f"""
        SELECT * FROM (
            SELECT position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate,
                   not_before, NULL, last_error, NULL,
                   CASE WHEN position IN (SELECT value FROM warrener_outbox_claim, json_each(positions))
                        THEN 'leased' ELSE 'waiting' END AS state,
                   (SELECT min(s.position) FROM warrener_outbox_set_aside s WHERE s.key = o.key AND s.holds), {body}
                FROM warrener_outbox o WHERE {condition}
            UNION ALL
            SELECT position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate,
                   NULL, reason, last_error, set_aside_at, 'set_aside', NULL, {body}
                FROM warrener_outbox_set_aside WHERE {condition}
        ) WHERE (? IS NULL OR state = ?) ORDER BY position LIMIT ?"""  # noqa: S608 - constants


def entry_of(found: tuple[Any, ...]) -> Entry:
    (
        position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate, not_before,
        reason, last_error, set_aside_at, state, held_by, body,
    ) = found  # fmt: skip
    return Entry(
        position=position,
        message_id=str(message_id),
        key=None if key is None else str(key),
        exchange=str(exchange),
        routing_key=str(routing_key),
        state=state,
        attempts=_number(attempts),
        possible_duplicate=bool(possible_duplicate),
        stored_at=_instant(stored_at),
        not_before=_instant(not_before),
        reason=reason,
        last_error=last_error,
        set_aside_at=_instant(set_aside_at),
        held_by=held_by,
        properties=str(properties),
        body=body if isinstance(body, bytes) else str(body).encode(),
    )


def _instant(seconds: object) -> datetime | None:
    """The instant; None for a value that is not a time."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) and seconds >= 0 else None
    except (ValueError, OverflowError, OSError):
        return None


def which(ids: Sequence[int | str] | None) -> tuple[str, list[str]]:
    """The condition for rows by position (numbers) and by message id (text)."""
    if ids is None:
        return "1", []
    positions = [one for one in ids if isinstance(one, int)]
    names = [one for one in ids if isinstance(one, str)]
    return (
        "(position IN (SELECT value FROM json_each(?)) OR message_id IN (SELECT value FROM json_each(?)))",
        [json.dumps(positions), json.dumps(names)],
    )


def unusable(path: Path | str, error: sqlite3.Error, busy_timeout: float | None) -> OutboxUnusable:
    """The database's error as the outbox's; `busy_timeout` is None for a connection of the application's own."""
    name = getattr(error, "sqlite_errorname", "")
    quoted = printable(str(error), 200)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        waited = "the connection waits" if busy_timeout is None else f"busy_timeout ({busy_timeout:g} s)"
        return OutboxUnusable(
            OutboxProblem.LOCKED,
            f"{path} was locked by another program for longer than {waited}; nothing was written; try again, or find the"
            " program that keeps a transaction open",
        )
    if name == "SQLITE_NOTADB":
        return OutboxUnusable(
            OutboxProblem.NOT_OURS, f"{path} is no SQLite database, or it is encrypted; the file was not changed"
        )
    if name.startswith("SQLITE_CORRUPT"):
        return OutboxUnusable(
            OutboxProblem.CORRUPT,
            f"{path} is corrupt ({quoted}); the file was not changed; restore a backup, or move the file away and"
            " rescue its rows with: sqlite3 FILE .recover",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return OutboxUnusable(
            OutboxProblem.READ_ONLY,
            f"{path} cannot be written ({quoted}); SQLite writes files beside it even to read it; give this user the"
            " permission to write to the file and to its folder",
        )
    if name == "SQLITE_FULL":
        return OutboxUnusable(
            OutboxProblem.FULL_DISK,
            f"there is no space for {path} ({quoted}); this message was not stored, all stored messages stay; free"
            " some space",
        )
    return OutboxUnusable(OutboxProblem.FAILED, f"{path}: {quoted} ({name or 'no code'}); nothing was written")
