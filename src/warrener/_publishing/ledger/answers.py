"""`Answers`: what the broker says about publishes: acks, nacks and returns."""

from __future__ import annotations

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.ends import Rules
from warrener._publishing.ledger.epoch import Epoch
from warrener._publishing.ledger.in_flight import InFlight
from warrener._publishing.ledger.outcomes import acked
from warrener._publishing.ledger.refusals import Refusals
from warrener._publishing.ledger.resending import Resending
from warrener._publishing.ledger.settlement import Settlement
from warrener._publishing.ledger.waiting import Waiting
from warrener.errors import PublishError
from warrener.records import Lane, Receipt, Returned

__all__ = ["Answers"]


class Answers:
    """Takes acks, nacks and returns; each answers with the messages that got their outcome by it."""

    def __init__(
        self,
        in_flight: InFlight,
        waiting: Waiting,
        refusals: Refusals,
        rules: Rules,
        settlement: Settlement,
        resending: Resending,
    ) -> None:
        self._in_flight = in_flight
        self._waiting = waiting
        self._refusals = refusals
        self._rules = rules
        self._settlement = settlement
        self._resending = resending
        #: The messages that the broker nacked; the sender takes them out.
        self.refused: list[Delivery] = []
        self._counters = settlement.counters

    def confirmed(self, channel: int, tag: int, multiple: bool, now: float) -> list[Delivery]:
        """basic.ack of `tag`, or of every outstanding tag up to it."""
        settled: list[Delivery] = []
        link, confirmed, size = self._in_flight.link, 0, 0
        answered = self._answered(channel, tag, multiple, now)
        epoch = self._in_flight.epochs.get(channel)
        if epoch is not None and epoch.flights:
            self._land(epoch, tag, multiple)
        for delivery in answered:
            delivery.epoch = None
            size += delivery.size
            if delivery.waiting and delivery.returned is None and not delivery.ambiguous:
                # The usual case: this does the same as `Settlement.answer`, without its checks.
                delivery.outcome = Receipt(delivery.message_id, delivery.attempts, delivery.attempts > 1, link)
                delivery.waiting = False
                confirmed += 1
                settled.append(delivery)
            elif delivery.earlier_of is not None:
                self._resending.earlier_acked(delivery, settled)
            elif delivery.returned is not None:
                self._settlement.answer(delivery, self._rules.unroutable(delivery, delivery.returned), settled)
            else:
                self._settlement.answer(delivery, acked(delivery, link), settled)
        self._in_flight.size -= size
        self._counters.confirmed += confirmed
        self._settlement.deadlines.forget(confirmed)
        return settled

    def _land(self, epoch: Epoch, tag: int, multiple: bool) -> None:
        """Confirm messages of flights."""
        landed = epoch.land(tag, multiple)
        for flight, start, stop in landed:
            self._in_flight.size -= flight.take(start, stop)
            self._counters.confirmed += stop - start
        self._settlement.landed += landed

    def nacked(self, channel: int, tag: int, multiple: bool, now: float) -> list[Delivery]:
        """basic.nack of `tag`, or of every outstanding tag up to it. The policy of each message says if it is sent again."""
        settled: list[Delivery] = []
        if (epoch := self._in_flight.epochs.get(channel)) is not None:
            epoch.expand()
        self._waiting.expand_batches()
        for delivery in self._answered(channel, tag, multiple, now):
            delivery.epoch = None
            self._in_flight.size -= delivery.size
            if delivery.earlier_of is not None:
                self._resending.earlier_nacked(delivery)
                self.refused.append(delivery)
                continue
            result: PublishError | None
            if delivery.returned is not None:
                result = self._rules.unroutable(delivery, delivery.returned)
            else:
                self.refused.append(delivery)
                result = self._resending.after_nack(delivery, now)
            if result is not None:
                self._settlement.answer(delivery, result, settled)
        return settled

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return. It gives no message its outcome; the confirm that follows does, or the end of the epoch.

        A return that fits no single attempt makes no message `Unroutable`. Attempts that it may be about are in doubt: an
        ack of theirs ends as `Unconfirmed`.
        """
        epoch = self._in_flight.epochs.get(channel)
        if epoch is None:
            self._counters.stale += 1
            return
        self._counters.returned += 1
        epoch.expand()
        delivery = epoch.match(returned)
        if delivery is None:
            self._counters.anomalies += 1
            for candidate in epoch.candidates(returned):
                candidate.ambiguous = True
        elif delivery.returned is None:
            delivery.returned = returned
            epoch.checked = max(epoch.checked, delivery.tag)
        else:
            self._counters.anomalies += 1

    def _answered(self, channel: int, tag: int, multiple: bool, now: float) -> list[Delivery]:
        """Take out the publishes that the broker answers, and count an answer with an unknown channel or tag."""
        in_flight = self._in_flight
        epoch = in_flight.epochs.get(channel)
        if epoch is None:
            self._counters.stale += 1
            return []
        if tag not in epoch.outstanding and not epoch.flying(tag):
            self._counters.anomalies += 1
        in_flight.answered_at = now
        answered = epoch.take(tag, multiple)
        if in_flight.overdue:
            for delivery in answered:
                if delivery.overdue:
                    in_flight.no_longer_overdue(delivery)
        if epoch.lane is Lane.SUSPECT:
            for delivery in answered:
                self._waiting.introductions.answered(delivery)
                self._refusals.passed(delivery)
        return answered
