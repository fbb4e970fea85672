"""The status page, and the stream of events that it shows.

The stream names the kind of a fault and never its text: a text may name the host or the virtual host of the broker.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import resources
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from warrener.ml.answers import NO_STORE, answer
from warrener.ml.history import History

__all__ = ["StatusPage"]


class StatusPage:
    """The page and its stream of events, for at most `max_watchers` readers."""

    def __init__(self, history: History, max_watchers: int) -> None:
        self._history = history
        self._max_watchers = max_watchers
        self._watchers = 0
        self._html = resources.files("warrener.ml").joinpath("status.html").read_text(encoding="utf-8")
        self._headers = NO_STORE | {
            # The browser runs and styles only the page's own two blocks; it may load, frame and post nothing.
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {_hash(self._html, 'script')}; style-src {_hash(self._html, 'style')}; "
                "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
        }

    def html(self, _request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self._html, headers=self._headers)

    def events(self, _request: Request) -> Response:
        """Return the stream of events, or 503 when there are too many readers."""
        if self._watchers >= self._max_watchers or self._history.ended:
            return answer(503, "too many browsers watch the status page; try again later", None, retry_after=10.0)
        self._watchers += 1
        return _Events(self._stream(), self._left)

    def _left(self) -> None:
        self._watchers -= 1

    async def _stream(self) -> AsyncGenerator[str, None]:
        history = self._history
        history.advance()
        seen = -1
        while not history.ended:
            # ASCII only: no line break of any alphabet can end an event early.
            yield f"data: {json.dumps(history.snapshot(since=seen))}\n\n"
            seen = history.noted
            await history.wait_sample()


class _Events(Response):
    """A stream of events that ends when its reader leaves.

    Starlette's StreamingResponse is not used: the disconnect cancels it inside the `send` that noticed the disconnect,
    and then some servers never close the connection.
    """

    def __init__(self, events: AsyncGenerator[str, None], left: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers=NO_STORE | {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with anyio.create_task_group() as tasks:

                async def notice_disconnect() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(notice_disconnect)
                async with aclosing(self._events) as events:
                    async for event in events:
                        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
                tasks.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._left()


def _hash(html: str, tag: str) -> str:
    blocks: list[Any] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )
