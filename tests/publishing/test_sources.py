"""A caller's source of messages: its generator is closed however the call ends, and its errors are clear."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from warrener import Message, Producer, Receipt, open_producer
from warrener.errors import InvalidMessage
from warrener.testing.scripted import ScriptedDriver, lives

URL = "amqp://localhost/"

pytestmark = pytest.mark.anyio

#: Publishes what the source yields, and returns the outcomes.
Publish = Callable[[Producer, Any], Any]


async def _many(producer: Producer, source: Any) -> list[Any]:
    return list(await producer.publish_many(source))


async def _stream(producer: Producer, source: Any) -> list[Any]:
    async with producer.publish_stream(source) as outcomes:
        return [outcome async for outcome in outcomes]


ways = pytest.mark.parametrize("publish", [_many, _stream], ids=["many", "stream"])
traced = pytest.mark.usefixtures("with_and_without_spans")


class Source:
    """Makes generators of messages, and notes which were closed."""

    def __init__(self, *, ends_with: type[Exception] | None = None, cleanup: float = 0) -> None:
        self._ends_with = ends_with
        self._cleanup = cleanup
        self.events: list[str] = []

    async def generator(self) -> AsyncGenerator[Message]:
        """Yield two messages, then raise or wait for ever; note how it ends."""
        self.events.append("begun")
        try:
            yield Message(b"0", routing_key="q")
            yield Message(b"1", routing_key="q")
            if self._ends_with is not None:
                raise self._ends_with
            while True:
                await anyio.lowlevel.checkpoint()
                yield Message(b"x", routing_key="q")
        finally:
            self.events.append("closed")
            await anyio.sleep(self._cleanup)
            self.events.append("cleaned up")


class Iterable:
    """Makes its iterator anew, as a class of a caller does whose `__aiter__` is a generator function."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._source.generator()


@pytest.fixture(params=[False, True], ids=["plain", "traced"])
def with_and_without_spans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer provider, so that each producer is traced; and none."""
    if request.param:
        provider = TracerProvider()
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)


@asynccontextmanager
async def _producer(*, answer: str = "ack") -> AsyncIterator[Producer]:
    driver = ScriptedDriver(lives(answer=lambda _: answer))
    async with open_producer(URL, driver=driver, max_in_flight=4, max_buffered=4, drain_timeout=0.01) as producer:
        await producer.wait_connected()
        yield producer


@ways
@traced
@pytest.mark.parametrize("wrapped", [False, True], ids=["generator", "iterable"])
async def test_a_generator_is_closed_when_the_call_is_cancelled(publish: Publish, wrapped: bool) -> None:
    """It is suspended at a `yield`, because there is no capacity for its message."""
    source = Source()
    async with _producer(answer="silence") as producer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish, producer, Iterable(source) if wrapped else source.generator())
            await anyio.wait_all_tasks_blocked()
            assert source.events == ["begun"]
            tasks.cancel_scope.cancel()
        assert source.events == ["begun", "closed"]  # a cancelled cleanup is cancelled, as in any nursery


@ways
@traced
async def test_a_generator_is_closed_when_a_call_with_a_mistake_fails(publish: Publish) -> None:
    """A body in the middle of messages names no destination."""
    events: list[str] = []

    async def source() -> AsyncGenerator[Any]:
        try:
            while True:
                yield Message(b"0", routing_key="q")
                yield b"a body"
        finally:
            events.append("closed")

    async with _producer() as producer:
        with pytest.raises(InvalidMessage, match="needs a routing_key or an exchange"):
            await publish(producer, source())
        assert events == ["closed"]


@ways
async def test_the_error_of_a_generator_is_raised_alone(publish: Publish) -> None:
    """The messages before it were accepted; nothing of them is left."""
    source = Source(ends_with=ZeroDivisionError)
    async with _producer() as producer:
        with pytest.raises(ZeroDivisionError):
            await publish(producer, source.generator())
        await anyio.wait_all_tasks_blocked()
        assert (producer.status().in_flight, producer.status().buffered) == (0, 0)
    assert source.events == ["begun", "closed", "cleaned up"]


@ways
async def test_a_slow_cleanup_of_a_generator_cannot_stop_a_cancellation(publish: Publish) -> None:
    """It would wait for ever."""
    source = Source(cleanup=float("inf"))
    async with _producer(answer="silence") as producer:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish, producer, source.generator())
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
    assert source.events == ["begun", "closed"]


async def test_a_stream_that_is_left_lets_its_generator_clean_up() -> None:
    """The end of the block is no cancellation of the caller."""
    source = Source(cleanup=0.001)
    async with _producer() as producer:
        async with producer.publish_stream(source.generator(), window=3) as outcomes:
            assert isinstance(await anext(outcomes), Receipt)
        assert source.events == ["begun", "closed", "cleaned up"]


@pytest.mark.parametrize("make", [list, iter])
async def test_bodies_without_a_destination_are_one_error(make: Callable[[list[bytes]], Any]) -> None:
    """Not one for each body, of which the broker would return every one."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        with pytest.raises(InvalidMessage, match="publish_stream of bodies needs a routing_key or an exchange"):
            async with producer.publish_stream(make([b"0", b"1"])) as outcomes:
                await anext(outcomes)
        assert driver.published == []


@pytest.mark.parametrize("links", [1, 2])
async def test_fields_of_a_stream_without_a_destination_are_refused_at_the_call(links: int) -> None:
    """A misspelt keyword is named first: it may be the routing key."""
    async with open_producer(URL, driver=ScriptedDriver(), links=links) as producer:
        with pytest.raises(InvalidMessage, match="publish_stream of bodies needs a routing_key or an exchange"):
            producer.publish_stream([b"0"], content_type="text/plain")
        with pytest.raises(TypeError, match="routingkey"):
            producer.publish_stream([b"0"], routingkey="q")  # type: ignore[call-arg]
