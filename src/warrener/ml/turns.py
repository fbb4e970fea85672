"""Turns: which connection's bytes are handled next, and how many in one pass of the event loop.

Handling the bytes of a connection can be expensive: four kilobytes are 700 chunks of one byte each, or 40 requests. If
the loop handled all connections one after the other, a client that has just asked for the liveness of the service would
wait for all of them. So the loop handles bytes for at most `SLICE` seconds and `TURNS` connections, and then does
everything else that it has to do. A turn may begin a request, whose cost shows only afterwards. When a pass of the loop
takes longer than `LONG`, the next one has half as many turns; when it does not, one more. A connection that has cost
little has its turn before one that has cost much. Of two connections that cost the same, the one that asked last has
its turn first. So when the work is more than the time allows, recent clients are answered, and the others are late.

This is start-time fair queueing. A connection's turn has a virtual start: the end of its turn before, or the virtual time
of the queue if that is later. So a connection that was silent has no advantage over the others, and no disadvantage.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from attrs import define, field

__all__ = ["SLICE", "TURNS", "Turn", "Turns"]

#: Seconds and turns after which the loop goes on with its other work, and the fewest turns of a pass.
SLICE = 0.01
TURNS, FEWEST = 16, 4
#: Seconds that a pass of the loop should take at most.
LONG = 0.03


class Turn(Protocol):
    """A connection that asks for turns."""

    #: The virtual time at which its turns so far end. `Turns` sets it.
    paid: float

    def take_turn(self) -> None:
        """Handle the bytes that are there."""

    def wait_turn(self) -> None:
        """Read no more bytes until the turn."""


@define
class Turns:
    """The queue of the connections that have something to handle."""

    clock: Callable[[], float]
    #: Runs a function in the next pass of the event loop.
    call_soon: Callable[[Callable[[], None]], object]
    _waiting: list[tuple[float, int, Turn]] = field(factory=list[tuple[float, int, Turn]])
    _asked: int = 0
    #: The virtual time: the start of the turn that was given last.
    _now: float = 0.0
    #: The seconds and the turns that this pass has used, and its maximum number of turns.
    _seconds: float = 0.0
    _turns: int = 0
    _allowed: int = TURNS
    #: Whether a connection has its turn at this moment.
    _giving: bool = False
    #: The instant at which this pass began, and whether the next pass is scheduled.
    _began: float = 0.0
    _scheduled: bool = False

    def ask(self, turn: Turn) -> None:
        """Give a turn at once if this pass has time left and no other connection waits, else later."""
        start = max(turn.paid, self._now)
        if self._has_time and not self._waiting and not self._giving:
            self._give(start, turn)
        else:
            self._asked += 1
            turn.wait_turn()
            heapq.heappush(self._waiting, (start, -self._asked, turn))
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled, self._began = True, self.clock()
        self.call_soon(self._next_pass)

    @property
    def _has_time(self) -> bool:
        return self._seconds < SLICE and self._turns < self._allowed

    def _give(self, start: float, turn: Turn) -> None:
        self._now, self._giving = start, True
        began = self.clock()
        try:
            turn.take_turn()
        finally:
            self._giving = False
        took = self.clock() - began
        turn.paid = start + took
        self._seconds += took
        self._turns += 1

    def _next_pass(self) -> None:
        long = self.clock() - self._began > LONG
        self._allowed = max(FEWEST, self._allowed // 2) if long else min(TURNS, self._allowed + 1)
        self._seconds, self._turns, self._scheduled = 0.0, 0, False
        while self._waiting and self._has_time:
            start, _, turn = heapq.heappop(self._waiting)
            self._give(start, turn)
        if self._turns:
            self._schedule()
