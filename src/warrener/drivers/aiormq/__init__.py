"""The aiormq driver: aiormq 7 on asyncio directly, and on Trio across a bridge to an asyncio loop in a thread.

`AiormqDriver` satisfies `warrener.drivers.base.Driver`. docs/drivers.md compares it with the native driver and names
what it cannot give.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from anyio.lowlevel import current_token

from warrener.drivers.aiormq._bridge import open_bridged
from warrener.drivers.aiormq._direct import open_direct
from warrener.drivers.base import Link, LinkListener, LinkOptions
from warrener.records import Endpoint

__all__ = ["AiormqDriver"]


class AiormqDriver:
    """Makes links with aiormq; holds no state of theirs."""

    name = "aiormq"

    def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AbstractAsyncContextManager[Link]:
        """Open a link on whichever event loop is running; see the rules in `warrener.drivers.base`."""
        if isinstance(current_token().native_token, asyncio.AbstractEventLoop):
            return open_direct(endpoint, options, listener)
        return open_bridged(endpoint, options, listener)
