"""What is measured of warrener alone: memory per message, transitions, idle wake-ups, the way back after an outage.

``python -m benchmarks.alone NAME [URL QUEUE]`` measures one of them and writes one line of JSON.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import timeit
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pamqp.frame
import trio
from anyio.abc import ByteStream
from pamqp import commands

from benchmarks.raw import encoded, shake_hands

if TYPE_CHECKING:
    from warrener._backend import Backend

MESSAGES = 10_000
BODY = 256


# --- memory -----------------------------------------------------------------------------------------------------------


def memory() -> dict[str, float]:
    """Bytes per message in flight beyond its body, over 10,000 of them that nobody confirms: accepted, written, tracked.

    Of the library only: a publisher that waits in a task of its own has that task beside it.
    """
    from warrener import Message, Producer
    from warrener.testing.scripted import ScriptedDriver, lives

    octets = 0.0

    async def main() -> None:
        nonlocal octets
        producer = Producer("amqp://localhost", driver=ScriptedDriver(lives(answer=lambda _: "silence")))
        async with trio.open_nursery() as nursery:
            await nursery.start(producer.run)
            await producer.wait_connected()
            bodies = [bytes(BODY) for _ in range(MESSAGES)]
            for body in bodies[:100]:
                producer.publish_nowait(body, routing_key="q")
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            handles = [producer.publish_nowait(Message(body, routing_key="q")) for body in bodies[100:]]
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            octets = (after - before) / len(handles)
            tracemalloc.stop()
            producer.abort()

    trio.run(main)
    return {"bytes per message in flight": octets}


# --- the machine ------------------------------------------------------------------------------------------------------


def transitions() -> dict[str, float]:
    """Microseconds of each event of a life that changes the record: start, dial, up, lost, timer, dial …, closed."""
    from warrener import Backoff, Breaker
    from warrener.errors import Fault, FaultKind
    from warrener.machine import Policy, events, initial, transition

    policy = Policy(
        backoff=Backoff(), breaker=Breaker(), stable_for=10, drain_timeout=10, close_timeout=3, abort_timeout=1,
        when_exhausted="stay",
    )  # fmt: skip
    fault = Fault(FaultKind.CONNECTION_LOST, "the connection was lost")
    life: list[events.Event] = [
        events.StartRequested(at=0.0),
        events.LinkOpened(at=1.0, link=1),
        events.TopologyRestored(at=2.0, link=1),
        events.PublishConfirmed(at=3.0, link=1, permit=None),
        events.PublishingBlocked(at=4.0, link=1),
        events.PublishingUnblocked(at=5.0, link=1),
        events.LinkLost(at=6.0, link=1, fault=fault),
        events.RetryTimerFired(at=7.0, link=1),
        events.DialFailed(at=8.0, link=2, fault=fault),
        events.RetryTimerFired(at=9.0, link=2),
        events.LinkOpened(at=10.0, link=3),
        events.TopologyRestored(at=11.0, link=3),
        events.StopRequested(at=12.0, drain=True),
    ]
    costs: list[float] = []
    record = initial()
    for event in life:
        step = transition(record, event, policy)
        if step.record is not record:
            # Many short runs on the clock of the process: one of them is not disturbed.
            present, act = record, event
            runs = timeit.repeat(
                lambda: transition(present, act, policy),  # noqa: B023 - it runs here
                timer=time.process_time,
                number=300,
                repeat=60,
            )
            costs.append(min(runs) / 300 * 1e6)
        record = step.record
    return {"events": len(costs), "median": statistics.median(costs), "worst": max(costs)}


# --- the path of a publish, without a broker ------------------------------------------------------------------------------


class _Mirror(ByteStream):
    """A peer in memory that shakes hands and acks all it gets at once: what is left is the cost of the library alone."""

    def __init__(self) -> None:
        self._news = b""
        self._changed = anyio.Event()
        self._unread = b""
        self._octets: int | None = None
        #: The bytes of one publish; all of them have the same.
        self.one = 0

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self._octets is None:
            self._shake_hands(item)
        elif not self.one:
            self.one = len(item)
            self._ack(1)
        else:
            before = self._octets
            self._octets += len(item)
            if self._octets // self.one > before // self.one:
                self._ack(1 + self._octets // self.one)

    def _ack(self, tag: int) -> None:
        self._say(pamqp.frame.marshal(commands.Basic.Ack(tag, multiple=True), 1))

    def _say(self, octets: bytes) -> None:
        self._news += octets
        self._changed.set()

    def _shake_hands(self, item: bytes) -> None:
        self._unread += item
        while self._unread:
            size, channel, frame = pamqp.frame.unmarshal(self._unread)
            self._unread = self._unread[size:]
            for answer in _ANSWERS.get(frame.name, ()):
                self._say(pamqp.frame.marshal(answer, channel))
            if isinstance(frame, commands.Basic.Qos):
                self._octets = 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while not self._news:
            self._changed = anyio.Event()
            await self._changed.wait()
        news, self._news = self._news, b""
        return news

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


_ANSWERS: dict[str, tuple[Any, ...]] = {
    "ProtocolHeader": (commands.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US"),),
    "Connection.StartOk": (commands.Connection.Tune(2047, 131_072, 0),),
    "Connection.Open": (commands.Connection.OpenOk(),),
    "Channel.Open": (commands.Channel.OpenOk(),),
    "Confirm.Select": (commands.Confirm.SelectOk(),),
    "Basic.Qos": (commands.Basic.QosOk(),),
}


def publishing() -> dict[str, float]:
    """Microseconds per publish on Trio with no broker at all, and how many of them parking and waking the task take."""
    from benchmarks.load import processor_seconds
    from warrener import open_producer
    from warrener._backend import backend
    from warrener.drivers._dial import Dialed
    from warrener.drivers.native import NativeDriver

    async def dial(endpoint: object, /, **_: object) -> Dialed:
        await anyio.lowlevel.checkpoint()
        return Dialed(_Mirror(), "memory", None)

    async def cost(act: Callable[[], Awaitable[object]]) -> float:
        """The least that an act took of the processor, of 500 tasks that repeat it."""
        costs: list[float] = []
        for _ in range(5):
            left = 2 * MESSAGES

            async def repeat() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await act()

            began = processor_seconds()
            async with trio.open_nursery() as nursery:
                for _ in range(500):
                    nursery.start_soon(repeat)
            costs.append((processor_seconds() - began) / (2 * MESSAGES) * 1e6)
        return min(costs)

    async def main() -> dict[str, float]:
        async with open_producer("amqp://localhost", driver=NativeDriver(dial=dial), close_timeout=0.1) as producer:
            await producer.wait_connected()
            publish = partial(producer.publish, bytes(BODY), routing_key="q")
            await publish()
            whole = await cost(publish)
        parked = await _cost_of_parking(cost, backend())
        return {"publish": whole, "park and wake alone": parked}

    return trio.run(main)


async def _cost_of_parking(
    cost: Callable[[Callable[[], Awaitable[object]]], Awaitable[float]], backend: Backend
) -> float:
    parked: list[Any] = []

    async def act() -> None:
        await backend.checkpoint_if_cancelled()
        what = SimpleNamespace(waiter=None)
        parked.append(what)
        await backend.park(what, lambda _: None)

    async def wake() -> None:
        while True:
            while parked:
                backend.wake(parked.pop().waiter)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake)
        least = await cost(act)
        nursery.cancel_scope.cancel()
    return least


# --- idleness ---------------------------------------------------------------------------------------------------------


class _Steps(trio.abc.Instrument):
    """Counts how often any task runs, and how often the loop wakes to find nothing to run."""

    def __init__(self) -> None:
        self.steps = 0
        self.wakes = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1

    def after_io_wait(self, timeout: float) -> None:
        self.wakes += 1


def idleness(url: str) -> dict[str, float]:
    """How often an idle producer's loop wakes in the time of ten heartbeats of either side."""
    from warrener import open_producer

    steps = _Steps()
    seconds = 5.0

    async def main() -> None:
        async with open_producer(url, heartbeat=1.0, stable_for=0.1, breaker=None) as producer:
            await producer.wait_connected()
            await producer.publish(b"", routing_key="nowhere", mandatory=False)
            await trio.sleep(1.0)
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(seconds)
            trio.lowlevel.remove_instrument(steps)

    trio.run(main)
    return {"seconds": seconds, "heartbeat": 1.0, "wake-ups": steps.wakes, "task steps": steps.steps}


# --- the way back -----------------------------------------------------------------------------------------------------


def _raw_handshake(url: str, queue: str) -> float:
    """Seconds of a raw socket from connecting to the first confirm."""
    from benchmarks.load import Load

    began = time.perf_counter()
    peer, session, publisher = shake_hands(url)
    with peer:
        peer.sendall(encoded(session, publisher, Load(url, queue, count=1, warm_up=0)))
        while commands.Basic.Ack.index.to_bytes(4) not in peer.recv(65536):
            pass
        return time.perf_counter() - began


def reconnecting(url: str, queue: str) -> dict[str, float]:
    """Seconds from the broker's port accepting again to the first confirm, less what was left of the backoff then.

    The port is a proxy's, so that it can be closed without a broker that has to start; the raw handshake goes the same way.
    """
    from warrener import Backoff, open_producer
    from warrener.testing import FaultProxy

    raw: list[float] = []
    beyond: list[float] = []

    async def main() -> None:
        async with FaultProxy(url) as proxy:
            raw.extend([await trio.to_thread.run_sync(_raw_handshake, proxy.url, queue) for _ in range(9)])
            backoff = Backoff(initial=0.2, factor=1.0, cap=0.2, attempts=None, jitter=0.0)
            async with open_producer(proxy.url, backoff=backoff, breaker=None) as producer:
                await producer.publish(b"", routing_key=queue)
                for _ in range(7):
                    proxy.refuse(True)
                    proxy.reset()
                    await anyio.sleep(0.5)
                    proxy.refuse(False)
                    began = time.perf_counter()
                    left = producer.status().retry_in or 0.0
                    await producer.publish(b"", routing_key=queue)
                    beyond.append(time.perf_counter() - began - left)

    trio.run(main)
    return {"raw handshake": statistics.median(raw), "median": statistics.median(beyond), "worst": max(beyond)}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "memory": memory,
    "transitions": transitions,
    "publishing": publishing,
    "idleness": idleness,
    "reconnecting": reconnecting,
}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    json.dump(MEASURES[name](*arguments), sys.stdout)
    sys.stdout.write("\n")
