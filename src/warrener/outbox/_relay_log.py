"""What a relay says of its rows: the log lines about single rows, and why rows wait.

A burst of rows is not one line for each row: see `LogLimit`.
"""

from __future__ import annotations

import logging
from typing import Final

from warrener._log_limit import LogLimit
from warrener.errors import printable
from warrener.outbox._decisions import INVALID_ROW
from warrener.outbox._rows import DUPLICATE_HEADER
from warrener.outbox.records import Again, OutboxStatus, SetAside, Settlement
from warrener.records import ConnectionState, Status

__all__ = ["RelayLog"]

_log = logging.getLogger("warrener.outbox")

#: The errors of a message end with this advice; here a command follows it.
_PUBLISH_AGAIN: Final = "publish it again"


class RelayLog:
    """The lines of one relay; `name` is that of its producer, `place` what the command line calls the outbox."""

    def __init__(self, name: str, place: str) -> None:
        self._name = name
        self._place = place
        #: By reason, so that a burst of one kind does not hide the others. The reasons are the names of a few classes.
        self._asides: dict[str, LogLimit] = {}
        self._agains = LogLimit()

    def settled(self, settlement: Settlement, now: float) -> None:
        """Log the rows that were set aside, and those that are published again."""
        if not settlement.set_aside and not settlement.again:
            return
        for aside in settlement.set_aside:
            self._asides.setdefault(aside.reason, LogLimit())
        self.count_left_out(now)
        for aside in settlement.set_aside:
            if self._asides[aside.reason].allows():
                self._set_aside(aside)
        for again in settlement.again:
            if self._agains.allows():
                self._again(again)

    def count_left_out(self, now: float) -> None:
        """Log how many rows had no line of their own, when the time of the limit is over; `math.inf`: now."""
        for reason, limit in self._asides.items():
            if left_out := limit.left_out(now):
                _log.warning(
                    "%s: %d more %s set aside (%s); this lists them: warrener outbox ls %s --state set_aside",
                    self._name, left_out, "row was" if left_out == 1 else "rows were", reason, self._place,
                )  # fmt: skip
        if left_out := self._agains.left_out(now):
            _log.info("%s: %d more %s published again", self._name, left_out, "row is" if left_out == 1 else "rows are")

    def took_over(self, rows: int) -> None:
        """Log that another relay left rows behind."""
        if rows:
            _log.warning(
                "%s: another relay ended before the outcome of %d of its rows was known; this relay publishes them again,"
                " with the header %s",
                self._name, rows, DUPLICATE_HEADER,
            )  # fmt: skip

    def why_rows_wait(self, producer: Status, outbox: OutboxStatus, *, holds: bool) -> str:
        """Return the first cause that is true now; `holds`: a row that is set aside holds up the later rows of its key."""
        if outbox.last_error is not None:
            return f"the outbox cannot be used: {outbox.last_error}"
        if producer.connection_state is not ConnectionState.CONNECTED:
            fault = f" (last fault: {producer.last_fault})" if producer.last_fault is not None else ""
            return f"there is no connection to the broker{fault}"
        if producer.blocked:
            return "the broker blocks publishing"
        if producer.open_destinations:
            places = ", ".join(printable(each) for each in producer.open_destinations)
            return f"the broker nacks messages or does not answer them, at: {places}"
        if outbox.set_aside and holds:
            one = outbox.set_aside == 1
            aside = "1 row that is set aside" if one else f"{outbox.set_aside:,} rows that are set aside"
            return f"later rows of the same key wait for {aside} (`warrener outbox ls {self._place}` shows them)"
        return (
            "the broker has not confirmed them yet, another relay has claimed them, or they wait for their next attempt"
        )

    def _set_aside(self, aside: SetAside) -> None:
        row = f"{self._place} {aside.position}"
        if aside.reason == INVALID_ROW:
            # A row that is no message is none after a retry either.
            where, advice = "", "; insert the message anew, with correct columns"
        else:
            where = f" (exchange {printable(aside.exchange)!r}, routing key {printable(aside.routing_key, 80)!r})"
            begins = "" if aside.error.endswith(_PUBLISH_AGAIN) else f"; to {_PUBLISH_AGAIN}"
            advice = f"{begins}: warrener outbox retry {row}"
        _log.warning(
            "%s: row %d%s was set aside (%s): %s%s; this deletes it: warrener outbox drop %s%s",
            self._name, aside.position, where, aside.reason, aside.error, advice, row,
            "; later rows of its key wait until then" if aside.holds else "",
        )  # fmt: skip

    def _again(self, again: Again) -> None:
        wait = f" in {again.delay:.0f} s" if again.delay else ""
        flag = f", with the header {DUPLICATE_HEADER}" if again.possible_duplicate else ""
        _log.info("%s: row %d is published again%s%s: %s", self._name, again.position, wait, flag, again.error)
