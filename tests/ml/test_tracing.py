"""Traces: spans by the messaging conventions where a provider is set, the caller's context passed on where not."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import kombu
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from warrener import Message, Producer, Settings, Unroutable, open_producer
from warrener.ml import MLProducer, MLSettings
from warrener.testing.broker import EmbeddedBroker
from warrener.tracing import trace_context

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def anyio_backend() -> str:
    """Spans do not depend on the backend."""
    return "trio"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue("tasks")
        yield broker


def headers_in(broker: EmbeddedBroker, queue: str = "tasks") -> list[Mapping[str, Any]]:
    """Empty a queue with an independent client."""
    with kombu.Connection(broker.url.replace("amqp://", "pyamqp://")) as connection, connection.channel() as channel:
        return [message.headers for message in iter(lambda: channel.basic_get(queue, no_ack=True), None)]


def traceparent(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


@pytest.mark.anyio
async def test_a_publish_is_a_span_whose_context_is_in_the_message(broker, spans) -> None:
    """The attributes of the conventions; the headers of the message are kept beside the context."""
    async with open_producer(broker.url) as producer:
        receipt = await producer.publish(b"hello", routing_key="tasks", headers={"a": 1}, correlation_id="c")
    (span,) = spans.get_finished_spans()
    assert ("publish tasks", trace.SpanKind.PRODUCER) == (span.name, span.kind)
    assert {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "tasks",
        "messaging.rabbitmq.destination.routing_key": "tasks",
        "messaging.message.id": receipt.message_id,
        "messaging.message.conversation_id": "c",
        "messaging.message.body.size": 5,
        "server.address": "127.0.0.1",
        "server.port": broker.port,
    } == dict(span.attributes)
    (headers,) = headers_in(broker)
    assert (1, traceparent(span)) == (headers["a"], headers["traceparent"])


@pytest.mark.anyio
async def test_a_span_is_a_child_of_the_current_one(broker, spans) -> None:
    """In a program that traces itself, nothing has to be passed."""
    async with open_producer(broker.url) as producer:
        with trace.get_tracer("gateway").start_as_current_span("share") as outer:
            await producer.publish(Message(b"x", routing_key="tasks"))
    published = spans.get_finished_spans()[0]
    assert outer.context.span_id == published.parent.span_id


@pytest.mark.anyio
async def test_a_batch_is_one_span_and_each_of_its_messages_carries_it(broker, spans) -> None:
    """Messages, bodies that share their fields, and an async iterable."""

    async def later() -> AsyncIterator[Message]:
        yield Message(b"e", routing_key="tasks")

    async with open_producer(broker.url) as producer:
        await producer.publish_many([Message(b"a", routing_key="tasks"), Message(b"b", routing_key="tasks")])
        await producer.publish_many([b"c", b"d"], routing_key="tasks")
        await producer.publish_many(later())
    messages, bodies, stream = spans.get_finished_spans()
    assert [2, 2, 1] == [span.attributes["messaging.batch.message_count"] for span in (messages, bodies, stream)]
    assert ("publish", "publish tasks") == (messages.name, bodies.name)
    expected = [traceparent(span) for span in (messages, messages, bodies, bodies, stream)]
    assert expected == [headers["traceparent"] for headers in headers_in(broker)]


@pytest.mark.anyio
async def test_what_a_target_publishes_is_traced(broker, spans) -> None:
    """In each way, also by a target that was made before the producer ran."""
    producer = Producer(broker.url)
    target = producer.to(routing_key="tasks")
    async with producer:
        await producer.wait_connected()
        await target.publish(b"a")
        await target.publish(b"b")
        await target.publish_nowait(b"c").wait()
        await target.publish_many([b"d"])
    finished = spans.get_finished_spans()
    assert [span.name for span in finished] == ["publish tasks", "publish tasks", "create tasks", "publish tasks"]
    assert [traceparent(span) for span in finished] == [headers["traceparent"] for headers in headers_in(broker)]


@pytest.mark.anyio
async def test_publish_nowait_is_a_span_that_ends_with_the_acceptance(broker, spans) -> None:
    """The message carries it, too."""
    async with open_producer(broker.url) as producer:
        await producer.wait_connected()
        handle = producer.publish_nowait(b"x", routing_key="tasks")
        (span,) = spans.get_finished_spans()
        await handle.wait()
    assert ("create tasks", "create", handle.message_id) == (
        span.name, span.attributes["messaging.operation.type"], span.attributes["messaging.message.id"],
    )  # fmt: skip
    assert [traceparent(span)] == [headers["traceparent"] for headers in headers_in(broker)]


@pytest.mark.anyio
async def test_a_failed_publish_is_a_failed_span_without_text(broker, spans) -> None:
    """error.type is the class; the text, which may quote the broker, stays out."""
    async with open_producer(broker.url) as producer:
        with pytest.raises(Unroutable):
            await producer.publish(b"x", routing_key="nowhere")
    (span,) = spans.get_finished_spans()
    assert ("Unroutable", trace.StatusCode.ERROR, ()) == (
        span.attributes["error.type"], span.status.status_code, tuple(span.events),
    )  # fmt: skip


@pytest.mark.anyio
async def test_without_a_provider_the_methods_are_the_class_s_own(broker) -> None:
    """A producer that is not traced pays nothing."""
    async with open_producer(broker.url) as producer:
        assert Producer.publish is producer.publish.__func__
        await producer.publish(b"x", routing_key="tasks")
    assert "traceparent" not in (headers_in(broker)[0] or {})


@pytest.mark.anyio
async def test_an_ml_task_goes_on_with_the_trace_of_its_request(broker, spans) -> None:
    """The span is a child of the caller's; the message carries the span and the state of the caller."""
    async with MLProducer(MLSettings(broker=Settings.resolve(broker.url, environ={}))) as ml:
        await ml.summarize(share_id="s", text="private", trace={"traceparent": PARENT, "tracestate": "a=1"})
    (span,) = spans.get_finished_spans()
    (headers,) = headers_in(broker, "ml.summarize")
    assert ("publish bookmarkai.ml:ml.summarize", 0xB7AD6B7169203331) == (span.name, span.parent.span_id)
    assert (traceparent(span), "a=1") == (headers["traceparent"], headers["tracestate"])


@pytest.mark.anyio
@pytest.mark.parametrize("installed", [True, False])
async def test_without_a_provider_the_callers_context_is_passed_on(ml, producer, monkeypatch, installed) -> None:
    """A gateway's trace still reaches the worker, with opentelemetry-api or without."""
    if not installed:
        monkeypatch.setitem(sys.modules, "opentelemetry", None)
    await ml.summarize(share_id="s", text="x", trace={"traceparent": PARENT})
    await ml.summarize(share_id="s", text="x")
    with_trace, without = (message.headers for message, _ in producer.published)
    assert PARENT == with_trace["traceparent"]
    assert "traceparent" not in without


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        (
            {"traceparent": PARENT, "tracestate": "a=1", "baggage": "user=1"},
            {"traceparent": PARENT, "tracestate": "a=1"},
        ),
        ({"traceparent": PARENT, "tracestate": "x" * 513}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "a=\x1b"}, {"traceparent": PARENT}),
        ({"traceparent": PARENT.upper()}, {}),
        ({"traceparent": "ff" + PARENT[2:]}, {}),
        ({"traceparent": "00-" + "0" * 32 + PARENT[35:]}, {}),
        ({"traceparent": PARENT + "\r\nx: y"}, {}),
        ({"tracestate": "a=1"}, {}),
    ],
)
def test_only_a_valid_w3c_context_is_taken_from_a_request(headers, expected) -> None:
    """Anything else a client sends is dropped, baggage too."""
    assert expected == trace_context(headers)
