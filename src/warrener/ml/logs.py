"""How the service writes its log: for people, or one JSON object a line for machines. Both to standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

__all__ = ["JSONFormatter", "configure"]


class JSONFormatter(logging.Formatter):
    """One record, one line, one JSON object; ASCII only, so nothing in it can break a line or move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(form: Literal["human", "json"], level: str) -> None:
    """Send the log to standard error in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JSONFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The server announces its address, which the service does too; what it says of errors is kept.
    logging.getLogger("warrener.http").setLevel(logging.WARNING)
