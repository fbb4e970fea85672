"""The part of a producer that is watched: its streams, counts and times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from attrs import asdict

from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener._publishing.destinations import Destinations
from warrener._publishing.ledger import Ledger
from warrener._publishing.streams import Changes, Outcomes, Streams
from warrener._supervision.supervisor import Supervisor
from warrener.errors import FaultKind
from warrener.records import Status

__all__ = ["Observing"]


class Observing(ABC):
    """Base class of `Producer`."""

    _streams: Streams
    _ledger: Ledger
    _destinations: Destinations
    _supervisor: Supervisor | None

    @abstractmethod
    def status(self) -> Status:
        """Return the producer at this instant."""

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Changes]:
        """Watch the producer: the present `Status` first, then one for each change, until CLOSED.

        At most 256 items wait for the reader; then the oldest one is dropped and counted in ``.missed``.
        """
        with self._streams.open(Changes(self.status())) as stream:
            yield stream

    @asynccontextmanager
    async def outcomes(self) -> AsyncIterator[Outcomes]:
        """Outcomes whose callers have left: of cancelled publishes, and answers that came after the deadline.

        At most 1,000 items wait for the reader; then the oldest one is dropped and counted in ``.missed``.
        """
        with self._streams.open(Outcomes()) as stream:
            yield stream

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts since the start, for metrics; accepted = confirmed + rejected + nacked + unknown + pending."""
        destinations = {"open_destinations": len({*self._destinations.open(), *self._ledger.overdue})}
        return {
            **asdict(self._ledger.counters),
            **destinations,
            **({} if self._supervisor is None else self._supervisor.counts.counters),
        }

    @property
    def faults(self) -> Mapping[FaultKind, int]:
        """Number of dials and links that each kind of fault ended."""
        return {} if self._supervisor is None else self._supervisor.counts.faults

    @property
    def reconnect_times(self) -> Histogram:
        """Seconds from the loss of a link until the next one is up."""
        return Histogram(RECONNECT_BOUNDS) if self._supervisor is None else self._supervisor.counts.reconnect_times
