"""The endpoint of tasks: a request's body becomes a task, and the task's outcome becomes the answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import NoReturn

import anyio
from attrs import define
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from warrener.errors import PublishError
from warrener.ml.answers import BUSY, NO_STORE, SOON, answer, refusal
from warrener.ml.celery import task_id_of
from warrener.ml.payloads import InvalidPayload, Payload, from_mapping
from warrener.ml.producer import MLProducer
from warrener.tracing import trace_context

__all__ = ["TaskEndpoint"]


class _Refused(Exception):
    """A request that is answered before there is a task."""

    def __init__(self, status: int, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


@define
class _Intake:
    """One request while its body arrives."""

    #: Bytes of the body so far.
    size: int = 0


class TaskEndpoint:
    """Takes tasks in: at most `max_requests` at once, whose bodies have at most `max_held` bytes together."""

    def __init__(self, ml: MLProducer) -> None:
        self._ml = ml
        self._settings = ml.settings
        self._open = 0
        self._held = 0
        self._left = anyio.Event()

    async def wait_empty(self) -> None:
        """Return when no task is being taken in."""
        while self._open:
            self._left = anyio.Event()
            await self._left.wait()

    def taking(self, kind: type[Payload]) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of the tasks of one kind."""

        async def take(request: Request) -> Response:
            deadline = anyio.current_time() + self._settings.request_timeout
            if self._open >= self._settings.max_requests:
                return answer(503, BUSY, None, retry_after=SOON)
            self._open += 1
            intake = _Intake()
            try:
                return await self._take(request, kind, deadline, intake)
            except ClientDisconnect:
                return Response(status_code=400)  # the client has left before its task was complete; nothing was sent
            finally:
                self._open -= 1
                self._held -= intake.size
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
        except _Refused as refused:
            return answer(refused.status, str(refused), task_id, retry_after=refused.retry_after)
        except InvalidPayload as error:
            return answer(422, str(error), task_id)
        except PublishError as error:
            return refusal(error, task_id, self._ml.status())
        return JSONResponse(
            {"task_id": receipt.message_id, "possible_duplicate": receipt.possible_duplicate}, 202, NO_STORE
        )

    async def _body(self, request: Request, deadline: float, intake: _Intake) -> object:
        """Return the decoded JSON of the request, and count its bytes."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _Refused(415, "Content-Type must be application/json")
        limit = self._settings.max_body
        too_large = _Refused(413, f"the body must have at most {limit} bytes")
        announced = request.headers.get("content-length", "")
        length = int(announced[:20]) if announced.isdecimal() else 0
        if length > limit:
            raise too_large
        busy = _Refused(503, BUSY, retry_after=SOON)
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
                    intake.size += len(chunk)
                    body += chunk
        if scope.cancelled_caught:
            raise _Refused(408, f"the body did not arrive within {self._settings.request_timeout:g} s")
        try:
            return json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise InvalidPayload("the body", "is not valid JSON") from None


def _task_id(request: Request) -> str:
    try:
        return task_id_of(request.headers.get("idempotency-key"))
    except InvalidPayload as error:
        raise InvalidPayload("Idempotency-Key", error.reason) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
