"""The interface between the supervisor and the wire: `Driver.open` makes a `Link`, which publishes, reports and closes.

A third driver needs nothing but this file (docs/drivers.md). A driver keeps these rules:

* `Driver.open` is an async context manager. Entering it takes at most `LinkOptions.connect_timeout`, from name
  resolution to confirm.select-ok. It is one pass over all addresses of the endpoint: an address that has not finished
  its handshake within its share of that time is left for the next one (docs/drivers.md). A failure is one `LinkDown`,
  raised without an ExceptionGroup. A cancellation stays a cancellation.
* The context manager owns the socket, the tasks and the heartbeat. When the link dies, the driver cancels the body of the
  `async with`, closes everything, and then raises one `LinkDown` without an ExceptionGroup. When the body ends by itself,
  the driver does the AMQP close handshake within `close_timeout` and then aborts. When the body ends by an exception or a
  cancellation, the driver aborts within `abort_timeout`, shielded.
* `Link.publish` is a plain `def`: it takes the next delivery tag, appends the frames to the pending bytes of the link's one
  writer, and returns. A caller's cancellation cannot reach the writer.
* `Link.publish_batch` does the same for many messages at once. The owner calls it from `LinkListener.pull`, which it asks for
  by `Link.request_pull`: so one call takes all messages that wait by then, and a message can be withdrawn until then.
* The methods of a `LinkListener` are plain `def`s that the link's reader calls; they neither block nor raise.
* Channels are numbered 1, 2, 3 … within a link, in the order in which they were opened for publishing. (link, channel) is
  an *epoch*; delivery tags belong to it and start at 1.

Three moments of a message, in this order:

* *begun*: its first byte was given to the transport;
* *written*: the call that gives its last byte to the transport has started: from here on it may arrive;
* *out*: that call has returned: the clock of `confirm_timeout` starts.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import field, frozen

from warrener.errors import Fault
from warrener.records import Endpoint, Envelope, Lane, Returned
from warrener.topology import Binding, Declaration

__all__ = ["Driver", "Lane", "Link", "LinkDown", "LinkListener", "LinkOptions", "Peer"]


class LinkDown(Exception):
    """The only exception that a driver raises."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)


@frozen
class LinkOptions:
    """The settings of a link; durations are seconds. docs/reference.md has the table of defaults."""

    connection_name: str = "warrener"
    connect_timeout: float = 10.0
    heartbeat: float = 60.0
    prefetch: int = 100
    close_timeout: float = 3.0
    abort_timeout: float = 1.0
    write_stall_timeout: float = 30.0
    frame_timeout: float = 30.0
    max_inbound_body: int = 1024 * 1024
    #: The index of the address that the dial begins with, taken modulo the number of addresses.
    first_address: int = 0
    #: The longest wait for the broker's answer to one declaration.
    declare_timeout: float = 10.0
    #: Refuse PLAIN without TLS to a host that is not local.
    require_tls: bool = False
    #: Replaces the TLS context that is made from the endpoint's files; from code only.
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)


@frozen
class Peer:
    """What both sides agreed on in the handshake, for `check`, status and logs; its texts are `printable`."""

    product: str = ""
    version: str = ""
    #: The smaller interval of both sides, in seconds; 0 is off.
    heartbeat: float = 0.0
    frame_max: int = 131072
    channel_max: int = 2047
    #: The address of the broker that was reached, e.g. ``127.0.0.1:5672``.
    address: str = ""
    #: The TLS version and cipher, or None without TLS.
    tls: str | None = None
    mechanism: str = "PLAIN"


class LinkListener(Protocol):
    """What a link reports to its owner. Plain functions, called from the link's reader; one object per link."""

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """A publishing channel is in confirm mode; tags start at 1. Called for the first one before `open` returns."""

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """The broker closed the channel; tags up to `written` may have reached it. The driver itself opens MAIN anew."""

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.ack; 0 < tag <= the last tag assigned on the channel (anything else ends the link)."""

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.nack, with the same bounds; a driver never makes one up."""

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return with its content, in wire order among the confirms of the channel."""

    def blocked(self, reason: str) -> None:
        """connection.blocked, or channel.flow(false) on the publishing channel."""

    def unblocked(self) -> None:
        """connection.unblocked, or channel.flow(true)."""

    def writable(self) -> None:
        """`Link.congested` turned False."""

    def pull(self) -> None:
        """The link is about to send: hand over the messages that wait. It follows each `Link.request_pull`."""


class Link(Protocol):
    """One TCP connection with its AMQP session."""

    @property
    def peer(self) -> Peer:
        """What both sides agreed on in the handshake."""
        ...

    @property
    def congested(self) -> bool:
        """Whether too many bytes are pending, so that the owner should hold back; `LinkListener.writable` follows."""
        ...

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Append one message to the pending bytes, for the lane's open channel; return its delivery tag.

        `token`, where given, is sent as the header ``x-warrener-token``. The owner has called `validate` for the message
        before; this does not fail and does not wait. It may be called only while the lane's channel is open.
        """
        ...

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """Append messages for MAIN's open channel, in this order; return the tag of the first. Tags are consecutive.

        The sequences have the same length, 1 or more. The owner has called `validate` for a message of each envelope, with an
        id and a token that are at least as long. A loop of `publish` is a correct implementation.
        """
        ...

    def request_pull(self) -> None:
        """Have `LinkListener.pull` called: when the writer is next about to send, or at once where there is no writer."""

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why the message cannot be sent on this link (header frame over frame_max …), or None."""
        ...

    def written(self, channel: int) -> int:
        """The highest tag of the channel that was *written*.

        The answer is valid after the link's end too, and after `abort`: it then covers everything that may still be written.
        A driver that cannot tell answers the last tag assigned.
        """
        ...

    def begun(self, channel: int) -> int:
        """The highest tag of the channel that was *begun*: `written(channel)`, or one more.

        A broker may close a channel because of a message of which it has seen the first bytes only. So every tag up to
        this one is a suspect of a channel close.
        """
        ...

    @property
    def bytes_out(self) -> int:
        """How many bytes of this link the peer has taken, as far as the driver can tell. It only grows.

        While it grows, a missing confirm is no sign of a dead link: a large message on a slow line takes its time.
        """
        ...

    @property
    def bytes_left(self) -> int:
        """About how many bytes the peer has not taken yet: pending here, or in the kernel. 0: nothing is on its way."""
        ...

    def open_suspect_channel(self) -> None:
        """Open a channel for `Lane.SUSPECT` unless there is one; `LinkListener.channel_opened` follows."""

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Declare in the given order on a channel of its own; return the names of the queues, as the broker gives them.

        The declarations are pipelined; each has `declare_timeout` from the answer before it. The first refusal raises
        `LinkDown` with a `TOPOLOGY` fault that names the entity.
        """
        ...

    async def unbind(self, binding: Binding) -> None:
        """End a binding; raises as `declare` does."""

    async def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue and return how many; raises as `declare` does."""
        ...

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue (basic.get, no-ack). For `warrener check`; not a consumer."""
        ...

    async def delete_queue(self, queue: str) -> int:
        """Delete a queue and return how many messages it held; raises as `declare` does."""
        ...

    async def update_secret(self, secret: str) -> None:
        """Give the broker a new secret in place of the password (connection.update-secret); return when it has answered.

        A refusal ends the link, with an `AUTHENTICATION` fault. So does an answer that does not come within
        `declare_timeout`. A secret that cannot be sent raises `LinkDown`, and the link lives on. No text shows the secret.
        """

    def abort(self, fault: Fault) -> None:
        """End the link without a close handshake: the context manager raises `LinkDown(fault)`. Idempotent, a plain `def`."""


class Driver(Protocol):
    """Makes links."""

    @property
    def name(self) -> str:
        """Its name in logs and metrics."""
        ...

    def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AbstractAsyncContextManager[Link]:
        """Connect, shake hands, open the MAIN channel in confirm mode (channel number 1); see the rules above."""
        ...
