"""The one table of foreign exceptions and reply codes: each row has a kind, one safe line, and says what to do."""

from __future__ import annotations

import errno
import socket
import ssl

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener.drivers import _faults
from warrener.drivers._faults import DialPhase, closed_by_broker, fault_of
from warrener.drivers.base import LinkDown
from warrener.errors import Fault, FaultKind


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _tls(kind: type[ssl.SSLError], reason: str) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}] of https://who:secret@host")
    error.reason = reason
    return error


def _untrusted() -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "Hostname mismatch"
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    return error


_LOST = FaultKind.CONNECTION_LOST
_AWAY = FaultKind.UNREACHABLE


@pytest.mark.parametrize(
    ("error", "phase", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), DialPhase.DIALING, _AWAY),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), DialPhase.DIALING, _AWAY),
        (OSError(errno.EHOSTUNREACH, "x"), DialPhase.DIALING, _AWAY),
        (FileNotFoundError(errno.ENOENT, "x"), DialPhase.DIALING, _AWAY),
        (PermissionError(errno.EACCES, "x"), DialPhase.DIALING, _AWAY),
        (TimeoutError(), DialPhase.DIALING, _AWAY),
        (TimeoutError(errno.ETIMEDOUT, "x"), DialPhase.DIALING, _AWAY),
        (TimeoutError(), DialPhase.GREETING, FaultKind.HANDSHAKE_TIMEOUT),
        (TimeoutError(), DialPhase.AUTHENTICATING, FaultKind.HANDSHAKE_TIMEOUT),
        (TimeoutError(errno.ETIMEDOUT, "x"), DialPhase.UP, _LOST),
        (ConnectionResetError(errno.ECONNRESET, "x"), DialPhase.GREETING, _AWAY),
        (ConnectionResetError(errno.ECONNRESET, "x"), DialPhase.UP, _LOST),
        (BrokenPipeError(errno.EPIPE, "x"), DialPhase.UP, _LOST),
        (anyio.EndOfStream(), DialPhase.GREETING, _AWAY),
        (anyio.EndOfStream(), DialPhase.UP, _LOST),
        (anyio.BrokenResourceError(), DialPhase.UP, _LOST),
        (_caused(anyio.BrokenResourceError(), _untrusted()), DialPhase.DIALING, FaultKind.TLS),
        (anyio.ClosedResourceError(), DialPhase.UP, _LOST),
        (_untrusted(), DialPhase.DIALING, FaultKind.TLS),
        (_tls(ssl.SSLError, "WRONG_VERSION_NUMBER"), DialPhase.DIALING, FaultKind.TLS),
        (_tls(ssl.SSLError, "TLSV1_ALERT_PROTOCOL_VERSION"), DialPhase.DIALING, FaultKind.TLS),
        (_tls(ssl.SSLEOFError, "UNEXPECTED_EOF_WHILE_READING"), DialPhase.DIALING, _AWAY),
        (_tls(ssl.SSLEOFError, "UNEXPECTED_EOF_WHILE_READING"), DialPhase.UP, _LOST),
        (_tls(ssl.SSLError, "TLSV13_ALERT_CERTIFICATE_REQUIRED"), DialPhase.GREETING, FaultKind.TLS),
        (ExceptionGroup("all", [ConnectionRefusedError(errno.ECONNREFUSED, "x")]), DialPhase.DIALING, _AWAY),
        (ZeroDivisionError("secret"), DialPhase.UP, _LOST),
    ],
    ids=lambda value: getattr(value, "name", None) or type(value).__name__,
)
def test_each_exception_has_a_kind(error: BaseException, phase: DialPhase, kind: FaultKind) -> None:
    """One row per exception and phase; what the exception itself says is not trusted to be fit for a log."""
    fault = fault_of(error, phase, seconds=10)
    assert fault.kind is kind
    assert fault.text.isprintable()
    assert "secret" not in fault.text


def test_a_link_down_keeps_its_fault() -> None:
    """What was mapped once is not mapped again."""
    fault = Fault(FaultKind.TLS, "as it was")
    assert fault_of(LinkDown(fault), DialPhase.UP) is fault


@pytest.mark.parametrize(
    ("code", "phase", "kind"),
    [
        (403, DialPhase.GREETING, FaultKind.AUTHENTICATION),
        (403, DialPhase.AUTHENTICATING, FaultKind.AUTHENTICATION),
        (403, DialPhase.OPENING, FaultKind.VHOST),
        (530, DialPhase.OPENING, FaultKind.VHOST),
        (402, DialPhase.OPENING, FaultKind.VHOST),
        (530, DialPhase.PREPARING, FaultKind.CLOSED_BY_BROKER),
        (530, DialPhase.UP, FaultKind.CLOSED_BY_BROKER),
        (320, DialPhase.AUTHENTICATING, FaultKind.CLOSED_BY_BROKER),
        (320, DialPhase.UP, FaultKind.CLOSED_BY_BROKER),
        (541, DialPhase.UP, FaultKind.CLOSED_BY_BROKER),
        (999, DialPhase.UP, FaultKind.CLOSED_BY_BROKER),
    ],
)
def test_the_phase_decides_what_a_close_means(code: int, phase: DialPhase, kind: FaultKind) -> None:
    """The same code is a refused login, a refused virtual host, or just an end (F10)."""
    fault = closed_by_broker(code, "TEXT", phase)
    assert (fault.kind, fault.reply_code) == (kind, code)
    assert "TEXT" in fault.text


def test_only_a_shutdown_is_orderly() -> None:
    """320 is announced; 541 is not."""
    assert closed_by_broker(320, "", DialPhase.UP).orderly
    assert not closed_by_broker(541, "", DialPhase.UP).orderly


@pytest.mark.parametrize(("code", "kind"), [(c, FaultKind.TOPOLOGY) for c in (403, 404, 405, 406)] + [(541, FaultKind.CHANNEL_CLOSED)])  # fmt: skip
def test_a_refused_declaration_names_what_was_declared(code: int, kind: FaultKind) -> None:
    """403 to 406 are about the entity, others are about the channel."""
    fault = _faults.declaration_refused(code, "why", "queue 'q'")
    assert (fault.kind, fault.reply_code) == (kind, code)
    assert fault.entity == ("queue 'q'" if kind is FaultKind.TOPOLOGY else None)


@pytest.mark.parametrize(
    ("data", "hint"),
    [(b"HTTP/1.1", "15672"), (b"\x15\x03\x03\x00\x02\x02\x28\x00", "amqps"), (b"AMQP\x00\x01\x00\x00", "0.1.0.0"),
     (b"SSH-2.0-", "port")],
)  # fmt: skip
def test_the_first_bytes_choose_the_hint(data: bytes, hint: str) -> None:
    """A peer that is no broker is told apart by what it says first."""
    fault = _faults.not_amqp(data)
    assert fault.kind is FaultKind.PROTOCOL
    assert hint in fault.text


@pytest.mark.parametrize("phase", [DialPhase.GREETING, DialPhase.OPENING])
def test_a_peer_that_hangs_up_before_its_greeting_may_speak_tls(phase: DialPhase) -> None:
    """OpenSSL sends no alert to a client that speaks AMQP: it ends the connection, in order or with a reset."""
    for error in (anyio.EndOfStream(), ConnectionResetError(errno.ECONNRESET, "x")):
        fault = fault_of(error, phase)
        assert ("speaks TLS, use amqps://" in fault.text) == (phase is DialPhase.GREETING)
        assert not fault.permanent


@pytest.mark.parametrize("phase", list(DialPhase))
def test_nothing_is_asserted_about_a_login_that_got_no_answer(phase: DialPhase) -> None:
    """EOF and silence never make a permanent fault; after Start-Ok they hint at the credentials."""
    for fault in (_faults.end_of_stream(phase), _faults.timed_out(phase, 10)):
        assert not fault.permanent
        assert ("possible authentication failure" in fault.text) == (phase is DialPhase.AUTHENTICATING)


def test_the_user_that_the_broker_quotes_is_not_shown() -> None:
    """RabbitMQ's refusals hold the user's name."""
    text = "NOT_ALLOWED - access to vhost 'v' refused for user 'who-user'"
    assert "who-user" not in closed_by_broker(530, text, DialPhase.OPENING).text


@given(text=st.text(), code=st.integers(0, 65535), phase=st.sampled_from(DialPhase))
def test_the_brokers_text_is_one_safe_line(text: str, code: int, phase: DialPhase) -> None:
    """Whatever the broker says, no fault holds a control character or grows without bound."""
    for fault in (
        closed_by_broker(code, text, phase),
        _faults.channel_closed_by_broker(code, text),
        _faults.declaration_refused(code, text, text),
        _faults.no_common_mechanism(text),
    ):
        assert fault.text.isprintable()
        assert len(fault.text) < 1000
