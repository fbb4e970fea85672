"""`Run`: the messages of one `publish_many`, the one task that waits for all of them, and their outcomes.

The receipt of a message of a flight is made when a program reads it. Until then the run keeps one entry for all neighbours
that were confirmed together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, TypeAlias, cast, overload

from warrener._publishing.ledger import Delivery
from warrener._publishing.ledger.flights import Flight
from warrener.errors import PublishError, Unconfirmed
from warrener.records import Envelope, Receipt

__all__ = ["Outcomes", "Run", "receipt_of"]

_place = itemgetter(0)
#: Makes a receipt without the call of its `__new__`.
_new: Callable[[type[Receipt], tuple[str, int]], Receipt] = cast("Any", tuple).__new__


#: Neighbours that were confirmed in a flight: the place of the first one, their number, the first code, and their
#: message_ids, if callers chose them.
ConfirmedRow: TypeAlias = "tuple[int, int, int, list[str] | None]"


def receipt_of(prefix: str, code: int) -> Receipt:
    """Return the receipt of a message of a flight."""
    return _new(Receipt, (prefix, code))


def _receipts_of(row: ConfirmedRow, prefix: str) -> Iterator[Receipt]:
    _, count, code, ids = row
    if ids is None:
        return (receipt_of(prefix, each) for each in range(code, code + count))
    link = code >> 48
    return (Receipt(message_id, 1, False, link) for message_id in ids)


class Run:
    """Many messages and the one task that waits for them.

    Their places count from 0 in the order given. Bodies that share an envelope are put in piece by piece, and the sender takes
    them from there (`bodies`, `at`); all other messages are put in one by one.
    """

    __slots__ = (
        "at",
        "base",
        "bodies",
        "confirmed_rows",
        "deadline",
        "envelope",
        "envelopes",
        "ids",
        "kinds",
        "largest",
        "last",
        "left",
        "singles",
        "waiter",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        #: The envelope of the present piece, or one for each of its messages, and all envelopes that it has.
        self.envelope: Envelope | None = None
        self.envelopes: list[Envelope] | None = None
        self.kinds: Collection[Envelope] = ()
        #: The message_ids of the present piece, if callers chose them.
        self.ids: list[str] | None = None
        #: The present piece, the index in it of the next message to accept, and the place of its first message.
        self.bodies: list[bytes] = []
        self.at = 0
        #: The size of its largest body.
        self.largest = 0
        self.base = 0
        #: Whether no piece follows.
        self.last = False
        #: Number of accepted messages without an outcome.
        self.left = 0
        #: The messages that are accounted for alone, or the errors with which they were refused, by place.
        self.singles: dict[int, Delivery | PublishError] = {}
        #: Rows of neighbours that were confirmed in flights.
        self.confirmed_rows: list[ConfirmedRow] = []
        self.waiter: Any = None

    @property
    def next_place(self) -> int:
        """The place of the next message to accept."""
        return self.base + self.at

    @property
    def unaccepted(self) -> int:
        """Number of messages of the present piece that are not accepted yet."""
        return len(self.bodies) - self.at

    def put(self, envelope: Envelope, bodies: list[bytes], largest: int) -> None:
        """Begin a piece, whose largest body has `largest` bytes; the one before was accepted."""
        self.base += self.at
        self.at = 0
        self.envelope, self.envelopes, self.kinds, self.ids = envelope, None, (envelope,), None
        self.bodies = bodies
        self.largest = largest

    def put_own(self, envelopes: list[Envelope], ids: list[str], bodies: list[bytes], largest: int) -> None:
        """Begin the next part of the run; each of its messages has its own envelope and message_id. The part before it was accepted."""
        self.put(envelopes[0], bodies, largest)
        self.envelopes, self.kinds, self.ids = envelopes, set(envelopes), ids

    def place_one(self, message: Delivery | PublishError) -> None:
        """The next message is accounted for alone, or refused."""
        self.singles[self.next_place] = message
        if self.unaccepted:
            self.at += 1
        else:
            self.base += 1

    def watch(self, delivery: Delivery) -> None:
        """Wait for this message too."""
        if delivery.outcome is None:
            delivery.waiter = self
            self.left += 1

    def expanded(self, place: int, delivery: Delivery) -> None:
        """The message at this place is accounted for alone from now on."""
        self.singles[place] = delivery

    def confirmed(self, flight: Flight, start: int, stop: int) -> Any:
        """Messages of a flight are confirmed; return the ticket of the task to wake, or None."""
        place, count, code = flight.start + start, stop - start, flight.code(start)
        rows = self.confirmed_rows
        if flight.ids is not None:
            rows.append((place, count, code, flight.ids[start:stop]))
        elif rows and rows[-1][0] + rows[-1][1] == place and rows[-1][2] + rows[-1][1] == code and rows[-1][3] is None:
            rows[-1] = (rows[-1][0], rows[-1][1] + count, rows[-1][2], None)
        else:
            rows.append((place, count, code, None))
        return self.ended(count)

    def ended(self, count: int = 1) -> Any:
        """Messages have their outcome; return the ticket of the task to wake, or None."""
        self.left -= count
        return self.take_waiter() if self.left == 0 and self.last and not self.unaccepted else None

    def take_waiter(self) -> Any:
        """Return the ticket of the task that waits, if one does; it is to be woken."""
        waiter, self.waiter = self.waiter, None
        return waiter

    def receipts(self, prefix: str) -> Iterator[Receipt]:
        """Return the receipts of the messages that were confirmed in flights."""
        return chain.from_iterable(_receipts_of(row, prefix) for row in self.confirmed_rows)

    def deliveries(self) -> Iterator[Delivery]:
        """Return the messages that are accounted for alone."""
        return (item for item in self.singles.values() if isinstance(item, Delivery))

    def forget(self) -> None:
        """No task waits for the run any more."""
        self.waiter = None


class Outcomes(Sequence[Receipt | PublishError]):
    """The outcomes of one `publish_many`, in the order given. A receipt is made when it is looked at."""

    __slots__ = ("_count", "_prefix", "_rows", "_singles")

    def __init__(self, run: Run, prefix: str) -> None:
        self._count = run.next_place
        self._prefix = prefix
        self._rows = sorted(run.confirmed_rows, key=_place)
        self._singles = run.singles

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Receipt | PublishError: ...

    @overload
    def __getitem__(self, index: slice) -> list[Receipt | PublishError]: ...

    def __getitem__(self, index: int | slice) -> Receipt | PublishError | list[Receipt | PublishError]:
        places = range(self._count)[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def __iter__(self) -> Iterator[Receipt | PublishError]:
        place, prefix = 0, self._prefix
        for row in self._rows:
            while place < row[0]:
                yield self._single(place)
                place += 1
            yield from _receipts_of(row, prefix)
            place += row[1]
        while place < self._count:
            yield self._single(place)
            place += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(cast("Sequence[object]", other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._count} outcomes>"

    def _at(self, place: int) -> Receipt | PublishError:
        row = bisect_right(self._rows, place, key=_place) - 1
        if row >= 0:
            start, count, code, ids = self._rows[row]
            if place < start + count:
                if ids is not None:
                    return Receipt(ids[place - start], 1, False, code >> 48)
                return receipt_of(self._prefix, code + place - start)
        return self._single(place)

    def _single(self, place: int) -> Receipt | PublishError:
        item = self._singles[place]
        if isinstance(item, PublishError):
            return item
        outcome = item.outcome
        if outcome is not None:
            return outcome
        return Unconfirmed(item.message_id, "the producer has no outcome for it; please report this as a bug")
