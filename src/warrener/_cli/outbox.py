"""``warrener outbox``: look at an outbox, decide about single rows, and relay it.

An outbox is named by the path of a SQLite file or by a PostgreSQL connection string. A table is for people, ``--json`` for
programs: one object for each row. Bodies are shown only with ``--body``.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from warrener._cli.common import Commands, add_driver, print_changes, say, silence_log, until_signal
from warrener.errors import SettingsError, WarrenerError, printable
from warrener.records import ConnectionState

if TYPE_CHECKING:
    from warrener.outbox import Entry, Outbox, OutboxStatus

__all__ = ["add_parser"]

#: At most this number of rows is looked at for `retry` and `drop`.
_ALL: Final = 1_000_000
#: And this number of waiting rows where a relay ends.
_LOOKED_AT: Final = 10_000
#: An ID on the command line is a position if it matches this pattern, and a message id otherwise.
_POSITION: Final = re.compile("0|-?[1-9][0-9]{0,18}")
#: Columns of the terminal where its width cannot be asked for, as in a pipe; and those that a reason has at least.
_UNKNOWN_WIDTH: Final = 200
_MIN_REASON: Final = 60
#: Characters of any other text in a table; and those of long ones where a reason would have too few.
_CELL: Final = 36
_NARROW: Final = {"MESSAGE ID": 12, "ROUTING KEY": 20, "EXCHANGE": 12, "KEY": 12}
#: Words before the cause in the error of a set-aside row; a table leaves them out.
_BEGINNINGS: Final = ("the broker returned it: ", "the broker refused it: ", "the broker closed the channel; ")
_COLUMNS = ("POSITION", "STATE", "KEY", "EXCHANGE", "ROUTING KEY", "ATTEMPTS", "AGE", "MESSAGE ID", "REASON")


def add_parser(commands: Commands) -> None:
    """Add ``outbox`` and its commands."""
    parser = commands.add_parser(
        "outbox",
        help="look at an outbox, retry or drop its rows, or relay it",
        description="FILE-OR-DSN is the path of a SQLite file, or a PostgreSQL connection string such as postgresql://host/db. "
        "A password on the command line can be seen by other users of this machine; a ~/.pgpass file cannot.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        made = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("place", metavar="FILE-OR-DSN", help="a SQLite file, or a PostgreSQL connection string")
        made.set_defaults(run=partial(_reporting, run), parser=made)
        return made

    made = action("init", _init, "make the tables where they are missing")
    made.add_argument("--sql", action="store_true", help="print the statements for that database, and change nothing")
    made = action("ls", _list, "list the rows in their order")
    made.add_argument("--state", choices=("waiting", "leased", "set_aside"), help="only rows of this state")
    made.add_argument("--limit", type=_number_of_rows, default=100, metavar="N", help="at most N rows (default: 100)")
    _add_output(made)
    made = action("show", _show, "show every column of some rows")
    _add_ids(made)
    _add_output(made)
    made = action("retry", _retry, "publish set-aside rows again, each at its old place")
    _add_ids(made, optional=True)
    made.add_argument("--all", action="store_true", help="all set-aside rows")
    made = action("drop", _drop, "delete rows for good; a row that a relay has claimed is not deleted")
    _add_ids(made, optional=True)
    made.add_argument("--all", action="store_true", help="all set-aside rows")
    made = action("stats", _stats, "count the rows")
    made.add_argument("--json", action="store_true", help="one JSON object")
    made = action("relay", _relay, "publish the rows of an outbox until interrupted; programs need only insert them")
    made.add_argument("--to", metavar="URL", help="the broker (default: RABBITMQ_URL)")
    made.add_argument("--attempts", type=int, default=5, metavar="N", help="set a row aside after N nacks (default: 5)")
    made.add_argument(
        "--on-poison",
        choices=("hold", "skip"),
        default="hold",
        help="later rows of a set-aside row's key: hold them back, or publish them (default: hold)",
    )
    add_driver(made)


def _number_of_rows(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _ALL:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {_ALL:,}, not {printable(text, 60)!r}")
    return int(text)


def _add_ids(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument(
        "ids", nargs="*" if optional else "+", metavar="ID", help="a position (a number), or a message id"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    parser.add_argument("--body", action="store_true", help="show the bodies too")


def _reporting(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run an action and return its exit status; if the outbox cannot be used, print one line and return 2."""
    silence_log()
    try:
        return run(args)
    except (WarrenerError, ImportError) as error:
        print(f"warrener outbox: {error}", file=sys.stderr)
        return 2


def _at(args: argparse.Namespace, **arguments: Any) -> Outbox:
    from warrener.outbox import outbox_at

    return outbox_at(args.place, **({"make": False} | arguments))


def _ids(args: argparse.Namespace) -> list[int | str]:
    return [int(one) if _POSITION.fullmatch(one) else one for one in args.ids]


def _named(args: argparse.Namespace, outbox: Outbox) -> list[Entry] | None:
    """Return the rows that IDs or --all name; None, and a line, unless exactly one of the two is given."""
    if args.all == bool(args.ids):
        print(f"{args.parser.prog}: give IDs, or --all", file=sys.stderr)
        return None
    if args.all:
        return outbox.entries("set_aside", limit=_ALL, bodies=False)
    return _found(args, outbox, bodies=False)


def _found(args: argparse.Namespace, outbox: Outbox, *, bodies: bool) -> list[Entry]:
    """Return the rows that IDs name. A number is a position; if no row has it, the number is looked up as a message id."""
    found = outbox.entries(ids=_ids(args), limit=_ALL, bodies=bodies)
    if others := [one for one in _unknown(args, found) if _POSITION.fullmatch(one)]:
        found += outbox.entries(ids=others, limit=_ALL, bodies=bodies)
    return found


def _unknown(args: argparse.Namespace, found: Sequence[Entry]) -> list[str]:
    known = {str(name) for entry in found for name in (entry.position, entry.message_id)}
    return [each for each in dict.fromkeys(args.ids) if each not in known]


# --- actions ----------------------------------------------------------------------------------------------------------


def _init(args: argparse.Namespace) -> int:
    from warrener.outbox import OutboxProblem, OutboxUnusable, PostgresOutbox, ddl, outbox_at

    outbox = outbox_at(args.place)
    if args.sql:
        print(ddl("postgresql" if isinstance(outbox, PostgresOutbox) else "sqlite"), end="")
        return 0
    try:
        _at(args).status()
    except OutboxUnusable as error:
        if error.problem is not OutboxProblem.MISSING:
            raise
    else:
        print("the outbox tables were there already; nothing was changed")
        return 0
    outbox.create()
    print("the outbox tables were made")
    return 0


def _list(args: argparse.Namespace) -> int:
    entries = _at(args).entries(args.state, limit=args.limit, bodies=args.body)
    if args.json:
        _print_json(entries, body=args.body)
    else:
        if _print_table(entries):
            print("… stands for text that is left out; `warrener outbox show` prints all of a row")
        for entry in entries if args.body else ():
            print(f"{entry.position}: {_body_text(entry)}")
        if len(entries) == args.limit:
            print(f"at most {args.limit} rows are listed; --limit lists more")
    return 0


def _show(args: argparse.Namespace) -> int:
    entries = _found(args, _at(args), bodies=args.body)
    if args.json:
        _print_json(entries, body=args.body)
    else:
        for entry in entries:
            for name, value in _fields(entry, body=args.body).items():
                shown = entry.state.replace("_", " ") if name == "state" else value
                _print_field(name, printable(shown, 2000) if isinstance(shown, str) else shown)
            print()
    return _missing(args, entries)


def _retry(args: argparse.Namespace) -> int:
    from warrener.outbox._decisions import INVALID_ROW

    outbox = _at(args)
    found = _named(args, outbox)
    if found is None:
        return 2
    count = outbox.retry([entry.position for entry in found]) if found else 0
    print(f"{_rows(count)} can be published again at once{'; a relay does that' if count else ''}")
    no_message = [entry for entry in found if entry.reason == INVALID_ROW]
    if no_message:
        print(f"set aside as invalid before: {_positions(no_message)}; a relay sets such a row aside again, unless you "
              "have corrected its columns")  # fmt: skip
    stayed = 0
    for entry in found if count < len(found) else ():
        if entry.state != "set_aside" and entry.not_before is None:
            stayed += 1
            why = "a relay has claimed it" if entry.state == "leased" else "it waits for a relay"
            if entry.held_by is not None:
                why = f"it waits for row {entry.held_by} of the same key, which is set aside; retry or drop that row"
            print(f"{entry.position}: not set aside: {why}", file=sys.stderr)
    return int(bool(_missing(args, found)) or stayed > 0)


def _drop(args: argparse.Namespace) -> int:
    outbox = _at(args)
    found = _named(args, outbox)
    if found is None:
        return 2
    count = outbox.drop([entry.position for entry in found]) if found else 0
    print(f"{_rows(count)} deleted")
    stayed = outbox.entries(ids=[entry.position for entry in found], limit=_ALL, bodies=False) if found else []
    for entry in stayed:
        print(f"{entry.position}: not deleted, because a relay has claimed it; end the relay, then repeat this command",
              file=sys.stderr)  # fmt: skip
    return int(bool(_missing(args, found)) or bool(stayed))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _positions(entries: Sequence[Entry]) -> str:
    """Return at most ten of the positions, and how many more there are."""
    named = ", ".join(str(entry.position) for entry in entries[:10])
    more = f" and {len(entries) - 10:,} more" if len(entries) > 10 else ""
    return f"row {named}" if len(entries) == 1 else f"rows {named}{more}"


def _missing(args: argparse.Namespace, found: Sequence[Entry]) -> int:
    """Say which IDs name no row; return the exit status."""
    missing = _unknown(args, found)
    for each in missing:
        print(f"{printable(each, 200)}: there is no such row", file=sys.stderr)
    return int(bool(missing))


def _stats(args: argparse.Namespace) -> int:
    status = _at(args).status()
    if args.json:
        print(json.dumps(_counts(status)))
    else:
        for name, value in _counts(status).items():
            _print_field(name, value)
    return 0


def _counts(status: OutboxStatus) -> dict[str, object]:
    """The fields that a process which does not relay can know."""
    known = ("waiting", "leased", "set_aside", "bytes", "oldest_age")
    return {name: getattr(status, name) for name in known}


def _relay(args: argparse.Namespace) -> int:
    import trio

    from warrener._publishing.producer import Producer, running

    outbox = _at(args, attempts=args.attempts, on_poison=args.on_poison)
    try:
        producer = Producer(args.to, driver=args.driver, outbox=outbox)
    except SettingsError as error:
        print(f"warrener outbox relay: {error}", file=sys.stderr)
        return 2
    _refuse_unusable(outbox)

    async def count() -> None:
        shown: tuple[int, int, int] = (0, 0, 0)
        while True:
            await trio.sleep(1.0)  # by then the producer has counted the rows once
            held = producer.status().outbox
            assert held is not None
            now = (held.confirmed, held.backlog, held.set_aside)
            if now != shown:
                why = "; `warrener outbox ls` names the reasons" if held.set_aside else ""
                link = "" if producer.status().connection_state is ConnectionState.CONNECTED else "no connection; "
                say(f"{link}{now[0]:,} confirmed, {now[1]:,} waiting, {now[2]:,} set aside{why}")
                shown = now

    async def relay() -> None:
        async with running(producer), trio.open_nursery() as nursery:
            nursery.start_soon(print_changes, producer)
            nursery.start_soon(count)

    print(f"publishing to {producer.status().endpoint}; Ctrl-C ends it", flush=True)
    # What becomes of single rows is said by the library's log, which is bounded in a burst.
    try:
        with _printed_log(f"{producer.name}: "):
            trio.run(until_signal, relay, strict_exception_groups=True)
    finally:
        relayed = producer.status().outbox
        say(f"ended; {0 if relayed is None else relayed.confirmed:,} confirmed, {_what_is_left(args)}")
    return 0


def _refuse_unusable(outbox: Outbox) -> None:
    """Raise the error of an outbox that cannot be used or written.

    A server that does not answer is waited for, as later on, and so is a file that another program has locked.
    """
    from warrener.outbox import OutboxProblem, OutboxUnusable

    try:
        outbox.retry([])  # changes nothing, in a transaction that writes
    except OutboxUnusable as error:
        if error.problem not in (OutboxProblem.UNREACHABLE, OutboxProblem.LOCKED):
            raise


def _what_is_left(args: argparse.Namespace) -> str:
    try:
        outbox = _at(args)
        status = outbox.status()
        waiting = outbox.entries("waiting", limit=_LOOKED_AT, bodies=False)
    except WarrenerError as error:
        return f"and the rest cannot be counted: {error}"
    if not status.backlog:
        return f"none waiting, {status.set_aside:,} set aside"
    sent = sum(entry.possible_duplicate for entry in waiting)
    may_be_there = f" ({sent:,} of them may be in a queue already)" if sent else ""
    advice = "start the relay again to publish the waiting rows"
    holding = {entry.held_by for entry in waiting}
    if len(waiting) < status.backlog or None in holding:
        pass  # a relay can publish some of them, or not all were looked at
    elif len(holding) == 1:
        advice = f"row {waiting[0].held_by} is set aside and holds up its key: retry that row, or drop it"
    else:
        advice = f"{len(holding):,} rows that are set aside hold up their keys: retry those rows, or drop them"
    return f"{status.backlog:,} still waiting{may_be_there}, {status.set_aside:,} set aside; {advice}"


@contextmanager
def _printed_log(begin: str) -> Iterator[None]:
    log, printer = logging.getLogger("warrener.outbox"), _LogLines(begin)
    log.setLevel(logging.INFO)
    log.addHandler(printer)
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.setLevel(logging.NOTSET)


class _LogLines(logging.Handler):
    """Prints the lines of the log; each begins with the producer's name, which says nothing here."""

    def __init__(self, begin: str) -> None:
        super().__init__()
        self._begin = begin

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        say(printable(record.getMessage().removeprefix(self._begin), 2000))


# --- printing ---------------------------------------------------------------------------------------------------------


def _print_field(name: str, value: object) -> None:
    if isinstance(value, float):
        value = f"{value:.1f} s"
    elif type(value) is int and name != "position":
        value = f"{value:,}"
    print(f"{name.replace('_', ' '):<18} {'-' if value is None else value}")


def _age(entry: Entry) -> str:
    if entry.stored_at is None:
        return "?"
    seconds = max(0.0, (datetime.now(UTC) - entry.stored_at).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _reason(entry: Entry) -> str:
    if entry.held_by is not None:
        return f"held by {entry.held_by}"
    if not entry.reason:
        return ""
    error = str(entry.last_error)
    for beginning in _BEGINNINGS:
        error = error.removeprefix(beginning)
    return f"{entry.reason}: {error}"


def _print_table(entries: Sequence[Entry]) -> bool:
    """Print a line for each row; return whether a text was shortened."""
    rows = [
        tuple(
            printable(cell, _CELL)
            for cell in (
                str(entry.position), entry.state.replace("_", " "), entry.key or "", entry.exchange, entry.routing_key, str(entry.attempts),
                _age(entry), entry.message_id,
            )
        )
        for entry in entries
    ]  # fmt: skip
    all_reasons = [_reason(entry) for entry in entries]
    longest = min(_MIN_REASON, max(map(len, all_reasons), default=0))
    widths, left = _layout(rows)
    for name, width in _NARROW.items():
        at = _COLUMNS.index(name)
        if 0 < longest > left and widths[at] > width:
            rows = [(*row[:at], printable(row[at], width), *row[at + 1 :]) for row in rows]
            widths, left = _layout(rows)
    reasons = [printable(each, max(left, _MIN_REASON)) for each in all_reasons]
    for row, reason in zip((_COLUMNS[:-1], *rows), (_COLUMNS[-1], *reasons), strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join((*cells, reason)).rstrip())
    return any(cell.endswith("…") for row, reason in zip(rows, reasons, strict=True) for cell in (*row, reason))


def _layout(rows: Sequence[tuple[str, ...]]) -> tuple[list[int], int]:
    """Return the width of each column but the last one, and what the terminal has left for that."""
    widths = [max(map(len, column)) for column in zip(_COLUMNS[:-1], *rows, strict=True)]
    return widths, shutil.get_terminal_size((_UNKNOWN_WIDTH, 0)).columns - sum(widths) - 2 * len(widths)


def _print_json(entries: Sequence[Entry], *, body: bool) -> None:
    for entry in entries:
        print(json.dumps(_fields(entry, body=body), ensure_ascii=False))


def _fields(entry: Entry, *, body: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in attrs.asdict(entry).items()
        if name != "body"
    }
    if body:
        try:
            fields["body"] = entry.body.decode()
        except UnicodeDecodeError:
            fields["body_base64"] = base64.b64encode(entry.body).decode()
    return fields


def _body_text(entry: Entry) -> str:
    return printable(entry.body.decode(errors="backslashreplace"), 2000)
