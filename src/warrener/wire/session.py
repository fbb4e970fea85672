"""One AMQP 0-9-1 connection, seen from the client, without I/O, clock, logging or await.

Bytes go in by `receive`, bytes come out by `data_to_send`. `receive` returns what happened as events; confirms and
returns are calls of the `ConfirmHandler`, in wire order. A transport, a test and a fuzzer drive a session alike::

    session = Session(credentials, confirm_handler)
    send(session.data_to_send())
    for event in session.receive(data):
        ...

**The connection** goes through the values of `SessionPhase`, forwards only::

    STARTING --start--> AUTHENTICATING --tune--> OPENING --open-ok--> OPEN --close()--> CLOSING --close-ok--> OVER

and from every one of them to OVER: by the broker's close, by `fail`, or by bytes that mean nothing there. A method is
legal in the phases that its case names; in any other phase it is a protocol error. The first three phases are decided
by `warrener.wire.handshake`.

**Channels.** Publishers are numbered 1, 2, 3 … in the order in which they are opened. AMQP's own channel numbers are
used in turn, so that a number comes back as late as possible. A publisher asks for channel.open, confirm.select and
basic.qos one after the other, and takes messages when all three are answered: no message goes out before select-ok.
Declarations and basic.get have a channel of their own (`_control`).

**Closing.** After our own close nothing but close-ok and heartbeats is sent, and everything but close and close-ok is
ignored. The broker's close is answered once, other bytes that were not taken are dropped, and a second close is ignored
(RabbitMQ sends two when it refuses credentials). Closes that cross are answered by both sides.

Invariants: `receive` raises nothing, whatever the bytes. After a `ProtocolError` event no byte leaves. The memory for
inbound bytes is bounded by the largest frame and by `max_inbound_body`. No text and no event holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pamqp import commands

from warrener.records import Credentials, FieldValue
from warrener.wire import events
from warrener.wire._control import ControlChannel
from warrener.wire._table import ChannelTable
from warrener.wire.channel import ChannelState, Content, Outgoing, Publisher
from warrener.wire.codec import (
    Malformed,
    Method,
    read_content_header,
    read_method,
)
from warrener.wire.events import ConfirmHandler, Event, ProtocolErrorKind, SessionPhase, Tuning
from warrener.wire.framing import FLOOR, HEADER, HEARTBEAT, METHOD, Parser
from warrener.wire.handshake import MECHANISMS, Handshake, PeerRefused, greeted, negotiate_heartbeat, negotiate_limit
from warrener.wire.masking import Mask
from warrener.wire.requests import Request

__all__ = ["MECHANISMS", "Session", "negotiate_heartbeat", "negotiate_limit"]

_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
#: How many answers may wait for the socket; without this limit a broker that reads no answers could fill our memory.
_ANSWERS: Final = 1000

#: What a publisher asks for next, and the answer that each state waits for.
_STEPS: Final[Mapping[ChannelState, tuple[type[Method], ChannelState]]] = {
    ChannelState.OPENING: (commands.Channel.OpenOk, ChannelState.CONFIRMING),
    ChannelState.CONFIRMING: (commands.Confirm.SelectOk, ChannelState.LIMITING),
    ChannelState.LIMITING: (commands.Basic.QosOk, ChannelState.READY),
}


class Session:
    """The protocol state of a link. See the module's page for what must stay true."""

    def __init__(
        self,
        credentials: Credentials,
        confirm_handler: ConfirmHandler,
        *,
        vhost: str = "/",
        heartbeat: float = 60.0,
        prefetch: int = 100,
        frame_max: int = 131_072,
        channel_max: int = 2047,
        max_inbound_body: int = 1024 * 1024,
        mechanisms: Sequence[str] = MECHANISMS,
        client_properties: Mapping[str, FieldValue] | None = None,
    ) -> None:
        """Begin: the protocol header is ready to be sent.

        Raises `ValueError` where an argument cannot be put into AMQP (a vhost of more than 255 bytes …).
        """
        self._handshake = Handshake(
            credentials,
            vhost=vhost,
            heartbeat=heartbeat,
            frame_max=frame_max,
            channel_max=channel_max,
            mechanisms=mechanisms,
            client_properties=client_properties or {},
        )
        self._username = credentials.username
        self._text = Mask(credentials)
        self._prefetch = prefetch
        self._max_inbound_body = max_inbound_body
        self.phase = SessionPhase.STARTING
        self.tuning: Tuning | None = None
        self._confirm_handler = confirm_handler
        self._events: list[Event] = []
        self._out = Outgoing(pending=bytearray(_PROTOCOL_HEADER))
        self._parser = Parser(self._on_ack, self._on_nack, self._on_frame)
        #: The first bytes, kept until they are known to be a frame's.
        self._greeting: bytearray | None = bytearray()
        self._table = ChannelTable()
        #: Looked at for each confirm.
        self._publishers = self._table.publishers
        self._control: ControlChannel | None = None
        #: What blocks publishing: 0 for the connection, else the number of the channel whose flow was stopped.
        self._blocked_by: set[int] = set()
        self._updating_secret = False
        #: Answers to what the broker may ask again and again, since bytes were last taken.
        self._answers = 0

    # --- bytes -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take the next bytes from the broker, in any split; return what they mean. Never raises."""
        if self.phase is not SessionPhase.OVER:
            try:
                if self._greeting is not None:
                    self._greet(data)
                else:
                    self._parser.feed(data)
            except Malformed as error:
                self._break(events.ProtocolError(ProtocolErrorKind.ILLEGAL, str(error)))
            except PeerRefused as refused:
                self._break(refused.error)
        happened, self._events = self._events, []
        return happened

    def _break(self, error: events.ProtocolError) -> None:
        """End the session, because the peer broke the protocol; nothing is sent any more.

        A session that is over ignores the error, and still sends its answer to the broker's close.
        """
        if self.phase is not SessionPhase.OVER:
            self.fail()
            self._events.append(error)

    def data_to_send(self) -> bytes:
        """Return the next bytes for the socket, b"" for none; from this call on they count as written to it."""
        self._answers = 0
        return self._out.take()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to send."""
        return self._out.empty

    @property
    def backlog(self) -> int:
        """About how many bytes wait to be sent (to within one parcel of 64 KiB)."""
        return self._out.backlog

    @property
    def pending(self) -> int:
        """How many bytes wait to be sent."""
        return self._out.backlog + len(self._out.pending)

    @property
    def residue(self) -> int:
        """The bytes held of an unfinished frame; 0 between frames."""
        return self._parser.residue + len(self._greeting or b"")

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped publishing, by connection.blocked or a channel's flow.

        It is true before `receive` returns the event.
        """
        return bool(self._blocked_by)

    @property
    def completions(self) -> int:
        """Grows whenever `receive` completed a frame: what a frame's deadline is measured by."""
        return self._parser.completions

    def _greet(self, data: bytes | memoryview) -> None:
        greeting = self._greeting
        assert greeting is not None
        greeting += data
        if greeted(greeting):
            self._greeting = None
            self._parser.feed(bytes(greeting))

    # --- orders -------------------------------------------------------------------------------------------------

    def fail(self) -> None:
        """End the session at once: nothing more is sent, and bytes that arrive later are ignored."""
        self._end()
        self._out.clear()

    def close(self, reply_code: int = 200, reply_text: str = "bye") -> None:
        """Begin our close; what was published and not taken by `data_to_send` is dropped. `Closed` follows."""
        if self.phase in (SessionPhase.CLOSING, SessionPhase.OVER):
            return
        self._out.clear()
        self._end()
        self.phase = SessionPhase.CLOSING
        self._send(0, commands.Connection.Close, reply_code=reply_code, reply_text=reply_text)

    def beat(self) -> None:
        """Send a heartbeat, where they were agreed upon and the session is not over."""
        if self.tuning is not None and self.phase is not SessionPhase.OVER:
            self._out.pending += HEARTBEAT

    def update_secret(self, secret: str, reason: str = "") -> None:
        """Give the broker a new secret in place of the password (RabbitMQ's OAuth 2); `SecretUpdated` follows."""
        self._require_open()
        if self._updating_secret:
            raise RuntimeError("another update of the secret is not answered yet")
        self._send(0, commands.Connection.UpdateSecret, new_secret=secret, reason=reason)
        self._text.learn(Credentials(self._username, secret))
        self._updating_secret = True

    def open_publisher(self) -> int:
        """Open a publishing channel and return its number; `ChannelOpened` follows."""
        self._require_open()
        assert self.tuning is not None
        publisher = self._table.add_publisher(self.tuning.channel_max, self.tuning.frame_max, self._out)
        self._out.publishers.append(publisher)
        self._send(publisher.wire_number, commands.Channel.Open)
        return publisher.number

    def publisher(self, channel: int) -> Publisher:
        """Return a publishing channel, to call its `publish` directly and to read its `written`.

        Of the channels that were closed only the last few are known (KeyError for others).
        """
        return self._table.known[channel]

    def request(self, request: Request) -> None:
        """Send a request; `Replied`, `GetResult` or `Refused` follows.

        Other requests may wait for their answers: the answers come in the order of the requests, and `Refused` ends those
        behind it, too. Raises `Unsendable`.
        """
        self._require_open()
        assert self.tuning is not None
        frame_max = self.tuning.frame_max
        request.encode(0, frame_max)  # raises `Unsendable` before a channel is opened for it
        control = self._control
        if control is None:
            wire_number = self._table.free_number(self.tuning.channel_max)

            def send(request: Request) -> None:
                self._out.pending += request.encode(wire_number, frame_max)

            control = self._control = self._table.channels[wire_number] = ControlChannel(wire_number, send)
            self._send(wire_number, commands.Channel.Open)
        control.ask(request)

    def release_control(self) -> None:
        """Close the control channel, if there is one; answers that are still due are ignored."""
        control, self._control = self._control, None
        if control is not None and self.phase is SessionPhase.OPEN:
            control.close()

    def _require_open(self) -> None:
        if self.phase is not SessionPhase.OPEN:
            raise RuntimeError(f"the session is not open ({self.phase.value})")

    def _send(self, channel: int, kind: type[Method], **arguments: Any) -> None:
        frame_max = FLOOR if self.tuning is None else self.tuning.frame_max
        self._out.pending += Request(kind, arguments).encode(channel, frame_max)

    def _answer(self, channel: int, kind: type[Method], **arguments: Any) -> None:
        """Answer a request that may come any number of times; raises `Malformed` if too many answers wait."""
        self._answers += 1
        if self._answers > _ANSWERS:
            raise Malformed(f"it sent more than {_ANSWERS} requests and did not read the answers")
        self._send(channel, kind, **arguments)

    def _end(self) -> None:
        """Enter the phase OVER: no channel can be used any more; `written` of each stays readable."""
        self.phase = SessionPhase.OVER
        self._table.clear()
        self._control = None
        for publisher in self._out.publishers:
            publisher.end()
        self._out.publishers.clear()

    # --- confirms: the hot path -----------------------------------------------------------------------------------

    def _on_ack(self, wire_number: int, tag: int, multiple: bool) -> None:
        publisher = self._publishers.get(wire_number)
        if publisher is None or not 0 < tag <= publisher.written or publisher.content is not None:
            self._unexpected_confirm(wire_number, tag, publisher)
        else:
            self._confirm_handler.confirmed(publisher.number, tag, multiple)

    def _on_nack(self, wire_number: int, tag: int, multiple: bool) -> None:
        publisher = self._publishers.get(wire_number)
        if publisher is None or not 0 < tag <= publisher.written or publisher.content is not None:
            self._unexpected_confirm(wire_number, tag, publisher)
        else:
            self._confirm_handler.nacked(publisher.number, tag, multiple)

    def _unexpected_confirm(self, wire_number: int, tag: int, publisher: Publisher | None) -> None:
        if self.phase in (SessionPhase.CLOSING, SessionPhase.OVER):
            return
        channel = self._table.channels.get(wire_number)
        if isinstance(channel, ControlChannel) and channel.state is ChannelState.CLOSING:
            return
        if publisher is None:
            raise Malformed(f"a confirm came on channel {wire_number}, where nothing is published")
        if publisher.content is not None:
            raise Malformed("a confirm came inside the content of a return")
        raise Malformed(f"tag {tag} was confirmed, but only tags 1 to {publisher.written} were written")

    # --- frames -------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, wire_number: int, payload: bytearray) -> None:
        if self.phase is SessionPhase.OVER:
            return
        if wire_number == 0:
            self._on_connection_method(read_method(payload))
            return
        if self.phase is SessionPhase.CLOSING:
            return
        channel = self._table.channels.get(wire_number)
        if channel is None:
            raise Malformed(f"a frame came on channel {wire_number}, which is not open")
        if kind == METHOD:
            if channel.content is not None:
                raise Malformed(f"a method came on channel {wire_number} inside a content")
            method = read_method(payload)
            if isinstance(channel, Publisher):
                self._on_publisher_method(channel, method)
            else:
                self._on_control_method(channel, method)
        elif channel.state is not ChannelState.CLOSING:
            self._on_content(channel, kind, payload)

    def _on_content(self, channel: Publisher | ControlChannel, kind: int, payload: bytearray) -> None:
        content = channel.content
        if content is None:
            raise Malformed(f"content came on channel {channel.wire_number} without a method before it")
        if kind == HEADER:
            content.begin(read_content_header(payload), self._max_inbound_body)
        else:
            content.extend(payload)
        header = content.complete
        if header is None:
            return
        channel.content = None
        if isinstance(channel, Publisher):
            self._confirm_handler.returned(channel.number, content.returned(header, self._text))
        else:
            self._events.append(channel.on_content(content, header))

    # --- methods of the connection ----------------------------------------------------------------------------------

    def _on_connection_method(self, method: Method) -> None:
        match method, self.phase:
            case commands.Connection.Close(), SessionPhase.CLOSING:
                self._send(0, commands.Connection.CloseOk)
                self._end()
                self._events.append(events.Closed())
            case commands.Connection.CloseOk(), SessionPhase.CLOSING:
                self._end()
                self._out.clear()
                self._events.append(events.Closed())
            case _, SessionPhase.CLOSING:
                pass
            case commands.Connection.Close(reply_code=code, reply_text=text, class_id=kind, method_id=blamed), phase:
                self._out.clear()
                self._end()
                self._send(0, commands.Connection.CloseOk)
                self._events.append(
                    events.CloseReceived(code or 0, self._text(text), phase, (kind or 0) << 16 | (blamed or 0))
                )
            case commands.Connection.Start(), SessionPhase.STARTING:
                self._out.pending += self._handshake.on_start(method)
                self.phase = SessionPhase.AUTHENTICATING
            case commands.Connection.Secure(), SessionPhase.AUTHENTICATING:
                self._out.pending += self._handshake.on_secure()
            case commands.Connection.Tune(), SessionPhase.AUTHENTICATING:
                answer, self.tuning = self._handshake.on_tune(method)
                self._parser.cap = self.tuning.frame_max
                self._out.pending += answer
                self.phase = SessionPhase.OPENING
                self._events.append(events.Tuned(self.tuning))
            case commands.Connection.OpenOk(), SessionPhase.OPENING:
                self.phase = SessionPhase.OPEN
                self._events.append(events.Opened())
            case commands.Connection.Blocked(reason=reason), SessionPhase.OPEN:
                self._blocked_by.add(0)
                self._events.append(events.Blocked(self._text(reason)))
            case commands.Connection.Unblocked(), SessionPhase.OPEN:
                self._unblock(0)
            case commands.Connection.UpdateSecretOk(), SessionPhase.OPEN if self._updating_secret:
                self._updating_secret = False
                self._events.append(events.SecretUpdated())
            case _:
                raise Malformed(f"{method.name} came while the connection was {self.phase.value}")

    def _unblock(self, source: int) -> None:
        if source in self._blocked_by:
            self._blocked_by.discard(source)
            if not self._blocked_by:
                self._events.append(events.Unblocked())

    # --- methods of channels ----------------------------------------------------------------------------------------

    def _on_publisher_method(self, publisher: Publisher, method: Method) -> None:
        step = _STEPS.get(publisher.state)
        match method:
            case commands.Channel.Close(reply_code=code, reply_text=text):
                publisher.end()
                self._out.publishers.remove(publisher)
                self._table.remove(publisher.wire_number)
                self._send(publisher.wire_number, commands.Channel.CloseOk)
                self._events.append(
                    events.ChannelClosed(
                        publisher.number, code or 0, self._text(text), publisher.written, publisher.begun
                    )
                )
                self._unblock(publisher.number)
            case _ if step is not None and isinstance(method, step[0]):
                publisher.state = step[1]
                match publisher.state:
                    case ChannelState.CONFIRMING:
                        self._send(publisher.wire_number, commands.Confirm.Select)
                    case ChannelState.LIMITING:
                        self._send(publisher.wire_number, commands.Basic.Qos, prefetch_count=self._prefetch)
                    case _:
                        self._events.append(events.ChannelOpened(publisher.number))
            case commands.Channel.Flow(active=active) if publisher.state is not ChannelState.OPENING:
                self._answer(publisher.wire_number, commands.Channel.FlowOk, active=active)
                if active:
                    self._unblock(publisher.number)
                else:
                    self._blocked_by.add(publisher.number)
                    self._events.append(events.Blocked("the broker stopped the flow of the channel"))
            case commands.Basic.Return() if publisher.last_tag:
                publisher.content = Content(method, kept=None)
            case _:
                raise Malformed(f"{method.name} came while the channel was {publisher.state.value}")

    def _on_control_method(self, control: ControlChannel, method: Method) -> None:
        match method:
            case commands.Channel.Close(reply_code=code, reply_text=text):
                self._answer(control.wire_number, commands.Channel.CloseOk)
                if control.state is not ChannelState.CLOSING:  # we have not sent a close of our own
                    self._table.remove(control.wire_number)
                    self._control = None
                    self._events.append(events.Refused(code or 0, self._text(text)))
            case commands.Channel.CloseOk() if control.state is ChannelState.CLOSING:
                self._table.remove(control.wire_number)
            case _ if control.state is ChannelState.CLOSING:
                pass
            case commands.Channel.Flow(active=active):
                self._answer(control.wire_number, commands.Channel.FlowOk, active=active)
            case _:
                event = control.on_method(method)
                if event is not None:
                    self._events.append(event)
