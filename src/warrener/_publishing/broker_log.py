"""Log lines that can come again and again: returned messages, blocked publishing, forbidden attempts. Each has a limit."""

from __future__ import annotations

import logging
import math

from warrener._log_limit import WINDOW, LogLimit
from warrener.errors import printable
from warrener.records import Returned

__all__ = ["BlockedLog", "ReturnsLog", "SuppressedLog"]

log = logging.getLogger("warrener")


class ReturnsLog:
    """Logs returned messages, never their body or headers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit = LogLimit()

    def note(self, returned: Returned, now: float) -> None:
        """Log one returned message, or count it."""
        if left_out := self._limit.left_out(now):
            log.warning("%s: %d more returned messages were not logged one by one", self._name, left_out)
        if self._limit.allows():
            log.warning(
                "%s: returned by the broker: %s, code %d %s",
                self._name,
                returned.shown,
                returned.reply_code,
                returned.reply_text,
            )


class BlockedLog:
    """Logs that the broker blocks publishing, and that it takes publishes again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit = LogLimit()
        #: Whether the last line says that publishing is blocked.
        self._told_blocked = False

    def blocked(self, reason: str, now: float) -> None:
        """Log that publishing is blocked, or count it."""
        if left_out := self._limit.left_out(now):
            log.warning("%s: the broker blocked publishing %d more times", self._name, left_out)
        if self._limit.allows():
            self._told_blocked = True
            log.warning("%s: the broker blocks publishing: %s", self._name, printable(reason))

    def unblocked(self) -> None:
        """Log that the broker takes publishes again, if the log says that it does not."""
        if self._told_blocked:
            self._told_blocked = False
            log.info("%s: the broker takes publishes again", self._name)


class SuppressedLog:
    """Logs how many further attempts were forbidden since the last line, at most one line in 10 seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged = 0
        self._next_at = -math.inf

    def note(self, suppressed: int, now: float) -> None:
        """Log the number of forbidden attempts, `suppressed` since the start, if it has grown and a line is due."""
        if suppressed == self._logged or now < self._next_at:
            return
        log.warning(
            "%s: %d further attempts were not made (%d since the start): the retry budget is used up, or a destination has"
            " too many messages that wait for an attempt",
            self._name,
            suppressed - self._logged,
            suppressed,
        )
        self._logged, self._next_at = suppressed, now + WINDOW
