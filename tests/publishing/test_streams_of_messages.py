"""`publish_stream`: outcomes in the order of the source, a bounded number at a time, on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.lowlevel
import pytest

from warrener import Message, Nacked, Producer, ProducerClosed, Receipt, Unroutable, open_producer
from warrener.errors import InvalidMessage
from warrener.testing.scripted import Published, ScriptedDriver, lives

URL = "amqp://localhost/"

pytestmark = pytest.mark.anyio


async def numbers(count: int) -> AsyncIterator[bytes]:
    """A source that lets others run."""
    for number in range(count):
        await anyio.lowlevel.checkpoint()
        yield b"%d" % number


async def test_outcomes_come_in_the_order_of_the_source() -> None:
    """Errors are items."""

    def answer(message: Published) -> str:
        return {b"3": "nack", b"5": "return"}.get(message.body, "ack")

    driver = ScriptedDriver(lives(answer=answer))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        async with producer.publish_stream(numbers(300), routing_key="q") as outcomes:
            results = [outcome async for outcome in outcomes]
    kinds = [type(result) for result in results]
    assert (kinds[3], kinds[5]) == (Nacked, Unroutable)
    assert kinds.count(Receipt) == 298
    assert [result.message_id for result in results] == [message.message_id for message in driver.published]
    assert [message.body for message in driver.published] == [b"%d" % number for number in range(300)]


async def test_a_stream_takes_messages_and_refuses_what_is_no_message() -> None:
    """A refused message is an item in its place."""

    def source() -> Iterator[object]:
        yield Message(b"0", routing_key="q", message_id="own")
        yield "text"
        yield Message(b"1", routing_key="q")

    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer, producer.publish_stream(source()) as outcomes:  # type: ignore[arg-type]
        results = [outcome async for outcome in outcomes]
    assert [type(result) for result in results] == [Receipt, InvalidMessage, Receipt]
    assert results[0].message_id == "own"


async def test_at_most_a_window_of_outcomes_is_held() -> None:
    """The source is not read on until the reader has taken one."""
    driver = ScriptedDriver()
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x"

    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        async with producer.publish_stream(source(), window=10, routing_key="q") as outcomes:
            for taken in range(5):
                await anyio.wait_all_tasks_blocked()
                assert read == 10 + taken
                assert isinstance(await anext(outcomes), Receipt)


async def test_a_generator_that_is_not_read_to_its_end_is_closed() -> None:
    """With the block, not by the garbage collector."""
    closed = False

    async def source() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            while True:
                yield b"x"
        finally:
            closed = True

    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        async with producer.publish_stream(source(), window=3, routing_key="q") as outcomes:
            assert isinstance(await anext(outcomes), Receipt)
        assert closed


async def test_a_full_buffer_slows_the_source_down() -> None:
    """A message waits for capacity; none is refused for it."""
    driver = ScriptedDriver(lives(latency=0.001))
    async with open_producer(URL, driver=driver, max_in_flight=2, max_buffered=2) as producer:
        await producer.wait_connected()
        async with producer.publish_stream([b"x"] * 50, routing_key="q") as outcomes:
            assert [type(outcome) async for outcome in outcomes] == [Receipt] * 50


async def test_the_error_of_a_source_comes_behind_its_outcomes() -> None:
    """Without an ExceptionGroup."""

    async def source() -> AsyncIterator[bytes]:
        yield b"0"
        yield b"1"
        raise OSError("the source has ended")

    results: list[object] = []
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(OSError, match="the source has ended"):
            async with producer.publish_stream(source(), routing_key="q") as outcomes:
                async for outcome in outcomes:
                    results += [type(outcome)]
    assert results == [Receipt, Receipt]


async def test_an_error_of_the_body_is_raised_alone_and_cancels_what_waits() -> None:
    """What was not written is not sent, and what was is told by `outcomes()`."""
    driver = ScriptedDriver(lives(answer=lambda _: "silence"))
    async with open_producer(URL, driver=driver, max_in_flight=2) as producer, producer.outcomes() as late:
        await producer.wait_connected()
        with pytest.raises(ZeroDivisionError):
            async with producer.publish_stream(numbers(5), routing_key="q"):
                await anyio.wait_all_tasks_blocked()
                assert len(driver.published) == 2
                raise ZeroDivisionError
        assert (producer.status().in_flight, producer.status().buffered) == (2, 0)
        driver.link.listener.confirmed(1, 2, True)
        told = [await anext(late), await anext(late)]
        assert [outcome.message_id for outcome in told] == [message.message_id for message in driver.published]
        assert producer.counters["cancelled"] == 3


async def test_a_reader_that_leaves_takes_no_more_of_the_source() -> None:
    """A message for which its last read has made room is not published behind the block."""
    taken: list[bytes] = []

    def source() -> Iterator[bytes]:
        for number in range(1000):
            taken.append(b"%d" % number)
            yield taken[-1]

    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        async with producer.publish_stream(source(), window=10, routing_key="q") as outcomes:
            assert isinstance(await anext(outcomes), Receipt)
        assert len(driver.published) == 10
        assert len(taken) <= 11


async def test_a_message_that_is_let_in_while_the_reader_leaves_is_cancelled() -> None:
    """It waited for capacity, got it, and its stream ended before its task ran."""
    driver = ScriptedDriver(lives(answer=lambda _: "silence"))
    async with open_producer(URL, driver=driver, max_in_flight=1, max_buffered=1) as producer:
        await producer.wait_connected()
        async with producer.publish_stream([b"0", b"1", b"2"], routing_key="q"):
            await anyio.wait_all_tasks_blocked()
            driver.link.listener.confirmed(1, 1, False)
        counters = producer.counters
        assert counters["accepted"] == 3
        assert (counters["cancelled"], producer.status().buffered, producer.status().in_flight) == (1, 0, 1)
        driver.link.listener.confirmed(1, 2, False)


@pytest.mark.parametrize("body_raises", [False, True])
async def test_an_error_of_the_close_of_a_source_is_raised_without_a_group(body_raises: bool) -> None:
    """The body's own error goes first."""

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            raise OSError("the source could not be closed")

    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        with pytest.raises(ZeroDivisionError if body_raises else OSError):
            async with producer.publish_stream(source(), window=3, routing_key="q") as outcomes:
                await anext(outcomes)
                if body_raises:
                    raise ZeroDivisionError


async def test_a_second_reader_at_the_same_time_is_refused() -> None:
    """Two readers would take the same outcome, and drop the next one."""
    driver = ScriptedDriver()
    async with (
        open_producer(URL, driver=driver) as producer,
        producer.publish_stream([b"0", b"1", b"2"], routing_key="q") as outcomes,
    ):
        await anyio.wait_all_tasks_blocked()
        results: list[object] = []
        refused: list[object] = []

        async def read() -> None:
            try:
                results.extend([outcome async for outcome in outcomes])
            except anyio.BusyResourceError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(read)
    assert len(refused) == 1
    assert [type(result) for result in results] == [Receipt] * 3


async def test_a_cancelled_reader_loses_neither_a_refusal_nor_the_error_of_the_source() -> None:
    """Both are there when it asks again."""

    def source() -> Iterator[object]:
        yield "text"
        raise OSError("the source has ended")

    async def ask() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(outcomes)

    async with (
        open_producer(URL, driver=ScriptedDriver()) as producer,
        producer.publish_stream(source(), routing_key="q") as outcomes,  # type: ignore[arg-type]
    ):
        await anyio.wait_all_tasks_blocked()
        await ask()
        assert isinstance(await anext(outcomes), InvalidMessage)
        await ask()
        with pytest.raises(OSError, match="the source has ended"):
            await anext(outcomes)


async def test_a_cancelled_reader_can_go_on() -> None:
    """The outcome that it waited for is the next one."""
    driver = ScriptedDriver(lives(latency=0.05))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        async with producer.publish_stream([b"0", b"1"], routing_key="q") as outcomes:
            with anyio.move_on_after(0.001):
                await anext(outcomes)
            results = [outcome async for outcome in outcomes]
    assert [result.message_id for result in results] == [message.message_id for message in driver.published]


async def test_a_stream_of_a_producer_that_does_not_run() -> None:
    """The error is that of `publish`; a closed producer refuses each message."""
    producer = Producer(URL, driver=ScriptedDriver())
    with pytest.raises(RuntimeError, match="not running yet"):
        producer.publish_stream([b"x"], routing_key="q")
    async with producer:
        with pytest.raises(ValueError, match="window must be"):
            async with producer.publish_stream([b"x"], window=0, routing_key="q"):
                pass
        stream = producer.publish_stream([b"x"], routing_key="q")
    async with stream as outcomes:
        assert [type(outcome) async for outcome in outcomes] == [ProducerClosed]
