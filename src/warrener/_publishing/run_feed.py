"""The run feed: runs that wait to be written, as the window has room for their messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from warrener._backend import Backend
from warrener._publishing.ledger.batching import Batching
from warrener._publishing.ledger.flights import Flight
from warrener._publishing.runs import Run
from warrener.drivers.base import Link
from warrener.records import Envelope

__all__ = ["RunFeed"]

#: Maximum number of runs that others pass in one turn; the next turn begins behind them.
MOST_PASSED = 64


class RunFeed:
    """The runs that have messages to write, in turn."""

    def __init__(
        self, backend: Backend, batching: Batching, takes: Callable[[Envelope], bool], ask: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._batching = batching
        #: Whether messages with an envelope are written together now.
        self._takes = takes
        #: Makes the link ask for messages.
        self._ask = ask
        self.runs: deque[Run] = deque()
        #: Whether runs are written before the messages of batches this time.
        self.first = False

    def add(self, run: Run) -> bool:
        """Write the messages of the run as the window has room for them, and wake its task when all are accepted.

        False: nothing was done, because the link is not in its usual state. If that state
        ends later, the task of the run is woken.
        """
        if not self._can_feed(run):
            return False
        self.runs.append(run)
        self._ask()
        return True

    def _can_feed(self, run: Run) -> bool:
        if not run.kinds or run.largest > self._batching.largest or run.deadline <= self._backend.clock():
            return False
        return all(map(self._takes, run.kinds))

    def __contains__(self, run: Run) -> bool:
        """Whether messages of the run wait to be written together."""
        return run in self.runs

    def withdraw(self, run: Run) -> None:
        """Write no more messages of the run. There may be room for those behind it."""
        if run in self.runs:
            self.runs.remove(run)
            if self.runs:
                self._ask()

    def release(self) -> None:
        """Wake the tasks of the runs whose messages cannot go together now."""
        for run in [each for each in self.runs if not self._can_feed(each)]:
            self._release(run)

    def _release(self, run: Run) -> None:
        self.runs.remove(run)
        waiter = run.take_waiter()
        if waiter is not None:
            self._backend.wake(waiter)

    def write(self, link: Link, now: float, fly: Callable[[Link, Flight, float], None]) -> None:
        """Write messages of runs: one flight of each in turn, while there is room."""
        runs, passed = self.runs, 0
        while len(runs) > passed and passed < MOST_PASSED and not link.congested:
            run = runs[0]
            if not self._can_feed(run):
                self._release(run)
                continue
            flight = self._batching.next_of_run(run, now)
            if flight is None:
                if not self._batching.others_pass(run):
                    return
                passed += 1
                runs.rotate(-1)
                continue
            fly(link, flight, now)
            if run.unaccepted:
                runs.rotate(-1)
            elif run.last:
                runs.popleft()  # its task is woken when all messages have their outcome
            else:
                self._release(run)
