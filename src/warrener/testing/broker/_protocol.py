"""The broker's side of one connection, without I/O: bytes in by `receive`, bytes out by `take_output`.

The behaviour that clients see, as in RabbitMQ 3.10 unless said otherwise:

* Life: protocol header, Start/Start-Ok, Tune/Tune-Ok, Open/Open-Ok. After `Tuning.handshake_timeout` the socket is
  closed without a Close. Either side may send Close; when both send one at once, both answer with Close-Ok.
* Channels process methods one after another: checks, return, route, settle later. A refusal with a soft code closes the
  channel, after which neither its publishes nor its confirms are looked at (a closing channel is silent); other
  refusals close the connection.
* An alarm stops a client only when a publish's header or body frame arrives. Then connection.blocked goes out (to
  clients that know it), and the connection is not read any more. The broker's heartbeats go on, and the client's
  silence is not counted.
* Heartbeats: one is sent after T/2 without output; the client is dropped, without a Close, when two checks at intervals
  of T in a row have seen nothing from it, that is after 2T to 3T.

Bytes that AMQP does not allow are *violations*: recorded with the reason, answered as RabbitMQ does, and raised
as `ProtocolViolated` when the broker's ``async with`` body ends. An ordinary refusal (404, 406 …) is no violation.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from attrs import frozen

from warrener.testing.broker import _codec as codec
from warrener.testing.broker._channel import Channel, ids
from warrener.testing.broker._codec import Content, IllegalBytes, Method, RawFrame
from warrener.testing.broker._confirms import Coalescing
from warrener.testing.broker._model import NAMES, Node, Refusal, User, Vhost
from warrener.testing.broker._timers import Timer

__all__ = ["Connection", "ConnectionPhase", "Tuning", "Violation"]

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


@frozen
class Tuning:
    """What the broker proposes and enforces; durations are seconds."""

    frame_max: int = 131072
    channel_max: int = 2047
    heartbeat: int = 60
    #: The smallest frame_max that a client may ask for; 8192 since RabbitMQ 4.1.
    frame_min: int = 4096
    handshake_timeout: float = 10.0
    #: How long the broker waits for Close-Ok, or before it closes on a client that broke the framing.
    closing_timeout: float = 30.0
    silent_close_delay: float = 3.0
    #: Bytes; 16 MiB since RabbitMQ 4.0.
    max_message_size: int = 128 * 1024 * 1024


@frozen
class Violation:
    """Something a client sent that AMQP 0-9-1 does not allow."""

    connection: int
    text: str
    at: float

    def __str__(self) -> str:
        return f"connection {self.connection}: {self.text}"


class ConnectionPhase(enum.Enum):
    """Where a connection is in its life."""

    GREETING = "waiting for the protocol header"
    STARTING = "waiting for start-ok"
    TUNING = "waiting for tune-ok"
    OPENING = "waiting for open"
    OPEN = "open"
    CLOSING = "waiting for close-ok"
    CLOSED = "closed"


#: Called with (connection, channel, method or content header) before the broker acts on it; True swallows it.
Intercept: TypeAlias = "Callable[[Connection, int, Method | Content], bool]"


class Connection:
    """One client, from its protocol header to the end of its socket."""

    def __init__(
        self,
        number: int,
        node: Node,
        tuning: Tuning,
        coalescing: Coalescing,
        *,
        on_output: Callable[[], None],
        on_violation: Callable[[Violation], None],
        intercept: Callable[[], Intercept | None],
    ) -> None:
        self.number = number
        self.node = node
        self.timers = node.timers
        self.tuning = tuning
        self.coalescing = coalescing
        self.phase = ConnectionPhase.GREETING
        self.user: User | None = None
        self.vhost: Vhost | None = None
        self.client_properties: dict[str, Any] = {}
        self.channels: dict[int, Channel] = {}
        self.alarm: str | None = None
        #: Not read any more because of an alarm.
        self.blocked = False
        #: None while it lives; then how the socket is to be closed once the output is out.
        self.ending: str | None = None
        self.heartbeat = 0
        self.frame_max = tuning.frame_max
        self.channel_max = tuning.channel_max
        self._framer = codec.Framer(8192 if tuning.frame_max == 0 else min(8192, tuning.frame_max))
        self._output = bytearray()
        self._on_output = on_output
        self._on_violation = on_violation
        self._intercept = intercept
        self._poisoned = False
        self._processing = False
        self._idle_timer: Timer | None = None
        self._sent = self._heard = 0
        self._deadline = self.timers.after(tuning.handshake_timeout, self._handshake_timed_out)
        self._heartbeat_timers: list[Timer] = []

    @property
    def name(self) -> str:
        """What the client calls itself (the client property ``connection_name``), or ""."""
        return str(self.client_properties.get("connection_name") or "")

    @property
    def capabilities(self) -> dict[str, Any]:
        """What the client said it understands."""
        known = self.client_properties.get("capabilities")
        return cast("dict[str, Any]", known) if isinstance(known, dict) else {}

    @property
    def residue(self) -> int:
        """Number of received bytes at the end that are not a whole frame."""
        return self._framer.residue

    # --- bytes ------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._heard += len(data)
        if self._poisoned:
            return
        self._framer.feed(data)
        if self.ending is None:
            self._process()
        if self.phase is ConnectionPhase.CLOSED:
            self._expect_silence()

    def _expect_silence(self) -> None:
        """After Close-Ok nothing may follow but heartbeats that were on their way."""
        try:
            while (frame := self._framer.next()) is not None:
                if frame.type != codec.HEARTBEAT:
                    raise IllegalBytes(503, f"a frame of type {frame.type}")
        except IllegalBytes as illegal:
            self.violation(f"after the connection was closed: {illegal.text}")
            self._poisoned = True

    def take_output(self) -> bytes:
        """Hand out the bytes for the client."""
        data = bytes(self._output)
        self._output.clear()
        return data

    @property
    def has_output(self) -> bool:
        """Whether there are bytes for the client."""
        return bool(self._output)

    def send_bytes(self, data: bytes) -> None:
        """Send these bytes, legal or not (a hostile broker)."""
        self._sent += len(data)
        self._output += data
        self._on_output()

    def send(self, channel: int, name: str, /, **fields: Any) -> None:
        """Send a method."""
        self.send_bytes(codec.encode_method(channel, name, **fields))

    def lost(self) -> None:
        """The socket is closed: requeue the unacked messages, delete the exclusive queues."""
        self.phase = ConnectionPhase.CLOSED
        self.ending = self.ending or "lost"
        self._output.clear()
        self._release()

    def end(self, how: str) -> None:
        """Have the socket closed once the output is out: "fin" or "reset"."""
        if self.ending is None:
            self.ending = how
            self._release()
            self._on_output()

    def _release(self) -> None:
        for timer in (self._deadline, self._idle_timer, *self._heartbeat_timers):
            if timer is not None:
                timer.cancel()
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.end()
        self.node.leave(self.number)

    def _process(self) -> None:
        self._processing = True
        try:
            while not self.blocked and self.ending is None and not self._poisoned:
                if self.phase is ConnectionPhase.GREETING:
                    header = self._framer.protocol_header()
                    if header is None:
                        break
                    self._greet(header)
                    continue
                frame = self._framer.next()
                if frame is None:
                    break
                self._frame(frame)
        except IllegalBytes as illegal:
            self._punish(illegal)
        finally:
            self._processing = False
        self._idle()

    def _punish(self, illegal: IllegalBytes) -> None:
        self.violation(illegal.text)
        self.close(illegal.code, illegal.text)
        if illegal.code in (501, 502):  # the stream cannot be trusted any more: nothing further is read
            self._end_in_silence()

    def violation(self, text: str) -> None:
        """Record that the client broke the protocol."""
        self._on_violation(Violation(self.number, text, self.timers.now()))

    def expect_idle(self) -> None:
        """Have the channels flush their confirms as soon as nothing else is going on."""
        if not self._processing and self._idle_timer is None and self.ending is None:
            self._idle_timer = self.timers.after(0, self._idle)

    def _idle(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for channel in tuple(self.channels.values()):
            channel.idle()

    # --- handshake ---------------------------------------------------------------------------------------------------

    def _greet(self, header: bytes) -> None:
        if header != PROTOCOL_HEADER:
            self.violation(f"the protocol header is {header!r}")
            self.send_bytes(PROTOCOL_HEADER)
            self._poisoned = True
            self.end("reset")
            return
        capabilities = {
            "publisher_confirms": True, "exchange_exchange_bindings": True, "basic.nack": True,
            "consumer_cancel_notify": True, "connection.blocked": True, "consumer_priorities": False,
            "authentication_failure_close": True, "per_consumer_qos": True, "direct_reply_to": False,
        }  # fmt: skip
        self.phase = ConnectionPhase.STARTING
        self.send(
            0,
            "connection.start",
            version_major=0,
            version_minor=9,
            server_properties={
                "product": "RabbitMQ",  # clients choose their behaviour by this name
                "version": "3.10.0",
                "platform": "warrener's embedded broker, not for production",
                "capabilities": capabilities,
            },
            mechanisms="AMQPLAIN PLAIN",
            locales="en_US",
        )

    def _end_in_silence(self) -> None:
        """Listen to nothing more, and reset the connection after a while."""
        self._poisoned = True
        self._deadline.cancel()
        self._deadline = self.timers.after(self.tuning.silent_close_delay, lambda: self.end("reset"))

    def _start_ok(self, fields: Any) -> None:
        self.client_properties = fields.client_properties or {}
        response = fields.response.encode() if isinstance(fields.response, str) else bytes(fields.response)
        match fields.mechanism:
            case "PLAIN":
                login = _plain(response)
            case "AMQPLAIN":
                login = codec.decode_login_table(response)
            case other:
                raise IllegalBytes(503, f"unknown authentication mechanism '{other}'")
        user = None if login is None else self.node.login(*login)
        if user is None:
            if self.capabilities.get("authentication_failure_close"):
                text = (
                    f"Login was refused using authentication mechanism {fields.mechanism}. For details see the broker "
                    "logfile."
                )
                self.close(403, text)
            self._end_in_silence()  # without the capability the client hears nothing else
            return
        self.user = user
        self.phase = ConnectionPhase.TUNING
        tuning = self.tuning
        self.send(
            0,
            "connection.tune",
            channel_max=tuning.channel_max,
            frame_max=tuning.frame_max,
            heartbeat=tuning.heartbeat,
        )

    def _tune_ok(self, fields: Any) -> None:
        for label, least, most, chosen in (
            ("frame_max", self.tuning.frame_min, self.tuning.frame_max, fields.frame_max),
            ("channel_max", 1, self.tuning.channel_max, fields.channel_max),
        ):
            if chosen != 0 and chosen < least:
                problem = f"lower than the minimum allowed value ({least})"
            elif most != 0 and (chosen == 0 or chosen > most):
                problem = f"higher than the maximum allowed value ({most})"
            else:
                continue
            # RabbitMQ writes this error into its log and sends no Close to the client.
            self.violation(f"tune-ok: negotiated {label} = {chosen} is {problem}")
            self._end_in_silence()
            return
        self.frame_max, self.channel_max = fields.frame_max, fields.channel_max
        self._framer.frame_max = self.frame_max
        self.heartbeat = fields.heartbeat
        self.phase = ConnectionPhase.OPENING
        if self.heartbeat:
            self._send_heartbeats(-1)
            self._watch(-1, 0)

    def _open(self, fields: Any) -> None:
        assert self.user is not None
        self.vhost = self.node.enter(self.user, fields.virtual_host)
        self._deadline.cancel()
        self.phase = ConnectionPhase.OPEN
        self.send(0, "connection.open_ok")

    def _handshake_timed_out(self) -> None:
        self.end("fin")

    # --- heartbeats --------------------------------------------------------------------------------------------------

    def _send_heartbeats(self, sent_before: int) -> None:
        if self._sent == sent_before:
            self.send_bytes(codec.encode_frame(codec.HEARTBEAT, 0, b""))
        sent = self._sent
        timer = self.timers.after(self.heartbeat / 2, lambda: self._send_heartbeats(sent))
        self._heartbeat_timers = [other for other in self._heartbeat_timers if other.action is not None] + [timer]

    def _watch(self, heard_before: int, misses: int) -> None:
        misses = misses + 1 if self._heard == heard_before and not self.blocked else 0
        if misses >= 2:
            self.end("fin")
            return
        heard = self._heard
        timer = self.timers.after(self.heartbeat, lambda: self._watch(heard, misses))
        self._heartbeat_timers = [other for other in self._heartbeat_timers if other.action is not None] + [timer]

    # --- alarm -------------------------------------------------------------------------------------------------------

    def set_alarm(self, reason: str | None) -> None:
        """Raise or clear an alarm; it takes hold when content arrives."""
        self.alarm = reason
        if reason is None and self.blocked:
            self.blocked = False
            if self.capabilities.get("connection.blocked"):
                self.send(0, "connection.unblocked")
            self._process()

    def _content_seen(self) -> None:
        if self.alarm is None or self.blocked or self.phase is not ConnectionPhase.OPEN:
            return
        self.blocked = True
        if self.capabilities.get("connection.blocked"):
            self.send(0, "connection.blocked", reason=self.alarm)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _frame(self, frame: RawFrame) -> None:
        if frame.type == codec.HEARTBEAT:
            return
        if frame.channel == 0:
            if frame.type != codec.METHOD:
                raise IllegalBytes(503, f"a frame of type {frame.type} on channel 0")
            self._method(codec.decode_method(frame.payload))
            return
        if self.phase is ConnectionPhase.CLOSING:
            return  # it was on its way when we closed
        if self.phase is not ConnectionPhase.OPEN:
            raise IllegalBytes(503, f"a frame on channel {frame.channel} before the connection is open")
        channel = self.channels.get(frame.channel)
        if channel is None:
            self._open_channel(frame)
        else:
            channel.frame(frame)
        if frame.type in (codec.HEADER, codec.BODY):
            self._content_seen()

    def _open_channel(self, frame: RawFrame) -> None:
        method = codec.decode_method(frame.payload) if frame.type == codec.METHOD else None
        if method is None or method.name != "channel.open":
            what = method.name if method is not None else "content"
            self.violation(f"{what} on channel {frame.channel}, which is not open")
            self.close(504, "expected 'channel.open'", method)
        elif self.channel_max and len(self.channels) >= self.channel_max:
            text = f"number of channels opened ({len(self.channels)}) has reached the negotiated channel_max ({self.channel_max})"
            self.violation(text)
            self.close(530, text)
        else:
            self.channels[frame.channel] = Channel(self, frame.channel)
            if not self.swallowed(frame.channel, method):
                self.send(frame.channel, "channel.open_ok")

    def swallowed(self, channel: int, what: Method | Content) -> bool:
        """Call the owner's hook, if there is one; return True when the broker has to ignore this method or content."""
        intercept = self._intercept()
        return intercept is not None and intercept(self, channel, what)

    def _method(self, method: Method) -> None:
        if self.swallowed(0, method):
            return
        match method.name, self.phase:
            case "connection.close", ConnectionPhase.CLOSED:
                raise IllegalBytes(503, "connection.close on a closed connection")
            case "connection.close", ConnectionPhase.CLOSING:  # both closed at once: both sides answer
                self.send(0, "connection.close_ok")
            case "connection.close", _:
                self.phase = ConnectionPhase.CLOSED
                self.send(0, "connection.close_ok")
                self.end("fin")
            case "connection.close_ok", ConnectionPhase.CLOSING:
                self.phase = ConnectionPhase.CLOSED
                self.end("fin")
            case _, ConnectionPhase.CLOSING:
                return
            case _:
                try:
                    self._handshake(method)
                except Refusal as refusal:
                    self.close(refusal.code, refusal.text, method)

    def _handshake(self, method: Method) -> None:
        fields = method.fields
        match method.name, self.phase:
            case "connection.start_ok", ConnectionPhase.STARTING:
                self._start_ok(fields)
            case "connection.tune_ok", ConnectionPhase.TUNING:
                self._tune_ok(fields)
            case "connection.open", ConnectionPhase.OPENING:
                self._open(fields)
            case "connection.update_secret", ConnectionPhase.OPEN:
                self.send(0, "connection.update_secret_ok")
            case _:
                raise IllegalBytes(503, f"{method.name} while {self.phase.value}")

    def close(self, code: int, text: str, method: Method | None = None) -> None:
        """Send connection.close; from now on nothing but close and close-ok is looked at."""
        if self.phase in (ConnectionPhase.CLOSING, ConnectionPhase.CLOSED) or self.ending is not None:
            return
        self.phase = ConnectionPhase.CLOSING
        class_id, method_id = ids(method)
        self.send(
            0,
            "connection.close",
            reply_code=code,
            reply_text=f"{NAMES[code]} - {text}"[:255],
            class_id=class_id,
            method_id=method_id,
        )
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.end()
        self._deadline.cancel()
        self._deadline = self.timers.after(self.tuning.closing_timeout, lambda: self.end("fin"))


def _plain(response: bytes) -> tuple[str, str] | None:
    parts = response.split(b"\0")
    if len(parts) != 3:
        return None
    return parts[1].decode(errors="replace"), parts[2].decode(errors="replace")
