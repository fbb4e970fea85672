"""`Resending`: further attempts that a retry policy asks for: after a nack, and of an overdue message.

**After a nack** the message waits for the delay of its policy (`delayed`), and is then written before younger messages.
The delay is a number from the policy's range; a hash of the message_id chooses it, so the ledger draws nothing.

**An overdue message** is written again while its earlier attempt still waits for an answer. The earlier attempt stays in
flight under its tag, as a `Delivery` of its own whose `earlier_of` is the message: it keeps its place in the window. The
broker must have answered a later tag of the same channel. It has then routed the earlier attempt, so no return of it can
still come, and a return that comes is about the later attempt. The first ack of any attempt confirms the message.

A policy's `tokens`, the share of the destination and the limits of the buffer and of the window can forbid an attempt. A
nacked message then ends, and an overdue one waits on for its confirm.
"""

from __future__ import annotations

import hashlib
import math

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.ends import Rules
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.outcomes import nacked
from warrener._publishing.ledger.settlement import Settlement
from warrener._publishing.ledger.shares import Shares
from warrener._publishing.ledger.waiting import Waiting
from warrener._retry_rules import COSTS, RetryRules, Tokens
from warrener.errors import PublishError
from warrener.records import Receipt

__all__ = ["Resending"]

#: Overdue messages that could not be written again are looked at this number of times in `confirm_timeout`.
LOOKS = 8


class Resending:
    """Decides whether and when a message is written again although its link and its channel are well."""

    def __init__(
        self,
        in_flight: InFlight,
        waiting: Waiting,
        shares: Shares,
        rules: Rules,
        settlement: Settlement,
        confirm_timeout: float,
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._shares = shares
        self._rules = rules
        self._settlement = settlement
        self._pause = confirm_timeout / LOOKS
        #: Overdue messages whose policy asks for another attempt, in the order in which they were found.
        self._candidates: dict[Delivery, None] = {}
        self._look_at = math.inf
        #: Number of accepted messages with a policy of their own.
        self._overridden = 0
        #: Number of accepted messages that the budget of the producer's policy was told about.
        self._told = 0
        #: Budgets of other policies, by their identity, each with the number of messages that it was not told about.
        self._untold: dict[int, tuple[Tokens, int]] = {}

    # --- the budget -------------------------------------------------------------------------------------------------

    def accepted(self, delivery: Delivery) -> None:
        """A message with a policy of its own was accepted."""
        self._overridden += 1
        tokens = None if delivery.retry is None else delivery.retry.tokens
        if tokens is not None:
            _, count = self._untold.get(id(tokens), (tokens, 0))
            self._untold[id(tokens)] = tokens, count + 1

    def tell_tokens(self, now: float) -> None:
        """Tell each budget how many of its messages were accepted since the last time."""
        untold, self._untold = self._untold, {}
        for tokens, count in untold.values():
            tokens.first_attempts(count, now)
        default = self._rules.retry.tokens
        accepted = self._settlement.counters.accepted - self._overridden
        if default is not None and accepted > self._told:
            default.first_attempts(accepted - self._told, now)
            self._told = accepted

    def _paid(self, tokens: Tokens | None, cost: float, now: float) -> bool:
        if tokens is None:
            return True
        self.tell_tokens(now)
        return tokens.paid(cost, now)

    # --- after a nack -----------------------------------------------------------------------------------------------

    def after_nack(self, delivery: Delivery, now: float) -> PublishError | None:
        """Return the error that ends a nacked message; None: it waits to be written again."""
        rules = self._rules.retry_of(delivery)
        earlier = "unknown" if delivery.unanswered else "nacked"
        delivery.nacks += 1
        if not rules.nacked or not delivery.waiting:
            return nacked(delivery)
        if rules.attempts is not None and delivery.attempts >= rules.attempts:
            return nacked(delivery, f"; its policy allows {rules.attempts} attempts")
        ready_at = now + _delay(delivery, rules)
        if ready_at >= delivery.deadline:
            return nacked(delivery, "; the next attempt would come after its deadline")
        waiting = self._waiting
        if waiting.full(delivery.size) or not waiting.delayed.fits(delivery):
            return self._suppressed(delivery, "; the buffer has no place for it, or none for its destination")
        if not self._paid(rules.tokens, COSTS[earlier], now):
            return self._suppressed(delivery, "; the retry budget allows no further attempt now")
        delivery.alone = delivery.passed = delivery.ambiguous = False
        waiting.delayed.add(delivery, ready_at)
        return None

    def _suppressed(self, delivery: Delivery, why: str) -> PublishError:
        self._settlement.counters.suppressed += 1
        error = nacked(delivery, why)
        error.cause = "suppressed"
        return error

    # --- overdue messages -------------------------------------------------------------------------------------------

    def look_at(self) -> float:
        """Return the instant at which to call `look` next, or `math.inf`."""
        return self._look_at if self._candidates else math.inf

    def look(self, found: list[Delivery], now: float) -> None:
        """Note the overdue messages `found`, and queue each overdue message that may be written again now."""
        self.tell_tokens(now)
        for delivery in found:
            if self._rules.retry_of(delivery).overdue and delivery.waiting:
                self._candidates[delivery] = None
                self._look_at = now
        if now < self._look_at or not self._candidates or self._in_flight.paused:
            return
        self._look_at = now + self._pause
        again: list[Delivery] = []
        for delivery in list(self._candidates):
            if not delivery.waiting or not delivery.overdue or self._forbidden(delivery, now):
                del self._candidates[delivery]
            elif self._can_go(delivery, again, now):
                del self._candidates[delivery]
                self._leave_in_flight(delivery)
                delivery.unanswered += 1
                again.append(delivery)
        self._waiting.put_back(again)

    def _forbidden(self, delivery: Delivery, now: float) -> bool:
        """Whether the message gets no further attempt, now or later."""
        rules = self._rules.retry_of(delivery)
        return delivery.alone or (rules.attempts is not None and delivery.attempts >= rules.attempts)

    def _can_go(self, delivery: Delivery, again: list[Delivery], now: float) -> bool:
        """Whether the message can be written again now; if so, tokens of its budget are spent."""
        epoch, envelope = delivery.epoch, delivery.envelope
        if epoch is None or epoch.checked < delivery.tag:
            return False
        if not self._waiting.window.has_place(delivery.size, beside=again):
            return False
        if self._shares.used((envelope.exchange, envelope.routing_key), delivery.size, now):
            return False
        if self._paid(self._rules.retry_of(delivery).tokens, COSTS["overdue"], now):
            return True
        self._settlement.counters.suppressed += 1
        delivery.suppressed = True
        del self._candidates[delivery]
        return False

    def _leave_in_flight(self, delivery: Delivery) -> None:
        """Split off the present attempt: it waits for its answer, while the message can be written again."""
        epoch = delivery.epoch
        assert epoch is not None
        earlier = epoch.outstanding[delivery.tag] = delivery.as_earlier()
        earlier.epoch = epoch
        self._settlement.tombstones += 1
        delivery.epoch = None
        delivery.overdue = False

    # --- answers to earlier attempts --------------------------------------------------------------------------------

    def earlier_acked(self, earlier: Delivery, settled: list[Delivery]) -> None:
        """The broker acked an earlier attempt: the message is confirmed, wherever it is now."""
        self._settlement.tombstones -= 1
        delivery = earlier.earlier_of
        assert delivery is not None
        if earlier.ambiguous or earlier.returned is not None:
            return
        if delivery.outcome is not None and delivery.epoch is None:
            return
        delivery.unanswered -= 1
        if delivery.queue is not None:
            delivery.queue.remove(delivery)
        elif delivery.epoch is not None and delivery.tag not in delivery.epoch.outstanding:
            # The same ack answers the later attempt, which comes next. A return of that attempt no longer matters.
            delivery.returned, delivery.ambiguous = None, False
            return
        elif delivery.epoch is not None:
            if delivery.overdue:
                self._in_flight.no_longer_overdue(delivery)
            self._leave_in_flight(delivery)
        receipt = Receipt(delivery.message_id, delivery.attempts, delivery.attempts > 1, self._in_flight.link)
        self._settlement.answer(delivery, receipt, settled)

    def earlier_nacked(self, earlier: Delivery) -> None:
        """The broker nacked an earlier attempt: that attempt is no longer unknown."""
        self._settlement.tombstones -= 1
        delivery = earlier.earlier_of
        assert delivery is not None
        if delivery.outcome is None:
            delivery.unanswered -= 1
            delivery.nacks += 1


def _delay(delivery: Delivery, rules: RetryRules) -> float:
    """Return the seconds before the attempt that follows the newest nack."""
    shortest, longest = rules.delays(delivery.nacks - 1)
    text = f"{delivery.message_id} {delivery.nacks}".encode(errors="replace")
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
    return shortest + (longest - shortest) * drawn
