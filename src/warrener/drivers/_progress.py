"""How far sent bytes have come: which of them wait in the kernel for the peer."""

from __future__ import annotations

import struct
import sys
from contextlib import suppress

from anyio.abc import ByteStream, SocketAttribute

__all__ = ["descriptor_of", "unacknowledged"]

if sys.platform != "win32":
    import fcntl
    from termios import TIOCOUTQ


def descriptor_of(stream: ByteStream) -> int:
    """Return the file descriptor of the stream's socket; -1: there is none, or it is closed."""
    raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - not Django's
    return -1 if raw is None else raw.fileno()


def unacknowledged(descriptor: int) -> int:
    """Return the bytes that the kernel holds because the peer has not acknowledged them; 0 where it does not tell.

    A slow line shows its progress here only: a send returns once the kernel has room, megabytes ahead of the peer.
    """
    if sys.platform == "win32" or descriptor == -1:
        return 0
    # OSError: this kind of socket cannot tell how many bytes wait.
    with suppress(OSError):
        (size,) = struct.unpack("i", fcntl.ioctl(descriptor, TIOCOUTQ, bytes(4)))
        return int(size)
    return 0
