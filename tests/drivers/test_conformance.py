"""One suite against the seam, for each driver on each event loop: what a driver promises, a test here claims."""

from __future__ import annotations

import gc
import logging
import ssl
import struct
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trustme
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from pamqp import commands

from warrener.drivers.aiormq import AiormqDriver
from warrener.drivers.aiormq._transport import Epoch
from warrener.drivers.base import Driver, Lane, Link, LinkDown, LinkOptions
from warrener.drivers.base import Peer as Negotiated
from warrener.drivers.native import NativeDriver
from warrener.errors import Fault, FaultKind
from warrener.records import Credentials, Endpoint, Envelope
from warrener.topology import Binding, Exchange, Queue
from warrener.wire.channel import Publisher

from .recording import Peer, RecordingReports, relaying, serving

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream

    from warrener.testing.rabbitmq import PrivateRabbitMQ

pytestmark = [pytest.mark.anyio, pytest.mark.broker]

_DRIVERS: dict[str, Callable[[], Driver]] = {"aiormq": AiormqDriver, "native": NativeDriver}

#: Longer than anything here takes on a loaded machine.
_PATIENCE = 60.0


@pytest.fixture(params=sorted(_DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each driver that there is."""
    return _DRIVERS[request.param]()


@pytest.fixture
def listener() -> RecordingReports:
    """What the link under test listener."""
    return RecordingReports()


@pytest.fixture
def endpoint(rabbitmq: PrivateRabbitMQ) -> Endpoint:
    """The private broker."""
    return Endpoint(host="127.0.0.1", port=rabbitmq.port)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Any:
    """No thread outlives its link, whatever the test did."""
    yield
    assert own_threads() == []


def own_threads() -> list[str]:
    """The names of the threads that belong to links."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("warrener-")]


def options(**changes: Any) -> LinkOptions:
    """The defaults but for `changes`."""
    return LinkOptions(**({"connection_name": "conformance"} | changes))


async def blocking(function: Callable[..., Any], *args: Any) -> Any:
    """Run what blocks (an order to the broker) in a worker thread."""
    return await anyio.to_thread.run_sync(function, *args)


async def sleep_until_cancelled() -> None:
    """Stay in the block of a link until the link ends it."""
    with anyio.fail_after(_PATIENCE):
        await anyio.sleep_forever()


@asynccontextmanager
async def queue(link: Link, name: str, **arguments: Any) -> AsyncGenerator[Envelope]:
    """A queue for the length of the block; an envelope that leads there."""
    await link.declare([Queue(name, arguments={key.replace("_", "-"): value for key, value in arguments.items()})])
    try:
        yield Envelope(routing_key=name)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            await link.delete_queue(name)


async def fault_of_opening(driver: Driver, endpoint: Endpoint, **changes: Any) -> Fault:
    """Open a link that must fail; the fault it fails with, which must leave bare."""
    with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(**changes), RecordingReports()):
            pytest.fail("it opened")
    return down.value.fault


# --- opening --------------------------------------------------------------------------------------------------------


async def test_opens_in_confirm_mode(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """The first channel is reported before the block begins, and the peer is described."""
    async with driver.open(endpoint, options(heartbeat=7.0), listener) as link:
        assert listener.log == [("opened", Lane.MAIN, 1)]
        assert (link.peer.product, link.peer.heartbeat, link.peer.frame_max) == ("RabbitMQ", 7.0, 131072)
        assert str(endpoint.port) in link.peer.address


async def test_sends_the_smaller_heartbeat(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """The server's 60 s win over our 600 s."""
    async with driver.open(endpoint, options(heartbeat=600.0), listener) as link:
        assert link.peer.heartbeat == 60.0


async def test_wrong_password(driver: Driver, rabbitmq: PrivateRabbitMQ, caplog: pytest.LogCaptureFixture) -> None:
    """A refused login is AUTHENTICATION, and neither user nor password is seen anywhere."""
    caplog.set_level(logging.DEBUG)
    secret = Endpoint(host="127.0.0.1", port=rabbitmq.port, credentials=Credentials("who-user", "pass-phrase"))
    fault = await fault_of_opening(driver, secret)
    assert (fault.kind, fault.reply_code) == (FaultKind.AUTHENTICATION, 403)
    seen = fault.text + caplog.text
    assert "who-user" not in seen
    assert "pass-phrase" not in seen


async def test_a_new_secret(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """The broker takes a new secret on the live link; a user with a password has none to check."""
    with anyio.fail_after(_PATIENCE):
        async with driver.open(endpoint, options(), listener) as link:
            await link.update_secret("another")
            async with queue(link, "secret") as envelope:
                link.publish(Lane.MAIN, envelope, "m", b"body", None)
                await listener.until_kind("confirmed")


async def test_missing_vhost(driver: Driver, rabbitmq: PrivateRabbitMQ) -> None:
    """530 at connection.open is VHOST (F10)."""
    fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=rabbitmq.port, vhost="no/such %2F"))
    assert (fault.kind, fault.reply_code) == (FaultKind.VHOST, 530)


async def test_vhost_names_are_taken_literally(
    driver: Driver, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """A virtual host may hold slashes, per cent signs and spaces."""
    await blocking(rabbitmq.add_vhost, "a/b %2F ü")
    try:
        odd = Endpoint(host="127.0.0.1", port=rabbitmq.port, vhost="a/b %2F ü")
        async with driver.open(odd, options(), listener):
            assert listener.kinds() == ["opened"]
    finally:
        await blocking(rabbitmq.delete_vhost, "a/b %2F ü")


async def test_refused_port(driver: Driver) -> None:
    """Nobody listens: UNREACHABLE."""
    async with serving(lambda _: anyio.lowlevel.checkpoint()) as port:
        pass  # the port was free a moment ago, and nobody listens there now
    assert (await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port))).kind is FaultKind.UNREACHABLE


async def test_not_amqp(driver: Driver) -> None:
    """A peer that speaks HTTP is PROTOCOL."""

    async def http(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with serving(http) as port:
        fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port))
    assert fault.kind is FaultKind.PROTOCOL
    assert fault.permanent


async def test_another_version_of_amqp(driver: Driver) -> None:
    """A peer that answers with its own protocol header is PROTOCOL."""

    async def other(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(b"AMQP\x00\x01\x00\x00")

    async with serving(other) as port:
        fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port))
    assert fault.kind is FaultKind.PROTOCOL


async def test_mute_server(driver: Driver) -> None:
    """A peer that accepts and says nothing costs no more than `connect_timeout`."""
    async with serving(lambda stream: anyio.sleep_forever()) as port:
        fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port), connect_timeout=0.5)
    assert fault.kind is FaultKind.HANDSHAKE_TIMEOUT


async def test_end_after_login_is_not_asserted_to_be_a_refusal(driver: Driver) -> None:
    """EOF after Start-Ok only hints at the credentials; time may mend it."""

    async def hangs_up(stream: ByteStream) -> None:
        await Peer(stream).greet()

    async with serving(hangs_up) as port:
        fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port))
    assert not fault.permanent
    assert "possible authentication failure" in fault.text


async def test_unusable_tuning(driver: Driver) -> None:
    """frame_max below AMQP's floor is refused without Tune-Ok."""
    answered: list[Any] = []

    async def tunes(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.greet()
        await peer.send(commands.Connection.Tune(2047, 1024, 60))
        answered.append(await peer.receive())

    async with serving(tunes) as port:
        fault = await fault_of_opening(driver, Endpoint(host="127.0.0.1", port=port))
    assert fault.kind is FaultKind.PROTOCOL
    assert not any(isinstance(frame, commands.Connection.TuneOk) for _, frame in answered)


# --- other ways to the broker -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """An authority of our own, and its certificate as a file."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


def _server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def _publish_much(driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str) -> Negotiated:
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        for number in range(1000):
            link.publish(Lane.MAIN, envelope, f"m{number}", bytes(300_000 if number % 100 == 0 else 100), None)
        await listener.until(lambda: len(listener.settled()) == 1000)
        return link.peer


async def test_over_tls(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str, authority: tuple[trustme.CA, Path]
) -> None:
    """A verified certificate; reading and writing at once go well, and the peer says how it is secured."""
    server = await anyio.create_tcp_listener(local_host="127.0.0.1")
    secured = TLSListener(server, _server_context(authority[0], "127.0.0.1"), standard_compatible=False)
    port = server.extra(SocketAttribute.local_port)
    async with relaying(secured, endpoint.port):
        secure = Endpoint(host="127.0.0.1", port=port, tls=True, cafile=str(authority[1]))
        peer = await _publish_much(driver, secure, listener, queue_name)
    assert (peer.tls or "").startswith("TLSv1.")


async def test_tls_for_another_name(driver: Driver, endpoint: Endpoint, authority: tuple[trustme.CA, Path]) -> None:
    """A certificate for another host is refused, and that is permanent."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    secured = TLSListener(listener, _server_context(authority[0], "broker.example"), standard_compatible=False)
    port = listener.extra(SocketAttribute.local_port)
    async with relaying(secured, endpoint.port):
        secure = Endpoint(host="127.0.0.1", port=port, tls=True, cafile=str(authority[1]))
        fault = await fault_of_opening(driver, secure)
    assert fault.kind is FaultKind.TLS
    assert fault.permanent


async def test_through_a_unix_socket(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str, tmp_path: Path
) -> None:
    """A socket in the file system leads to the broker as well."""
    path = tmp_path / "amqp"
    async with relaying(await anyio.create_unix_listener(path), endpoint.port):
        peer = await _publish_much(driver, Endpoint(socket_path=str(path)), listener, queue_name)
    assert peer.address == str(path)


# --- publishing -----------------------------------------------------------------------------------------------------


async def test_tags_count_from_one_and_each_is_confirmed(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Tags are 1, 2, 3 …; each is settled, and the queue holds the bodies in that order."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        tags = [link.publish(Lane.MAIN, envelope, f"m{n}", b"%d" % n, None) for n in range(1, 51)]
        await listener.until(lambda: len(listener.settled()) == 50)
        assert tags == list(range(1, 51))
        assert link.written(1) == 50
        assert await link.get(queue_name, 100) == [b"%d" % n for n in range(1, 51)]


async def test_five_thousand_at_once(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """A burst is confirmed whole, and no nack is invented."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        for number in range(5000):
            link.publish(Lane.MAIN, envelope, f"{number:032d}", bytes(100), None)
        await listener.until(lambda: len(listener.settled()) == 5000)
        assert sorted(listener.settled()) == list(range(1, 5001))
        assert listener.of("nacked") == []


async def test_bodies_of_any_size(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Empty bodies, and bodies around and over frame_max, arrive as they were given."""
    frame = 131072 - 8
    bodies = [bytes([size % 251]) * size for size in (0, 1, frame - 1, frame, frame + 1, 3 * frame)]
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        for body in bodies:
            link.publish(Lane.MAIN, envelope, "m", body, None)
        await listener.until(lambda: len(listener.settled()) == len(bodies))
        assert await link.get(queue_name, 10) == bodies


async def test_a_return_comes_before_its_confirm_with_its_token(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports
) -> None:
    """What no queue takes is returned, with the token, then acked (F3); an empty body too."""
    async with driver.open(endpoint, options(), listener) as link:
        link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "id-1", b"", "t" * 32)
        link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "id-2", b"body", None)
        await listener.until(lambda: len(listener.settled()) == 2)
    (_, first), (_, second) = listener.of("returned")
    assert (first.reply_code, first.routing_key, first.message_id, first.token) == (312, "nowhere", "id-1", "t" * 32)
    assert (second.message_id, second.token, second.body_size) == ("id-2", None, 4)
    kinds = listener.kinds()
    assert kinds.index("returned") < kinds.index("confirmed")


async def test_equal_message_ids_are_told_apart_by_token(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Three publishes of one message_id in flight: the one that is returned is named by its token."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        link.publish(Lane.MAIN, envelope, "same", b"1", "a" * 32)
        link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "same", b"2", "b" * 32)
        link.publish(Lane.MAIN, envelope, "same", b"3", "c" * 32)
        await listener.until(lambda: len(listener.settled()) == 3)
        assert [returned.token for _, returned in listener.of("returned")] == ["b" * 32]
        assert await link.get(queue_name, 10) == [b"1", b"3"]


async def test_a_batch_with_tokens_is_told_apart_too(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Consecutive tags, equal ids, and each return with the token of its own message."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        nowhere = Envelope(routing_key="nowhere")
        envelopes, ids, bodies = [envelope, nowhere] * 3, ["same"] * 6, [b"%d" % number for number in range(6)]
        tokens = [f"{number:032x}" for number in range(6)]
        assert link.publish_batch(envelopes, ids, bodies, tokens) == 1
        await listener.until(lambda: len(listener.settled()) == 6)
        assert [returned.token for _, returned in listener.of("returned")] == tokens[1::2]
        assert await link.get(queue_name, 10) == bodies[::2]


async def test_a_full_queue_nacks(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """reject-publish gives basic.nack for what did not fit, and for nothing else."""
    async with (
        driver.open(endpoint, options(), listener) as link,
        queue(link, queue_name, x_max_length=1, x_overflow="reject-publish") as envelope,
    ):
        link.publish(Lane.MAIN, envelope, "fits", b"1", None)
        await listener.until(lambda: listener.settled() == [1])
        link.publish(Lane.MAIN, envelope, "does not", b"2", None)
        await listener.until_kind("nacked")
        assert listener.settled(kind="nacked") == [2]


async def test_properties_and_headers_arrive(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """A header of each field type and each property is taken, by the broker too."""
    headers: dict[str, Any] = {
        "none": None, "bool": True, "int": 7, "big": 2**40, "float": 0.5, "text": "ü", "bytes": b"\0\xff",
        "list": [1, "two", [3]], "table": {"nested": {"deep": 1}},
    }  # fmt: skip
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name):
        envelope = Envelope(
            routing_key=queue_name, headers=headers, content_type="text/plain", content_encoding="utf-8", priority=3,
            correlation_id="c", reply_to="r", expiration="60000", type="t", user_id="guest", app_id="a",
        )  # fmt: skip
        assert link.validate(envelope, "m", b"body", "t" * 32) is None
        link.publish(Lane.MAIN, envelope, "m", b"body", "t" * 32)
        await listener.until(lambda: listener.settled() == [1])
        assert await link.get(queue_name, 10) == [b"body"]


@pytest.mark.parametrize(
    ("envelope", "message_id"),
    [
        (Envelope(), "x" * 256),
        (Envelope(), "ü" * 128),
        (Envelope(headers={"big": "x" * 131072}), "m"),
        (Envelope(headers={"n" * 256: 1}), "m"),
        (Envelope(headers={"strange": object()}), "m"),  # type: ignore[dict-item]
        (Envelope(headers={"number": 2**64}), "m"),
    ],
    ids=["id of 256", "id of 128 letters of two", "over frame_max", "long name", "no field type", "over 64 bits"],
)
async def test_what_cannot_be_sent_is_said_before(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, envelope: Envelope, message_id: str
) -> None:
    """`validate` gives a reason for what AMQP frames cannot carry."""
    async with driver.open(endpoint, options(), listener) as link:
        assert link.validate(envelope, message_id, b"", None)
        assert link.validate(Envelope(headers={"fits": "x" * 120000}), "x" * 255, b"", "t" * 32) is None


async def test_congested_until_there_is_room(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports, queue_name: str
) -> None:
    """Unsent bytes pile up behind a broker that does not read; when it reads again, room is reported once."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        await blocking(rabbitmq.freeze)
        count = 0
        try:
            while not link.congested and count < 1000:
                count += 1
                link.publish(Lane.MAIN, envelope, "m", bytes(200_000), None)
                await anyio.sleep(0.001)
            assert link.congested
            assert link.written(1) < count
        finally:
            await blocking(rabbitmq.thaw)
        await listener.until_kind("writable")
        await listener.until(lambda: len(listener.settled()) == count)
        assert not link.congested
        assert len(listener.of("writable")) == 1


# --- channels -------------------------------------------------------------------------------------------------------


async def test_a_closed_channel_is_replaced_on_the_same_link(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """A missing exchange closes the channel; the next one has tags from 1."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        link.publish(Lane.MAIN, Envelope(exchange="missing"), "m", b"", None)
        await listener.until_kind("opened", 2)
        ((lane, channel, fault, written),) = listener.of("closed")
        assert (lane, channel, written) == (Lane.MAIN, 1, 1)
        assert (fault.kind, fault.reply_code) == (FaultKind.CHANNEL_CLOSED, 404)
        assert link.publish(Lane.MAIN, envelope, "m", b"", None) == 1
        await listener.until(lambda: listener.settled(2) == [1])
        assert link.written(1) == 1


async def test_a_closing_channel_settles_nothing(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Publishes around the guilty one: no nack is made up (F6), and what is written late harms nobody."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        for number in range(300):
            there = Envelope(exchange="missing") if number == 100 else envelope
            link.publish(Lane.MAIN, there, f"m{number}", bytes(1000), None)
        await listener.until_kind("opened", 2)
        link.publish(Lane.MAIN, envelope, "after", b"after", None)
        await listener.until(lambda: listener.settled(2) == [1])
        ((_, _, _, written),) = listener.of("closed")
        assert 101 <= written == link.written(1)
        assert listener.of("nacked") == []
        assert max(listener.settled(1), default=0) <= 100
        bodies = await link.get(queue_name, 1000)
        assert bodies[-1] == b"after"
        assert len(listener.settled(1)) <= len(bodies) - 1 <= 100


async def test_again_and_again(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """Sixty channels in a row are closed and replaced, and no more than the last few of them are kept."""
    before = epochs()
    async with driver.open(endpoint, options(), listener) as link:
        for round_ in range(1, 61):
            link.publish(Lane.MAIN, Envelope(exchange="missing"), "m", b"", None)
            await listener.until_kind("opened", round_ + 1)
        assert [channel for _, channel in listener.of("opened")] == list(range(1, 62))
        assert len(epochs() - before) <= 10


def epochs() -> set[Epoch | Publisher]:
    """All that exist in this process. A failed test keeps its own, so only what is new counts."""
    gc.collect()
    return {each for each in gc.get_objects() if isinstance(each, (Epoch, Publisher))}


async def test_suspects_have_a_lane_of_their_own(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """The suspect channel opens on demand, once; when the broker closes it, the main one goes on."""
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name) as envelope:
        link.open_suspect_channel()
        link.open_suspect_channel()
        await listener.until_kind("opened", 2)
        assert link.publish(Lane.MAIN, envelope, "m", b"", None) == 1
        assert link.publish(Lane.SUSPECT, Envelope(exchange="missing"), "s", b"", None) == 1
        await listener.until_kind("closed")
        assert link.publish(Lane.MAIN, envelope, "m", b"", None) == 2
        await listener.until(lambda: len(listener.settled(1)) == 2)
        ((lane, channel, _, written),) = listener.of("closed")
        assert (lane, channel, written) == (Lane.SUSPECT, 2, 1)
        link.open_suspect_channel()
        await listener.until_kind("opened", 3)
        assert listener.of("opened")[2] == (Lane.SUSPECT, 3)


# --- the topology and the rest --------------------------------------------------------------------------------------


async def test_declares_in_order(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Exchange, queue and binding; then a message takes that way."""
    async with driver.open(endpoint, options(), listener) as link:
        exchange = Exchange(f"x.{queue_name}", "topic", durable=False, auto_delete=True)
        await link.declare(
            [exchange, Queue(queue_name), Binding(source=exchange.name, destination=queue_name, routing_key="a.#")]
        )
        await link.declare([exchange, Queue(queue_name, passive=True)])
        link.publish(Lane.MAIN, Envelope(exchange=exchange.name, routing_key="a.b"), "m", b"there", None)
        await listener.until(lambda: listener.settled() == [1])
        assert await link.get(queue_name, 1) == [b"there"]
        assert await link.get(queue_name, 1) == []
        await link.delete_queue(queue_name)


@pytest.mark.parametrize("code", [404, 406])
async def test_a_refused_declaration_names_its_entity(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str, code: int
) -> None:
    """A mismatch is a TOPOLOGY fault about the entity; it leaves `declare`, and the block, bare."""
    wanted = Queue("no.such.queue", passive=True) if code == 404 else Queue(queue_name, durable=False)
    with pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name):
            await link.declare([wanted])
    assert (down.value.fault.kind, down.value.fault.reply_code) == (FaultKind.TOPOLOGY, code)
    assert down.value.fault.entity == str(wanted)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Exchange("warrener.no.such.type", "no-such-type"), "exchange type"),
        (Queue("warrener.bad.argument", arguments={"x-message-ttl": "soon"}), "one of its arguments"),
    ],
    ids=["exchange type", "argument"],
)
async def test_a_definition_that_the_broker_never_takes(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, wanted: Exchange | Queue, said: str
) -> None:
    """A lasting refusal about the entity, though RabbitMQ closes the connection for one and the channel for the other."""
    with pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(), listener) as link:
            await link.declare([wanted])
            await sleep_until_cancelled()
    fault = down.value.fault
    assert (fault.kind, fault.entity, said in fault.text) == (FaultKind.TOPOLOGY, str(wanted), True)


async def test_what_was_declared_can_be_undone(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports, queue_name: str
) -> None:
    """Bindings of queues and exchanges, a server-named queue; unbinding, purging and deleting, with their counts."""
    outer = Exchange(f"outer.{queue_name}", "fanout", durable=False, auto_delete=True)
    inner = Exchange(f"inner.{queue_name}", "fanout", durable=False, auto_delete=True)
    own = Queue.server_named()
    to_inner, to_own = Binding(source=outer.name, destination=inner), Binding(source=inner.name, destination=own)
    async with driver.open(endpoint, options(), listener) as link, queue(link, queue_name):
        to_queue = Binding(source=outer.name, destination=queue_name)
        names = await link.declare([outer, inner, own, to_inner, to_own, to_queue])
        (name,) = names
        assert name.startswith("amq.gen")

        async def publish(count: int) -> None:
            first = len(listener.settled())
            for _ in range(count):
                link.publish(Lane.MAIN, Envelope(exchange=outer.name), "m", b"", None)
            await listener.until(lambda: len(listener.settled()) == first + count)

        await publish(2)
        await link.unbind(to_inner)
        await publish(1)
        assert await link.purge(queue_name) == 3
        assert await link.delete_queue(name) == 2
        await link.unbind(to_queue)


# --- blocked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_blocked_and_unblocked(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports, when: str
) -> None:
    """An alarm that begins before or after the link was opened is reported, and so is its end; then the ack comes."""
    if when == "before":
        await blocking(rabbitmq.memory_alarm, True)
    try:
        async with driver.open(endpoint, options(), listener) as link:
            if when == "after":
                await blocking(rabbitmq.memory_alarm, True)
            link.publish(Lane.MAIN, Envelope(routing_key="nowhere", mandatory=False), "m", b"", None)
            await listener.until_kind("blocked")
            await blocking(rabbitmq.memory_alarm, False)
            await listener.until(lambda: listener.settled() == [1])
            await listener.until_kind("unblocked")  # the broker may ack before it says so
            assert [kind for kind in listener.kinds() if "blocked" in kind] == ["blocked", "unblocked"]
    finally:
        await blocking(rabbitmq.memory_alarm, False)


async def test_closing_while_blocked_is_bounded(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """The broker does not read our close while an alarm lasts (F7); the link ends all the same."""
    await blocking(rabbitmq.memory_alarm, True)
    try:
        with anyio.fail_after(_PATIENCE):
            async with driver.open(endpoint, options(close_timeout=0.3, abort_timeout=0.3), listener) as link:
                link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "m", b"", None)
                await listener.until_kind("blocked")
    finally:
        await blocking(rabbitmq.memory_alarm, False)


# --- the end of a link ----------------------------------------------------------------------------------------------


async def test_a_killed_broker_ends_the_link(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """The body is cancelled and one bare LinkDown leaves; what was written can still be asked."""
    with pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(), listener) as link:
            link.publish(Lane.MAIN, Envelope(routing_key="nowhere", mandatory=False), "m", b"", None)
            await listener.until_kind("confirmed")
            try:
                await blocking(rabbitmq.kill)
                await sleep_until_cancelled()
            finally:
                with anyio.CancelScope(shield=True):
                    await blocking(rabbitmq.start)
    assert down.value.fault.kind is FaultKind.CONNECTION_LOST
    assert link.written(1) == 1


async def test_a_frozen_broker_is_silent(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """Two heartbeats without a byte end the link."""
    try:
        with pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, options(heartbeat=1.0), listener):
                await blocking(rabbitmq.freeze)
                await sleep_until_cancelled()
    finally:
        await blocking(rabbitmq.thaw)
    assert down.value.fault.kind is FaultKind.SILENT


@pytest.mark.full  # a busy machine may keep this process, too, from sending for two seconds
async def test_an_idle_link_lives_by_heartbeats(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """Four heartbeat intervals without a publish, and the link still confirms."""
    async with driver.open(endpoint, options(heartbeat=1.0), listener) as link:
        with anyio.move_on_after(4):
            await anyio.sleep_forever()
        link.publish(Lane.MAIN, Envelope(routing_key="nowhere", mandatory=False), "m", b"", None)
        await listener.until(lambda: listener.settled() == [1])


async def test_a_stalled_write_ends_the_link(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """With heartbeats off, a peer that reads nothing is found by `write_stall_timeout`."""
    try:
        with pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, options(heartbeat=0.0, write_stall_timeout=0.5), listener) as link:
                await blocking(rabbitmq.freeze)
                for _ in range(100):
                    link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "m", bytes(1_000_000), None)
                await sleep_until_cancelled()
    finally:
        await blocking(rabbitmq.thaw)
    assert down.value.fault.kind is FaultKind.STALLED
    assert link.written(1) < 100


async def test_an_operator_closes_the_connection(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """connection.close 320 is CLOSED_BY_BROKER, and orderly."""
    with pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(), listener):
            await blocking(rabbitmq.close_all_connections, "by the test\r\n\x1b[31m")
            await sleep_until_cancelled()
    fault = down.value.fault
    assert (fault.kind, fault.reply_code, fault.orderly) == (FaultKind.CLOSED_BY_BROKER, 320, True)
    assert fault.text.isprintable()


async def test_a_close_from_the_broker_is_answered(driver: Driver, listener: RecordingReports) -> None:
    """Close-Ok is the last thing that the broker hears."""
    heard: list[str] = []
    hung_up = anyio.Event()

    async def closes(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.open()
        await peer.send(commands.Connection.Close(320, "bye", 0, 0))
        heard.append((await peer.receive())[1].name)
        with pytest.raises(anyio.EndOfStream):
            await peer.receive()
        hung_up.set()

    async with serving(closes) as port:
        with pytest.raises(LinkDown):
            async with driver.open(Endpoint(host="127.0.0.1", port=port), options(), listener):
                await sleep_until_cancelled()
        with anyio.fail_after(_PATIENCE):
            await hung_up.wait()
    assert heard == ["Connection.CloseOk"]


async def test_leaving_shakes_hands(driver: Driver, listener: RecordingReports) -> None:
    """A normal exit sends connection.close, waits for Close-Ok, and only then ends the connection."""
    heard: list[str] = []
    hung_up = anyio.Event()

    async def answers(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.open()
        heard.append((await peer.receive())[1].name)
        await peer.send(commands.Connection.CloseOk())
        with pytest.raises(anyio.EndOfStream):
            await peer.receive()
        hung_up.set()

    async with serving(answers) as port:
        async with driver.open(Endpoint(host="127.0.0.1", port=port), options(), listener):
            pass
        with anyio.fail_after(_PATIENCE):
            await hung_up.wait()
    assert heard == ["Connection.Close"]


async def test_closing_a_frozen_peer_is_bounded(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports
) -> None:
    """`close_timeout` and `abort_timeout` bound a close that nobody answers, heartbeat or no heartbeat."""
    try:
        with anyio.fail_after(_PATIENCE):
            async with driver.open(endpoint, options(close_timeout=0.3, abort_timeout=0.3, heartbeat=60.0), listener):
                await blocking(rabbitmq.freeze)
    finally:
        await blocking(rabbitmq.thaw)


async def test_abort_ends_the_block_with_its_fault(
    driver: Driver, endpoint: Endpoint, listener: RecordingReports
) -> None:
    """The first fault given to `abort` is the one that leaves."""
    first, second = Fault(FaultKind.CONFIRM_OVERDUE, "first"), Fault(FaultKind.CLOSED, "second")
    with pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options(), listener) as link:
            link.abort(first)
            link.abort(second)
            await sleep_until_cancelled()
    assert down.value.fault == first


async def test_what_the_body_raises_leaves_bare(driver: Driver, endpoint: Endpoint, listener: RecordingReports) -> None:
    """An exception of the owner's is not wrapped in a group."""
    with pytest.raises(ZeroDivisionError):
        async with driver.open(endpoint, options(), listener):
            raise ZeroDivisionError


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128])
async def test_cancelled_at_any_moment_nothing_is_left(
    driver: Driver, endpoint: Endpoint, rabbitmq: PrivateRabbitMQ, listener: RecordingReports, milliseconds: int
) -> None:
    """Wherever the opening or the block is cancelled, the connection ends, and no thread and no task stay."""
    tasks_before = len(anyio.get_running_tasks())
    with anyio.fail_after(_PATIENCE), anyio.move_on_after(milliseconds / 1000) as scope:
        async with driver.open(endpoint, options(), listener) as link:
            while True:
                link.publish(Lane.MAIN, Envelope(routing_key="nowhere"), "m", b"", None)
                await anyio.sleep(0.001)
    assert scope.cancelled_caught
    assert own_threads() == []
    assert len(anyio.get_running_tasks()) == tasks_before
    with anyio.fail_after(_PATIENCE):
        while await blocking(rabbitmq.connection_count):
            await anyio.sleep(0.02)


# --- peers that break the protocol ----------------------------------------------------------------------------------


async def ended_by(
    driver: Driver, listener: RecordingReports, script: Callable[[Peer, int], Any], **changes: Any
) -> Fault:
    """Open a link to a scripted peer, publish one message and let `script` answer; the fault that ends the link."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        channel = await peer.open()
        while not isinstance((await peer.receive())[1], commands.Basic.Publish):
            pass
        await script(peer, channel)
        await anyio.sleep_forever()

    async with serving(handle) as port:
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(Endpoint(host="127.0.0.1", port=port), options(**changes), listener) as link:
                link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
                await anyio.sleep_forever()
    return down.value.fault


@pytest.mark.parametrize("tag", [0, 2, 2**63])
async def test_a_confirm_for_an_unknown_tag_ends_the_link(driver: Driver, listener: RecordingReports, tag: int) -> None:
    """A tag that was never published cannot be mapped: nothing is settled, the link ends (I9)."""
    ack = struct.pack(">HHQB", 60, 80, tag, 1)

    def acks(peer: Peer, channel: int) -> Any:
        return peer.stream.send(struct.pack(">BHI", 1, channel, len(ack)) + ack + b"\xce")

    fault = await ended_by(driver, listener, acks)
    assert fault.kind is FaultKind.ILLEGAL_FRAME
    assert listener.settled() == []


@pytest.mark.parametrize(
    "data",
    [b"\x01\x00\x00\x7f\xff\xff\xff", b"\x09\x00\x00\x00\x00\x00\x00\xce", b"\x08\x00\x01\x00\x00\x00\x00\xce",
     b"\x08\x00\x00\x00\x00\x00\x00\x00", b"\x01\x00\x00\x00\x00\x00\x04\x00\x63\x00\x63\xce"],
    ids=["over frame_max", "unknown type", "heartbeat on a channel", "no end byte", "unknown method"],
)  # fmt: skip
async def test_garbage_ends_the_link(driver: Driver, listener: RecordingReports, data: bytes) -> None:
    """An impossible frame is seen at once, before anything is allocated for it."""
    fault = await ended_by(driver, listener, lambda peer, _: peer.stream.send(data))
    assert fault.kind in (FaultKind.ILLEGAL_FRAME, FaultKind.CONNECTION_LOST)


async def test_a_frame_that_drips_ends_the_link(driver: Driver, listener: RecordingReports) -> None:
    """Bytes of one unfinished frame do not keep a link alive beyond `frame_timeout`."""

    async def drip(peer: Peer, channel: int) -> None:
        await peer.stream.send(b"\x01\x00\x00\x00\x00\x01\x00")
        for _ in range(200):
            await peer.stream.send(b"\x00")
            await anyio.sleep(0.05)

    fault = await ended_by(driver, listener, drip, frame_timeout=0.5)
    assert fault.kind is FaultKind.STALLED


async def test_a_multiple_ack_settles_below_an_already_settled_tag(driver: Driver, listener: RecordingReports) -> None:
    """ack(3), then ack(3, multiple): tags 1 and 2 are settled by it (F4)."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        channel = await peer.open()
        published = 0
        while published < 3:
            published += isinstance((await peer.receive())[1], commands.Basic.Publish)
        await peer.send(commands.Basic.Ack(3), channel)
        await peer.send(commands.Basic.Ack(3, multiple=True), channel)
        await anyio.sleep_forever()

    async with serving(handle) as port:
        here = Endpoint(host="127.0.0.1", port=port)
        async with driver.open(here, options(close_timeout=0.1, abort_timeout=0.2), listener) as link:
            for number in range(3):
                link.publish(Lane.MAIN, Envelope(routing_key="q"), f"m{number}", b"", None)
            await listener.until(lambda: len(listener.settled()) == 3)
    assert listener.settled() == [3, 1, 2]
