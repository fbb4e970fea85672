"""Rows and errors of psycopg, as the outbox's own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors as pg

from warrener.errors import printable
from warrener.outbox._rows import decode
from warrener.outbox.errors import OutboxProblem, OutboxUnusable
from warrener.outbox.records import Entry, Row

__all__ = ["HAS_TIME", "TAKEN", "entries", "entry_of", "row_of", "unusable", "which"]


#: False for a value that another program wrote and that cannot be the instant of an insert, such as 'infinity'.
HAS_TIME: Final = "(stored_at BETWEEN '1970-01-01' AND '9999-12-30')"
#: The positions that a relay has claimed.
TAKEN: Final = "SELECT unnest(positions) FROM warrener_outbox_claim"


def row_of(claim: int, values: tuple[Any, ...]) -> Row:
    position, key, attempts, nacks, possible_duplicate, has_time, *columns = values
    message, problem = None, None
    try:
        message = decode(*columns)
    except ValueError as error:
        problem = str(error)
    if not has_time:
        message, problem = None, "column stored_at holds no time from 1970 to 9999; leave the column out"
    return Row(position, claim, key, message, attempts, nacks, possible_duplicate, problem)


def entries(condition: LiteralString, *, bodies: bool) -> LiteralString:
    """The query of the rows that `entry_of` takes. Its values: those of the condition twice, a state twice, the limit."""
    body = "body" if bodies else "''::bytea"
    return f"""
        SELECT * FROM (
            SELECT position, message_id, key, exchange, routing_key, properties, {_time("stored_at")}, attempts,
                   possible_duplicate, {_time("not_before")}, NULL::text, last_error, NULL::timestamptz,
                   CASE WHEN position IN ({TAKEN}) THEN 'leased' ELSE 'waiting' END AS state,
                   (SELECT min(s.position) FROM warrener_outbox_set_aside s WHERE s.key = o.key AND s.holds),
                   {body} AS body
                FROM warrener_outbox o WHERE {condition}
            UNION ALL
            SELECT position, message_id, key, exchange, routing_key, properties, {_time("stored_at")}, attempts,
                   possible_duplicate, NULL, reason, last_error, set_aside_at, 'set_aside', NULL, {body}
                FROM warrener_outbox_set_aside WHERE {condition}
        ) AS entries WHERE (%s::text IS NULL OR state = %s) ORDER BY position LIMIT %s"""  # noqa: S608 - constants


def _time(column: LiteralString) -> LiteralString:
    """The column; NULL where it holds no time of a row, or one that Python does not have, such as 'infinity'."""
    return f"CASE WHEN {column} BETWEEN '1970-01-01' AND '9999-12-30' THEN {column} END"


def entry_of(found: tuple[Any, ...]) -> Entry:
    (
        position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate, not_before,
        reason, last_error, set_aside_at, state, held_by, body,
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
        held_by=held_by,
        properties=properties,
        body=bytes(body),
    )


def which(ids: Sequence[int | str] | None) -> tuple[LiteralString, list[object]]:
    """The condition for rows by position (numbers) and by message id (text)."""
    if ids is None:
        return "true", []
    positions = [one for one in ids if isinstance(one, int) and -(1 << 63) <= one < 1 << 63]
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
        case pg.InsufficientPrivilege():
            return OutboxUnusable(
                OutboxProblem.FAILED,
                f"the user of the outbox's database lacks a permission ({quoted}); nothing was written; the owner of the"
                " tables can give it with GRANT (SELECT, INSERT, UPDATE and DELETE on each table whose name begins with"
                " warrener_outbox, USAGE on its sequences)",
            )
        case pg.DiskFull():
            return OutboxUnusable(
                OutboxProblem.FULL_DISK,
                f"there is no space for the outbox's database ({quoted}); this message was not stored, all stored"
                " messages stay; free some space",
            )
        case pg.LockNotAvailable() | pg.DeadlockDetected() | pg.QueryCanceled():
            return OutboxUnusable(
                OutboxProblem.LOCKED, f"another session blocked the outbox ({quoted}); nothing was written; try again"
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
