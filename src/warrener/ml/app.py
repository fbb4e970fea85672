"""The service's HTTP side, as one Starlette app: tasks in, health and metrics out, and a page to look at.

It runs under `warrener serve` (Trio) and mounted in any ASGI program (asyncio too). What a client may rely on:

* 202 means that the broker has confirmed the task; every other answer says whether it may be in a queue all the same.
* Each request ends within ``request_timeout``, whatever the broker does. One body has at most ``max_body`` bytes, all
  that are held together ``max_held``.
* Bodies are JSON and say so: a web page of another origin can send plain text without asking, JSON it cannot.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from importlib import resources
from typing import Any, NoReturn

import anyio
from attrs import define

from warrener.errors import (
    CircuitOpen,
    GaveUp,
    InvalidMessage,
    NotSent,
    PublishError,
    Unconfirmed,
)
from warrener.http import health_routes, in_loop, metrics_endpoint
from warrener.metrics import ProducerCollector
from warrener.ml.celery import task_id_of
from warrener.ml.history import History
from warrener.ml.metrics import MLCollector
from warrener.ml.payloads import Embed, EmbedBatch, InvalidPayload, Payload, Summarize, Transcribe, from_mapping
from warrener.ml.producer import MLProducer
from warrener.tracing import trace_context

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError:
    raise ImportError("warrener.ml.app needs starlette: pip install 'warrener[ml]'") from None

__all__ = ["HEALTH_PATH", "TASKS", "ml_app"]

HEALTH_PATH = "/v1/ml/analytics/health"
EVENTS_PATH = "/v1/ml/analytics/events"
#: By the last part of the path.
TASKS: Mapping[str, type[Payload]] = {
    "summarize": Summarize,
    "transcribe": Transcribe,
    "embed": Embed,
    "embed-batch": EmbedBatch,
}

#: Seconds after which a client may try again, where the producer cannot tell.
SOON = 1.0
#: The same when only an operator can mend it.
LATER = 60.0


def ml_app(ml: MLProducer, *, history: History | None = None) -> Starlette:
    """Return the app; `history` is the one that the service keeps, None for one that advances while it is watched.

    ``await app.state.wait_empty()`` returns when no task is being taken in: the answers to all of them are on their way.
    """
    desk = _Desk(ml)
    page = _Page(history or History(ml), ml.settings.max_watchers)
    app = Starlette(
        routes=[
            *health_routes(ml, HEALTH_PATH),
            Route(
                "/metrics",
                in_loop(metrics_endpoint(MLCollector(ml), ProducerCollector(ml.producer))),
                methods=["GET"],
            ),
            *(Route(f"/v1/ml/tasks/{name}", desk.taking(kind), methods=["POST"]) for name, kind in TASKS.items()),
            Route("/", in_loop(page.html), methods=["GET"]),
            Route(EVENTS_PATH, in_loop(page.events), methods=["GET"]),
        ]
    )
    app.state.wait_empty = desk.wait_empty
    return app


# --- tasks ---------------------------------------------------------------------------------------------------------


_BUSY = "too many tasks are being taken in; nothing was sent; try again"


class _Refusal(Exception):
    """A request that is answered before there is a task."""

    def __init__(self, status: int, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


@define
class _Intake:
    """What one request has sent so far."""

    octets: int = 0


class _Desk:
    """Takes tasks in: so many, and so many bytes, at once."""

    def __init__(self, ml: MLProducer) -> None:
        self._ml = ml
        self._settings = ml.settings
        self._open = 0
        self._held = 0
        self._left = anyio.Event()

    async def wait_empty(self) -> None:
        while self._open:
            self._left = anyio.Event()
            await self._left.wait()

    def taking(self, kind: type[Payload]) -> Callable[[Request], Awaitable[Response]]:
        async def take(request: Request) -> Response:
            deadline = anyio.current_time() + self._settings.request_timeout
            if self._open >= self._settings.max_requests:
                return _answer(503, _BUSY, None, retry_after=SOON)
            self._open += 1
            intake = _Intake()
            try:
                return await self._take(request, kind, deadline, intake)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it; nothing was sent
            finally:
                self._open -= 1
                self._held -= intake.octets
                self._left.set()

        return take

    async def _take(self, request: Request, kind: type[Payload], deadline: float, intake: _Intake) -> Response:
        task_id: str | None = None
        try:
            task_id = _task_id(request)
            payload = from_mapping(kind, await self._body(request, deadline, intake))
            remaining = max(0.0, deadline - anyio.current_time())
            receipt = await self._ml.submit(
                payload, task_id=task_id, timeout=remaining, trace=trace_context(request.headers)
            )
        except _Refusal as refusal:
            return _answer(refusal.status, str(refusal), task_id, retry_after=refusal.retry_after)
        except InvalidPayload as error:
            return _answer(422, str(error), task_id)
        except PublishError as error:
            status, retry_after = self._verdict(error)
            return _answer(status, str(error), task_id, may=error.may_have_been_delivered, retry_after=retry_after)
        return JSONResponse(
            {"task_id": receipt.message_id, "possible_duplicate": receipt.possible_duplicate}, 202, _NO_STORE
        )

    async def _body(self, request: Request, deadline: float, intake: _Intake) -> object:
        """Return the decoded JSON of the request, and note its size."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _Refusal(415, "the body must be application/json, and say so in Content-Type")
        limit = self._settings.max_body
        too_large = _Refusal(413, f"the body must have at most {limit} bytes")
        announced = request.headers.get("content-length", "")
        length = int(announced[:20]) if announced.isdecimal() else 0
        if length > limit:
            raise too_large
        busy = _Refusal(503, _BUSY, retry_after=SOON)
        if self._held + length > self._settings.max_held:
            raise busy
        body = bytearray()
        with anyio.move_on_at(deadline) as scope:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    if len(body) + len(chunk) > limit:
                        raise too_large
                    if self._held + len(chunk) > self._settings.max_held:
                        raise busy
                    self._held += len(chunk)
                    intake.octets += len(chunk)
                    body += chunk
        if scope.cancelled_caught:
            raise _Refusal(408, f"the body did not arrive within {self._settings.request_timeout:g} s")
        try:
            return json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise InvalidPayload("the body", "is not valid JSON") from None

    def _verdict(self, error: PublishError) -> tuple[int, float | None]:
        """Return the status of an answer, and after how many seconds to try again."""
        match error:
            case InvalidMessage():
                return 422, None
            case CircuitOpen():
                return 503, error.retry_after
            case GaveUp():
                return 503, LATER
            case NotSent():
                return 503, self._ml.status().retry_in or SOON
            case Unconfirmed():
                return 504, None
            case _:
                return 502, None


_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _task_id(request: Request) -> str:
    try:
        return task_id_of(request.headers.get("idempotency-key"))
    except InvalidPayload as error:
        raise InvalidPayload("Idempotency-Key", error.reason) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _answer(
    status: int, error: str, task_id: str | None, *, may: bool = False, retry_after: float | None = None
) -> JSONResponse:
    headers = dict(_NO_STORE)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return JSONResponse({"error": error, "task_id": task_id, "may_have_been_delivered": may}, status, headers)


# --- the status page -------------------------------------------------------------------------------------------------


class _Page:
    """The page and its stream of events."""

    def __init__(self, history: History, max_watchers: int) -> None:
        self._history = history
        self._max_watchers = max_watchers
        self._watchers = 0
        self._html = resources.files("warrener.ml").joinpath("status.html").read_text(encoding="utf-8")
        self._headers = _NO_STORE | {
            # Nothing but the page's own two blocks may run or style; nothing may be loaded, framed or posted to.
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {_hash(self._html, 'script')}; style-src {_hash(self._html, 'style')}; "
                "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
        }

    def html(self, _request: Request) -> Response:
        return HTMLResponse(self._html, headers=self._headers)

    def events(self, _request: Request) -> Response:
        if self._watchers >= self._max_watchers or self._history.ended:
            return _answer(503, "too many watch the status page already", None, retry_after=10.0)
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
    """A stream of events; it notices when its reader leaves, and says so.

    Not Starlette's StreamingResponse: that one is cancelled inside its last `send` by the disconnect that this very send
    brings about, and leaves hypercorn with a connection that nobody closes any more.
    """

    def __init__(self, events: AsyncGenerator[str, None], left: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers=_NO_STORE | {"X-Accel-Buffering": "no"})
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
