"""The embedded broker over TCP: on every loop, on a thread, and through crashes on one port."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys

import anyio
import pytest
import trustme
from anyio.streams.tls import TLSStream
from pamqp import commands

from tests.testing.rawclient import PROTOCOL_HEADER, RawClient, content
from warrener.testing import EmbeddedBroker, ProtocolViolated
from warrener.testing._streams import connect
from warrener.testing.broker import Tuning


@pytest.mark.anyio
async def test_serves_in_the_loop_that_it_is_opened_in() -> None:
    """The same block on Trio, asyncio and uvloop."""
    async with EmbeddedBroker() as broker:
        broker.declare_queue("q")

        def publish() -> list[str]:
            with RawClient(broker.url) as client:
                heard = client.talk([commands.Confirm.Select(), *content("q", b"1")], until="Basic.Ack")
                client.send(commands.Connection.Close(200, "", 0, 0), channel=0)
                client.read()
                return heard

        heard = await anyio.to_thread.run_sync(publish)

        assert ["1 Confirm.SelectOk {}", "1 Basic.Ack {'delivery_tag': 1, 'multiple': False}"] == heard
        assert [b"1"] == broker.messages("q")


@pytest.mark.anyio
async def test_refuses_while_it_is_down_and_comes_back_on_the_same_port() -> None:
    """A crash resets connections and refuses new ones; no other program gets the port."""
    async with EmbeddedBroker() as broker:
        port = broker.port
        stream = await connect("127.0.0.1", port)
        await stream.send(PROTOCOL_HEADER)
        await stream.receive()
        broker.crash()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        with pytest.raises(ConnectionRefusedError):
            await connect("127.0.0.1", port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        broker.restart()
        again = await connect("127.0.0.1", port)
        again.close_now()
        stream.close_now()

        assert port == broker.port


@pytest.mark.anyio
async def test_serves_tls() -> None:
    """With a server context, an amqps URL and a TLS handshake."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with EmbeddedBroker(tls=context) as broker:
        assert broker.url.startswith("amqps://")
        wire = await connect("127.0.0.1", broker.port)
        async with await TLSStream.wrap(
            wire, hostname="127.0.0.1", ssl_context=trusting, standard_compatible=False
        ) as stream:
            await stream.send(PROTOCOL_HEADER)
            assert (await stream.receive()).startswith(b"\x01\x00\x00")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_controls_work_from_another_thread(backend: str) -> None:
    """Each control is in force when it returns."""
    with EmbeddedBroker.in_thread(backend=backend, tuning=Tuning(heartbeat=7)) as broker:
        broker.add_vhost("v")
        broker.add_user("u", "p", vhost="v")
        with RawClient(broker.url_for("u", "p", "v")) as client:
            (seen,) = broker.clients
            assert ("raw", "u", "v") == (seen.name, seen.user, seen.vhost)
            broker.delete_vhost("v")
            _, close = client.read()
            assert (320, "CONNECTION_FORCED - vhost 'v' is deleted") == (close.reply_code, close.reply_text)
        broker.stop()
        with pytest.raises(ConnectionRefusedError):
            RawClient(broker.url)
        broker.restart()
        with RawClient(broker.url) as client:
            client.talk([])


def test_a_violation_on_a_thread_fails_the_block() -> None:
    """The synchronous block raises as the asynchronous one does."""
    with pytest.raises(ProtocolViolated), EmbeddedBroker.in_thread() as broker, RawClient(broker.url) as client:
        client.send(commands.Basic.QosOk())
        client.read()


def test_a_control_called_from_a_strange_thread_says_so() -> None:
    """Only `in_thread` makes controls callable from elsewhere."""

    async def main() -> None:
        async with EmbeddedBroker(listen=False) as broker:
            with pytest.raises(RuntimeError, match="in_thread"):
                await anyio.to_thread.run_sync(broker.alarm)

    anyio.run(main)


@pytest.mark.slow
def test_importing_the_package_or_the_plugin_loads_nothing() -> None:
    """`import warrener.testing` leaves the broker alone; the plugin does not even import warrener."""
    script = (
        "import sys, pytest_warrener; assert not {m for m in sys.modules if m.split('.')[0] in ('warrener', 'anyio')}; "
        "import warrener.testing; assert not {m for m in sys.modules if m.startswith('warrener.testing.')}; "
        "from warrener.testing import EmbeddedBroker; assert 'hypothesis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.anyio
async def test_a_port_in_use_is_one_clear_error() -> None:
    """The error names the port and what to do, and is raised without an ExceptionGroup."""
    async with EmbeddedBroker() as other:
        with pytest.raises(
            OSError, match=f"port {other.port} of 127.0.0.1 is in use by another program; choose another"
        ):
            async with EmbeddedBroker(port=other.port):
                raise AssertionError("two brokers listen on one port")


def test_a_port_in_use_is_one_clear_error_on_a_thread() -> None:
    """The same beside synchronous code."""
    with (
        EmbeddedBroker.in_thread() as other,
        pytest.raises(OSError, match=f"port {other.port} of 127.0.0.1 is in use"),
        EmbeddedBroker.in_thread(port=other.port),
    ):
        raise AssertionError("two brokers listen on one port")
