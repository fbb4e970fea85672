"""The driver: from an endpoint to an open link."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import anyio
from anyio.abc import ByteStream
from sniffio import current_async_library

from warrener.drivers import _faults
from warrener.drivers._dial import Dialed, Sockets, close_now, dial_by
from warrener.drivers._faults import DialPhase
from warrener.drivers._login import encodable, login_of
from warrener.drivers.base import LinkDown, LinkListener, LinkOptions, Peer
from warrener.drivers.native import _tls, _trio
from warrener.drivers.native._link import NativeLink
from warrener.drivers.native._stream import StreamTransport
from warrener.drivers.native._transport import ENDS, Transport
from warrener.errors import Fault
from warrener.records import Endpoint
from warrener.wire import Session

__all__ = ["Dial", "NativeDriver"]


_Dialed: TypeAlias = Dialed[Transport | ByteStream]


class Dial(Protocol):
    """How a driver gets a connection: on sockets of the running backend, unless a simulation replaces them."""

    async def __call__(
        self, endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None, first_address: int
    ) -> Dialed[Transport | ByteStream]:
        """Connect; raises `LinkDown` without an ExceptionGroup."""
        ...


async def dial_sockets(
    endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None, first_address: int
) -> Dialed[Transport]:
    """Connect by sockets of the running backend."""
    connect_tcp, connect_unix = (
        (_trio.connect_tcp, _trio.connect_unix) if current_async_library() == "trio" else _asyncio_sockets()
    )
    return await dial_by(
        Sockets[Transport](connect_tcp, connect_unix, _tls.secure),
        endpoint,
        require_tls=require_tls,
        ssl_context=ssl_context,
        first_address=first_address,
    )


def _asyncio_sockets() -> tuple[Callable[[str, int], Awaitable[Transport]], Callable[[str], Awaitable[Transport]]]:
    from warrener.drivers.native import _asyncio

    return _asyncio.connect_tcp, _asyncio.connect_unix


class NativeDriver:
    """Makes links over connections that `dial` makes; holds no state of theirs."""

    name = "native"

    def __init__(self, dial: Dial | None = None) -> None:
        self._dial: Dial = dial or dial_sockets
        if "asyncio" in sys.modules:
            # A program on Trio need not import asyncio. On asyncio, a later dial may find no free descriptor for it.
            _asyncio_sockets()

    @asynccontextmanager
    async def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AsyncGenerator[NativeLink]:
        """Connect, shake hands, open the main channel; see `warrener.drivers.base` for the rules."""
        deadline = anyio.current_time() + options.connect_timeout
        dialed = await _in_time(
            self._dial(
                endpoint,
                require_tls=options.require_tls,
                ssl_context=options.ssl_context,
                first_address=options.first_address,
            ),
            deadline,
            _faults.timed_out(DialPhase.DIALING, options.connect_timeout),
        )
        while True:
            opened = False
            try:
                async with _live(dialed, endpoint, options, listener, deadline) as link:
                    opened = True
                    yield link
                return
            except LinkDown as down:
                if opened or dialed.after is None:
                    raise
                fault, connect_next = down.fault, dialed.after
            dialed = await _in_time(connect_next(fault), deadline, fault)


async def _in_time(connecting: Awaitable[_Dialed], deadline: float, otherwise: Fault) -> _Dialed:
    """Return the connected stream; at the deadline raises `LinkDown(otherwise)`."""
    with anyio.CancelScope(deadline=deadline):
        try:
            return await connecting
        except ENDS as error:
            raise LinkDown(_faults.fault_of(error, DialPhase.DIALING)) from None
    raise LinkDown(otherwise)


@asynccontextmanager
async def _live(
    dialed: _Dialed, endpoint: Endpoint, options: LinkOptions, listener: LinkListener, deadline: float
) -> AsyncGenerator[NativeLink]:
    """Shake hands on one stream, and own the link until it ends; the stream is closed in any case."""
    seconds = options.connect_timeout
    if not dialed.last:
        seconds = dialed.share(seconds)
        deadline = min(deadline, dialed.began + seconds)
    try:
        session = _session(endpoint, options, listener)
    except LinkDown:
        await close_now(dialed.stream)
        raise
    stream = dialed.stream
    transport = StreamTransport(stream) if isinstance(stream, ByteStream) else stream
    link = NativeLink(transport, Peer(address=dialed.address, tls=dialed.tls), session, options, listener)
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            link.start(tasks)
            try:
                with link.scope:
                    await link.handshake(deadline, seconds)
                    yield link
                if link.fault is None:
                    await link.close()
            except BaseException as error:  # noqa: BLE001 - raised again below, without the group
                failure = error
            await link.answer_close()
            tasks.cancel_scope.cancel()
    finally:
        await link.shut()
    if failure is not None:
        raise failure
    if link.fault is not None:
        raise LinkDown(link.fault)


def _session(endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> Session:
    return encodable(
        lambda: Session(
            endpoint.credentials,
            listener,
            prefetch=options.prefetch,
            max_inbound_body=options.max_inbound_body,
            **login_of(endpoint, options, product="warrener"),
        )
    )
