"""The state of a broker: virtual hosts, users, exchanges, queues, messages, and the log of every enqueue.

No sockets and no bytes here; `protocol` turns methods into calls. A call that RabbitMQ would refuse raises `Refusal`
with RabbitMQ's reply code and text (3.10, compared in tests/testing/test_against_rabbitmq.py).

Theory of the queue. A publish is *enqueued* (it is in the queue, and in the log), later *settled* towards the publisher
(ack or nack), and from some point on *safe*, i.e. it survives `Node.crash`:

* classic queue: a persistent message in a durable queue is safe, and acked, when the queue next syncs (batches, up to
  `sync_interval` seconds; 0 syncs at once); everything else is acked on enqueue and never safe;
* quorum queue: each message is safe on enqueue, persistent or not ("enqueued" means "at a majority" here); acked in the same
  batches;
* while `stalled` (a quorum queue that lost its leader), nothing is enqueued and nothing settled: new publishes are held,
  and a crash loses them;
* a deleted queue acks its unsettled publishes (an ack does not mean stored); a classic queue process that dies nacks
  them, though the synced part stays (a nacked message may be stored).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from attrs import define, evolve, field, frozen

from warrener.testing.broker._arguments import ARGUMENTS, INTEGERS, first_foreign, first_wrong
from warrener.testing.broker._codec import TypedTable, copy_properties, encode_properties
from warrener.testing.broker._timers import Timer, Timers

if TYPE_CHECKING:
    from pamqp import commands

__all__ = ["Consumer", "Enqueued", "Entry", "Exchange", "Message", "Node", "Queue", "Refusal", "User", "Vhost"]

NAMES = {
    312: "NO_ROUTE", 320: "CONNECTION_FORCED", 402: "INVALID_PATH", 403: "ACCESS_REFUSED", 404: "NOT_FOUND",
    405: "RESOURCE_LOCKED", 406: "PRECONDITION_FAILED", 501: "FRAME_ERROR", 502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID", 504: "CHANNEL_ERROR", 505: "UNEXPECTED_FRAME", 506: "RESOURCE_ERROR", 530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED", 541: "INTERNAL_ERROR",
}  # fmt: skip
#: Reply codes that close a channel; all others close the connection (AMQP 0-9-1, 1.2).
SOFT = frozenset({311, 312, 313, 403, 404, 405, 406})
EXCHANGE_TYPES = ("direct", "fanout", "topic", "headers")
#: The type of exchange that the plugin rabbitmq_delayed_message_exchange adds, where the broker has it.
DELAYED = "x-delayed-message"
Settle: TypeAlias = Callable[["Queue", bool], None]


class Refusal(Exception):
    """The broker closes the channel or the connection with this code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @property
    def soft(self) -> bool:
        """Whether the refusal closes only the channel, and not the connection."""
        return self.code in SOFT


def precondition_failed(text: str) -> Refusal:
    """Return the refusal 406, for a request that contradicts the state of the broker."""
    return Refusal(406, text)


def access_refused(text: str) -> Refusal:
    """Return the refusal for an action that the user has no permission for."""
    return Refusal(403, text)


@frozen
class Message:
    """A message as published."""

    exchange: str
    routing_key: str
    body: bytes = field(repr=lambda body: f"<{len(body)} bytes>")
    properties: commands.Basic.Properties = field(repr=False)
    #: Property flags and properties as they came; handed to consumers byte by byte.
    raw_properties: bytes = field(repr=False)
    #: The routing key, and the keys of the headers `CC` and `BCC`.
    routes: tuple[str, ...] = ()

    @property
    def persistent(self) -> bool:
        """Whether the publisher asked for delivery mode 2."""
        return self.properties.delivery_mode == 2

    @property
    def headers(self) -> dict[str, Any]:
        """The header table; empty where there is none."""
        return self.properties.headers or {}


@frozen
class Enqueued:
    """One line of the log: a message that got into a queue. The log survives crash, purge and deletion."""

    message_id: str | None
    #: The value of the header ``x-warrener-token``, where the publisher set it.
    token: str | None
    vhost: str
    queue: str
    #: blake2b of the body, 16 bytes.
    body_hash: bytes = field(repr=lambda data: data.hex())
    #: The broker's number of the connection; 0 for a dead letter, which the broker moved itself.
    connection: int
    #: Seconds of the broker's clock.
    at: float


@define(eq=False)
class Entry:
    """A message in a queue. A message that is requeued goes back to its place by `number`."""

    message: Message
    number: int
    priority: int
    settle: Settle | None
    expires_at: float | None
    #: Survives a crash.
    safe: bool = False
    redelivered: bool = False
    #: How often a consumer gave it back; a quorum queue's delivery limit counts this.
    returns: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """What queues are sorted by."""
        return (-self.priority, self.number)


class Consumer(Protocol):
    """A receiver of messages; the protocol's channels implement it."""

    tag: str

    def has_room(self) -> bool:
        """Whether the prefetch limits allow one more message."""
        ...

    def deliver(self, queue: Queue, entry: Entry) -> None:
        """Take one message."""
        ...

    def cancelled(self) -> None:
        """Hear that the queue is gone."""
        ...


@define(eq=False)
class User:
    """A user and, per virtual host, the three patterns (configure, write, read)."""

    name: str
    password: str = field(repr=False)
    permissions: dict[str, tuple[str, str, str]] = field(factory=dict[str, tuple[str, str, str]])

    def may(self, vhost: str, action: int, name: str) -> bool:
        """Whether a pattern (0 configure, 1 write, 2 read) matches the name of an exchange or queue."""
        patterns = self.permissions.get(vhost)
        if patterns is None:
            return False
        return re.search(patterns[action] or "^$", name or "amq.default") is not None


@define(eq=False)
class Exchange:
    """An exchange and the bindings that start at it, oldest first."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: TypedTable
    bindings: dict[tuple[str, str, str, str], Bound] = field(factory=dict["tuple[str, str, str, str]", "Bound"])

    @property
    def matching(self) -> str:
        """The type by whose rules it compares keys; for a delayed exchange, the type that its arguments name."""
        return str(self.arguments["x-delayed-type"][1]) if self.type == DELAYED else self.type


@frozen
class Bound:
    """A binding to a queue or, with `kind` "exchange", to another exchange."""

    kind: str
    destination: str
    key: str
    arguments: dict[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Two bindings with equal identity are one."""
        return (self.kind, self.destination, self.key, repr(sorted(self.arguments.items(), key=lambda item: item[0])))


class Queue:
    """A queue; see the module's text for when a message is settled and when it is safe."""

    def __init__(
        self,
        vhost: Vhost,
        name: str,
        *,
        durable: bool,
        owner: int | None,
        auto_delete: bool,
        arguments: TypedTable,
    ) -> None:
        self.vhost = vhost
        self.node = vhost.node
        self.name = name
        self.durable = durable
        #: The number of the connection whose exclusive queue this is; None: of all.
        self.owner = owner
        self.auto_delete = auto_delete
        self.arguments = arguments
        self.quorum = self.argument("x-queue-type") == "quorum"
        self.ready: deque[Entry] = deque()
        self.size = 0
        #: Messages that consumers have and did not ack or reject. They come back to the queue when the consumer ends.
        self.unacked: dict[Entry, None] = {}
        self.consumers: list[Consumer] = []
        self.exclusive_consumer = False
        self.deleted = False
        #: Seconds that an ack waits beyond the sync.
        self.confirm_delay = 0.0
        #: Why nothing is enqueued or settled: every queue is stalled ("node"), or this one ("queue").
        self._stalls: set[str] = set()
        self._held: list[tuple[Message, Settle | None, int]] = []
        self._unsynced: list[Entry] = []
        self._sync_timer: Timer | None = None
        self._expiry_timer: Timer | None = None
        self._disuse_timer: Timer | None = None
        self._numbers = 0
        self.touch()

    def argument(self, name: str) -> Any:
        """Return the value of a declared argument, or None."""
        return self.arguments.get(name, (None, None))[1]

    @property
    def stalled(self) -> bool:
        """Whether publishes are held, neither enqueued nor settled."""
        return bool(self._stalls)

    def __str__(self) -> str:
        return f"queue '{self.name}' in vhost '{self.vhost.name}'"

    def __len__(self) -> int:
        return len(self.ready)

    # --- in ----------------------------------------------------------------------------------------------------------

    def publish(self, message: Message, settle: Settle | None, connection: int) -> None:
        """Enqueue a message and settle it when it is due; or hold it while stalled; or refuse it when full."""
        if self.stalled:
            self._held.append((message, settle, connection))
            return
        overflow = self.argument("x-overflow")
        if overflow in ("reject-publish", "reject-publish-dlx") and self._over(len(self.ready) + 1, len(message.body)):
            if overflow == "reject-publish-dlx":
                self._dead_letter(message, "maxlen")
            if settle is not None:
                settle(self, False)
            return
        self._enqueue(message, settle, connection)

    def _enqueue(self, message: Message, settle: Settle | None, connection: int) -> None:
        now = self.node.timers.now()
        self._numbers += 1
        entry = Entry(message, self._numbers, self._priority(message), settle, self._expiry(message, now))
        self.node.log.append(
            Enqueued(
                message.properties.message_id,
                message.headers.get("x-warrener-token"),
                self.vhost.name,
                self.name,
                hashlib.blake2b(message.body, digest_size=16).digest(),
                connection,
                now,
            )
        )
        self._drop_expired()
        self._insert(entry)
        entry.safe = self.quorum
        if self.quorum or (self.durable and message.persistent):
            self._unsynced.append(entry)
            self._schedule_sync()
        else:
            self._settle(entry, True)
        # A message whose time to live is 0 reaches a consumer that waits for it.
        self._hand_out()
        self._drop_expired()
        self._drop_surplus()
        self._arm_expiry()

    def _drop_surplus(self) -> None:
        while self.ready and self._over(len(self.ready), 0):
            self._dead_letter(self._pop().message, "maxlen")

    def _over(self, count: int, more_bytes: int) -> bool:
        longest, largest = self.argument("x-max-length"), self.argument("x-max-length-bytes")
        return (longest is not None and count > longest) or (largest is not None and self.size + more_bytes > largest)

    def _priority(self, message: Message) -> int:
        highest = self.argument("x-max-priority")
        return 0 if highest is None else min(message.properties.priority or 0, highest)

    def _expiry(self, message: Message, now: float) -> float | None:
        limits = [self.argument("x-message-ttl")]
        if message.properties.expiration:
            limits.append(int(message.properties.expiration))
        milliseconds = [limit for limit in limits if limit is not None]
        return now + min(milliseconds) / 1000 if milliseconds else None

    def _settle(self, entry: Entry, accepted: bool) -> None:
        settle, entry.settle = entry.settle, None
        if settle is None:
            return
        if accepted and self.confirm_delay:
            self.node.timers.after(self.confirm_delay, lambda: settle(self, True))
        else:
            settle(self, accepted)

    def _insert(self, entry: Entry) -> None:
        self.size += len(entry.message.body)
        ready = self.ready
        if not ready or ready[-1].place < entry.place:
            ready.append(entry)
        elif entry.place < ready[0].place:
            ready.appendleft(entry)
        else:
            at = next(index for index, other in enumerate(ready) if entry.place < other.place)
            ready.insert(at, entry)

    def _pop(self) -> Entry:
        entry = self.ready.popleft()
        self.size -= len(entry.message.body)
        return entry

    # --- safety ------------------------------------------------------------------------------------------------------

    def _schedule_sync(self) -> None:
        interval = self.node.sync_interval
        if interval == 0:
            self.sync()
        elif self._sync_timer is None:
            rng = self.node.rng
            wait = interval if rng is None else rng.uniform(0, interval)
            self._sync_timer = self.node.timers.after(wait, self.sync)

    def sync(self) -> None:
        """Make the messages safe that were enqueued since the last sync, and ack them."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        synced, self._unsynced = self._unsynced, []
        for entry in synced:
            entry.safe = True
            self._settle(entry, True)

    def stall(self, on: bool, why: str = "queue") -> None:
        """Lose the leader, or find it again: then the held publishes are enqueued and settled."""
        (self._stalls.add if on else self._stalls.discard)(why)
        if not self._stalls:
            held, self._held = self._held, []
            for message, settle, connection in held:
                self.publish(message, settle, connection)

    def die(self) -> None:
        """The queue's process ends abnormally and starts again: unsettled publishes are nacked, unsafe ones lost."""
        unsettled, self._unsynced = self._unsynced, []
        for entry in unsettled:
            self._settle(entry, False)
        held, self._held = self._held, []
        for _, settle, _ in held:
            if settle is not None:
                settle(self, False)
        self.forget_unsafe()

    def forget_unsafe(self) -> None:
        """Keep only what survives: the safe entries, those with consumers included, back in their places."""
        for timer in (self._sync_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
        self._sync_timer = self._expiry_timer = None
        self._unsynced, self._held = [], []
        for entry in self.unacked:
            entry.redelivered = True
        survivors = sorted((e for e in (*self.ready, *self.unacked) if e.safe), key=lambda entry: entry.place)
        self.unacked.clear()
        self.ready = deque(survivors)
        self.size = sum(len(entry.message.body) for entry in survivors)
        self._arm_expiry()

    # --- out ---------------------------------------------------------------------------------------------------------

    def take(self) -> Entry | None:
        """Take the first message (basic.get); the caller keeps it in `unacked` unless it needs no ack."""
        self.touch()
        self._drop_expired()
        entry = self._pop() if self.ready else None
        self._drop_expired()  # the answer tells how many messages are left
        self._arm_expiry()
        return entry

    def pump(self) -> None:
        """Hand messages to consumers, in turn, as long as there are both."""
        self._drop_expired()
        self._hand_out()
        self._arm_expiry()

    def _hand_out(self) -> None:
        while self.ready:
            consumer = next((consumer for consumer in self.consumers if consumer.has_room()), None)
            if consumer is None:
                break
            self.consumers.remove(consumer)
            self.consumers.append(consumer)
            consumer.deliver(self, self._pop())

    def requeue(self, entries: Iterable[Entry]) -> None:
        """Put unacked messages back in their old places; a quorum queue counts the returns of each, up to its limit."""
        limit = self.argument("x-delivery-limit")
        for entry in entries:
            if self.unacked.pop(entry, self) is self or self.deleted:  # a crash or a purge took it meanwhile
                continue
            entry.redelivered = True
            entry.returns += 1
            if self.quorum and limit is not None and entry.returns > limit:
                self._dead_letter(entry.message, "delivery_limit")
            else:
                self._insert(entry)
        if self.argument("x-overflow") in (None, "drop-head"):
            self._drop_surplus()
        self.pump()

    def discard(self, entry: Entry, *, rejected: bool) -> None:
        """Forget a message that a consumer acked, or dead-letter one that it rejected."""
        if self.unacked.pop(entry, self) is not self and rejected and not self.deleted:
            self._dead_letter(entry.message, "rejected")

    def purge(self) -> int:
        """Drop the ready messages and return how many there were; the log keeps them."""
        self._drop_expired()
        count = len(self.ready)
        while self.ready:
            self._pop()
        return count

    # --- time --------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Note that the queue is in use (``x-expires``)."""
        limit = self.argument("x-expires")
        if limit is None:
            return
        if self._disuse_timer is not None:
            self._disuse_timer.cancel()
        self._disuse_timer = self.node.timers.after(limit / 1000, self._disused)

    def _disused(self) -> None:
        if self.consumers:
            self.touch()
        elif not self.deleted:
            self.vhost.delete_queue(self)

    def _drop_expired(self) -> None:
        now = self.node.timers.now()
        while self.ready and (due := self.ready[0].expires_at) is not None and due <= now:
            self._dead_letter(self._pop().message, "expired")

    def _arm_expiry(self) -> None:
        due = self.ready[0].expires_at if self.ready else None
        if self._expiry_timer is not None:
            if due is not None and self._expiry_timer.action is not None and self._expiry_timer.due <= due:
                return
            self._expiry_timer.cancel()
            self._expiry_timer = None
        if due is not None:
            self._expiry_timer = self.node.timers.after(max(0.0, due - self.node.timers.now()), self._expire)

    def _expire(self) -> None:
        self._expiry_timer = None
        self._drop_expired()
        self._arm_expiry()

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Delete: unsettled publishes are acked (an ack does not mean stored), consumers are told."""
        self.deleted = True
        for timer in (self._sync_timer, self._expiry_timer, self._disuse_timer):
            if timer is not None:
                timer.cancel()
        for entry in self._unsynced:
            self._settle(entry, True)
        for _, settle, _ in self._held:
            if settle is not None:
                settle(self, True)
        self._unsynced, self._held = [], []
        self.ready.clear()
        self.unacked.clear()
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.cancelled()

    def _dead_letter(self, message: Message, reason: str) -> None:
        target = self.argument("x-dead-letter-exchange")
        if target is None or target not in self.vhost.exchanges:
            return
        key = self.argument("x-dead-letter-routing-key")
        self.vhost.dead_letter(self, message, reason, target, key)


class Vhost:
    """A virtual host: its exchanges and queues, and how a message finds its queues."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, Queue] = {}
        for known, kind in (
            ("", "direct"), ("amq.direct", "direct"), ("amq.fanout", "fanout"), ("amq.topic", "topic"),
            ("amq.headers", "headers"), ("amq.match", "headers"),
        ):  # fmt: skip
            self.exchanges[known] = Exchange(known, kind, durable=True, auto_delete=False, internal=False, arguments={})
        trace = Exchange("amq.rabbitmq.trace", "topic", durable=True, auto_delete=False, internal=True, arguments={})
        self.exchanges[trace.name] = trace

    # --- looking up --------------------------------------------------------------------------------------------------

    def exchange(self, name: str) -> Exchange:
        """Return an exchange, or raise 404."""
        try:
            return self.exchanges[name]
        except KeyError:
            raise Refusal(404, f"no exchange '{name}' in vhost '{self.name}'") from None

    def queue(self, name: str, connection: int) -> Queue:
        """Return a queue that the connection may use, or raise 404 or 405."""
        try:
            queue = self.queues[name]
        except KeyError:
            raise Refusal(404, f"no queue '{name}' in vhost '{self.name}'") from None
        if queue.owner not in (None, connection):
            raise self._locked(queue)
        return queue

    @staticmethod
    def _locked(queue: Queue) -> Refusal:
        return Refusal(
            405,
            f"cannot obtain exclusive access to locked {queue}. It could be originally declared on another connection "
            "or the exclusive property value does not match that of the original declaration.",
        )

    # --- declaring ---------------------------------------------------------------------------------------------------

    def declare_exchange(
        self, name: str, kind: str, *, durable: bool, auto_delete: bool, internal: bool, arguments: TypedTable
    ) -> None:
        """Make an exchange, or check that the one there is equal."""
        what = f"exchange '{name}' in vhost '{self.name}'"
        known = self.exchanges.get(name)
        if known is None:
            self.exchanges[name] = Exchange(name, kind, durable, auto_delete, internal, arguments)
            return
        for label, current, received in (
            ("type", known.type, kind),
            ("durable", known.durable, durable),
            ("auto_delete", known.auto_delete, auto_delete),
            ("internal", known.internal, internal),
        ):
            _assert_equal(label, what, current, received)
        _assert_same_argument("alternate-exchange", what, known.arguments, arguments)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        """Delete an exchange; one that is not there is no mistake."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            return
        if if_unused and exchange.bindings:
            raise precondition_failed(f"exchange '{name}' in vhost '{self.name}' in use")
        del self.exchanges[name]
        self._unbind_from_all("exchange", name)

    def declare_queue(
        self,
        name: str,
        connection: int,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: TypedTable,
    ) -> Queue:
        """Make a queue, or check that the one there is equal."""
        what = f"queue '{name}' in vhost '{self.name}'"
        owner = connection if exclusive else None
        known = self.queues.get(name)
        if known is None:
            _check_queue(what, durable=durable, exclusive=exclusive, auto_delete=auto_delete, arguments=arguments)
            queue = Queue(self, name, durable=durable, owner=owner, auto_delete=auto_delete, arguments=arguments)
            queue.stall(self.node.stalled, "node")
            self.queues[name] = queue
            return queue
        if known.owner != owner:
            raise self._locked(known)
        _assert_equal("durable", what, known.durable, durable)
        _assert_equal("auto_delete", what, known.auto_delete, auto_delete)
        for label in ARGUMENTS["quorum" if known.quorum else "classic"]:
            default = "classic" if label == "x-queue-type" else None
            _assert_same_argument(label, what, known.arguments, arguments, default=default)
        known.touch()
        return known

    def delete_queue(self, queue: Queue, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue and return how many messages it held ready."""
        if if_unused and queue.consumers:
            raise precondition_failed(f"{queue} in use")
        if if_empty and queue.ready:
            raise precondition_failed(f"{queue} not empty")
        count = len(queue)
        del self.queues[queue.name]
        self._unbind_from_all("queue", queue.name)
        queue.end()
        return count

    def bind(self, source: str, kind: str, destination: str, key: str, arguments: dict[str, Any]) -> None:
        """Bind a queue or an exchange to an exchange; a second equal binding changes nothing."""
        exchange = self.exchange(source)
        if kind == "exchange":
            self.exchange(destination)
        bound = Bound(kind, destination, key, arguments)
        exchange.bindings.setdefault(bound.identity, bound)

    def is_bound(self, source: str, kind: str, destination: str, key: str, arguments: dict[str, Any]) -> bool:
        """Whether there is such a binding."""
        exchange = self.exchanges.get(source)
        return exchange is not None and Bound(kind, destination, key, arguments).identity in exchange.bindings

    def unbind(self, source: str, kind: str, destination: str, key: str, arguments: dict[str, Any]) -> None:
        """Take a binding away; one that is not there is no mistake."""
        exchange = self.exchanges.get(source)
        if exchange is None:
            return
        if exchange.bindings.pop(Bound(kind, destination, key, arguments).identity, None) is not None:
            self._delete_if_abandoned(exchange)

    def _unbind_from_all(self, kind: str, destination: str) -> None:
        for exchange in tuple(self.exchanges.values()):
            gone = [identity for identity in exchange.bindings if identity[:2] == (kind, destination)]
            for identity in gone:
                del exchange.bindings[identity]
            if gone:
                self._delete_if_abandoned(exchange)

    def _delete_if_abandoned(self, exchange: Exchange) -> None:
        if exchange.auto_delete and not exchange.bindings and exchange.name in self.exchanges:
            self.delete_exchange(exchange.name)

    # --- routing -----------------------------------------------------------------------------------------------------

    def route(self, exchange: Exchange, keys: Iterable[str], headers: dict[str, Any]) -> list[Queue]:
        """Return the queues that a message goes to, each once; an alternate exchange takes messages without a destination."""
        found: dict[str, Queue] = {}
        seen: set[str] = set()
        pending = [exchange]
        while pending:
            source = pending.pop(0)
            if source.name in seen:
                continue
            seen.add(source.name)
            matched = False
            for kind, name in (each for key in keys for each in self._destinations(source, key, headers)):
                matched = True
                if kind == "queue":
                    if name in self.queues:
                        found[name] = self.queues[name]
                elif name in self.exchanges:
                    pending.append(self.exchanges[name])
            alternate = source.arguments.get("alternate-exchange", (None, None))[1]
            if not matched and alternate in self.exchanges:
                pending.append(self.exchanges[alternate])
        return list(found.values())

    def _destinations(self, exchange: Exchange, key: str, headers: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if exchange.name == "":
            if key in self.queues:
                yield "queue", key
            return
        for bound in exchange.bindings.values():
            if (
                exchange.matching == "fanout"
                or (exchange.matching == "direct" and bound.key == key)
                or (exchange.matching == "topic" and _topic_matches(bound.key.split("."), key.split(".")))
                or (exchange.matching == "headers" and _headers_match(bound.arguments, headers))
            ):
                yield bound.kind, bound.destination

    def deliver_later(self, exchange: Exchange, message: Message, connection: int) -> bool:
        """Keep a message of a delayed exchange for the milliseconds of its header ``x-delay``; say whether it has one.

        As with RabbitMQ's plugin, the publisher hears that it was routed nowhere (a mandatory publish is returned, then
        acked), and the queues get it afterwards.
        """
        delay = message.headers.get("x-delay")
        if exchange.type != DELAYED or not isinstance(delay, int) or delay <= 0:
            return False

        def deliver() -> None:
            for queue in self.route(exchange, message.routes, message.headers):
                queue.publish(message, None, connection)

        self.node.timers.after(delay / 1000, deliver)
        return True

    def dead_letter(self, source: Queue, message: Message, reason: str, target: str, key: str | None) -> None:
        """Publish a dead message to `target`, with the ``x-death`` header.

        A queue that held the message before gets it again only if a consumer has rejected it.

        `key`: the queue's own routing key for dead letters, where it has one.
        """
        headers = dict(message.headers)
        deaths: list[dict[str, Any]] = [dict(death) for death in headers.get("x-death") or ()]
        died: dict[str, Any] | None = next(
            (d for d in deaths if (d.get("queue"), d.get("reason")) == (source.name, reason)), None
        )
        if died is None:
            died = {
                "count": 0,
                "reason": reason,
                "queue": source.name,
                "time": self.node.wall_clock(),
                "exchange": message.exchange,
                "routing-keys": [
                    message.routing_key,
                    *(key for key in headers.get("CC") or () if isinstance(key, str)),
                ],
            }
            if message.properties.expiration:
                died["original-expiration"] = message.properties.expiration
        else:
            deaths.remove(died)
        died["count"] = int(died["count"]) + 1
        headers["x-death"] = [died, *deaths]
        headers.setdefault("x-first-death-exchange", message.exchange)
        headers.setdefault("x-first-death-queue", source.name)
        headers.setdefault("x-first-death-reason", reason)
        if key is not None:
            headers.pop("CC", None)
        routes = message.routes if key is None else (key,)
        properties = copy_properties(message.properties)
        properties.headers = headers
        properties.expiration = None
        dead = evolve(
            message,
            exchange=target,
            routing_key=routes[0],
            routes=routes,
            properties=properties,
            raw_properties=encode_properties(properties),
        )
        for queue in self.route(self.exchanges[target], routes, headers):
            been_there = queue is source or any(death.get("queue") == queue.name for death in deaths)
            if been_there and not any(death.get("reason") == "rejected" for death in (died, *deaths)):
                continue
            queue.publish(dead, None, 0)


class Node:
    """One broker: the state that outlives connections. `log` survives everything."""

    def __init__(
        self,
        timers: Timers,
        *,
        rng: random.Random | None,
        sync_interval: float,
        wall_clock: Callable[[], datetime],
    ) -> None:
        self.timers = timers
        #: The only source of randomness, injected; with None every choice is the same.
        self.rng = rng
        #: Seconds; the longest wait of a persistent message in a classic queue for its sync.
        self.sync_interval = sync_interval
        #: For the ``time`` of an ``x-death``.
        self.wall_clock = wall_clock
        self.vhosts: dict[str, Vhost] = {"/": Vhost(self, "/")}
        self.users: dict[str, User] = {"guest": User("guest", "guest", {"/": (".*", ".*", ".*")})}
        self.log: list[Enqueued] = []
        self.stalled = False
        #: Whether it has the plugin rabbitmq_delayed_message_exchange.
        self.delayed_messages = False
        self._generated = 0

    def generated_name(self, prefix: str) -> str:
        """Return a name for a queue or consumer that the client left unnamed."""
        self._generated += 1
        return f"{prefix}{self._generated:022d}"

    def login(self, name: str, password: str) -> User | None:
        """Return the user whose password this is."""
        user = self.users.get(name)
        return user if user is not None and user.password == password else None

    def enter(self, user: User, name: str) -> Vhost:
        """Return the virtual host that a connection opens, or raise 530 (one code for every refusal)."""
        vhost = self.vhosts.get(name)
        if vhost is None:
            raise Refusal(530, f"vhost {name} not found")
        if name not in user.permissions:
            raise Refusal(530, f"access to vhost '{name}' refused for user '{user.name}'")
        return vhost

    def leave(self, connection: int) -> None:
        """Delete the exclusive queues of a connection that ended."""
        for vhost in self.vhosts.values():
            for queue in tuple(vhost.queues.values()):
                if queue.owner == connection:
                    vhost.delete_queue(queue)

    def stall(self, on: bool) -> None:
        """Stall every queue, or let every queue go on."""
        self.stalled = on
        for vhost in self.vhosts.values():
            for queue in tuple(vhost.queues.values()):
                queue.stall(on, "node")

    def sync(self) -> None:
        """Sync every queue, as an orderly stop does."""
        for vhost in self.vhosts.values():
            for queue in vhost.queues.values():
                queue.sync()

    def crash(self) -> None:
        """Keep what survives a power cut: durable exchanges and queues, and in those the safe messages."""
        for vhost in self.vhosts.values():
            for queue in tuple(vhost.queues.values()):
                queue.forget_unsafe()
                if not queue.durable or queue.owner is not None:
                    vhost.delete_queue(queue)
            for exchange in tuple(vhost.exchanges.values()):
                if not exchange.durable:
                    vhost.delete_exchange(exchange.name)


# --- comparing declarations ---------------------------------------------------------------------------------------


def _assert_equal(label: str, what: str, current: str | bool, received: str | bool) -> None:
    if current != received:
        raise _inequivalent(label, what, f"'{_shown(current)}'", f"'{_shown(received)}'")


def _assert_same_argument(
    label: str, what: str, current: TypedTable, received: TypedTable, *, default: str | None = None
) -> None:
    one, other = current.get(label), received.get(label)
    assumed = ("longstr", default) if default is not None else None
    left, right = one or assumed, other or assumed
    if left == right or (left and right and left[1] == right[1] and _type_class(left[0]) == _type_class(right[0])):
        return
    if one is not None and other is not None:
        raise _inequivalent(label, what, f"'{_shown(one[1])}'", f"'{_shown(other[1])}'")
    raise _inequivalent(label, what, _typed(one), _typed(other))


def _inequivalent(label: str, what: str, current: str, received: str) -> Refusal:
    return precondition_failed(f"inequivalent arg '{label}' for {what}: received {received} but current is {current}")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _typed(value: tuple[str, Any] | None) -> str:
    return "none" if value is None else f"the value '{_shown(value[1])}' of type '{value[0]}'"


def _type_class(kind: str) -> str:
    return "int" if kind in INTEGERS else "float" if kind in ("float", "double") else kind


def _check_queue(what: str, *, durable: bool, exclusive: bool, auto_delete: bool, arguments: TypedTable) -> None:
    kind, queue_type = arguments.get("x-queue-type", ("longstr", "classic"))
    if kind != "longstr":
        raise _invalid("x-queue-type", what, f"{{unacceptable_type,{kind}}}")
    if queue_type not in ARGUMENTS:
        raise _invalid("x-queue-type", what, f"\"unsupported queue type '{queue_type}'\"")
    wrong = first_wrong(queue_type, arguments)
    if wrong is not None:
        raise _invalid(wrong[0], what, wrong[1])
    foreign = first_foreign(queue_type, arguments)
    if foreign is not None:
        raise precondition_failed(f"invalid arg '{foreign}' for {what} of queue type rabbit_{queue_type}_queue")
    if queue_type == "quorum":
        for unfit, label in (
            (auto_delete, "auto-delete"),
            (exclusive, "exclusive-owner"),
            (not durable, "non-durable"),
        ):
            if unfit:
                raise precondition_failed(f"invalid property '{label}' for {what}")


def _invalid(label: str, what: str, reason: str) -> Refusal:
    return precondition_failed(f"invalid arg '{label}' for {what}: {reason}")


# --- matching -----------------------------------------------------------------------------------------------------


def _topic_matches(pattern: list[str], words: list[str]) -> bool:
    """Whether the words match: ``*`` stands for one of them, ``#`` for any number, none included."""
    reachable = {0}
    for part in pattern:
        if part == "#":
            reachable = set(range(min(reachable, default=len(words) + 1), len(words) + 1))
        else:
            reachable = {at + 1 for at in reachable if at < len(words) and part in ("*", words[at])}
    return len(words) in reachable


def _headers_match(wanted: dict[str, Any], headers: dict[str, Any]) -> bool:
    mode = wanted.get("x-match", "all")
    every, with_x = mode.startswith("all"), mode.endswith("-with-x")
    checks = [
        name in headers and (value is None or headers[name] == value)
        for name, value in wanted.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    ]
    return all(checks) if every else any(checks)
