"""TLS around a transport of either backend: the bytes go through OpenSSL in memory."""

from __future__ import annotations

import ssl

from warrener.drivers.native._transport import PIECE, Take, Transport

__all__ = ["TlsTransport", "secure"]


class TlsTransport:
    """See `Transport`. If the peer asks for a new key, the answer is sent after all bytes encrypted before it."""

    prompt = drain_can_resume = True

    def __init__(self, below: Transport, hostname: str, context: ssl.SSLContext) -> None:
        self._below = below
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_side=False, server_hostname=hostname)
        self._take: Take
        self._error: ssl.SSLError | MemoryError | None = None

    async def shake_hands(self) -> None:
        """Do the handshake; raises what the transport below raises, or `ssl.SSLError`."""

        def take_one(data: bytes | memoryview) -> bool:
            self._in.write(data)
            return False

        while not self._stepped():
            await self._below.drain()
            await self._below.read_on(take_one)
        await self._below.drain()

    def _stepped(self) -> bool:
        """Go on with the handshake, with the bytes that have come; return whether it is done."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            # A failed handshake has an alert for the peer.
            self._send()
        return True

    def _send(self) -> None:
        if self._out.pending:
            self._below.write(self._out.read())

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor."""
        return self._below.descriptor

    @property
    def left(self) -> int:
        """How many encrypted bytes the kernel has not taken."""
        return self._below.left if self._error is None else 1

    def write(self, data: bytes) -> None:
        """Encrypt all bytes, and send what the kernel takes now."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self.object.write(rest) :]
        except (ssl.SSLError, MemoryError) as error:
            self._error = error
        self._send()

    async def drain(self) -> None:
        """Wait until the kernel has all encrypted bytes."""
        if self._error is not None:
            raise self._error
        await self._below.drain()

    async def read_on(self, take: Take) -> None:
        """Decrypt what comes."""
        self._take = take
        if self._pass_on():  # the bytes that came behind the handshake
            await self._below.read_on(self._receive)

    def _receive(self, data: bytes | memoryview) -> bool:
        self._in.write(data)
        return self._pass_on()

    def _pass_on(self) -> bool:
        """Give the decrypted bytes to `take`, and b"" where no record is whole: that, too, is a sign of life."""
        data = b""
        wants_more = True
        while wants_more:
            try:
                data = self.object.read(PIECE)
            except ssl.SSLWantReadError:
                data = b""
            self._send()
            wants_more = self._take(data)
            if not data:
                break
        return wants_more

    def stop(self) -> None:
        """Send nothing any more."""
        self._below.stop()

    async def aclose(self) -> None:
        """Close the connection below, without a close_notify of TLS: AMQP has a close handshake of its own."""
        await self._below.aclose()


async def secure(below: Transport, hostname: str, context: ssl.SSLContext) -> tuple[Transport, str | None, str]:
    """Shake hands with a server of that name; return the secured transport, the TLS version and the cipher."""
    transport = TlsTransport(below, hostname, context)
    await transport.shake_hands()
    cipher = transport.object.cipher()
    return transport, transport.object.version(), cipher[0] if cipher else ""
