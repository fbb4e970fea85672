"""Brokers that are odd, slow or hostile, as scripts, against each driver on each event loop; no real broker is needed."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import anyio
import pamqp.frame
import pytest
from anyio.abc import ByteStream, SocketAttribute
from attrs import evolve
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from warrener.drivers import _dial
from warrener.drivers.aiormq import AiormqDriver
from warrener.drivers.base import Driver, Lane, Link, LinkDown, LinkOptions
from warrener.drivers.native import NativeDriver
from warrener.errors import Fault, FaultKind
from warrener.records import Credentials, Endpoint, Envelope
from warrener.topology import Binding, Exchange, Queue

from .recording import Peer, RecordingReports, serving

pytestmark = pytest.mark.anyio

#: Guards against hanging.
_PATIENCE = 60.0
_DRIVERS: dict[str, Callable[[], Driver]] = {"aiormq": AiormqDriver, "native": NativeDriver}

Script = Callable[[Peer, int], Awaitable[object]]


@pytest.fixture(params=sorted(_DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each driver that there is."""
    return _DRIVERS[request.param]()


@pytest.fixture
def listener() -> RecordingReports:
    """What the link reports."""
    return RecordingReports()


@asynccontextmanager
async def broker(script: Script) -> AsyncGenerator[Endpoint]:
    """A broker that follows the script once its client has a publishing channel, and then goes on reading."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await script(peer, await peer.open())
        await read_on(peer)

    async with serving(handle) as port:
        yield Endpoint(host="127.0.0.1", port=port)


async def read_on(peer: Peer) -> None:
    """Answer closes and read everything else."""
    while True:
        channel, frame = await peer.receive()
        match frame:
            case commands.Channel.Open():
                await peer.send(commands.Channel.OpenOk(), channel)
            case commands.Channel.Close():
                await peer.send(commands.Channel.CloseOk(), channel)
            case commands.Connection.Close():
                await peer.send(commands.Connection.CloseOk())


async def until(peer: Peer, kind: type[Any], count: int = 1) -> tuple[int, Any]:
    """Read until the method has come `count` times; a channel that is opened meanwhile is answered."""
    while True:
        channel, frame = await peer.receive()
        if isinstance(frame, commands.Channel.Open):
            await peer.send(commands.Channel.OpenOk(), channel)
        count -= isinstance(frame, kind)
        if not count:
            return channel, frame


_QUICK = LinkOptions(close_timeout=0.2, abort_timeout=0.2)


@asynccontextmanager
async def linked(driver: Driver, listener: RecordingReports, script: Script, **changes: Any) -> AsyncGenerator[Link]:
    """A link to a broker that follows the script."""
    async with broker(script) as endpoint:
        with anyio.fail_after(_PATIENCE):
            async with driver.open(endpoint, evolve(_QUICK, **changes), listener) as link:
                yield link


async def ended(
    driver: Driver,
    listener: RecordingReports,
    script: Script,
    use: Callable[[Link], Awaitable[object]] | None = None,
    **changes: Any,
) -> Fault:
    """The fault that ends a link which `use` uses (default: publishes one message) and then keeps."""

    async def publish_one(link: Link) -> None:
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)

    async with broker(script) as endpoint:
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, evolve(_QUICK, **changes), listener) as link:
                await (use or publish_one)(link)
                await anyio.sleep_forever()
    return down.value.fault


async def test_nothing_follows_our_close(driver: Driver, listener: RecordingReports) -> None:
    """The broker's close of the channel and its flow have crossed our close of the connection; they get no answer."""
    followed: list[object] = []

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Connection.Close)
        await peer.send(commands.Channel.Flow(active=False), channel)
        await peer.send(commands.Channel.Close(541, "INTERNAL_ERROR", 0, 0), channel)
        await peer.send(commands.Connection.CloseOk())
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            followed.append(await peer.receive())

    async with linked(driver, listener, script, close_timeout=5.0):
        pass
    assert followed == []


_INTERNAL_ERROR = commands.Channel.Close(541, "INTERNAL_ERROR", 0, 0)


@pytest.mark.parametrize("kind", [commands.Channel.Open, commands.Confirm.Select, commands.Basic.Qos])
async def test_nothing_is_sent_on_a_publishing_channel_that_closes_as_it_opens(
    driver: Driver, listener: RecordingReports, kind: type[Any]
) -> None:
    """The close is in the packet of an answer. RabbitMQ would close the whole connection for a method on that channel.

    The link goes on with another channel, or it ends with the broker's reason.
    """
    answers = {
        commands.Channel.Open: commands.Channel.OpenOk(),
        commands.Confirm.Select: commands.Confirm.SelectOk(),
        commands.Basic.Qos: commands.Basic.QosOk(),
    }
    seen: list[str] = []
    up = anyio.Event()
    answered = anyio.Event()

    async def script(peer: Peer, channel: int) -> None:
        await up.wait()
        await peer.send(_INTERNAL_ERROR, channel)
        await until(peer, commands.Channel.CloseOk)
        number = 0
        while True:
            channel, frame = await peer.receive()
            if number and channel == number:
                seen.append(frame.name)
                answered.set()
            elif isinstance(frame, commands.Connection.Close):
                await peer.send(commands.Connection.CloseOk())
            elif type(frame) in answers:
                data = pamqp.frame.marshal(answers[type(frame)], channel)
                if type(frame) is kind and not number:
                    number = channel
                    data += pamqp.frame.marshal(_INTERNAL_ERROR, channel)
                await peer.stream.send(data)

    async with broker(script) as endpoint:
        fault: Fault | None = None
        with anyio.fail_after(_PATIENCE):
            try:
                async with driver.open(endpoint, evolve(_QUICK, close_timeout=5.0), listener) as link:
                    up.set()
                    await answered.wait()
                    await listener.until(lambda: len(listener.of("opened")) == 3)
                    link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
            except LinkDown as down:
                fault = down.fault
    if fault is None:
        assert seen == ["Channel.CloseOk"]
    else:
        assert "INTERNAL_ERROR" in fault.text
        assert seen in (["Channel.CloseOk"], [])  # a link that ends need not answer


async def _answer_as_usual(peer: Peer, channel: int, frame: object) -> None:
    match frame:
        case commands.Channel.Open():
            await peer.send(commands.Channel.OpenOk(), channel)
        case commands.Queue.Declare():
            await peer.send(commands.Queue.DeclareOk("q", 0, 0), channel)
        case commands.Channel.Close():
            await peer.send(commands.Channel.CloseOk(), channel)
        case commands.Connection.Close():
            await peer.send(commands.Connection.CloseOk())


async def test_no_request_is_sent_on_a_channel_that_closes_as_it_opens(
    driver: Driver, listener: RecordingReports
) -> None:
    """The caller learns the broker's reason, and the link goes on."""
    seen: list[str] = []
    answered = anyio.Event()

    async def script(peer: Peer, _: int) -> None:
        number, _ = await peer.receive()
        await peer.stream.send(
            pamqp.frame.marshal(commands.Channel.OpenOk(), number) + pamqp.frame.marshal(_INTERNAL_ERROR, number)
        )
        while True:
            channel, frame = await peer.receive()
            if channel == number:
                seen.append(frame.name)
            match frame:
                case commands.Queue.Declare() if not answered.is_set() and channel == number:
                    pass  # a driver that does not wait for open-ok; the broker drops the request
                case commands.Channel.CloseOk():
                    answered.set()
                case _:
                    await _answer_as_usual(peer, channel, frame)

    async with linked(driver, listener, script, close_timeout=5.0) as link:
        with pytest.raises(LinkDown, match="INTERNAL_ERROR"):
            await link.declare([Queue("q")])
        await answered.wait()
        assert await link.declare([Queue("q")]) == ["q"]
    behind = seen[seen.index("Channel.CloseOk") + 1 :]
    assert behind[:1] in ([], ["Channel.Open"])


async def test_the_closes_of_a_channel_that_is_not_open_yet_cross(driver: Driver, listener: RecordingReports) -> None:
    """The caller leaves before open-ok; the broker closes the channel, and answers our close. The link goes on."""
    leave = anyio.Event()

    async def script(peer: Peer, _: int) -> None:
        number, _ = await peer.receive()
        leave.set()
        await until(peer, commands.Channel.Close)
        await peer.send(_INTERNAL_ERROR, number)
        await peer.send(commands.Channel.CloseOk(), number)
        while True:
            channel, frame = await peer.receive()
            await _answer_as_usual(peer, channel, frame)

    async with linked(driver, listener, script, close_timeout=5.0) as link:
        async with anyio.create_task_group() as group:
            group.start_soon(link.declare, [Queue("q")])
            await leave.wait()
            group.cancel_scope.cancel()
        assert await link.declare([Queue("q")]) == ["q"]


# --- requests -------------------------------------------------------------------------------------------------------


async def test_declarations_are_pipelined(driver: Driver, listener: RecordingReports) -> None:
    """The broker answers none of 200 declarations before it has all of them."""

    async def script(peer: Peer, _: int) -> None:
        channel, _ = await until(peer, commands.Queue.Declare, 200)
        for number in range(200):
            await peer.send(commands.Queue.DeclareOk(f"q{number}", 0, 0), channel)

    async with linked(driver, listener, script) as link:
        names = await link.declare([Queue(f"q{number}") for number in range(200)])
    assert names == [f"q{number}" for number in range(200)]


async def test_the_deadline_is_per_answer(driver: Driver, listener: RecordingReports) -> None:
    """The fault says which declaration has no answer, how many are done, and which setting rules."""

    async def script(peer: Peer, _: int) -> None:
        channel, _ = await until(peer, commands.Queue.Declare, 5)
        for number in range(3):
            await peer.send(commands.Queue.DeclareOk(f"q{number}", 0, 0), channel)

    async def use(link: Link) -> None:
        await link.declare([Queue(f"q{number}") for number in range(5)])

    fault = await ended(driver, listener, script, use, declare_timeout=0.3)
    assert fault.kind is FaultKind.STALLED
    for part in ("queue 'q3'", "0.3 s (declare_timeout)", "the first 3 of 5 declarations are done"):
        assert part in fault.text


async def test_a_refusal_is_told_at_once(driver: Driver, listener: RecordingReports) -> None:
    """The first refusal raises, with its entity, though the broker answers nothing more; the link lives on."""

    async def script(peer: Peer, _: int) -> None:
        channel, _ = await until(peer, commands.Queue.Declare, 4)
        await peer.send(commands.Queue.DeclareOk("q0", 0, 0), channel)
        text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q1'"
        await peer.send(commands.Channel.Close(406, text, 50, 10), channel)

    async with linked(driver, listener, script, declare_timeout=_PATIENCE) as link:
        with pytest.raises(LinkDown) as down:
            await link.declare([Queue(f"q{number}") for number in range(4)])
        assert listener.kinds() == ["opened"]
    fault = down.value.fault
    assert (fault.kind, fault.entity) == (FaultKind.TOPOLOGY, "queue 'q1'")
    assert "exists with another definition" in fault.text


@pytest.mark.parametrize(
    ("code", "text", "kind", "said"),
    [
        (
            406,
            "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {unacceptable_type,longstr}",
            FaultKind.TOPOLOGY,
            "one of its arguments",
        ),
        (
            404,
            "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor or down or inaccessible",
            FaultKind.CHANNEL_CLOSED,
            "could not be declared now",
        ),
        (404, "NOT_FOUND - no queue 'q' in vhost '/'", FaultKind.TOPOLOGY, "does not exist"),
    ],
)
async def test_refusals_are_told_apart(
    driver: Driver, listener: RecordingReports, code: int, text: str, kind: FaultKind, said: str
) -> None:
    """An argument of the wrong type is no other definition; a queue whose node is down is no lasting refusal."""

    async def script(peer: Peer, _: int) -> None:
        channel, _ = await until(peer, commands.Queue.Declare)
        await peer.send(commands.Channel.Close(code, text, 50, 10), channel)

    async with linked(driver, listener, script) as link:
        with pytest.raises(LinkDown) as down:
            await link.declare([Queue("q")])
    assert (down.value.fault.kind, said in down.value.fault.text) == (kind, True)


async def test_an_exchange_type_that_does_not_exist(driver: Driver, listener: RecordingReports) -> None:
    """RabbitMQ closes the whole connection; the fault is about the exchange all the same, and permanent."""

    async def script(peer: Peer, _: int) -> None:
        await until(peer, commands.Exchange.Declare)
        text = "COMMAND_INVALID - unknown exchange type 'x-fancy'"
        await peer.send(commands.Connection.Close(503, text, 40, 10))

    async def use(link: Link) -> None:
        await link.declare([Exchange("fancy", "x-fancy"), Queue("q")])

    fault = await ended(driver, listener, script, use)
    assert (fault.kind, fault.entity, fault.permanent) == (FaultKind.TOPOLOGY, "exchange 'fancy'", True)
    assert "exchange type" in fault.text


async def test_requests_that_end_things(driver: Driver, listener: RecordingReports) -> None:
    """Unbinding, purging and deleting: each is one method, and the counts come back."""
    seen: list[str] = []
    answers: dict[type[Any], Any] = {
        commands.Queue.Unbind: commands.Queue.UnbindOk(),
        commands.Exchange.Unbind: commands.Exchange.UnbindOk(),
        commands.Exchange.Bind: commands.Exchange.BindOk(),
        commands.Queue.Purge: commands.Queue.PurgeOk(7),
        commands.Queue.Delete: commands.Queue.DeleteOk(8),
        commands.Queue.Declare: commands.Queue.DeclareOk("amq.gen-1", 0, 0),
        commands.Queue.Bind: commands.Queue.BindOk(),
        commands.Channel.Open: commands.Channel.OpenOk(),
        commands.Channel.Close: commands.Channel.CloseOk(),
    }

    async def script(peer: Peer, _: int) -> None:
        while True:
            channel, frame = await peer.receive()
            if type(frame) not in answers:
                return
            seen.append(frame.name)
            await peer.send(answers[type(frame)], channel)

    to_exchange = Binding(source="a", destination=Exchange("b"), routing_key="k")
    server_named = Queue.server_named()
    async with linked(driver, listener, script) as link:
        names = await link.declare([to_exchange, server_named, Binding(source="a", destination=server_named)])
        assert names == ["amq.gen-1"]
        await link.unbind(to_exchange)
        await link.unbind(Binding(source="a", destination="q", routing_key="k"))
        assert await link.purge("q") == 7
        assert await link.delete_queue("q") == 8
    assert [name for name in seen if not name.startswith("Channel.")] == [
        "Exchange.Bind", "Queue.Declare", "Queue.Bind", "Exchange.Unbind", "Queue.Unbind", "Queue.Purge", "Queue.Delete",
    ]  # fmt: skip


async def test_answers_to_a_caller_that_has_left(driver: Driver, listener: RecordingReports) -> None:
    """A cancelled call leaves no answer behind: the next call gets its own."""
    asked = anyio.Event()
    gone = anyio.Event()

    async def script(peer: Peer, _: int) -> None:
        channel, _ = await until(peer, commands.Queue.Declare)
        asked.set()
        await gone.wait()
        await peer.send(commands.Queue.DeclareOk("first", 0, 0), channel)
        await until(peer, commands.Channel.Close)
        await peer.send(commands.Channel.CloseOk(), channel)
        channel, _ = await until(peer, commands.Queue.Declare)
        await peer.send(commands.Queue.DeclareOk("second", 0, 0), channel)

    async with linked(driver, listener, script) as link:
        async with anyio.create_task_group() as group:
            group.start_soon(link.declare, [Queue("first")])
            await asked.wait()
            group.cancel_scope.cancel()
        gone.set()
        assert await link.declare([Queue("second")]) == ["second"]


# --- suspects and confirms ------------------------------------------------------------------------------------------

_LARGE = bytes(48 * 1024 * 1024)


async def test_a_channel_that_is_closed_inside_a_message(driver: Driver, listener: RecordingReports) -> None:
    """The broker has only the method of a large message: it is begun and not written, and so a suspect."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish, 2)
        await peer.send(commands.Channel.Close(404, "NOT_FOUND - no exchange 'missing'", 60, 40), channel)
        await listener_has_closed.wait()

    listener_has_closed = anyio.Event()
    async with linked(driver, listener, script) as link:
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "a", b"small", None)
        link.publish(Lane.MAIN, Envelope(exchange="missing"), "b", _LARGE, None)
        await listener.until_kind("closed")
        ((_, channel, fault, written),) = listener.of("closed")
        listener_has_closed.set()
        assert (channel, fault.reply_code, written) == (1, 404, 1)
        assert (link.written(1), link.begun(1)) == (1, 2)


@pytest.mark.parametrize("confirm", [commands.Basic.Ack(1), commands.Basic.Nack(1)])
async def test_a_confirm_before_the_last_byte(driver: Driver, listener: RecordingReports, confirm: Any) -> None:
    """An answer for a message of which the broker does not have all bytes is a protocol fault, and confirms nothing."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(confirm, channel)
        await anyio.sleep_forever()

    async def use(link: Link) -> None:
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", _LARGE, None)

    fault = await ended(driver, listener, script, use)
    assert fault.kind is FaultKind.ILLEGAL_FRAME
    assert listener.of("confirmed") == listener.of("nacked") == []


@pytest.mark.parametrize("content", ["none", "header only"])
async def test_a_return_without_its_content(driver: Driver, listener: RecordingReports, content: str) -> None:
    """An ack inside the content of a return is a protocol fault: it must not become a receipt."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Basic.Return(312, "NO_ROUTE", "", "q"), channel)
        if content == "header only":
            await peer.send(ContentHeader(body_size=4, properties=commands.Basic.Properties()), channel)
        await peer.send(commands.Basic.Ack(1), channel)

    fault = await ended(driver, listener, script)
    assert fault.kind is FaultKind.ILLEGAL_FRAME
    assert listener.kinds() == ["opened"]


async def test_a_confirm_where_nothing_is_published(driver: Driver, listener: RecordingReports) -> None:
    """A confirm on a channel that is not one of ours is a protocol fault."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Basic.Ack(1), channel + 5)

    assert (await ended(driver, listener, script)).kind is FaultKind.ILLEGAL_FRAME


@pytest.mark.parametrize("away", [0, 1, 900], ids=["our channel", "the next", "a far one"])
@pytest.mark.parametrize(
    "frame",
    [
        commands.Queue.DeclareOk("q", 0, 0), commands.Channel.OpenOk(), commands.Basic.QosOk(), commands.Basic.GetEmpty(),
        commands.Confirm.SelectOk(), commands.Channel.CloseOk(), commands.Tx.SelectOk(), commands.Basic.Cancel("tag"),
        commands.Basic.Deliver("tag", 1, False, "", "q"), commands.Connection.Blocked("on a channel"),
        ContentHeader(body_size=2**40, properties=commands.Basic.Properties()), ContentBody(b"x"),
    ],
    ids=lambda frame: frame.name,
)  # fmt: skip
async def test_frames_that_were_not_asked_for(
    driver: Driver, listener: RecordingReports, frame: Any, away: int
) -> None:
    """An answer without a request, a message without a consumer, a content without a method: a protocol fault, at once."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(frame, channel + away)

    assert (await ended(driver, listener, script)).kind is FaultKind.ILLEGAL_FRAME
    assert listener.kinds() == ["opened"]


async def test_a_close_of_a_channel_that_is_not_open(driver: Driver, listener: RecordingReports) -> None:
    """It is a protocol fault: 60,000 of them would be as many texts to keep."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Channel.Close(404, "NOT_FOUND", 60, 40), channel + 70)

    assert (await ended(driver, listener, script)).kind is FaultKind.ILLEGAL_FRAME


async def test_flow_stopped_in_the_packet_of_qos_ok(driver: Driver, listener: RecordingReports) -> None:
    """channel.flow counts from the first moment of the channel, and is undone by its opposite or the channel's end."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.greet()
        await peer.send(commands.Connection.Tune(2047, 131072, 60))
        await until(peer, commands.Connection.Open)
        await peer.send(commands.Connection.OpenOk())
        channel, _ = await until(peer, commands.Confirm.Select)
        await peer.send(commands.Confirm.SelectOk(), channel)
        await until(peer, commands.Basic.Qos)
        frames = (commands.Basic.QosOk(), commands.Channel.Flow(active=False))
        await stream.send(b"".join(pamqp.frame.marshal(frame, channel) for frame in frames))
        await until(peer, commands.Channel.FlowOk)
        await listener.until_kind("blocked")
        await peer.send(commands.Connection.Blocked("an alarm"))
        await peer.send(commands.Connection.Unblocked())
        await peer.send(commands.Channel.Flow(active=True), channel)
        await read_on(peer)

    async with serving(handle) as port:
        with anyio.fail_after(_PATIENCE):
            async with driver.open(Endpoint(host="127.0.0.1", port=port), _QUICK, listener):
                await listener.until_kind("unblocked")
    assert [kind for kind in listener.kinds() if kind != "opened"] == ["blocked", "blocked", "unblocked"]


@pytest.mark.parametrize("last", ["blocked", "unblocked"])
async def test_blocked_again_and_again_before_the_first_channel(
    driver: Driver, listener: RecordingReports, last: str
) -> None:
    """Only the newest report waits for the channel: a broker could fill the memory with the others."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.greet()
        await peer.send(commands.Connection.Tune(2047, 131072, 60))
        await until(peer, commands.Connection.Open)
        await peer.send(commands.Connection.OpenOk())
        for number in range(1_000):
            await peer.send(commands.Connection.Blocked(f"alarm {number}"))
            if number < 999 or last == "unblocked":
                await peer.send(commands.Connection.Unblocked())
        channel, _ = await until(peer, commands.Confirm.Select)
        await peer.send(commands.Confirm.SelectOk(), channel)
        await until(peer, commands.Basic.Qos)
        await peer.send(commands.Basic.QosOk(), channel)
        await read_on(peer)

    async with serving(handle) as port:
        with anyio.fail_after(_PATIENCE):
            async with driver.open(Endpoint(host="127.0.0.1", port=port), _QUICK, listener):
                await listener.until_kind(last)
    assert listener.kinds() == ["opened", last]
    assert listener.of("blocked") == ([("alarm 999",)] if last == "blocked" else [])


async def test_bytes_out(driver: Driver, listener: RecordingReports) -> None:
    """They grow while the peer takes them, stand still while it does not, and cover a message once it is confirmed."""
    read = anyio.Event()

    async def script(peer: Peer, channel: int) -> None:
        await read.wait()
        last = b""
        while not last.endswith(b"the end\xce"):
            last = last[-100:] + await peer.stream.receive()
        await peer.send(commands.Basic.Ack(1), channel)

    async with linked(driver, listener, script) as link:
        before = link.bytes_out
        assert before > 0
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", _LARGE + b"the end", None)
        while link.bytes_out == before:
            await anyio.sleep(0.01)
        assert link.bytes_out < len(_LARGE)
        assert link.bytes_left > 0
        read.set()
        await listener.until(lambda: listener.settled() == [1])
        assert link.bytes_out >= len(_LARGE)
        while link.bytes_left:
            await anyio.sleep(0.01)


async def test_names_that_a_codec_refuses(driver: Driver, listener: RecordingReports) -> None:
    """A name is refused at the call or sent as it is; it never costs a message beside it anything."""
    names = ("x" * 128, "ü", "a b", "x" * 256, "\ud800")
    seen: list[str] = []

    async def script(peer: Peer, channel: int) -> None:
        tag = 0
        while True:
            _, frame = await peer.receive()
            if isinstance(frame, commands.Basic.Publish):
                tag += 1
                seen.append(frame.exchange)
                await peer.send(commands.Basic.Ack(tag), channel)

    sent: list[str] = []
    async with linked(driver, listener, script) as link:
        for name in names:
            for envelope in (Envelope(exchange=name), Envelope(routing_key=name), Envelope(type=name)):
                if link.validate(envelope, "m", b"", None) is None:
                    link.publish(Lane.MAIN, envelope, "m", b"", None)
                    sent.append(envelope.exchange)
            link.publish(Lane.MAIN, Envelope(exchange="fine"), "m", b"", None)
            sent.append("fine")
        await listener.until(lambda: len(listener.settled()) == len(sent))
    assert seen == sent
    assert set(sent) <= {"", "fine", *names[:3]}


class _Huge(bytes):
    """A body that says that it has 600 MiB, and takes no memory."""

    def __len__(self) -> int:
        return 600 * 2**20


async def test_messages_that_are_too_large(driver: Driver, listener: RecordingReports) -> None:
    """Both drivers refuse them at the call, in the same words: a broker would close the channel, or the whole connection."""

    async def script(peer: Peer, channel: int) -> None:
        await read_on(peer)

    headers = Envelope(routing_key="q", headers={"h": "x" * 140_000})
    async with linked(driver, listener, script) as link:
        for envelope, body, said in (
            (headers, b"", "bytes; this broker takes 131,072 (frame_max)"),
            (Envelope(routing_key="q"), _Huge(), "the body has 629,145,600 bytes; RabbitMQ takes 536,870,912 at most"),
        ):
            reason = link.validate(envelope, "m", body, None)
            assert reason is not None
            assert said in reason


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "percent", "base64"])
async def test_the_password_in_texts_of_the_broker(driver: Driver, listener: RecordingReports, form: str) -> None:
    """A broker that writes the password into a blocked reason, a channel close, a return or its close is masked."""
    password = "s p@ce/d"
    shown = {"raw": password, "percent": "s%20p%40ce%2Fd", "base64": base64.b64encode(password.encode()).decode()}[form]
    text = f"you said {shown} to me"

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Connection.Blocked(text))
        await peer.send(commands.Basic.Return(312, text, "", text), channel)
        await peer.send(ContentHeader(body_size=1, properties=commands.Basic.Properties(message_id=text)), channel)
        await peer.send(ContentBody(b"x"), channel)
        await peer.send(commands.Channel.Close(404, text, 60, 40), channel)
        await peer.send(commands.Connection.Close(320, text, 0, 0))

    async with broker(script) as here:
        endpoint = evolve(here, credentials=Credentials("ann", password))
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, _QUICK, listener) as link:
                link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"x", None)
                await anyio.sleep_forever()
    everything = repr([down.value.fault, listener.log])
    assert shown not in everything
    assert everything.count("you said ***") == 6


# --- a new secret ---------------------------------------------------------------------------------------------------


async def test_a_new_secret_is_taken_beside_publishes(driver: Driver, listener: RecordingReports) -> None:
    """The call returns with the broker's answer, twice on one link; a publish between the two is confirmed."""
    secrets: list[str] = []

    async def script(peer: Peer, channel: int) -> None:
        while True:
            _, frame = await peer.receive()
            match frame:
                case commands.Connection.UpdateSecret(new_secret=secret):
                    secrets.append(secret)
                    await peer.send(commands.Connection.UpdateSecretOk())
                case commands.Basic.Publish():
                    await peer.send(commands.Basic.Ack(1), channel)
                case _:
                    pass

    async with linked(driver, listener, script) as link:
        await link.update_secret("first")
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
        await listener.until_kind("confirmed")
        await link.update_secret("second")
    assert secrets == ["first", "second"]


async def test_a_refused_secret_ends_the_link(driver: Driver, listener: RecordingReports) -> None:
    """The fault is about the login, and neither the new secret nor the old one is in its text."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Connection.UpdateSecret)
        await peer.send(commands.Connection.Close(530, "NOT_ALLOWED - guest, new-secret was refused", 10, 70))

    fault = await ended(driver, listener, script, lambda link: link.update_secret("new-secret"))
    assert (fault.kind, fault.reply_code) == (FaultKind.AUTHENTICATION, 530)
    assert "refused the new secret" in fault.text
    assert "new-secret" not in fault.text
    assert "NOT_ALLOWED - ***, *** was refused" in fault.text


async def test_a_secret_without_an_answer_ends_the_link(driver: Driver, listener: RecordingReports) -> None:
    """The broker has `declare_timeout` to answer."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Connection.UpdateSecret)

    fault = await ended(driver, listener, script, lambda link: link.update_secret("s"), declare_timeout=0.1)
    assert fault.kind is FaultKind.STALLED
    assert "update of the secret" in fault.text


async def test_a_secret_that_does_not_fit_is_refused_at_the_call(driver: Driver, listener: RecordingReports) -> None:
    """The link lives on, and the text does not show the secret."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Basic.Ack(1), channel)

    async with linked(driver, listener, script) as link:
        with pytest.raises(LinkDown) as refused:
            await link.update_secret("secret" * 50_000)
        assert refused.value.fault.kind is FaultKind.AUTHENTICATION
        assert "secretsecret" not in refused.value.fault.text
        link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
        await listener.until_kind("confirmed")


async def test_an_answer_to_no_secret_ends_the_link(driver: Driver, listener: RecordingReports) -> None:
    """A broker that takes a secret which nobody gave it has broken the protocol."""

    async def script(peer: Peer, channel: int) -> None:
        await until(peer, commands.Basic.Publish)
        await peer.send(commands.Connection.UpdateSecretOk())

    assert (await ended(driver, listener, script)).kind is FaultKind.ILLEGAL_FRAME


async def test_the_port_of_tls(driver: Driver) -> None:
    """A plain-text connection to a TLS port gets an alert of seven bytes and an end: the fault says what it is."""

    async def alert(stream: ByteStream) -> None:
        await stream.receive()
        await stream.send(b"\x15\x03\x03\x00\x02\x02\x46")

    async with serving(alert) as port:
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(Endpoint(host="127.0.0.1", port=port), LinkOptions(), RecordingReports()):
                pytest.fail("it opened")
    assert down.value.fault.kind is FaultKind.PROTOCOL
    assert "speaks TLS" in down.value.fault.text


# --- logins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("PLAIN", b"\0ann\0secret"),
        ("AMQPLAIN", b"\x05LOGINS\0\0\0\x03ann\x08PASSWORDS\0\0\0\x06secret"),
        ("EXTERNAL", b""),
    ],
)
async def test_the_login_is_choosable(driver: Driver, mechanism: Any, response: bytes) -> None:
    """`mechanism` is the one that is used, and the response is its own."""
    seen: list[Any] = []

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.receive()
        await peer.send(commands.Connection.Start(server_properties={}, mechanisms="EXTERNAL AMQPLAIN PLAIN"))
        start_ok = await stream.receive()
        seen.append(start_ok)

    async with serving(handle) as port:
        endpoint = Endpoint(host="127.0.0.1", port=port, credentials=Credentials("ann", "secret"), mechanism=mechanism)
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown):
            async with driver.open(endpoint, LinkOptions(), RecordingReports()):
                pytest.fail("it opened")
    (start_ok,) = seen
    assert bytes([len(mechanism)]) + mechanism.encode() + len(response).to_bytes(4) + response in start_ok


# --- addresses ------------------------------------------------------------------------------------------------------


async def mute(peer: Peer) -> None:
    """Accept, and say nothing."""
    await anyio.sleep_forever()


async def hang_up(peer: Peer) -> None:
    """Greet, take the login and close."""
    await peer.greet()


async def refuse_the_vhost(peer: Peer) -> None:
    """Shake hands up to connection.open and refuse it."""
    await peer.greet()
    await peer.send(commands.Connection.Tune(2047, 131072, 60))
    await until(peer, commands.Connection.Open)
    await peer.send(commands.Connection.Close(530, "NOT_ALLOWED - vhost down", 10, 40))
    await read_on(peer)


async def refuse_the_channel(peer: Peer) -> None:
    """Open the connection and close it when the first channel is asked for; before that, claim to be blocked."""
    await peer.greet()
    await peer.send(commands.Connection.Tune(2047, 131072, 60))
    await until(peer, commands.Connection.Open)
    await peer.send(commands.Connection.OpenOk())
    await peer.send(commands.Connection.Blocked("an alarm"))
    await peer.receive()
    await peer.send(commands.Connection.Close(506, "RESOURCE_ERROR", 20, 10))
    await read_on(peer)


async def serve_well(peer: Peer) -> None:
    """Open everything and confirm each message."""
    channel = await peer.open()
    tag = 0
    while True:
        number, frame = await peer.receive()
        if isinstance(frame, commands.Basic.Publish):
            tag += 1
            await peer.send(commands.Basic.Ack(tag), channel)
        elif isinstance(frame, commands.Connection.Close):
            await peer.send(commands.Connection.CloseOk())
        elif isinstance(frame, commands.Channel.Open):
            await peer.send(commands.Channel.OpenOk(), number)


@asynccontextmanager
async def brokers(*behaviours: Callable[[Peer], Awaitable[None]]) -> AsyncGenerator[tuple[Endpoint, list[int]]]:
    """One name with an address for each behaviour, on one port; the connections of each are counted."""
    counts = [0] * len(behaviours)
    addresses = [f"127.0.0.{number + 1}" for number in range(len(behaviours))]

    def handler(index: int) -> Callable[[ByteStream], Awaitable[None]]:
        async def handle(stream: ByteStream) -> None:
            counts[index] += 1
            async with stream:
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await behaviours[index](Peer(stream))

        return handle

    async with AsyncExitStack() as servers, anyio.create_task_group() as group:
        port = 0
        for index, address in enumerate(addresses):
            server = await anyio.create_tcp_listener(local_host=address, local_port=port)
            await servers.enter_async_context(server)
            port = server.extra(SocketAttribute.local_port)
            group.start_soon(server.serve, handler(index))
        _NAMES["brokers.test"] = addresses
        yield Endpoint(host="brokers.test", port=port), counts
        group.cancel_scope.cancel()


_NAMES: dict[str, list[str]] = {}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of our own: what the platform's resolver would answer."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in _NAMES[host]]

    monkeypatch.setattr(_dial, "socket", _Sockets(getaddrinfo))


class _Sockets:
    """The module `socket` with another resolver."""

    def __init__(self, getaddrinfo: Callable[..., list[Any]]) -> None:
        self.getaddrinfo = getaddrinfo

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


@pytest.mark.parametrize("first", [mute, hang_up, refuse_the_vhost, refuse_the_channel])
async def test_a_bad_address_is_left_for_the_next(
    driver: Driver, listener: RecordingReports, first: Callable[[Peer], Awaitable[None]]
) -> None:
    """One dial covers both addresses, whatever happens to the first one after TCP; it reports nothing of the first."""
    async with brokers(first, serve_well) as (endpoint, counts):
        with anyio.fail_after(_PATIENCE):
            async with driver.open(endpoint, evolve(_QUICK, connect_timeout=2.0), listener) as link:
                link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
                await listener.until(lambda: listener.settled() == [1])
                assert link.peer.address == f"127.0.0.2:{endpoint.port}"
    assert counts == [1, 1]
    assert listener.kinds() == ["opened", "confirmed"]


async def test_the_first_address_is_that_of_the_options(driver: Driver, listener: RecordingReports) -> None:
    """The dial begins with the address of the given index, modulo their number."""
    async with brokers(serve_well, serve_well, serve_well) as (endpoint, counts):
        for first in (0, 1, 2, 3):
            with anyio.fail_after(_PATIENCE):
                async with driver.open(endpoint, evolve(_QUICK, first_address=first), listener):
                    pass
    assert counts == [2, 1, 1]


async def test_a_dial_fails_when_all_addresses_have_failed(driver: Driver) -> None:
    """Each is tried once; the fault is the most telling one and names all addresses."""
    async with brokers(hang_up, refuse_the_vhost, hang_up) as (endpoint, counts):
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, _QUICK, RecordingReports()):
                pytest.fail("it opened")
    assert counts == [1, 1, 1]
    assert down.value.fault.kind is FaultKind.VHOST
    for number in (1, 2, 3):
        assert f"127.0.0.{number}:{endpoint.port}" in down.value.fault.text


async def test_mute_addresses_end_in_time(driver: Driver) -> None:
    """Five mute addresses: when `connect_timeout` is over, the dial fails."""
    async with brokers(mute, mute, mute, mute, mute) as (endpoint, counts):
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, evolve(_QUICK, connect_timeout=0.8), RecordingReports()):
                pytest.fail("it opened")
    assert counts[0] == 1
    assert down.value.fault.kind is FaultKind.HANDSHAKE_TIMEOUT


@pytest.mark.slow
async def test_the_last_address_has_all_the_time_that_is_left(driver: Driver, listener: RecordingReports) -> None:
    """There is no other to leave it for: an address that needs more than its share is not given up."""
    asked = anyio.Event()

    async def slow(peer: Peer) -> None:
        asked.set()
        await anyio.sleep(1.5)
        await serve_well(peer)

    async with brokers(hang_up, slow) as (endpoint, _):
        with anyio.fail_after(_PATIENCE):
            async with driver.open(endpoint, evolve(_QUICK, connect_timeout=_PATIENCE / 2), listener) as link:
                assert link.peer.address.startswith("127.0.0.2:")
