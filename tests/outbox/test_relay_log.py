"""What the log says about single rows, and that a burst of them is a few lines and a number."""

from __future__ import annotations

import logging
import math

import pytest

from warrener.outbox._relay_log import RelayLog
from warrener.outbox.records import Again, SetAside, Settlement


def aside(position, holds=False):
    return SetAside(position, 1, 1, False, "Unroutable", "returned: NO_ROUTE", holds)


def again(position, delay=None):
    return Again(position, 1, 1, 0, True, delay, "no confirm in 30 s")


@pytest.fixture(autouse=True)
def every_level(caplog):
    caplog.set_level(logging.INFO, "warrener.outbox")


def test_each_row_has_a_line_that_says_what_to_do(caplog):
    """Set aside, published again, taken over."""
    log = RelayLog("shop")
    log.settled(Settlement(set_aside=(aside(17, holds=True), aside(18)), again=(again(19), again(20, 2.0))), 0.0)
    log.took_over(3)
    log.took_over(0)

    to_do = (
        "to publish it again: warrener outbox retry FILE-OR-DSN {0}; to delete it: warrener outbox drop FILE-OR-DSN {0}"
    )
    header = "with the header x-warrener-possible-duplicate"
    assert caplog.messages == [
        f"shop: row 17 was set aside (Unroutable): returned: NO_ROUTE; {to_do.format(17)}; later rows of its key wait until then",
        f"shop: row 18 was set aside (Unroutable): returned: NO_ROUTE; {to_do.format(18)}",
        f"shop: row 19 is published again, {header}: no confirm in 30 s",
        f"shop: row 20 is published again in 2 s, {header}: no confirm in 30 s",
        f"shop: another relay ended before the outcome of 3 of its rows was known; this relay publishes them again, {header}",
    ]


def test_a_row_that_is_no_message_is_inserted_anew(caplog):
    """To publish it again as it is would end in the same way."""
    row = SetAside(5, 1, 0, False, "InvalidRow", "column body must hold bytes, not int", holds=False)
    RelayLog("shop").settled(Settlement(set_aside=(row,)), 0.0)

    (line,) = caplog.messages
    assert "to publish it again: insert it anew; to delete it: warrener outbox drop FILE-OR-DSN 5" in line
    assert "retry" not in line


def test_a_burst_is_ten_lines_and_a_number(caplog):
    """One kind of line takes nothing from the other; the number comes when the ten seconds are over, or at the end."""
    log = RelayLog("shop")
    for n in range(100):
        rows = range(n * 100, n * 100 + 100)
        log.settled(Settlement(set_aside=tuple(map(aside, rows)), again=tuple(map(again, rows))), n / 20)
    assert len(caplog.messages) == 20
    log.count_left_out(9.9)
    assert len(caplog.messages) == 20
    log.count_left_out(10.0)
    log.count_left_out(10.1)
    assert caplog.messages[20:] == [
        "shop: rows set aside without a line of their own: 9990; `warrener outbox ls FILE-OR-DSN --state set_aside` lists them",
        "shop: rows published again without a line of their own: 9990",
    ]

    log.settled(Settlement(set_aside=tuple(map(aside, range(13)))), 12.0)
    log.count_left_out(math.inf)
    assert caplog.messages[-1].startswith("shop: rows set aside without a line of their own: 3;")
    assert len(caplog.messages) == 33
