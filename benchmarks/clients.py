"""Every client in Python: ``python -m benchmarks.clients NAME LOAD`` runs one and writes what it measured.

Each is used as its documentation says, with persistent messages and publisher confirms, and the task that published a message
awaits its confirm. `Load.equal` adds the same work for each of the pipelining clients (benchmarks/load.py); the rest is at its
default.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import anyio
import trio

from benchmarks.load import WITNESSES, Load, Meter, message_ids, say, unexpected_return
from benchmarks.raw import blast, frames_with

Publish = Callable[[], Awaitable[object]]


async def _publisher(publish: Publish, meter: Meter) -> None:
    confirm = meter.confirm
    while not meter.done:
        await publish()
        confirm()


async def _witness(publish: Publish, meter: Meter) -> None:
    while not meter.done:
        began = time.perf_counter()
        await publish()
        meter.latencies.append(time.perf_counter() - began)
        meter.confirm()


def _role(number: int) -> Callable[[Publish, Meter], Any]:
    return _witness if number < WITNESSES else _publisher


# --- warrener ---------------------------------------------------------------------------------------------------------


def _warrener_settings(load: Load) -> dict[str, Any]:
    return {"max_in_flight": max(10_000, load.in_flight), "max_buffered": max(10_000, load.in_flight)}


def _warrener(
    backend: str,
    driver: str,
    fields: Mapping[str, Any] = MappingProxyType({}),
    *,
    target: bool = False,
    **options: Any,
) -> Callable[[Load], Meter]:
    """`Producer.publish`, or `Target.publish`."""

    def client(load: Load) -> Meter:
        from warrener import open_producer

        meter, body = Meter(load), bytes(load.size)

        async def main() -> None:
            async with open_producer(load.url, driver=driver, **_warrener_settings(load)) as producer:
                await producer.wait_connected(60)
                named = {"routing_key": load.queue, "mandatory": load.equal, **fields}
                publish = (
                    partial(producer.to(**named).publish, body) if target else partial(producer.publish, body, **named)
                )
                async with anyio.create_task_group() as tasks:
                    for number in range(load.in_flight):
                        tasks.start_soon(_role(number), publish, meter)

        anyio.run(main, backend=backend, backend_options=options)
        return meter

    return client


def _warrener_many(load: Load, size: int = 0) -> Meter:
    """publish_many of `size` bodies, or of half of those in flight, two at a time so that the pipeline never runs empty."""
    from warrener import open_producer

    meter, bodies = Meter(load), [bytes(load.size)] * (size or load.in_flight // 2)

    async def runs(target: Any) -> None:
        while not meter.done:
            receipts = await target.publish_many(bodies)
            assert type(receipts[0]).__name__ == type(receipts[-1]).__name__ == "Receipt"
            meter.confirm(len(receipts))

    async def main() -> None:
        async with open_producer(load.url, **_warrener_settings(load)) as producer:
            await producer.wait_connected()
            target = producer.to(routing_key=load.queue, mandatory=load.equal)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runs, target)
                nursery.start_soon(runs, target)

    trio.run(main)
    return meter


# --- peers on asyncio ---------------------------------------------------------------------------------------------------


async def _on_asyncio(load: Load, publish: Publish) -> Meter:
    meter = Meter(load)
    await asyncio.gather(*(_role(number)(publish, meter) for number in range(load.in_flight)))
    return meter


def _aiormq(load: Load) -> Meter:
    import aiormq

    body = bytes(load.size)
    bare = aiormq.spec.Basic.Properties(delivery_mode=2)
    ids = message_ids()

    async def main() -> Meter:
        connection = await aiormq.connect(load.url)
        channel = await connection.channel(publisher_confirms=True)
        channel.on_return_callbacks.add(unexpected_return)

        def publish() -> Awaitable[object]:
            properties = aiormq.spec.Basic.Properties(delivery_mode=2, message_id=next(ids)) if load.equal else bare
            return channel.basic_publish(body, routing_key=load.queue, properties=properties, mandatory=load.equal)

        meter = await _on_asyncio(load, publish)
        await connection.close()
        return meter

    return asyncio.run(main())


def _aio_pika(load: Load) -> Meter:
    import aio_pika

    body = bytes(load.size)

    async def main() -> Meter:
        connection = await aio_pika.connect_robust(load.url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            channel.return_callbacks.add(unexpected_return)
            exchange = channel.default_exchange
            ids = message_ids()

            def publish() -> Awaitable[object]:
                message = aio_pika.Message(
                    body,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=next(ids) if load.equal else None,
                )
                return exchange.publish(message, routing_key=load.queue, mandatory=load.equal)

            return await _on_asyncio(load, publish)

    return asyncio.run(main())


# --- pika ---------------------------------------------------------------------------------------------------------------


def _pika_select(load: Load) -> Meter:
    """Pipelined by hand: what its documentation's publisher example does, with a window."""
    import pika

    meter, body = Meter(load), bytes(load.size)
    bare = pika.BasicProperties(delivery_mode=2)
    ids = message_ids()
    outstanding: dict[int, float] = {}
    last_tag = 0

    def on_confirm(frame: Any) -> None:
        method = frame.method
        if method.multiple:
            tags = [tag for tag in outstanding if tag <= method.delivery_tag]
        else:
            tags = [method.delivery_tag]
        for tag in tags:
            began = outstanding.pop(tag)
            if began:
                meter.latencies.append(time.perf_counter() - began)
        meter.confirm(len(tags))
        fill()

    def fill() -> None:
        nonlocal last_tag
        while not meter.done and len(outstanding) < load.in_flight:
            last_tag += 1
            outstanding[last_tag] = time.perf_counter() if last_tag % load.in_flight < WITNESSES else 0.0
            properties = pika.BasicProperties(delivery_mode=2, message_id=next(ids)) if load.equal else bare
            channel.basic_publish("", load.queue, body, properties, mandatory=load.equal)
        if meter.done and not outstanding:
            connection.close()

    def on_channel(opened: Any) -> None:
        nonlocal channel
        channel = opened
        channel.add_on_return_callback(unexpected_return)
        channel.confirm_delivery(on_confirm, callback=lambda _frame: fill())

    channel: Any = None
    connection = pika.SelectConnection(
        pika.URLParameters(load.url),
        on_open_callback=lambda opened: opened.channel(on_open_callback=on_channel),
        on_close_callback=lambda closed, _reason: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    return meter


def _one_at_a_time(load: Load, publish: Callable[[], object]) -> Meter:
    meter = Meter(load)
    while not meter.done:
        began = time.perf_counter()
        publish()
        meter.latencies.append(time.perf_counter() - began)
        meter.confirm()
    return meter


def _pika_blocking(load: Load) -> Meter:
    import pika

    body = bytes(load.size)
    properties = pika.BasicProperties(delivery_mode=2)
    connection = pika.BlockingConnection(pika.URLParameters(load.url))
    channel = connection.channel()
    channel.confirm_delivery()
    meter = _one_at_a_time(load, lambda: channel.basic_publish("", load.queue, body, properties))
    connection.close()
    return meter


def _kombu(load: Load) -> Meter:
    import kombu

    body = bytes(load.size)
    with kombu.Connection(load.url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        return _one_at_a_time(load, lambda: producer.publish(body, routing_key=load.queue, delivery_mode=2))


def _amqpstorm(load: Load) -> Meter:
    import amqpstorm

    body = bytes(load.size)
    parts = urlsplit(load.url)
    with (
        amqpstorm.Connection(parts.hostname, "guest", "guest", port=parts.port) as connection,
        connection.channel() as channel,
    ):
        channel.confirm_deliveries()
        properties = {"delivery_mode": 2}
        return _one_at_a_time(load, lambda: channel.basic.publish(body, load.queue, properties=properties))


CLIENTS: dict[str, Callable[[Load], Meter]] = {
    "raw blaster": blast,
    "warrener, Trio": _warrener("trio", "native"),
    "warrener, asyncio": _warrener("asyncio", "native"),
    "warrener, uvloop": _warrener("asyncio", "native", use_uvloop=True),
    "warrener Target, Trio": _warrener("trio", "native", target=True),
    "warrener Target, asyncio": _warrener("asyncio", "native", target=True),
    "warrener Target, uvloop": _warrener("asyncio", "native", target=True, use_uvloop=True),
    "warrener publish_many, Trio": _warrener_many,
    "warrener publish_many of 1,000, Trio": partial(_warrener_many, size=1000),
    "warrener on aiormq, Trio": _warrener("trio", "aiormq"),
    "warrener on aiormq, asyncio": _warrener("asyncio", "aiormq"),
    "pika SelectConnection, pipelined": _pika_select,
    "aiormq": _aiormq,
    "aio-pika robust": _aio_pika,
    "pika BlockingConnection": _pika_blocking,
    "kombu": _kombu,
    "amqpstorm": _amqpstorm,
    # What one guarantee costs: each line is the one above it and one thing more, or the library with one thing less.
    "raw frames: persistent": frames_with(),
    "raw frames: + mandatory": frames_with(mandatory=True),
    "raw frames: + message_id": frames_with(mandatory=True, message_id=True),
    "raw frames: + return token": frames_with(mandatory=True, message_id=True, token=True),
    "warrener, Trio: not mandatory": _warrener("trio", "native", {"mandatory": False}),
    "warrener, Trio: return token": _warrener("trio", "native", {"message_id": "of the caller"}),
    "warrener, Trio: no deadline": _warrener("trio", "native", {"timeout": math.inf}),
}


if __name__ == "__main__":
    name, argument = sys.argv[1:]
    import json

    say(CLIENTS[name](Load(**json.loads(argument))).report())
