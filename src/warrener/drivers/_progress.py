"""How far sent bytes have come: which of them wait in the kernel for the peer."""

from __future__ import annotations

import struct
import sys
from contextlib import suppress

from anyio.abc import ByteStream, SocketAttribute

__all__ = ["unacknowledged"]

if sys.platform != "win32":
    import fcntl
    from termios import TIOCOUTQ


def unacknowledged(stream: ByteStream) -> int:
    """Return the bytes that the kernel holds because the peer has not acknowledged them; 0 where it does not tell.

    A slow line shows its progress here only: a send returns once the kernel has room, megabytes ahead of the peer.
    """
    raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django's
    if sys.platform == "win32" or raw is None:
        return 0
    # OSError: this kind of socket cannot tell how many bytes wait; ValueError: the socket is closed.
    with suppress(OSError, ValueError):
        (size,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), TIOCOUTQ, bytes(4)))
        return int(size)
    return 0
