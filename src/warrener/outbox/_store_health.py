"""Whether the store can be used: its newest failure, and the instant of the next try."""

from __future__ import annotations

import logging
import math

from warrener.outbox.errors import OutboxUnusable

__all__ = ["STORE_RETRY", "StoreHealth"]

_log = logging.getLogger("warrener.outbox")

#: Shortest and longest delay in seconds before a failed store is tried again. The delay doubles with each failure.
STORE_RETRY = (0.1, 5.0)


class StoreHealth:
    """The failures of a store since it last worked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.failure: OutboxUnusable | None = None
        #: Before this instant the relay does not try the store again.
        self.retry_at = -math.inf
        self._failures = 0

    def worked(self) -> None:
        """Note that a transaction was committed."""
        if self.failure is not None:
            _log.info("%s: the outbox can be written again", self._name)
        self.failure, self._failures, self.retry_at = None, 0, -math.inf

    def failed(self, error: OutboxUnusable, now: float) -> None:
        """Note a failure, log the first of its kind, and put off the next try."""
        if self.failure is None or self.failure.problem is not error.problem:
            _log.error("%s: the outbox cannot be used: %s", self._name, error)
        first, longest = STORE_RETRY
        self.failure = error
        self.retry_at = now + min(longest, first * 2.0 ** min(self._failures, 16))
        self._failures += 1
