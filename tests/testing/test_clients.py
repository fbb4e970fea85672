"""Other people's clients work against the embedded broker, and their bytes are legal."""

from __future__ import annotations

import asyncio
import threading

import aio_pika
import aiormq
import kombu
import pika
import pika.exceptions
import pytest

from warrener.testing import EmbeddedBroker


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pika_publishes_consumes_and_hears_of_what_went_nowhere(backend: str) -> None:
    """pika: confirms, returns, get, consume with prefetch, nack and ack."""
    with EmbeddedBroker.in_thread(backend=backend) as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True)
        for number in range(5):
            channel.basic_publish("", "q", str(number).encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("", "nowhere", b"", mandatory=True)
        channel.basic_qos(prefetch_count=2)
        bodies = []
        for method, _, body in channel.consume("q"):
            bodies.append((body, method.redelivered))
            if body == b"1" and not method.redelivered:
                channel.basic_nack(method.delivery_tag)
            else:
                channel.basic_ack(method.delivery_tag)
            if len(bodies) == 6:
                break
        connection.close()

        assert sorted(bodies) == [
            (b"0", False),
            (b"1", False),
            (b"1", True),
            (b"2", False),
            (b"3", False),
            (b"4", False),
        ]
        assert {"q": 0} == broker.queues()


def test_pika_sees_the_reply_code_and_text_of_a_refusal() -> None:
    """pika: a declaration with other arguments closes the channel with RabbitMQ's words."""
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue("q")
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))

        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            connection.channel().queue_declare("q")

        connection.close()
    text = "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"
    assert (406, f"PRECONDITION_FAILED - {text}") == (caught.value.reply_code, caught.value.reply_text)


def test_pika_is_blocked_by_an_alarm_and_goes_on_after_it() -> None:
    """pika: a publish during an alarm waits, and is confirmed once the alarm is over."""
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue("q")
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        blocked = threading.Event()
        connection.add_on_connection_blocked_callback(lambda *_: blocked.set())
        channel = connection.channel()
        channel.confirm_delivery()
        broker.alarm()
        over = threading.Thread(target=lambda: (_wait_blocked(broker), broker.alarm(False)))
        over.start()
        channel.basic_publish("", "q", b"late", mandatory=True)
        over.join()
        connection.process_data_events()
        connection.close()

        assert blocked.is_set()
        assert [b"late"] == broker.messages("q")


def _wait_blocked(broker: EmbeddedBroker) -> None:
    while not any(client.blocked for client in broker.clients):
        threading.Event().wait(0.001)


def test_aio_pika_publishes_and_consumes_in_the_broker_s_own_loop() -> None:
    """aio-pika: topology, confirms and a consumer on the loop that the broker runs in."""

    async def main() -> list[bytes]:
        async with EmbeddedBroker() as broker:
            async with await aio_pika.connect(broker.url) as connection:
                channel = await connection.channel()
                exchange = await channel.declare_exchange("x", aio_pika.ExchangeType.TOPIC, durable=True)
                queue = await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
                await queue.bind(exchange, "a.*.#")
                await exchange.publish(aio_pika.Message(b"1"), "a.b")
                await exchange.publish(aio_pika.Message(b"2"), "a.b.c.d")
                await exchange.publish(aio_pika.Message(b"3"), "a", mandatory=False)
                bodies = []
                async with queue.iterator() as messages:
                    async for message in messages:
                        await message.ack()
                        bodies.append(message.body)
                        if len(bodies) == 2:
                            break
            return bodies

    assert [b"1", b"2"] == asyncio.run(main())


def test_aiormq_hears_nacks_and_returns() -> None:
    """aiormq: a full queue with reject-publish nacks; an unroutable publish comes back."""

    async def main() -> tuple[str, str, str]:
        async with EmbeddedBroker() as broker:
            broker.declare_queue("q", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
            connection = await aiormq.connect(broker.url)
            channel = await connection.channel()
            outcomes = []
            for key in ("q", "q", "nowhere"):
                try:
                    outcomes.append((await channel.basic_publish(b"x", routing_key=key, mandatory=True)).name)
                except aiormq.exceptions.DeliveryError as error:
                    outcomes.append(type(error).__name__)
            await connection.close()
        return tuple(outcomes)

    assert ("Basic.Ack", "DeliveryError", "PublishError") == asyncio.run(main())


def test_kombu_publishes_and_takes() -> None:
    """kombu (py-amqp, Celery's client): a simple queue there and back."""
    with EmbeddedBroker.in_thread() as broker, kombu.Connection(broker.url, transport="pyamqp") as connection:
        queue = connection.SimpleQueue("q")
        queue.put({"a": 1})
        message = queue.get(timeout=60)
        message.ack()
        queue.close()

        assert {"a": 1} == message.payload
