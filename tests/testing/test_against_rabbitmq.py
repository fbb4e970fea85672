"""The embedded broker says what RabbitMQ says: the same requests to both, and the same lines back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from pamqp import commands, frame, header

from tests.testing.rawclient import RawClient, content, shown
from warrener.testing.broker import EmbeddedBroker, Tuning
from warrener.testing.rabbitmq import PrivateRabbitMQ

pytestmark = pytest.mark.broker

Dialogue: TypeAlias = "Callable[[str], list[Any]]"

B, C, E, Q = commands.Basic, commands.Confirm, commands.Exchange, commands.Queue
DIALOGUES: dict[str, Dialogue] = {}


def dialogue(function: Dialogue) -> Dialogue:
    """Add a dialogue: a function from a broker's URL to what was heard."""
    DIALOGUES[function.__name__] = function
    return function


def each(url: str, *requests: Any, **options: Any) -> list[Any]:
    """Put each request (a frame, or the frames of one) on a connection of its own, and undo it all at the end."""
    heard = []
    for request in requests:
        frames = request if isinstance(request, list) else [request]
        with RawClient(url, **options) as client:
            heard.append(client.talk(frames))
    return heard


def swept(url: str) -> None:
    """Delete what the dialogues declare."""
    with RawClient(url) as client:
        queues = [Q.Delete(queue=name) for name in ("q", "q2", "dlq")]
        client.talk([*queues, *(E.Delete(exchange=name) for name in ("x", "x2", "dlx"))])


@dialogue
def queue_equivalence(url: str) -> list[Any]:
    return each(
        url,
        Q.Declare(queue="q", durable=True),
        Q.Declare(queue="q", durable=True),
        Q.Declare(queue="q"),
        Q.Declare(queue="q", durable=True, auto_delete=True),
        Q.Declare(queue="q", durable=True, exclusive=True),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": 10}),
        Q.Declare(queue="q", durable=True, arguments={"x-queue-type": "quorum"}),
        Q.Declare(queue="q", durable=True, arguments={"x-queue-type": "classic"}),
        Q.Declare(queue="q", durable=True, arguments={"x-dead-letter-exchange": "dlx"}),
        Q.Declare(queue="q", durable=True, arguments={"x-unknown": "anything"}),
        Q.Declare(queue="q", passive=True),
        Q.Declare(queue="no", passive=True),
        Q.Delete(queue="q"),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": 10, "x-message-ttl": 60000}),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": 11, "x-message-ttl": 60000}),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": 2**40, "x-message-ttl": 60000}),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": "10", "x-message-ttl": 60000}),
        Q.Declare(queue="q", durable=True, arguments={"x-max-length": 10}),
        Q.Delete(queue="q"),
        Q.Declare(queue="q", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 5}),
        Q.Declare(queue="q", durable=True, arguments={"x-queue-type": "quorum"}),
        Q.Declare(queue="q", durable=True),
    )


@dialogue
def queue_arguments(url: str) -> list[Any]:
    return each(
        url,
        Q.Declare(queue="q", arguments={"x-max-length": -1}),
        Q.Declare(queue="q", arguments={"x-max-length": "10"}),
        Q.Declare(queue="q", arguments={"x-message-ttl": -5}),
        Q.Declare(queue="q", arguments={"x-expires": 0}),
        Q.Declare(queue="q", arguments={"x-queue-type": "nonsense"}),
        Q.Declare(queue="q", arguments={"x-overflow": "nonsense"}),
        Q.Declare(queue="q", arguments={"x-dead-letter-exchange": 5}),
        Q.Declare(queue="q", arguments={"x-dead-letter-routing-key": "k"}),
        Q.Declare(queue="q", arguments={"x-max-priority": 256}),
        Q.Declare(queue="q", arguments={"x-queue-type": "quorum"}),
        Q.Declare(queue="q", durable=True, exclusive=True, arguments={"x-queue-type": "quorum"}),
        Q.Declare(queue="q", durable=True, auto_delete=True, arguments={"x-queue-type": "quorum"}),
        Q.Declare(queue="q", durable=True, arguments={"x-queue-type": "quorum", "x-max-priority": 5}),
        Q.Declare(queue="amq.mine"),
        Q.Declare(queue="q", arguments={"x-delivery-limit": 3}),
    )


@dialogue
def queue_names_and_deletion(url: str) -> list[Any]:
    return each(
        url,
        Q.Bind(queue="", exchange="amq.direct"),
        Q.Bind(queue="no", exchange="amq.direct"),
        Q.Delete(queue="no"),
        Q.Purge(queue="no"),
        B.Get(queue="no"),
        B.Consume(queue="no"),
        [Q.Declare(queue="q"), Q.Bind(queue="", exchange="amq.direct", routing_key="k"), Q.Purge(queue="")],
        [Q.Bind(queue="q", exchange="")],
        [Q.Bind(queue="q", exchange="nox")],
        [Q.Unbind(queue="q", exchange="amq.direct", routing_key="never")],
        [Q.Unbind(queue="q", exchange="nox", routing_key="never")],
        [*content("q"), Q.Delete(queue="q", if_empty=True)],
        [Q.Purge(queue="q")],
        [B.Consume(queue="q", no_ack=True, nowait=True), Q.Delete(queue="q", if_unused=True)],
        [Q.Delete(queue="q")],
    )


@dialogue
def exclusive_queue(url: str) -> list[Any]:
    with RawClient(url) as owner, RawClient(url) as other:
        return [
            owner.talk([Q.Declare(queue="q", exclusive=True)]),
            other.talk([Q.Declare(queue="q", exclusive=True)]),
            owner.talk([Q.Declare(queue="q")]),
        ]


@dialogue
def exchanges(url: str) -> list[Any]:
    return each(
        url,
        E.Declare(exchange="x", exchange_type="topic", durable=True),
        E.Declare(exchange="x", exchange_type="topic", durable=True),
        E.Declare(exchange="x", exchange_type="direct", durable=True),
        E.Declare(exchange="x", exchange_type="topic"),
        E.Declare(exchange="x", exchange_type="topic", durable=True, auto_delete=True),
        E.Declare(exchange="x", exchange_type="topic", durable=True, internal=True),
        E.Declare(exchange="x", exchange_type="topic", durable=True, arguments={"alternate-exchange": "ae"}),
        E.Declare(exchange="x", passive=True),
        E.Declare(exchange="nox", passive=True),
        E.Declare(exchange="x2", exchange_type="nonsense"),
        E.Declare(exchange="amq.mine"),
        E.Declare(exchange="amq.direct", durable=True),
        E.Declare(exchange=""),
        E.Delete(exchange=""),
        E.Delete(exchange="amq.direct"),
        E.Delete(exchange="nox"),
        [E.Declare(exchange="x2"), E.Bind(destination="x2", source="x", routing_key="#")],
        E.Delete(exchange="x", if_unused=True),
        E.Bind(destination="nox", source="x"),
        E.Bind(destination="x", source="nox"),
        E.Bind(destination="", source="x"),
        E.Unbind(destination="x2", source="x", routing_key="#"),
    )


@dialogue
def publishing(url: str) -> list[Any]:
    return each(
        url,
        content("k", exchange="nox"),
        content("k", exchange="amq.rabbitmq.trace"),
        content("nowhere", mandatory=True, message_id="m", headers={"a": 1}),
        content("nowhere", b"", mandatory=True),
        content("nowhere"),
        content("nowhere", user_id="somebody"),
        content("nowhere", user_id="guest"),
        content("nowhere", expiration="abc"),
        content("nowhere", expiration="12a"),
        content("nowhere", expiration="-1"),
        content("nowhere", expiration="4294967296"),
        content("nowhere", expiration="315360000000"),
        content("nowhere", expiration="315360000001"),
        content("nowhere", expiration="1000"),
        content("nowhere", immediate=True),
    )


@dialogue
def confirms_of_unroutable_publishes(url: str) -> list[Any]:
    return each(
        url,
        [C.Select(), *content("nowhere", mandatory=True), *content("nowhere")],
        [C.Select(), C.Select()],
        [C.Select(), *content("k", exchange="nox"), *content("nowhere")],
    )


@dialogue
def getting_and_acking(url: str) -> list[Any]:
    with RawClient(url) as client, RawClient(url) as other:
        return [
            client.talk([Q.Declare(queue="q", durable=True)]),
            client.talk([*content("q", b"one", message_id="1"), *content("q", b"two"), *content("q", b"three")]),
            client.talk([B.Get(queue="q"), B.Get(queue="q", no_ack=True), B.Get(queue="q"), B.Get(queue="q")]),
            client.talk([B.Nack(delivery_tag=1), B.Get(queue="q"), B.Ack(delivery_tag=0, multiple=True)]),
            client.talk([B.Get(queue="q"), B.Ack(delivery_tag=0, multiple=True)]),
            client.talk([B.Ack(delivery_tag=99)]),
            other.talk([B.Reject(delivery_tag=1)]),
        ]


@dialogue
def consuming(url: str) -> list[Any]:
    heard = each(
        url,
        [Q.Declare(queue="q")],
        [B.Consume(queue="q", consumer_tag="t", nowait=True), B.Consume(queue="q", consumer_tag="t")],
        [B.Consume(queue="q", exclusive=True, nowait=True), B.Consume(queue="q")],
        [B.Consume(queue="q", nowait=True), B.Consume(queue="q", exclusive=True)],
        [B.Cancel(consumer_tag="nobody")],
        [B.Qos(prefetch_size=1)],
        [B.Recover(requeue=True)],
        [B.Recover(requeue=False)],
        [commands.Channel.Flow(active=True)],
        [commands.Channel.Flow(active=False)],
    )
    with RawClient(url) as client:
        frames = [B.Consume(queue="q", consumer_tag="t"), *content("q", b"1", delivery_mode=1)]
        heard.append(client.talk(frames, until="Basic.Deliver"))
        heard.append([shown(*client.read()), shown(*client.read())])
        heard.append(client.talk([B.Cancel(consumer_tag="t")], until="Basic.CancelOk"))
    with RawClient(url) as client:
        heard.append(client.talk([B.Get(queue="q")]))
    return heard


@dialogue
def consumer_hears_of_deleted_queue(url: str) -> list[Any]:
    with RawClient(url) as client, RawClient(url) as other:
        return [
            client.talk([Q.Declare(queue="q"), B.Consume(queue="q", consumer_tag="t")], until="Basic.ConsumeOk"),
            other.talk([Q.Delete(queue="q")]),
            client.talk([], until="Basic.Cancel"),
        ]


@dialogue
def dead_letters(url: str) -> list[Any]:
    with RawClient(url) as client:
        heard = [
            client.talk([E.Declare(exchange="dlx", exchange_type="fanout"), Q.Declare(queue="dlq")]),
            client.talk([Q.Bind(queue="dlq", exchange="dlx")]),
            client.talk([Q.Declare(queue="q", arguments={"x-dead-letter-exchange": "dlx"})]),
            client.talk([*content("q", b"dead", message_id="1"), B.Get(queue="q")]),
            client.talk([B.Reject(delivery_tag=1, requeue=False)]),
        ]
    with RawClient(url) as client:
        lines = client.talk([B.Get(queue="dlq", no_ack=True)])
        while lines == ["1 Basic.GetEmpty {}"]:
            lines = client.talk([B.Get(queue="dlq", no_ack=True)])
    return [*heard, [re.sub(r"datetime\.datetime\([^)]*\)", "TIME", line) for line in lines]]


@dialogue
def channel_and_connection_errors(url: str) -> list[Any]:
    heard = each(
        url,
        commands.Channel.Open(),
        commands.Basic.QosOk(),
        commands.Connection.Close(200, "bye", 0, 0),
        [B.Publish(routing_key="q"), B.Get(queue="q")],
        [header.ContentHeader(body_size=3)],
        [B.Publish(routing_key="q"), header.ContentHeader(body_size=3), B.Get(queue="q")],
    )
    with RawClient(url) as client:
        heard.append(client.talk([Q.Declare(queue="q")], channel=7))
    return heard


@dialogue
def bad_frames(url: str) -> list[Any]:
    heard = []
    for data in (
        b"\x09\x00\x01\x00\x00\x00\x00\xce",
        frame.marshal(B.Get(queue="q"), 1)[:-1] + b"\x00",
        b"\x03\x00\x01\x00\x10\x00\x00",
    ):
        with RawClient(url) as client:
            client.write(data)
            _, close = client.read()
            heard.append((close.name, close.reply_code, close.class_id, close.method_id))
    return heard


@dialogue
def handshakes(url: str) -> list[Any]:
    heard: list[Any] = []
    for refused, options in (
        (False, {"password": "wrong"}),
        (False, {"vhost": "nowhere"}),
        (False, {"frame_max": 4096, "channel_max": 1}),
        (True, {"frame_max": 1000}),
        (True, {"frame_max": 0}),
        (True, {"frame_max": 200000}),
        (True, {"channel_max": 4000}),
        (True, {"channel_max": 0}),
    ):
        with RawClient(url, connect=False, **options) as client:  # type: ignore[arg-type]
            heard.append(client.handshake(refused=refused))
    with RawClient(url, connect=False) as client:
        client.write(b"GET / HT")
        heard.append(client.socket.recv(8))
    return heard


@dialogue
def channel_numbers(url: str) -> list[Any]:
    """channel_max counts open channels; their numbers may be larger."""
    heard = []
    with RawClient(url, channel_max=3) as client:
        for number in (7, 5, 6):
            client.send(commands.Channel.Open(), channel=number)
            heard.append(shown(*client.read()))
    return heard


@dialogue
def dead_letter_of_an_expired_message(url: str) -> list[Any]:
    """The expiration that the publisher asked for is in x-death, and no longer a property."""
    with RawClient(url) as client:
        client.talk([Q.Declare(queue="dlq"), Q.Declare(queue="q", arguments={
            "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dlq"
        })])  # fmt: skip
        client.send(*content("q", b"late", expiration="1"))
        while True:
            client.send(B.Get(queue="dlq", no_ack=True))
            _, received = client.read()
            if received.name == "Basic.GetOk":
                break
        _, properties = client.read()
        client.read()
        (death,) = properties.properties.headers["x-death"]
        death.pop("time")
        return [death, properties.properties.expiration]


@dialogue
def permissions(url: str) -> list[Any]:
    with RawClient(url) as client:
        client.talk([Q.Declare(queue="q"), Q.Declare(queue="q2"), E.Declare(exchange="x")])
    return each(
        url.replace("guest:guest", "limited:secret"),
        Q.Declare(queue="mine"),
        Q.Delete(queue="mine"),
        Q.Declare(queue="q"),
        Q.Declare(queue="q", passive=True),
        Q.Delete(queue="q"),
        Q.Purge(queue="q2"),
        B.Get(queue="q2"),
        B.Consume(queue="q2"),
        E.Declare(exchange="x"),
        E.Delete(exchange="x"),
        Q.Bind(queue="q", exchange="x"),
        E.Bind(destination="x", source="amq.direct"),
        content("k", exchange="x"),
        content("k", exchange="nox"),
        content("k"),
    )


#: What RabbitMQ 4 says otherwise than 3.10, whose words the embedded broker has: a pattern, and what 3.10 says.
SINCE_THEN = (
    # The refused permission is named.
    (r"ACCESS_REFUSED - (configure|write|read) access to", "ACCESS_REFUSED - access to"),
    # An unknown type of exchange costs the channel only, no longer the connection.
    (
        r"1 Channel.Close {'reply_code': 406, 'reply_text': \"PRECONDITION_FAILED - unknown exchange type",
        "0 Connection.Close {'reply_code': 503, 'reply_text': \"COMMAND_INVALID - unknown exchange type",
    ),
    # A queue declared without x-queue-type is known as a classic one.
    (
        r"received 'quorum' but current is 'classic'",
        "received the value 'quorum' of type 'longstr' but current is none",
    ),
    (
        r"received 'classic' but current is 'quorum'",
        "received none but current is the value 'quorum' of type 'longstr'",
    ),
    # A dead letter tells of its last death beside its first.
    (r", 'x-last-death-\w+': '\w*'", ""),
)
#: The protocol header that answers a foreign one: AMQP 1.0 with SASL, since that is part of the core.
HEADER, HEADER_SINCE_THEN = b"AMQP\x00\x00\x09\x01", b"AMQP\x03\x01\x00\x00"


def in_the_words_of_3_10(heard: Any) -> Any:
    """What RabbitMQ 4 said, as 3.10 would have said it."""
    if isinstance(heard, list):
        return [in_the_words_of_3_10(each) for each in heard]
    if isinstance(heard, str):
        for pattern, before in SINCE_THEN:
            heard = re.sub(pattern, before, heard)
    return HEADER if heard == HEADER_SINCE_THEN else heard


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker.in_thread(strict=False, tuning=Tuning(silent_close_delay=0.1)) as broker:
        broker.add_user("limited", "secret")
        broker.set_permissions("limited", configure="^mine$", write="^mine$", read="^q$")
        yield broker


@pytest.fixture(scope="module")
def real(private_rabbitmq: PrivateRabbitMQ) -> Iterator[PrivateRabbitMQ]:
    private_rabbitmq.add_user("limited", "secret")
    private_rabbitmq.set_permissions("limited", configure="^mine$", write="^mine$", read="^q$")
    yield private_rabbitmq
    private_rabbitmq.delete_user("limited")


@pytest.mark.parametrize("name", DIALOGUES)
def test_says_what_rabbitmq_says(name: str, embedded: EmbeddedBroker, real: PrivateRabbitMQ) -> None:
    """Each request is answered with RabbitMQ's methods, reply codes and texts."""
    expected = DIALOGUES[name](real.url)
    if real.version >= (4,):
        expected = in_the_words_of_3_10(expected)
    swept(real.url)

    actual = DIALOGUES[name](embedded.url)
    swept(embedded.url)

    assert expected == actual
