"""`Ticket`: links a message that is written together with others to the publisher that waits for its outcome."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Parked", "Ticket"]


class Parked(Protocol):
    """An object that a task waits for; it keeps the argument of `Backend.wake` for that task."""

    #: None while no task waits.
    waiter: Any


class Ticket:
    """Links a message of a flight to the publisher that waits for its outcome."""

    __slots__ = ("code", "delivery", "waiter")

    def __init__(self) -> None:
        #: Once a flight was confirmed: the number of the link and the number of the id, see `Flight.code`.
        self.code = 0
        #: The message as a `Delivery` of the ledger, once its flight was expanded.
        self.delivery: Any = None
        #: Opaque: the task that waits.
        self.waiter: Any = None
