"""The log line for each message that the broker returned, at most 10 in 10 seconds."""

from __future__ import annotations

import logging
import math

from warrener.errors import printable
from warrener.records import Returned

__all__ = ["ReturnsLog"]

log = logging.getLogger("warrener")

#: At most this many returned messages are logged in `WINDOW` seconds; further ones are counted, and the count is logged.
LIMIT = 10
WINDOW = 10.0


class ReturnsLog:
    """Logs returned messages, never their body or headers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._since = -math.inf
        self._logged = 0
        self._left_out = 0

    def note(self, returned: Returned, now: float) -> None:
        """Log one returned message, or count it."""
        if now - self._since >= WINDOW:
            if self._left_out:
                log.warning("%s: %d more returned messages were not logged one by one", self._name, self._left_out)
            self._since, self._logged, self._left_out = now, 0, 0
        if self._logged >= LIMIT:
            self._left_out += 1
            return
        self._logged += 1
        log.warning(
            "%s: returned by the broker: %s, code %d %s",
            self._name,
            returned.shown,
            returned.reply_code,
            printable(returned.reply_text),
        )
