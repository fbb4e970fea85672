"""Message ids: a random prefix per generator and a fixed-width counter, unique and cheap.

Fixed width matters: a driver patches the id of a message into a cached header frame in place.
"""

from __future__ import annotations

import random
import uuid
from itertools import count

__all__ = ["ID_LENGTH", "MessageIds", "new_message_id", "new_task_id"]

#: Every id that `MessageIds` makes has this many ASCII characters.
ID_LENGTH = 32


class MessageIds:
    """An endless supply of ids: 80 random bits, then a 48-bit counter, as hexadecimal text."""

    def __init__(self, source: random.Random | None = None) -> None:
        prefix = (source or random.SystemRandom()).getrandbits(80)
        self._format = f"{prefix:020x}%012x"
        self._counter = count(1)

    def __call__(self) -> str:
        """The next id: `ID_LENGTH` characters, never given out before by this generator."""
        return self._format % next(self._counter)


#: Ids for messages that are made outside a producer.
new_message_id = MessageIds()


def new_task_id() -> str:
    """Return a random UUID as text: for ids that others must not be able to guess from one they have seen."""
    return str(uuid.uuid4())
