"""An outbox in memory with explicit commit points: what a crash leaves is exactly what was committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio
from attrs import define, evolve, field, frozen

from warrener.outbox._decisions import gather
from warrener.outbox._rows import decode
from warrener.outbox.errors import OutboxFull
from warrener.outbox.records import (
    Candidate,
    Claimed,
    Done,
    Entry,
    NewRow,
    OutboxStatus,
    Row,
    SetAside,
    Work,
)


@frozen
class Kept:
    """A committed row."""

    row: NewRow
    attempts: int = 0
    nacks: int = 0
    possible_duplicate: bool = False
    not_before: float = 0.0
    #: False: an older transaction still runs (PostgreSQL), so a keyed row waits.
    settled_in_time: bool = True


@define
class Database:
    """What is on disk."""

    rows: dict[int, Kept] = field(factory=dict)
    aside: dict[int, tuple[Kept, SetAside]] = field(factory=dict)
    #: Tokens of relays whose processes have certainly ended.
    ended: set[str] = field(factory=set)
    #: token → when its lease ends.
    relays: dict[str, float] = field(factory=dict)
    #: claim → (token, positions).
    claims: dict[int, tuple[str, tuple[int, ...]]] = field(factory=dict)
    next_position: int = 1
    next_claim: int = 1
    #: Positions deleted because a broker had confirmed them.
    confirmed: set[int] = field(factory=set)

    def position(self) -> int:
        position, self.next_position = self.next_position, self.next_position + 1
        return position

    def taken(self) -> set[int]:
        return {position for _, positions in self.claims.values() for position in positions}


class MemoryStore:
    """`Store` over a `Database`; a crash is asked for by `fail_before` or `fail_after` the commit."""

    blocks = False
    place = "memory"

    def __init__(self, database: Database, clock: Callable[[], float], max_rows: int = 10**9) -> None:
        self.database = database
        self.clock = clock
        self.max_rows = max_rows
        #: Raised in the next transaction, nothing of it committed.
        self.fail_before: Exception | None = None
        #: Raised after the next transaction was committed.
        self.fail_after: Exception | None = None
        self.transactions = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    async def wait_hint(self) -> None:
        await anyio.sleep_forever()

    def transact(self, work: Work, token: str, lease: float) -> Done:
        failure, self.fail_before = self.fail_before, None
        if failure is not None:
            raise failure
        self.transactions += 1
        db, now = self.database, self.clock()
        stored: list[int | OutboxFull] = []
        for row in work.inserts:
            if len(db.rows) >= self.max_rows:
                stored.append(OutboxFull(rows=len(db.rows), size=0, max_rows=self.max_rows, max_bytes=0))
                continue
            position = db.position()
            db.rows[position] = Kept(row)
            stored.append(position)
        owned, claimed = True, Claimed()
        if work.settlement or work.renew:
            owned = token in db.relays
            if owned:
                db.relays[token] = now + lease
                self._settle(work, token, now)
        taken = [at for row, at in zip(work.inserts, stored, strict=True) if row.key is None and isinstance(at, int)]
        claim = self._new_claim(taken, token, now + lease) if work.take and owned and taken else None
        if work.want is not None and owned:
            claimed = self._claim(work, token, lease, now)
        flushed = None if work.flushed_to is None else not any(p <= work.flushed_to for p in db.rows)
        done = Done(stored, owned, claimed, claim, self.status() if work.count else None, flushed)
        failure, self.fail_after = self.fail_after, None
        if failure is not None:
            raise failure
        return done

    def _settle(self, work: Work, token: str, now: float) -> None:
        db, settlement = self.database, work.settlement
        mine = {(claim, at) for claim, (owner, positions) in db.claims.items() if owner == token for at in positions}
        for position, claim in settlement.confirmed:
            if (claim, position) in mine and db.rows.pop(position, None) is not None:
                db.confirmed.add(position)
        for again in settlement.again:
            if (again.claim, again.position) in mine and again.position in db.rows:
                db.rows[again.position] = evolve(
                    db.rows[again.position],
                    attempts=again.attempts,
                    nacks=again.nacks,
                    possible_duplicate=again.possible_duplicate,
                    not_before=0.0 if again.delay is None else now + again.delay,
                )
        for aside in settlement.set_aside:
            if (aside.claim, aside.position) in mine and aside.position in db.rows:
                db.aside[aside.position] = (db.rows.pop(aside.position), aside)
        for claim, positions in settlement.claims.items():
            if claim in db.claims and db.claims[claim][0] == token:
                if positions:
                    db.claims[claim] = (token, positions)
                else:
                    del db.claims[claim]

    def _claim(self, work: Work, token: str, lease: float, now: float) -> Claimed:
        db = self.database
        for dead in [one for one, until in db.relays.items() if one != token and (until <= now or one in db.ended)]:
            for claim, (owner, positions) in tuple(db.claims.items()):
                if owner == dead:
                    del db.claims[claim]
                    for position in positions:
                        if position in db.rows:
                            kept = db.rows[position]
                            db.rows[position] = evolve(kept, attempts=kept.attempts + 1, possible_duplicate=True)
            del db.relays[dead]
        assert work.want is not None
        if work.want.claims is not None:
            known = {*work.want.claims}
            db.claims = {claim: held for claim, held in db.claims.items() if held[0] != token or claim in known}
        gathered = gather(work.want, Reader(db, now))
        rows: list[Row] = []
        if gathered.picked:
            positions = tuple(sorted(candidate.position for candidate in gathered.picked))
            claim = self._new_claim(positions, token, now + lease)
            rows = [_row(claim, position, db.rows[position]) for position in positions]
        return Claimed(tuple(rows), gathered.scanned_to, gathered.more, gathered.unfinished)

    def _new_claim(self, positions: Iterable[int], token: str, until: float) -> int:
        db = self.database
        claim, db.next_claim = db.next_claim, db.next_claim + 1
        db.claims[claim] = (token, tuple(positions))
        db.relays[token] = until
        return claim

    def release(self, token: str) -> None:
        self.database.claims = {c: held for c, held in self.database.claims.items() if held[0] != token}
        self.database.relays.pop(token, None)

    def last_position(self) -> int:
        return self.database.next_position - 1

    def status(self) -> OutboxStatus:
        leased = len(self.database.taken() & set(self.database.rows))
        return OutboxStatus(
            waiting=len(self.database.rows) - leased,
            leased=leased,
            set_aside=len(self.database.aside),
            bytes=0,
            oldest_age=0.0 if self.database.rows else None,
        )

    def entries(self, state: object, ids: object, limit: int, *, bodies: bool) -> list[Entry]:
        raise NotImplementedError

    def retry(self, ids: Iterable[int | str]) -> int:
        back = [position for position in ids if isinstance(position, int) and position in self.database.aside]
        for position in back:
            self.database.rows[position] = self.database.aside.pop(position)[0]
        self.database.rows = dict(sorted(self.database.rows.items()))
        return len(back)

    def drop(self, ids: Iterable[int | str]) -> int:
        gone = [position for position in ids if isinstance(position, int) and position in self.database.aside]
        for position in gone:
            del self.database.aside[position]
        return len(gone)


def _row(claim: int, position: int, kept: Kept) -> Row:
    row = kept.row
    try:
        message = decode(row.message_id, row.exchange, row.routing_key, row.properties, row.body)
        problem = None
    except ValueError as error:
        message, problem = None, str(error)
    return Row(position, claim, row.key, message, kept.attempts, kept.nacks, kept.possible_duplicate, problem)


class Reader:
    def __init__(self, database: Database, now: float) -> None:
        self.database = database
        self.now = now
        self.taken = database.taken()
        self.held = {kept.row.key for kept, aside in database.aside.values() if aside.holds}

    def _all(self) -> list[Candidate]:
        first: dict[str, int] = {}
        found: list[Candidate] = []
        for position, kept in sorted(self.database.rows.items()):
            key = kept.row.key
            if key is not None:
                first.setdefault(key, position)
                if key in self.held:
                    continue
            ready = kept.not_before <= self.now and (key is None or kept.settled_in_time)
            head = position if key is None else first[key]
            found.append(Candidate(position, key, len(kept.row.body), ready, position in self.taken, head))
        return found

    def after(self, position: int, limit: int) -> Iterable[Candidate]:
        return [one for one in self._all() if one.position > position][:limit]

    def of_key(self, key: str, limit: int) -> Iterable[Candidate]:
        return [one for one in self._all() if one.key == key][:limit]

    def newest(self, limit: int) -> Iterable[Candidate]:
        return self._all()[-limit:] if limit else []
