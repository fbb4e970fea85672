"""The one table in which foreign exceptions and the broker's reply codes become `Fault`s.

Both drivers use it, so that the same cause has the same kind and the same words whichever driver met it. Everything here
is a pure function of its arguments. Invariants:

* A fault's text is one line that says what happened and, where that is known, what to do. It never holds a user name, a
  password, a URL or a message; text from the broker passes `printable`, and the user name that RabbitMQ quotes in its
  refusals is taken out.
* AMQP has too few codes, so the *phase* of the link decides: 403 before the tuning is a refused login, 530 at
  connection.open is a refused virtual host, whatever its text says. A likely cause is worded as "possible".
* Only a refusal that further attempts would meet again gets a kind for which `Fault.permanent` is true.
"""

from __future__ import annotations

import enum
import os
import re
import socket
import ssl

import anyio

from warrener.drivers.base import LinkDown
from warrener.errors import Fault, FaultKind, printable
from warrener.wire import ProtocolErrorKind
from warrener.wire.events import ProtocolError

__all__ = [
    "DialPhase",
    "channel_closed_by_broker",
    "closed_by_broker",
    "declaration_refused",
    "end_of_stream",
    "fault_of",
    "illegal_frame",
    "no_common_mechanism",
    "not_amqp",
    "not_encodable",
    "protocol_error",
    "silent",
    "stalled_frame",
    "stalled_write",
    "timed_out",
    "unanswered",
    "unusable",
]


class DialPhase(enum.Enum):
    """How far a link has come; each value completes the sentence "while …"."""

    DIALING = "connecting"
    GREETING = "waiting for the broker's greeting"
    """The protocol header is on its way; Start is due."""
    AUTHENTICATING = "logging in"
    """Start-Ok is on its way; Tune is due."""
    OPENING = "opening the virtual host"
    """Tune-Ok and Open are on their way; Open-Ok is due."""
    PREPARING = "opening the publishing channel"
    UP = "connected"


_HANDSHAKE = frozenset({DialPhase.GREETING, DialPhase.AUTHENTICATING, DialPhase.OPENING, DialPhase.PREPARING})

_USER = re.compile(r"\b(user|username|login)\s+'[^']*'", re.IGNORECASE)


def _said(reply_text: object) -> str:
    """Return the broker's words as a hint, without the user's name, which RabbitMQ likes to quote."""
    text = printable(reply_text) if reply_text else ""
    return f": {_USER.sub('this user', text)}" if text else ""


# --- what the broker said -----------------------------------------------------------------------------------------

_CONNECTION_ADVICE = {
    320: "it is being shut down, or an operator closed the connection",
    501: "a frame was malformed; please report this as a bug",
    502: "a frame held an illegal value; please report this as a bug",
    503: "the broker did not expect this AMQP command now",
    504: "a channel was used that is not open; please report this as a bug",
    505: "a frame came out of order; please report this as a bug",
    506: "the broker lacks resources, or a limit is reached",
    530: "the broker does not allow it",
    540: "the broker does not know the command",
    541: "the broker has an internal error; see its log",
}


#: Reply codes with which a broker closes the connection because of a declaration that it will never take.
_NEVER_DECLARED = frozenset({402, 403, 501, 502, 503, 504, 530, 540})


def closed_by_broker(
    reply_code: int, reply_text: str, phase: DialPhase, *, declaring: str | None = None, updating_secret: bool = False
) -> Fault:
    """Return the fault for a connection.close from the broker; its meaning depends on the phase.

    `declaring`: the entity of the declaration that the close names. `updating_secret`: the close names the update of the
    secret.
    """
    said = _said(reply_text)
    if updating_secret:
        return Fault(
            FaultKind.AUTHENTICATION,
            f"the broker refused the new secret and closed the connection; check what credentials() returns{said}",
            reply_code=reply_code,
        )
    if declaring is not None and reply_code in _NEVER_DECLARED:
        advice = "the broker closed the connection because of it"
        if "unknown exchange type" in reply_text:
            advice = "the broker does not know its exchange type; correct the type, or enable the plugin that adds it"
        return _topology(reply_code, declaring, advice, said)
    if phase in (DialPhase.GREETING, DialPhase.AUTHENTICATING) and reply_code == 403:
        return Fault(
            FaultKind.AUTHENTICATION, f"the broker refused the login; check user and password{said}", reply_code=403
        )
    if phase is DialPhase.OPENING and reply_code in (402, 403, 530):
        return Fault(
            FaultKind.VHOST,
            "the broker refused the virtual host: it is missing, down, forbidden to this user, or at its connection"
            f" limit{said}",
            reply_code=reply_code,
        )
    advice = _CONNECTION_ADVICE.get(reply_code, "see the broker's log")
    where = "" if phase is DialPhase.UP else f" while {phase.value}"
    return Fault(
        FaultKind.CLOSED_BY_BROKER, f"the broker closed the connection{where}; {advice}{said}", reply_code=reply_code
    )


_CHANNEL_ADVICE = {
    403: "the user has no permission to publish there; check the permissions",
    404: "the exchange does not exist; declare it first",
    405: "another connection holds it exclusively",
    406: "the broker does not take such a message; check size, user_id, expiration, reply_to, and the headers CC and BCC",
}


def channel_closed_by_broker(reply_code: int, reply_text: str) -> Fault:
    """Return the fault for a channel.close on a publishing channel."""
    advice = _CHANNEL_ADVICE.get(reply_code, "see the broker's log")
    return Fault(
        FaultKind.CHANNEL_CLOSED, f"the broker closed the channel; {advice}{_said(reply_text)}", reply_code=reply_code
    )


_DECLARATION_ADVICE = {
    403: "the user has no permission to declare or bind it",
    404: "it, or a queue or exchange that it names, does not exist",
    405: "another connection holds it exclusively",
    406: "the broker does not take its definition",
}


def declaration_refused(reply_code: int, reply_text: str, entity: str) -> Fault:
    """Return the fault for a channel.close that answered a declaration; 403 to 406 are about the topology."""
    said = _said(reply_text)
    if "down or inaccessible" in reply_text:
        # The code may be 404 too. The refusal ends when the node that has the queue is there again.
        return Fault(
            FaultKind.CHANNEL_CLOSED,
            f"{printable(entity)} could not be declared now; the node that holds it is down or starting{said}",
            reply_code=reply_code,
        )
    if reply_code not in _DECLARATION_ADVICE:
        return channel_closed_by_broker(reply_code, reply_text)
    advice = _DECLARATION_ADVICE[reply_code]
    if "inequivalent arg" in reply_text:
        advice = "it exists with another definition"
    elif "invalid arg" in reply_text:
        advice = "one of its arguments has a value or a type that the broker does not take"
    return _topology(reply_code, entity, advice, said)


def _topology(reply_code: int, entity: str, advice: str, said: str) -> Fault:
    shown = printable(entity)
    text = f"{shown} could not be declared; {advice}{said}"
    return Fault(FaultKind.TOPOLOGY, text, reply_code=reply_code, entity=shown)


def not_encodable(entity: str, error: Exception) -> Fault:
    """Return the fault for a declaration whose arguments AMQP cannot carry."""
    text = f"{printable(entity)} could not be declared; its arguments cannot be put into AMQP ({printable(str(error))})"
    return Fault(FaultKind.TOPOLOGY, text, entity=printable(entity))


def secret_not_encodable(error: Exception) -> Fault:
    """Return the fault for a secret that AMQP cannot carry; the error does not hold the secret."""
    return Fault(FaultKind.AUTHENTICATION, f"the new secret cannot be put into AMQP: {printable(str(error))}")


# --- what the peer did --------------------------------------------------------------------------------------------

_MAYBE_LOGIN = "a possible authentication failure, or a broker that is starting or stopping"


def end_of_stream(phase: DialPhase) -> Fault:
    """Return the fault for a connection that the peer ended without connection.close."""
    if phase is DialPhase.UP:
        return Fault(FaultKind.CONNECTION_LOST, "the connection was lost: the broker ended it without a close")
    hint = f"; {_MAYBE_LOGIN}" if phase is DialPhase.AUTHENTICATING else f"; {_hung_up(phase)}"
    return Fault(FaultKind.UNREACHABLE, f"the peer ended the connection while {phase.value}{hint}")


def _hung_up(phase: DialPhase) -> str:
    """Return the likely kinds of a peer that ended the connection. A TLS server that gets AMQP often sends no alert."""
    if phase is DialPhase.GREETING:
        return "a broker that is starting, or a port of another protocol: if the port speaks TLS, use amqps://"
    return "a broker that is starting, or not a broker"


def timed_out(phase: DialPhase, seconds: float) -> Fault:
    """Return the fault for a deadline over the whole open that ended in `phase`."""
    if phase is DialPhase.DIALING:
        text = f"no connection within {seconds:g} s (connect_timeout); check host, port and firewalls"
        return Fault(FaultKind.UNREACHABLE, text)
    hint = {
        DialPhase.GREETING: "the peer accepts connections and sends nothing; is it a broker?",
        DialPhase.AUTHENTICATING: _MAYBE_LOGIN,
    }.get(phase, "the broker is overloaded, or an alarm stops it")
    text = f"the handshake did not end within {seconds:g} s (connect_timeout); the link was {phase.value}; {hint}"
    return Fault(FaultKind.HANDSHAKE_TIMEOUT, text)


def unanswered(about: str, seconds: float, behind: str = "") -> Fault:
    """Return the fault for a request that the broker did not answer in time."""
    text = f"the broker did not answer {printable(about)} within {seconds:g} s (declare_timeout){behind}"
    return Fault(FaultKind.STALLED, text)


def silent(seconds: float) -> Fault:
    """Return the fault for two heartbeat intervals without a byte (AMQP 0-9-1, 4.2.7)."""
    return Fault(FaultKind.SILENT, f"nothing was heard from the broker for {seconds:g} s (two heartbeats)")


def stalled_write(seconds: float) -> Fault:
    """Return the fault for a write that the network did not take."""
    text = f"a write did not finish within {seconds:g} s (write_stall_timeout); the broker does not read"
    return Fault(FaultKind.STALLED, text)


def stalled_frame(seconds: float) -> Fault:
    """Return the fault for a frame that arrived only in part."""
    text = f"a frame from the broker did not finish within {seconds:g} s (frame_timeout)"
    return Fault(FaultKind.STALLED, text)


def illegal_frame(what: str) -> Fault:
    """Return the fault for a peer that broke the protocol after the handshake began."""
    return Fault(FaultKind.ILLEGAL_FRAME, f"the broker broke the protocol: {what}")


def unusable(what: str) -> Fault:
    """Return the fault for a broker whose offer cannot be used (tuning, missing confirms)."""
    return Fault(FaultKind.PROTOCOL, f"the broker cannot be used: {what}")


def no_common_mechanism(written: str) -> Fault:
    """Return the fault for a broker that offers no login mechanism of ours."""
    return Fault(
        FaultKind.AUTHENTICATION, f"the broker offers no login mechanism that can be used: {printable(written)}"
    )


def not_amqp(data: bytes) -> Fault:
    """Return the fault for a first answer that is not an AMQP 0-9-1 frame; the bytes choose the hint."""
    if data.startswith(b"AMQP"):
        version = ".".join(str(part) for part in data[4:8])
        return Fault(FaultKind.PROTOCOL, f"the peer speaks AMQP {version}, not 0-9-1")
    hint = "is this the port of a broker?"
    if data.startswith(b"HTTP"):
        hint = "it speaks HTTP; the management port is 15672, AMQP's is 5672"
    elif data[:2] == b"\x15\x03":
        return Fault(FaultKind.PROTOCOL, "the port speaks TLS, and this is a plain-text connection; use amqps://")
    return Fault(FaultKind.PROTOCOL, f"the peer does not speak AMQP 0-9-1: {hint}")


def protocol_error(error: ProtocolError) -> Fault:
    """Return the fault for a protocol error that the wire has found."""
    match error.kind:
        case ProtocolErrorKind.NOT_AMQP:
            return not_amqp(error.data)
        case ProtocolErrorKind.NO_MECHANISM:
            return no_common_mechanism(error.text)
        case ProtocolErrorKind.UNUSABLE:
            return unusable(error.text)
        case ProtocolErrorKind.ILLEGAL:
            return illegal_frame(error.text)


# --- foreign exceptions ------------------------------------------------------------------------------------------


def fault_of(error: BaseException, phase: DialPhase, *, seconds: float = 0.0) -> Fault:
    """Return the fault that stands for a foreign exception; `seconds` is the deadline of a `TimeoutError`."""
    match error:
        case LinkDown():
            return error.fault
        case ssl.SSLError():
            return _tls(error, phase)
        case socket.gaierror():
            return Fault(
                FaultKind.UNREACHABLE, f"the host name could not be resolved ({_reason(error)}); check the host"
            )
        case anyio.EndOfStream():
            return end_of_stream(phase)
        case anyio.BrokenResourceError() | anyio.ClosedResourceError():
            cause = error.__cause__
            return fault_of(cause, phase) if isinstance(cause, OSError) else end_of_stream(phase)
        case ConnectionRefusedError():
            return Fault(FaultKind.UNREACHABLE, "the connection was refused: nothing listens at that host and port")
        case TimeoutError() if error.errno is None and phase is not DialPhase.UP:
            return timed_out(phase, seconds)
        case FileNotFoundError() | PermissionError() if phase is DialPhase.DIALING:
            return Fault(FaultKind.UNREACHABLE, f"a file or socket could not be opened ({_reason(error)})")
        case OSError():
            if phase is DialPhase.UP:
                return Fault(FaultKind.CONNECTION_LOST, f"the connection was lost ({_reason(error)})")
            hint = f"; {_hung_up(phase)}" if phase is DialPhase.GREETING else ""
            return Fault(FaultKind.UNREACHABLE, f"the connection failed while {phase.value} ({_reason(error)}){hint}")
        case MemoryError():
            kind = FaultKind.CONNECTION_LOST if phase is DialPhase.UP else FaultKind.UNREACHABLE
            return Fault(kind, f"this machine had no memory left for the link while {phase.value}")
        case BaseExceptionGroup() if error.exceptions:
            return fault_of(error.exceptions[0], phase, seconds=seconds)
        case _:
            # Its text is not shown: nobody knows what a foreign exception puts there.
            kind = FaultKind.CONNECTION_LOST if phase is DialPhase.UP else FaultKind.UNREACHABLE
            return Fault(kind, f"an unexpected {type(error).__name__} ended the link while {phase.value}")


def _reason(error: OSError) -> str:
    """Return the operating system's words for the error, without what a library may have added."""
    if isinstance(error, socket.gaierror):
        return printable(error.strerror or "resolver error")
    return printable(os.strerror(error.errno)) if error.errno else type(error).__name__


def _client_certificate(reason: str) -> Fault:
    if "CERTIFICATE_REQUIRED" in reason:
        text = "the broker asks for a client certificate, and none was given; set certfile and keyfile"
    else:
        text = f"the broker refused the client's certificate ({reason})"
    return Fault(FaultKind.TLS, text)


def _tls(error: ssl.SSLError, phase: DialPhase) -> Fault:
    if phase is not DialPhase.DIALING:
        kind = FaultKind.CONNECTION_LOST if phase is DialPhase.UP else FaultKind.UNREACHABLE
        reason = printable(error.reason or "unexpected end")
        if phase in _HANDSHAKE and "CERTIFICATE" in reason.upper():
            # TLS 1.3 refuses a client's certificate after the client's own handshake is done.
            return _client_certificate(reason)
        return Fault(kind, f"the TLS connection was lost while {phase.value} ({reason})")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(
            FaultKind.TLS,
            f"the broker's certificate was not accepted ({printable(error.verify_message)}); check host name and cafile",
        )
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Fault(FaultKind.UNREACHABLE, "the peer ended the connection during the TLS handshake")
    reason = printable(error.reason or "no reason given")
    if "CERTIFICATE" in reason and "ALERT" in reason:
        return _client_certificate(reason)
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
        return Fault(FaultKind.TLS, "the peer does not speak TLS at that port; RabbitMQ's TLS port is 5671")
    return Fault(FaultKind.TLS, f"the TLS handshake failed ({reason})")
