"""OpenTelemetry spans for every producer, where opentelemetry-api is installed (extra ``otel``) and a provider is set.

Set the tracer provider before the producer runs. Then each call is a span by the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/), and each message carries the trace context of its span:

* `publish`: a span "publish", of the type send, from the call to its outcome.
* `publish_many`: one span of that kind for all messages, with their number.
* `publish_stream`: one span of that kind, which ends with the body of the ``async with``.
* `publish_nowait`: a span "create", of the type create, which ends when the message is accepted.

Only W3C trace context (``traceparent``, ``tracestate``) goes into a message. Baggage may be private, so it does not.
A producer without a provider costs nothing: its methods are replaced only when there is one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from attrs import evolve

from warrener._sources import reading
from warrener.records import Message, Receipt

__all__ = ["caller", "instrument", "trace_context"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
#: W3C Trace Context, 3.3.1.5: at least 512 characters should be propagated.
_LONGEST_STATE = 512


def trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the valid W3C trace context among `headers` (lower-case names); empty when there is none."""
    parent = headers.get("traceparent", "").strip()
    if not _TRACEPARENT.fullmatch(parent) or parent.startswith("ff"):
        return {}
    state = headers.get("tracestate", "").strip()
    usable = 0 < len(state) <= _LONGEST_STATE and state.isascii() and state.isprintable()
    return {"traceparent": parent} | ({"tracestate": state} if usable else {})


@contextmanager
def caller(incoming: Mapping[str, str] | None) -> Iterator[Mapping[str, str]]:
    """Make `incoming`, the trace context of a caller, the current context; yield the context as headers of a message.

    Without opentelemetry the headers are `incoming` itself, so that the consumer can go on with the caller's trace.
    """
    try:
        from opentelemetry import context
    except ModuleNotFoundError:
        yield incoming or {}
        return
    if not incoming:
        yield _injected()
        return
    token = context.attach(_propagator().extract(incoming))
    try:
        yield _injected()
    finally:
        context.detach(token)


def instrument(producer: object) -> bool:
    """Replace the publishing methods of this `Producer` by traced ones, if a tracer provider is set; return whether one is.

    Its targets call these methods then.
    """
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        return False
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # nobody has set one
        return False
    traced = _Traced(producer, provider.get_tracer("warrener"))
    attributes: dict[str, Any] = vars(producer)
    attributes.update(
        publish=traced.publish,
        publish_many=traced.publish_many,
        publish_nowait=traced.publish_nowait,
        publish_stream=traced.publish_stream,
    )
    return True


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _injected() -> dict[str, str]:
    """Return the current context as headers of a message."""
    headers: dict[str, str] = {}
    _propagator().inject(headers)
    return headers


class _Traced:
    """The publishing methods of one producer, each in a span."""

    def __init__(self, producer: Any, tracer: Any) -> None:
        # The bound methods of the class: `instrument` puts this object's methods before them.
        self._publish = producer.publish
        self._publish_many = producer.publish_many
        self._publish_nowait = producer.publish_nowait
        self._publish_stream = producer.publish_stream
        self._tracer = tracer
        #: The first broker of the list; None where the program names the endpoints while the producer runs.
        self._endpoint = next(iter(producer.settings.endpoints), None)

    async def publish(self, body: Any, **options: Any) -> Receipt:
        """`Producer.publish` in a span."""
        with self._span("publish", "send", _fields(body, options)) as span:
            receipt: Receipt = await self._publish(_carrying(body, _injected(), options), **options)
            span.set_attribute("messaging.message.id", receipt.message_id)
            return receipt

    async def publish_many(self, messages: Any, **options: Any) -> Sequence[Any]:
        """`Producer.publish_many` in one span."""
        own = {name: options.pop(name) for name in ("timeout", "retry") if name in options}
        with self._span("publish", "send", options) as span:
            messages = _all_carrying(messages, _injected(), options)
            outcomes: Sequence[Any] = await self._publish_many(messages, **own, **options)
            span.set_attribute("messaging.batch.message_count", len(outcomes))
            return outcomes

    @asynccontextmanager
    async def publish_stream(self, source: Any, **options: Any) -> AsyncIterator[Any]:
        """`Producer.publish_stream` in one span, which ends with the body of the ``async with``."""
        named = ("window", "key", "timeout", "retry")
        settings = {name: options.pop(name) for name in named if name in options}
        with self._span("publish", "send", options):
            source = _all_carrying(source, _injected(), options)
            async with self._publish_stream(source, **settings, **options) as outcomes:
                yield outcomes

    def publish_nowait(self, body: Any, **options: Any) -> Any:
        """`Producer.publish_nowait`, with a span that ends when the message is accepted."""
        with self._span("create", "create", _fields(body, options)) as span:
            handle = self._publish_nowait(_carrying(body, _injected(), options), **options)
            span.set_attribute("messaging.message.id", handle.message_id)
            return handle

    @contextmanager
    def _span(self, operation: str, kind: str, fields: Mapping[str, Any]) -> Iterator[Any]:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        exchange, routing_key = fields.get("exchange") or "", fields.get("routing_key") or ""
        # None: the messages of a batch have each their own.
        destination = (":".join(filter(None, (exchange, routing_key))) or "amq.default") if fields else None
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": operation,
            "messaging.operation.type": kind,
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": routing_key or None,
            "messaging.message.body.size": fields.get("body_size"),
            "messaging.message.conversation_id": fields.get("correlation_id"),
            "server.address": None if self._endpoint is None else self._endpoint.host,
            "server.port": None if self._endpoint is None else self._endpoint.port,
        }
        with self._tracer.start_as_current_span(
            operation if destination is None else f"{operation} {destination}",
            kind=SpanKind.PRODUCER,
            attributes={name: value for name, value in attributes.items() if value is not None},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                # The class only: the text may quote the broker.
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise


def _fields(body: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a span shows."""
    message = body if isinstance(body, Message) else None
    found = {
        name: options.get(name) if message is None else getattr(message, name)
        for name in ("exchange", "routing_key", "correlation_id")
    }
    content = body if message is None else message.body
    size = len(content) if isinstance(content, bytes | bytearray) else None
    return found | {"body_size": size}


def _carrying(body: Any, context: Mapping[str, str], options: dict[str, Any]) -> Any:
    """Add the trace context to the headers: those of a message, else those among `options`. Return message or body."""
    if isinstance(body, Message):
        return evolve(body, headers={**body.headers, **context})
    options["headers"] = {**(options.get("headers") or {}), **context}
    return body


def _all_carrying(messages: Any, context: Mapping[str, str], options: dict[str, Any]) -> Any:
    """Add the trace context to each message, or to the headers that bodies share. Return the messages or bodies."""
    if options:  # bodies that share these fields
        _carrying(b"", context, options)
    elif isinstance(messages, AsyncIterable):
        return _each_async(cast("AsyncIterable[object]", messages), context)
    elif isinstance(messages, Iterable):
        return (_carrying(message, context, {}) for message in cast("Iterable[object]", messages))
    return messages


async def _each_async(messages: AsyncIterable[Any], context: Mapping[str, str]) -> AsyncIterator[Any]:
    async with reading(messages) as source:
        async for message in source:
            yield _carrying(message, context, {})
