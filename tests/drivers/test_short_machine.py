"""What the operating system refuses during a dial, a read or a write is one fault of the link, and backed off like any."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import ByteStream
from attrs import evolve

from warrener.drivers import _dial
from warrener.drivers.aiormq import AiormqDriver
from warrener.drivers.base import Driver, Lane, LinkDown, LinkOptions
from warrener.drivers.native import NativeDriver, _asyncio, _trio
from warrener.drivers.native._transport import Take, Transport
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, Envelope

from .recording import Peer, RecordingReports, serving

pytestmark = pytest.mark.anyio

_ROOT = Path(__file__).parents[2]
_DRIVERS: dict[str, Callable[[], Driver]] = {"aiormq": AiormqDriver, "native": NativeDriver}
#: Guards against hanging.
_PATIENCE = 60.0


@pytest.fixture(params=sorted(_DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each driver that there is."""
    return _DRIVERS[request.param]()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", sorted(_DRIVERS))
def test_no_descriptor_is_free(name: str, backend: str) -> None:
    """A dial needs nothing but its socket: without one it fails for now, and the next dial opens."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(_ROOT / "src"), str(_ROOT)))}

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.open()
        while True:
            await peer.receive()

    async def run() -> str:
        async with serving(handle) as port:
            program = [sys.executable, "-m", "tests.drivers.short_machine", backend, name, "localhost", str(port)]
            with anyio.fail_after(_PATIENCE):
                done = await anyio.run_process(program, cwd=_ROOT, env=environment, check=False)
            return (done.stdout + done.stderr).decode()

    assert anyio.run(run) == "unreachable, for now\nopened\n"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "x"), OSError(errno.EIO, "x"), MemoryError()])
async def test_files_that_the_machine_cannot_read(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A certificate that is there and cannot be read just now is no lasting refusal."""

    def create_default_context(**_: Any) -> Any:
        raise error

    monkeypatch.setattr("ssl.create_default_context", create_default_context)
    fault = await _fault_of(driver, Endpoint(host="127.0.0.1", port=1, tls=True))
    assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)


async def test_no_thread_is_free(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's thread, and on Trio that of the aiormq driver, are asked for at each dial."""

    def start_new_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", start_new_thread)
    fault = await _fault_of(driver, Endpoint(host="no-literal.example", port=1))
    assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)


async def test_a_thread_that_never_runs(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the memory is short a thread may die before it runs: the dial fails in time, and the next one asks anew."""
    started: list[object] = []
    with monkeypatch.context() as short:
        short.setattr("_thread.start_new_thread", lambda *thread: started.append(thread))
        for _ in range(2):
            fault = await _fault_of(driver, Endpoint(host="localhost", port=1), connect_timeout=1.2)
            assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)
    assert len(started) == 2
    fault = await _fault_of(driver, Endpoint(host="localhost", port=1))
    assert "refused" in fault.text


@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "x"), MemoryError()])
async def test_no_memory_for_a_socket(driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Neither an error of the system nor one of Python's memory leaves a dial as itself."""

    async def connect_tcp(*_: Any, **__: Any) -> Any:
        raise error

    for module in (_dial.anyio, _trio, _asyncio):
        monkeypatch.setattr(module, "connect_tcp", connect_tcp)
    fault = await _fault_of(driver, Endpoint(host="127.0.0.1", port=1))
    assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)


class _Short(ByteStream):
    """A stream that begins to fail."""

    def __init__(self, stream: ByteStream, where: str, refused: list[Exception]) -> None:
        self._stream = stream
        self._where = where
        self._refused = refused

    def _refuse(self, where: str) -> None:
        if self._refused and where == self._where:
            raise self._refused[0]

    @property
    def extra_attributes(self) -> Any:
        return self._stream.extra_attributes

    async def send(self, item: bytes) -> None:
        self._refuse("send")
        await self._stream.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self._refuse("receive")
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._refuse("close")


class _ShortTransport:
    """A transport that begins to fail; the native driver's. What its socket raises is in test_transports.py."""

    prompt = drain_can_resume = True

    def __init__(self, transport: Transport, where: str, refused: list[Exception]) -> None:
        self._transport = transport
        self._where = where
        self._refused = refused
        self.stop = transport.stop

    def _refuse(self, where: str) -> None:
        if self._refused and where == self._where:
            raise self._refused[0]

    @property
    def descriptor(self) -> int:
        return self._transport.descriptor

    @property
    def left(self) -> int:
        return self._transport.left or bool(self._refused and self._where == "send")

    def write(self, data: bytes) -> None:
        if not self.left:
            self._transport.write(data)

    async def drain(self) -> None:
        self._refuse("send")
        await self._transport.drain()

    async def read_on(self, take: Take) -> None:
        def take_or_raise(data: bytes | memoryview) -> bool:
            self._refuse("receive")
            return take(data)

        await self._transport.read_on(take_or_raise)

    async def aclose(self) -> None:
        await self._transport.aclose()
        self._refuse("close")


@asynccontextmanager
async def _failing(monkeypatch: pytest.MonkeyPatch, where: str, refused: list[Exception]) -> AsyncIterator[Endpoint]:
    """A broker, to which streams lead that begin to fail once there is an error in `refused`."""

    async def connect(address: str, port: int) -> ByteStream:
        return _Short(await _dial.connect_tcp(address, port), where, refused)

    def short(real: Callable[[str, int], Awaitable[Transport]]) -> Callable[[str, int], Awaitable[Transport]]:
        async def connect(address: str, port: int) -> Transport:
            return _ShortTransport(await real(address, port), where, refused)

        return connect

    for module in (_trio, _asyncio):
        monkeypatch.setattr(module, "connect_tcp", short(module.connect_tcp))

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.open()
        while True:
            await peer.receive()
            await peer.stream.send(b"\x08\x00\x00\x00\x00\x00\x00\xce")

    async with serving(handle) as port:
        monkeypatch.setattr(_dial.dial, "__kwdefaults__", {**_dial.dial.__kwdefaults__, "connect": connect})
        with anyio.fail_after(_PATIENCE):
            yield Endpoint(host="127.0.0.1", port=port)


_QUICK = LinkOptions(close_timeout=0.2, abort_timeout=0.2)


@pytest.mark.parametrize("where", ["send", "receive"])
@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "x"), MemoryError()])
async def test_no_memory_on_an_open_link(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    """What a read or a write raises ends the link with one fault."""
    refused: list[Exception] = []
    async with _failing(monkeypatch, where, refused) as endpoint:
        with pytest.raises(LinkDown) as down:
            async with driver.open(endpoint, _QUICK, RecordingReports()) as link:
                refused.append(error)
                link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
                await anyio.sleep_forever()
    assert down.value.fault.kind is FaultKind.CONNECTION_LOST


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), MemoryError()])
async def test_an_error_of_the_close(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """The link is over already: what the close raises is neither an exception nor a line of the log."""
    refused: list[Exception] = []
    async with _failing(monkeypatch, "close", refused) as endpoint, driver.open(endpoint, _QUICK, RecordingReports()):
        refused.append(error)
    gc.collect()  # asyncio complains of a task's exception when the task is collected
    await anyio.lowlevel.checkpoint()
    assert not caplog.records


async def _fault_of(driver: Driver, endpoint: Endpoint, **changes: Any) -> Fault:
    options = evolve(LinkOptions(), abort_timeout=0.2, close_timeout=0.2, **changes)
    with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options, RecordingReports()):
            pytest.fail("it opened")
    return down.value.fault
