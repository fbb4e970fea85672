"""Traces: spans by the messaging conventions where OpenTelemetry is there, the caller's context passed on where not."""

from __future__ import annotations

import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from warrener.errors import Nacked
from warrener.tracing import trace_context

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


async def test_a_publish_is_a_span_whose_context_is_in_the_message(ml, producer, spans) -> None:
    """The span has the conventions' attributes, is a child of the caller's, and the message carries it on."""
    receipt = await ml.summarize(share_id="s", text="private", trace={"traceparent": PARENT, "tracestate": "a=1"})
    (span,) = spans.get_finished_spans()
    ((message, _),) = producer.published
    assert ("publish bookmarkai.ml", trace.SpanKind.PRODUCER) == (span.name, span.kind)
    assert {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "bookmarkai.ml:ml.summarize",
        "messaging.rabbitmq.destination.routing_key": "ml.summarize",
        "messaging.message.id": receipt.message_id,
        "messaging.message.conversation_id": receipt.message_id,
        "messaging.message.body.size": len(message.body),
        "server.address": "broker.internal",
        "server.port": 5672,
    } == dict(span.attributes)
    assert 0xB7AD6B7169203331 == span.parent.span_id
    assert f"00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01" == message.headers["traceparent"]
    assert "a=1" == message.headers["tracestate"]


async def test_without_a_callers_context_the_span_belongs_to_the_current_one(ml, producer, spans) -> None:
    """In a program that traces itself nothing has to be handed over."""
    with trace.get_tracer("gateway").start_as_current_span("share") as outer:
        await ml.embed(share_id="s", text="x")
    ((message, _),) = producer.published
    published = spans.get_finished_spans()[0]
    assert outer.context.span_id == published.parent.span_id
    assert f"{outer.context.trace_id:032x}" == message.headers["traceparent"].split("-")[1]


async def test_a_failed_publish_is_a_failed_span_without_text(ml, producer, spans) -> None:
    """error.type is the class; the text, which may quote the broker, stays out."""
    producer.outcome = Nacked("id", "reason")
    with pytest.raises(Nacked):
        await ml.summarize(share_id="s", text="x")
    (span,) = spans.get_finished_spans()
    assert ("Nacked", trace.StatusCode.ERROR, ()) == (
        span.attributes["error.type"], span.status.status_code, tuple(span.events),
    )  # fmt: skip


async def test_without_opentelemetry_the_callers_context_is_passed_on(ml, producer, monkeypatch) -> None:
    """The package is optional; a gateway's trace still reaches the worker."""
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
