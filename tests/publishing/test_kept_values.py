"""What is accepted is what is sent: nothing of the caller's is kept by reference, and nothing is told apart by equality alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import warrener
from warrener import Message, Producer, open_producer
from warrener.testing.scripted import ScriptedDriver, lives, refuses

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"


class HashedByContent(Mapping[str, Any]):
    """A mapping with the hash and the equality of its items, as immutable mappings have."""

    def __init__(self, **items: Any) -> None:
        self.items_ = items

    def __getitem__(self, key: str) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def __hash__(self) -> int:
        return hash(tuple(self.items_.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedByContent) and self.items_ == other.items_


class HashedByIdentity(dict[str, Any]):
    """A mapping that can be a key although its content changes."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@pytest.mark.parametrize(("first", "second"), [(1, True), (True, 1), (1, 1.0), (0.0, False)])
async def test_equal_headers_of_other_types_are_sent_as_they_are(
    autojump_clock: MockClock, first: object, second: object
) -> None:
    """1, 1.0 and True are equal in Python and three different values on the wire."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        for value in (first, second):
            await producer.publish(b"x", routing_key="q", headers=HashedByContent(x=value))
    sent = [(message.envelope.headers or {})["x"] for message in driver.published]
    assert [(type(each), each) for each in sent] == [(type(first), first), (type(second), second)]


async def test_headers_that_change_between_two_publishes(autojump_clock: MockClock) -> None:
    """The same mapping with other content is sent with the other content."""
    driver = ScriptedDriver()
    headers = HashedByIdentity(x=1)
    async with open_producer(URL, driver=driver) as producer:
        await producer.publish(b"x", routing_key="q", headers=headers)
        headers["x"] = 2
        await producer.publish(b"x", routing_key="q", headers=headers)
    assert [dict(message.envelope.headers or {}) for message in driver.published] == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("as_message", [False, True])
async def test_headers_that_change_while_the_message_waits(autojump_clock: MockClock, as_message: bool) -> None:
    """Headers are copied at every depth when the message is accepted."""
    driver = ScriptedDriver(refuses(), lives())
    inner: dict[str, Any] = {"deep": [1, {"deeper": 2}]}
    headers: dict[str, Any] = {"inner": inner}
    async with open_producer(URL, driver=driver) as producer:
        if as_message:
            handle = producer.publish_nowait(Message(b"x", routing_key="q", headers=headers))
        else:
            handle = producer.publish_nowait(b"x", routing_key="q", headers=headers)
        inner["deep"][1]["deeper"] = "changed"
        inner["deep"].append("added")
        headers["more"] = 1
        await handle.wait()
    assert driver.published[0].envelope.headers == {"inner": {"deep": [1, {"deeper": 2}]}}


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_body_that_can_change_is_copied(autojump_clock: MockClock, kind: Any) -> None:
    """A bytearray or a memoryview is welcome as a body, and is sent as it was when it was accepted."""
    driver = ScriptedDriver(refuses(), lives())
    buffer = bytearray(b"before")
    async with open_producer(URL, driver=driver) as producer:
        handles = [
            producer.publish_nowait(kind(buffer), routing_key="q"),
            producer.publish_nowait(kind(buffer), routing_key="q", message_id="mine"),
        ]
        buffer[:] = b"after!"
        for handle in handles:
            await handle.wait()
    assert [message.body for message in driver.published] == [b"before", b"before"]


async def test_headers_nested_too_deep_are_refused(autojump_clock: MockClock) -> None:
    """A mapping that holds itself has no end; it is refused when it is published."""
    endless: dict[str, Any] = {}
    endless["again"] = endless
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(warrener.InvalidMessage, match="nested more than 32 deep"):
            await producer.publish(b"x", routing_key="q", headers=endless)
        assert producer.counters["accepted"] == 0


async def test_equal_fields_of_other_types_are_checked_each_time(autojump_clock: MockClock) -> None:
    """A priority of True is refused, also after a priority of 1 was sent."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        await producer.publish(b"x", routing_key="q", priority=1)
        with pytest.raises(warrener.InvalidMessage, match="priority"):
            await producer.publish(b"x", routing_key="q", priority=True)


# --- publish_many -----------------------------------------------------------------------------------------------------


async def test_publish_many_takes_bodies_that_share_their_fields(autojump_clock: MockClock) -> None:
    """Bodies of every kind, with the fields of the call and an id each."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        outcomes = await producer.publish_many([b"a", bytearray(b"b"), memoryview(b"c")], routing_key="q", type="t")
    assert [message.body for message in driver.published] == [b"a", b"b", b"c"]
    assert {(message.envelope.routing_key, message.envelope.type) for message in driver.published} == {("q", "t")}
    assert len({outcome.message_id for outcome in outcomes}) == 3
    assert all(isinstance(outcome, warrener.Receipt) for outcome in outcomes[:2])


@pytest.mark.parametrize("fields", [{}, {"type": "t"}, {"routing_key": ""}])
async def test_publish_many_of_bodies_without_a_destination_is_refused(
    autojump_clock: MockClock, fields: dict[str, Any]
) -> None:
    """Bodies for the empty routing key of the default exchange reach no queue: refused before anything is accepted."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(warrener.InvalidMessage, match="routing_key or an exchange"):
            await producer.publish_many([b"x"], **fields)
        assert producer.counters["accepted"] == 0


async def test_publish_many_names_a_misspelt_keyword(autojump_clock: MockClock) -> None:
    """And does not ask for the routing key that was meant by it."""
    misspelt: Any = {"routng_key": "q"}
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(TypeError, match="routng_key"):
            await producer.publish_many([b"x"], **misspelt)


async def test_publish_many_of_messages_takes_no_fields(autojump_clock: MockClock) -> None:
    """Both forms mixed is a TypeError."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(TypeError, match="takes no other fields"):
            await producer.publish_many([Message(b"x", routing_key="q")], routing_key="r")


@pytest.mark.parametrize("name", ["publish", "publish_many", "publish_nowait"])
async def test_every_field_of_a_message_stands_in_the_signature(name: str) -> None:
    """Editors and help() show the keywords."""
    shown = inspect.signature(getattr(Producer, name)).parameters
    assert set(inspect.signature(Message).parameters) - {"body"} <= set(shown)
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())


async def test_the_report_counts_every_confirm_since_run_began(autojump_clock: MockClock) -> None:
    """Not only those that came while closing."""
    producer = Producer(URL, driver=ScriptedDriver())
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        for _ in range(3):
            await producer.publish(b"x", routing_key="q")
        assert (await producer.aclose()).confirmed == 3


@pytest.mark.parametrize("name", ["mandatory", "persistent"])
async def test_a_flag_is_not_taken_for_its_equal(name: str) -> None:
    """Behind messages with the same fields, 1 is refused where True was accepted."""
    async with open_producer(URL, driver=ScriptedDriver(lives())) as producer:
        await producer.wait_connected()
        flags: Any = {name: True}
        for _ in range(3):
            await producer.publish(b"body", routing_key="q", **flags)
        for wrong in (1, 1.0):
            flags[name] = wrong
            with pytest.raises(warrener.InvalidMessage):
                await producer.publish(b"body", routing_key="q", **flags)
        flags[name] = False
        await producer.publish(b"body", routing_key="q", **flags)


async def test_a_value_that_cannot_be_compared_is_refused() -> None:
    """As one that cannot be hashed."""

    class Incomparable(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of this is ambiguous")

        __hash__ = str.__hash__

    async with open_producer(URL, driver=ScriptedDriver(lives())) as producer:
        await producer.wait_connected()
        for _ in range(2):
            await producer.publish(b"body", routing_key="q")
        with pytest.raises(warrener.InvalidMessage):
            await producer.publish(b"body", routing_key=[Incomparable("q")])  # type: ignore[arg-type]
