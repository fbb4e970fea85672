"""`Ends`: what the end of a channel or a link does to each publish that was in flight on it."""

from __future__ import annotations

import math
from collections.abc import Callable

from attrs import define

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.outcomes import ended_unanswered, refused, unroutable
from warrener._publishing.ledger.refusals import REFUSALS, Refusals, Target, named
from warrener._publishing.ledger.settlement import Settlement
from warrener._publishing.ledger.waiting import Waiting
from warrener._retry_rules import RetryRules
from warrener.errors import Fault, NotSent, PublishError
from warrener.records import Lane, Returned

__all__ = ["SWEEP_EVERY", "Ends", "Rules"]

#: Seconds between two searches for waiting messages that a new refusal is about, if there are more than `FEW` messages.
SWEEP_EVERY = 0.1
FEW = 256


@define
class Rules:
    """How attempts without an answer, and returns, end. Only the set of exchanges changes, by declarations."""

    #: The policy of messages that have none of their own.
    retry: RetryRules
    #: Number of attempts that a suspect of a channel close gets alone.
    suspect_attempts: int
    #: Exchanges that this producer declared with a type of AMQP itself; their returns are certain.
    standard_exchanges: frozenset[str]

    def retry_of(self, delivery: Delivery) -> RetryRules:
        """Return the policy of the message."""
        return self.retry if delivery.retry is None else delivery.retry

    def stop(self, delivery: Delivery) -> bool:
        """Whether the message is not written again after an attempt without an answer."""
        retry = self.retry_of(delivery)
        if not retry.unknown or delivery.suspected >= self.suspect_attempts:
            return True
        return retry.attempts is not None and delivery.attempts >= retry.attempts

    def unroutable(self, delivery: Delivery, returned: Returned) -> PublishError:
        """Return the outcome of a returned attempt. An exchange of a plugin may return a message and deliver it later."""
        exchange = delivery.envelope.exchange
        certain = not exchange or exchange.startswith("amq.") or exchange in self.standard_exchanges
        return unroutable(delivery, returned, certain=certain)


class Ends:
    """Takes the ends of channels and links; each answers with the messages that got their outcome by it."""

    def __init__(
        self,
        in_flight: InFlight,
        waiting: Waiting,
        refusals: Refusals,
        rules: Rules,
        settlement: Settlement,
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._refusals = refusals
        self._rules = rules
        self._settlement = settlement
        self._counters = settlement.counters
        #: Number of closes of the main channel whose suspects are being tried alone; a guilty one explains one of them.
        self.doubtful = 0
        #: When the waiting messages are searched for those that new refusals are about.
        self.sweep_at = math.inf
        self._swept_at = -math.inf
        #: Number of searches so far.
        self.sweeps = 0

    def channel_closed(
        self, channel: int, fault: Fault, written: int, begun: int, now: float
    ) -> tuple[list[Delivery], bool]:
        """The broker closed the channel; return the messages with an outcome, and whether the close is explained.

        A close that a suspect may still explain counts as explained until `unexplained` tells otherwise. The messages up to
        tag `written` may have been stored; those behind the last one that the broker has checked, up to tag `begun`, may be
        the cause of the close.
        """
        epoch = self._in_flight.close(channel)
        if epoch is None:
            self._counters.stale += 1
            return [], True
        self._waiting.expand_batches()
        settled: list[Delivery] = []
        if epoch.lane is Lane.SUSPECT:
            self._waiting.introductions.channel_closed()
        begun = max(begun, written)
        seen = [
            each for tag, each in epoch.outstanding.items() if epoch.checked < tag <= begun and each.returned is None
        ]
        target = named(fault, seen)
        explained = target is not None or (len(seen) == 1 and fault.reply_code in REFUSALS)
        if explained:
            if epoch.lane is Lane.SUSPECT and target is not None and target.whole_exchange:
                self._cover_earlier(epoch, target)
            self._refuse_guilty(epoch, seen, target, fault, written, settled)
            if epoch.lane is Lane.SUSPECT:
                if target is None and seen[0].alone and self.doubtful:
                    self.doubtful -= 1
                for delivery in epoch.outstanding.values():
                    if delivery.alone and delivery.tag <= written:
                        # Another message was the cause, so this attempt is not counted as one made alone.
                        delivery.suspected -= 1
        late: set[Delivery] = set() if explained else _acquit_passed(seen)
        again = _end_epoch(epoch, written, fault, self._rules, self._settlement, settled)
        if not explained:
            for delivery in again:
                delivery.alone = delivery.alone or epoch.checked < delivery.tag <= begun
            again.sort(key=late.__contains__)
        self._waiting.put_back(again)
        if target is not None:
            self._remember(target, fault, now, settled)
        if (
            not explained
            and fault.reply_code in REFUSALS
            and epoch.lane is Lane.MAIN
            and self._waiting.suspects.entries
        ):
            self.doubtful += 1
            explained = True
        return settled, explained

    def unexplained(self) -> int:
        """Return the number of closes that no suspect has explained, once all suspects have been tried."""
        epoch = self._in_flight.suspect
        if self._waiting.suspects or (epoch is not None and any(each.alone for each in epoch.outstanding.values())):
            return 0
        count, self.doubtful = self.doubtful, 0
        return count

    def _refuse_guilty(
        self,
        epoch: Epoch,
        seen: list[Delivery],
        target: Target | None,
        fault: Fault,
        written: int,
        settled: list[Delivery],
    ) -> None:
        """Refuse the publishes of this channel that the close is about. One of them is the cause, the rest may be stored."""
        guilty = seen if target is None else [each for each in seen if target.covers(each)]
        for delivery in guilty:
            del epoch.outstanding[delivery.tag]
            delivery.epoch = None
            if delivery.tag > written:
                _unmake(delivery)
            elif len(guilty) > 1:
                delivery.unanswered += 1
            self._settlement.answer(delivery, refused(delivery, fault), settled)

    def _cover_earlier(self, epoch: Epoch, target: Target) -> None:
        """Cover the exchanges of the publishes before the first one that was refused.

        They exist, because the broker takes publishes in order.
        """
        for delivery in epoch.outstanding.values():
            if target.covers(delivery):
                return
            self._waiting.introductions.answered(delivery)

    def _remember(self, target: Target, fault: Fault, now: float, settled: list[Delivery]) -> None:
        """Remember the refusal, and refuse the messages of its target that wait, now or `SWEEP_EVERY` seconds later."""
        self._refusals.remember(target, fault, now)
        if target.whole_exchange:
            self._waiting.introductions.refused(target.exchange)
        if len(self._waiting) <= FEW:
            self.sweep_at = now
        else:
            self.sweep_at = min(self.sweep_at, max(now, self._swept_at + SWEEP_EVERY))
        self.sweep(now, settled)

    def sweep(self, now: float, settled: list[Delivery]) -> None:
        """Refuse the waiting messages that new refusals are about, if it is time for that."""
        if self.sweep_at > now:
            return
        self.sweep_at, self._swept_at = math.inf, now
        self.sweeps += 1
        for delivery in self._waiting.live():
            self._waiting.refuse_if_new(delivery, settled)
        self._refusals.new.clear()

    def impatient(self, fault: Fault) -> list[Delivery]:
        """There is no link: end the messages whose policy does not wait for the next one."""
        settled: list[Delivery] = []
        reason = "the link was lost before the message was written, and its retry policy does not wait for another link"
        for delivery in self._waiting.live():
            if not self._rules.retry_of(delivery).waits and delivery.queue is not None:
                delivery.queue.remove(delivery)
                self._settlement.end_unwritten(delivery, NotSent, reason, fault, settled)
        return settled

    def link_lost(self, fault: Fault, written: Callable[[int], int]) -> list[Delivery]:
        """The link ended. `written(channel)` returns the highest tag whose message may have reached the network."""
        self.doubtful = 0
        settled: list[Delivery] = []
        again: list[Delivery] = []
        self._waiting.expand_batches()
        # Messages on the suspects' channel are older than those to the same exchange on the main channel.
        for epoch in sorted(self._in_flight.epochs.values(), key=lambda each: each.lane is Lane.MAIN):
            epoch.expand()
            again += _end_epoch(epoch, written(epoch.channel), fault, self._rules, self._settlement, settled)
        for delivery in self._in_flight.deliveries():
            delivery.overdue = False
        self._in_flight.clear()
        self._waiting.new_link()
        self._waiting.put_back(again)
        return settled


def _end_epoch(
    epoch: Epoch, written: int, fault: Fault, rules: Rules, settlement: Settlement, settled: list[Delivery]
) -> list[Delivery]:
    """End all attempts of an epoch; return the messages that wait again, in order of tag.

    `written` is the highest tag whose message may have reached the network. Messages with an outcome go to `settled`.
    """
    again: list[Delivery] = []
    for tag, delivery in epoch.outstanding.items():
        delivery.epoch = None
        delivery.passed = False
        if delivery.returned is not None:
            settlement.answer(delivery, rules.unroutable(delivery, delivery.returned), settled)
            continue
        delivery.ambiguous = False
        left = delivery.abandoned or delivery.outcome is not None
        if tag > written:
            _unmake(delivery)
            if left:
                reason = "its publish call ended early, and the link was lost before the message was written"
                settlement.end_unwritten(delivery, NotSent, reason, fault, settled)
            else:
                again.append(delivery)
            continue
        delivery.unanswered += 1
        if left or rules.stop(delivery):
            settlement.answer(delivery, ended_unanswered(delivery, fault, rules.suspect_attempts), settled)
        else:
            again.append(delivery)
    return again


def _acquit_passed(seen: list[Delivery]) -> set[Delivery]:
    """Return the suspects that go behind the others. Their attempts do not count as alone.

    The broker had time to close the channel because of them, and did not: the cause is probably a suspect that was
    written later. That suspect is written first now, and so is alone on its channel.
    """
    passed = {each for each in seen if each.passed and each.alone}
    if len(passed) == len(seen):
        return set()
    for delivery in passed:
        delivery.suspected -= 1
    return passed


def _unmake(delivery: Delivery) -> None:
    """The present attempt was not written, so it does not count."""
    delivery.attempts -= 1
    if delivery.alone:
        delivery.suspected -= 1
