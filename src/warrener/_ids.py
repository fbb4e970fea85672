"""Message ids: a random prefix per generator and a fixed-width counter, unique and cheap.

Fixed width matters: a driver patches the id of a message into a cached header frame in place.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import overload

__all__ = ["ID_LENGTH", "IdRange", "id_prefix", "message_ids", "new_message_id", "new_task_id"]

#: Every id that `message_ids` makes has this many ASCII characters.
ID_LENGTH = 32


def id_prefix(source: random.Random | None = None) -> str:
    """Return 80 random bits as 20 hexadecimal characters: what all ids of one producer begin with."""
    return f"{(source or random.SystemRandom()).getrandbits(80):020x}"


def message_ids(prefix: str | None = None) -> Callable[[], str]:
    """Return a function that makes ids: the prefix, then a 48-bit counter, as `ID_LENGTH` hexadecimal characters.

    The counter begins at 1; the ids of flights use its upper half. Each call returns a new id, also if several threads call.
    The function is made of C functions alone, because many publishes call it.
    """
    return partial(next, map(f"{prefix or id_prefix()}%012x".__mod__, count(1)))


class IdRange(Sequence[str]):
    """Consecutive ids: a prefix of 20 characters, and the numbers from `first` on, each as 12 hexadecimal digits.

    It holds no text: an id is formatted when it is read. A driver may write the digits itself.
    """

    __slots__ = ("_length", "first", "prefix")

    def __init__(self, prefix: str, first: int, count: int) -> None:
        self.prefix = prefix
        self.first = first
        self._length = count

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(self.first, self.first + self._length)[index]
        if isinstance(numbers, int):
            return f"{self.prefix}{numbers:012x}"
        return [f"{self.prefix}{number:012x}" for number in numbers]


#: Ids for messages that are made outside a producer.
new_message_id = message_ids()


def new_task_id() -> str:
    """Return a random UUID as text. Nobody can guess it from another id."""
    return str(uuid.uuid4())
