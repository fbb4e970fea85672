"""The outbox's tables in PostgreSQL 13 or newer: short transactions, and partitions that are truncated when empty.

**Claims.** One advisory lock orders the claims of all relays; it is taken before any row lock, so that no two relays wait
for each other. Relays that claim only their own new rows share the lock. While one of them holds it, no relay can look
for other rows to claim, so none sees the new rows without their claim. A settlement needs no such lock: it begins by
renewing the relay's own row, and a relay that ends another one deletes that row first, so exactly one of the two goes
on. A relay that is paused, or whose machine is gone, in the middle of a transaction would keep its locks: the server
ends such a session.

**Order.** The position of a row is given when the row is inserted, and transactions commit in another order. A keyed row
is ready only when each transaction older than its own has ended (`pg_snapshot_xmin`), and the first row of a key holds up
the later ones, ready or not. So a row that was inserted after another one's commit never passes it.

**No bloat.** Rows go into one of four partitions in turn. One that has become empty is truncated, which gives its space
back at once, whatever old snapshots other sessions hold; VACUUM could not.

**A commit whose answer was lost.** The server is asked by the transaction's number what became of it
(`pg_xact_status`), so that "stored" and "not stored" are both true.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, LiteralString

import anyio
import anyio.to_thread
import psycopg
from psycopg import sql

from warrener.outbox._decisions import gather
from warrener.outbox._owner import has_ended, this_process
from warrener.outbox._postgres_connect import Connection, Connector, break_off, one
from warrener.outbox._postgres_rows import HAS_TIME, TAKEN, entries, entry_of, row_of, unusable, which
from warrener.outbox._schema import POSTGRES_DDL, SLOTS, VERSION
from warrener.outbox.errors import OutboxFull, OutboxProblem, OutboxUnusable
from warrener.outbox.records import (
    FIRST,
    Candidate,
    Claimed,
    Done,
    Entry,
    EntryState,
    NewRow,
    Row,
    Settlement,
    Want,
    Work,
)
from warrener.records import OutboxStatus

__all__ = ["PostgresStore"]

#: The key of the advisory lock: "wrnr".
_LOCK: Final = 0x77726E72
#: Deleted rows after which the next partition is filled.
_ROTATE_AFTER: Final = 10_000
#: Seconds for which the counts behind `max_rows` and `max_bytes` hold.
_COUNTS_HOLD: Final = 1.0
#: Seconds to find out what became of a commit whose answer was lost.
_RESOLVE: Final = 15.0
#: Milliseconds after which the server ends a transaction whose process says nothing: it holds locks that others wait for.
_PAUSE: Final = 15_000
#: Maximum number of candidates that one query reads.
_PAGE: Final = 1_000

_COLUMNS: Final = (
    "position, message_id, key, exchange, routing_key, properties, stored_at, attempts, possible_duplicate"
)
_NOT_HELD: Final = "NOT EXISTS (SELECT 1 FROM warrener_outbox_set_aside s WHERE s.key = o.key AND s.holds)"
_CANDIDATE: Final = f"""
SELECT o.position, o.key, octet_length(o.body),
       (o.not_before IS NULL OR o.not_before <= clock_timestamp())
           AND (o.key IS NULL OR o.transaction < pg_snapshot_xmin(pg_current_snapshot())),
       CASE WHEN o.key IS NULL THEN o.position
            ELSE (SELECT e.position FROM warrener_outbox e WHERE e.key = o.key ORDER BY e.position LIMIT 1) END
FROM warrener_outbox o
WHERE (o.key IS NULL OR {_NOT_HELD})"""  # noqa: S608 - constants
#: The server ends this session when its transaction was idle for this number of milliseconds.
_LIMITED: Final = "set_config('idle_in_transaction_session_timeout', %s, true)"
_INSERT: Final = f"""
INSERT INTO warrener_outbox (message_id, key, exchange, routing_key, properties, body)
SELECT message_id, key, exchange, routing_key, properties, body
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bytea[])
     WITH ORDINALITY AS rows (message_id, key, exchange, routing_key, properties, body, n), (SELECT {_LIMITED}) AS limited
ORDER BY n RETURNING position, transaction::text"""  # noqa: S608 - constants
_CLAIMED: Final = f"""
SELECT position, key, attempts, nacks, possible_duplicate, {HAS_TIME}, message_id, exchange, routing_key, properties, body
FROM warrener_outbox WHERE position = ANY(%s) ORDER BY position"""  # noqa: S608 - constants
#: Another program may have given several rows one position: all but one of them get new positions.
_SEPARATE: Final = """
UPDATE warrener_outbox AS o SET position = nextval('warrener_outbox_position')
WHERE position = ANY(%s) AND EXISTS (
    SELECT 1 FROM warrener_outbox e WHERE e.position = o.position AND (e.tableoid, e.ctid) < (o.tableoid, o.ctid))"""
_NEW_RELAY: Final = """relay AS (
    INSERT INTO warrener_outbox_relay (token, owner, leased_until)
    VALUES (%s, %s, clock_timestamp() + make_interval(secs => %s))
    ON CONFLICT (token) DO UPDATE SET leased_until = excluded.leased_until)"""


class PostgresStore:
    """See `warrener.outbox.PostgresOutbox` for the arguments."""

    blocks = True
    #: A connection string may hold a password.
    place = "postgresql://…"

    def __init__(self, dsns: Sequence[str], *, max_rows: int, max_bytes: int, connect_timeout: float = 10.0) -> None:
        self._connector = Connector(dsns, connect_timeout)
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._db: Connection | None = None
        self._listener: Connection | None = None
        #: The server's process that serves `_db`, or did so last.
        self._own_pid = 0
        #: Whether this session has stored a row with a key since the newest hint.
        self._stored_keys = False
        self._closed = False
        self._counted: tuple[int, int] = (0, 0)
        self._counted_at = -1e9
        self._deleted = 0

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect to the first database of the list that can be written, and check its tables."""
        if self._db is not None and not self._db.broken and not self._db.closed:
            return
        self._closed = False
        with self._connector.made() as db:
            _check(db)
        self._db, self._own_pid = db, db.info.backend_pid

    def close(self) -> None:
        """Disconnect."""
        self._closed = True
        self._connector.interrupt()
        for db in (self._db, self._listener):
            if db is not None:
                with suppress(psycopg.Error):
                    db.close()
        self._db = self._listener = None

    def interrupt(self) -> None:
        """Break the connection: a server that hangs would never answer."""
        self._connector.interrupt()
        db = self._db
        if db is not None:
            break_off(db)

    def create(self) -> None:
        """Make the tables, in one transaction; does nothing where they are."""
        with self._connector.made() as db:
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                if db.execute("SELECT to_regclass('warrener_outbox_meta')").fetchone() == (None,):
                    for statement in POSTGRES_DDL:
                        db.execute(statement.encode())
            _check(db)
            db.close()

    async def wait_hint(self) -> None:
        """Return when another session may have stored a row. A lost connection is made again."""
        if self._listener is None:
            try:
                # The end of the relay does not wait for a server that hangs; `close` breaks the connection.
                await anyio.to_thread.run_sync(self._listen, abandon_on_cancel=True)
            except OutboxUnusable:
                await anyio.sleep(1.0)
            return  # a row may have been stored before this session listened
        try:
            while not self._heard_of_others(self._listener):
                await anyio.wait_readable(self._listener.fileno())
                self._listener.pgconn.consume_input()
        except psycopg.Error:
            self._listener.close()
            self._listener = None
            await anyio.sleep(0.2)

    def _heard_of_others(self, listener: Connection) -> bool:
        """Whether another session has stored a row, or this one a row with a key.

        The relay knows the rows that this session stores. But a row with a key may have to wait for other transactions,
        so the relay looks for that row again.
        """
        heard = False
        while (notification := listener.pgconn.notifies()) is not None:
            heard = heard or self._stored_keys or notification.be_pid != self._own_pid
        if heard:
            self._stored_keys = False
        return heard

    def _listen(self) -> None:
        with self._connector.made() as db:
            db.execute("LISTEN warrener_outbox")
            if self._closed:
                db.close()
        self._listener = db

    # --- one transaction --------------------------------------------------------------------------------------------

    def transact(self, work: Work, token: str, lease: float) -> Done:
        """Do the work; one commit."""
        db = self._connected()
        number: str | None = None
        done: Done | None = None
        try:
            with self._errors(), db.transaction():
                done, number = self._work(db, work, token, lease)
        except OutboxUnusable as error:
            if error.problem is not OutboxProblem.UNREACHABLE or done is None or number is None:
                raise
            # The server may have committed the transaction: only the answer to COMMIT is missing.
            if not self._was_committed(number):
                raise
        assert done is not None
        if self._deleted >= _ROTATE_AFTER:
            with suppress(OutboxUnusable):  # the transaction is committed, whatever becomes of the rotation
                self._rotate()
        return done

    def _work(self, db: Connection, work: Work, token: str, lease: float) -> tuple[Done, str | None]:
        if work.want is not None:
            db.execute(f"SELECT pg_advisory_xact_lock(%s), {_LIMITED}", (_LOCK, str(_PAUSE)))
        elif work.take:
            db.execute(f"SELECT pg_advisory_xact_lock_shared(%s), {_LIMITED}", (_LOCK, str(_PAUSE)))
        owned, claimed = True, Claimed()
        if work.settlement or work.renew:
            mine = _renew(db, work.settlement, token, lease)
            owned = mine is not None
            if mine is not None:
                self._settle(db, work.settlement, token, mine)
        taker = (token, this_process(), lease) if work.take and owned else None
        stored, number, claim = self._insert(db, work.inserts, taker) if work.inserts else ([], None, None)
        if work.want is not None and owned:
            claimed = self._claim(db, work.want, token, lease)
        flushed = None
        if work.flushed_to is not None:
            query = "SELECT NOT EXISTS (SELECT 1 FROM warrener_outbox WHERE position <= %s)"
            flushed = one(db, query, (work.flushed_to,))
        status = _count(db) if work.count else None
        return Done(stored, owned, claimed, claim, status, flushed), number

    def _insert(
        self, db: Connection, rows: Sequence[NewRow], taker: tuple[str, str, float] | None
    ) -> tuple[list[int | OutboxFull], str | None, int | None]:
        """Insert the rows; the taker (its token, owner and lease) claims those without a key.

        Returns what became of each, the number of the transaction, and the claim.
        """
        if time.monotonic() - self._counted_at > _COUNTS_HOLD:
            counts = _count(db)
            self._counted = (counts.backlog + counts.set_aside, counts.bytes)
            self._counted_at = time.monotonic()
        held, size = self._counted
        accepted: list[NewRow] = []
        answers: list[int | OutboxFull] = []
        for row in rows:
            if held >= self._max_rows or size + len(row.body) > self._max_bytes:
                answers.append(OutboxFull(rows=held, size=size, max_rows=self._max_rows, max_bytes=self._max_bytes))
                continue
            held, size = held + 1, size + len(row.body)
            answers.append(len(accepted))
            accepted.append(row)
        self._counted = (held, size)
        if not accepted:
            return answers, None, None
        columns = [
            [row.message_id for row in accepted],
            [row.key for row in accepted],
            [row.exchange for row in accepted],
            [row.routing_key for row in accepted],
            [row.properties for row in accepted],
            [row.body for row in accepted],
        ]
        self._stored_keys = self._stored_keys or any(row.key is not None for row in accepted)
        if taker is None:
            found = db.execute(f"{_INSERT}, NULL", [*columns, str(_PAUSE)]).fetchall()
        else:
            token, owner, lease = taker
            found = db.execute(
                f"WITH new AS ({_INSERT}, key), {_NEW_RELAY}, taken AS ("  # noqa: S608
                " INSERT INTO warrener_outbox_claim (token, positions) SELECT %s, array_agg(position ORDER BY position)"
                " FROM new WHERE key IS NULL HAVING count(*) > 0 RETURNING claim)"
                " SELECT position, transaction, (SELECT claim FROM taken) FROM new",
                [*columns, str(_PAUSE), token, owner, lease, token],
            ).fetchall()
        return [found[one][0] if isinstance(one, int) else one for one in answers], found[0][1], found[0][2]

    def _was_committed(self, number: str) -> bool:
        """Ask, over a new connection, if a transaction was committed. Raises `OutboxUnusable` without an answer."""
        deadline = time.monotonic() + _RESOLVE
        while True:
            self._drop()
            try:
                with self._errors():
                    status = one(self._connected(), "SELECT pg_xact_status(%s::xid8)", (number,))
            except OutboxUnusable:
                status = "unknown"
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            if time.monotonic() > deadline:
                raise OutboxUnusable(
                    OutboxProblem.UNREACHABLE,
                    "the connection to the outbox's database was lost during a commit; the message may be stored",
                )
            time.sleep(0.1)

    def _settle(self, db: Connection, settlement: Settlement, token: str, mine: Mapping[int, frozenset[int]]) -> None:
        gone = [position for position, claim in settlement.confirmed if position in mine.get(claim, ())]
        ended = [claim for claim, positions in settlement.claims.items() if not positions]
        if gone or ended:
            self._deleted += db.execute(
                "WITH ended AS (DELETE FROM warrener_outbox_claim WHERE claim = ANY(%s::bigint[]) AND token = %s)"
                " DELETE FROM warrener_outbox WHERE position = ANY(%s::bigint[])",
                (ended, token, gone),
            ).rowcount
        for again in settlement.again:
            if again.position in mine.get(again.claim, ()):
                db.execute(
                    "UPDATE warrener_outbox SET attempts = %s, nacks = %s, possible_duplicate = %s, last_error = %s,"
                    " not_before = clock_timestamp() + make_interval(secs => %s) WHERE position = %s",
                    (
                        again.attempts, again.nacks, again.possible_duplicate, again.error, again.delay, again.position,
                    ),
                )  # fmt: skip
        for aside in settlement.set_aside:
            if aside.position in mine.get(aside.claim, ()):
                db.execute(
                    f"WITH gone AS (DELETE FROM warrener_outbox WHERE position = %s RETURNING *)"  # noqa: S608
                    f" INSERT INTO warrener_outbox_set_aside ({_COLUMNS}, set_aside_at, reason, last_error, holds, body)"
                    # Another program may have given the row the position of one that was set aside before.
                    " SELECT CASE WHEN EXISTS (SELECT 1 FROM warrener_outbox_set_aside s WHERE s.position = gone.position)"
                    " THEN nextval('warrener_outbox_position') ELSE position END,"
                    " message_id, key, exchange, routing_key, properties, stored_at, %s, %s,"
                    " clock_timestamp(), %s, %s, %s, body FROM gone",
                    (
                        aside.position, aside.attempts, aside.possible_duplicate, aside.reason, aside.error, aside.holds,
                    ),
                )  # fmt: skip
        for claim, positions in settlement.claims.items():
            if positions:
                db.execute(
                    "UPDATE warrener_outbox_claim SET positions = %s::bigint[] WHERE claim = %s AND token = %s",
                    (list(positions), claim, token),
                )

    def _claim(self, db: Connection, want: Want, token: str, lease: float) -> Claimed:
        taken_over = _bury_dead_relays(db, token)
        if want.claims is not None:
            unknown = "token = %s AND claim <> ALL(%s::bigint[])"
            db.execute(f"DELETE FROM warrener_outbox_claim WHERE {unknown}", (token, list(want.claims)))  # noqa: S608
        gathered = gather(want, _Reader(db))
        rows: tuple[Row, ...] = ()
        if gathered.picked:
            positions = sorted({candidate.position for candidate in gathered.picked})
            claim = one(
                db,
                f"WITH {_NEW_RELAY}"  # noqa: S608
                " INSERT INTO warrener_outbox_claim (token, positions) VALUES (%s, %s::bigint[]) RETURNING claim",
                (token, this_process(), lease, token, positions),
            )
            found = db.execute(_CLAIMED, (positions,), binary=True).fetchall()
            if len(found) > len(positions):
                db.execute(_SEPARATE, (positions,))
                found = db.execute(_CLAIMED, (positions,), binary=True).fetchall()
            rows = tuple(row_of(claim, values) for values in found)
        return Claimed(rows, gathered.scanned_to, gathered.more, gathered.unfinished, taken_over)

    def release(self, token: str) -> None:
        """Give up all claims."""
        db = self._connected()
        with self._errors(), db.transaction():
            db.execute("DELETE FROM warrener_outbox_relay WHERE token = %s", (token,))
            db.execute("DELETE FROM warrener_outbox_claim WHERE token = %s", (token,))

    def _rotate(self) -> None:
        """Fill the next partition, and truncate those that hold no row any more; one in use is left as it is."""
        db = self._connected()
        self._deleted = 0
        following: int | None = None
        with suppress(OutboxUnusable), self._errors():
            current = one(db, "SELECT pg_sequence_last_value('warrener_outbox_slot')", ())
            following = (current + 1) % SLOTS
            if not _has_rows(db, f"warrener_outbox_{following}"):
                db.execute("SELECT setval('warrener_outbox_slot', %s)", (following,))
        if following is None:  # the database did not answer
            return
        for slot in range(SLOTS):
            with suppress(OutboxUnusable), self._errors(), db.transaction():
                table = f"warrener_outbox_{slot}"
                if slot == following or not one(db, "SELECT pg_relation_size(%s::regclass)", (table,)):
                    continue
                # No transaction that has written to the partition is open once this lock is had.
                name = sql.Identifier(table)
                db.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(name))
                if not _has_rows(db, table):
                    db.execute(sql.SQL("TRUNCATE ONLY {}").format(name))

    # --- for people -------------------------------------------------------------------------------------------------

    def last_position(self) -> int:
        """Return the highest position that was ever given."""
        with self._errors():
            return int(one(self._connected(), "SELECT pg_sequence_last_value('warrener_outbox_position')", ()) or 0)

    def status(self) -> OutboxStatus:
        """Count the rows."""
        with self._errors():
            return _count(self._connected())

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
        columns = f"{_COLUMNS}, last_error, body"
        with self._errors(), db.transaction():
            back = db.execute(
                f"WITH back AS (DELETE FROM warrener_outbox_set_aside WHERE {condition} RETURNING {columns})"  # noqa: S608
                f" INSERT INTO warrener_outbox ({columns}, transaction) SELECT {columns}, '1'::xid8 FROM back",
                values,
            ).rowcount
            sooner = db.execute(
                f"UPDATE warrener_outbox SET not_before = NULL WHERE not_before IS NOT NULL AND {condition}",  # noqa: S608
                values,
            ).rowcount
        return back + sooner

    def drop(self, ids: Sequence[int | str]) -> int:
        """Delete rows that no relay has claimed."""
        db = self._connected()
        condition, values = which(ids)
        with self._errors(), db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            aside = db.execute(f"DELETE FROM warrener_outbox_set_aside WHERE {condition}", values).rowcount  # noqa: S608
            waiting = db.execute(
                f"DELETE FROM warrener_outbox WHERE position NOT IN ({TAKEN}) AND {condition}",  # noqa: S608
                values,
            ).rowcount
        return aside + waiting

    # --- within -----------------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        self.open()
        assert self._db is not None
        return self._db

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(psycopg.Error):
                db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            problem = unusable(error)
            if problem.problem in (OutboxProblem.UNREACHABLE, OutboxProblem.READ_ONLY):
                self._drop()  # the next call connects anew, perhaps elsewhere
            raise problem from error


class _Reader:
    """`_decisions.Reader` of one transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        # Claims first: a row whose claim ends in between is left for the next time.
        self._taken = frozenset(position for (position,) in db.execute(TAKEN))

    def after(self, position: int, limit: int) -> Iterable[Candidate]:
        while limit > 0:
            page = self._candidates("o.position > %s ORDER BY o.position LIMIT %s", position, min(limit, _PAGE))
            yield from page
            if len(page) < _PAGE:
                return
            position, limit = page[-1].position, limit - len(page)

    def of_key(self, key: str, limit: int) -> Iterable[Candidate]:
        return self._candidates("o.key = %s ORDER BY o.position LIMIT %s", key, limit)

    def newest(self, limit: int) -> Iterable[Candidate]:
        return reversed(self._candidates("o.position > %s ORDER BY o.position DESC LIMIT %s", FIRST, limit))

    def _candidates(self, condition: LiteralString, value: object, limit: int) -> list[Candidate]:
        found = self._db.execute(f"{_CANDIDATE} AND {condition}", (value, limit))
        return [
            Candidate(position, key, size, ready, position in self._taken, first)
            for position, key, size, ready, first in found
        ]


def _check(db: Connection) -> None:
    """Refuse a database without our tables, or with those of another version."""
    if one(db, "SELECT to_regclass('warrener_outbox_meta')", ()) is None:
        raise OutboxUnusable(
            OutboxProblem.MISSING,
            f"the database {db.info.dbname} has no outbox tables; make them with: warrener outbox init DSN",
        )
    version = one(db, "SELECT max(schema_version) FROM warrener_outbox_meta", ())
    if version != VERSION:
        raise OutboxUnusable(
            OutboxProblem.NEWER_SCHEMA,
            f"the database {db.info.dbname} has outbox tables of version {version}, and this program knows version"
            f" {VERSION}; nothing was changed; update warrener",
        )
    encoding = one(db, "SHOW server_encoding", ())
    if encoding != "UTF8":
        raise OutboxUnusable(OutboxProblem.FAILED, f"the outbox needs a database in UTF8, not {encoding}")


def _has_rows(db: Connection, table: str) -> bool:
    return bool(one(db, sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(sql.Identifier(table)), ()))


def _renew(db: Connection, settlement: Settlement, token: str, lease: float) -> dict[int, frozenset[int]] | None:
    """Prolong the lease; None where another relay has ended it.

    Returns the positions that the relay holds in each claim to which `settlement` has orders. An order for a row at any
    other position changes nothing.
    """
    claims = db.execute(
        "WITH relay AS ("  # noqa: S608
        " UPDATE warrener_outbox_relay SET leased_until = clock_timestamp() + make_interval(secs => %s)"
        f" FROM (SELECT {_LIMITED}) AS limited WHERE token = %s RETURNING token)"
        " SELECT claim, positions FROM relay"
        " LEFT JOIN warrener_outbox_claim AS c ON c.token = relay.token AND c.claim = ANY(%s::bigint[])",
        (lease, str(_PAUSE), token, settlement.claims_with_orders),
        binary=True,
    ).fetchall()
    return {claim: frozenset(positions) for claim, positions in claims if claim is not None} if claims else None


def _bury_dead_relays(db: Connection, token: str) -> int:
    """End the leases that have run out, and those of processes that have ended; their rows may be in a queue already.

    Return the number of those rows.
    """
    rows = 0
    relays = db.execute(
        "SELECT token, owner, leased_until <= clock_timestamp() FROM warrener_outbox_relay WHERE token <> %s", (token,)
    )
    for dead, owner, expired in relays.fetchall():
        if not expired and not has_ended(owner):
            continue
        # A relay that renews its lease in this very moment keeps it: its row is locked, and looked at again.
        condition = "AND leased_until <= clock_timestamp()" if expired else ""
        buried = db.execute(f"DELETE FROM warrener_outbox_relay WHERE token = %s {condition}", (dead,))  # noqa: S608
        if buried.rowcount:
            rows += db.execute(
                "WITH ended AS (DELETE FROM warrener_outbox_claim WHERE token = %s RETURNING positions)"
                " UPDATE warrener_outbox SET attempts = attempts + 1, possible_duplicate = true,"
                " last_error = 'the relay that had claimed the row ended before the outcome was known'"
                " WHERE position IN (SELECT unnest(positions) FROM ended)",
                (dead,),
            ).rowcount
    return rows


def _count(db: Connection) -> OutboxStatus:
    query = f"""
        SELECT count(*), coalesce(sum(octet_length(body)), 0)::bigint,
               extract(epoch FROM clock_timestamp() - min(stored_at) FILTER (WHERE {HAS_TIME}))::float8,
               (SELECT count(*) FROM warrener_outbox WHERE position IN ({TAKEN})),
               (SELECT count(*) FROM warrener_outbox_set_aside),
               (SELECT coalesce(sum(octet_length(body)), 0)::bigint FROM warrener_outbox_set_aside)
        FROM warrener_outbox"""  # noqa: S608 - constants
    found = db.execute(query).fetchone()
    assert found is not None
    rows, size, age, leased, aside, aside_size = found
    return OutboxStatus(
        waiting=rows - leased,
        leased=leased,
        set_aside=aside,
        bytes=size + aside_size,
        oldest_age=None if age is None else max(0.0, age),
    )
