"""How much the outbox holds: when to count it again, and when a backlog is old enough for a line in the log."""

from __future__ import annotations

import logging
import math

from attrs import evolve

from warrener.outbox.records import OutboxStatus

__all__ = ["Counts"]

_log = logging.getLogger("warrener.outbox")

#: A backlog that is older than this many seconds is reported in the log; then again each time its age has doubled.
_OLD_BACKLOG = 300.0


class Counts:
    """The newest count of an outbox, and the instant of the next one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.newest = OutboxStatus(waiting=0, leased=0, set_aside=0, bytes=0, oldest_age=None)
        #: Whether this process wrote something since the newest count.
        self.changed = True
        #: Rows that this process had confirmed and deleted at that count.
        self._confirmed = 0
        self._next = -math.inf
        self._report_age = _OLD_BACKLOG

    @property
    def due(self) -> float:
        """When to count next. This process counts even if it wrote nothing, because other processes write as well."""
        return self._next + (0.0 if self.changed else 1.0)

    def now(self, confirmed: int) -> OutboxStatus:
        """Return the newest count without the rows that this process has confirmed since; `confirmed` of them in all."""
        newest, since = self.newest, max(0, confirmed - self._confirmed)
        leased = max(0, newest.leased - since)
        waiting = max(0, newest.waiting - (since - (newest.leased - leased)))
        return evolve(newest, waiting=waiting, leased=leased)

    def take(self, counts: OutboxStatus, confirmed: int, began: float, now: float) -> None:
        """Keep a count that was asked for at `began` and came at `now`; log a backlog that is old.

        `confirmed` is the number of rows that this process has confirmed, and that are deleted in the count.
        """
        # Counting a large outbox takes long: never more than a twentieth of the time.
        self._next = now + max(0.1, 20 * (now - began))
        self.changed = False
        self._confirmed = confirmed
        self.newest = counts
        age = counts.oldest_age or 0.0
        if age < _OLD_BACKLOG:
            self._report_age = _OLD_BACKLOG
        elif age >= self._report_age:
            self._report_age = 2 * age
            _log.warning(
                "%s: the oldest of %d rows in the outbox has waited %.0f s for its confirm",
                self._name, counts.backlog, age,
            )  # fmt: skip
