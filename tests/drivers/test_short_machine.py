"""What the operating system refuses during a dial, a read or a write is one fault of the link, and backed off like any."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from attrs import evolve

from warrener.drivers import _dial
from warrener.drivers.aiormq import AiormqDriver
from warrener.drivers.base import Driver, Lane, LinkDown, LinkOptions
from warrener.drivers.native import NativeDriver
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

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    fault = await _fault_of(driver, Endpoint(host="no-literal.example", port=1))
    assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)


@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "x"), MemoryError()])
async def test_no_memory_for_a_socket(driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Neither an error of the system nor one of Python's memory leaves a dial as itself."""

    async def connect_tcp(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(_dial.anyio, "connect_tcp", connect_tcp)
    fault = await _fault_of(driver, Endpoint(host="127.0.0.1", port=1))
    assert (fault.kind, fault.permanent) == (FaultKind.UNREACHABLE, False)


@pytest.mark.parametrize("where", ["send", "receive"])
@pytest.mark.parametrize("error", [OSError(errno.ENOBUFS, "x"), MemoryError()])
async def test_no_memory_on_an_open_link(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    """What a read or a write raises ends the link with one fault."""
    refused: list[Exception] = []

    class Short(ByteStream):
        """A stream that begins to fail."""

        def __init__(self, stream: ByteStream) -> None:
            self._stream = stream

        @property
        def extra_attributes(self) -> Any:
            return self._stream.extra_attributes

        async def send(self, item: bytes) -> None:
            if refused and where == "send":
                raise refused[0]
            await self._stream.send(item)

        async def receive(self, max_bytes: int = 65536) -> bytes:
            data = await self._stream.receive(max_bytes)
            if refused and where == "receive":
                raise refused[0]
            return data

        async def send_eof(self) -> None:
            await self._stream.send_eof()

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def connect(address: str, port: int) -> ByteStream:
        return Short(await _dial.connect_tcp(address, port))

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.open()
        while True:
            await peer.receive()
            await peer.stream.send(b"\x08\x00\x00\x00\x00\x00\x00\xce")

    async with serving(handle) as port:
        monkeypatch.setattr(_dial.dial, "__kwdefaults__", {**_dial.dial.__kwdefaults__, "connect": connect})
        with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
            options = LinkOptions(close_timeout=0.2, abort_timeout=0.2)
            async with driver.open(Endpoint(host="127.0.0.1", port=port), options, RecordingReports()) as link:
                refused.append(error)
                link.publish(Lane.MAIN, Envelope(routing_key="q"), "m", b"body", None)
                await anyio.sleep_forever()
    assert down.value.fault.kind is FaultKind.CONNECTION_LOST


async def _fault_of(driver: Driver, endpoint: Endpoint) -> Fault:
    options = evolve(LinkOptions(), abort_timeout=0.2)
    with anyio.fail_after(_PATIENCE), pytest.raises(LinkDown) as down:
        async with driver.open(endpoint, options, RecordingReports()):
            pytest.fail("it opened")
    return down.value.fault
