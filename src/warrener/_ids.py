"""Message ids: a random prefix per generator and a fixed-width counter, unique and cheap.

Fixed width matters: a driver patches the id of a message into a cached header frame in place.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from functools import partial
from itertools import count

__all__ = ["ID_LENGTH", "message_ids", "new_message_id", "new_task_id"]

#: Every id that `message_ids` makes has this many ASCII characters.
ID_LENGTH = 32


def message_ids(source: random.Random | None = None) -> Callable[[], str]:
    """Return a function that makes ids: 80 random bits, then a 48-bit counter, as `ID_LENGTH` hexadecimal characters.

    Each call returns a new id, also if several threads call. The function is made of C functions alone, because
    every publish calls it.
    """
    prefix = (source or random.SystemRandom()).getrandbits(80)
    return partial(next, map(f"{prefix:020x}%012x".__mod__, count(1)))


#: Ids for messages that are made outside a producer.
new_message_id = message_ids()


def new_task_id() -> str:
    """Return a random UUID as text. Nobody can guess it from another id."""
    return str(uuid.uuid4())
