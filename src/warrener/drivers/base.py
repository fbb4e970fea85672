"""The seam between the supervisor and the wire: `Driver.open` makes a `Link`; a `Link` publishes, listener, closes.

A third driver needs nothing but this file (docs/drivers.md). The rules that a driver keeps:

* `Driver.open` is an async context manager. Entering it takes at most `LinkOptions.connect_timeout`, from name
  resolution to confirm.select-ok; it raises one bare `LinkDown`, never a group. Cancellation passes through as itself.
* The block owns the socket, the tasks and the heartbeat. When the link dies, the driver cancels the body and the block
  raises one bare `LinkDown`; by then everything is closed. Leaving the block normally does the AMQP close handshake
  within `close_timeout` and then aborts; leaving it by an exception or a cancellation aborts within `abort_timeout`,
  shielded.
* `Link.publish` is a plain `def`: it takes the next delivery tag, hands the frames to the link's one writer, and returns.
  A caller's cancellation cannot reach the writer.
* `LinkListener` are plain `def`s that the link's reader calls; they neither block nor raise.
* *Channels* are numbered 1, 2, 3 … within a link, in the order in which they were opened for publishing; (link,
  channel) is an *epoch*, delivery tags belong to it and start at 1.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import field, frozen

from warrener.errors import Fault
from warrener.records import Endpoint, Envelope, Lane, Returned
from warrener.topology import Declaration

__all__ = ["Driver", "Lane", "Link", "LinkDown", "LinkListener", "LinkOptions", "Peer"]


class LinkDown(Exception):
    """The one exception that leaves a driver."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)


@frozen
class LinkOptions:
    """What a link is opened with; durations are seconds. See the table of defaults in docs/reference.md."""

    connection_name: str = "warrener"
    connect_timeout: float = 10.0
    heartbeat: float = 60.0
    prefetch: int = 100
    close_timeout: float = 3.0
    abort_timeout: float = 1.0
    write_stall_timeout: float = 30.0
    frame_timeout: float = 30.0
    max_inbound_body: int = 1024 * 1024
    #: The longest wait for the broker's answer to one declaration.
    declare_timeout: float = 10.0
    #: Refuse PLAIN without TLS to a host that is not local.
    require_tls: bool = False
    #: Replaces the TLS context that is made from the endpoint's files; from code only.
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)


@frozen
class Peer:
    """What the handshake settled, for `check`, status and logs; text is `printable`."""

    product: str = ""
    version: str = ""
    #: Negotiated: the smaller of both sides, in seconds; 0 is off.
    heartbeat: float = 0.0
    frame_max: int = 131072
    channel_max: int = 2047
    #: Where the winning connection went, e.g. ``127.0.0.1:5672``.
    address: str = ""
    #: The TLS version and cipher, or None without TLS.
    tls: str | None = None
    mechanism: str = "PLAIN"


class LinkListener(Protocol):
    """What a link tells its owner. Plain functions, called from the link's reader; one object per link."""

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """A publishing channel is in confirm mode; tags start at 1. Called for the first one before `open` returns."""

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """The broker closed the channel; tags up to `written` may have reached it. The driver opens MAIN anew itself."""

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.ack; 0 < tag <= the last tag assigned on the channel (anything else ends the link)."""

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.nack, with the same bounds. Only ever what the broker sent."""

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return with its content, in wire order among the confirms of the channel."""

    def blocked(self, reason: str) -> None:
        """connection.blocked, or channel.flow(false) on the publishing channel."""

    def unblocked(self) -> None:
        """connection.unblocked, or channel.flow(true)."""

    def writable(self) -> None:
        """`Link.congested` turned False."""


class Link(Protocol):
    """One TCP + AMQP life."""

    @property
    def peer(self) -> Peer:
        """What the handshake settled."""
        ...

    @property
    def congested(self) -> bool:
        """Whether so many bytes wait for the socket that the owner should hold back; `LinkListener.writable` follows."""
        ...

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Hand one message to the writer on the lane's open channel; return its delivery tag.

        `token`, where given, is sent as the header ``x-warrener-token``. The message was validated before
        (`validate`); this does not fail and does not wait. It may only be called while the lane's channel is open.
        """
        ...

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why the message cannot be sent on this link (header frame over frame_max …), or None."""
        ...

    def written(self, channel: int) -> int:
        """The highest tag of the channel whose last byte may have reached the network: marked before the send call.

        Valid after the link's end too, then for good, and after `abort`: what is handed out from then on has to be covered by
        the answer. A driver that cannot tell answers the last tag assigned.
        """
        ...

    def open_suspect_channel(self) -> None:
        """Open a channel for `Lane.SUSPECT` unless there is one; `LinkListener.channel_opened` follows."""

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare in the given order on a channel of its own; raises `LinkDown` with a `TOPOLOGY` fault on refusal."""

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue (basic.get, no-ack). For `warrener check`; not a consumer."""
        ...

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue (queue.delete)."""

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake; the block raises `LinkDown(fault)`. A plain `def`; idempotent."""


class Driver(Protocol):
    """Makes links; holds no state of theirs."""

    @property
    def name(self) -> str:
        """How logs and metrics call it."""
        ...

    def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AbstractAsyncContextManager[Link]:
        """Connect, shake hands, open the MAIN channel in confirm mode (channel number 1); see the rules above."""
        ...
