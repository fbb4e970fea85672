"""`add` and `add_async`: a message in the application's own transaction. No producer and no event loop is needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from warrener.outbox import _sqlite_rows
from warrener.outbox._rows import encode
from warrener.outbox._schema import VERSION
from warrener.outbox.errors import OutboxProblem, OutboxUnusable
from warrener.outbox.records import NewRow, Stored
from warrener.records import Message

__all__ = ["add", "add_async"]

_COLUMNS = "message_id, key, exchange, routing_key, properties, body"
#: Nothing is inserted into tables of a newer version.
_KNOWN = f"WHERE (SELECT max(schema_version) FROM warrener_outbox_meta) <= {VERSION}"  # noqa: S608
_SQLITE = f"INSERT INTO warrener_outbox ({_COLUMNS}) SELECT ?, ?, ?, ?, ?, ? {_KNOWN}"
_POSTGRES = f"INSERT INTO warrener_outbox ({_COLUMNS}) SELECT %s, %s, %s, %s, %s, %s {_KNOWN} RETURNING position"


def add(connection: Any, message: Message, *, key: str | None = None) -> Stored:
    """Store a message in the open transaction of `connection`; it is published if and when the transaction commits.

    `connection` is a `sqlite3.Connection`, a psycopg 3 connection or cursor, or anything else with the `execute` of
    either (Django's ``connection.cursor()``; for SQLAlchemy, ``session.connection().connection.driver_connection``).
    Raises `OutboxUnusable` where the database has no outbox table or one of a newer version, where it is read-only, full
    or corrupt, and where a SQLite file is locked for longer than the connection waits; TypeError for a connection without
    `execute`. The database's other errors are raised as they are. `max_rows` and `max_bytes` are not checked here: a full
    outbox must not undo the application's own work.
    """
    row = encode(message, key)
    try:
        if not hasattr(connection, "execute"):
            raise TypeError(
                f"{type(connection).__name__} has no execute(); for Django pass a cursor: with connection.cursor() as cursor"
            )
        if isinstance(connection, sqlite3.Connection | sqlite3.Cursor):
            inserted = connection.execute(_SQLITE, _values(row))
            position = inserted.lastrowid if inserted.rowcount else _newer()
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
    """Return the only column of a row; the connection's row factory may make a row a mapping or a sequence."""
    if found is None:
        _newer()
    if isinstance(found, Mapping):
        return next(iter(cast("Mapping[str, int]", found).values()))
    position: int = found[0]
    return position


def _newer() -> NoReturn:
    raise OutboxUnusable(
        OutboxProblem.NEWER_SCHEMA,
        f"this database has outbox tables of a newer version, and this program knows version {VERSION}; the message was"
        " not stored; update warrener",
    )


def _explained(error: Exception) -> Exception:
    """Return the error to raise: `OutboxUnusable` where a person has to do something, otherwise the error itself."""
    # Django raises an error of its own, whose cause is the driver's.
    found = error if isinstance(error, sqlite3.Error) or error.__cause__ is None else error.__cause__
    text, state = str(found), getattr(found, "sqlstate", None)
    if "no such table: warrener_outbox" in text or state == "42P01":
        return OutboxUnusable(
            OutboxProblem.MISSING,
            "this database has no outbox table; make it with: warrener outbox init FILE-OR-DSN",
        )
    if "table warrener_outbox has no column" in text or state == "42703":
        return OutboxUnusable(
            OutboxProblem.NOT_OURS,
            "this database has a table warrener_outbox of another format; the message was not stored",
        )
    unusable: OutboxUnusable | None = None
    if isinstance(found, sqlite3.Error):
        unusable = _sqlite_rows.unusable("the application's database", found, None)
    elif state in ("25006", "53100"):  # read-only, disk full
        from warrener.outbox._postgres_rows import unusable as of_postgres

        unusable = of_postgres(cast("Any", found))
    return error if unusable is None or unusable.problem is OutboxProblem.FAILED else unusable
