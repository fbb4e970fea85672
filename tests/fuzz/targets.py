"""What is fuzzed: which modules, from which seeds, and the check that must hold for any bytes."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

__all__ = ["TARGETS", "Target"]

FOLDER = Path(__file__).resolve().parent


@frozen
class Target:
    """One entrance for bytes from outside."""

    #: The modules whose coverage guides the search.
    instrumented: tuple[str, ...]
    #: Where `check(data)` is; imported after the modules were instrumented.
    checks: str
    seeds: Callable[[], Iterator[bytes]]
    #: Bytes; longer inputs find nothing that these do not.
    longest: int
    dictionary: Path | None = None

    def check(self) -> Callable[[bytes], None]:
        """Return the function that raises if something does not hold."""
        check: Callable[[bytes], None] = importlib.import_module(self.checks).check
        return check


def recorded() -> Iterator[bytes]:
    """What a RabbitMQ sent in real sessions; the longest are cut by the fuzzer."""
    yield from (path.read_bytes() for path in sorted((FOLDER / "corpus" / "wire").iterdir()))


def urls_and_settings() -> Iterator[bytes]:
    """A URL, environment variables and a settings file."""
    yield b"amqp://guest:guest@localhost:5672/vhost?heartbeat=30&connect_timeout=5"
    yield b"amqps://u%40x:p%2F@[::1]/%2F?max_in_flight=10\x00WARRENER_HEARTBEAT=30\x00RABBITMQ_RECONNECT_ATTEMPTS=forever"
    yield b"amqp://h/\x00RABBITMQ_USE_SSL=true\x00WARRENER_BACKOFF_CAP=5\x00WARRENER_BREAKER=off\x00ML_PRODUCER_PORT=tcp://10.0.0.1:1"
    yield b'amqp://h/\x00\x00\x00[warrener]\npreferred_stt = "local"\nbind = "127.0.0.1:3001"\n[warrener.producer]\nheartbeat = 30\n'


def lines_to_publish() -> Iterator[bytes]:
    """One seed for each format; the first byte chooses it."""
    yield b"\x00one\ntwo\r\n\nthree"
    yield b'\x01{"a": [1, 2, {"b": null}]}\n"text"\n'
    yield b'\x02{"body": "x", "headers": {"a": 1}, "priority": 3, "message_id": "m", "expiration": 1.5, "persistent": false}\n'
    yield b'\x02{"body_base64": "eA==", "exchange": "e", "routing_key": "k", "type": "t", "error": "it failed"}\n'
    yield b"\x03anything"


def sessions_of_clients() -> Iterator[bytes]:
    """Sessions as a client writes them: with a handshake of the check's own, and from the first byte on."""
    from pamqp import commands, frame, header
    from pamqp.body import ContentBody

    def publish(channel: int, body: bytes, **properties: object) -> bytes:
        parts = [
            frame.marshal(commands.Basic.Publish(exchange="", routing_key="q", mandatory=True), channel),
            frame.marshal(
                header.ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties)), channel
            ),
            frame.marshal(ContentBody(body), channel),
        ]
        return b"".join(parts)

    def methods(*calls: object) -> bytes:
        return b"".join(frame.marshal(call, 1) for call in calls)  # type: ignore[arg-type]

    declared = methods(
        commands.Queue.Declare(queue="q", durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}),
        commands.Exchange.Declare(exchange="e", exchange_type="topic"),
        commands.Queue.Bind(queue="q", exchange="e", routing_key="a.#"),
    )
    yield b"\x01" + declared + methods(commands.Confirm.Select()) + publish(1, b"body", message_id="m", delivery_mode=2)
    yield (
        b"\x01"
        + declared
        + publish(1, b"x", headers={"t": {"n": [1, "a"]}})
        + methods(
            commands.Basic.Get(queue="q"),
            commands.Basic.Ack(delivery_tag=1),
            commands.Basic.Nack(delivery_tag=1, multiple=True),
        )
    )
    yield (
        b"\x01"
        + declared
        + methods(
            commands.Basic.Qos(prefetch_count=2),
            commands.Basic.Consume(queue="q", consumer_tag="c"),
            commands.Basic.Cancel(consumer_tag="c"),
        )
    )
    yield b"\x01" + methods(
        commands.Queue.Purge(queue="q"), commands.Queue.Delete(queue="q"), commands.Exchange.Delete(exchange="e")
    )
    yield b"\x01" + methods(commands.Channel.Close(200, "", 0, 0)) + struct.pack(">BHIB", 8, 0, 0, 0xCE)
    yield b"\x00AMQP\x00\x00\x09\x01" + frame.marshal(
        commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"), 0
    )


def clients_of_the_service() -> Iterator[bytes]:
    """The list of hostile sequences, and what the generator makes of random bytes; a turn's first byte says how they come."""
    import random

    from tests.ml.http_inputs import HOSTILE

    for number, data in enumerate(HOSTILE.values()):
        yield bytes([(0, 4, 8, 16, 32, 64)[number % 6]]) + data[:3000]
    rng = random.Random(1)
    for _ in range(20):
        yield TURN.join(bytes([rng.randrange(256), 0]) + rng.randbytes(60) for _ in range(rng.randint(1, 4)))


TURN = b"\x00\xff\xfeTURN"

TARGETS = {
    "http": Target(
        instrumented=(
            "warrener.ml.http_server",
            "warrener.ml.turns",
            "warrener.ml.guard",
            "warrener.ml.task_endpoint",
            "warrener.ml.parsing",
            "warrener.ml.payloads",
            "uvicorn.protocols.http.h11_impl",
            "h11",
        ),
        checks="tests.fuzz.check_http",
        seeds=clients_of_the_service,
        longest=4000,
        dictionary=FOLDER / "http.dict",
    ),
    "wire": Target(
        instrumented=("warrener.wire",),
        checks="tests.wire.replay",
        seeds=recorded,
        longest=6000,
        dictionary=FOLDER / "amqp.dict",
    ),
    "settings": Target(
        instrumented=("warrener._settings", "warrener.ml.settings"),
        checks="tests.fuzz.check_settings",
        seeds=urls_and_settings,
        longest=1000,
    ),
    "publish": Target(
        instrumented=("warrener._cli.publish_input",),
        checks="tests.fuzz.check_publish",
        seeds=lines_to_publish,
        longest=2000,
    ),
    "broker": Target(
        instrumented=("warrener.testing.broker",),
        checks="tests.fuzz.check_broker",
        seeds=sessions_of_clients,
        longest=4000,
        dictionary=FOLDER / "amqp.dict",
    ),
}
