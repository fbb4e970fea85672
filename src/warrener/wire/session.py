"""One AMQP 0-9-1 connection, seen from the client, without I/O, clock, logging or await.

Bytes go in by `receive`, bytes come out by `data_to_send`; what happened comes out as facts, and confirms and returns
as calls of `Confirms`, in wire order. A transport, a test and a fuzzer drive it alike::

    session = Session(credentials, confirms)
    send(session.data_to_send())
    for fact in session.receive(bytes):
        ...

**The connection** goes through the values of `Phase`, forwards only::

    STARTING --start--> AUTHENTICATING --tune--> OPENING --open-ok--> OPEN --close()--> CLOSING --close-ok--> OVER

and from every one of them to OVER: by the broker's close, by `fail`, or by bytes that mean nothing there. Each method
is legal in the phases that its case names; anything else is a fault.

**Channels.** Publishers are numbered 1, 2, 3 … in the order in which they are opened; AMQP's own channel numbers are
handed out round and round, so that a number comes back as late as possible. A publisher asks for open, confirm.select
and basic.qos one after the other, and takes messages when all three are answered (no publish before select-ok, I7).
Declarations and basic.get have a control channel: the broker closes the channel of a request that it refuses, and that
must not be a channel with messages on it.

**Closing.** After our close nothing but close-ok and heartbeats is sent and everything but close and close-ok is
ignored (I29). The broker's close is answered once, what was not taken of the other output is dropped, and a second close
is ignored (RabbitMQ sends two when credentials are refused). Crossed closes are answered by both sides (I30).

What must stay true: `receive` raises nothing, whatever the bytes; after `ProtocolError` no byte leaves (R18); inbound memory
is bounded by the frame cap and `max_inbound_body` (R19); no text or fact holds a secret (R20).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pamqp import commands

from warrener.errors import printable
from warrener.records import Credentials, FieldValue, Returned
from warrener.topology import Binding, Declaration, Exchange, Queue
from warrener.wire import events
from warrener.wire.channel import Content, Outgoing, Publisher, Stage
from warrener.wire.codec import (
    ContentHeader,
    Malformed,
    Method,
    Unsendable,
    long_string,
    method_payload,
    read_content_header,
    read_method,
    short_string,
    table,
)
from warrener.wire.events import Confirms, Event, Phase, ProtocolErrorKind, Tuning
from warrener.wire.framing import FLOOR, HEADER, HEARTBEAT, METHOD, Parser, frame

__all__ = ["MECHANISMS", "Session", "negotiate_heartbeat", "negotiate_limit"]

_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
#: AMQP's floor (4.2.3): a peer that tunes below it cannot be talked to.
_FRAME_FLOOR: Final = 4096
#: How many closed publishers stay known, for their `written`: a broker that closes channels for ever costs no memory.
_CLOSED_KEPT: Final = 8
#: How many answers may wait for the socket; what is asked beyond them would grow our memory at the broker's will.
_ANSWERS: Final = 1000
#: Two publishers and the control channel.
_CHANNELS_NEEDED: Final = 3
#: The mechanisms a session may use, the first that the broker offers wins; EXTERNAL only where the caller asks for it.
MECHANISMS: Final = ("PLAIN", "AMQPLAIN")

_CAPABILITIES: Final[Mapping[str, FieldValue]] = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


def negotiate_limit(ours: int, theirs: int) -> int:
    """Return the smaller of two limits, where 0 from the broker means that it has none (I32)."""
    return min(ours, theirs) if theirs else ours


def negotiate_heartbeat(ours: float, theirs: int) -> int:
    """Return the smaller interval in whole seconds; the broker's 0 leaves it to us, and our 0 turns heartbeats off."""
    return negotiate_limit(min(math.ceil(ours), 0xFFFF), theirs) if ours > 0 else 0


class _Control:
    """The control channel: one request at a time."""

    __slots__ = ("content", "request", "stage", "waiting", "wire_number")

    def __init__(self, wire_number: int) -> None:
        self.wire_number = wire_number
        self.stage = Stage.OPENING
        #: The request that waits for the channel to open, and the one that waits for its reply.
        self.waiting: tuple[type[Method], dict[str, Any]] | None = None
        self.request: type[Method] | None = None
        self.content: Content | None = None


#: The replies that a request may get.
_REPLIES: Final[Mapping[type[Method], tuple[type[Method], ...]]] = {
    commands.Exchange.Declare: (commands.Exchange.DeclareOk,),
    commands.Queue.Declare: (commands.Queue.DeclareOk,),
    commands.Queue.Bind: (commands.Queue.BindOk,),
    commands.Queue.Delete: (commands.Queue.DeleteOk,),
    commands.Basic.Get: (commands.Basic.GetOk, commands.Basic.GetEmpty),
}

#: What a publisher asks for next, and the answer that each stage waits for.
_STEPS: Final[Mapping[Stage, tuple[type[Method], Stage]]] = {
    Stage.OPENING: (commands.Channel.OpenOk, Stage.CONFIRMING),
    Stage.CONFIRMING: (commands.Confirm.SelectOk, Stage.LIMITING),
    Stage.LIMITING: (commands.Basic.QosOk, Stage.READY),
}


class _Refusal(Exception):
    """We refuse the peer; becomes `ProtocolError` in `receive`."""

    def __init__(self, kind_of_error: ProtocolErrorKind, text: str, octets: bytes = b"") -> None:
        super().__init__(text)
        self.broken = events.ProtocolError(kind_of_error, text, octets)


class Session:
    """The protocol state of a link. See the module's page for what must stay true."""

    def __init__(
        self,
        credentials: Credentials,
        confirms: Confirms,
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
        if not 8192 <= frame_max <= 0x7FFFFFFF:
            raise ValueError("frame_max must be at least 8192, which is what RabbitMQ asks for")
        self._credentials = credentials
        for name, text in (("username", credentials.username), ("password", credentials.password)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the {name} cannot be encoded as UTF-8") from None
        self._mechanisms = mechanisms
        self._mechanism = ""
        self._client_properties = table({**(client_properties or {}), "capabilities": _CAPABILITIES})
        self._open = method_payload(commands.Connection.Open, virtual_host=vhost)
        self._prefetch = prefetch
        self._max_inbound_body = max_inbound_body
        self._wanted = (heartbeat, frame_max, channel_max)
        self._product = self._version = ""
        longest = max((len(self._start_ok(mechanism)) for mechanism in mechanisms), default=0)
        if longest > FLOOR:
            raise ValueError(
                f"name, user and password take {longest:,} bytes; a frame holds {FLOOR:,} before the tuning"
            )

        self.phase = Phase.STARTING
        self.tuning: Tuning | None = None
        self._confirms = confirms
        self._facts: list[Event] = []
        self._out = Outgoing(pending=bytearray(_PROTOCOL_HEADER))
        self._parser = Parser(self._on_ack, self._on_nack, self._on_frame)
        #: The first bytes, kept until they are known to be a frame's.
        self._greeting: bytearray | None = bytearray()
        self._channels: dict[int, Publisher | _Control] = {}
        self._publishers: dict[int, Publisher] = {}
        self._by_number: dict[int, Publisher] = {}
        self._control: _Control | None = None
        self._last_wire_number = 0
        self._last_number = 0
        #: What blocks publishing: 0 for the connection, else the number of the channel whose flow was stopped.
        self._blocked_by: set[int] = set()
        self._updating_secret = False
        #: Answers to what the broker may ask again and again, since bytes were last taken.
        self._answers = 0

    # --- bytes -------------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take the next bytes from the broker, in any split; return what they mean. Never raises."""
        if self.phase is not Phase.OVER:
            try:
                if self._greeting is not None:
                    self._greet(data)
                else:
                    self._parser.feed(data)
            except Malformed as error:
                self._break(events.ProtocolError(ProtocolErrorKind.ILLEGAL, str(error)))
            except _Refusal as refusal:
                self._break(refusal.broken)
        told, self._facts = self._facts, []
        return told

    def _break(self, broken: events.ProtocolError) -> None:
        """Fall silent because of the peer. Behind a close nothing counts, and the answer to it still goes out."""
        if self.phase is not Phase.OVER:
            self.fail()
            self._facts.append(broken)

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
    def residue(self) -> int:
        """The bytes held of an unfinished frame; 0 between frames."""
        return self._parser.residue + len(self._greeting or b"")

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped publishing, by connection.blocked or a channel's flow: true before it is told."""
        return bool(self._blocked_by)

    @property
    def completions(self) -> int:
        """Grows whenever `receive` completed a frame: what a frame's deadline is measured by."""
        return self._parser.completions

    def _greet(self, data: bytes | memoryview) -> None:
        """Tell a broker from whatever else may listen on the port, by its first eight bytes."""
        greeting = self._greeting
        assert greeting is not None
        greeting += data
        if not greeting:
            return
        if greeting[0] != METHOD:
            if len(greeting) < 8:
                return
            octets = bytes(greeting[:8])
            raise _Refusal(ProtocolErrorKind.NOT_AMQP, f"it begins with {octets!r}", octets)
        self._greeting = None
        self._parser.feed(bytes(greeting))

    # --- orders -------------------------------------------------------------------------------------------------

    def fail(self) -> None:
        """End the session on the spot: nothing is sent any more, and nothing that is received counts."""
        self._end()
        self._out.clear()

    def close(self, reply_code: int = 200, reply_text: str = "bye") -> None:
        """Begin our close; what was published and not taken by `data_to_send` is dropped. `Closed` follows."""
        if self.phase in (Phase.CLOSING, Phase.OVER):
            return
        self._out.clear()
        self._end()
        self.phase = Phase.CLOSING
        self._send(0, commands.Connection.Close, reply_code=reply_code, reply_text=reply_text)

    def beat(self) -> None:
        """Send a heartbeat, where they were agreed upon and the session is not over."""
        if self.tuning is not None and self.phase is not Phase.OVER:
            self._out.pending += HEARTBEAT

    def update_secret(self, secret: str, reason: str = "") -> None:
        """Give the broker a new secret in place of the password (RabbitMQ's OAuth 2); `SecretUpdated` follows."""
        self._require_open()
        if self._updating_secret:
            raise RuntimeError("another update of the secret is not answered yet")
        self._send(0, commands.Connection.UpdateSecret, new_secret=secret, reason=reason)
        self._updating_secret = True

    def open_publisher(self) -> int:
        """Open a publishing channel and return its number; `ChannelOpened` follows."""
        self._require_open()
        assert self.tuning is not None
        self._last_number += 1
        wire_number = self._free_wire_number()
        publisher = Publisher(wire_number, self._last_number, self.tuning.frame_max, self._out)
        self._channels[wire_number] = self._publishers[wire_number] = publisher
        closed = [number for number, each in self._by_number.items() if each.stage is Stage.CLOSED]
        for number in closed[:-_CLOSED_KEPT]:
            del self._by_number[number]
        self._by_number[publisher.number] = publisher
        self._out.publishers.append(publisher)
        self._send(wire_number, commands.Channel.Open)
        return publisher.number

    def publisher(self, channel: int) -> Publisher:
        """Return a publishing channel: the way to publish without a detour, and to read `written`.

        Of the channels that were closed only the last few are known (KeyError for others).
        """
        return self._by_number[channel]

    def declare(self, declaration: Declaration) -> None:
        """Declare one exchange, queue or binding; `Replied` or `Refused` follows."""
        match declaration:
            case Exchange():
                self._request(
                    commands.Exchange.Declare,
                    exchange=declaration.name,
                    exchange_type=declaration.type,
                    passive=declaration.passive,
                    durable=declaration.durable,
                    auto_delete=declaration.auto_delete,
                    internal=declaration.internal,
                    arguments=declaration.arguments,
                )
            case Queue():
                self._request(
                    commands.Queue.Declare,
                    queue=declaration.name,
                    passive=declaration.passive,
                    durable=declaration.durable,
                    exclusive=declaration.exclusive,
                    auto_delete=declaration.auto_delete,
                    arguments=declaration.arguments,
                )
            case Binding():
                self._request(
                    commands.Queue.Bind,
                    queue=declaration.queue,
                    exchange=declaration.exchange,
                    routing_key=declaration.routing_key,
                    arguments=declaration.arguments,
                )

    def delete_queue(self, queue: str) -> None:
        """Delete a queue; `Replied` or `Refused` follows."""
        self._request(commands.Queue.Delete, queue=queue)

    def take_one(self, queue: str) -> None:
        """Take one message without an acknowledgement (basic.get); `GetResult` or `Refused` follows."""
        self._request(commands.Basic.Get, queue=queue, no_ack=True)

    def release_control(self) -> None:
        """Close the control channel, if there is one; an answer that is still due is ignored."""
        control, self._control = self._control, None
        if control is not None and self.phase is Phase.OPEN:
            control.stage = Stage.CLOSING
            control.content = None
            self._send(control.wire_number, commands.Channel.Close, reply_code=200, reply_text="done")

    def _request(self, kind: type[Method], **arguments: Any) -> None:
        self._require_open()
        self._method(0, kind, **arguments)  # raises `Unsendable` before a channel is opened for it
        control = self._control
        if control is None:
            control = self._control = _Control(self._free_wire_number())
            self._channels[control.wire_number] = control
            self._send(control.wire_number, commands.Channel.Open)
        if control.waiting or control.request:
            raise RuntimeError("another request is not answered yet")
        if control.stage is Stage.OPENING:
            control.waiting = (kind, arguments)
        else:
            self._ask(control, kind, arguments)

    def _ask(self, control: _Control, kind: type[Method], arguments: dict[str, Any]) -> None:
        control.waiting = None
        control.request = kind
        self._send(control.wire_number, kind, **arguments)

    def _require_open(self) -> None:
        if self.phase is not Phase.OPEN:
            raise RuntimeError(f"the session is not open ({self.phase.value})")

    def _free_wire_number(self) -> int:
        assert self.tuning is not None
        highest = self.tuning.channel_max
        for step in range(highest):
            number = (self._last_wire_number + step) % highest + 1
            if number not in self._channels:
                self._last_wire_number = number
                return number
        raise Unsendable(f"all {highest} channels of the connection are taken")

    def _send(self, channel: int, kind: type[Method], **arguments: Any) -> None:
        self._out.pending += self._method(channel, kind, **arguments)

    def _method(self, channel: int, kind: type[Method], **arguments: Any) -> bytes:
        """Return the frame of a method; raises `Unsendable` where it is larger than agreed upon."""
        octets = frame(METHOD, channel, method_payload(kind, **arguments))
        if self.tuning is not None and len(octets) > self.tuning.frame_max:
            limit = self.tuning.frame_max
            raise Unsendable(f"{kind.name} takes {len(octets):,} bytes; this broker takes {limit:,} (frame_max)")
        return octets

    def _answer(self, channel: int, kind: type[Method], **arguments: Any) -> None:
        """Answer what may come any number of times; a broker that does not take the answers asks in vain."""
        self._answers += 1
        if self._answers > _ANSWERS:
            raise Malformed(f"more than {_ANSWERS} requests came while nothing was read of the answers")
        self._send(channel, kind, **arguments)

    def _end(self) -> None:
        """Leave for OVER: no channel counts any more; `written` of each stays readable."""
        self.phase = Phase.OVER
        self._publishers.clear()
        self._channels.clear()
        self._control = None
        for publisher in self._out.publishers:
            publisher.end()
        self._out.publishers.clear()

    # --- confirms: the hot path -----------------------------------------------------------------------------------

    def _on_ack(self, wire_number: int, tag: int, multiple: bool) -> None:
        publisher = self._publishers.get(wire_number)
        if publisher is None or not 0 < tag <= publisher.last_tag or publisher.content is not None:
            self._unexpected_confirm(wire_number, tag, publisher)
        else:
            self._confirms.confirmed(publisher.number, tag, multiple)

    def _on_nack(self, wire_number: int, tag: int, multiple: bool) -> None:
        publisher = self._publishers.get(wire_number)
        if publisher is None or not 0 < tag <= publisher.last_tag or publisher.content is not None:
            self._unexpected_confirm(wire_number, tag, publisher)
        else:
            self._confirms.nacked(publisher.number, tag, multiple)

    def _unexpected_confirm(self, wire_number: int, tag: int, publisher: Publisher | None) -> None:
        if self.phase in (Phase.CLOSING, Phase.OVER):
            return
        channel = self._channels.get(wire_number)
        if isinstance(channel, _Control) and channel.stage is Stage.CLOSING:
            return
        if publisher is None:
            raise Malformed(f"a confirm came on channel {wire_number}, where nothing is published")
        if publisher.content is not None:
            raise Malformed("a confirm came inside the content of a return")
        raise Malformed(f"tag {tag} was confirmed where 1 to {publisher.last_tag} were published")

    # --- frames -------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, wire_number: int, payload: bytearray) -> None:
        if self.phase is Phase.OVER:
            return
        if wire_number == 0:
            self._on_connection_method(read_method(payload))
            return
        if self.phase is Phase.CLOSING:
            return
        channel = self._channels.get(wire_number)
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
        elif channel.stage is not Stage.CLOSING:
            self._on_content(channel, kind, payload)

    def _on_content(self, channel: Publisher | _Control, kind: int, payload: bytearray) -> None:
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
            self._returned(channel, content, header)
        else:
            channel.request = None
            body = None if content.kept is None else bytes(content.kept)
            self._facts.append(events.GetResult(body, header.body_size))

    def _returned(self, publisher: Publisher, content: Content, header: ContentHeader) -> None:
        method = content.method
        assert isinstance(method, commands.Basic.Return)
        self._confirms.returned(
            publisher.number,
            Returned(
                reply_code=method.reply_code or 0,
                reply_text=printable(method.reply_text),
                exchange=method.exchange,
                routing_key=method.routing_key or "",
                message_id=header.message_id,
                token=header.token,
                body_size=header.body_size,
                body_hash=content.digest(),
            ),
        )

    # --- methods of the connection ----------------------------------------------------------------------------------

    def _on_connection_method(self, method: Method) -> None:
        match method, self.phase:
            case commands.Connection.Close(), Phase.CLOSING:
                self._send(0, commands.Connection.CloseOk)
                self._end()
                self._facts.append(events.Closed())
            case commands.Connection.CloseOk(), Phase.CLOSING:
                self._end()
                self._out.clear()
                self._facts.append(events.Closed())
            case _, Phase.CLOSING:
                pass
            case commands.Connection.Close(reply_code=code, reply_text=text), phase:
                self._out.clear()
                self._end()
                self._send(0, commands.Connection.CloseOk)
                self._facts.append(events.CloseReceived(code or 0, printable(text), phase))
            case commands.Connection.Start(), Phase.STARTING:
                self._start(method)
            case commands.Connection.Tune(), Phase.AUTHENTICATING:
                self._tune(method)
            case commands.Connection.Secure(), Phase.AUTHENTICATING:
                raise _Refusal(
                    ProtocolErrorKind.UNUSABLE,
                    f"it wants another step of authentication, which {self._mechanism} has not",
                )
            case commands.Connection.OpenOk(), Phase.OPENING:
                self.phase = Phase.OPEN
                self._facts.append(events.Opened())
            case commands.Connection.Blocked(reason=reason), Phase.OPEN:
                self._blocked_by.add(0)
                self._facts.append(events.Blocked(printable(reason)))
            case commands.Connection.Unblocked(), Phase.OPEN:
                self._unblock(0)
            case commands.Connection.UpdateSecretOk(), Phase.OPEN if self._updating_secret:
                self._updating_secret = False
                self._facts.append(events.SecretUpdated())
            case _:
                raise Malformed(f"{method.name} came while the connection was {self.phase.value}")

    def _start(self, start: commands.Connection.Start) -> None:
        if (start.version_major, start.version_minor) != (0, 9):
            raise _Refusal(
                ProtocolErrorKind.UNUSABLE, f"it speaks AMQP {start.version_major}-{start.version_minor}, not 0-9-1"
            )
        written = start.mechanisms.split()
        mechanism = next((name for name in self._mechanisms if name in written), None)
        if mechanism is None:
            raise _Refusal(ProtocolErrorKind.NO_MECHANISM, printable(" ".join(written)))
        properties = start.server_properties
        self._product = printable(properties.get("product", ""))
        self._version = printable(properties.get("version", ""))
        self._mechanism = mechanism
        self._out.pending += self._start_ok(mechanism)
        self.phase = Phase.AUTHENTICATING

    def _start_ok(self, mechanism: str) -> bytes:
        payload = (
            commands.Connection.StartOk.index.to_bytes(4),
            self._client_properties,
            short_string(mechanism),
            long_string(self._sasl_response(mechanism)),
            short_string("en_US"),
        )
        return frame(METHOD, 0, b"".join(payload))

    def _sasl_response(self, mechanism: str) -> bytes:
        user, password = self._credentials.username, self._credentials.password
        match mechanism:
            case "PLAIN":
                return f"\0{user}\0{password}".encode()
            case "AMQPLAIN":
                # A table without its length (RabbitMQ's rabbit_auth_mechanism_amqplain).
                return table({"LOGIN": user, "PASSWORD": password})[4:]
            case _:
                return b""  # EXTERNAL: the client certificate says it all

    def _tune(self, tune: commands.Connection.Tune) -> None:
        heartbeat, frame_max, channel_max = self._wanted
        if 0 < tune.frame_max < _FRAME_FLOOR:
            raise _Refusal(
                ProtocolErrorKind.UNUSABLE, f"its frame_max is {tune.frame_max}; AMQP's floor is {_FRAME_FLOOR}"
            )
        if 0 < tune.channel_max < _CHANNELS_NEEDED:
            raise _Refusal(
                ProtocolErrorKind.UNUSABLE, f"its channel_max is {tune.channel_max}; {_CHANNELS_NEEDED} are needed"
            )
        self.tuning = tuning = Tuning(
            product=self._product,
            version=self._version,
            mechanism=self._mechanism,
            heartbeat=negotiate_heartbeat(heartbeat, tune.heartbeat),
            frame_max=negotiate_limit(frame_max, tune.frame_max),
            channel_max=negotiate_limit(channel_max, tune.channel_max),
        )
        self._parser.cap = tuning.frame_max
        self._send(
            0,
            commands.Connection.TuneOk,
            channel_max=tuning.channel_max,
            frame_max=tuning.frame_max,
            heartbeat=tuning.heartbeat,
        )
        self._out.pending += frame(METHOD, 0, self._open)
        self.phase = Phase.OPENING
        self._facts.append(events.Tuned(tuning))

    def _unblock(self, source: int) -> None:
        if source in self._blocked_by:
            self._blocked_by.discard(source)
            if not self._blocked_by:
                self._facts.append(events.Unblocked())

    # --- methods of channels ----------------------------------------------------------------------------------------

    def _on_publisher_method(self, publisher: Publisher, method: Method) -> None:
        step = _STEPS.get(publisher.stage)
        match method:
            case commands.Channel.Close(reply_code=code, reply_text=text):
                written = publisher.written
                publisher.end()
                self._out.publishers.remove(publisher)
                del self._channels[publisher.wire_number], self._publishers[publisher.wire_number]
                self._send(publisher.wire_number, commands.Channel.CloseOk)
                self._facts.append(events.ChannelClosed(publisher.number, code or 0, printable(text), written))
                self._unblock(publisher.number)
            case _ if step is not None and isinstance(method, step[0]):
                publisher.stage = step[1]
                match publisher.stage:
                    case Stage.CONFIRMING:
                        self._send(publisher.wire_number, commands.Confirm.Select)
                    case Stage.LIMITING:
                        self._send(publisher.wire_number, commands.Basic.Qos, prefetch_count=self._prefetch)
                    case _:
                        self._facts.append(events.ChannelOpened(publisher.number))
            case commands.Channel.Flow(active=active) if publisher.stage is not Stage.OPENING:
                self._answer(publisher.wire_number, commands.Channel.FlowOk, active=active)
                if active:
                    self._unblock(publisher.number)
                else:
                    self._blocked_by.add(publisher.number)
                    self._facts.append(events.Blocked("the broker stopped the flow of the channel"))
            case commands.Basic.Return() if publisher.last_tag:
                publisher.content = Content(method, kept=None)
            case _:
                raise Malformed(f"{method.name} came while the channel was {publisher.stage.value}")

    def _on_control_method(self, control: _Control, method: Method) -> None:
        match method:
            case commands.Channel.Close(reply_code=code, reply_text=text):
                self._answer(control.wire_number, commands.Channel.CloseOk)
                if control.stage is Stage.CLOSING:
                    return  # crossed: the answer to our own close is still due
                del self._channels[control.wire_number]
                self._control = None
                self._facts.append(events.Refused(code or 0, printable(text)))
            case commands.Channel.CloseOk() if control.stage is Stage.CLOSING:
                del self._channels[control.wire_number]
            case _ if control.stage is Stage.CLOSING:
                pass
            case commands.Channel.OpenOk() if control.stage is Stage.OPENING:
                control.stage = Stage.READY
                assert control.waiting is not None
                self._ask(control, *control.waiting)
            case commands.Channel.Flow(active=active):
                self._answer(control.wire_number, commands.Channel.FlowOk, active=active)
            case _ if control.request is not None and isinstance(method, _REPLIES[control.request]):
                match method:
                    case commands.Basic.GetOk():
                        control.content = Content(method, kept=bytearray())
                    case commands.Basic.GetEmpty():
                        control.request = None
                        self._facts.append(events.GetResult(None, None))
                    case _:
                        control.request = None
                        self._facts.append(events.Replied())
            case _:
                raise Malformed(f"{method.name} came on the control channel, which did not ask for it")
