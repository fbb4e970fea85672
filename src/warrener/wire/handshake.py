"""The handshake: choosing a login, agreeing on the tuning, and what we refuse in a peer before the connection is open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pamqp import commands

from warrener.records import Credentials, FieldValue
from warrener.wire.codec import long_string, method_payload, short_string, table
from warrener.wire.events import ProtocolError, ProtocolErrorKind, Tuning
from warrener.wire.framing import FLOOR, METHOD, frame
from warrener.wire.masking import Mask

__all__ = ["MECHANISMS", "Handshake", "PeerRefused", "greeted", "negotiate_heartbeat", "negotiate_limit"]

#: AMQP's smallest frame_max (4.2.3): a peer that tunes below it cannot be talked to.
_FRAME_FLOOR: Final = 4096
#: Two publishing channels and the control channel.
_CHANNELS_NEEDED: Final = 3
#: The logins a session may use: the first one that the broker offers. EXTERNAL only where the caller asks for it.
MECHANISMS: Final = ("PLAIN", "AMQPLAIN")

_CAPABILITIES: Final[Mapping[str, FieldValue]] = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


class PeerRefused(Exception):
    """We refuse the peer; `Session.receive` reports it as a `ProtocolError` event."""

    def __init__(self, kind: ProtocolErrorKind, text: str, data: bytes = b"") -> None:
        super().__init__(kind, text, data)
        self.error = ProtocolError(kind, text, data)

    def __str__(self) -> str:
        return self.error.text


def greeted(first: bytearray) -> bool:
    """Whether the first bytes of the peer are a broker's; False: more bytes must come.

    Raises `PeerRefused` for any other server that may listen on the port, with its first eight bytes.
    """
    if not first:
        return False
    if first[0] == METHOD:
        return True
    # A TLS alert has seven bytes, and nothing follows it.
    if len(first) < 8 and not first.startswith(b"\x15\x03"):
        return False
    shown = bytes(first[:8])
    raise PeerRefused(ProtocolErrorKind.NOT_AMQP, f"it begins with {shown!r}", shown)


def negotiate_limit(ours: int, theirs: int) -> int:
    """Return the smaller of two limits, where 0 from the broker means that it has none."""
    return min(ours, theirs) if theirs else ours


def negotiate_heartbeat(ours: float, theirs: int) -> int:
    """Return the smaller interval in whole seconds. If the broker's is 0, ours is taken; if ours is 0, it stays 0."""
    return negotiate_limit(min(math.ceil(ours), 0xFFFF), theirs) if ours > 0 else 0


class Handshake:
    """Answers connection.start and connection.tune. Each method returns the bytes of its answer."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        vhost: str,
        heartbeat: float,
        frame_max: int,
        channel_max: int,
        mechanisms: Sequence[str],
        client_properties: Mapping[str, FieldValue],
    ) -> None:
        """Check everything that will be sent; raises `ValueError` where it cannot be put into AMQP."""
        if not FLOOR <= frame_max <= 0x7FFFFFFF:
            raise ValueError(f"frame_max must be at least {FLOOR}, which is the smallest that RabbitMQ takes")
        for name, text in (("username", credentials.username), ("password", credentials.password)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the {name} cannot be encoded as UTF-8") from None
        self._credentials = credentials
        self._text = Mask(credentials)
        self._mechanisms = mechanisms
        self._mechanism = ""
        self._client_properties = table({**client_properties, "capabilities": _CAPABILITIES})
        self._open = frame(METHOD, 0, method_payload(commands.Connection.Open, virtual_host=vhost))
        self._heartbeat = heartbeat
        self._frame_max = frame_max
        self._channel_max = channel_max
        self._product = self._version = ""
        longest = max((len(self._start_ok(mechanism)) for mechanism in mechanisms), default=0)
        if longest > FLOOR:
            raise ValueError(
                f"name, user and password take {longest:,} bytes; a frame holds {FLOOR:,} before the tuning"
            )

    def on_start(self, start: commands.Connection.Start) -> bytes:
        """Choose the login and return connection.start-ok."""
        if (start.version_major, start.version_minor) != (0, 9):
            raise PeerRefused(
                ProtocolErrorKind.UNUSABLE, f"it speaks AMQP {start.version_major}-{start.version_minor}, not 0-9-1"
            )
        offered = start.mechanisms.split()
        mechanism = next((name for name in self._mechanisms if name in offered), None)
        if mechanism is None:
            raise PeerRefused(ProtocolErrorKind.NO_MECHANISM, self._text(" ".join(offered)))
        self._product = self._text(start.server_properties.get("product", ""))
        self._version = self._text(start.server_properties.get("version", ""))
        self._mechanism = mechanism
        return self._start_ok(mechanism)

    def on_secure(self) -> bytes:
        """Refuse: none of our logins has a second step."""
        text = f"it asks for a second step of the login, but the mechanism {self._mechanism} has only one"
        raise PeerRefused(ProtocolErrorKind.UNUSABLE, text)

    def on_tune(self, tune: commands.Connection.Tune) -> tuple[bytes, Tuning]:
        """Agree on the tuning; return connection.tune-ok and connection.open, and what was agreed on."""
        if 0 < tune.frame_max < _FRAME_FLOOR:
            raise PeerRefused(
                ProtocolErrorKind.UNUSABLE, f"its frame_max is {tune.frame_max}; AMQP's smallest is {_FRAME_FLOOR}"
            )
        if 0 < tune.channel_max < _CHANNELS_NEEDED:
            raise PeerRefused(
                ProtocolErrorKind.UNUSABLE, f"its channel_max is {tune.channel_max}; {_CHANNELS_NEEDED} are needed"
            )
        tuning = Tuning(
            product=self._product,
            version=self._version,
            mechanism=self._mechanism,
            heartbeat=negotiate_heartbeat(self._heartbeat, tune.heartbeat),
            frame_max=negotiate_limit(self._frame_max, tune.frame_max),
            channel_max=negotiate_limit(self._channel_max, tune.channel_max),
        )
        tune_ok = method_payload(
            commands.Connection.TuneOk,
            channel_max=tuning.channel_max,
            frame_max=tuning.frame_max,
            heartbeat=tuning.heartbeat,
        )
        return frame(METHOD, 0, tune_ok) + self._open, tuning

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
                return b""  # EXTERNAL: the client's certificate names the user
