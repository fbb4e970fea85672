"""`LinkTask`: one link, from the dial to the end of the driver's block, as a task of the supervisor."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from attrs import evolve

from warrener._supervision.dial_slots import DialSlot
from warrener._supervision.lookups import Logins
from warrener._supervision.orders import Publishing
from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Driver, Link, LinkDown, LinkOptions
from warrener.errors import Fault
from warrener.machine import events
from warrener.records import Endpoint

__all__ = ["LinkTask"]


class LinkTask:
    """One link. It posts `LinkOpened` and `TopologyRestored`; its end is `DialFailed`, `LinkLost` or `LinkClosed`.

    When the end is posted, the driver's block has been left, so the socket is closed.
    """

    def __init__(
        self,
        number: int,
        publishing: Publishing,
        post: Callable[[events.Event], None],
        clock: Callable[[], float],
        logins: Logins | None = None,
    ) -> None:
        self.number = number
        self.link: Link | None = None
        #: Set when the supervisor wants the topology declared.
        self.replay = anyio.Event()
        #: Why the link ended; None if we closed it, or if the task was cancelled.
        self.fault: Fault | None = None
        self._publishing = publishing
        self._post = post
        self._clock = clock
        #: Where the credentials come from, if not from the endpoint.
        self._logins = logins
        #: Around the driver's whole block: cancelling it abandons a dial.
        self._whole = anyio.CancelScope()
        #: Around the body of the driver's block: cancelling it leaves the block with a close handshake.
        self._body = anyio.CancelScope()

    def close(self) -> None:
        """Close the link in good order, or abandon the dial."""
        (self._whole if self.link is None else self._body).cancel()

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake, or abandon the dial."""
        if self.link is None:
            self._whole.cancel()
        else:
            self.link.abort(fault)

    async def run(self, driver: Driver, endpoint: Endpoint, options: LinkOptions, topology: LiveTopology) -> None:
        """Live from the dial to the end of the block. Then the caller counts the end (`ending`) and posts it."""
        listener = self._publishing.expect_link(self.number)
        try:
            with self._whole:
                login = None if self._logins is None else await self._logins.ask()
                if login is not None:
                    endpoint = evolve(endpoint, credentials=login.credentials)
                async with DialSlot() as slot, driver.open(endpoint, options, listener) as link:
                    slot.release()
                    with self._body:
                        self.link = link
                        self._publishing.link_opened(link)
                        self._post(events.LinkOpened(self.number, at=self._clock()))
                        await self.replay.wait()
                        await topology.restore(link)
                        self._post(events.TopologyRestored(self.number, at=self._clock()))
                        if self._logins is not None and login is not None:
                            await self._logins.keep(link, login)
                        await anyio.sleep_forever()
        except LinkDown as down:
            self.fault = topology.after(down.fault)

    def ending(self) -> events.DialFailed | events.LinkLost | events.LinkClosed:
        """Return the event that says how the link ended."""
        at = self._clock()
        if self.fault is None:
            return events.LinkClosed(self.number, at=at)
        if self.link is None:
            return events.DialFailed(self.number, self.fault, at=at)
        return events.LinkLost(self.number, self.fault, at=at)
