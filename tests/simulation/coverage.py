"""The rows of the fault matrix, and a few rare sequences, that the simulation must have met.

The matrix is the list of what can go wrong that the library was designed against, row by row; it is kept here.

Each row is met by some seed of the corpus, or reached by a test that is named here (what virtual time and pipes in memory
cannot show: TLS, the wall clock), or excluded with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from attrs import frozen

from tests.simulation.checks import TICK, Evidence
from tests.simulation.network import Wire
from tests.simulation.trace import LinkRecord, verdict
from warrener import BufferFull, CircuitOpen, DeadlineExceeded, GaveUp, InvalidMessage, Receipt
from warrener.errors import FaultKind

__all__ = ["MOST_EXCLUSIONS", "ROWS", "Row", "rows_of", "table"]

MOST_EXCLUSIONS: Final = 5


@frozen
class Row:
    """A row of the matrix, or a named sequence, and how it is reached."""

    name: str
    what: str
    #: Whether a run met it; None where none can.
    met: Callable[[Evidence], bool] | None = None
    #: Tests that reach it, or a part of it.
    tests: tuple[str, ...] = ()
    #: Why nothing reaches it.
    excluded: str = ""


def _saw(*names: str) -> Callable[[Evidence], bool]:
    return lambda seen: seen.trace.seen.issuperset(names)


def _link(condition: Callable[[LinkRecord], bool]) -> Callable[[Evidence], bool]:
    return lambda seen: any(condition(record) for record in seen.links)


def _fault(
    kind: FaultKind, *, code: range | None = None, text: str = "", in_flight: bool = False, opened: bool = False
) -> Callable[[Evidence], bool]:
    """A link, or a dial, that ended with a fault."""

    def condition(record: LinkRecord) -> bool:
        fault = record.fault
        return (
            fault is not None
            and fault.kind is kind
            and text in fault.text
            and (code is None or fault.reply_code in code)
            and (record.opened_at is not None or not (in_flight or opened))
            and (record.outstanding > 0 or not in_flight)
        )

    return _link(condition)


def _wire(condition: Callable[[Wire], bool], kind: FaultKind | None = None) -> Callable[[Evidence], bool]:
    """A wire under a link that was lost with something in flight."""

    def met(seen: Evidence) -> bool:
        for wire in seen.network.wires:
            record = seen.trace.links.get(wire.link)
            if record is None or record.fault is None or not record.outstanding:
                continue
            if condition(wire) and kind in (None, record.fault.kind):
                return True
        return False

    return met


def _outcome(kind: type[Exception], text: str = "") -> Callable[[Evidence], bool]:
    return lambda seen: any(
        isinstance(publish.result, kind) and text in publish.result.reason for publish in seen.publishes
    )


def _killed(seen: Evidence) -> bool:
    return any(
        abs(record.ended_at - at) < 1.0
        for record in seen.links
        for at in seen.injector.crashes
        if record.outstanding and record.ended_at is not None
    )


def _leaderless(seen: Evidence) -> bool:
    patience = seen.plan.producer.confirm_timeout
    return any(
        fault.at <= record.overdue[1] <= fault.at + fault.duration + patience
        for record in seen.links
        for fault in seen.plan.faults
        if record.overdue is not None and fault.kind == "stall"
    )


def _late_receipt(seen: Evidence) -> bool:
    return any(
        publish.result is not None
        and verdict(publish.result) == "unknown"
        and any(isinstance(late, Receipt) for late in publish.late)
        for publish in seen.publishes
    )


def _cancelled(*, written: bool) -> Callable[[Evidence], bool]:
    return lambda seen: any(publish.cancelled and bool(publish.attempts) is written for publish in seen.publishes)


def _killed_nursery(seen: Evidence) -> bool:
    if seen.plan.ending != "kill":
        return False
    began, ended = seen.run.closing_began_at, seen.run.closed_at or 0.0
    return any(
        publish.called_at < began and publish.ended_at is not None and began <= publish.ended_at <= ended + TICK
        for publish in seen.publishes
    )


def _late_bytes(seen: Evidence) -> bool:
    return any(
        (over := seen.trace.links[link].ended_at) is not None and at > over + TICK
        for enqueues in seen.enqueued.values()
        for at, _, _, link in enqueues
        if link
    )


def _zombie(seen: Evidence) -> bool:
    return any(
        at > attempt.at and 0 < link < attempt.link
        for publish in seen.publishes
        for at, _, _, link in seen.enqueued.get(publish.item.number, ())
        for attempt in publish.attempts
    )


def _drained_out(seen: Evidence) -> bool:
    report, run = seen.run.report, seen.run
    in_vain = report is not None and bool(report.unconfirmed or report.not_sent)
    patience = run.plan.producer.drain_timeout
    return in_vain and run.closed_at is not None and run.closed_at - run.closing_began_at >= patience - TICK


def _in_a_plan_with_an_outbox(_: Evidence) -> bool:
    """Met by the plans of `tests.simulation.outboxes` alone."""
    return False


_DIAL = "tests/drivers/test_dial.py"
_LEDGER = "tests/ledger/test_ledger.py"

#: Every row by its name, in order.
ROWS: Final[tuple[Row, ...]] = (
    Row("1", "DNS error", _saw("dial: no name")),
    Row("2", "several addresses, the first black-holed", _saw("dial: black hole first, then another")),
    Row("3", "several addresses, some refuse or show a bad certificate", _saw("dial: refused first, then another"),
        (f"{_DIAL}::test_a_bad_certificate_loses_against_a_good_one",)),
    Row("4", "SYN dropped; accepted, but mute", _saw("dial: black hole", "dial: mute")),
    Row("5", "TLS untrusted, wrong name, stalled", None,
        (f"{_DIAL}::test_an_untrusted_certificate", f"{_DIAL}::test_a_certificate_for_another_name",
         f"{_DIAL}::test_a_mute_tls_server_ends_with_the_callers_deadline")),
    Row("6", "not AMQP", _fault(FaultKind.PROTOCOL, text="does not speak AMQP")),
    Row("7", "the end before Start", _saw("dial: accept then drop")),
    Row("8", "login refused", _fault(FaultKind.AUTHENTICATION)),
    Row("9", "silence after Start-Ok", _saw("silent login")),
    Row("10", "530 at Open", _fault(FaultKind.VHOST)),
    Row("11", "illegal Tune", _fault(FaultKind.PROTOCOL, text="frame_max")),
    Row("12", "Close or the end during Channel.Open", _saw("close in open")),
    Row("13", "drip-fed handshake", _saw("dial: drip handshake")),
    Row("14", "RST", _wire(lambda wire: wire.ended_by == "rst")),
    Row("15", "FIN without Close", _wire(lambda wire: wire.ended_by == "fin")),
    Row("16", "half-open: silence", _wire(lambda wire: wire.frozen_then == (True, True), FaultKind.SILENT)),
    Row("17", "loss towards the broker only", _wire(lambda wire: wire.frozen_then == (True, False))),
    Row("18", "loss from the broker only", _wire(lambda wire: wire.frozen_then == (False, True), FaultKind.SILENT)),
    Row("19", "zero window", _fault(FaultKind.STALLED, text="a write did not finish")),
    Row("20", "drip-fed frames", _fault(FaultKind.STALLED, text="a frame from the broker did not finish")),
    Row("21", "part of a frame, then the end", _saw("partial frame, then the end")),
    Row("22", "garbage", _fault(FaultKind.ILLEGAL_FRAME, opened=True)),
    Row("23", "a frame above the cap", _fault(FaultKind.ILLEGAL_FRAME, text="is larger than the")),
    Row("24", "320, then FIN", _fault(FaultKind.CLOSED_BY_BROKER, code=range(320, 321), in_flight=True)),
    Row("25", "broker killed", _killed),
    Row("26", "leader lost: neither ack nor nack", _leaderless),
    Row("27", "blocked", _saw("blocked")),
    Row("28", "blocked beyond the deadline", _outcome(DeadlineExceeded, "blocked")),
    Row("29", "channel.close 404", _saw("channel closed 404")),
    Row("30", "channel.close 403", _saw("channel closed 403")),
    Row("31", "channel.close 406", _saw("channel closed 406")),
    Row("32", "connection.close 5xx", _fault(FaultKind.CLOSED_BY_BROKER, code=range(500, 600), opened=True)),
    Row("33", "nack, single and multiple", _saw("nack", "nack multiple")),
    Row("34", "return, then ack or nack", _saw("return then ack"), (f"{_LEDGER}::test_a_returned_message_is_unroutable_whatever_follows",)),
    Row("35", "return with an empty body", _saw("return of an empty body")),
    Row("36", "return of a message that was not published", _saw("foreign return")),
    Row("37", "ack for a tag that was never assigned", _fault(FaultKind.ILLEGAL_FRAME, text="was confirmed where")),
    Row("38", "a tag settled twice", _saw("settled twice")),
    Row("39", "no confirm ever", _link(lambda record: record.overdue is not None)),
    Row("40", "confirm after the deadline", _late_receipt),
    Row("41", "cancelled before it was written", _cancelled(written=False)),
    Row("42", "cancelled in flight", _cancelled(written=True)),
    Row("43", "nursery cancelled", _killed_nursery),
    Row("44", "process killed: its outbox's rows are read again", _in_a_plan_with_an_outbox),
    Row("45", "the wall clock jumps", None, ("tests/simulation/test_corpus.py::test_the_wall_clock_has_no_say",)),
    Row("46", "the monotonic clock jumps", lambda seen: bool(seen.injector.jumps)),
    Row("47", "breaker open", _outcome(CircuitOpen)),
    Row("48", "attempts used up", _outcome(GaveUp)),
    Row("49", "buffer full", _outcome(BufferFull)),
    Row("50", "local validation", _outcome(InvalidMessage)),
    Row("51", "credentials expire", _fault(FaultKind.CLOSED_BY_BROKER, text="credentials have expired", opened=True)),
    Row("52", "channel.flow(false)", _saw("flow stopped")),
    Row("53", "bytes of an abandoned link processed late", _late_bytes),
    Row("54", "drain_timeout", _drained_out),
    Row("55", "queue deleted while a confirm is pending", _saw("queue deleted while confirms are pending")),
    Row("F3", "confirms of others between a return and its own", _saw("F3 interleaving")),
    Row("F4", "nack multiple after ack", _saw("nack multiple after ack")),
    Row("F7", "a zombie after its re-send", _zombie),
    Row("I30", "crossed Closes", _saw("crossed Closes")),
    Row("F11", "cancelled inside the last write", _saw("cancel inside the last write")),
    Row("R11", "closed while blocked", _saw("blocked, then close")),
)  # fmt: skip


def rows_of(seen: Evidence) -> frozenset[str]:
    """Return the names of the rows that a run met."""
    return frozenset(row.name for row in ROWS if row.met is not None and row.met(seen))


def table(met: Mapping[str, int], seeds: int) -> tuple[list[str], list[str]]:
    """Return the table of reachability as lines, and the names of the rows that nothing reached."""
    lines: list[str] = []
    missing: list[str] = []
    for row in ROWS:
        ways: list[str] = []
        if row.met is not None:
            count = met.get(row.name, 0)
            ways.append(f"{count} of {seeds} seeds")
            if not count:
                ways[-1] = "NEVER"
                missing.append(row.name)
        ways += row.tests
        if row.excluded:
            ways.append(f"excluded: {row.excluded}")
        lines.append(f"{row.name:>4}  {row.what:<56}  {', '.join(ways)}")
    return lines, missing
