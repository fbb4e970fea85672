"""Random legal requests, put to two brokers: what each answers, step by step.

A step is one method (or one publish) on channel 1. Behind it stand two fences: `basic.qos` on channel 1, and a passive
declaration of each queue on channel 2, which also tells how many messages and consumers the queue has. So everything that
the step caused has arrived before the next step begins, and its lines can be compared in any order.
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


def requests(seed: int, length: int) -> Iterator[Any]:
    """Yield the steps of a seed: frames to send, each with whether a reply is due."""
    rng = random.Random(seed)
    consuming = ""
    for number in range(length):
        queue = rng.choice((*QUEUES, *QUEUES, MISSING_QUEUE))
        exchange = rng.choice((*EXCHANGES, *EXCHANGES, MISSING_EXCHANGE))
        key = rng.choice(KEYS)
        match rng.choices(
            ("declare q", "delete q", "purge", "bind", "unbind", "declare x", "delete x", "bind x", "unbind x",
             "publish", "get", "consume", "cancel", "ack", "nack", "reject", "recover", "qos"),
            (12, 3, 2, 8, 3, 8, 3, 3, 2, 24, 10, 4, 3, 6, 3, 4, 1, 2),
        )[0]:  # fmt: skip
            case "declare q":
                yield Q.Declare(
                    queue=queue, durable=True, passive=rng.random() < 0.15, exclusive=rng.random() < 0.1,
                    auto_delete=rng.random() < 0.15, arguments=rng.choice(QUEUE_ARGUMENTS),
                )  # fmt: skip
            case "delete q":
                yield Q.Delete(queue=queue, if_unused=rng.random() < 0.3, if_empty=rng.random() < 0.3)
            case "purge":
                yield Q.Purge(queue=queue)
            case "bind":
                yield Q.Bind(queue=queue, exchange=exchange, routing_key=key)
            case "unbind":
                yield Q.Unbind(queue=queue, exchange=exchange, routing_key=key)
            case "declare x":
                yield E.Declare(
                    exchange=rng.choice((exchange, "x1", "x2")), exchange_type=rng.choice(("direct", "fanout", "topic")),
                    durable=True, passive=rng.random() < 0.15, auto_delete=rng.random() < 0.15,
                    internal=rng.random() < 0.05, arguments=rng.choice(({}, {}, {"alternate-exchange": "x2"})),
                )  # fmt: skip
            case "delete x":
                yield E.Delete(exchange=exchange, if_unused=rng.random() < 0.4)
            case "bind x":
                yield E.Bind(destination=rng.choice((*EXCHANGES, MISSING_EXCHANGE)), source=exchange, routing_key=key)
            case "unbind x":
                yield E.Unbind(destination=rng.choice((*EXCHANGES, MISSING_EXCHANGE)), source=exchange, routing_key=key)
            case "publish":
                to_queue = rng.random() < 0.5
                yield content(
                    queue if to_queue else key, b"%04d" % number * rng.choice((1, 1, 5)),
                    exchange="" if to_queue else exchange, mandatory=rng.random() < 0.5,
                    delivery_mode=rng.choice((1, 2)), priority=rng.choice((None, 1, 7)),
                )  # fmt: skip
            case "get":
                yield B.Get(queue=queue, no_ack=rng.random() < 0.4)
            case "consume" if not consuming:
                # One consumer at a time: the order of two queues' deliveries is the timing's.
                consuming = f"tag{number}"
                yield B.Consume(
                    queue=queue, consumer_tag=consuming, no_ack=rng.random() < 0.3, exclusive=rng.random() < 0.2
                )
            case "cancel":
                yield B.Cancel(consumer_tag=consuming or "no-such-tag")
                consuming = ""
            case "ack":
                yield B.Ack(delivery_tag=rng.randint(0, 4), multiple=rng.random() < 0.4)
            case "nack":
                yield B.Nack(delivery_tag=rng.randint(0, 4), multiple=rng.random() < 0.4, requeue=rng.random() < 0.5)
            case "reject":
                yield B.Reject(delivery_tag=rng.randint(1, 4), requeue=rng.random() < 0.5)
            case "recover":
                yield B.Recover(requeue=True)
            case "qos":
                yield B.Qos(prefetch_count=rng.randint(0, 3), global_=rng.random() < 0.3)
            case _:
                pass


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
        state = [self._state(queue) for queue in sorted(self._known)]
        self._fence(heard)
        return [*sorted(heard), *state]

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
