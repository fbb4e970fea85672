"""What a user holds: an outbox that can be looked at from any process, and relayed by a producer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from warrener.errors import SettingsError
from warrener.outbox._decisions import RelayPolicy
from warrener.outbox._relay import Publisher, Relay
from warrener.outbox._store import Store
from warrener.outbox.records import Entry, EntryState, OutboxStatus

__all__ = ["Outbox"]


class Outbox:
    """What `SQLiteOutbox` and `PostgresOutbox` have in common.

    `status`, `entries`, `retry` and `drop` work in any process, with or without a running producer. They block for as
    long as the database does; an async program calls them as ``await anyio.to_thread.run_sync(outbox.entries)``.
    """

    def __init__(
        self,
        make_store: Callable[[], Store],
        *,
        attempts: int,
        on_poison: Literal["hold", "skip"],
        lease: float,
        poll_interval: float,
        publish_timeout: float,
    ) -> None:
        self._make_store = make_store
        self._policy = RelayPolicy(attempts=attempts, on_poison=on_poison, lease=lease)
        for name, seconds in (("poll_interval", poll_interval), ("publish_timeout", publish_timeout)):
            if not 0 < seconds < float("inf"):
                raise SettingsError(f"outbox: {name} must be more than 0 seconds and finite, not {seconds!r}")
        self._poll_interval = poll_interval
        self._publish_timeout = publish_timeout
        self._relay: Relay | None = None

    # --- looking, and deciding about single rows --------------------------------------------------------------------

    def status(self) -> OutboxStatus:
        """The counts: from memory while a producer of this process relays (about a second old), otherwise counted now."""
        if self._relay is not None and not self._relay.ended:
            return self._relay.status()
        with self._opened() as store:
            return store.status()

    def entries(
        self,
        state: EntryState | None = None,
        *,
        ids: Iterable[int | str] | None = None,
        limit: int = 1_000,
        bodies: bool = True,
    ) -> list[Entry]:
        """The rows in their order, at most `limit`; `ids` are positions (numbers) and message ids (text)."""
        if state not in (None, "waiting", "leased", "set_aside"):
            raise ValueError(f'state must be "waiting", "leased", "set_aside" or None, not {state!r}')
        with self._opened() as store:
            return store.entries(state, None if ids is None else list(ids), limit, bodies=bodies)

    def retry(self, ids: Iterable[int | str]) -> int:
        """Let set-aside rows, and rows that wait for their next attempt, be published now; return how many.

        A row comes back to its old place: rows of its key that it held up follow it.
        """
        with self._opened() as store:
            return store.retry(list(ids))

    def drop(self, ids: Iterable[int | str]) -> int:
        """Delete rows for good; return how many. A row that a relay has claimed is not deleted."""
        with self._opened() as store:
            return store.drop(list(ids))

    @contextmanager
    def _opened(self) -> Iterator[Store]:
        store = self._make_store()
        try:
            store.open()
            yield store
        finally:
            store.close()

    # --- relaying ---------------------------------------------------------------------------------------------------

    def relay(self, producer: Publisher) -> Relay:
        """Make the relay that publishes this outbox through `producer`; one at a time for each `Outbox` object.

        ``open_producer(url, outbox=outbox)`` does this itself.
        """
        if self._relay is not None and not self._relay.ended:
            raise RuntimeError("this outbox object already belongs to a running producer; make one for each producer")
        self._relay = Relay(
            self._make_store(),
            producer,
            self._policy,
            poll_interval=self._poll_interval,
            publish_timeout=self._publish_timeout,
        )
        return self._relay
