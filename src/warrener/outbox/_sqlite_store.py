"""The outbox's tables in a SQLite file: one connection, one transaction at a time, each on disk when it has returned."""

from __future__ import annotations

import json
import shlex
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import anyio

from warrener.errors import printable
from warrener.outbox._decisions import gather
from warrener.outbox._owner import has_ended, this_process
from warrener.outbox._schema import APPLICATION_ID, SQLITE_DDL, VERSION
from warrener.outbox._sqlite_rows import HAS_TIME, entries, entry_of, row_of, unusable, which
from warrener.outbox.errors import OutboxFull, OutboxProblem, OutboxUnusable
from warrener.outbox.records import (
    FIRST,
    Candidate,
    Claimed,
    Done,
    Entry,
    EntryState,
    NewRow,
    OutboxStatus,
    Row,
    Settlement,
    Want,
    Work,
)

__all__ = ["SQLiteStore"]

_HEADER: Final = b"SQLite format 3\x00"
#: File systems on which two machines can have the same file open, and SQLite's locks do not hold.
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.glusterfs"}
)

_COLUMNS: Final = (
    "position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate"
)
#: Rows that one statement inserts. A statement for each row costs half as much again.
_ROWS_AT_ONCE: Final = 50


def _insert_statement(rows: int) -> str:
    """Return the INSERT of a number of rows; its values are the time, then those of each `NewRow`."""
    columns = len(NewRow._fields)
    places = (range(2 + columns * row, 2 + columns * (row + 1)) for row in range(rows))
    values = ", ".join(f"(?1, {', '.join(f'?{place}' for place in row)})" for row in places)
    return f"INSERT INTO warrener_outbox (stored_at, {', '.join(NewRow._fields)}) VALUES {values}"  # noqa: S608


_INSERT: Final = _insert_statement(1)
_INSERT_MANY: Final = _insert_statement(_ROWS_AT_ONCE)

_CANDIDATE: Final = """
SELECT o.position, o.key, length(o.body),
       o.not_before IS NULL OR o.not_before <= :now OR typeof(o.not_before) IN ('text', 'blob'),
       CASE WHEN o.key IS NULL THEN o.position
            ELSE (SELECT min(e.position) FROM warrener_outbox e WHERE e.key = o.key) END
FROM warrener_outbox o
WHERE (o.key IS NULL OR NOT EXISTS (SELECT 1 FROM warrener_outbox_set_aside s WHERE s.key = o.key AND s.holds))"""


class SQLiteStore:
    """See `warrener.outbox.SQLiteOutbox` for the arguments."""

    blocks = True

    def __init__(
        self,
        path: str | Path,
        *,
        max_rows: int,
        max_bytes: int,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        busy_timeout: float = 5.0,
        secure_delete: bool = False,
        make: bool = True,
    ) -> None:
        self.path = Path(path)
        self.place = shlex.quote(str(path))
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._secure_delete = secure_delete
        self._make = make
        self._db: sqlite3.Connection | None = None
        #: (rows, bytes) of the outbox, and the `data_version` for which they hold.
        self._counted: tuple[int, int] | None = None
        self._data_version = -1

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, check it, and make what is missing."""
        if self._db is not None:
            return
        self._refuse_network()
        self._check_header()
        with self._errors():
            try:
                self._db = sqlite3.connect(
                    self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
                )
                self._set_up(self._db)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def interrupt(self) -> None:
        """End the statement that is under way."""
        if self._db is not None:
            self._db.interrupt()

    async def wait_hint(self) -> None:
        """SQLite gives no hints across processes."""
        await anyio.sleep_forever()

    def _refuse_network(self) -> None:
        try:
            mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
            folder = self.path.absolute().resolve().parent
        except OSError:
            return
        best: tuple[int, str] = (0, "")
        for mount in mounts:
            point = mount[1].encode().decode("unicode_escape")
            if folder.is_relative_to(point):
                best = max(best, (len(point), mount[2]))
        if best[1] in _NETWORK_FILE_SYSTEMS:
            raise OutboxUnusable(
                OutboxProblem.NETWORK_FILE,
                f"{self.path} lies on the network file system {best[1]}, on which SQLite's locks do not protect the"
                " file from a second machine; keep the outbox on a local disk, or use PostgreSQL",
            )

    def _check_header(self) -> None:
        try:
            with self.path.open("rb") as file:
                start = file.read(len(_HEADER))
        except FileNotFoundError:
            folder = self.path.absolute().parent
            if not folder.exists():
                raise OutboxUnusable(
                    OutboxProblem.MISSING,
                    f"the folder {folder} does not exist, so there is no file {self.path}; nothing was made; make the"
                    " folder, or correct the path",
                ) from None
            if not self._make:
                raise OutboxUnusable(
                    OutboxProblem.MISSING,
                    f"there is no file {self.path}; this makes it: warrener outbox init {self.place}",
                ) from None
            return
        except OSError as error:
            raise OutboxUnusable(OutboxProblem.READ_ONLY, f"{self.path} cannot be read: {error.strerror}") from None
        if start and start != _HEADER:
            raise OutboxUnusable(
                OutboxProblem.NOT_OURS,
                f"{self.path} is no SQLite database; the file was not changed; choose another file",
            )

    def _set_up(self, db: sqlite3.Connection) -> None:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (application,) = db.execute("PRAGMA application_id").fetchone()
        known = "warrener_outbox_meta" in tables
        if not known and application not in (0, APPLICATION_ID):
            raise OutboxUnusable(
                OutboxProblem.NOT_OURS,
                f"{self.path} is the database of another program (application_id {application:#x}); the file was not"
                " changed; choose another file",
            )
        if not known and "warrener_outbox" in tables:
            raise OutboxUnusable(
                OutboxProblem.NOT_OURS,
                f"{self.path} has a table warrener_outbox of another format; the file was not changed;"
                " choose another file",
            )
        if not known and not self._make:
            raise OutboxUnusable(
                OutboxProblem.MISSING,
                f"{self.path} has no outbox table; make it with: warrener outbox init {self.place}",
            )
        if known:
            self._check_version(db)
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise OutboxUnusable(
                OutboxProblem.CORRUPT,
                f"{self.path} is corrupt ({printable(verdict, 100)}); the file was not changed; restore a backup, or"
                " move the file away and rescue its rows with: sqlite3 FILE .recover",
            )
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        db.execute(f"PRAGMA secure_delete = {int(self._secure_delete)}").fetchone()
        if not known:
            with _transaction(db):
                # Another process may have made the tables in the meantime.
                if not _version(db):
                    if not tables:
                        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    for statement in SQLITE_DDL:
                        db.execute(statement)
            self._check_version(db)

    def _check_version(self, db: sqlite3.Connection) -> None:
        version = _version(db)
        if version != VERSION:
            raise OutboxUnusable(
                OutboxProblem.NEWER_SCHEMA,
                f"{self.path} has outbox tables of version {version}, and this program knows version {VERSION}; the"
                " file was not changed; update warrener",
            )

    # --- one transaction --------------------------------------------------------------------------------------------

    def transact(self, work: Work, token: str, lease: float) -> Done:
        """Do the work; one commit."""
        db = self._connected()
        with self._errors(), _transaction(db):
            owned, claimed = True, Claimed()
            if work.settlement or work.renew:
                owned = _renew(db, token, lease)
                if owned:
                    self._settle(db, work.settlement, token)
            # The rows that were deleted above have made room.
            stored = self._insert(db, work.inserts) if work.inserts else ()
            claim = _take(db, work.inserts, stored, token, lease) if work.take and owned else None
            if work.want is not None and owned:
                claimed = self._claim(db, work.want, token, lease)
            flushed = None
            if work.flushed_to is not None:
                query = "SELECT NOT EXISTS (SELECT 1 FROM warrener_outbox WHERE position <= ?)"
                flushed = bool(db.execute(query, (work.flushed_to,)).fetchone()[0])
            status = self._count(db) if work.count else None
        return Done(stored, owned, claimed, claim, status, flushed)

    def _insert(self, db: sqlite3.Connection, rows: Sequence[NewRow]) -> list[int | OutboxFull]:
        held, size = self._totals(db)
        now = time.time()
        accepted: list[NewRow] = []
        answers: list[int | OutboxFull] = []
        for row in rows:
            if held >= self._max_rows or size + len(row.body) > self._max_bytes:
                answers.append(OutboxFull(rows=held, size=size, max_rows=self._max_rows, max_bytes=self._max_bytes))
                continue
            held += 1
            size += len(row.body)
            accepted.append(row)
            answers.append(len(accepted))
        whole = len(accepted) - len(accepted) % _ROWS_AT_ONCE
        for first in range(0, whole, _ROWS_AT_ONCE):
            db.execute(_INSERT_MANY, [now, *chain.from_iterable(accepted[first : first + _ROWS_AT_ONCE])])
        db.executemany(_INSERT, [(now, *row) for row in accepted[whole:]])
        # AUTOINCREMENT inside one transaction counts up by one.
        (last,) = db.execute("SELECT last_insert_rowid()").fetchone()
        before = last - len(accepted)
        self._counted = (held, size)
        return [before + answer if isinstance(answer, int) else answer for answer in answers]

    def _totals(self, db: sqlite3.Connection) -> tuple[int, int]:
        """How many rows and bytes the outbox holds; counted anew only when another connection has written."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if self._counted is None or version != self._data_version:
            self._data_version = version
            query = """SELECT count(*), coalesce(sum(size), 0) FROM (SELECT length(body) AS size FROM warrener_outbox
                       UNION ALL SELECT length(body) FROM warrener_outbox_set_aside)"""
            rows, size = db.execute(query).fetchone()
            self._counted = (rows, size)
        return self._counted

    def _settle(self, db: sqlite3.Connection, settlement: Settlement, token: str) -> None:
        mine = _held_positions(db, token, settlement)
        gone = json.dumps([position for position, claim in settlement.confirmed if position in mine.get(claim, ())])
        if settlement.confirmed:
            self._counted = self._less(db, gone)
            db.execute("DELETE FROM warrener_outbox WHERE position IN (SELECT value FROM json_each(?))", (gone,))
        now = time.time()
        db.executemany(
            "UPDATE warrener_outbox SET attempts = ?, nacks = ?, possible_duplicate = ?, not_before = ?, last_error = ?"
            " WHERE position = ?",
            [
                (a.attempts, a.nacks, a.possible_duplicate, a.delay and now + a.delay, a.error, a.position)
                for a in settlement.again
                if a.position in mine.get(a.claim, ())
            ],
        )
        for aside in settlement.set_aside:
            if aside.position in mine.get(aside.claim, ()):
                db.execute(
                    f"INSERT INTO warrener_outbox_set_aside ({_COLUMNS}, set_aside_at, reason, last_error, holds, body)"  # noqa: S608
                    " SELECT ?, message_id, key, exchange, routing_key, properties, stored_at, ?, ?, ?, ?, ?, ?,"
                    " body FROM warrener_outbox WHERE position = ?",
                    (
                        _free_position(db, aside.position, "warrener_outbox_set_aside"), aside.attempts,
                        aside.possible_duplicate, now, aside.reason, aside.error, aside.holds, aside.position,
                    ),
                )  # fmt: skip
                db.execute("DELETE FROM warrener_outbox WHERE position = ?", (aside.position,))
        for claim, positions in settlement.claims.items():
            _keep_claim(db, token, claim, positions)

    def _less(self, db: sqlite3.Connection, gone: str) -> tuple[int, int] | None:
        counted = self._counted
        if counted is None:
            return None
        rows, size = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM warrener_outbox"
            " WHERE position IN (SELECT value FROM json_each(?))",
            (gone,),
        ).fetchone()
        return counted[0] - rows, counted[1] - size

    # --- claims -----------------------------------------------------------------------------------------------------

    def _claim(self, db: sqlite3.Connection, want: Want, token: str, lease: float) -> Claimed:
        taken_over = _bury_dead_relays(db, token)
        if want.claims is not None:
            unknown = "token = ? AND claim NOT IN (SELECT value FROM json_each(?))"
            db.execute(f"DELETE FROM warrener_outbox_claim WHERE {unknown}", (token, json.dumps(want.claims)))  # noqa: S608
        gathered = gather(want, _Reader(db, time.time()))
        rows: list[Row] = []
        if gathered.picked:
            positions = sorted(candidate.position for candidate in gathered.picked)
            claim = _new_claim(db, positions, token, lease)
            query = f"""SELECT position, key, attempts, nacks, possible_duplicate, {HAS_TIME},
                               message_id, exchange, routing_key, properties, body
                       FROM warrener_outbox WHERE position IN (SELECT value FROM json_each(?)) ORDER BY position"""  # noqa: S608
            rows = [row_of(claim, values) for values in db.execute(query, (json.dumps(positions),))]
        return Claimed(tuple(rows), gathered.scanned_to, gathered.more, gathered.unfinished, taken_over)

    def release(self, token: str) -> None:
        """Give up all claims."""
        db = self._connected()
        with self._errors(), _transaction(db):
            db.execute("DELETE FROM warrener_outbox_claim WHERE token = ?", (token,))
            db.execute("DELETE FROM warrener_outbox_relay WHERE token = ?", (token,))

    # --- for people -------------------------------------------------------------------------------------------------

    def last_position(self) -> int:
        """Return the highest position that was ever given."""
        with self._errors():
            found = (
                self._connected().execute("SELECT seq FROM sqlite_sequence WHERE name = 'warrener_outbox'").fetchone()
            )
        return found[0] if found else 0

    def status(self) -> OutboxStatus:
        """Count the rows."""
        with self._errors():
            return self._count(self._connected())

    def _count(self, db: sqlite3.Connection) -> OutboxStatus:
        rows, size, oldest = db.execute(
            f"SELECT count(*), coalesce(sum(length(body)), 0), min(CASE WHEN {HAS_TIME} THEN stored_at END)"  # noqa: S608
            " FROM warrener_outbox"
        ).fetchone()
        aside, aside_size = db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM warrener_outbox_set_aside"
        ).fetchone()
        (leased,) = db.execute(
            "SELECT count(*) FROM warrener_outbox WHERE position IN"
            " (SELECT value FROM warrener_outbox_claim, json_each(positions))"
        ).fetchone()
        return OutboxStatus(
            waiting=rows - leased,
            leased=leased,
            set_aside=aside,
            bytes=size + aside_size,
            oldest_age=None if oldest is None else max(0.0, time.time() - oldest),
        )

    def entries(
        self, state: EntryState | None, ids: Sequence[int | str] | None, limit: int, *, bodies: bool
    ) -> list[Entry]:
        """Rows in their order."""
        db = self._connected()
        condition, values = which(ids)
        with self._errors():
            found = db.execute(entries(condition, bodies=bodies), (*values, *values, state, state, limit))
            return [entry_of(values) for values in found]

    def retry(self, ids: Sequence[int | str]) -> int:
        """Let rows be published now."""
        db = self._connected()
        condition, values = which(ids)
        with self._errors(), _transaction(db):
            asides = f"SELECT position FROM warrener_outbox_set_aside WHERE {condition} ORDER BY position"  # noqa: S608
            positions = [position for (position,) in db.execute(asides, values)]
            db.executemany(
                "INSERT INTO warrener_outbox (position, message_id, key, exchange, routing_key, properties, stored_at,"
                " attempts, possible_duplicate, last_error, body)"
                " SELECT ?, message_id, key, exchange, routing_key, properties, stored_at, attempts,"
                " possible_duplicate, last_error, body FROM warrener_outbox_set_aside WHERE position = ?",
                ((_free_position(db, position, "warrener_outbox"), position) for position in positions),
            )
            db.execute(f"DELETE FROM warrener_outbox_set_aside WHERE {condition}", values)  # noqa: S608
            sooner = db.execute(
                f"UPDATE warrener_outbox SET not_before = NULL WHERE not_before IS NOT NULL AND {condition}",  # noqa: S608
                values,
            ).rowcount
        return len(positions) + sooner

    def drop(self, ids: Sequence[int | str]) -> int:
        """Delete rows that no relay has claimed."""
        db = self._connected()
        condition, values = which(ids)
        self._counted = None
        with self._errors(), _transaction(db):
            aside = db.execute(f"DELETE FROM warrener_outbox_set_aside WHERE {condition}", values).rowcount  # noqa: S608
            waiting = db.execute(
                "DELETE FROM warrener_outbox WHERE position NOT IN"  # noqa: S608
                f" (SELECT value FROM warrener_outbox_claim, json_each(positions)) AND {condition}",
                values,
            ).rowcount
        return aside + waiting

    # --- within -----------------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        self.open()
        assert self._db is not None
        return self._db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._counted = None
            raise unusable(self.path, error, self._busy_timeout) from error


class _Reader:
    """`_decisions.Reader` of one transaction."""

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self._db = db
        self._now = now
        self._taken = frozenset(
            position
            for (positions,) in db.execute("SELECT positions FROM warrener_outbox_claim")
            for position in json.loads(positions)
        )

    def after(self, position: int, limit: int) -> Iterable[Candidate]:
        return self._candidates("o.position > :value ORDER BY o.position LIMIT :limit", position, limit)

    def of_key(self, key: str, limit: int) -> Iterable[Candidate]:
        return self._candidates("o.key = :value ORDER BY o.position LIMIT :limit", key, limit)

    def newest(self, limit: int) -> Iterable[Candidate]:
        return reversed([*self._candidates("o.position > :value ORDER BY o.position DESC LIMIT :limit", FIRST, limit)])

    def _candidates(self, condition: str, value: object, limit: int) -> Iterator[Candidate]:
        values = {"now": self._now, "value": value, "limit": limit}
        for position, key, size, ready, first in self._db.execute(f"{_CANDIDATE} AND {condition}", values):
            yield Candidate(position, key, size, bool(ready), position in self._taken, first)


def _version(db: sqlite3.Connection) -> int:
    try:
        found = db.execute("SELECT max(schema_version) FROM warrener_outbox_meta").fetchone()
    except sqlite3.OperationalError:
        return 0
    return found[0] or 0


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _free_position(db: sqlite3.Connection, position: int, table: str) -> int:
    """Return the position, or a new one where another program has given it to a row of the table already."""
    if db.execute(f"SELECT 1 FROM {table} WHERE position = ?", (position,)).fetchone() is None:  # noqa: S608 - a constant
        return position
    db.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'warrener_outbox'")
    (new,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'warrener_outbox'").fetchone()
    return int(new)


def _renew(db: sqlite3.Connection, token: str, lease: float) -> bool:
    """Prolong the lease; False where another relay has ended it."""
    until = time.time() + lease
    return db.execute("UPDATE warrener_outbox_relay SET leased_until = ? WHERE token = ?", (until, token)).rowcount == 1


def _take(
    db: sqlite3.Connection, rows: Sequence[NewRow], stored: Sequence[int | OutboxFull], token: str, lease: float
) -> int | None:
    """Claim the new rows without a key; return the claim."""
    positions = [
        position for row, position in zip(rows, stored, strict=True) if row.key is None and isinstance(position, int)
    ]
    return _new_claim(db, positions, token, lease) if positions else None


def _new_claim(db: sqlite3.Connection, positions: Sequence[int], token: str, lease: float) -> int:
    db.execute(
        "INSERT INTO warrener_outbox_relay (token, owner, leased_until) VALUES (?, ?, ?)"
        " ON CONFLICT (token) DO UPDATE SET leased_until = excluded.leased_until",
        (token, this_process(), time.time() + lease),
    )
    claim = db.execute(
        "INSERT INTO warrener_outbox_claim (token, positions) VALUES (?, ?)", (token, json.dumps(positions))
    ).lastrowid
    assert claim is not None
    return claim


def _held_positions(db: sqlite3.Connection, token: str, settlement: Settlement) -> dict[int, frozenset[int]]:
    """The positions that the relay holds in each claim with orders; an order for another position changes nothing."""
    claims = db.execute(
        "SELECT claim, positions FROM warrener_outbox_claim WHERE token = ?"
        " AND claim IN (SELECT value FROM json_each(?))",
        (token, json.dumps(settlement.claims_with_orders)),
    )
    return {claim: frozenset(json.loads(positions)) for claim, positions in claims}


def _keep_claim(db: sqlite3.Connection, token: str, claim: int, positions: Sequence[int]) -> None:
    if positions:
        query = "UPDATE warrener_outbox_claim SET positions = ? WHERE claim = ? AND token = ?"
        db.execute(query, (json.dumps(positions), claim, token))
    else:
        db.execute("DELETE FROM warrener_outbox_claim WHERE claim = ? AND token = ?", (claim, token))


def _bury_dead_relays(db: sqlite3.Connection, token: str) -> int:
    """End the leases that have run out, and those of processes that have ended; their rows may be in a queue already.

    Return the number of those rows.
    """
    rows = 0
    relays = db.execute("SELECT token, owner, leased_until FROM warrener_outbox_relay WHERE token <> ?", (token,))
    for dead, owner, leased_until in relays.fetchall():
        if leased_until > time.time() and not has_ended(owner):
            continue
        for (positions,) in db.execute("SELECT positions FROM warrener_outbox_claim WHERE token = ?", (dead,)):
            rows += db.execute(
                "UPDATE warrener_outbox SET attempts = attempts + 1, possible_duplicate = 1,"
                " last_error = 'the relay that had claimed the row ended before the outcome was known'"
                " WHERE position IN (SELECT value FROM json_each(?))",
                (positions,),
            ).rowcount
        db.execute("DELETE FROM warrener_outbox_claim WHERE token = ?", (dead,))
        db.execute("DELETE FROM warrener_outbox_relay WHERE token = ?", (dead,))
    return rows
