"""What the log says about single rows, and that a burst of them is a few lines and a number."""

from __future__ import annotations

import logging
import math

import pytest
from attrs import evolve

from warrener.errors import Fault, FaultKind
from warrener.outbox import OutboxNotFlushed
from warrener.outbox._relay_log import RelayLog
from warrener.outbox.records import Again, OutboxStatus, SetAside, Settlement
from warrener.records import ConnectionState, Status


def aside(position, holds=False):
    return SetAside(position, 1, 1, False, "Unroutable", "returned: NO_ROUTE", holds, "x", "r")


def again(position, delay=None):
    return Again(position, 1, 1, 0, True, delay, "no confirm in 30 s")


@pytest.fixture(autouse=True)
def every_level(caplog):
    caplog.set_level(logging.INFO, "warrener.outbox")


def test_each_row_has_a_line_that_says_what_to_do(caplog):
    """Set aside, published again, taken over."""
    log = RelayLog("shop", "app.db")
    log.settled(Settlement(set_aside=(aside(17, holds=True), aside(18)), again=(again(19), again(20, 2.0))), 0.0)
    log.took_over(3)
    log.took_over(0)

    to_do = "to publish it again: warrener outbox retry app.db {0}; this deletes it: warrener outbox drop app.db {0}"
    where = "(exchange 'x', routing key 'r')"
    header = "with the header x-warrener-possible-duplicate"
    assert caplog.messages == [
        f"shop: row 17 {where} was set aside (Unroutable): returned: NO_ROUTE; {to_do.format(17)}; later rows of its key wait until then",
        f"shop: row 18 {where} was set aside (Unroutable): returned: NO_ROUTE; {to_do.format(18)}",
        f"shop: row 19 is published again, {header}: no confirm in 30 s",
        f"shop: row 20 is published again in 2 s, {header}: no confirm in 30 s",
        f"shop: another relay ended before the outcome of 3 of its rows was known; this relay publishes them again, {header}",
    ]


def test_a_row_that_is_no_message_is_inserted_anew(caplog):
    """To publish it again as it is would end in the same way."""
    row = SetAside(5, 1, 0, False, "InvalidRow", "column body must hold bytes, not int", holds=False)
    RelayLog("shop", "app.db").settled(Settlement(set_aside=(row,)), 0.0)

    (line,) = caplog.messages
    assert line.endswith(
        "; insert the message anew, with correct columns; this deletes it: warrener outbox drop app.db 5"
    )
    assert "retry" not in line


def test_a_burst_is_ten_lines_and_a_number(caplog):
    """One kind of line takes nothing from the other; the number comes when the ten seconds are over, or at the end."""
    log = RelayLog("shop", "app.db")
    for n in range(100):
        rows = range(n * 100, n * 100 + 100)
        log.settled(Settlement(set_aside=tuple(map(aside, rows)), again=tuple(map(again, rows))), n / 20)
    assert len(caplog.messages) == 20
    log.count_left_out(9.9)
    assert len(caplog.messages) == 20
    log.count_left_out(10.0)
    log.count_left_out(10.1)
    assert caplog.messages[20:] == [
        "shop: 9990 more rows were set aside (Unroutable); this lists them: warrener outbox ls app.db --state set_aside",
        "shop: 9990 more rows are published again",
    ]

    log.settled(Settlement(set_aside=tuple(map(aside, range(13)))), 12.0)
    log.count_left_out(math.inf)
    assert caplog.messages[-1].startswith("shop: 3 more rows were set aside (Unroutable);")
    assert len(caplog.messages) == 33


def test_a_burst_of_one_kind_does_not_hide_another(caplog):
    """A thousand rows that are no message, and then one that no queue took."""
    log = RelayLog("shop", "app.db")
    invalid = SetAside(5, 1, 0, False, "InvalidRow", "column body must hold bytes, not int", holds=False)
    log.settled(Settlement(set_aside=(invalid,) * 1000 + (aside(6),)), 0.0)

    assert len(caplog.messages) == 11
    assert "row 6 (exchange 'x', routing key 'r') was set aside (Unroutable)" in caplog.messages[-1]


def producer_status(**now):
    """A healthy producer, but for what is given."""
    usual = Status(
        connection_state=ConnectionState.CONNECTED, reconnect_attempts=0, consecutive_failures=0, circuit_breaker="closed",
        healthy=True, blocked=False, in_flight=0, buffered=0, retry_in=None, last_fault=None, endpoint="amqp://b/",
        heartbeat=60.0, link=1,
    )  # fmt: skip
    return evolve(usual, **now)


REFUSED = Fault(FaultKind.UNREACHABLE, "the connection was refused")


@pytest.mark.parametrize(
    ("producer", "outbox", "reason"),
    [
        ({}, {"last_error": "the disk is full"}, "the outbox cannot be used: the disk is full"),
        (
            {"connection_state": ConnectionState.DISCONNECTED, "last_fault": REFUSED},
            {},
            "there is no connection to the broker (last fault: the connection was refused)",
        ),
        ({"connection_state": ConnectionState.CONNECTING}, {}, "there is no connection to the broker"),
        ({"blocked": True}, {}, "the broker blocks publishing"),
        ({"open_destinations": ("queue 'a'",)}, {}, "the broker nacks messages or does not answer them, at: queue 'a'"),
        (
            {},
            {"set_aside": 1},
            "later rows of the same key wait for 1 row that is set aside (`warrener outbox ls app.db` shows them)",
        ),
        (
            {},
            {"set_aside": 1234},
            "later rows of the same key wait for 1,234 rows that are set aside (`warrener outbox ls app.db` shows them)",
        ),
        (
            {},
            {},
            "the broker has not confirmed them yet, another relay has claimed them, or they wait for their next attempt",
        ),
    ],
)  # fmt: skip
def test_the_relay_knows_why_rows_wait(producer, outbox, reason):
    """The cause nearest to the rows: the store, the connection, the broker's alarm, a destination, a row set aside."""
    log = RelayLog("shop", "app.db")
    counts = OutboxStatus(**{"waiting": 1, "leased": 0, "set_aside": 0, "bytes": 1, "oldest_age": 1.0} | outbox)

    assert log.why_rows_wait(producer_status(**producer), counts, holds=True) == reason


def test_a_row_that_holds_up_no_other_is_no_reason():
    """With ``on_poison="skip"``."""
    counts = OutboxStatus(waiting=1, leased=0, set_aside=1, bytes=1, oldest_age=1.0)

    assert "set aside" not in RelayLog("shop", "app.db").why_rows_wait(producer_status(), counts, holds=False)


@pytest.mark.parametrize(
    ("waiting", "rows"), [(1, "1 waiting row,"), (0, "0 waiting rows,"), (1200, "1,200 waiting rows,")]
)
def test_the_error_has_the_number_and_the_reason(waiting, rows):
    """One row is one row."""
    error = OutboxNotFlushed(timeout=30.0, waiting=waiting, reason="the broker blocks publishing")

    assert str(error) == (
        f"after 30 s the outbox still holds {rows} because the broker blocks publishing; every waiting row stays stored"
        " and is published later"
    )
