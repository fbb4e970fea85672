"""A producer and a real RabbitMQ that is killed, frozen, blocked, restarted and misconfigured under it.

Every claim runs on each driver and backend. The account at the end comes from the broker: what its queue holds.
"""

from __future__ import annotations

import signal
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

import warrener
from tests.publishing.test_cancellation import CancelAtStep, accounted
from warrener import Backoff, Binding, ConnectionState, Exchange, Message, Producer, Queue, Receipt, open_producer
from warrener.testing.rabbitmq import PrivateRabbitMQ

pytestmark = [pytest.mark.anyio, pytest.mark.broker]

#: Short delays, for ever: the tests wait for facts, not for a schedule.
EAGER = {"backoff": Backoff(initial=0.1, cap=0.5, attempts=None), "breaker": None}


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Trio and asyncio; uvloop has a test of its own."""
    return request.param


@pytest.fixture(params=["native", "aiormq"])
def driver(request: pytest.FixtureRequest) -> str:
    """Both drivers keep the same promises."""
    return request.param


@pytest.fixture
def opened(rabbitmq: PrivateRabbitMQ, driver: str, queue_name: str) -> Callable[..., Any]:
    """Open eager producers, with this test's queue declared."""

    @asynccontextmanager
    async def open_(**settings: Any) -> AsyncIterator[Producer]:
        topology = settings.pop("topology", (Queue(queue_name),))
        url = settings.pop("url", rabbitmq.url)
        async with open_producer(url, driver=driver, topology=topology, **{**EAGER, **settings}) as producer:
            await producer.wait_connected(30)
            yield producer

    return open_


async def told(broker: PrivateRabbitMQ, order: Callable[..., Any], *args: Any) -> Any:
    """Have the broker do something, without stopping this loop."""
    assert broker is not None
    return await anyio.to_thread.run_sync(partial(order, *args))


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a fact that nobody announces."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.02)


class Load:
    """Publishers that go on until told to stop, and what each was told."""

    def __init__(self, producer: Producer, queue: str, publishers: int = 50) -> None:
        self.producer = producer
        self.queue = queue
        self.publishers = publishers
        self.stopped = False
        self.told: dict[str, Receipt | warrener.PublishError] = {}

    async def _publish(self) -> None:
        while not self.stopped:
            try:
                receipt = await self.producer.publish(b"x" * 200, routing_key=self.queue)
                self.told[receipt.message_id] = receipt
            except warrener.PublishError as error:
                self.told[error.message_id] = error
                if isinstance(error, warrener.ProducerClosed):
                    return

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with anyio.create_task_group() as tasks:
            for _ in range(self.publishers):
                tasks.start_soon(self._publish)
            yield self
            self.stopped = True

    @property
    def confirmed(self) -> set[str]:
        return {key for key, value in self.told.items() if isinstance(value, Receipt)}


def account(broker: PrivateRabbitMQ, queue: str) -> Counter[str]:
    """Message ids in the queue, read by an independent client."""
    from tests.broker.reader import message_ids

    return Counter(message_ids(broker.url, queue))


def settle_account(load: Load, held: Counter[str]) -> None:
    """Nothing confirmed is lost; duplicates are flagged; what is certainly not delivered is not there."""
    assert load.confirmed <= set(held)
    for message_id, count in held.items():
        outcome = load.told.get(message_id)
        assert outcome is not None
        if isinstance(outcome, Receipt):
            assert count == 1 or outcome.possible_duplicate
        else:
            assert outcome.may_have_been_delivered


async def test_killed_under_load(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """SIGKILL in the middle of a load, and back: every message is accounted for, and publishing goes on."""
    async with opened() as producer:
        load = Load(producer, queue_name)
        async with load.running():
            # The claim is about a queue that has lived: a declaration that was not written down dies with the broker.
            await told(rabbitmq, rabbitmq.sync)
            await until(lambda: len(load.told) > 200)
            await told(rabbitmq, rabbitmq.kill)
            await told(rabbitmq, rabbitmq.start)
            so_far = len(load.told)
            await until(lambda: len(load.told) > so_far + 200)
        status = producer.status()
        assert status.link >= 2
    settle_account(load, await told(rabbitmq, account, rabbitmq, queue_name))


async def test_frozen(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """A frozen broker is noticed by its silence; when it thaws, what was unknown has gone again, flagged."""
    # Long enough for the publish to be on its way before the silence is noticed.
    async with opened(heartbeat=2) as producer:
        await producer.publish(b"before", routing_key=queue_name)
        await told(rabbitmq, rabbitmq.freeze)
        async with anyio.create_task_group() as tasks:
            receipts: list[Receipt] = []

            async def publish() -> None:
                receipts.append(await producer.publish(b"x", routing_key=queue_name))

            tasks.start_soon(publish)
            await until(lambda: producer.status().in_flight == 1)
            await until(lambda: producer.status().connection_state is not ConnectionState.CONNECTED)
            fault = producer.status().last_fault
            assert fault is not None
            assert fault.kind in (warrener.FaultKind.SILENT, warrener.FaultKind.STALLED)
            await told(rabbitmq, rabbitmq.thaw)
        assert receipts[0].possible_duplicate


async def test_connections_closed_by_the_operator(
    rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str
) -> None:
    """An orderly 320 is no failure of the breaker's; nothing is lost under load."""
    async with opened(breaker=warrener.Breaker()) as producer:
        load = Load(producer, queue_name)
        async with load.running():
            await until(lambda: len(load.told) > 100)
            assert await told(rabbitmq, rabbitmq.close_all_connections) >= 1
            await until(lambda: producer.status().link >= 2 and producer.status().healthy)
            so_far = len(load.told)
            await until(lambda: len(load.told) > so_far + 100)
        fault = producer.status().last_fault
        assert fault is not None
        assert fault.reply_code == 320
    settle_account(load, await told(rabbitmq, account, rabbitmq, queue_name))


async def test_an_alarm_during(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """Blocked while publishing: health says so, nothing fails, and all is confirmed on the same link afterwards."""
    async with opened() as producer:
        await producer.publish(b"before", routing_key=queue_name)
        await told(rabbitmq, rabbitmq.memory_alarm, True)
        async with anyio.create_task_group() as tasks:
            receipts: list[Receipt] = []

            async def publish() -> None:
                receipts.append(await producer.publish(b"x", routing_key=queue_name))

            for _ in range(20):
                tasks.start_soon(publish)
            await until(lambda: producer.status().blocked)
            assert not producer.status().healthy
            await told(rabbitmq, rabbitmq.memory_alarm, False)
        assert {receipt.link for receipt in receipts} == {1}
        assert producer.status().healthy


async def test_an_alarm_before(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """A broker that is under an alarm when the producer comes: held, then confirmed."""
    await told(rabbitmq, rabbitmq.memory_alarm, True)
    async with opened() as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(producer.publish, b"x", routing_key=queue_name))
        await until(lambda: producer.status().blocked)
        await told(rabbitmq, rabbitmq.memory_alarm, False)


async def test_closing_while_blocked(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """A blocked broker reads nothing, Close included: closing ends all the same, and reports what is left."""
    async with opened(drain_timeout=0.5, close_timeout=0.5) as producer:
        await told(rabbitmq, rabbitmq.memory_alarm, True)
        first = producer.publish_nowait(b"x", routing_key=queue_name)
        await until(lambda: producer.status().blocked)
        second = producer.publish_nowait(b"y", routing_key=queue_name)
        with anyio.fail_after(60):
            report = await producer.aclose()
        assert (report.unconfirmed, report.not_sent) == ((first.message_id,), (second.message_id,))
        await told(rabbitmq, rabbitmq.memory_alarm, False)


@pytest.mark.parametrize(
    ("make_url", "error"),
    [
        (lambda broker: broker.url_for(password="wrong"), warrener.AuthenticationRefused),
        (lambda broker: broker.url_for(vhost="missing"), warrener.VhostRefused),
    ],
    ids=["wrong password", "missing vhost"],
)
async def test_a_refusal_is_named_at_once(
    rabbitmq: PrivateRabbitMQ, driver: str, make_url: Callable[[PrivateRabbitMQ], str], error: type[Exception]
) -> None:
    """Wrong password, missing vhost: `wait_connected` says so at once, without the secret."""
    async with open_producer(make_url(rabbitmq), driver=driver) as producer:
        with anyio.fail_after(60), pytest.raises(error) as caught:
            await producer.wait_connected()
        assert "wrong" not in repr(caught.value)
        assert not producer.status().healthy


async def test_a_revoked_permission(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """Write permission revoked: the publish is refused with 403 at once; granted again, a probe ends the refusal."""
    await told(rabbitmq, rabbitmq.add_user, "gateway", "secret")
    try:
        async with opened(url=rabbitmq.url_for("gateway", "secret")) as producer:
            await producer.publish(b"before", routing_key=queue_name)
            await told(rabbitmq, partial(rabbitmq.set_permissions, "gateway", write="^$"))
            with pytest.raises(warrener.PublishRefused) as caught:
                await producer.publish(b"refused", exchange="amq.direct", routing_key=queue_name)
            assert caught.value.reply_code == 403
            await told(rabbitmq, partial(rabbitmq.set_permissions, "gateway"))
            # RabbitMQ caches permissions for each channel; the refusal closed the one that had it. The producer remembers the
            # refusal, and asks the broker again with one message a second.
            outcome: object = caught.value
            with anyio.fail_after(60):
                while isinstance(outcome, warrener.PublishRefused):
                    await anyio.sleep(0.1)
                    try:
                        outcome = await producer.publish(b"allowed", exchange="amq.direct", routing_key="nobody")
                    except warrener.PublishError as error:
                        outcome = error
            assert isinstance(outcome, warrener.Unroutable)
    finally:
        await told(rabbitmq, rabbitmq.delete_user, "gateway")


async def test_a_missing_exchange_hits_only_its_own_message(opened: Callable[..., Any], queue_name: str) -> None:
    """One poison message among many: refused with 404, everybody else is confirmed, the link stays."""
    async with opened() as producer:
        outcomes: dict[int, Any] = {}

        async def publish(number: int) -> None:
            exchange = "no-such-exchange" if number == 7 else ""
            try:
                outcomes[number] = await producer.publish(b"x", exchange=exchange, routing_key=queue_name)
            except warrener.PublishError as error:
                outcomes[number] = error

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(publish, number)
        assert [number for number, outcome in outcomes.items() if not isinstance(outcome, Receipt)] == [7]
        assert isinstance(outcomes[7], warrener.PublishRefused)
        assert outcomes[7].reply_code == 404
        assert producer.status().link == 1


async def test_a_queue_that_rejects(opened: Callable[..., Any], queue_name: str) -> None:
    """`x-overflow=reject-publish`: Nacked, at once, and sent once."""
    full = Queue(queue_name, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with opened(topology=(full,)) as producer:
        await producer.publish(b"fits", routing_key=queue_name)
        outcomes = await producer.publish_many([Message(b"does not", routing_key=queue_name) for _ in range(5)])
        # The queue counts asynchronously: one more may slip in.
        assert isinstance(outcomes[-1], warrener.Nacked)


async def test_unroutable_is_reported(opened: Callable[..., Any]) -> None:
    """The original counted these as success."""
    async with opened() as producer:
        with pytest.raises(warrener.Unroutable) as caught:
            await producer.publish(b"x", routing_key="nobody-listens")
        assert (caught.value.reply_code, caught.value.may_have_been_delivered) == (312, False)


async def test_two_in_flight_with_one_id(opened: Callable[..., Any], queue_name: str) -> None:
    """Equal message_ids in flight resolve independently: one is returned, the other confirmed."""
    async with opened() as producer:
        outcomes = await producer.publish_many(
            [
                Message(b"x", message_id="same", routing_key="nobody-listens"),
                Message(b"x", message_id="same", routing_key=queue_name),
            ]
        )
        assert [type(outcome) for outcome in outcomes] == [warrener.Unroutable, Receipt]


async def test_absent_at_start(rabbitmq: PrivateRabbitMQ, driver: str, queue_name: str) -> None:
    """The broker comes after the producer: the publish waits, and is confirmed; nothing died."""
    await told(rabbitmq, rabbitmq.kill)
    async with open_producer(rabbitmq.url, driver=driver, topology=(Queue(queue_name),), **EAGER) as producer:
        async with anyio.create_task_group() as tasks:
            receipts: list[Receipt] = []

            async def publish() -> None:
                receipts.append(await producer.publish(b"x", routing_key=queue_name))

            tasks.start_soon(publish)
            await until(lambda: producer.status().reconnect_attempts >= 2)
            assert not producer.status().healthy
            await told(rabbitmq, rabbitmq.start)
        assert receipts[0].attempts == 1


async def test_a_topology_mismatch_names_the_queue(
    rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], driver: str, queue_name: str
) -> None:
    """A queue that exists with other arguments is a clear error naming it, and is not dialed hot."""
    async with opened():
        other = (Queue(queue_name, arguments={"x-max-length": 5}),)
        async with open_producer(rabbitmq.url, driver=driver, topology=other) as producer:
            with anyio.fail_after(60), pytest.raises(warrener.TopologyMismatch) as caught:
                await producer.wait_connected()
            assert caught.value.entity == f"queue {queue_name!r}"
            assert producer.status().retry_in is not None
            assert producer.status().retry_in > 3


async def test_topology_is_declared_in_order_on_each_link(
    rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str
) -> None:
    """Exchange, queue and binding, given in any order, are there on the first link and on the next."""
    topology = (
        Binding(source=f"{queue_name}.x", destination=queue_name, routing_key="key"), Queue(queue_name), Exchange(f"{queue_name}.x", "topic"),
    )  # fmt: skip
    async with opened(topology=topology) as producer:
        await producer.publish(b"x", exchange=f"{queue_name}.x", routing_key="key")
        await told(rabbitmq, rabbitmq.close_all_connections)
        await until(lambda: producer.status().link == 2 and producer.status().healthy)
        await producer.publish(b"x", exchange=f"{queue_name}.x", routing_key="key")


async def test_cancelled_at_the_kth_checkpoint(opened: Callable[..., Any], queue_name: str) -> None:
    """Cancelled after k turns of the loop, for every k that a publish has, the stream stays legal and the count right."""
    async with opened() as producer:
        for k in range(12):
            async with anyio.create_task_group() as tasks:

                async def cancel(tasks: anyio.abc.TaskGroup = tasks, turns: int = k) -> None:
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(cancel)
                tasks.start_soon(partial(producer.publish, b"x" * 1000, routing_key=queue_name))
        await until(lambda: producer.status().in_flight == producer.status().buffered == 0)
        counters = producer.counters
        settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
        assert counters["accepted"] == settled
        assert (await producer.publish(b"after", routing_key=queue_name)).link == 1


def test_cancelled_before_each_step_on_trio(rabbitmq: PrivateRabbitMQ, queue_name: str, driver: str) -> None:
    """An instrument counts the steps of a publish and cancels before each: the stream stays legal and the count right."""

    async def main() -> None:
        topology = (Queue(queue_name),)
        async with open_producer(rabbitmq.url, driver=driver, topology=topology, **EAGER) as producer:
            await producer.wait_connected(30)

            async def steps_of_publish(cancel_at: int) -> int:
                scope = trio.CancelScope()
                instrument = CancelAtStep("the publisher", cancel_at, scope)

                async def publish() -> None:
                    with scope:
                        await producer.publish(b"x" * 1000, routing_key=queue_name)

                trio.lowlevel.add_instrument(instrument)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish, name="the publisher")
                trio.lowlevel.remove_instrument(instrument)
                return instrument.steps

            steps = await steps_of_publish(0)
            assert steps >= 2
            for cancel_at in range(1, steps + 1):
                await steps_of_publish(cancel_at)
            await until(lambda: accounted(producer))
            assert (await producer.publish(b"after", routing_key=queue_name)).link == 1

    trio.run(main)


async def test_publish_after_close(opened: Callable[..., Any], queue_name: str) -> None:
    """Closed is final: ProducerClosed, certain not to have been sent."""
    async with opened() as producer:
        await producer.aclose()
        with pytest.raises(warrener.ProducerClosed):
            await producer.publish(b"x", routing_key=queue_name)


async def test_close_under_load(rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str) -> None:
    """Closing while 50 publishers push: what was accepted is settled, the rest is told, the queue agrees."""
    async with opened() as producer:
        load = Load(producer, queue_name)
        async with load.running():
            await until(lambda: len(load.told) > 200)
            report = await producer.aclose()
        assert report.unconfirmed == ()
        assert all(not error.may_have_been_delivered for error in load.told.values() if not isinstance(error, Receipt))
    held = await told(rabbitmq, account, rabbitmq, queue_name)
    assert set(held) == load.confirmed


async def test_nothing_is_left_after_cancellation(
    rabbitmq: PrivateRabbitMQ, driver: str, queue_name: str, anyio_backend: str
) -> None:
    """A cancelled nursery closes within `abort_timeout` and leaves no connection at the broker."""
    async with anyio.create_task_group() as tasks:
        producer = Producer(rabbitmq.url, driver=driver, topology=(Queue(queue_name),))
        await tasks.start(producer.run)
        await producer.wait_connected(30)
        tasks.cancel_scope.cancel()
    assert producer.connection_state is ConnectionState.CLOSED
    await until(lambda: rabbitmq.connection_count() == 0)


async def test_sigterm(rabbitmq: PrivateRabbitMQ, driver: str, queue_name: str, anyio_backend: str) -> None:
    """A program that closes on SIGTERM under load loses nothing: its report equals the queue."""
    program = textwrap.dedent(
        """
        import signal, sys, anyio, warrener
        url, queue, driver, backend = sys.argv[1:]

        async def main():
            confirmed = 0
            async with warrener.open_producer(url, driver=driver, topology=(warrener.Queue(queue),)) as producer:
                async def push():
                    nonlocal confirmed
                    while True:
                        try:
                            await producer.publish(b"x", routing_key=queue)
                        except warrener.ProducerClosed:
                            return
                        confirmed += 1
                        if confirmed == 50:
                            print("going", flush=True)
                with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(20):
                            tasks.start_soon(push)
                        async for _ in signals:
                            await producer.aclose()
                            break
            print(confirmed, flush=True)

        anyio.run(main, backend=backend)
        """
    )
    process = await anyio.open_process(
        [sys.executable, "-c", program, rabbitmq.url, queue_name, driver, anyio_backend], stderr=None
    )
    assert process.stdout is not None
    with anyio.fail_after(60):
        assert (await process.stdout.receive()).startswith(b"going")
        process.send_signal(signal.SIGTERM)
        confirmed = int(b"".join([chunk async for chunk in process.stdout]))
        assert await process.wait() == 0
    held = await told(rabbitmq, account, rabbitmq, queue_name)
    assert sum(held.values()) == confirmed


def test_uvloop(rabbitmq: PrivateRabbitMQ, queue_name: str, driver: str) -> None:
    """The same code under uvloop."""
    pytest.importorskip("uvloop")

    async def main() -> Receipt:
        async with open_producer(rabbitmq.url, driver=driver, topology=(Queue(queue_name),)) as producer:
            return await producer.publish(b"x", routing_key=queue_name)

    assert anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True}).attempts == 1
