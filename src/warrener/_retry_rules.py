"""`RetryRules`: what the ledger does by itself with a message whose attempt was not confirmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import frozen

__all__ = ["COSTS", "RetryRules", "Tokens"]

#: The tokens that one more attempt costs, by what is known of the message: the broker nacked it, an attempt of it may have
#: arrived, its confirm is overdue.
COSTS = {"nacked": 1.0, "unknown": 2.0, "overdue": 3.0}


class Tokens(Protocol):
    """A budget of further attempts, which several ledgers can share."""

    def first_attempts(self, count: int, at: float) -> None:
        """Note messages that were accepted until the instant `at`."""
        ...

    def paid(self, cost: float, at: float) -> bool:
        """Pay for one more attempt. False: the budget forbids it, and nothing was paid."""
        ...


def _one_to_fifteen_seconds(number: int) -> tuple[float, float]:
    delay = min(15.0, 2.0 ** min(number, 4))
    return delay / 2, delay


@frozen(kw_only=True)
class RetryRules:
    """One retry policy, as the ledger and the admission need it."""

    #: Whether a message is sent again after an attempt that may have arrived.
    unknown: bool = True
    #: Whether a message is sent again after a nack.
    nacked: bool = False
    #: Whether an overdue message is sent again while its earlier attempt still waits for an answer.
    overdue: bool = False
    #: Whether a message waits while nothing can be written.
    waits: bool = True
    #: Whether an open breaker of the connection refuses it.
    fail_fast: bool = True
    #: Number of times that a message is written; None: its deadline alone limits them.
    attempts: int | None = None
    #: Returns the shortest and the longest delay in seconds before the attempt that follows nack number 0, 1, 2 …
    delays: Callable[[int], tuple[float, float]] = _one_to_fifteen_seconds
    #: None: attempts after a nack, and of overdue messages, are not limited.
    tokens: Tokens | None = None
