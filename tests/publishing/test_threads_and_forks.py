"""A producer belongs to the event loop in which it runs: other threads, loops and processes get a clear error."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from warrener import Message, Producer, Receipt, open_producer
from warrener.testing.scripted import ScriptedDriver, refuses

pytestmark = pytest.mark.anyio

URL = "amqp://localhost/"

CALLS: dict[str, Callable[[Producer], Awaitable[Any]]] = {
    "publish": lambda producer: producer.publish(b"x", routing_key="q"),
    "publish_many": lambda producer: producer.publish_many([Message(b"x", routing_key="q")]),
    "wait_connected": lambda producer: producer.wait_connected(),
    "aclose": lambda producer: producer.aclose(),
}


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
@pytest.mark.parametrize("name", sorted(CALLS))
async def test_a_call_from_another_loop_is_refused_before_anything_is_accepted(name: str, loop: Any) -> None:
    """A RuntimeError that says where to call it; the producer goes on as before."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        caught: list[BaseException] = []

        async def call() -> None:
            try:
                await CALLS[name](producer)
            except RuntimeError as error:
                caught.append(error)

        await anyio.to_thread.run_sync(lambda: anyio.run(call, backend=loop))
        assert "another thread" in str(caught[0])
        assert "anyio.from_thread.run" in str(caught[0])
        assert producer.counters["accepted"] == 0
        assert driver.published == []
        assert isinstance(await producer.publish(b"x", routing_key="q"), Receipt)


@pytest.mark.parametrize("name", ["publish_nowait", "reconnect", "abort"])
async def test_a_plain_call_from_a_thread_is_refused(name: str) -> None:
    """It would sit in the buffer until the loop wakes by itself."""
    async with open_producer(URL, driver=ScriptedDriver(refuses())) as producer:
        call = {
            "publish_nowait": lambda: producer.publish_nowait(b"x", routing_key="q"),
            "reconnect": producer.reconnect,
            "abort": producer.abort,
        }[name]
        with pytest.raises(RuntimeError, match="another thread"):
            await anyio.to_thread.run_sync(call)
        assert producer.counters["accepted"] == 0
        producer.abort()


async def test_the_way_that_the_error_names_works() -> None:
    """anyio.from_thread.run publishes from a worker thread."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:

        def work() -> Receipt:
            return anyio.from_thread.run(lambda: producer.publish(b"x", routing_key="q"))

        assert isinstance(await anyio.to_thread.run_sync(work), Receipt)


def in_a_child(check: Callable[[], str]) -> str:
    """Run a function in a forked process; return the text that it returns there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            answer = check()
        except BaseException as error:  # noqa: BLE001 - the parent reads it
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def own_producer() -> str:
    """Publish through a producer of the child's own, in a thread and so in a loop of its own."""
    outcome: list[str] = []

    async def publish() -> None:
        async with open_producer(URL, driver=ScriptedDriver()) as producer:
            outcome.append(type(await producer.publish(b"x", routing_key="q")).__name__)

    thread = threading.Thread(target=lambda: anyio.run(publish))
    thread.start()
    thread.join()
    return outcome[0]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_process_gets_an_error_that_names_the_fork() -> None:
    """What the child accepted would never go anywhere; a producer made in the child works, and the parent's goes on."""
    async with open_producer(URL, driver=ScriptedDriver()) as producer:
        await producer.wait_connected()
        told = in_a_child(lambda: str(producer.publish_nowait(b"x", routing_key="q")))
        assert told.startswith("RuntimeError: ")
        assert "forked" in told
        assert "new Producer" in told
        assert in_a_child(own_producer) == "Receipt"
        assert isinstance(await producer.publish(b"x", routing_key="q"), Receipt)
        assert producer.counters["accepted"] == 1
