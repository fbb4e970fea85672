"""`PostgresOutbox`: an outbox in a PostgreSQL database, perhaps the application's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from warrener.errors import SettingsError
from warrener.outbox._outbox import Outbox

if TYPE_CHECKING:
    from warrener.outbox._postgres_store import PostgresStore

__all__ = ["PostgresOutbox"]


class PostgresOutbox(Outbox):
    """An outbox in PostgreSQL 13 or newer; needs the extra `postgres`.

    The tables are made by ``warrener outbox init DSN``, or by `create`. Any number of relays on any number of machines may
    use them. Nothing is connected before a producer runs or a method is called.

    Args:
        dsn: a connection string or URL, or several of them: the first that can be written is used, after a failover too.
        max_rows: `enqueue` raises `OutboxFull` when the outbox holds this number of rows, as counted once a second.
        max_bytes: the same for the bytes of all bodies.
        attempts: a row is set aside after this number of nacks.
        on_poison: "hold": a set-aside row holds up the later rows of its key; "skip": they go on.
        lease: seconds for which a relay claims rows; it renews the lease while it lives.
        poll_interval: seconds between two looks; a NOTIFY wakes the relay sooner.
        publish_timeout: seconds for one attempt to publish.
        connect_timeout: seconds for one attempt to connect to one database.
    """

    def __init__(
        self,
        dsn: str | Sequence[str],
        *,
        max_rows: int = 1_000_000,
        max_bytes: int = 1 << 30,
        attempts: int = 5,
        on_poison: Literal["hold", "skip"] = "hold",
        lease: float = 30.0,
        poll_interval: float = 1.0,
        publish_timeout: float = 30.0,
        connect_timeout: float = 10.0,
    ) -> None:
        dsns = (dsn,) if isinstance(dsn, str) else tuple(dsn)
        if not dsns or not all(dsns):
            raise SettingsError("outbox: PostgresOutbox needs a connection string, or several")
        try:
            from warrener.outbox._postgres_store import PostgresStore
        except ImportError as error:
            raise ImportError("PostgresOutbox needs psycopg 3: pip install 'warrener[postgres]'") from error
        self._new_store: partial[PostgresStore] = partial(
            PostgresStore, dsns, max_rows=max_rows, max_bytes=max_bytes, connect_timeout=connect_timeout
        )
        super().__init__(
            self._new_store,
            attempts=attempts,
            on_poison=on_poison,
            lease=lease,
            poll_interval=poll_interval,
            publish_timeout=publish_timeout,
        )

    def __repr__(self) -> str:
        return "<PostgresOutbox>"  # a connection string may hold a password

    def create(self) -> None:
        """Make the tables where they are missing, in one transaction."""
        self._new_store().create()
