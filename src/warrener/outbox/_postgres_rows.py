"""Rows and errors of psycopg, as the outbox's own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg

from warrener.errors import printable
from warrener.outbox._rows import decode
from warrener.outbox.errors import OutboxProblem, OutboxUnusable
from warrener.outbox.records import Entry, Row

__all__ = ["entry_of", "row_of", "unusable", "which"]


def row_of(claim: int, values: tuple[Any, ...]) -> Row:
    position, key, attempts, nacks, possible_duplicate, *columns = values
    message, problem = None, None
    try:
        message = decode(*columns)
    except ValueError as error:
        problem = str(error)
    return Row(position, claim, key, message, attempts, nacks, possible_duplicate, problem)


def entry_of(found: tuple[Any, ...]) -> Entry:
    (
        position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate, not_before,
        reason, last_error, set_aside_at, state, body,
    ) = found  # fmt: skip
    return Entry(
        position=position,
        message_id=message_id,
        key=key,
        exchange=exchange,
        routing_key=routing_key,
        state=state,
        attempts=attempts,
        possible_duplicate=possible_duplicate,
        stored_at=stored_at,
        not_before=not_before,
        reason=reason,
        last_error=last_error,
        set_aside_at=set_aside_at,
        properties=properties,
        body=bytes(body),
    )


def which(ids: Sequence[int | str] | None) -> tuple[LiteralString, list[object]]:
    """The condition for rows by position (numbers) and by message id (text)."""
    if ids is None:
        return "true", []
    positions = [one for one in ids if isinstance(one, int)]
    names = [one for one in ids if isinstance(one, str)]
    return "(position = ANY(%s::bigint[]) OR message_id = ANY(%s::text[]))", [positions, names]


def unusable(error: psycopg.Error) -> OutboxUnusable:
    quoted = printable(str(error).strip().partition("\n")[0], 200)
    match error:
        case pg.UndefinedTable():
            return OutboxUnusable(
                OutboxProblem.MISSING, "the database has no outbox tables; make them with: warrener outbox init DSN"
            )
        case pg.ReadOnlySqlTransaction():
            return OutboxUnusable(
                OutboxProblem.READ_ONLY, f"the outbox's database cannot be written ({quoted}); nothing was written"
            )
        case pg.DiskFull():
            return OutboxUnusable(
                OutboxProblem.FULL_DISK,
                f"there is no space for the outbox's database ({quoted}); this message was not stored, all stored"
                " messages stay; free some space",
            )
        case pg.LockNotAvailable() | pg.DeadlockDetected() | pg.QueryCanceled():
            return OutboxUnusable(
                OutboxProblem.LOCKED, f"another session held up the outbox ({quoted}); nothing was written; try again"
            )
        case pg.IdleInTransactionSessionTimeout():
            return OutboxUnusable(
                OutboxProblem.UNREACHABLE,
                f"this process was paused in the middle of a transaction ({quoted}); nothing was written",
            )
        case _ if error.sqlstate is None or error.sqlstate[:2] in ("08", "57", "53"):
            return OutboxUnusable(
                OutboxProblem.UNREACHABLE, f"the outbox's database does not answer ({quoted}); nothing was written"
            )
        case _:
            return OutboxUnusable(
                OutboxProblem.FAILED, f"the outbox's database: {quoted} ({error.sqlstate}); nothing was written"
            )
