"""The interface between a link and the bytes of its connection: what a backend's transport must do.

There are four: `_trio` and `_asyncio` on a socket of the backend, `_tls` around either of them, and `_stream` around a
stream of anyio, for connections in memory. Each has one writer and one reader, which make all decisions about the link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import anyio

__all__ = ["ENDS", "PIECE", "Take", "Transport"]

#: The most bytes (some 800 confirms) that are taken in one pass of the event loop: a fast peer cannot stop other tasks.
PIECE: Final = 16 * 1024

#: What a transport raises when its connection is over. `ssl.SSLError` is an `OSError`.
ENDS: Final = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.BusyResourceError,
    anyio.ClosedResourceError,
    OSError,
    MemoryError,
)

#: Takes the bytes that arrived, which it must copy; answers whether it wants more.
Take = Callable[[bytes | memoryview], bool]


class Transport(Protocol):
    """The bytes of one connection."""

    @property
    def prompt(self) -> bool:
        """Whether `write` gives bytes to the kernel itself; otherwise `drain` does."""
        ...

    @property
    def drain_can_resume(self) -> bool:
        """Whether a `drain` that was cancelled can be called again."""
        ...

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor; -1: there is none, or it is closed."""
        ...

    @property
    def left(self) -> int:
        """How many of the written bytes the kernel has not taken yet. At the end of the connection it may stay above 0."""
        ...

    def write(self, data: bytes) -> None:
        """Give bytes to the kernel, as many as it takes now.

        `drain` waits for the others, and raises the error that this method met.
        """

    async def drain(self) -> None:
        """Wait until `left` is 0; raises one of `ENDS`."""

    async def read_on(self, take: Take) -> None:
        """Call `take` with at most `PIECE` bytes in each pass, until it answers False; raises one of `ENDS`.

        A `read_on` that is cancelled has lost nothing and can be called again.
        """

    def stop(self) -> None:
        """Send nothing any more, not even the bytes that are left. `aclose` follows."""

    async def aclose(self) -> None:
        """Close the connection, whatever state it is in."""
