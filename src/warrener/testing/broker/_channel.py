"""The broker's side of one channel: publishes and their confirms, topology, consumers and their unacked messages.

RabbitMQ's order of checks is kept, because it decides which refusal a client hears: for a publish the size, the
permission (403 before 404), the exchange, the user id, the expiration; then the return, the routing, and the confirm.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from attrs import define, field

from warrener.testing.broker import _codec as codec
from warrener.testing.broker._codec import Content, IllegalBytes, Method, RawFrame, TypedTable, copy_properties
from warrener.testing.broker._confirms import Confirms
from warrener.testing.broker._model import (
    DELAYED,
    EXCHANGE_TYPES,
    NAMES,
    Entry,
    Message,
    Queue,
    Refusal,
    access_refused,
    precondition_failed,
)

if TYPE_CHECKING:
    from warrener.testing.broker._protocol import Connection

__all__ = ["Channel", "ids"]

CONFIGURE, WRITE, READ = 0, 1, 2
#: The largest body size, in bytes, that a content header may declare; for a larger one RabbitMQ closes the connection.
MAX_DECLARED_SIZE = 512 * 1024 * 1024
#: Milliseconds: ten years.
MAX_EXPIRATION = 315_360_000_000

Tables: TypeAlias = "dict[str, codec.TypedTable]"
Binder: TypeAlias = "Callable[[str, str, str, str, dict[str, Any]], None]"


def ids(method: Method | None) -> tuple[int, int]:
    """Return the class and method that a Close names."""
    if method is None:
        return 0, 0
    return method.fields.index >> 16, method.fields.index & 0xFFFF


@define(eq=False)
class Subscription:
    """A consumer on a channel; queues know it as `Consumer`."""

    channel: Channel
    tag: str
    queue: Queue
    no_ack: bool
    #: 0: no limit.
    prefetch: int
    unacked: int = 0

    def has_room(self) -> bool:
        """Whether this consumer's limit, and its channel's, allow one more message."""
        if self.no_ack:
            return True
        limit = self.channel.prefetch_of_channel
        if limit and sum(1 for held in self.channel.unacked.values() if held.consumer is not None) >= limit:
            return False
        return self.prefetch == 0 or self.unacked < self.prefetch

    def deliver(self, queue: Queue, entry: Entry) -> None:
        """Send one message to the client."""
        self.channel.deliver(self, queue, entry)

    def cancelled(self) -> None:
        """Tell the client that its queue is gone, where it wants to know."""
        self.channel.consumers.pop(self.tag, None)
        if self.channel.connection.capabilities.get("consumer_cancel_notify"):
            self.channel.send("basic.cancel", consumer_tag=self.tag, nowait=True)


@define(eq=False)
class Held:
    """A message that the client has not acked."""

    queue: Queue
    entry: Entry
    consumer: Subscription | None


@define
class Incoming:
    """A publish whose content is on its way."""

    method: Method
    content: Content | None = None
    body: bytearray = field(factory=bytearray)


class Channel:
    """One channel: its publishes and their confirms, its consumers and their unacked messages."""

    def __init__(self, connection: Connection, number: int) -> None:
        assert connection.vhost is not None
        assert connection.user is not None
        self.connection = connection
        self.number = number
        self.vhost = connection.vhost
        self.user = connection.user
        #: The broker has closed it and waits for close-ok.
        self.closing = False
        self.ended = False
        self.confirms: Confirms[Queue] | None = None
        self.consumers: dict[str, Subscription] = {}
        self.unacked: dict[int, Held] = {}
        self.prefetch = 0
        self.prefetch_of_channel = 0
        #: The value of `active` in the client's last channel.flow-ok; False forbids publishes.
        self.flow = True
        self._deliveries = 0
        self._incoming: Incoming | None = None
        #: What an empty queue name stands for (AMQP 0-9-1, queue.bind: "the last declared queue").
        self._last_queue = ""

    def send(self, name: str, /, **fields: Any) -> None:
        """Send a method on this channel."""
        self.connection.send(self.number, name, **fields)

    # --- frames ------------------------------------------------------------------------------------------------------

    def frame(self, frame: RawFrame) -> None:
        """Take one frame of this channel."""
        if frame.type == codec.METHOD:
            method = codec.decode_method(frame.payload)
            if self.closing:
                self._while_closing(method)
                return
            if self._incoming is not None:
                self._expected_content(self._incoming)
            else:
                self._method(method)
        elif self.closing:
            return
        elif frame.type == codec.HEADER:
            self._content_header(codec.decode_content_header(frame.payload))
        else:
            self._content_body(frame.payload)

    def _expected_content(self, incoming: Incoming) -> None:
        what = "header for class 60" if incoming.content is None else "body"
        kind = "header" if incoming.content is None else "body"
        text = f"expected content {what}, got non content {kind} frame instead"
        self.connection.violation(text)
        self.connection.close(505, text, incoming.method)

    def _while_closing(self, method: Method) -> None:
        if method.name == "channel.close_ok":
            self.connection.channels.pop(self.number, None)
        elif method.name == "channel.close":
            self.send("channel.close_ok")

    def _content_header(self, content: Content) -> None:
        incoming = self._incoming
        if incoming is None:
            raise IllegalBytes(505, "expected method frame, got non method frame instead")
        if incoming.content is not None:
            self._expected_content(incoming)
            return
        incoming.content = content
        if content.body_size > MAX_DECLARED_SIZE:
            self._incoming = None
            self.connection.close(
                501, f"declared body size {content.body_size} is larger than {MAX_DECLARED_SIZE}", incoming.method
            )
        elif content.body_size == 0:
            self._content_complete(incoming, content)

    def _content_body(self, fragment: bytes) -> None:
        incoming = self._incoming
        if incoming is None:
            raise IllegalBytes(505, "expected method frame, got non method frame instead")
        content = incoming.content
        if content is None:
            self._expected_content(incoming)
            return
        if not fragment:
            raise IllegalBytes(501, "an empty content body frame")
        incoming.body += fragment
        if len(incoming.body) > content.body_size:
            raise IllegalBytes(501, f"more than the declared {content.body_size} bytes of content body")
        if len(incoming.body) == content.body_size:
            self._content_complete(incoming, content)

    def _content_complete(self, incoming: Incoming, content: Content) -> None:
        self._incoming = None
        with self._refusals(incoming.method):
            self._take_answers(idle=False)
            if not self.connection.swallowed(self.number, content):
                self._publish(incoming.method.fields, content, bytes(incoming.body))
            self._flush()

    def _method(self, method: Method) -> None:
        if method.name == "basic.publish":
            if not self.connection.swallowed(self.number, method):
                self._incoming = Incoming(method)
            return
        if method.name == "channel.close":
            self.connection.channels.pop(self.number, None)
            self.end()
            self.send("channel.close_ok")
            return
        if method.name == "channel.open":
            self.connection.violation(f"channel.open on channel {self.number}, which is open")
            self.connection.close(504, "second 'channel.open' seen", method)
            return
        handler = self._HANDLERS.get(method.name)
        if handler is None:
            self.connection.violation(f"{method.name} from a client")
            self.connection.close(503, "unimplemented method", method)
            return
        with self._refusals(method):
            self._take_answers(idle=False)
            if not self.connection.swallowed(self.number, method):
                handler(self, method.fields, method.tables)
            self._flush()

    @contextmanager
    def _refusals(self, method: Method) -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            if refusal.soft:
                self.close(refusal.code, refusal.text, method)
            else:
                self.connection.close(refusal.code, refusal.text, method)

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self, code: int, text: str, method: Method | None = None) -> None:
        """Send channel.close; publishes and confirms are ignored from now on (a closing channel is silent)."""
        if self.closing or self.ended:
            return
        self.end()
        self.closing = True
        class_id, method_id = ids(method)
        self.send(
            "channel.close",
            reply_code=code,
            reply_text=f"{NAMES[code]} - {text}"[:255],
            class_id=class_id,
            method_id=method_id,
        )

    def end(self) -> None:
        """Stop the consumers, requeue the unacked messages, forget the confirms."""
        if self.ended:
            return
        self.ended = True
        self.confirms = None
        self._incoming = None
        consumers, self.consumers = self.consumers, {}
        unacked, self.unacked = self.unacked, {}
        for consumer in consumers.values():
            if consumer in consumer.queue.consumers:
                consumer.queue.consumers.remove(consumer)
        _requeue(unacked.values())
        for consumer in consumers.values():
            self._consumer_left(consumer.queue)

    @staticmethod
    def _consumer_left(queue: Queue) -> None:
        queue.exclusive_consumer = False
        queue.touch()
        if queue.auto_delete and not queue.consumers and not queue.deleted:
            queue.vhost.delete_queue(queue)

    # --- publishing and confirms -------------------------------------------------------------------------------------

    def _publish(self, fields: Any, content: Content, body: bytes) -> None:
        vhost = self.vhost
        if not self.flow:
            self.connection.violation(f"a publish on channel {self.number} after flow-ok(active=false)")
        if fields.immediate:
            raise Refusal(540, "immediate=true")
        limit = self.connection.tuning.max_message_size
        if len(body) > limit:
            raise precondition_failed(f"message size {len(body)} is larger than configured max size {limit}")
        self._permit(WRITE, "exchange", fields.exchange)
        exchange = vhost.exchange(fields.exchange)
        if exchange.internal:
            raise access_refused(f"cannot publish to internal exchange '{exchange.name}' in vhost '{vhost.name}'")
        properties = content.properties
        if properties.user_id and properties.user_id != self.user.name:
            raise precondition_failed(
                f"user_id property set to '{properties.user_id}' but authenticated user was '{self.user.name}'"
            )
        if properties.expiration:
            _check_expiration(properties.expiration)
        tag = self.confirms.next_tag() if self.confirms is not None else 0
        routes = (fields.routing_key, *_more_routes(content.headers))
        raw_properties = content.raw_properties
        if "BCC" in content.headers:
            properties = copy_properties(properties)
            properties.headers = {name: value for name, value in (properties.headers or {}).items() if name != "BCC"}
            raw_properties = codec.encode_properties(properties)
        message = Message(exchange.name, fields.routing_key, body, properties, raw_properties, routes)
        later = vhost.deliver_later(exchange, message, self.connection.number)
        queues = [] if later else vhost.route(exchange, routes, message.headers)
        if not queues and fields.mandatory:
            self._send_content(
                codec.encode_method(
                    self.number,
                    "basic.return",
                    reply_code=312,
                    reply_text="NO_ROUTE",
                    exchange=fields.exchange,
                    routing_key=fields.routing_key,
                ),
                raw_properties,
                body,
            )
        confirms = self.confirms
        if confirms is None:
            for queue in queues:
                queue.publish(message, None, self.connection.number)
            return
        confirms.expect(tag, set(queues))

        def settle(queue: Queue, accepted: bool) -> None:
            if self.confirms is confirms:
                confirms.answer(tag, queue, accepted)
                self.connection.expect_idle()

        for queue in queues:
            queue.publish(message, settle, self.connection.number)

    def _take_answers(self, *, idle: bool) -> None:
        confirms = self.confirms
        if confirms is not None and confirms.waiting:
            confirms.take(self.connection.coalescing.taken(confirms.waiting, idle=idle))

    def _flush(self) -> None:
        if self.confirms is None:
            return
        for confirm in self.confirms.flush():
            tag, multiple = confirm.tag, confirm.multiple
            if confirm.accepted:
                self.send("basic.ack", delivery_tag=tag, multiple=multiple)
            else:
                self.send("basic.nack", delivery_tag=tag, multiple=multiple, requeue=True)  # as RabbitMQ sends it

    def idle(self) -> None:
        """Take all waiting answers of the queues, and send the confirms; called when the channel has no other work."""
        while self.confirms is not None and self.confirms.waiting:
            self._take_answers(idle=True)
            self._flush()

    def _send_content(self, method_frame: bytes, raw_properties: bytes, body: bytes) -> None:
        parts = [
            method_frame,
            codec.encode_frame(codec.HEADER, self.number, struct.pack(">HHQ", 60, 0, len(body)) + raw_properties),
        ]
        step = self.connection.frame_max - codec.OVERHEAD if self.connection.frame_max else len(body) or 1
        parts += [codec.encode_frame(codec.BODY, self.number, body[at : at + step]) for at in range(0, len(body), step)]
        self.connection.send_bytes(b"".join(parts))

    # --- consuming ---------------------------------------------------------------------------------------------------

    def deliver(self, consumer: Subscription, queue: Queue, entry: Entry) -> None:
        """Send a message to a consumer."""
        tag = self._hold(queue, entry, consumer, no_ack=consumer.no_ack)
        self._send_content(
            codec.encode_method(
                self.number,
                "basic.deliver",
                consumer_tag=consumer.tag,
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=entry.message.exchange,
                routing_key=entry.message.routing_key,
            ),
            _properties_for(queue, entry),
            entry.message.body,
        )

    def _hold(self, queue: Queue, entry: Entry, consumer: Subscription | None, *, no_ack: bool) -> int:
        self._deliveries += 1
        if not no_ack:
            self.unacked[self._deliveries] = Held(queue, entry, consumer)
            queue.unacked[entry] = None
            if consumer is not None:
                consumer.unacked += 1
        return self._deliveries

    def _release_tags(self, tag: int, multiple: bool) -> list[Held]:
        """Take the messages that a client's ack, nack or reject names, oldest first; refuse with 406 where there is none."""
        everything = multiple and tag == 0
        if (
            not everything and tag not in self.unacked
        ):  # for RabbitMQ the tag of a multiple ack must be outstanding, too
            raise precondition_failed(f"unknown delivery tag {tag}")
        tags = [held for held in self.unacked if everything or held <= tag] if multiple else [tag]
        released = [self.unacked.pop(held) for held in tags]
        for held in released:
            if held.consumer is not None:
                held.consumer.unacked -= 1
        return released

    def _ack(self, fields: Any, _: Tables) -> None:
        released = self._release_tags(fields.delivery_tag, fields.multiple)
        for held in released:
            held.queue.discard(held.entry, rejected=False)
        _pump(released)

    def _nack(self, fields: Any, _: Tables) -> None:
        self._give_back(self._release_tags(fields.delivery_tag, fields.multiple), requeue=fields.requeue)

    def _reject(self, fields: Any, _: Tables) -> None:
        self._give_back(self._release_tags(fields.delivery_tag, multiple=False), requeue=fields.requeue)

    @staticmethod
    def _give_back(released: list[Held], *, requeue: bool) -> None:
        if requeue:
            _requeue(released)
        else:
            for held in released:
                held.queue.discard(held.entry, rejected=True)
        _pump(released)

    def _recover(self, fields: Any, _: Tables) -> None:
        if not fields.requeue:
            raise Refusal(540, "requeue=false")
        released = self._release_tags(0, multiple=True)
        self.send("basic.recover_ok")
        _requeue(released)
        _pump(released)

    def _recover_async(self, fields: Any, tables: Tables) -> None:
        if not fields.requeue:
            raise Refusal(540, "requeue=false")
        released = self._release_tags(0, multiple=True)
        _requeue(released)
        _pump(released)

    def _qos(self, fields: Any, _: Tables) -> None:
        if fields.prefetch_size:
            raise Refusal(540, f"prefetch_size!=0 ({fields.prefetch_size})")
        if fields.global_:
            self.prefetch_of_channel = fields.prefetch_count
        else:
            self.prefetch = fields.prefetch_count
        self.send("basic.qos_ok")
        if fields.global_:
            for consumer in tuple(self.consumers.values()):
                consumer.queue.pump()

    def _consume(self, fields: Any, _: Tables) -> None:
        if fields.consumer_tag in self.consumers and fields.consumer_tag:
            raise Refusal(530, f"attempt to reuse consumer tag '{fields.consumer_tag}'")
        queue = self._queue(fields.queue, READ)
        if queue.exclusive_consumer or (fields.exclusive and queue.consumers):
            raise access_refused(f"{queue} in exclusive use")
        tag = fields.consumer_tag or self.vhost.node.generated_name("amq.ctag-")
        consumer = Subscription(self, tag, queue, fields.no_ack, self.prefetch)
        self.consumers[tag] = consumer
        queue.consumers.append(consumer)
        queue.exclusive_consumer = fields.exclusive
        if not fields.nowait:
            self.send("basic.consume_ok", consumer_tag=tag)
        queue.pump()

    def _cancel(self, fields: Any, _: Tables) -> None:
        consumer = self.consumers.pop(fields.consumer_tag, None)
        if not fields.nowait:
            self.send("basic.cancel_ok", consumer_tag=fields.consumer_tag)
        if consumer is not None and consumer in consumer.queue.consumers:
            consumer.queue.consumers.remove(consumer)
            self._consumer_left(consumer.queue)

    def _get(self, fields: Any, _: Tables) -> None:
        queue = self._queue(fields.queue, READ)
        entry = queue.take()
        if entry is None:
            self.send("basic.get_empty")
            return
        tag = self._hold(queue, entry, None, no_ack=fields.no_ack)
        self._send_content(
            codec.encode_method(
                self.number,
                "basic.get_ok",
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=entry.message.exchange,
                routing_key=entry.message.routing_key,
                message_count=len(queue),
            ),
            _properties_for(queue, entry),
            entry.message.body,
        )

    # --- topology ----------------------------------------------------------------------------------------------------

    def _permit(self, action: int, kind: str, name: str) -> None:
        if not self.user.may(self.vhost.name, action, name):
            shown = name if name or kind == "queue" else "amq.default"
            raise access_refused(
                f"access to {kind} '{shown}' in vhost '{self.vhost.name}' refused for user '{self.user.name}'"
            )

    def _queue_name(self, name: str) -> str:
        if name:
            return name
        if not self._last_queue:
            raise Refusal(404, "no previously declared queue")
        return self._last_queue

    def _queue(self, name: str, action: int) -> Queue:
        name = self._queue_name(name)
        self._permit(action, "queue", name)
        return self.vhost.queue(name, self.connection.number)

    @staticmethod
    def _not_the_default(name: str) -> None:
        if name == "":
            raise access_refused("operation not permitted on the default exchange")

    @staticmethod
    def _not_reserved(kind: str, name: str) -> None:
        if name.startswith("amq."):
            raise access_refused(f"{kind} name '{name}' contains reserved prefix 'amq.*'")

    def _exchange_declare(self, fields: Any, tables: Tables) -> None:
        name = _clean(fields.exchange)
        if fields.passive:
            self._not_the_default(name)
            self.vhost.exchange(name)
        else:
            self._check_exchange_type(fields.exchange_type, name, tables["arguments"])
            self._not_the_default(name)
            self._permit(CONFIGURE, "exchange", name)
            if name not in self.vhost.exchanges:
                self._not_reserved("exchange", name)
            self.vhost.declare_exchange(
                name,
                fields.exchange_type,
                durable=fields.durable,
                auto_delete=fields.auto_delete,
                internal=fields.internal,
                arguments=tables["arguments"],
            )
        if not fields.nowait:
            self.send("exchange.declare_ok")

    def _check_exchange_type(self, kind: str, name: str, arguments: codec.TypedTable) -> None:
        if kind == DELAYED and self.vhost.node.delayed_messages:
            if arguments.get("x-delayed-type", (None, None))[1] not in EXCHANGE_TYPES:
                raise precondition_failed(
                    f"Invalid argument, 'x-delayed-type' must be an existing exchange type (exchange '{name}')"
                )
        elif kind not in EXCHANGE_TYPES:
            raise Refusal(503, f"unknown exchange type '{kind}'")

    def _exchange_delete(self, fields: Any, _: Tables) -> None:
        name = _clean(fields.exchange)
        self._not_the_default(name)
        if name.startswith("amq."):
            raise access_refused(f"deletion of system exchange '{name}' in vhost '{self.vhost.name}' not allowed")
        self._permit(CONFIGURE, "exchange", name)
        self.vhost.delete_exchange(name, if_unused=fields.if_unused)
        if not fields.nowait:
            self.send("exchange.delete_ok")

    def _exchange_bind(self, fields: Any, tables: Tables) -> None:
        self._bind_exchange(fields, self._binder(tables["arguments"]))
        if not fields.nowait:
            self.send("exchange.bind_ok")

    def _exchange_unbind(self, fields: Any, _: Tables) -> None:
        self._bind_exchange(fields, self.vhost.unbind)
        if not fields.nowait:
            self.send("exchange.unbind_ok")

    def _bind_exchange(self, fields: Any, action: Binder) -> None:
        self._not_the_default(fields.destination)
        self._permit(WRITE, "exchange", fields.destination)
        self._not_the_default(fields.source)
        self._permit(READ, "exchange", fields.source)
        action(fields.source, "exchange", fields.destination, fields.routing_key, fields.arguments or {})

    def _queue_declare(self, fields: Any, tables: Tables) -> None:
        name = _clean(fields.queue)
        if fields.passive:
            queue = self.vhost.queue(self._queue_name(name), self.connection.number)
            queue.touch()
        else:
            if name and name not in self.vhost.queues:
                self._not_reserved("queue", name)
            name = name or self.vhost.node.generated_name("amq.gen-")
            self._permit(CONFIGURE, "queue", name)
            arguments = tables["arguments"]
            target = arguments.get("x-dead-letter-exchange")
            if target is not None and name not in self.vhost.queues:
                if target[0] != "longstr":
                    raise precondition_failed(
                        f"invalid type '{target[0]}' for arg 'x-dead-letter-exchange' in queue '{name}' in vhost "
                        f"'{self.vhost.name}'"
                    )
                self._permit(READ, "queue", name)
                self._permit(WRITE, "exchange", target[1])
            queue = self.vhost.declare_queue(
                name,
                self.connection.number,
                durable=fields.durable,
                exclusive=fields.exclusive,
                auto_delete=fields.auto_delete,
                arguments=arguments,
            )
        self._last_queue = queue.name
        if not fields.nowait:
            self.send(
                "queue.declare_ok", queue=queue.name, message_count=len(queue), consumer_count=len(queue.consumers)
            )

    def _queue_bind(self, fields: Any, tables: Tables) -> None:
        self._bind_queue(fields, self._binder(tables["arguments"]))
        if not fields.nowait:
            self.send("queue.bind_ok")

    def _queue_unbind(self, fields: Any, _: Tables) -> None:
        self._bind_queue(fields, self._unbind_known_queue)
        self.send("queue.unbind_ok")

    def _bind_queue(self, fields: Any, action: Binder) -> None:
        name = self._queue_name(fields.queue)
        key = fields.routing_key or (self._last_queue if not fields.queue else "")
        self._permit(WRITE, "queue", name)
        self._not_the_default(fields.exchange)
        self._permit(READ, "exchange", fields.exchange)
        action(fields.exchange, "queue", name, key, fields.arguments or {})

    def _binder(self, arguments_with_types: TypedTable) -> Binder:
        def bind(source: str, kind: str, name: str, key: str, arguments: dict[str, Any]) -> None:
            exchange = self.vhost.exchange(source)  # where both are missing, RabbitMQ names the exchange
            if kind == "queue":
                self.vhost.queue(name, self.connection.number)
            else:
                self.vhost.exchange(name)
            if exchange.matching == "headers":
                _check_match(arguments_with_types)
            self.vhost.bind(source, kind, name, key, arguments)

        return bind

    def _unbind_known_queue(self, source: str, kind: str, name: str, key: str, arguments: dict[str, Any]) -> None:
        # A missing queue or binding is no error here, even if the queue is exclusive to another connection.
        if name in self.vhost.queues and self.vhost.is_bound(source, kind, name, key, arguments):
            self.vhost.queue(name, self.connection.number)
            self.vhost.unbind(source, kind, name, key, arguments)

    def _queue_purge(self, fields: Any, _: Tables) -> None:
        count = self._queue(fields.queue, READ).purge()
        if not fields.nowait:
            self.send("queue.purge_ok", message_count=count)

    def _queue_delete(self, fields: Any, _: Tables) -> None:
        name = self._queue_name(fields.queue)
        self._permit(CONFIGURE, "queue", name)
        count = 0
        if name in self.vhost.queues:  # deleting a missing queue is no error
            queue = self.vhost.queue(name, self.connection.number)
            count = self.vhost.delete_queue(queue, if_unused=fields.if_unused, if_empty=fields.if_empty)
        if not fields.nowait:
            self.send("queue.delete_ok", message_count=count)

    # --- modes -------------------------------------------------------------------------------------------------------

    def _confirm_select(self, fields: Any, _: Tables) -> None:
        if self.confirms is None:
            self.confirms = Confirms()
        if not fields.nowait:
            self.send("confirm.select_ok")

    def _flow(self, fields: Any, _: Tables) -> None:
        if not fields.active:
            raise Refusal(540, "active=false")
        self.send("channel.flow_ok", active=True)

    def _flow_ok(self, fields: Any, _: Tables) -> None:
        self.flow = fields.active

    def _transaction(self, _fields: Any, _: Tables) -> None:
        raise Refusal(540, "transactions: not modelled by the embedded broker")

    #: What each method does; a method that is missing here is one that clients may not send.
    _HANDLERS: ClassVar[dict[str, Callable[[Channel, Any, Tables], None]]] = {
        "basic.ack": _ack,
        "basic.cancel": _cancel,
        "basic.consume": _consume,
        "basic.get": _get,
        "basic.nack": _nack,
        "basic.qos": _qos,
        "basic.recover": _recover,
        "basic.recover_async": _recover_async,
        "basic.reject": _reject,
        "channel.flow": _flow,
        "channel.flow_ok": _flow_ok,
        "confirm.select": _confirm_select,
        "exchange.bind": _exchange_bind,
        "exchange.declare": _exchange_declare,
        "exchange.delete": _exchange_delete,
        "exchange.unbind": _exchange_unbind,
        "queue.bind": _queue_bind,
        "queue.declare": _queue_declare,
        "queue.delete": _queue_delete,
        "queue.purge": _queue_purge,
        "queue.unbind": _queue_unbind,
        "tx.commit": _transaction,
        "tx.rollback": _transaction,
        "tx.select": _transaction,
    }


def _requeue(held: Iterable[Held]) -> None:
    """Give messages back to their queues, each queue once."""
    queues: dict[Queue, list[Entry]] = {}
    for one in held:
        queues.setdefault(one.queue, []).append(one.entry)
    for queue, entries in queues.items():
        queue.requeue(entries)


def _pump(released: Iterable[Held]) -> None:
    """Resume the queues of these messages, and all queues of a channel whose consumers share one prefetch limit."""
    queues: dict[Queue, None] = {}
    for one in released:
        queues[one.queue] = None
        if one.consumer is not None and one.consumer.channel.prefetch_of_channel:
            queues.update(dict.fromkeys(consumer.queue for consumer in one.consumer.channel.consumers.values()))
    for queue in queues:
        if not queue.deleted:
            queue.pump()


def _properties_for(queue: Queue, entry: Entry) -> bytes:
    """Return the properties that a consumer gets: the publisher's bytes, plus the count of a quorum queue."""
    if not (queue.quorum and entry.returns):
        return entry.message.raw_properties
    properties = codec.copy_properties(entry.message.properties)
    properties.headers = {**entry.message.headers, "x-delivery-count": entry.returns}
    return codec.encode_properties(properties)


def _clean(name: str) -> str:
    """Drop line ends from a name, as RabbitMQ does."""
    return name.replace("\r", "").replace("\n", "")


def _check_match(arguments: TypedTable) -> None:
    kind, value = arguments.get("x-match", ("longstr", "all"))
    if kind != "longstr":
        shown = str(value).lower() if isinstance(value, bool) else value
        raise precondition_failed(f"Invalid x-match field type {kind} (value {shown}); expected longstr")
    if value not in ("all", "any", "all-with-x", "any-with-x"):
        raise precondition_failed(
            f'Invalid x-match field value <<"{value}">>; expected all, any, all-with-x, or any-with-x'
        )


def _more_routes(headers: TypedTable) -> Iterator[str]:
    """Return the routing keys of the headers CC and BCC ("sender-selected distribution")."""
    for name in ("CC", "BCC"):
        kind, keys = headers.get(name, ("array", ()))
        if kind != "array":
            raise precondition_failed(f'invalid message: {{unacceptable_type_in_header,"{name}",{kind}}}')
        yield from (key for each, key in keys if each == "longstr" and isinstance(key, str))


def _check_expiration(text: str) -> None:
    """Raise 406 unless it is a count of milliseconds."""
    digits = re.match(r"[+-]?\d+", text)
    if digits is None:
        reason = "no_integer"
    elif digits.group() != text:
        reason = f'{{leftover_string,"{text[digits.end() :]}"}}'
    elif int(text) < 0:
        reason = f"{{value_negative,{int(text)}}}"
    elif int(text) > MAX_EXPIRATION:
        reason = f"{{value_too_large,{int(text)}}}"
    else:
        return
    raise precondition_failed(f"invalid expiration '{text}': {reason}")
