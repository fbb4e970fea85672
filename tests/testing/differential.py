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

from attrs import define, field
from pamqp import body, commands, header

from tests.testing.rawclient import RawClient, content, ordered, shown

__all__ = ["Player", "requests"]

B, E, Q = commands.Basic, commands.Exchange, commands.Queue
QUEUES = ("q1", "q2", "q3")
MISSING_QUEUE = "q0"
EXCHANGES = ("x1", "x2", "amq.topic", "amq.direct")
MISSING_EXCHANGE = "x0"
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
)


KINDS = {
    "declare q": 12, "delete q": 3, "purge": 2, "bind": 8, "unbind": 3, "declare x": 8, "delete x": 3, "bind x": 3,
    "unbind x": 2, "publish": 24, "get": 10, "consume": 4, "cancel": 3, "ack": 6, "nack": 3, "reject": 4, "recover": 1,
    "qos": 2,
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
        elif kind == "publish":
            yield _publish(rng, number)
        else:
            yield _topology(rng, kind) or _answer(rng, kind)


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
        """End the connection."""
        self.client.socket.close()

    def sweep(self) -> None:
        """Delete every queue and exchange that the requests may have made, and start on a new connection."""
        self.client.socket.close()
        self._known.clear()
        with RawClient(self.url) as client:
            for request in (
                *(Q.Delete(queue=queue) for queue in (*QUEUES, MISSING_QUEUE)),
                *(E.Delete(exchange=exchange) for exchange in ("x1", "x2", MISSING_EXCHANGE)),
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
