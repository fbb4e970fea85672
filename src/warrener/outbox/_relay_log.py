"""What a relay writes to the log about single rows. A burst is not one line for each row: see `LogLimit`."""

from __future__ import annotations

import logging

from warrener._log_limit import LogLimit
from warrener.outbox._decisions import INVALID_ROW
from warrener.outbox._rows import DUPLICATE_HEADER
from warrener.outbox.records import Again, SetAside, Settlement

__all__ = ["RelayLog"]

_log = logging.getLogger("warrener.outbox")


class RelayLog:
    """The lines of one relay; `name` is that of its producer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asides = LogLimit()
        self._agains = LogLimit()

    def settled(self, settlement: Settlement, now: float) -> None:
        """Log the rows that were set aside, and those that are published again."""
        if not settlement.set_aside and not settlement.again:
            return
        self.count_left_out(now)
        for aside in settlement.set_aside:
            if self._asides.allows():
                self._set_aside(aside)
        for again in settlement.again:
            if self._agains.allows():
                self._again(again)

    def count_left_out(self, now: float) -> None:
        """Log how many rows had no line of their own, when the time of the limit is over; `math.inf`: now."""
        if left_out := self._asides.left_out(now):
            _log.warning(
                "%s: rows set aside without a line of their own: %d; `warrener outbox ls FILE-OR-DSN --state set_aside`"
                " lists them",
                self._name, left_out,
            )  # fmt: skip
        if left_out := self._agains.left_out(now):
            _log.info("%s: rows published again without a line of their own: %d", self._name, left_out)

    def took_over(self, rows: int) -> None:
        """Log that another relay left rows behind."""
        if rows:
            _log.warning(
                "%s: another relay ended before the outcome of %d of its rows was known; this relay publishes them again,"
                " with the header %s",
                self._name, rows, DUPLICATE_HEADER,
            )  # fmt: skip

    def _set_aside(self, aside: SetAside) -> None:
        at = aside.position
        # A row that is no message is none after a retry either.
        again = "insert it anew" if aside.reason == INVALID_ROW else f"warrener outbox retry FILE-OR-DSN {at}"
        _log.warning(
            "%s: row %d was set aside (%s): %s; to publish it again: %s; to delete it: warrener outbox drop FILE-OR-DSN %d%s",
            self._name, at, aside.reason, aside.error, again, at,
            "; later rows of its key wait until then" if aside.holds else "",
        )  # fmt: skip

    def _again(self, again: Again) -> None:
        wait = f" in {again.delay:.0f} s" if again.delay else ""
        flag = f", with the header {DUPLICATE_HEADER}" if again.possible_duplicate else ""
        _log.info("%s: row %d is published again%s%s: %s", self._name, again.position, wait, flag, again.error)
