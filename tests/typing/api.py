"""The public surface as type checkers see it: checked by mypy and pyright, never run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_type

import anyio
import trio

import warrener
from warrener.ml import MLProducer, MLSettings, Transcribe, TranscribeContent
from warrener.records import MessageFields


async def as_a_block() -> None:
    async with warrener.open_producer("amqp://localhost/", heartbeat=10, breaker=None, backoff_initial=0.1) as producer:
        assert_type(producer, warrener.Producer)
        assert_type(await producer.publish(b"x", routing_key="tasks", timeout=math.inf), warrener.Receipt)
        assert_type(await producer.publish(warrener.Message(b"x", headers={"a": [1, "b", None]})), warrener.Receipt)
        await producer.publish("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await producer.publish(b"x", rooting_key="typo")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        outcomes = await producer.publish_many([warrener.Message(b"x")])
        assert_type(outcomes, Sequence[warrener.Receipt | warrener.PublishError])
        await producer.publish_many([b"x", bytearray(b"y")], routing_key="tasks", timeout=1)
        assert_type(await producer.publish_nowait(b"x").wait(), warrener.Receipt)
        async with producer.publish_stream([b"x"], window=10, routing_key="q", timeout=3) as stream:
            async for outcome in stream:
                assert_type(outcome, warrener.Receipt | warrener.PublishError)
        target = producer.to("events", "user.created", app_id="shop", mandatory=False)
        assert_type(target, warrener.Target)
        assert_type(await target.publish(memoryview(b"x"), timeout=3), warrener.Receipt)
        assert_type(await target.publish_many([b"x"]), Sequence[warrener.Receipt | warrener.PublishError])
        assert_type(target.publish_nowait(b"x"), warrener.PublishHandle)
        producer.to(routing_key="q", message_id="m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        assert_type(producer.status().connection_state, warrener.ConnectionState)
        assert_type(producer.reconnect(), bool)
        assert_type(await producer.aclose(), warrener.ClosingReport)


def fields_of_a_message(fields: MessageFields) -> warrener.Message:
    """Each keyword of `publish` is a keyword of `Message`, with the same type."""
    return warrener.Message(bytearray(b"x"), **fields)


def topology() -> tuple[warrener.Exchange | warrener.Queue | warrener.Binding, ...]:
    exchange, queue = warrener.Exchange("e", "topic"), warrener.Queue.server_named()
    warrener.Binding("e", "q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    return exchange, queue, warrener.Binding(source=exchange, destination=queue, routing_key="#")


async def as_a_component() -> None:
    warrener.Producer("amqp://localhost/", hartbeat=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    warrener.Producer("amqp://localhost/", breaker=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    producer = warrener.Producer("amqp://localhost/", topology=(warrener.Queue("tasks"),), driver="aiormq")
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
    async with anyio.create_task_group() as tasks:
        await tasks.start(producer.run)


async def looking(producer: warrener.Producer) -> None:
    async with producer.changes() as changes:
        async for status in changes:
            assert_type(status, warrener.Status)
    async with producer.outcomes() as outcomes:
        async for outcome in outcomes:
            assert_type(outcome.result, warrener.Receipt | warrener.PublishError)


async def ml_tasks() -> None:
    async with MLProducer(MLSettings(preferred_stt="local"), breaker=None) as ml:
        assert_type(await ml.summarize(share_id="s", text="x", style="brief"), warrener.Receipt)
        assert_type(
            await ml.transcribe(Transcribe(share_id="s", content=TranscribeContent(media_url="/a"))), warrener.Receipt
        )
        await ml.embed(share_id="s", content={"text": "x"}, backend="local")
        await ml.embed_batch(tasks=[{"share_id": "s", "content": {"text": "x"}}])
        await ml.summarize(share_id="s", txt="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await ml.embed(share_id="s", type="song")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    MLProducer(hartbeat=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
