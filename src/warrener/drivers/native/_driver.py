"""The driver: from an endpoint to an open link."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from warrener.drivers import _faults
from warrener.drivers._dial import Dialed
from warrener.drivers._dial import dial as dial_endpoint
from warrener.drivers._login import encodable, login_of
from warrener.drivers.base import LinkDown, LinkListener, LinkOptions
from warrener.drivers.native._link import NativeLink
from warrener.drivers.native._stream import STREAM_ENDS
from warrener.records import Endpoint
from warrener.wire import Session

__all__ = ["Dial", "NativeDriver"]


class Dial(Protocol):
    """How a driver comes by a connected stream; `warrener.drivers._dial.dial` unless a simulation says otherwise."""

    async def __call__(self, endpoint: Endpoint, /, *, require_tls: bool, ssl_context: ssl.SSLContext | None) -> Dialed:
        """Connect; raises `LinkDown` without an ExceptionGroup."""
        ...


class NativeDriver:
    """Makes links over byte streams that `dial` connects; holds no state of theirs."""

    name = "native"

    def __init__(self, dial: Dial | None = None) -> None:
        self._dial: Dial = dial or dial_endpoint

    @asynccontextmanager
    async def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AsyncGenerator[NativeLink]:
        """Connect, shake hands, open the main channel; see `warrener.drivers.base` for the rules."""
        deadline = anyio.current_time() + options.connect_timeout
        session = _session(endpoint, options, listener)
        link = NativeLink(await self._connect(endpoint, options, deadline), session, options, listener)
        failure: BaseException | None = None
        try:
            async with anyio.create_task_group() as tasks:
                link.start(tasks)
                try:
                    with link.scope:
                        await link.handshake(deadline)
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

    async def _connect(self, endpoint: Endpoint, options: LinkOptions, deadline: float) -> Dialed:
        with anyio.CancelScope(deadline=deadline):
            try:
                return await self._dial(endpoint, require_tls=options.require_tls, ssl_context=options.ssl_context)
            except STREAM_ENDS as error:
                fault = _faults.fault_of(error, _faults.DialPhase.DIALING, seconds=options.connect_timeout)
                raise LinkDown(fault) from None
        raise LinkDown(_faults.timed_out(_faults.DialPhase.DIALING, options.connect_timeout))


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
