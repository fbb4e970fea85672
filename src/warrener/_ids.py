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

__all__ = ["ID_LENGTH", "IdRange", "MessageIds", "message_ids", "new_message_id", "new_task_id"]

#: Every id that `message_ids` makes has this many ASCII characters.
ID_LENGTH = 32
#: Consecutive ids count from here on, so that they never meet the ids that are made one by one.
_FIRST_OF_RANGES = 1 << 47


def message_ids(source: random.Random | None = None) -> Callable[[], str]:
    """Return a function that makes ids: 80 random bits, then a 48-bit counter, as `ID_LENGTH` hexadecimal characters.

    Each call returns a new id, also if several threads call. The function is made of C functions alone, because
    every publish calls it.
    """
    prefix = (source or random.SystemRandom()).getrandbits(80)
    return partial(next, map(f"{prefix:020x}%012x".__mod__, count(1)))


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


class MessageIds:
    """The ids of one producer: one by one, or consecutive ones. None is given out twice."""

    def __init__(self, source: random.Random | None = None) -> None:
        bits = (source or random.SystemRandom()).getrandbits(80)
        self.prefix = f"{bits:020x}"
        #: Returns a new id. Made of C functions alone, as `message_ids` says.
        self.new: Callable[[], str] = partial(next, map(f"{self.prefix}%012x".__mod__, count(1)))
        self._next = _FIRST_OF_RANGES

    def reserve(self, count: int) -> int:
        """Return the first of `count` consecutive numbers, which are given to nobody else."""
        first = self._next
        self._next = first + count
        return first

    def text(self, number: int) -> str:
        """Return the id with this number."""
        return f"{self.prefix}{number:012x}"


#: Ids for messages that are made outside a producer.
new_message_id = message_ids()


def new_task_id() -> str:
    """Return a random UUID as text. Nobody can guess it from another id."""
    return str(uuid.uuid4())
