"""A ledger with the driver's part played by hand: tags are assigned as a channel assigns them, time is a number."""

from __future__ import annotations

from collections import Counter

from attrs import evolve

from warrener._publishing.ledger import Delivery, Ledger, Verdict, verdict_of
from warrener._retry_rules import RetryRules
from warrener.errors import Fault, FaultKind
from warrener.records import Envelope, Lane, Returned

LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset by peer")
NOT_FOUND = Fault(FaultKind.CHANNEL_CLOSED, "NOT_FOUND - no exchange 'x'", reply_code=404)
INTERNAL = Fault(FaultKind.CHANNEL_CLOSED, "INTERNAL_ERROR", reply_code=541)


class Bench:
    """A ledger, the instant, and what was written so far."""

    def __init__(
        self,
        *,
        up: bool = True,
        max_buffered: int = 100,
        max_buffered_bytes: int = 10_000,
        max_in_flight: int = 100,
        max_in_flight_bytes: int = 64 * 1024 * 1024,
        at_least_once: bool = True,
        retry: RetryRules | None = None,
        confirm_timeout: float = 30.0,
    ) -> None:
        self.ledger = Ledger(
            max_buffered=max_buffered,
            max_buffered_bytes=max_buffered_bytes,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            retry=RetryRules(unknown=at_least_once) if retry is None else retry,
            confirm_timeout=confirm_timeout,
        )
        self.now = 100.0
        self.serial = 0
        #: (link, channel, tag) -> delivery, for ever: what an observer of the wire would have noted.
        self.wire: dict[tuple[int, int, int], Delivery] = {}
        self.last_tag: Counter[int] = Counter()
        self.channels: dict[Lane, int] = {}
        self.opened = 0
        self.accepted: list[Delivery] = []
        if up:
            self.up()

    def begin(self) -> None:
        """Start a link with its main channel; the sender is still shut."""
        self.ledger.begin_link(self.ledger.link + 1)
        self.last_tag.clear()
        self.channels = {}
        self.opened = 0
        self.open(Lane.MAIN)

    def up(self) -> None:
        self.begin()
        self.ledger.link_up(self.ledger.link)

    def open(self, lane: Lane) -> int:
        self.opened += 1
        self.channels[lane] = self.opened
        self.ledger.channel_opened(lane, self.opened)
        return self.opened

    def accept(
        self,
        *,
        message_id: str | None = None,
        timeout: float = 60.0,
        token: str | None = None,
        body: bytes = b"body",
        exchange: str = "",
        routing_key: str = "q",
        mandatory: bool = True,
        retry: RetryRules | None = None,
    ) -> Delivery:
        self.serial += 1
        delivery = Delivery(
            Envelope(exchange=exchange, routing_key=routing_key, mandatory=mandatory),
            body,
            message_id or f"m{self.serial}",
            self.now + timeout,
            token,
        )
        delivery.retry = retry
        self.ledger.accept(delivery)
        self.accepted.append(delivery)
        return delivery

    def write(self, limit: int = 1_000_000) -> list[Delivery]:
        """Write what the ledger says, as the owner does, and at most `limit` of it."""
        written: list[Delivery] = []
        while len(written) < limit and (delivery := self.ledger.next(self.now)) is not None:
            channel = self.channels[delivery.lane]
            self.last_tag[channel] += 1
            tag = self.last_tag[channel]
            self.ledger.published(delivery, channel, tag, self.now)
            self.wire[self.ledger.link, channel, tag] = delivery
            written.append(delivery)
        return written

    def publish(self, count: int, **fields: object) -> list[Delivery]:
        """Accept `count` messages and write what may be written."""
        deliveries = [self.accept(**fields) for _ in range(count)]  # type: ignore[arg-type]
        self.write()
        return deliveries

    def ack(self, tag: int, *, multiple: bool = False, channel: int = 1) -> list[Delivery]:
        return self.ledger.answers.confirmed(channel, tag, multiple, self.now)

    def nack(self, tag: int, *, multiple: bool = False, channel: int = 1) -> list[Delivery]:
        return self.ledger.answers.nacked(channel, tag, multiple, self.now)

    def lose(self, *, written: int = 1_000_000, fault: Fault = LOST) -> list[Delivery]:
        """Lose the link; on each channel, tags up to `written` may have left."""
        return self.ledger.ends.link_lost(fault, lambda _channel: written)

    def close_channel(
        self, fault: Fault = NOT_FOUND, *, lane: Lane = Lane.MAIN, written: int = 1_000_000
    ) -> list[Delivery]:
        return self.ledger.ends.channel_closed(self.channels.pop(lane), fault, written, written, self.now)[0]

    def bounce(self, delivery: Delivery, *, channel: int = 1, code: int = 312) -> None:
        """Have the broker return the delivery."""
        self.ledger.answers.returned(channel, evolve(returned_of(delivery), reply_code=code))


def returned_of(
    delivery: Delivery, *, token: str | None = "own", message_id: str | None = "own", body_hash: bytes = b""
) -> Returned:
    """Return what a broker would say that returns the delivery; `token` and `message_id` may be falsified."""
    return Returned(
        312,
        "NO_ROUTE",
        delivery.envelope.exchange,
        delivery.envelope.routing_key,
        delivery.message_id if message_id == "own" else message_id,
        delivery.token if token == "own" else token,
        delivery.size,
        body_hash,
    )


def books_balance(ledger: Ledger, accepted: list[Delivery]) -> None:
    """Compare the ledger's counts with a count over every delivery that was ever accepted (R24, I5)."""
    verdicts = Counter(verdict_of(each.outcome) for each in accepted if each.outcome is not None)
    unsettled = [each for each in accepted if each.outcome is None]
    cancelled = [each for each in unsettled if not each.waiting and not each.abandoned]
    counters = ledger.counters
    assert counters.accepted == len(accepted)
    assert counters.confirmed == verdicts[Verdict.CONFIRMED]
    assert counters.nacked == verdicts[Verdict.NACKED]
    assert counters.unknown == verdicts[Verdict.UNKNOWN]
    assert counters.rejected == verdicts[Verdict.REJECTED] + len(cancelled)
    assert counters.cancelled == len(cancelled)
    assert ledger.pending == len(unsettled) - len(cancelled)
    assert (
        counters.accepted
        == counters.confirmed + counters.rejected + counters.nacked + counters.unknown + ledger.pending
    )
