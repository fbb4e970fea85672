"""`add` and `add_async`: a message in the application's own transaction. No producer and no event loop is needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, cast

from warrener.outbox._rows import encode
from warrener.outbox.errors import OutboxProblem, OutboxUnusable
from warrener.outbox.records import NewRow, Stored
from warrener.records import Message

__all__ = ["add", "add_async"]

_COLUMNS = "message_id, key, exchange, routing_key, properties, body"
_SQLITE = f"INSERT INTO warrener_outbox ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
_POSTGRES = f"INSERT INTO warrener_outbox ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s) RETURNING position"  # noqa: S608


def add(connection: Any, message: Message, *, key: str | None = None) -> Stored:
    """Store a message in the open transaction of `connection`; it is published if and when the transaction commits.

    `connection` is a `sqlite3.Connection`, a psycopg 3 connection or cursor, or anything else with the `execute` of
    either (Django's ``connection.cursor()``; for SQLAlchemy, ``session.connection().connection.driver_connection``).
    Raises `OutboxUnusable` where the database has no outbox table, and TypeError for a connection without `execute`. `max_rows` and `max_bytes` are not checked here: a
    full outbox must not undo the application's own work.
    """
    row = encode(message, key)
    try:
        if not hasattr(connection, "execute"):
            raise TypeError(
                f"{type(connection).__name__} has no execute(); for Django pass a cursor: with connection.cursor() as cursor"
            )
        if isinstance(connection, sqlite3.Connection | sqlite3.Cursor):
            position = connection.execute(_SQLITE, _values(row)).lastrowid
        else:
            answer = connection.execute(_POSTGRES, _values(row))
            # The execute() of a DB-API cursor need not return the cursor.
            position = _first((answer if hasattr(answer, "fetchone") else connection).fetchone())
    except Exception as error:
        raise _explained(error) from error
    assert position is not None
    return Stored(row.message_id, position)


async def add_async(connection: Any, message: Message, *, key: str | None = None) -> Stored:
    """Do the same as `add` with a psycopg `AsyncConnection` or its cursor."""
    row = encode(message, key)
    try:
        answer = await connection.execute(_POSTGRES, _values(row))
        position = _first(await answer.fetchone())
    except Exception as error:
        raise _explained(error) from error
    return Stored(row.message_id, position)


def _values(row: NewRow) -> tuple[object, ...]:
    return row.message_id, row.key, row.exchange, row.routing_key, row.properties, row.body


def _first(found: Any) -> int:
    """The only column of a row, whatever the connection's row factory makes of rows."""
    if isinstance(found, Mapping):
        return next(iter(cast("Mapping[str, int]", found).values()))
    position: int = found[0]
    return position


def _explained(error: Exception) -> Exception:
    text = str(error)
    missing = "no such table: warrener_outbox" in text or getattr(error, "sqlstate", None) == "42P01"
    if missing:
        return OutboxUnusable(
            OutboxProblem.MISSING,
            "this database has no outbox table; make it with: warrener outbox init FILE-OR-DSN",
        )
    return error
