"""Dialing: from an `Endpoint` to a connected byte stream, with TLS done; one pass over all addresses of the name.

A dial resolves the name anew, and tries its addresses in the order of RFC 8305 ("happy eyeballs"): 250 ms apart, or as
soon as one has failed. It takes the first address whose connection *and* TLS handshake are done, and closes the streams
of the others. So an address with a bad certificate loses against an address with a good one.

The pass goes on after that: if the AMQP handshake on the stream fails, or takes longer than the share of that address,
`Dialed.after` connects to one of the addresses that are left.

Invariants:

* The only exception is one `LinkDown`, raised without an ExceptionGroup. When all addresses fail, its fault is the most
  telling one and names every address that was tried. A cancellation stays a cancellation and takes effect at once. The
  deadline is the caller's.
* The platform's resolver cannot be interrupted. So each lookup has a daemon thread. While a lookup of the same host and
  port runs, no other is started: the next dial waits for its answer. A cancelled dial does not wait for the thread, and
  neither does the end of the event loop or the end of the program. So a resolver that hangs for ever costs one
  thread per endpoint. No answer is kept for later dials.
* ``amqps`` never falls back to ``amqp``. The certificate must carry the configured name, for every address. TLS older than
  1.2 is refused even if the user's own context would allow it.
* A TLS stream is closed without waiting for the peer's close_notify. AMQP has a close handshake of its own, and the end of
  a stream without that handshake is a lost connection. So a truncated stream is never taken for a complete one.
"""

from __future__ import annotations

import codecs
import errno
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.from_thread
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.lowlevel import EventLoopToken, current_token
from anyio.streams.tls import TLSAttribute, TLSStream
from attrs import define, evolve, field, frozen

from warrener.drivers._faults import DialPhase, fault_of
from warrener.drivers._threads import start_thread
from warrener.drivers.base import LinkDown
from warrener.errors import Fault, FaultKind, printable
from warrener.records import Endpoint

__all__ = [
    "STAGGER",
    "Connect",
    "Dialed",
    "Resolve",
    "Sockets",
    "close_now",
    "connect_tcp",
    "dial",
    "dial_by",
    "resolve",
    "set_options",
]

_log = logging.getLogger("warrener")

# `getaddrinfo` would import this codec at the first dial, perhaps without a free file descriptor.
codecs.lookup("idna")

#: Seconds until the next address is tried beside the last one (RFC 8305, section 5, "Connection Attempt Delay").
STAGGER = 0.25

#: An address may take `connect_timeout` divided by this number, or by the number of addresses if that is smaller.
_SHARES = 4

#: From host and port to literal addresses, in the order of preference; raises OSError.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
#: From a literal address and a port to a connected stream; raises OSError.
Connect: TypeAlias = Callable[[str, int], Awaitable[ByteStream]]


class _Closable(Protocol):
    async def aclose(self) -> None: ...


class SocketOptions(Protocol):
    """A socket as asyncio, uvloop and Trio show it."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None:
        """Set one of its options."""
        ...


S = TypeVar("S", bound=_Closable)
S_co = TypeVar("S_co", bound=_Closable, covariant=True)


@frozen
class Sockets(Generic[S]):
    """How a dial does input and output. All three raise OSError, or what a stream raises when it ends."""

    #: Takes a literal address and a port.
    connect_tcp: Callable[[str, int], Awaitable[S]]
    connect_unix: Callable[[str], Awaitable[S]]
    #: Does the TLS handshake with a server of that name; returns the secured stream, its TLS version and its cipher.
    secure: Callable[[S, str, ssl.SSLContext], Awaitable[tuple[S, str | None, str]]]


#: What a failed attempt may raise. `ssl.SSLError` is an OSError; a ValueError comes from names that TLS cannot carry.
_FAILURES = (
    OSError,
    MemoryError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    ValueError,
)


@frozen
class Dialed(Generic[S_co]):
    """A connected stream, TLS included."""

    stream: S_co
    #: Where it leads: ``127.0.0.1:5672``, ``[::1]:5672``, or the path of a Unix socket.
    address: str
    #: The TLS version and cipher, or None without TLS.
    tls: str | None
    #: How many addresses the pass has, and when it turned to this one.
    addresses: int = 1
    began: float = 0.0
    #: Whether no other address is left.
    last: bool = True
    #: Connects to an address that is left. Its argument is the fault that ended the handshake on this address. It
    #: closes nothing.
    after: Callable[[Fault], Awaitable[Dialed[S_co]]] | None = field(default=None, repr=False)

    def share(self, connect_timeout: float) -> float:
        """Return the seconds that this address has for its handshake, while others are left."""
        return connect_timeout / min(self.addresses, _SHARES)


# --- names ------------------------------------------------------------------------------------------------------------


class _Lookup:
    """One question to the platform's resolver, in a thread of its own; any number of tasks may wait for the answer."""

    def __init__(self, key: tuple[int, str, int]) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._waiters: list[tuple[EventLoopToken, anyio.Event]] = []
        self._answer: Sequence[str] | OSError | None = None
        self._started_at = time.monotonic()
        self._runs = False

    @property
    def dead(self) -> bool:
        """Whether the thread does not run, a second after it was started: where the memory is short it may never run."""
        return not self._runs and time.monotonic() > self._started_at + 1.0

    def start(self) -> None:
        try:
            start_thread(self._work)
        except RuntimeError:
            self._finish(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))

    def _work(self) -> None:
        self._runs = True
        _, host, port = self._key
        answer: Sequence[str] | OSError = socket.gaierror(socket.EAI_FAIL, "the resolver failed")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer = tuple(str(address[0]) for _, _, _, _, address in found)
        except OSError as error:
            answer = error
        except ValueError:
            answer = socket.gaierror(socket.EAI_NONAME, "not a host name")
        except MemoryError:
            answer = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        finally:
            self._finish(answer)

    def _finish(self, answer: Sequence[str] | OSError) -> None:
        # Remove this lookup from the table first, so that a dial which begins from now on asks anew.
        if _lookups.get(self._key) is self:
            del _lookups[self._key]
        with self._lock:
            self._answer = answer
            waiters = tuple(self._waiters)
        for token, answered in waiters:
            with suppress(RuntimeError):  # that event loop has ended
                anyio.from_thread.run_sync(answered.set, token=token)

    async def answer(self) -> Sequence[str]:
        """Wait for the answer; a cancelled wait ends at once, while the thread runs on."""
        answered = anyio.Event()
        waiter = (current_token(), answered)
        with self._lock:
            if self._answer is None:
                self._waiters.append(waiter)
            else:
                answered.set()
        try:
            await answered.wait()
        finally:
            with self._lock, suppress(ValueError):
                self._waiters.remove(waiter)
        assert self._answer is not None
        if isinstance(self._answer, OSError):
            # A new exception for each waiter: a shared one would gather the tracebacks of all.
            raise type(self._answer)(*self._answer.args)
        return self._answer


#: The lookups without an answer. A child process has none of its parent's threads, hence the process id in the key.
_lookups: dict[tuple[int, str, int], _Lookup] = {}


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the platform for the addresses of a name; at most one such lookup per host and port runs at a time."""
    key = (os.getpid(), host, port)
    if key in _lookups and _lookups[key].dead:
        del _lookups[key]
    fresh = _Lookup(key)
    lookup = _lookups.setdefault(key, fresh)
    if lookup is fresh:
        lookup.start()
    return await lookup.answer()


def _literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _in_turn(addresses: Iterable[str]) -> tuple[str, ...]:
    """Drop repetitions and alternate the families, beginning with the resolver's favourite (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return ()
    first = ":" in unique[0]
    favoured = [address for address in unique if (":" in address) is first]
    others = [address for address in unique if (":" in address) is not first]
    pairs = chain.from_iterable(zip_longest(favoured, others))
    return tuple(address for address in pairs if address is not None)


# --- one address ------------------------------------------------------------------------------------------------------


async def connect_tcp(address: str, port: int) -> ByteStream:
    """Connect to a literal address; small writes go out at once (TCP_NODELAY), dead peers are probed (SO_KEEPALIVE)."""
    try:
        stream = await anyio.connect_tcp(address, port)
    except OSError as error:
        # anyio raises an OSError of its own, whose cause is the failure of this one address.
        raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
    set_options(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - not Django's
    return stream


def set_options(raw: SocketOptions) -> None:
    """Have small writes go out at once (TCP_NODELAY) and dead peers probed (SO_KEEPALIVE)."""
    # The peer may be gone already; the first read will say so.
    with suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def _connect_unix(path: str) -> ByteStream:
    return await on_transport(await anyio.connect_unix(path))


async def on_transport(stream: SocketStream) -> SocketStream:
    """Return a stream of the same socket that is built as anyio's TCP streams are; the one given is closed.

    On asyncio, anyio's own stream of a Unix socket sets the result of a future that is done already if a receive or a send
    is cancelled, or the stream is closed, in the pass of the event loop in which the socket becomes ready: InvalidStateError
    in the event loop. https://github.com/agronholm/anyio/issues/1267 describes the case of a close after a cancellation. The
    mend of that issue covers the close alone: anyio 4.16 still raises the error when the socket becomes ready.
    """
    async with stream:
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket).dup()  # noqa: S610 - not Django's
        try:
            return await SocketStream.from_socket(raw)
        except BaseException:
            raw.close()
            raise


async def _secure(stream: ByteStream, host: str, context: ssl.SSLContext) -> tuple[ByteStream, str | None, str]:
    secured = await TLSStream.wrap(
        stream, server_side=False, hostname=host, ssl_context=context, standard_compatible=False
    )
    version = secured.extra(TLSAttribute.tls_version)  # noqa: S610 - not Django's
    return secured, version, secured.extra(TLSAttribute.cipher)[0]  # noqa: S610 - not Django's


async def _secured(sockets: Sockets[S], stream: S, host: str, context: ssl.SSLContext) -> tuple[S, str]:
    """Do the TLS handshake and return the stream and its version and cipher; the stream is closed when it fails."""
    try:
        try:
            secured, version, cipher = await sockets.secure(stream, host, context)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise ssl.SSLEOFError from None
        if version not in ("TLSv1.2", "TLSv1.3"):
            raise LinkDown(
                Fault(FaultKind.TLS, f"the broker offers {printable(version)} only; TLS 1.2 or 1.3 is needed")
            )
    except BaseException:
        await close_now(stream)
        raise
    return secured, f"{version} {cipher}"


async def close_now(stream: _Closable) -> None:
    """Close the stream without waiting for anything."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()


_BAD_FILES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def _make_context(endpoint: Endpoint) -> ssl.SSLContext:
    """Make a context that verifies chain and name, from files that are read anew, so that they may be replaced."""
    what = "cafile"
    encrypted = False

    def passphrase() -> str:
        # Asked for an encrypted key only. Without an answer OpenSSL would ask on the terminal and wait.
        nonlocal encrypted
        encrypted = True
        return endpoint.keyfile_password or ""

    try:
        context = ssl.create_default_context(cafile=endpoint.cafile)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if endpoint.certfile is not None:
            what = "certfile or keyfile"
            context.load_cert_chain(endpoint.certfile, endpoint.keyfile, password=passphrase)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, *_BAD_FILES)):
            # A fault of this computer (no descriptor, no memory, a failing disk), not of the file: it may pass.
            raise LinkDown(fault_of(error, DialPhase.DIALING)) from None
        raise LinkDown(Fault(FaultKind.TLS, _unusable_file(what, error, endpoint, encrypted=encrypted))) from None
    return context


def _unusable_file(what: str, error: Exception, endpoint: Endpoint, *, encrypted: bool) -> str:
    if encrypted and endpoint.keyfile_password is None:
        return "the client's key file is encrypted, and there is no passphrase for it; set keyfile_password"
    if encrypted:
        return "the passphrase (keyfile_password) does not open the client's key file"
    if isinstance(error, ssl.SSLError) and "KEY_VALUES_MISMATCH" in (error.reason or ""):
        return "the client's key (keyfile) does not belong to its certificate (certfile)"
    reason = (error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None) or (
        "it holds no PEM data of the right kind"
    )
    return printable(f"{what} cannot be used ({reason}); it must be a readable PEM file")


# --- all of them ------------------------------------------------------------------------------------------------------


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _rank(error: Exception) -> int:
    """Return 0 for the failures that help a reader most (a lasting refusal, a TLS error), up to 4 for the others."""
    match error:
        case LinkDown():
            return 0 if error.fault.permanent else 1
        case ssl.SSLEOFError():
            return 4
        case ssl.SSLError():
            return 0
        case ConnectionRefusedError():
            return 2
        case TimeoutError():
            return 3
        case _:
            return 4


def _summary(failures: Sequence[tuple[str, Exception]]) -> Fault:
    address, error = min(failures, key=lambda failure: _rank(failure[1]))
    fault = fault_of(error, DialPhase.DIALING)
    where = address
    if len(failures) > 1:
        others = ", ".join(other for other, _ in failures if other != address)
        where = f"{address}; {others} failed, too"
    return Fault(fault.kind, printable(f"{fault.text} ({where})"), reply_code=fault.reply_code)


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)


def _check_security(endpoint: Endpoint, ssl_context: ssl.SSLContext | None, *, require_tls: bool) -> None:
    if not endpoint.tls and not endpoint.local:
        if require_tls:
            text = (
                f"{endpoint} would carry the password in plain text to another host; require_tls forbids it, use amqps"
            )
            raise LinkDown(Fault(FaultKind.TLS, printable(text)))
        _warn_once(printable(f"{endpoint} carries the password in plain text to another host; use amqps"))
    if ssl_context is not None and not (ssl_context.verify_mode is ssl.CERT_REQUIRED and ssl_context.check_hostname):
        checks = "the check of the certificate or of the host name"
        _warn_once(printable(f"TLS to {endpoint} is not verified: the ssl_context given in code turns off {checks}"))


async def dial(
    endpoint: Endpoint,
    *,
    require_tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    first_address: int = 0,
    resolve: Resolve = resolve,
    connect: Connect = connect_tcp,
) -> Dialed[ByteStream]:
    """Connect to the endpoint by anyio's streams: see `dial_by`."""
    return await dial_by(
        Sockets(connect, _connect_unix, _secure),
        endpoint,
        require_tls=require_tls,
        ssl_context=ssl_context,
        first_address=first_address,
        resolve=resolve,
    )


async def dial_by(
    sockets: Sockets[S],
    endpoint: Endpoint,
    *,
    require_tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    first_address: int = 0,
    resolve: Resolve = resolve,
) -> Dialed[S]:
    """Connect to the endpoint, TLS handshake included: one pass over all its addresses.

    The pass begins with the address of index `first_address`, modulo the number of addresses. `ssl_context` replaces the
    context that is made from the endpoint's files. `resolve` and `sockets` are the two places
    at which this does input and output. Raises one `LinkDown`; the deadline is the caller's.
    """
    _check_security(endpoint, ssl_context, require_tls=require_tls)
    context = (ssl_context or _make_context(endpoint)) if endpoint.tls else None
    host, port, path = endpoint.host, endpoint.port, endpoint.socket_path
    hostname = endpoint.server_hostname or host

    async def attempt(address: str) -> Dialed[S]:
        stream = await (sockets.connect_tcp(address, port) if path is None else sockets.connect_unix(path))
        shown = _shown(address, port) if path is None else path
        if context is None:
            return Dialed(stream, shown, None)
        stream, tls = await _secured(sockets, stream, hostname, context)
        return Dialed(stream, shown, tls)

    if path is not None:
        return await _Pass([(path, path)], attempt).connect()
    if _literal(host):
        addresses: Sequence[str] = (host,)
    else:
        try:
            addresses = _in_turn(await resolve(host, port))
        except OSError as error:
            fault = fault_of(error, DialPhase.DIALING)
            raise LinkDown(Fault(fault.kind, printable(f"{fault.text} ({host})"))) from None
        if not addresses:
            raise LinkDown(Fault(FaultKind.UNREACHABLE, printable(f"the host name has no addresses ({host})")))
    first = first_address % len(addresses)
    in_turn = (*addresses[first:], *addresses[:first])
    return await _Pass([(address, _shown(address, port)) for address in in_turn], attempt).connect()


@define(eq=False)
class _Pass(Generic[S]):
    """One pass over the addresses of an endpoint."""

    #: The addresses that have not failed yet, each with its text.
    _left: list[tuple[str, str]]
    _attempt: Callable[[str], Awaitable[Dialed[S]]]
    _failures: list[tuple[str, Exception]] = field(factory=list[tuple[str, Exception]])

    async def connect(self) -> Dialed[S]:
        """Return a stream to one of the addresses that are left; raises `LinkDown` when all have failed."""
        total = len(self._left) + len(self._failures)
        winner = await _race(self._left, self._attempt, self._failures)
        failed = {shown for shown, _ in self._failures}
        self._left = [each for each in self._left if each[1] not in failed]
        if winner is None:
            raise LinkDown(_summary(self._failures))
        (address, shown), began, dialed = winner
        self._left.remove((address, shown))

        async def after(fault: Fault) -> Dialed[S]:
            self._failures.append((shown, LinkDown(fault)))
            return await self.connect()

        last = not self._left
        return evolve(dialed, addresses=total, began=began, last=last, after=after if total > 1 else None)


_Winner: TypeAlias = tuple[tuple[str, str], float, Dialed[S]]


async def _race(
    addresses: Sequence[tuple[str, str]],
    attempt: Callable[[str], Awaitable[Dialed[S]]],
    failures: list[tuple[str, Exception]],
) -> _Winner[S] | None:
    """Run staggered attempts; return the first that succeeds, with the time at which it began; close the others."""
    winner: _Winner[S] | None = None

    async def run(address: str, shown: str, failed: anyio.Event) -> None:
        nonlocal winner
        began = anyio.current_time()
        try:
            dialed = await attempt(address)
        except (*_FAILURES, LinkDown) as error:
            failures.append((shown, error))
            failed.set()
            return
        if winner is None:
            winner = ((address, shown), began, dialed)
            group.cancel_scope.cancel()
        else:
            await close_now(dialed.stream)

    try:
        async with anyio.create_task_group() as group:
            for address, shown in addresses:
                failed = anyio.Event()
                group.start_soon(run, address, shown, failed)
                with anyio.move_on_after(STAGGER):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            await close_now(winner[2].stream)
        raise
    return winner
