"""`outbox_at`: the outbox that a command line or a setting names."""

from __future__ import annotations

import re
from typing import Any

from warrener.outbox.postgres import PostgresOutbox
from warrener.outbox.sqlite import SQLiteOutbox

__all__ = ["outbox_at"]

#: A URL of libpq, or its ``name=value`` form.
_DSN = re.compile(r"postgres(ql)?://|\s*(host|hostaddr|dbname|service|user|port)\s*=", re.IGNORECASE)


def outbox_at(place: str, **arguments: Any) -> SQLiteOutbox | PostgresOutbox:
    """Return the outbox at a place: a PostgreSQL connection string or URL, or else the path of a SQLite file."""
    if _DSN.match(place):
        arguments.pop("make", None)
        return PostgresOutbox(place, **arguments)
    return SQLiteOutbox(place, **arguments)
