"""How many dials one event loop has under way at once.

A process with many producers dials all of them when a broker comes back. At most `DIALS` of these dials are under way at once;
the others wait for their turn, in order, and the time of a dial (`connect_timeout`) begins with its turn.
"""

from __future__ import annotations

from typing import Self

import anyio
from anyio.lowlevel import RunVar

__all__ = ["DIALS", "DialSlot"]

#: The largest number of dials at once.
DIALS = 8

_slots: RunVar[anyio.Semaphore] = RunVar("warrener_dial_slots")


class DialSlot:
    """The turn of one dial, from entering the block until `release`, or to the end of the block."""

    def __init__(self) -> None:
        slots = _slots.get(None)
        if slots is None:
            slots = anyio.Semaphore(DIALS, fast_acquire=True)
            _slots.set(slots)
        self._slots = slots
        self._held = False

    async def __aenter__(self) -> Self:
        await self._slots.acquire()
        self._held = True
        return self

    def release(self) -> None:
        """The dial is over: it is the turn of another one."""
        if self._held:
            self._held = False
            self._slots.release()

    async def __aexit__(self, *_: object) -> None:
        self.release()
