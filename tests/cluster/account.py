"""What the publishers were told, held against what the queues hold; and how long each event left a queue without a confirm."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from attrs import define, field, frozen

__all__ = ["Account", "Event", "Outcome", "read_outcomes", "silences", "summary"]


@frozen
class Outcome:
    """One line of the publishers' journal."""

    message_id: str
    #: "confirmed", "duplicate?" (confirmed, and told that it can be there twice), "unknown", "not sent" or "failed".
    verdict: str
    at: float


@frozen
class Event:
    """One event that happened: from the fault to the instant at which the next one began."""

    kind: str
    #: Whether the client was connected to that node.
    own: bool
    begun: float
    ended: float


def read_outcomes(path: Path) -> list[Outcome]:
    """Read the journal of one queue; its last line may be torn."""
    lines = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return [Outcome(line[0], line[1], float(line[2])) for line in lines if len(line) == 3]


@define
class Account:
    """What was found, over all queues."""

    told: Counter[str] = field(factory=Counter)
    in_queues: int = 0
    lost: int = 0
    #: Messages that are in a queue more than once: announced as a possible duplicate, and not announced.
    twice_told: int = 0
    twice_untold: int = 0
    #: In a queue, though the publisher was told that they were certainly not sent.
    ghosts: int = 0
    strangers: int = 0

    def settle(self, outcomes: Iterable[Outcome], held: Iterable[str]) -> None:
        """Compare one queue with what was told about its messages."""
        verdicts = {outcome.message_id: outcome.verdict for outcome in outcomes}
        counts = Counter(held)
        self.told.update(verdicts.values())
        self.in_queues += counts.total()
        for message_id, verdict in verdicts.items():
            there = counts[message_id]
            self.lost += verdict in ("confirmed", "duplicate?") and not there
            self.ghosts += verdict == "not sent" and there > 0
            if there > 1:
                self.twice_told += verdict in ("duplicate?", "unknown")
                self.twice_untold += verdict not in ("duplicate?", "unknown")
        self.strangers += sum(message_id not in verdicts for message_id in counts)

    @property
    def true(self) -> bool:
        """Whether every publisher was told the truth."""
        return not (self.lost or self.twice_untold or self.ghosts or self.strangers)

    def lines(self) -> list[str]:
        """The account as lines of text."""
        told = ", ".join(f"{count:,} {verdict}" for verdict, count in self.told.most_common())
        return [
            f"told:        {told}",
            f"in queues:   {self.in_queues:,}",
            f"lost:        {self.lost:,} confirmed messages are in no queue",
            f"duplicates:  {self.twice_told:,} announced, {self.twice_untold:,} not announced",
            f"other:       {self.ghosts:,} in a queue though told as not sent, {self.strangers:,} unknown to all publishers",
        ]


def silences(events: Iterable[Event], confirms: dict[str, list[float]]) -> dict[str, list[float]]:
    """For each kind of event: the longest time without a confirm, in the queue that had the longest one.

    `confirms` has the instants of the confirms of each queue, in order. The name of a kind says whose node it was.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        longest = 0.0
        for instants in confirms.values():
            first, last = bisect_right(instants, event.begun), bisect_left(instants, event.ended)
            marks = [event.begun, *instants[first:last], event.ended]
            longest = max(longest, *(later - earlier for earlier, later in pairwise(marks)))
        found[f"{event.kind}, {'own' if event.own else 'another'} node"].append(longest)
    return dict(found)


def summary(found: dict[str, list[float]]) -> list[tuple[str, int, float, float]]:
    """Return for each kind how many events there were, and the median and the maximum of their silences."""
    return [(kind, len(times), statistics.median(times), max(times)) for kind, times in sorted(found.items())]
