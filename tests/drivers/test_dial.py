"""Dialing: which address wins, when the next is tried, what is closed, and what the one fault says."""

from __future__ import annotations

import logging
import math
import socket
import ssl
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, TaskGroup
from anyio.streams.stapled import StapledObjectStream
from anyio.streams.tls import TLSStream
from attrs import define, evolve, field

from tests.drivers.recording import TransportStream
from warrener.drivers import _dial as dial_module
from warrener.drivers._dial import Dialed, dial, resolve
from warrener.drivers._faults import DialPhase, fault_of
from warrener.drivers.base import LinkDown
from warrener.drivers.native._driver import dial_sockets
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint

if TYPE_CHECKING:
    import trio.testing

time = pytest.mark.trio

BROKER = Endpoint("broker.example", 5672)


def sockets(test: Callable[..., object]) -> Callable[..., object]:
    """Run a test on sockets: by anyio's streams, and by the native driver's transports."""
    return pytest.mark.anyio(pytest.mark.usefixtures("each_dial")(test))


@pytest.fixture(params=["streams", "transports"])
def each_dial(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tests call one dial or the other."""
    if request.param == "transports":
        monkeypatch.setitem(globals(), "dial", _dial_transport)


async def _dial_transport(
    endpoint: Endpoint, *, require_tls: bool = False, ssl_context: ssl.SSLContext | None = None, **options: Any
) -> Dialed[ByteStream]:
    if options:  # a test of the order of addresses, with the real dial around it
        return await dial_module.dial(endpoint, require_tls=require_tls, ssl_context=ssl_context, **options)
    dialed = await dial_sockets(endpoint, require_tls=require_tls, ssl_context=ssl_context, first_address=0)
    return evolve(dialed, stream=TransportStream(dialed.stream))


# --- virtual time -----------------------------------------------------------------------------------------------------


@define(eq=False)
class FakeStream(ByteStream):
    address: str
    closed: bool = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.sleep(math.inf)
        raise AssertionError

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()


@define(eq=False)
class FakeNetwork:
    """What each address does, and after how many seconds; `history` says when it was tried."""

    script: dict[str, tuple[float, BaseException | None]]
    history: list[tuple[float, str]] = field(factory=list)
    streams: list[FakeStream] = field(factory=list)
    began: float = field(factory=anyio.current_time)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        await anyio.lowlevel.checkpoint()
        return list(self.script)

    async def connect(self, address: str, port: int) -> ByteStream:
        self.history.append((anyio.current_time() - self.began, address))
        delay, error = self.script[address]
        await anyio.sleep(delay)
        if error is not None:
            raise error
        self.streams.append(FakeStream(address))
        return self.streams[-1]

    async def dial(self, endpoint: Endpoint = BROKER) -> Dialed[ByteStream]:
        return await dial(endpoint, resolve=self.resolve, connect=self.connect)


async def _refused(dialing: Awaitable[Dialed[ByteStream]]) -> Fault:
    with pytest.raises(LinkDown) as caught:
        await dialing
    return caught.value.fault


REFUSED = ConnectionRefusedError(111, "refused")
NO_ROUTE = OSError(113, "no route")
TIMED_OUT = TimeoutError(110, "timed out")
BAD_CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
BAD_CERTIFICATE.verify_message = "self-signed certificate"


@time
async def test_a_black_hole_costs_a_quarter_of_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """When the first address never answers, the second is tried 250 ms later, wins, and the dial ends."""
    network = FakeNetwork({"10.0.0.1": (math.inf, None), "10.0.0.2": (0.1, None), "10.0.0.3": (0, None)})
    dialed = await network.dial()
    assert dialed.address == "10.0.0.2:5672"
    assert network.history == [(0.0, "10.0.0.1"), (0.25, "10.0.0.2")]
    assert anyio.current_time() - network.began == pytest.approx(0.35)


@time
async def test_families_alternate_from_the_resolvers_favourite(autojump_clock: trio.testing.MockClock) -> None:
    """Addresses are tried in the order of RFC 8305: families in turn, the resolver's first one first, none twice."""
    slow = (math.inf, None)
    network = FakeNetwork({"::1": slow, "::2": slow, "::3": slow, "10.0.0.1": slow, "10.0.0.2": (0, None)})
    dialed = await network.dial()
    assert dialed.address == "10.0.0.2:5672"
    assert network.history == [(0, "::1"), (0.25, "10.0.0.1"), (0.5, "::2"), (0.75, "10.0.0.2")]


@time
async def test_a_failure_brings_the_next_address_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """An address that refuses is followed by the next without the stagger."""
    network = FakeNetwork({"10.0.0.1": (0, REFUSED), "10.0.0.2": (0.01, NO_ROUTE), "10.0.0.3": (0, None)})
    await network.dial()
    assert network.history == [(0, "10.0.0.1"), (0, "10.0.0.2"), (0.01, "10.0.0.3")]


@time
async def test_a_slow_first_address_may_still_win(autojump_clock: trio.testing.MockClock) -> None:
    """Starting the second attempt does not end the first: whoever is done first wins, the other is closed."""
    network = FakeNetwork({"10.0.0.1": (0.3, None), "10.0.0.2": (0.3, None)})
    assert (await network.dial()).address == "10.0.0.1:5672"
    assert [(stream.address, stream.closed) for stream in network.streams] == [("10.0.0.1", False)]


@time
async def test_an_attempt_that_is_done_after_the_winner_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """A connection that its cancellation came too late for is closed: exactly one stream stays open."""
    network = FakeNetwork({"10.0.0.1": (0.5, None), "10.0.0.2": (0, None)})

    async def connect(address: str, port: int) -> ByteStream:
        with anyio.CancelScope(shield=True):
            return await network.connect(address, port)

    dialed = await dial(BROKER, resolve=network.resolve, connect=connect)
    assert dialed.address == "10.0.0.2:5672"
    assert [(stream.address, stream.closed) for stream in network.streams] == [("10.0.0.2", False), ("10.0.0.1", True)]


@time
@pytest.mark.parametrize(
    ("errors", "kind", "word"),
    [
        ([NO_ROUTE, TIMED_OUT, REFUSED], FaultKind.UNREACHABLE, "refused"),
        ([NO_ROUTE, TIMED_OUT], FaultKind.UNREACHABLE, "timed out"),
        ([REFUSED, BAD_CERTIFICATE, TIMED_OUT], FaultKind.TLS, "certificate"),
        ([NO_ROUTE], FaultKind.UNREACHABLE, "No route"),
    ],
)
async def test_when_all_fail_the_most_telling_fault_speaks(
    autojump_clock: trio.testing.MockClock, errors: list[Exception], kind: FaultKind, word: str
) -> None:
    """One fault stands for all: a TLS refusal before refused before timed out; every address is named."""
    network = FakeNetwork({f"10.0.0.{n}": (0, error) for n, error in enumerate(errors, 1)})
    fault = await _refused(network.dial())
    assert fault.kind is kind
    assert word.lower() in fault.text.lower()
    assert [n for n in range(1, len(errors) + 1) if f"10.0.0.{n}:5672" not in fault.text] == []


@time
async def test_a_name_without_addresses(autojump_clock: trio.testing.MockClock) -> None:
    """An empty answer of the resolver is a fault of its own."""
    fault = await _refused(FakeNetwork({}).dial())
    assert (fault.kind, "no addresses" in fault.text) == (FaultKind.UNREACHABLE, True)


@time
@pytest.mark.parametrize(("addresses", "seconds"), [(1, 8.0), (2, 4.0), (4, 2.0), (5, 2.0), (100, 2.0)])
async def test_addresses_share_the_time(addresses: int, seconds: float, autojump_clock: trio.testing.MockClock) -> None:
    """Each address has `connect_timeout` divided by the number of addresses, by 4 at most."""
    network = FakeNetwork({f"192.0.2.{number}": (0.0, None) for number in range(addresses)})
    dialed = await network.dial()
    assert (addresses, seconds) == (dialed.addresses, dialed.share(8.0))
    assert dialed.last == (addresses == 1)


@time
async def test_each_dial_resolves_anew(autojump_clock: trio.testing.MockClock) -> None:
    """A name is asked for again each time; a literal address never is."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        await anyio.lowlevel.checkpoint()
        asked.append(host)
        return ["10.0.0.1"]

    network = FakeNetwork({"10.0.0.1": (0, None), "::1": (0, None)})
    await dial(BROKER, resolve=resolve, connect=network.connect)
    await dial(BROKER, resolve=resolve, connect=network.connect)
    dialed = await dial(evolve(BROKER, host="::1"), resolve=resolve, connect=network.connect)
    assert (asked, dialed.address) == (["broker.example", "broker.example"], "[::1]:5672")


@time
async def test_a_cancelled_dial_leaves_nothing_open(autojump_clock: trio.testing.MockClock) -> None:
    """The caller's deadline ends the dial at once, as a cancellation and not as a fault."""
    network = FakeNetwork({"10.0.0.1": (math.inf, None), "10.0.0.2": (math.inf, None)})
    with anyio.move_on_after(1) as scope:
        await network.dial()
    assert (scope.cancelled_caught, anyio.current_time() - network.began) == (True, 1.0)
    assert [stream for stream in network.streams if not stream.closed] == []


@time
async def test_require_tls_refuses_before_anything_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    """With require_tls no connection in plain text is made to another host; to this one it is."""
    network = FakeNetwork({"10.0.0.1": (0, None), "127.0.0.1": (0, None)})
    fault = await _refused(dial(BROKER, require_tls=True, resolve=network.resolve, connect=network.connect))
    assert (fault.kind, network.history) == (FaultKind.TLS, [])
    await dial(Endpoint("127.0.0.1"), require_tls=True, connect=network.connect)
    assert [address for _, address in network.history] == ["127.0.0.1"]


@time
async def test_plain_text_to_another_host_warns_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that crosses the network in plain text is one warning per endpoint, however often it is dialed."""
    monkeypatch.setattr(dial_module, "_warned", set())
    network = FakeNetwork({"10.0.0.1": (0, None)})
    with caplog.at_level(logging.WARNING, "warrener"):
        await network.dial()
        await network.dial()
        await dial(Endpoint("127.0.0.1"), connect=FakeNetwork({"127.0.0.1": (0, None)}).connect)
    assert [record.getMessage().count("broker.example") for record in caplog.records] == [1]


# --- TLS over memory, in virtual time ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The authority that clients trust."""
    return trustme.CA()


@pytest.fixture(scope="session")
def stranger() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


def _server_context(issued_by: trustme.CA, name: str, *, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued_by.issue_cert(name).configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client_context(trusts: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    trusts.configure_trust(context)
    return context


def _pair() -> tuple[ByteStream, ByteStream]:
    def one_way() -> StapledObjectStream[bytes]:
        return StapledObjectStream(*anyio.create_memory_object_stream[bytes](100))

    there, back = one_way(), one_way()
    return _Bytes(there, back), _Bytes(back, there)


@define(eq=False)
class _Bytes(ByteStream):
    out: StapledObjectStream[bytes]
    into: StapledObjectStream[bytes]

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self.into.receive()

    async def send(self, item: bytes) -> None:
        await self.out.send(bytes(item))

    async def send_eof(self) -> None:
        await self.out.send_stream.aclose()

    async def aclose(self) -> None:
        await self.out.send_stream.aclose()
        await self.into.receive_stream.aclose()


@time
async def test_a_bad_certificate_loses_against_a_good_one(
    autojump_clock: trio.testing.MockClock, authority: trustme.CA, stranger: trustme.CA
) -> None:
    """An address with a certificate that is not trusted is never accepted; the next one wins with a right one."""
    servers = {
        "10.0.0.1": _server_context(stranger, "broker.example"),
        "10.0.0.2": _server_context(authority, "another.example"),
        "10.0.0.3": _server_context(authority, "broker.example"),
    }
    async with anyio.create_task_group() as group:

        async def serve(stream: ByteStream, context: ssl.SSLContext) -> None:
            with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream):
                async with stream:
                    await TLSStream.wrap(stream, server_side=True, ssl_context=context)
                    await anyio.sleep(math.inf)

        async def connect(address: str, port: int) -> ByteStream:
            ours, theirs = _pair()
            group.start_soon(serve, theirs, servers[address])
            await anyio.lowlevel.checkpoint()
            return ours

        async def answer(host: str, port: int) -> Sequence[str]:
            await anyio.lowlevel.checkpoint()
            return list(servers)

        endpoint = evolve(BROKER, tls=True)
        dialed = await dial(endpoint, ssl_context=_client_context(authority), resolve=answer, connect=connect)
        assert dialed.address == "10.0.0.3:5672"
        assert dialed.tls is not None
        assert dialed.tls.startswith("TLSv1.3 ")
        await dialed.stream.aclose()
        del servers["10.0.0.3"]
        fault = await _refused(dial(endpoint, ssl_context=_client_context(authority), resolve=answer, connect=connect))
        assert (fault.kind, fault.permanent) == (FaultKind.TLS, True)
        group.cancel_scope.cancel()


# --- sockets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def serve(anyio_backend: object) -> object:
    """Run a handler on a free port of 127.0.0.1 for the time of a test."""
    listeners = []
    async with anyio.create_task_group() as group:

        async def start(handler: Callable[[anyio.abc.SocketStream], Awaitable[None]]) -> int:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            listeners.append(listener)

            async def guarded(stream: anyio.abc.SocketStream) -> None:
                with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream):
                    async with stream:
                        await handler(stream)

            group.start_soon(listener.serve, guarded)
            return int(listener.extra(anyio.abc.SocketAttribute.local_port))

        yield start
        group.cancel_scope.cancel()
    for listener in listeners:
        await listener.aclose()


Serve = Callable[[Callable[[anyio.abc.SocketStream], Awaitable[None]]], Awaitable[int]]


def _tls_echo(context: ssl.SSLContext) -> Callable[[anyio.abc.SocketStream], Awaitable[None]]:
    async def handler(stream: anyio.abc.SocketStream) -> None:
        secured = await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        await secured.send(await secured.receive())
        with suppress(anyio.EndOfStream):
            await secured.receive()

    return handler


@pytest.fixture
def cafile(authority: trustme.CA, tmp_path: Path) -> str:
    """The trusted authority as a file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@sockets
async def test_plain_tcp(serve: Serve) -> None:
    """A plain connection carries bytes both ways; its socket has TCP_NODELAY and SO_KEEPALIVE."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        await stream.send(await stream.receive())

    port = await serve(echo)
    dialed = await dial(Endpoint("localhost", port))
    async with dialed.stream as stream:
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        options = [
            raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0,
            raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0,
        ]
        await stream.send(b"hello")
        assert (await stream.receive(), dialed.address, dialed.tls) == (b"hello", f"127.0.0.1:{port}", None)
    assert options == [True, True]


@sockets
async def test_tls_with_a_custom_authority(serve: Serve, authority: trustme.CA, cafile: str) -> None:
    """TLS works with the authority of a file, and says which version and cipher it speaks."""
    port = await serve(_tls_echo(_server_context(authority, "localhost")))
    dialed = await dial(Endpoint("localhost", port, tls=True, cafile=cafile))
    async with dialed.stream as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
    assert dialed.tls is not None
    assert dialed.tls.split()[0] == "TLSv1.3"


@sockets
async def test_a_certificate_for_another_name(serve: Serve, authority: trustme.CA, cafile: str) -> None:
    """A trusted certificate that carries another name is refused, permanently, and the fault says so."""
    port = await serve(_tls_echo(_server_context(authority, "another.example")))
    fault = await _refused(dial(Endpoint("localhost", port, tls=True, cafile=cafile)))
    assert (fault.kind, fault.permanent, "certificate" in fault.text) == (FaultKind.TLS, True, True)


@sockets
async def test_an_untrusted_certificate(serve: Serve, stranger: trustme.CA, cafile: str) -> None:
    """A certificate of another authority is refused, and so is a trustme one by the system's authorities."""
    port = await serve(_tls_echo(_server_context(stranger, "localhost")))
    for endpoint in (Endpoint("localhost", port, tls=True, cafile=cafile), Endpoint("localhost", port, tls=True)):
        fault = await _refused(dial(endpoint))
        assert (fault.kind, "certificate" in fault.text) == (FaultKind.TLS, True)


@sockets
async def test_an_expired_certificate(serve: Serve, authority: trustme.CA, cafile: str) -> None:
    """A certificate that was valid once is refused."""
    from datetime import UTC, datetime

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(
        "localhost", not_before=datetime(2001, 1, 1, tzinfo=UTC), not_after=datetime(2002, 1, 1, tzinfo=UTC)
    ).configure_cert(context)
    port = await serve(_tls_echo(context))
    fault = await _refused(dial(Endpoint("localhost", port, tls=True, cafile=cafile)))
    assert (fault.kind, "expired" in fault.text) == (FaultKind.TLS, True)


@sockets
async def test_tls_to_a_plain_amqp_port(serve: Serve, cafile: str) -> None:
    """A plain AMQP port that is dialed with TLS is told apart from a bad certificate; there is no way back to plain."""
    seen = []

    async def amqp(stream: anyio.abc.SocketStream) -> None:
        seen.append(await stream.receive())
        await stream.send(b"AMQP\0\0\x09\x01")

    port = await serve(amqp)
    fault = await _refused(dial(Endpoint("localhost", port, tls=True, cafile=cafile)))
    assert (fault.kind, "does not speak TLS" in fault.text) == (FaultKind.TLS, True)
    assert [data[:1] for data in seen] == [b"\x16"]


@sockets
async def test_a_peer_that_hangs_up_during_the_handshake(serve: Serve, cafile: str) -> None:
    """An end of stream during the TLS handshake is no refusal: time may mend it."""

    async def hang_up(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()

    port = await serve(hang_up)
    fault = await _refused(dial(Endpoint("localhost", port, tls=True, cafile=cafile)))
    assert (fault.kind, "TLS handshake" in fault.text) == (FaultKind.UNREACHABLE, True)


@sockets
async def test_a_mute_tls_server_ends_with_the_callers_deadline(serve: Serve, cafile: str) -> None:
    """A server that accepts and says nothing holds the dial until its caller cancels it; the socket is closed then."""
    heard_end = anyio.Event()
    began = anyio.Event()

    async def mute(stream: anyio.abc.SocketStream) -> None:
        try:
            while True:
                await stream.receive()
                began.set()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            heard_end.set()

    port = await serve(mute)
    async with anyio.create_task_group() as group:
        group.start_soon(dial, Endpoint("localhost", port, tls=True, cafile=cafile))
        await began.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(20):
        await heard_end.wait()


@sockets
async def test_client_certificates(serve: Serve, authority: trustme.CA, cafile: str, tmp_path: Path) -> None:
    """The certificate and key of the endpoint's files are shown to a broker that asks for them."""
    certificate = authority.issue_cert("client@example.org")
    certfile, keyfile = tmp_path / "client.pem", tmp_path / "client.key"
    certificate.cert_chain_pems[0].write_to_path(certfile)
    certificate.private_key_pem.write_to_path(keyfile)
    port = await serve(_tls_echo(_server_context(authority, "localhost", clients=authority)))
    endpoint = Endpoint("localhost", port, tls=True, cafile=cafile, certfile=str(certfile), keyfile=str(keyfile))
    dialed = await dial(endpoint)
    async with dialed.stream as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


@sockets
async def test_tls_below_1_2_is_refused(serve: Serve, authority: trustme.CA) -> None:
    """Even a context that allows TLS 1.1 does not bring it about."""
    server = _server_context(authority, "localhost")
    ours = _client_context(authority)
    for context in (server, ours):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    port = await serve(_tls_echo(server))
    fault = await _refused(dial(Endpoint("localhost", port, tls=True), ssl_context=ours))
    assert (fault.kind, "1.2" in fault.text) == (FaultKind.TLS, True)


@sockets
async def test_a_context_that_does_not_verify_is_obeyed_and_logged_once(
    serve: Serve, stranger: trustme.CA, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning verification off is possible in code alone, and leaves one line in the log."""
    monkeypatch.setattr(dial_module, "_warned", set())
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = await serve(_tls_echo(_server_context(stranger, "another.example")))
    with caplog.at_level(logging.WARNING, "warrener"):
        for _ in range(2):
            dialed = await dial(Endpoint("localhost", port, tls=True), ssl_context=context)
            await anyio.aclose_forcefully(dialed.stream)
    assert ["not verified" in record.getMessage() for record in caplog.records] == [True]


@sockets
@pytest.mark.parametrize("which", ["cafile", "certfile", "keyfile"])
async def test_files_that_cannot_be_used(which: str, cafile: str, authority: trustme.CA, tmp_path: Path) -> None:
    """A missing file is a TLS fault that names its role."""
    endpoint = evolve(_with_certificate(authority, cafile, tmp_path), **{which: str(tmp_path / "missing")})
    fault = await _refused(dial(endpoint))
    word = "cafile" if which == "cafile" else "certfile or keyfile"
    assert (fault.kind, fault.text.startswith(word)) == (FaultKind.TLS, True)


@sockets
@pytest.mark.parametrize(
    ("passphrase", "said"), [(None, "is encrypted, and there is no passphrase"), ("wrong", "does not open")]
)
async def test_an_encrypted_key(
    passphrase: str | None, said: str, cafile: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """Without its passphrase an encrypted key is a TLS fault that says so; nobody is asked on the terminal."""
    endpoint = _with_certificate(authority, cafile, tmp_path, encrypted_by=b"open sesame")
    fault = await _refused(dial(evolve(endpoint, keyfile_password=passphrase)))
    assert (fault.kind, said in fault.text) == (FaultKind.TLS, True)


@sockets
async def test_an_encrypted_key_and_another_host_name(
    serve: Serve, cafile: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """The passphrase opens the key; the certificate may be for `server_hostname` in place of the host."""
    port = await serve(_tls_echo(_server_context(authority, "broker.example")))
    endpoint = _with_certificate(authority, cafile, tmp_path, encrypted_by=b"open sesame")
    endpoint = evolve(endpoint, port=port, keyfile_password="open sesame", server_hostname="broker.example")
    dialed = await dial(endpoint)
    await anyio.aclose_forcefully(dialed.stream)


@sockets
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_broker_that_wants_a_certificate(cafile: str, authority: trustme.CA, version: ssl.TLSVersion) -> None:
    """The fault says that none was given, or at least that the handshake failed; with TLS 1.3 the first read tells."""
    context = _server_context(authority, "localhost", clients=authority)
    context.maximum_version = version
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def refuse() -> None:
        # With the standard library's sockets, because anyio's server side does not send the alert.
        with server, server.accept()[0] as raw, suppress(ssl.SSLError):
            context.wrap_socket(raw, server_side=True)

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        dialed = await dial(Endpoint("localhost", port, tls=True, cafile=cafile))
        try:
            await dialed.stream.receive()
        finally:
            await anyio.aclose_forcefully(dialed.stream)
    except LinkDown as down:
        fault = down.fault
    except (ssl.SSLError, anyio.BrokenResourceError) as error:
        fault = fault_of(error, DialPhase.GREETING)
    finally:
        thread.join()
    assert fault.kind is FaultKind.TLS
    assert version is ssl.TLSVersion.TLSv1_2 or "asks for a client certificate" in fault.text


def _with_certificate(authority: trustme.CA, cafile: str, folder: Path, encrypted_by: bytes = b"") -> Endpoint:
    """An endpoint whose client has a certificate."""
    from cryptography.hazmat.primitives import serialization as s

    certificate = authority.issue_cert("localhost")
    certfile, keyfile = folder / "client.pem", folder / "client.key"
    certificate.cert_chain_pems[0].write_to_path(certfile)
    key = certificate.private_key_pem.bytes()
    if encrypted_by:
        loaded = s.load_pem_private_key(key, None)
        key = loaded.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(encrypted_by))
    keyfile.write_bytes(key)
    return Endpoint("localhost", 1, tls=True, cafile=cafile, certfile=str(certfile), keyfile=str(keyfile))


@sockets
async def test_refused_says_where(free_port: int) -> None:
    """A port where nobody listens is refused, and the fault names the address."""
    fault = await _refused(dial(Endpoint("localhost", free_port)))
    assert (fault.kind, f"127.0.0.1:{free_port}" in fault.text) == (FaultKind.UNREACHABLE, True)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is bound, so that nobody else listens there, and refuses."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@sockets
async def test_unix_sockets(tmp_path: Path) -> None:
    """An endpoint with a socket path is reached there; a missing one is unreachable."""
    path = str(tmp_path / "s")
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        listener = await stack.enter_async_context(await anyio.create_unix_listener(path))

        async def greet(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.send(b"hello")

        group.start_soon(listener.serve, greet)
        dialed = await dial(Endpoint(socket_path=path), require_tls=True)
        async with dialed.stream as stream:
            assert (await stream.receive(), dialed.address) == (b"hello", path)
        group.cancel_scope.cancel()
    fault = await _refused(dial(Endpoint(socket_path=path + "x")))
    assert fault.kind is FaultKind.UNREACHABLE


@sockets
async def test_a_receive_from_a_unix_socket_is_cancelled_in_the_pass_in_which_bytes_arrive(tmp_path: Path) -> None:
    """No error reaches the event loop. A stream of `anyio.connect_unix` would raise InvalidStateError there."""
    path = str(tmp_path / "amqp")
    with socket.socket(socket.AF_UNIX) as listening, anyio.fail_after(10):
        listening.bind(path)
        listening.listen()
        dialed = await dial(Endpoint(socket_path=path))
        async with dialed.stream as stream:
            peer, _ = listening.accept()
            with peer:
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.receive)
                    await anyio.wait_all_tasks_blocked()
                    # A task of its own: on asyncio it runs in the pass that finds the bytes, and before they are read.
                    group.start_soon(_cancel, group)
                    peer.send(b"x")


async def _cancel(group: TaskGroup) -> None:
    group.cancel_scope.cancel()


# --- the resolver -----------------------------------------------------------------------------------------------------


@define(eq=False)
class StuckResolver:
    """Stands in for `socket.getaddrinfo`: stuck until it is let go."""

    calls: list[str] = field(factory=list)
    let_go: threading.Event = field(factory=threading.Event)
    answer: list[str] = field(factory=lambda: ["127.0.0.1"])
    error: Exception | None = None

    def __call__(self, host: str, port: int, **options: object) -> list[object]:
        self.calls.append(host)
        assert self.let_go.wait(60)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.answer]


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckResolver]:
    """A platform resolver that answers when the test says so."""
    resolver = StuckResolver()
    # Only the dial's own name of the module is replaced: the event loops go on using the real one.
    stand_in = type("socket", (), dict(vars(socket)) | {"getaddrinfo": staticmethod(resolver)})
    monkeypatch.setattr(dial_module, "socket", stand_in)
    yield resolver
    resolver.let_go.set()
    for thread in threading.enumerate():
        if thread.name == "warrener resolver":
            thread.join(20)


@sockets
async def test_a_cancelled_lookup_returns_at_once_and_no_second_one_is_started(stuck: StuckResolver) -> None:
    """While one lookup is out no other is started; who comes next waits for its answer, and the one after asks anew."""
    for _ in range(3):
        with anyio.move_on_after(0.01) as scope:
            await resolve("stuck.example", 5672)
        assert scope.cancelled_caught
    assert stuck.calls == ["stuck.example"]
    async with anyio.create_task_group() as group:
        answers = []

        async def ask() -> None:
            answers.append(await resolve("stuck.example", 5672))

        group.start_soon(ask)
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        stuck.let_go.set()
    assert (answers, stuck.calls) == ([("127.0.0.1",)] * 2, ["stuck.example"])
    await resolve("stuck.example", 5672)
    assert stuck.calls == ["stuck.example"] * 2


@sockets
@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
async def test_a_lookup_that_fails_is_one_fault(stuck: StuckResolver, error: Exception) -> None:
    """What the resolver raises becomes a fault that names the host, and the next dial asks again."""
    stuck.error = error
    stuck.let_go.set()
    for _ in range(2):
        fault = await _refused(dial(BROKER))
        assert (fault.kind, "broker.example" in fault.text) == (FaultKind.UNREACHABLE, True)
    assert len(stuck.calls) == 2


def test_an_event_loop_ends_while_its_lookup_is_out(stuck: StuckResolver) -> None:
    """Neither backend waits for the resolver's thread, and the answer to a loop that has ended harms nobody."""

    async def give_up() -> None:
        with anyio.move_on_after(0.01):
            await resolve("stuck.example", 5672)

    for backend in ("trio", "asyncio"):
        anyio.run(give_up, backend=backend)
    assert (stuck.calls, stuck.let_go.is_set()) == (["stuck.example"], False)
