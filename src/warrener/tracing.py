"""Spans around a publish, when opentelemetry-api is installed; without it the caller's trace context is passed on as it is.

The span follows the messaging conventions of OpenTelemetry for RabbitMQ. Only W3C trace context (``traceparent``,
``tracestate``) goes into a message: baggage may be private, and stays at home.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from warrener.records import Endpoint, Message

__all__ = ["PublishSpan", "publish_span", "trace_context"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
#: W3C Trace Context, 3.3.1.5: at least 512 characters should be propagated.
_LONGEST_STATE = 512


class PublishSpan(Protocol):
    """What the caller of `publish_span` is given."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What the message has to carry for its consumer to go on with the trace; may be empty."""
        ...

    def sending(self, message: Message) -> None:
        """Note what is being sent: ids and sizes, never content."""
        ...


def trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the valid W3C trace context among `headers` (lower-case names); empty when there is none."""
    parent = headers.get("traceparent", "").strip()
    if not _TRACEPARENT.fullmatch(parent) or parent.startswith("ff"):
        return {}
    state = headers.get("tracestate", "").strip()
    usable = 0 < len(state) <= _LONGEST_STATE and state.isascii() and state.isprintable()
    return {"traceparent": parent} | ({"tracestate": state} if usable else {})


class _Untraced:
    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def sending(self, message: Message) -> None:
        pass


class _Traced:
    __slots__ = ("_span", "headers")

    def __init__(self, span: Any, headers: Mapping[str, str]) -> None:
        self._span = span
        self.headers = headers

    def sending(self, message: Message) -> None:
        self._span.set_attribute("messaging.message.id", message.message_id)
        self._span.set_attribute("messaging.message.body.size", len(message.body))
        if message.correlation_id:
            self._span.set_attribute("messaging.message.conversation_id", message.correlation_id)


@contextmanager
def publish_span(
    exchange: str, routing_key: str, incoming: Mapping[str, str] | None = None, *, broker: Endpoint | None = None
) -> Iterator[PublishSpan]:
    """Be the span of one publish; `incoming` is the trace context of whoever asked for it (see `trace_context`).

    Without `incoming` the span is a child of the current one, if there is one. `broker` gives the server's address.

    What the block raises is noted as ``error.type`` and goes on.
    """
    incoming = incoming or {}
    try:
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ModuleNotFoundError:
        yield _Untraced(incoming)
        return

    propagator = TraceContextTextMapPropagator()
    with trace.get_tracer("warrener").start_as_current_span(
        f"publish {exchange or 'amq.default'}",
        context=propagator.extract(incoming) if incoming else None,
        kind=SpanKind.PRODUCER,
        attributes={
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": ":".join(part for part in (exchange, routing_key) if part),
            "messaging.rabbitmq.destination.routing_key": routing_key,
            **({} if broker is None else {"server.address": broker.host, "server.port": broker.port}),
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        headers: dict[str, str] = {}
        propagator.inject(headers)
        try:
            yield _Traced(span, headers)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
