"""The values of the outbox: rows, claims, orders, counts. Frozen, without I/O, clock or randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple, TypeAlias

from attrs import field, frozen

from warrener.outbox.errors import OutboxFull
from warrener.records import Message, OutboxStatus, Stored

__all__ = [
    "FIRST",
    "Again",
    "Candidate",
    "Claimed",
    "Done",
    "Entry",
    "EntryState",
    "NewRow",
    "OutboxStatus",
    "Row",
    "SetAside",
    "Settlement",
    "Stored",
    "Want",
    "Work",
]

#: Below the position of every row. A program may insert rows with positions of its own, negative ones too.
FIRST: Final = -(1 << 63)

#: "waiting": stored and not claimed; "leased": a relay has claimed the row; "set_aside": a person has to decide.
EntryState: TypeAlias = Literal["waiting", "leased", "set_aside"]


@frozen
class Entry:
    """One row as a person sees it."""

    position: int
    message_id: str
    key: str | None
    exchange: str
    routing_key: str
    state: EntryState
    #: How often the row was published, or claimed by a relay that then died.
    attempts: int
    #: Whether a queue may hold the message already.
    possible_duplicate: bool
    #: None where another program wrote something else than a time.
    stored_at: datetime | None
    #: The row is not published before this instant; None: at once.
    not_before: datetime | None
    #: Why the row was set aside: the name of an error class.
    reason: str | None
    #: The newest error, in words.
    last_error: str | None
    set_aside_at: datetime | None
    #: The position of the set-aside row of the same key that holds this waiting row up; None: the row is not held up.
    held_by: int | None
    properties: str = field(repr=False)
    body: bytes = field(repr=lambda body: f"<{len(body)} bytes>")


class NewRow(NamedTuple):
    """A row to insert; see docs/outbox.md for the columns."""

    message_id: str
    key: str | None
    exchange: str
    routing_key: str
    properties: str
    body: bytes


class Row(NamedTuple):
    """A row that this relay has claimed."""

    position: int
    claim: int
    key: str | None
    #: None where the columns are not a message; `problem` says why.
    message: Message | None
    attempts: int = 0
    #: How often the broker refused the row with a nack.
    nacks: int = 0
    possible_duplicate: bool = False
    problem: str | None = None


class Candidate(NamedTuple):
    """What the claim looks at before it chooses: a row's place, key, size, and whether it may be published now."""

    position: int
    key: str | None
    size: int
    #: False: the row's retry time has not come, or (PostgreSQL) an older transaction still runs.
    ready: bool
    #: Whether any relay has claimed it.
    taken: bool
    #: The lowest position of the row's key in the outbox; the row's own position where it has no key.
    first: int


@frozen
class Want:
    """How much the relay can take."""

    rows: int
    bytes: int
    #: The largest number of rows of one key, so that one key cannot fill the relay.
    per_key: int
    #: Scan upwards from here; rows at or below are left out, except those of `keys`.
    after: int = FIRST
    #: Keys of which this relay holds no row any more, and of which the outbox holds further rows.
    keys: tuple[str, ...] = ()
    #: Rows looked at in one claim, at most.
    scan: int = 5_000
    #: The claims that this relay knows; a claim under its token that is not among them is ended. None: all are known.
    claims: tuple[int, ...] | None = None


@frozen
class Claimed:
    """What one claim brought."""

    rows: tuple[Row, ...] = ()
    #: Where the scan ended; the next one may go on there.
    scanned_to: int = FIRST
    #: Whether the scan stopped for a limit and not at the end of the outbox.
    more: bool = False
    #: Keys of which at least one further row was seen.
    unfinished: frozenset[str] = frozenset()
    #: Rows of relays that had ended without an answer for them; each is flagged, and published again.
    taken_over: int = 0


@frozen
class Again:
    """A row to keep in the outbox after an attempt, with the result of that attempt."""

    position: int
    claim: int
    attempts: int
    nacks: int
    possible_duplicate: bool
    #: Seconds from now; None: at once.
    delay: float | None
    error: str


@frozen
class SetAside:
    """A row for a person to look at."""

    position: int
    claim: int
    attempts: int
    possible_duplicate: bool
    reason: str
    error: str
    #: Whether later rows of its key wait until a person has decided.
    holds: bool
    #: Where the message goes, for the log; empty where the row is no message.
    exchange: str = ""
    routing_key: str = ""


@frozen
class Settlement:
    """What became of claimed rows: written in one transaction, and only where the claims are still this relay's."""

    #: (position, claim) of confirmed rows, to delete.
    confirmed: tuple[tuple[int, int], ...] = ()
    again: tuple[Again, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    #: The positions that each changed claim still holds; none: the claim ends.
    claims: Mapping[int, tuple[int, ...]] = field(factory=dict[int, tuple[int, ...]])

    @property
    def claims_with_orders(self) -> list[int]:
        """The claims of the rows that this settlement deletes or changes."""
        claims = {claim for _, claim in self.confirmed}
        return list(claims.union((each.claim for each in self.again), (each.claim for each in self.set_aside)))

    def __bool__(self) -> bool:
        return bool(self.confirmed or self.again or self.set_aside or self.claims)


@frozen
class Work:
    """What one transaction does: insert, settle and renew the lease, and then claim the new rows or others."""

    inserts: Sequence[NewRow] = ()
    #: Claim the new rows that have no key, too. The relay has their values already, so they are not read again.
    take: bool = False
    settlement: Settlement = field(factory=Settlement)
    renew: bool = False
    want: Want | None = None
    #: Ask for the counts too.
    count: bool = False
    #: Ask whether rows at or below this position wait or are leased.
    flushed_to: int | None = None


@frozen
class Done:
    """What a transaction answered."""

    #: A position, or why the row was not stored, for each insert.
    stored: Sequence[int | OutboxFull] = ()
    #: False: another relay took over this relay's claims; the settlement was not written.
    owned: bool = True
    claimed: Claimed = field(factory=Claimed)
    #: The claim of the new rows that were taken; None: none was.
    claim: int | None = None
    status: OutboxStatus | None = None
    #: The answer to `flushed_to`.
    flushed: bool | None = None
