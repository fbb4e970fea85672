"""Runs of `Message`s: they are written together too, each with its own message_id, its own envelope and a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.publishing.test_runs import balanced, by_body, kinds
from warrener import InvalidMessage, Message, Nacked, Outcome, Receipt, Unroutable, open_producer
from warrener._publishing.many import MOST_KINDS
from warrener.testing.scripted import ScriptedDriver, lives

URL = "amqp://localhost/"

pytestmark = pytest.mark.trio


def messages(count: int, **fields: Any) -> list[Message]:
    """Return messages whose ids and bodies tell their place."""
    fields.setdefault("routing_key", "q")
    return [Message(b"%d" % number, message_id=f"id-{number}", **fields) for number in range(count)]


def ids(outcomes: Sequence[Any]) -> list[str]:
    """Return the message_ids of outcomes."""
    return [outcome.message_id for outcome in outcomes]


async def test_messages_are_written_together(autojump_clock: MockClock) -> None:
    """In flights, with their own ids, and each with a token of its own."""
    driver = ScriptedDriver()
    sent = messages(2000)
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(sent)
        assert balanced(producer)
        assert producer.counters["confirmed"] == 2000
    assert driver.link.batches == [1024, 976]
    assert [(each.message_id, each.body) for each in driver.published] == [(m.message_id, m.body) for m in sent]
    tokens = [each.token for each in driver.published]
    assert None not in tokens
    assert len(set(tokens)) == 2000
    assert outcomes == [Receipt(message.message_id, 1, False, 1) for message in sent]
    assert outcomes[1500] == Receipt("id-1500", 1, False, 1)
    assert ids(outcomes[10:2000:7]) == [message.message_id for message in sent[10:2000:7]]


async def test_messages_to_a_few_places_are_written_together_in_their_order(autojump_clock: MockClock) -> None:
    """One flight has the messages of several envelopes."""
    driver = ScriptedDriver()
    sent = [Message(b"%d" % number, routing_key=f"q{number % 3}", priority=number % 2) for number in range(60)]
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(sent)
    assert driver.link.batches == [60]
    assert [each.envelope.routing_key for each in driver.published] == [message.routing_key for message in sent]
    assert ids(outcomes) == [message.message_id for message in sent]


async def test_messages_with_many_envelopes_are_written_alone(autojump_clock: MockClock) -> None:
    """Each envelope would be asked about before each flight."""
    driver = ScriptedDriver()
    sent = [Message(b"x", routing_key=f"q{number}") for number in range(MOST_KINDS + 1)]
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        assert kinds(await producer.publish_many(sent)) == [Receipt] * len(sent)
        assert not driver.link.batches
        assert kinds(await producer.publish_many(sent[1:])) == [Receipt] * MOST_KINDS
        assert driver.link.batches == [MOST_KINDS]


async def test_a_return_hits_its_message_among_others_with_the_same_id(autojump_clock: MockClock) -> None:
    """It is matched by the token."""
    driver = ScriptedDriver(lives(answer=by_body({b"3": "nack", b"5": "return"})))
    sent = [Message(b"%d" % number, routing_key="q", message_id="same") for number in range(9)]
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(sent)
        assert balanced(producer)
    assert driver.link.batches[0] == 9
    expected = [Receipt] * 9
    expected[3], expected[5] = Nacked, Unroutable  # type: ignore[call-overload]
    assert kinds(outcomes) == expected
    assert ids(outcomes) == ["same"] * 9


async def test_messages_are_sent_again_with_their_ids(autojump_clock: MockClock) -> None:
    """After a lost link; a receipt says so."""
    driver = ScriptedDriver(lives(1.0, latency=0.3, unoffered=2), lives())
    sent = messages(12)
    async with open_producer(URL, driver=driver, max_in_flight=6, breaker=None) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(sent)
        assert balanced(producer)
    assert ids(outcomes) == [message.message_id for message in sent]
    assert [outcome.possible_duplicate for outcome in outcomes] == [False] * 3 + [True] * 4 + [False] * 5  # type: ignore[union-attr]
    assert [each.message_id for each in driver.links[1].published] == [message.message_id for message in sent[3:]]


async def test_messages_from_a_generator_are_taken_in_pieces(autojump_clock: MockClock) -> None:
    """Each outcome has the id of its message."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(iter(messages(3000)))
    assert driver.link.batches == [1024, 1024, 952]
    assert ids(outcomes) == [f"id-{number}" for number in range(3000)]
    assert outcomes[2048].message_id == "id-2048"


async def test_a_cancelled_run_of_messages_tells_their_ids(autojump_clock: MockClock) -> None:
    """Confirmed ones at once, those in flight when their answer comes."""
    driver = ScriptedDriver(lives(answer=by_body(dict.fromkeys([b"2", b"3", b"4"], "silence"))))
    told: list[Outcome] = []
    async with open_producer(URL, driver=driver, max_in_flight=3) as producer, producer.outcomes() as outcomes:
        await producer.wait_connected()
        with trio.move_on_after(1.0):
            await producer.publish_many(messages(9), timeout=60.0)
        driver.link.listener.confirmed(1, 5, True)
        with trio.move_on_after(1.0):
            async for outcome in outcomes:
                told += [outcome]
    assert ids(told) == [f"id-{number}" for number in range(5)]
    assert kinds([outcome.result for outcome in told]) == [Receipt] * 5


async def test_a_message_that_cannot_be_sent_is_refused_alone(autojump_clock: MockClock) -> None:
    """A header was changed after the message was made; the others go."""
    driver = ScriptedDriver()
    sent = messages(3, headers={"h": 1})
    sent[1].headers["h"] = object()  # type: ignore[index]
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        assert kinds(await producer.publish_many(sent)) == [Receipt, InvalidMessage, Receipt]
