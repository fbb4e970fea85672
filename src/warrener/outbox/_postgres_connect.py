"""How the outbox connects to PostgreSQL: to the first database of a list that can be written, within a time limit."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from warrener.errors import printable
from warrener.outbox._postgres_rows import unusable
from warrener.outbox.errors import OutboxProblem, OutboxUnusable

__all__ = ["Connection", "Connector", "break_off", "one"]

Connection: TypeAlias = psycopg.Connection[Any]

#: libpq's own words for it quote a part of the string, which can be a part of the password.
UNREADABLE = "the connection string cannot be read; check its options; in a URL, write %40 for @, %2F for / and %25 for % in the user and the password"


class Connector:
    """Makes connections, for the relay's thread and for that of the hints."""

    def __init__(self, dsns: Sequence[str], connect_timeout: float) -> None:
        self._dsns = tuple(dsns)
        self._connect_timeout = connect_timeout
        #: Connections of which the first answers have not come.
        self._unready: set[Connection] = set()

    @contextmanager
    def made(self) -> Iterator[Connection]:
        """Connect; the body makes the connection ready, and can be interrupted. It is closed where the body raises."""
        db = self._connect()
        try:
            yield db
        except psycopg.Error as error:
            db.close()
            raise unusable(error) from error
        except BaseException:
            db.close()
            raise
        finally:
            self._unready.discard(db)

    def interrupt(self) -> None:
        """Break the connections that are not ready."""
        for db in tuple(self._unready):
            break_off(db)

    def _connect(self) -> Connection:
        failures: list[str] = []
        for dsn in self._dsns:
            if not _readable(dsn):
                failures.append(UNREADABLE)
                continue
            try:
                db = psycopg.connect(
                    dsn,
                    autocommit=True,
                    connect_timeout=max(2, round(self._connect_timeout)),
                    application_name="warrener outbox",
                    prepare_threshold=None,  # a pooler between us may give each transaction another session
                )
            except psycopg.Error as error:
                failures.append(_last_line(error))
                continue
            self._unready.add(db)
            try:
                writable = one(db, "SHOW transaction_read_only", ()) == "off"
            except psycopg.Error as error:
                failures.append(_last_line(error))
            else:
                if writable or len(self._dsns) == 1:
                    return db
                failures.append(f"{db.info.host} is read-only")
            self._unready.discard(db)
            db.close()
        raise OutboxUnusable(
            OutboxProblem.UNREACHABLE, f"the outbox's database cannot be reached: {'; '.join(failures)}"
        )


def _readable(dsn: str) -> bool:
    """Whether the string is a connection string whose host and ports cannot be the rest of an unescaped password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return False
    ports = str(parts.get("port") or "").split(",")
    return "@" not in str(parts.get("host") or "")[1:] and all(not port or port.isdecimal() for port in ports)


def _last_line(error: psycopg.Error) -> str:
    lines = [line for line in str(error).strip().splitlines() if line[:1].strip()]  # an indented line is a hint
    return printable(lines[-1] if lines else "no answer", 200)


def break_off(db: Connection) -> None:
    """End the connection for the thread that waits for its answer."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=socket.dup(db.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def one(db: Connection, query: LiteralString | sql.Composed, values: Sequence[object]) -> Any:
    """The first column of the first row; None where there is no row."""
    found = db.execute(query, values).fetchone()
    return None if found is None else found[0]
