"""The short way through the ledger, which most messages take, against the long one."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import asdict
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ledger.driving import Bench, books_balance
from warrener._publishing.ledger import Delivery
from warrener.errors import Fault, FaultKind
from warrener.records import Envelope, Lane

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "publish", "publish", "ack", "ack all", "nack", "bounce", "pause", "resume", "lose", "up",
             "close channel", "open", "tick", "cancel"]
        ),
        st.integers(0, 7),
    ),
    max_size=40,
)  # fmt: skip


TOO_LARGE = Fault(FaultKind.CHANNEL_CLOSED, "message size 4 is larger than configured max size 3", reply_code=406)


def sized(size: int, exchange: str = "") -> Delivery:
    """Return a message with a body of this size."""
    return Delivery(Envelope(exchange, "q"), b"x" * size, "sized", 1000.0)


class FastPath(Bench):
    """Publishes by the short way wherever the ledger offers it."""

    def publish(self, count: int, **fields: Any) -> list[Delivery]:
        published: list[Delivery] = []
        for _ in range(count):
            channel = self.ledger.fast_path(sized(4))
            if channel is None:
                published += super().publish(1, **fields)
                continue
            self.serial += 1
            delivery = Delivery(Envelope(routing_key="q"), b"body", f"m{self.serial}", self.now + 60.0)
            self.last_tag[channel] += 1
            self.ledger.accept_published(delivery, channel, self.last_tag[channel], self.now)
            self.wire[self.ledger.link, channel, self.last_tag[channel]] = delivery
            self.accepted.append(delivery)
            published.append(delivery)
        return published


def perform(bench: Bench, operation: str, number: int) -> None:
    """Do one thing to a bench; the same thing, whichever bench it is."""
    ledger = bench.ledger
    match operation:
        case "publish" if not ledger.full(4):
            bench.publish(1)
        case "ack" | "ack all" | "nack":
            tell = bench.nack if operation == "nack" else bench.ack
            tell(number, multiple=operation == "ack all", channel=bench.channels.get(Lane.MAIN, 1))
        case "bounce" if bench.accepted:
            bench.bounce(bench.accepted[-1], channel=bench.channels.get(Lane.MAIN, 1))
        case "pause":
            ledger.pause()
        case "resume":
            ledger.resume(bench.now)
        case "lose":
            bench.lose(written=number)
            bench.channels.clear()
            bench.opened = 0
        case "up" if not bench.opened:
            bench.up()
        case "close channel" if Lane.MAIN in bench.channels:
            bench.close_channel(written=number)
        case "open":
            lane = Lane.SUSPECT if number % 2 and ledger.wants_suspect_channel else Lane.MAIN
            if bench.opened and lane not in bench.channels:
                bench.open(lane)
        case "tick":
            bench.now += number * 10
            ledger.expire(bench.now)
        case "cancel" if bench.accepted:
            ledger.cancel(bench.accepted[number % len(bench.accepted)])
        case _:
            pass
    bench.write(number % 3)  # a congested link takes only some of it


def seen(bench: Bench) -> dict[str, Any]:
    """Everything that shows."""
    ledger = bench.ledger
    return {
        "counters": asdict(ledger.counters),
        "counts": (ledger.in_flight, ledger.buffered, ledger.buffered_bytes, ledger.pending),
        "times": (ledger.next_wakeup(), ledger.silent(bench.now)),
        "wire": {place: delivery.message_id for place, delivery in bench.wire.items()},
        "deliveries": [
            (
                each.message_id,
                each.attempts,
                each.unanswered,
                each.tag,
                each.published_at,
                each.waiting,
                repr(each.outcome),
            )
            for each in bench.accepted
        ],
        "late": [(outcome.message_id, repr(outcome.result)) for outcome in ledger.settlement.late],
    }


@given(OPERATIONS, st.integers(1, 4))
@example([("publish", 0), ("bounce", 0), ("publish", 0), ("bounce", 0), ("ack", 2)], 4)
@example([("publish", 0), ("publish", 0), ("close channel", 7), ("open", 0), ("publish", 0)], 2)
@example([("publish", 0), ("publish", 0), ("lose", 7), ("up", 0), ("publish", 0)], 4)
def test_the_short_way_shows_no_difference(operations: list[tuple[str, int]], max_in_flight: int) -> None:
    """Whatever happens before, between and after: tags, order, counts, timers and outcomes are those of the long way."""
    long, short = (make(max_in_flight=max_in_flight, max_buffered=5) for make in (Bench, FastPath))
    for operation, number in operations:
        for bench in (long, short):
            perform(bench, operation, number)
        assert seen(short) == seen(long)
    books_balance(short.ledger, short.accepted)


def test_the_short_way_is_offered_to_a_healthy_link() -> None:
    """It is taken at all: sender open, room, nobody waiting; by a body as large as the whole buffer, too."""
    bench = Bench(max_buffered_bytes=10)
    assert [bench.ledger.fast_path(sized(size)) for size in (0, 4, 10)] == [1, 1, 1]


@pytest.mark.parametrize(
    "why", ["down", "paused", "full", "waiting", "too large", "suspects", "not covered", "refusal"]
)
def test_the_short_way_is_not_offered(why: str) -> None:
    """Nobody overtakes, no limit is passed, nothing goes where it must not."""
    bench = Bench(up=why != "down", max_in_flight=1, max_buffered_bytes=10)
    match why:
        case "paused":
            bench.ledger.pause()
        case "full":
            bench.publish(1)
        case "waiting":
            bench.ledger.pause()
            bench.accept()
            bench.ledger.resume(bench.now)
        case "suspects":
            bench.publish(2)
            bench.close_channel()
            bench.open(Lane.MAIN)
        case "not covered":
            assert bench.ledger.fast_path(sized(4, exchange="x")) is None
            bench.ledger.pause()
        case "refusal":
            bench.publish(1)
            bench.close_channel(TOO_LARGE)
            bench.open(Lane.MAIN)
        case _:
            pass
    assert bench.ledger.fast_path(sized(11 if why == "too large" else 4)) is None


@pytest.mark.parametrize(("channel", "tag"), [(1, 2), (1, 0), (2, 1)])
def test_a_tag_out_of_step_is_refused(channel: int, tag: int) -> None:
    """Tags are 1, 2, 3 … of the main channel (I6); anything else would confirm the wrong publish."""
    bench = Bench()
    delivery = Delivery(Envelope(routing_key="q"), b"body", "m", bench.now + 60.0)
    with pytest.raises(RuntimeError, match=f"tag {tag} on channel {channel}"):
        bench.ledger.accept_published(delivery, channel, tag, bench.now)
    assert bench.ledger.counters.accepted == 0
