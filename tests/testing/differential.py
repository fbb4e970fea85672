"""Random legal requests, put to two brokers: what each answers, step by step.

A step is one method (or one publish) on channel 1. Behind it stand two fences: `basic.qos` on channel 1, and a passive
declaration of each queue on channel 2, which also tells how many messages and consumers the queue has. So everything that
the step caused has arrived before the next step begins, and its lines can be compared in any order. Behind the end of a
channel stands no fence: its messages return to their queues a moment later, so the depths are asked again until they agree.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen
from pamqp import body, commands, header

from tests.testing.rawclient import RawClient, content, ordered, shown

__all__ = ["Player", "requests"]

B, E, Q = commands.Basic, commands.Exchange, commands.Queue
QUEUES = ("q1", "q2", "q3")
MISSING_QUEUE = "q0"
#: A second connection holds it exclusively, now and then.
FOREIGN_QUEUE = "q4"
EXCHANGES = ("x1", "x2", "amq.topic", "amq.direct")
MISSING_EXCHANGE = "x0"
HEADERS_EXCHANGE = "xh"
KEYS = ("k", "k.l", "#", "*.l", "q1")
QUEUE_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"x-max-length": 2},
    {"x-max-length": 2, "x-overflow": "reject-publish"},
    {"x-max-priority": 5},
    {"x-dead-letter-exchange": "x2"},
    {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q3"},
    {"x-max-length-bytes": 30},
    {"x-message-ttl": 0},
    {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q3"},
    {"x-max-length": 0, "x-dead-letter-exchange": "x2", "x-overflow": "reject-publish-dlx"},
    {"x-queue-mode": "lazy"},
    {"x-foo": "unknown arguments are kept"},
)
ODD_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"x-max-length": -1}, {"x-max-length": "a"}, {"x-max-length-bytes": -3}, {"x-message-ttl": -1}, {"x-message-ttl": "1"},
    {"x-max-priority": 256}, {"x-max-priority": -1}, {"x-overflow": "drop"}, {"x-overflow": 1}, {"x-expires": 0},
    {"x-expires": "x"}, {"x-dead-letter-routing-key": "k"}, {"x-dead-letter-exchange": 5}, {"x-queue-type": "bad"},
    {"x-queue-type": 3}, {"x-queue-mode": "fast"}, {"x-single-active-consumer": "yes"}, {"x-delivery-limit": 5},
)  # fmt: skip
#: Of bindings to a headers exchange, and of messages to it.
MATCHES: tuple[dict[str, Any], ...] = (
    {}, {"x-match": "all", "a": 1}, {"x-match": "any", "a": 1, "b": "x"}, {"a": True}, {"x-match": "all", "a": 1, "b": "x"},
    {"x-match": "none"}, {"x-match": True, "a": 1}, {"x-match": "any-with-x", "x-c": "y"}, {"x-match": "all", "x-c": "y"}, {"x-match": 1},
)  # fmt: skip
HEADERS: tuple[dict[str, Any], ...] = (
    {}, {"a": 1}, {"a": "1"}, {"b": "x"}, {"a": 1, "b": "x"}, {"a": True}, {"x-c": "y"}, {"a": 2, "b": "x", "x-c": "y"},
)  # fmt: skip
ROUTES: tuple[dict[str, Any], ...] = ({"CC": ["q1", "q2"]}, {"BCC": ["q3"]}, {"CC": ["q1"], "BCC": ["q1"]}, {"CC": []})
ODD_ROUTES: tuple[dict[str, Any], ...] = ({"CC": "q1"}, {"BCC": 1})


@frozen
class Other:
    """A step of the second connection."""

    request: Any


KINDS = {
    "declare q": 12, "delete q": 3, "purge": 2, "bind": 8, "unbind": 3, "declare x": 8, "delete x": 3, "bind x": 3,
    "unbind x": 2, "publish": 24, "get": 10, "consume": 4, "cancel": 3, "ack": 6, "nack": 3, "reject": 4, "recover": 1,
    "qos": 2, "odd declare q": 2, "odd declare x": 1, "bind h": 3, "publish h": 4, "route": 3, "odd publish": 2,
    "odd qos": 0.3, "odd consume": 1, "reserved": 2, "other": 5, "foreign": 3, "recover async": 0.5, "flow off": 0.2,
}  # fmt: skip


def requests(seed: int, length: int) -> Iterator[Any]:
    """Yield the steps of a seed: each a method, or the frames of a publish."""
    rng = random.Random(seed)
    consuming = ""
    for number in range(length):
        kind = rng.choices([*KINDS], [*KINDS.values()])[0]
        if kind == "consume" and consuming:
            kind = "get"  # one consumer at a time: the order of two queues' deliveries is the timing's
        if kind == "consume":
            consuming = f"tag{number}"
            yield B.Consume(
                queue=_queue(rng), consumer_tag=consuming, no_ack=rng.random() < 0.3, exclusive=rng.random() < 0.2
            )
        elif kind == "cancel":
            yield B.Cancel(consumer_tag=consuming or "no-such-tag")
            consuming = ""
        elif kind == "odd consume":
            yield _odd_consume(rng, consuming)
        elif "publish" in kind or kind == "route":
            yield _publish(rng, number) if kind == "publish" else _odd_publish(rng, number, kind)
        else:
            yield _topology(rng, kind) or _odd(rng, kind) or _answer(rng, kind)


def _queue(rng: random.Random) -> str:
    return rng.choice((*QUEUES, *QUEUES, MISSING_QUEUE))


def _exchange(rng: random.Random) -> str:
    return rng.choice((*EXCHANGES, *EXCHANGES, MISSING_EXCHANGE))


def _publish(rng: random.Random, number: int) -> list[Any]:
    to_queue = rng.random() < 0.5
    return content(
        _queue(rng) if to_queue else rng.choice(KEYS), b"%04d" % number * rng.choice((1, 1, 5)),
        exchange="" if to_queue else _exchange(rng), mandatory=rng.random() < 0.5,
        delivery_mode=rng.choice((1, 2)), priority=rng.choice((None, 1, 7)),
    )  # fmt: skip


def _topology(rng: random.Random, kind: str) -> Any:
    queue, exchange, key = _queue(rng), _exchange(rng), rng.choice(KEYS)
    match kind:
        case "declare q":
            return Q.Declare(
                queue=queue, durable=True, passive=rng.random() < 0.15, exclusive=rng.random() < 0.1,
                auto_delete=rng.random() < 0.15, arguments=rng.choice(QUEUE_ARGUMENTS),
            )  # fmt: skip
        case "delete q":
            return Q.Delete(queue=queue, if_unused=rng.random() < 0.3, if_empty=rng.random() < 0.3)
        case "purge":
            return Q.Purge(queue=queue)
        case "bind":
            return Q.Bind(queue=queue, exchange=exchange, routing_key=key)
        case "unbind":
            return Q.Unbind(queue=queue, exchange=exchange, routing_key=key)
        case "declare x":
            return E.Declare(
                exchange=rng.choice((exchange, "x1", "x2")), exchange_type=rng.choice(("direct", "fanout", "topic")),
                durable=True, passive=rng.random() < 0.15, auto_delete=rng.random() < 0.15,
                internal=rng.random() < 0.05, arguments=rng.choice(({}, {}, {"alternate-exchange": "x2"})),
            )  # fmt: skip
        case "delete x":
            return E.Delete(exchange=exchange, if_unused=rng.random() < 0.4)
        case "bind x":
            return E.Bind(destination=_exchange(rng), source=exchange, routing_key=key)
        case "unbind x":
            return E.Unbind(destination=_exchange(rng), source=exchange, routing_key=key)
    return None


def _odd_publish(rng: random.Random, number: int, kind: str) -> list[Any]:
    text = b"%04d" % number
    match kind:
        case "publish h":
            return content("k", text, exchange=HEADERS_EXCHANGE, mandatory=True, headers=rng.choice(HEADERS))
        case "route":
            headers = rng.choice((*ROUTES, *ROUTES, *ODD_ROUTES))
            return content(_queue(rng), text, mandatory=rng.random() < 0.5, headers=headers)
    properties: dict[str, Any] = rng.choice(
        ({"expiration": "0"}, {"expiration": "0"}, {"expiration": "x"}, {"expiration": "-1"}, {"user_id": "somebody"},
         {"user_id": "guest"}, {"reply_to": "q1", "correlation_id": "c", "message_type": "t", "app_id": "a", "message_id": "m"},
         {"content_type": "text/plain", "content_encoding": "utf-8"})
    )  # fmt: skip
    return content(_queue(rng), text, mandatory=rng.random() < 0.5, immediate=rng.random() < 0.05, **properties)


def _odd_consume(rng: random.Random, consuming: str) -> Any:
    queue = rng.choice((MISSING_QUEUE, MISSING_QUEUE, FOREIGN_QUEUE))
    # A tag that is taken costs the connection.
    return B.Consume(queue=queue, consumer_tag=rng.choice(("new", "new", consuming or "new")))


def _odd(rng: random.Random, kind: str) -> Any:
    """Return a request that RabbitMQ refuses, or one that is rare."""
    queue, exchange, key = _queue(rng), _exchange(rng), rng.choice(KEYS)
    match kind:
        case "odd declare q":
            return Q.Declare(queue=queue, durable=True, arguments=rng.choice(ODD_ARGUMENTS))
        case "odd declare x":
            types = ("headers", "headers", "topic", "x-fancy")
            return E.Declare(exchange=HEADERS_EXCHANGE, exchange_type=rng.choice(types), durable=True)
        case "bind h":
            request = rng.choice((Q.Bind, Q.Bind, Q.Unbind))
            return request(queue=queue, exchange=HEADERS_EXCHANGE, routing_key="k", arguments=rng.choice(MATCHES))
        case "reserved":
            name = rng.choice(("amq.mine", "amq.topic", ""))
            return rng.choice(
                (
                    Q.Declare(queue="amq.mine", durable=True), E.Declare(exchange=name, exchange_type="direct", durable=True),
                    E.Delete(exchange=name), Q.Bind(queue=queue, exchange="", routing_key=key),
                    Q.Unbind(queue=queue, exchange="", routing_key=key), E.Bind(destination="", source=exchange),
                    E.Declare(exchange=name, exchange_type="direct", passive=True), Q.Delete(queue=MISSING_QUEUE),
                    E.Delete(exchange=MISSING_EXCHANGE), Q.Declare(queue=MISSING_QUEUE, passive=True),
                )
            )  # fmt: skip
        case "other":
            own = Q.Declare(queue=FOREIGN_QUEUE, exclusive=True)
            rest = (
                Q.Delete(queue=FOREIGN_QUEUE), B.Get(queue=queue, no_ack=True), Q.Declare(queue=queue, passive=True),
                Q.Declare(queue=FOREIGN_QUEUE, passive=True), Q.Purge(queue=FOREIGN_QUEUE),
                Q.Bind(queue=FOREIGN_QUEUE, exchange="amq.topic", routing_key=key),
            )  # fmt: skip
            return Other(rng.choice((own, own, *rest)))
        case "foreign":
            foreign = FOREIGN_QUEUE
            return rng.choice(
                (
                    Q.Declare(queue=foreign, exclusive=True), Q.Declare(queue=foreign, passive=True), B.Get(queue=foreign),
                    Q.Bind(queue=foreign, exchange="amq.topic", routing_key=key), Q.Purge(queue=foreign),
                    Q.Delete(queue=foreign), Q.Unbind(queue=foreign, exchange="amq.topic", routing_key=key),
                )
            )  # fmt: skip
        case "odd qos":
            return B.Qos(prefetch_size=1, prefetch_count=1)
        case "flow off":
            return commands.Channel.Flow(active=False)
        case "recover async":
            return B.RecoverAsync(requeue=rng.random() < 0.9)
    return None


def _answer(rng: random.Random, kind: str) -> Any:
    match kind:
        case "get":
            return B.Get(queue=_queue(rng), no_ack=rng.random() < 0.4)
        case "ack":
            return B.Ack(delivery_tag=rng.randint(0, 4), multiple=rng.random() < 0.4)
        case "nack":
            return B.Nack(delivery_tag=rng.randint(0, 4), multiple=rng.random() < 0.4, requeue=rng.random() < 0.5)
        case "reject":
            return B.Reject(delivery_tag=rng.randint(1, 4), requeue=rng.random() < 0.5)
        case "recover":
            return B.Recover(requeue=True)
    return B.Qos(prefetch_count=rng.randint(0, 3), global_=rng.random() < 0.3)


@define
class Player:
    """Puts requests to one broker, on one connection as long as that lives."""

    url: str
    client: RawClient = field(init=False)
    _open: set[int] = field(factory=set[int])
    #: The queues that exist, as far as the answers tell.
    _known: set[str] = field(factory=set[str])
    #: The second connection.
    _other: Player | None = None

    def __attrs_post_init__(self) -> None:
        self._connect()

    def _connect(self) -> None:
        self.client = RawClient(self.url)
        self._open = {1}
        self._channel(1)
        self.client.talk([commands.Confirm.Select()], until="Confirm.SelectOk")

    def _channel(self, number: int) -> None:
        if number not in self._open:
            self._open.add(number)
            self.client.send(commands.Channel.Open(), channel=number)
            self._read_until("Channel.OpenOk", [], channel=number)
            if number == 1:
                self.client.talk([commands.Confirm.Select()], until="Confirm.SelectOk")

    def step(self, request: Any) -> list[str]:
        """Put one request; return the lines that it caused, and the state of the queues after it."""
        if isinstance(request, Other):
            if self._other is None:
                self._other = Player(self.url)
            return [f"other: {line}" for line in self._other.step(request.request)]
        self._channel(1)
        heard: list[str] = []
        publish = isinstance(request, list)
        self.client.send(*(request if publish else [request]))
        if publish:
            self._read_until("Basic.Ack", heard)
        elif request.synchronous:
            self._read_until("", heard)
        self._fence(heard)
        if isinstance(request, Q.Declare):
            self._known.add(request.queue)
        self.state()
        self._fence(heard)
        return sorted(heard)

    def state(self) -> list[str]:
        """Return how many messages and consumers each known queue has."""
        return [self._state(queue) for queue in sorted(self._known)]

    def _fence(self, heard: list[str]) -> None:
        if 1 in self._open:
            self.client.send(commands.Channel.Flow(active=True))
            self._read_until("Channel.FlowOk", heard)

    def _state(self, queue: str) -> str:
        self._channel(2)
        heard: list[str] = []
        self.client.send(Q.Declare(queue=queue, passive=True), channel=2)
        self._read_until("Queue.DeclareOk", heard, channel=2)
        if any("404" in line for line in heard):
            self._known.discard(queue)
        return f"state {' '.join(line for line in heard if line.startswith('2 '))}"

    def _read_until(self, name: str, heard: list[str], channel: int = 1) -> None:
        """Read up to the method of this name (any reply where there is none) on the channel, or to its close."""
        pending = ""
        while True:
            number, received = self.client.read()
            line = shown(number, _without_time(received))
            if isinstance(received, header.ContentHeader):
                pending += f" | {line}"
                if received.body_size:
                    continue
            elif isinstance(received, body.ContentBody):
                pending += f" | {line}"
            elif received.name in ("Basic.Deliver", "Basic.Return", "Basic.GetOk"):
                pending = line
                continue
            if pending:
                heard.append(pending)
                finished = name == "" and pending.startswith(f"{channel} Basic.GetOk")
                pending = ""
                if finished:
                    return
                continue
            if received.name not in ("Channel.FlowOk", "Channel.OpenOk"):
                heard.append(line)
            if received.name == "Channel.Close":
                self._open.discard(number)
                self.client.send(commands.Channel.CloseOk(), channel=number)
                if number == channel:
                    return
            elif received.name == "Connection.Close":
                self.client.send(commands.Connection.CloseOk(), channel=0)
                self.client.socket.close()
                self._connect()
                return
            elif number == channel and _answers(received.name, name):
                return

    def close(self) -> None:
        """End the connections."""
        self.client.socket.close()
        if self._other is not None:
            self._other.close()
            self._other = None

    def sweep(self) -> None:
        """Delete every queue and exchange that the requests may have made, and start on a new connection."""
        self.close()
        self._known.clear()
        with RawClient(self.url) as client:
            for request in (
                *(Q.Delete(queue=queue) for queue in (*QUEUES, MISSING_QUEUE)),
                *(E.Delete(exchange=exchange) for exchange in ("x1", "x2", MISSING_EXCHANGE, HEADERS_EXCHANGE)),
            ):
                client.talk([request])
        with RawClient(self.url) as client:
            for key in KEYS:
                for one in ("amq.topic", "amq.direct"):
                    client.talk(
                        [
                            E.Unbind(destination=other, source=one, routing_key=key)
                            for other in ("amq.topic", "amq.direct")
                        ]
                    )
        self._connect()


def _answers(received: str, name: str) -> bool:
    if name == "Basic.Ack":
        return received in ("Basic.Ack", "Basic.Nack")
    return received == name if name else received.endswith(("Ok", "Empty"))


def _without_time(received: Any) -> Any:
    if isinstance(received, header.ContentHeader) and received.properties.headers:
        for death in received.properties.headers.get("x-death") or ():
            death.pop("time", None)
        received.properties.headers = ordered(received.properties.headers)
    return received
