"""The log lines that a broker can cause again and again: returned messages, and blocked publishing. Each kind has a limit."""

from __future__ import annotations

import logging

from warrener._log_limit import LogLimit
from warrener.errors import printable
from warrener.records import Returned

__all__ = ["BlockedLog", "ReturnsLog"]

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
                "%s: returned by the broker: exchange %r, routing key %r, code %d %s, message %s",
                self._name,
                printable(returned.exchange),
                printable(returned.routing_key),
                returned.reply_code,
                printable(returned.reply_text),
                printable(returned.message_id or "?"),
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
