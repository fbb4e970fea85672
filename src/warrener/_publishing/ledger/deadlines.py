"""`Deadlines`: which waiting messages pass their deadline, and when the next one does."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Protocol

from warrener._publishing.ledger.queues import SLACK

__all__ = ["Deadlines", "Timed"]


class Timed(Protocol):
    """A message, or a flight."""

    @property
    def deadline(self) -> float:
        """Monotonic seconds; `math.inf` for none."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether the deadline counts."""
        ...


class Deadlines:
    """All waiting messages with a finite deadline, in order of deadline.

    Messages with the same timeout come in order of deadline and go to a deque, at O(1). A message whose deadline is
    earlier than the last one of the deque goes to a heap. An entry whose message no longer waits is dead; it keeps its
    place. Dead entries are dropped when they reach the front, and all at once when they outnumber the live ones. So at
    most 2 × (waiting messages) + `SLACK` entries are held.
    """

    __slots__ = ("_heap", "_live", "_run", "_serial")

    def __init__(self) -> None:
        self._run: deque[Timed] = deque()
        self._heap: list[tuple[float, int, Timed]] = []
        self._serial = 0
        #: Number of waiting messages, those without a deadline included.
        self._live = 0

    def __len__(self) -> int:
        """Number of entries held, dead ones included."""
        return len(self._run) + len(self._heap)

    def add(self, entry: Timed) -> None:
        """Watch one more message."""
        self._live += 1
        deadline = entry.deadline
        run = self._run
        if not run or deadline >= run[-1].deadline:
            if deadline != math.inf:
                run.append(entry)
        else:
            self._serial += 1
            heapq.heappush(self._heap, (deadline, self._serial, entry))

    def forget(self, count: int = 1) -> None:
        """Note that `count` messages no longer wait."""
        self._live -= count
        run = self._run
        while run and not run[0].waiting:
            run.popleft()
        if self._heap:
            self._drop_dead_top()
        if len(run) + len(self._heap) > 2 * self._live + SLACK:
            self._run = deque([each for each in run if each.waiting])
            self._heap = [each for each in self._heap if each[2].waiting]
            heapq.heapify(self._heap)

    def earliest(self) -> float:
        """Return the earliest deadline of all waiting messages, or `math.inf`."""
        instant = self._run[0].deadline if self._run else math.inf
        return min(instant, self._heap[0][0]) if self._heap else instant

    def passed(self, now: float) -> list[Timed]:
        """Return the messages and flights whose deadline is not after `now`, earliest first."""
        run, heap = self._run, self._heap
        passed: list[Timed] = []
        while self.earliest() <= now:
            if run and not (heap and heap[0][0] < run[0].deadline):
                entry = run.popleft()
            else:
                entry = heapq.heappop(heap)[2]
            if entry.waiting:
                passed.append(entry)
        return passed

    def _drop_dead_top(self) -> None:
        while self._heap and not self._heap[0][2].waiting:
            heapq.heappop(self._heap)
