"""`Counts`: what metrics show about the connection since the start; docs/reference.md explains each name."""

from __future__ import annotations

from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener.errors import Fault, FaultKind
from warrener.machine import events

__all__ = ["Counts"]


class Counts:
    """Counts faults, dials and links, and how long each interruption was."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {
            "state_changes": 0, "reconnect_attempts": 0, "breaker_trips": 0, "dials_failed": 0, "links_lost": 0,
        }  # fmt: skip
        #: How often each kind of fault ended a dial or a link, or a question to the program.
        self.faults: dict[FaultKind, int] = {}
        #: Seconds from the loss of a link to the next one being up.
        self.reconnect_times = Histogram(RECONNECT_BOUNDS)
        self._down_since: float | None = None

    def fault(self, fault: Fault) -> None:
        """Count one fault."""
        self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1

    def ended(self, end: events.DialFailed | events.LinkLost | events.LinkClosed) -> None:
        """Count the end of a dial or of a link."""
        if isinstance(end, events.LinkClosed):
            return
        self.fault(end.fault)
        if isinstance(end, events.DialFailed):
            self.counters["dials_failed"] += 1
        else:
            self.counters["links_lost"] += 1
            if self._down_since is None:
                self._down_since = end.at

    def up(self, at: float) -> None:
        """Count the end of an interruption, if there was one."""
        if self._down_since is not None:
            self.reconnect_times.observe(at - self._down_since)
            self._down_since = None
