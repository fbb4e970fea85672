"""The outbox: messages that are on disk before they are published, and stay there until a broker has confirmed them.

See docs/outbox.md for the guarantees, the table, and how any program stores a message with plain SQL.
"""

from warrener.outbox._add import add, add_async
from warrener.outbox._outbox import Outbox
from warrener.outbox._relay import Relay
from warrener.outbox.errors import OutboxError, OutboxFull, OutboxNotFlushed, OutboxProblem, OutboxUnusable
from warrener.outbox.records import Entry, OutboxStatus, Stored
from warrener.outbox.sqlite import SQLiteOutbox

__all__ = [
    "Entry",
    "Outbox",
    "OutboxError",
    "OutboxFull",
    "OutboxNotFlushed",
    "OutboxProblem",
    "OutboxStatus",
    "OutboxUnusable",
    "Relay",
    "SQLiteOutbox",
    "Stored",
    "add",
    "add_async",
]
