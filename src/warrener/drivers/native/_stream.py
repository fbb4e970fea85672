"""What a byte stream raises when it is over."""

from __future__ import annotations

from typing import Final

import anyio

__all__ = ["STREAM_ENDS"]

#: `ssl.SSLError` is an `OSError`. Busy is raised when TLS has to answer its peer (a key update) while the writer sends:
#: the answer is lost, and with it the connection.
STREAM_ENDS: Final = (
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.BusyResourceError,
    anyio.ClosedResourceError,
    OSError,
    MemoryError,
)
