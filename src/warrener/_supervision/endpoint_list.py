"""`EndpointList`: the endpoints behind the machine's indexes, and where they come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from warrener._supervision.lookups import asked
from warrener.records import Endpoint

__all__ = ["EndpointList"]


class EndpointList:
    """The configured endpoints, or with `discover` those of the newest answer that the machine has taken."""

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        *,
        shuffle: Callable[[list[int]], object] | None = None,
        discover: Callable[[], Awaitable[Sequence[Endpoint]]] | None = None,
    ) -> None:
        self.discover = discover
        self._endpoints = endpoints
        #: Puts the first dials into a random order; None: they follow the list.
        self._shuffle = shuffle
        #: An answer whose event the machine has not seen yet.
        self._found: tuple[Endpoint, ...] | None = None

    def __len__(self) -> int:
        return len(self._endpoints)

    def at(self, index: int) -> Endpoint | None:
        """Return the endpoint with this index; None while no endpoint is known."""
        return self._endpoints[index] if index < len(self._endpoints) else None

    def order(self) -> tuple[int, ...]:
        """Return the order in which a pass dials the configured endpoints."""
        return self._ordered(len(self._endpoints))

    def _ordered(self, count: int) -> tuple[int, ...]:
        order = list(range(count))
        if self._shuffle is not None:
            self._shuffle(order)
        return tuple(order)

    async def ask(self, timeout: float) -> tuple[Endpoint, ...]:
        """Ask for the endpoints; raises `LinkDown`. `take` follows, unless the question has been replaced by another one."""
        assert self.discover is not None
        return tuple(dict.fromkeys(await asked("endpoints", self.discover, timeout)))

    def take(self, found: tuple[Endpoint, ...]) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
        """Take an answer for the machine. Return the index that each endpoint had, and the order for new ones."""
        before, self._found = self._endpoints, found
        kept = tuple(before.index(endpoint) if endpoint in before else None for endpoint in found)
        return kept, self._ordered(len(found))

    def dialed(self, index: int) -> Endpoint:
        """Return the endpoint that is dialed now. The machine's indexes are those of the newest answer from here on."""
        if self._found is not None:
            self._endpoints, self._found = self._found, None
        return self._endpoints[index]
