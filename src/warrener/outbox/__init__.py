"""The outbox: messages that are on disk before they are published, and stay there until a broker has confirmed them.

See docs/outbox.md for the guarantees, the table, and how any program stores a message with plain SQL.
"""

from warrener.outbox._add import add, add_async
from warrener.outbox._outbox import Outbox
from warrener.outbox._relay import Relay
from warrener.outbox._schema import ddl
from warrener.outbox.errors import OutboxError, OutboxFull, OutboxNotFlushed, OutboxProblem, OutboxUnusable
from warrener.outbox.place import outbox_at
from warrener.outbox.postgres import PostgresOutbox
from warrener.outbox.records import Entry
from warrener.outbox.sqlite import SQLiteOutbox
from warrener.records import OutboxStatus, Stored

__all__ = [
    "Entry",
    "Outbox",
    "OutboxError",
    "OutboxFull",
    "OutboxNotFlushed",
    "OutboxProblem",
    "OutboxStatus",
    "OutboxUnusable",
    "PostgresOutbox",
    "Relay",
    "SQLiteOutbox",
    "Stored",
    "add",
    "add_async",
    "ddl",
    "outbox_at",
]
