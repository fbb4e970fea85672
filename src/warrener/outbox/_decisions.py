"""PURE: what a relay decides. Which rows to claim, which to publish now, and what becomes of each after its outcome.

No I/O, clock or randomness: `now` is an argument, and the orders for the store are returned as a `Settlement`.

**What must stay true.**

* *One unsettled row of a key at a time.* A relay publishes a row only after each earlier row of its key was confirmed,
  or set aside under ``on_poison="skip"``. So each relay alone delivers a key's rows in order and without a gap. With
  several relays, of which any may die, the first deliveries of a key's rows are in order too.
* *A claim takes rows of a key from the key's first row on*, and never a row behind one that it could not take.
* *The relay stops holding a row with exactly one order*: confirmed, again, set aside or released.
* *What another relay took over is forgotten*: an outcome for a row that is no longer held changes nothing.
* *A relay's next claim ends each claim under its token that the relay does not know.* Such a claim is there after the
  answer of a commit was lost. Its rows were not published; without this rule they would wait as long as the relay runs.
* *A row that failed goes alone*, so that it cannot hold up the rows of a run.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, Protocol, TypeAlias

from attrs import define, evolve, frozen

from warrener.errors import (
    CircuitOpen,
    InvalidMessage,
    Nacked,
    NotSent,
    PublishError,
    PublishRefused,
    SettingsError,
    Unroutable,
    printable,
)
from warrener.outbox.records import Again, Candidate, Claimed, NewRow, Row, SetAside, Settlement, Want
from warrener.records import Receipt

__all__ = [
    "INVALID_ROW",
    "Gathered",
    "Reader",
    "RelayPolicy",
    "Run",
    "Verdict",
    "Window",
    "choose",
    "gather",
    "verdict",
]


#: The reason of a set-aside row whose columns are no message.
INVALID_ROW: Final = "InvalidRow"


@frozen
class RelayPolicy:
    """What does not change while a relay runs; durations are seconds."""

    #: A row is set aside after this number of nacks.
    attempts: int = 5
    #: Whether a set-aside row holds up the later rows of its key.
    on_poison: Literal["hold", "skip"] = "hold"
    lease: float = 30.0
    #: Rows in the relay at once, at most; and bytes of their bodies (one larger row travels alone).
    window: int = 2_000
    window_bytes: int = 16 << 20
    #: Rows of one key in the relay at once, at most.
    per_key: int = 64
    #: Rows in one call of `publish_many`, and such calls at once, at most.
    run: int = 250
    runs: int = 8
    #: The wait before a nacked row is published again: doubled with each nack, up to the cap.
    retry_initial: float = 1.0
    retry_cap: float = 60.0

    def __attrs_post_init__(self) -> None:
        """Raise `SettingsError` for a value that is not allowed."""
        for name in ("attempts", "window", "window_bytes", "per_key", "run", "runs"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingsError(f"outbox: {name} must be an integer of at least 1, not {value!r}")
        if self.on_poison not in ("hold", "skip"):
            raise SettingsError(f'outbox: on_poison must be "hold" or "skip", not {self.on_poison!r}')
        if not 1 <= self.lease < math.inf:
            raise SettingsError(f"outbox: lease must be at least 1 second, not {self.lease!r}")


class Reader(Protocol):
    """How `gather` looks at an outbox, inside the transaction of the claim; each answer is in the outbox's order.

    Rows of a key that a set-aside row holds up are left out.
    """

    def after(self, position: int, limit: int) -> Iterable[Candidate]:
        """At most `limit` rows above `position`."""
        ...

    def of_key(self, key: str, limit: int) -> Iterable[Candidate]:
        """The first `limit` rows of a key."""
        ...

    def newest(self, limit: int) -> Iterable[Candidate]:
        """The last `limit` rows."""
        ...


# --- which rows to claim ------------------------------------------------------------------------------------------


def choose(
    candidates: Iterable[Candidate], want: Want, chosen: Iterable[Candidate] = ()
) -> tuple[list[Candidate], frozenset[str]]:
    """Return the rows to claim, and the keys of which a further row was seen. `candidates` are in the outbox's order.

    `chosen` are rows that the same claim has already: they count, and their keys get no second row here.
    """
    blocked: dict[str, bool] = {}
    of_key: dict[str, int] = {}
    unfinished: set[str] = set()
    taken_already: set[int] = set()
    rows = size = 0
    for earlier in chosen:
        rows += 1
        size += earlier.size
        taken_already.add(earlier.position)
        if earlier.key is not None:
            blocked[earlier.key] = True
    picked: list[Candidate] = []
    for candidate in candidates:
        if rows >= want.rows:
            break
        if candidate.position in taken_already:
            continue
        key = candidate.key
        if key is not None:
            if key in blocked:
                continue
            count = of_key.get(key, 0)
            if candidate.taken or not candidate.ready or (count == 0 and candidate.position != candidate.first):
                blocked[key] = True
                continue
            if count >= want.per_key:
                blocked[key] = True
                unfinished.add(key)
                continue
        elif candidate.taken or not candidate.ready:
            continue
        if rows and size + candidate.size > want.bytes:
            break
        if key is not None:
            of_key[key] = of_key.get(key, 0) + 1
        rows += 1
        size += candidate.size
        picked.append(candidate)
    return picked, frozenset(unfinished)


@frozen
class Gathered:
    """What one claim is to take."""

    picked: tuple[Candidate, ...]
    scanned_to: int
    more: bool
    unfinished: frozenset[str]


def gather(want: Want, reader: Reader) -> Gathered:
    """Return the rows to claim: of the keys that are asked for, then from the oldest on, then a share of the newest.

    The share of the newest is taken if the scan of the oldest has not come to the end of the outbox, so that new rows
    do not wait for a large backlog.
    """
    picked: list[Candidate] = []
    unfinished: frozenset[str] = frozenset()
    for key in want.keys:
        rows, unfinished_here = choose(reader.of_key(key, want.per_key + 1), want, picked)
        picked += rows
        unfinished |= unfinished_here
    oldest = evolve(want, rows=want.rows - want.rows // 8)
    seen = 0
    scanned_to = want.after

    def scanning() -> Iterator[Candidate]:
        nonlocal seen, scanned_to
        for candidate in reader.after(want.after, want.scan):
            yield candidate
            # `choose` has judged the candidate when it asks for the next one. A candidate at which `choose` ended is
            # looked at again in the next claim.
            seen, scanned_to = seen + 1, candidate.position

    scan = scanning()
    rows, unfinished_here = choose(scan, oldest, picked)
    judged_to = scanned_to  # `next(scan)` in the next line moves `scanned_to` past a row that was not judged
    more = next(scan, None) is not None or seen == want.scan
    picked += rows
    unfinished |= unfinished_here
    if more:
        rows, unfinished_here = choose(reader.newest(want.rows // 8), want, picked)
        picked += rows
        unfinished |= unfinished_here
    return Gathered(tuple(picked), judged_to, more, unfinished)


# --- what becomes of a row ----------------------------------------------------------------------------------------

#: "confirmed", "unsent" (nothing was sent), "unknown" (a queue may hold it), "nacked", or "poison".
Verdict: TypeAlias = Literal["confirmed", "unsent", "unknown", "nacked", "poison"]


def verdict(row: Row, outcome: Receipt | PublishError, policy: RelayPolicy) -> Verdict:
    """Return what the outcome of one publish means for its row."""
    if isinstance(outcome, Receipt):
        return "confirmed"
    if isinstance(outcome, Unroutable | PublishRefused | InvalidMessage):
        return "poison"
    if isinstance(outcome, Nacked):
        return "poison" if row.nacks + 1 >= policy.attempts else "nacked"
    return "unsent" if isinstance(outcome, NotSent) else "unknown"


def retry_delay(policy: RelayPolicy, nacks: int) -> float:
    """Return the seconds to wait after `nacks` nacks."""
    return min(policy.retry_cap, policy.retry_initial * 2.0 ** min(nacks - 1, 32))


# --- the rows that a relay holds ----------------------------------------------------------------------------------


@frozen(eq=False)
class Run:
    """Rows to publish with one call: none of them behind another of its key."""

    rows: tuple[Row, ...]
    #: Whether it is one row that failed before.
    alone: bool = False


@define(eq=False)
class _Held:
    row: Row
    #: Whether it is in a run that was handed to the producer.
    flying: bool = False


class Window:
    """The rows that this relay has claimed, each from its claim to the order that ends it."""

    def __init__(self, policy: RelayPolicy) -> None:
        self.policy = policy
        #: When the lease ends by the relay's own clock; nothing is handed to the producer after it.
        self.leased_until = -math.inf
        self.confirmed = 0
        self.possible_duplicates = 0
        self._held: dict[int, _Held] = {}
        #: The position of each message id; None where two rows have the same id, so that it names neither.
        self._by_id: dict[str, int | None] = {}
        #: The rows of each key that this relay holds, the unsettled one first.
        self._queues: dict[str, deque[int]] = {}
        self._ready: deque[int] = deque()
        self._alone: deque[int] = deque()
        #: (when, position) of rows that were not sent and are tried again.
        self._paused: list[tuple[float, int]] = []
        self._flights = 0
        self._solo_flights = 0
        #: The positions that each claim still holds.
        self._claims: dict[int, set[int]] = {}
        #: Claims whose change is not written down yet: no row of the claim is held any more, or a row was released.
        self._changed: set[int] = set()
        self._size = 0
        self._deletes: list[tuple[int, int]] = []
        self._again: list[Again] = []
        self._aside: list[SetAside] = []
        #: Keys with further rows in the outbox: those of which this relay holds rows, and those of which it holds none.
        self._unfinished: set[str] = set()
        self._run_out: dict[str, None] = {}

    # --- looking --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._held)

    @property
    def flights(self) -> int:
        """Runs that the producer has and whose outcomes have not come."""
        return self._flights

    @property
    def deleted(self) -> int:
        """Number of confirmed rows whose deletion is written down."""
        return self.confirmed - len(self._deletes)

    @property
    def has_orders(self) -> bool:
        """Whether there is something to write down."""
        return bool(self._deletes or self._again or self._aside or self._changed)

    def holds_up_to(self, position: int) -> bool:
        """Whether a row at or below this position is held."""
        return any(held <= position for held in self._held)

    def wakes_at(self) -> float:
        """When a paused row is due; infinity where none is."""
        return self._paused[0][0] if self._paused else math.inf

    def want(self, after: int) -> Want | None:
        """How much to claim now; None while the window is more than half full."""
        rows, size = self.policy.window - len(self._held), self.policy.window_bytes - self._size
        if rows * 2 < self.policy.window or size * 2 < self.policy.window_bytes:
            return None
        keys = tuple(self._run_out)
        return Want(
            rows=rows, bytes=size, per_key=self.policy.per_key, after=after, keys=keys, claims=tuple(self._claims)
        )

    # --- claims ---------------------------------------------------------------------------------------------------

    def take(self, claimed: Claimed, want: Want) -> None:
        """Hold the rows of a claim."""
        for key in want.keys:
            self._run_out.pop(key, None)
        self._unfinished |= claimed.unfinished
        self._hold(claimed.rows)

    def can_take(self, rows: Sequence[NewRow]) -> bool:
        """Whether there is room for new rows, beside those that are held."""
        size = self._size + sum(len(row.body) for row in rows)
        return len(self._held) + len(rows) <= self.policy.window and size <= self.policy.window_bytes

    def take_new(self, rows: Iterable[Row]) -> None:
        """Hold new rows without a key, which were claimed in the transaction that stored them."""
        self._hold(rows)

    def _hold(self, rows: Iterable[Row]) -> None:
        heads: list[Row] = []
        for row in rows:
            self._held[row.position] = _Held(row)
            self._claims.setdefault(row.claim, set()).add(row.position)
            if row.key is None:
                heads.append(row)
            else:
                queue = self._queues.setdefault(row.key, deque())
                if not queue:
                    heads.append(row)
                queue.append(row.position)
            if row.message is not None:
                self._size += len(row.message.body)
                message_id = row.message.message_id
                self._by_id[message_id] = None if message_id in self._by_id else row.position
        for row in heads:
            self._line_up(row)

    def lost(self) -> None:
        """Forget all rows: another relay has taken them over."""
        for kept in (
            self._held, self._by_id, self._queues, self._ready, self._alone, self._paused, self._claims,
            self._changed, self._deletes, self._again, self._aside, self._unfinished, self._run_out,
        ):  # fmt: skip
            kept.clear()
        self._size = 0

    def release_unsent(self) -> None:
        """Give back each row that the producer does not have, so that another relay may take it."""
        for position, held in tuple(self._held.items()):
            if not held.flying:
                self._leave(position, released=True)
        self._ready.clear()
        self._alone.clear()
        self._paused.clear()

    def abandon(self) -> None:
        """The relay ends: flag the rows whose outcome is not known, and give all rows back."""
        for held in self._held.values():
            if held.flying:
                self._keep(held.row, "the relay ended before the outcome was known", possible_duplicate=True)
                held.flying = False
        self.release_unsent()

    # --- publishing -----------------------------------------------------------------------------------------------

    def runs(self, now: float) -> list[Run]:
        """The runs to hand to the producer now."""
        while self._paused and self._paused[0][0] <= now:
            _, position = heapq.heappop(self._paused)
            self._alone.append(position)
        if now >= self.leased_until:
            return []
        runs: list[Run] = []
        while self._alone and self._flights < self.policy.runs and self._solo_flights * 2 < self.policy.runs:
            if rows := self._board(self._alone, 1):
                self._solo_flights += 1
                runs.append(Run(rows, alone=True))
        while self._ready and self._flights < self.policy.runs:
            if rows := self._board(self._ready, self.policy.run):
                runs.append(Run(rows))
        return runs

    def _board(self, line: deque[int], limit: int) -> tuple[Row, ...]:
        rows: list[Row] = []
        while line and len(rows) < limit:
            held = self._held.get(line.popleft())
            if held is not None and not held.flying and self._first_of_key(held.row):
                held.flying = True
                rows.append(held.row)
        self._flights += bool(rows)
        return tuple(rows)

    def _first_of_key(self, row: Row) -> bool:
        return row.key is None or self._queues[row.key][0] == row.position

    def landed(self, run: Run, outcomes: Sequence[Receipt | PublishError], now: float) -> None:
        """Take the outcomes of a run."""
        self._flights -= 1
        self._solo_flights -= run.alone
        for row, outcome in zip(run.rows, outcomes, strict=True):
            held = self._held.get(row.position)
            if held is not None and held.row is row:
                held.flying = False
                self._judge(held, outcome, now)

    def late(self, message_id: str, outcome: Receipt | PublishError) -> bool:
        """Take a confirm that came after its publish had ended; True where a row was still waiting for it."""
        position = self._by_id.get(message_id)
        held = None if position is None else self._held.get(position)
        if held is None or not isinstance(outcome, Receipt) or not held.row.attempts:
            return False
        self._confirm(held.row, duplicate=held.flying or outcome.possible_duplicate)
        return True

    def _judge(self, held: _Held, outcome: Receipt | PublishError, now: float) -> None:
        row, policy = held.row, self.policy
        if type(outcome) is Receipt:
            self._confirm(row, duplicate=outcome.possible_duplicate or row.possible_duplicate)
            return
        match verdict(row, outcome, policy):
            case "confirmed":
                assert isinstance(outcome, Receipt)
                self._confirm(row, duplicate=outcome.possible_duplicate or row.possible_duplicate)
            case "unsent":
                if isinstance(outcome, CircuitOpen) and outcome.retry_after > policy.lease / 2:
                    self._keep(row, _text(outcome), delay=outcome.retry_after)
                    self._give_back(row)
                else:
                    delay = outcome.retry_after if isinstance(outcome, CircuitOpen) else policy.retry_initial
                    heapq.heappush(self._paused, (now + max(delay, 0.1), row.position))
            case "unknown":
                self._keep(row, _text(outcome), possible_duplicate=True)
                # The next attempt of this relay must use the new count and the new flag.
                held.row = row._replace(attempts=row.attempts + 1, possible_duplicate=True)
                self._alone.append(row.position)
            case "nacked":
                delay = retry_delay(policy, row.nacks + 1)
                self._keep(row, _text(outcome), delay=delay, nacks=row.nacks + 1, possible_duplicate=True)
                self._give_back(row)
            case "poison":
                sent = isinstance(outcome, PublishError) and outcome.may_have_been_delivered
                self._set_aside(row, type(outcome).__name__, _text(outcome), attempts=1, sent=sent)

    def _line_up(self, row: Row) -> None:
        """Let the row be published when its turn comes; one that is no message is set aside."""
        if row.message is None:
            self._set_aside(row, INVALID_ROW, row.problem or "its columns make no message", attempts=0, sent=False)
        elif row.attempts:
            self._alone.append(row.position)
        else:
            self._ready.append(row.position)

    # --- orders ---------------------------------------------------------------------------------------------------

    def _confirm(self, row: Row, *, duplicate: bool) -> None:
        self.confirmed += 1
        self.possible_duplicates += duplicate
        self._deletes.append((row.position, row.claim))
        self._leave(row.position)
        self._next_of_key(row)

    def _keep(
        self,
        row: Row,
        error: str,
        *,
        delay: float | None = None,
        nacks: int | None = None,
        possible_duplicate: bool = False,
    ) -> None:
        self._again.append(
            Again(
                position=row.position,
                claim=row.claim,
                attempts=row.attempts + (nacks is not None or possible_duplicate),
                nacks=row.nacks if nacks is None else nacks,
                possible_duplicate=row.possible_duplicate or possible_duplicate,
                delay=delay,
                error=error,
            )
        )

    def _set_aside(self, row: Row, reason: str, error: str, *, attempts: int, sent: bool) -> None:
        holds = row.key is not None and self.policy.on_poison == "hold"
        self._aside.append(
            SetAside(
                position=row.position,
                claim=row.claim,
                attempts=row.attempts + attempts,
                possible_duplicate=row.possible_duplicate or sent,
                reason=reason,
                error=error,
                holds=holds,
                exchange="" if row.message is None else row.message.exchange,
                routing_key="" if row.message is None else row.message.routing_key,
            )
        )
        if holds:
            self._give_back(row)
        else:
            # The row stays in the outbox: its position has to leave the claim, so that a retry finds it free.
            self._leave(row.position, released=True)
            self._next_of_key(row)

    def _give_back(self, row: Row) -> None:
        """Release the row and the later rows of its key: they wait behind it in the outbox."""
        for position in (row.position,) if row.key is None else tuple(self._queues[row.key]):
            self._leave(position, released=True)

    def _next_of_key(self, row: Row) -> None:
        if row.key is None:
            return
        queue = self._queues.get(row.key)
        if queue:
            self._line_up(self._held[queue[0]].row)
        elif row.key in self._unfinished:
            self._unfinished.discard(row.key)
            self._run_out[row.key] = None

    def _leave(self, position: int, *, released: bool = False) -> None:
        row = self._held.pop(position).row
        if row.message is not None:
            self._size -= len(row.message.body)
            if self._by_id.get(row.message.message_id) == position:
                del self._by_id[row.message.message_id]
        if row.key is not None:
            queue = self._queues[row.key]
            queue.remove(position)
            if not queue:
                del self._queues[row.key]
        left = self._claims[row.claim]
        left.discard(position)
        # Where rows were only deleted, the stored positions of the claim stay: a position without a row has no effect.
        if released or not left:
            self._changed.add(row.claim)

    def orders(self) -> Settlement:
        """What to write down now; the same again until `written` is called, so that a failed write loses nothing."""
        return Settlement(
            confirmed=tuple(self._deletes),
            again=tuple(self._again),
            set_aside=tuple(self._aside),
            claims={claim: tuple(sorted(self._claims[claim])) for claim in self._changed},
        )

    def written(self, settlement: Settlement) -> None:
        """Forget these orders, which are on disk; orders that were added after `orders` returned them stay."""
        del self._deletes[: len(settlement.confirmed)]
        del self._again[: len(settlement.again)]
        del self._aside[: len(settlement.set_aside)]
        for claim, positions in settlement.claims.items():
            if len(self._claims[claim]) == len(positions):
                self._changed.discard(claim)
                if not positions:
                    del self._claims[claim]


def _text(outcome: Receipt | PublishError) -> str:
    """The error in words; the row has the message's id already."""
    return printable(str(outcome).removeprefix(f"message {printable(outcome.message_id)}: "), 500)
