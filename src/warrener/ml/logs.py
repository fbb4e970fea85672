"""The log of the service: for people, or one JSON object a line for machines. Both go to standard error.

A line is written by a thread of its own, because a pipe that nobody reads blocks its writer. The lines that wait are
bounded in number and size. A line that finds no place is dropped, and a later line tells how many were dropped.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

__all__ = ["BoundedHandler", "JSONFormatter", "RateLimit", "configure"]

#: Lines that may wait to be written, and the maximum size of one, in characters.
MAX_LINES = 1000
MAX_LINE = 8192
#: Seconds within which one line of each kind is written; the others are counted.
QUIET = 10.0
#: Seconds that the end of the process waits for the last lines.
LAST_LINES = 1.0


class JSONFormatter(logging.Formatter):
    """One record, one line, one JSON object; ASCII only, so no character can break a line or move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[: MAX_LINE // 2],
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)[-MAX_LINE // 4 :]
        return json.dumps(entry)


class BoundedHandler(logging.Handler):
    """Hands lines to a thread that writes them to a file descriptor; never waits."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(MAX_LINES)
        #: The number of lines dropped since the log last reported dropped lines.
        self.dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - logging's own way to tell of a wrong format string
            self.handleError(record)
            return
        try:
            self._lines.put_nowait(line[:MAX_LINE].encode(errors="backslashreplace") + b"\n")
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self.dropped = self.dropped, 0
            if dropped:
                told = logging.LogRecord(
                    "warrener", logging.WARNING, "", 0, "%d lines of the log were dropped", (dropped,), None
                )
                line += self.format(told).encode() + b"\n"
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:  # nobody can read the log any more
                continue

    def close(self) -> None:
        """Wait a moment for the last lines to be written."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            pass
        self._writer.join(LAST_LINES)
        super().close()


class RateLimit(logging.Filter):
    """Lets one record of each kind pass in `QUIET` seconds; the kind is the text before its arguments are filled in."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes; add to its text the number of records that were left out before it."""
        now, kind = self._clock(), str(record.msg)
        since, suppressed = self._seen.get(kind, (-QUIET, 0))
        if now < since + QUIET:
            self._seen[kind] = (since, suppressed + 1)
            return False
        self._seen[kind] = (now, 0)
        if suppressed:
            record.msg = f"{kind} (and {suppressed} more of this kind since the last line)"
        return True


def configure(form: Literal["human", "json"], level: str) -> None:
    """Send the log to standard error in this form."""
    handler = BoundedHandler(sys.stderr.fileno())
    handler.setFormatter(
        JSONFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The server tells of its start and end, as the service does; and clients can make it write a line for each request.
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(RateLimit())
