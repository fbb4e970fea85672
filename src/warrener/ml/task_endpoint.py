"""The endpoint of tasks: a request's body becomes a task, and the task's outcome becomes the answer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio
import anyio.to_thread
from attrs import define
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from warrener.errors import PublishError
from warrener.ml.answers import BEGAN, BUSY, NO_STORE, SOON, answer, refusal
from warrener.ml.celery import task_id_of
from warrener.ml.logs import RateLimit
from warrener.ml.parsing import decoded, parsed_size
from warrener.ml.payloads import InvalidPayload, Payload, Transcribe, from_mapping
from warrener.ml.producer import EncodedTask, MLProducer
from warrener.outbox import OutboxError, OutboxFull
from warrener.records import Receipt, Stored
from warrener.tracing import trace_context

__all__ = ["TaskEndpoint"]

log = logging.getLogger("warrener.tasks")
log.addFilter(RateLimit())

#: Bodies up to this size, in bytes as parsed, are parsed without a thread.
AT_ONCE = 64 * 1024


class _Refused(Exception):
    """A request that is answered before there is a task."""

    def __init__(self, status: int, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class TaskEndpoint:
    """Takes tasks in: at most `max_requests` at once, which hold together at most `max_held` bytes.

    A large body is parsed in a thread, so that the loop goes on; one body at a time, so that the memory of only one parsed
    body is needed. Then only the message is held while it waits for the broker.
    """

    def __init__(self, ml: MLProducer) -> None:
        self._ml = ml
        self._settings = ml.settings
        # Requests, and those of them whose body is whole.
        self._open = self._whole = 0
        self._budget = _Budget(ml.settings.max_held)
        self._left = anyio.Event()
        self._parser = anyio.CapacityLimiter(1)

    async def wait_empty(self) -> None:
        """Return when no task is being taken in."""
        while self._open:
            self._left = anyio.Event()
            await self._left.wait()

    def taking(self, kind: type[Payload]) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of the tasks of one kind."""

        async def take(request: Request) -> Response:
            began: float = request.scope.get("state", {}).get(BEGAN, anyio.current_time())
            intake = _Intake(self._budget, began, began + self._settings.request_timeout)
            self._open += 1
            try:
                return await self._take(request, kind, intake)
            except ClientDisconnect:
                return Response(status_code=400)  # the client has left before its task was complete; nothing was sent
            finally:
                self._open -= 1
                self._whole -= intake.is_whole
                intake.hold(0)
                self._left.set()

        return take

    async def _take(self, request: Request, kind: type[Payload], intake: _Intake) -> Response:
        task_id: str | None = None
        try:
            task_id = _task_id(request)
            self._check_busy()
            body = await self._body(request, intake)
            # Only a whole body counts: one that comes slowly keeps no other task out.
            self._check_busy()
            self._whole += 1
            intake.is_whole = True
            task = await self._encoded(body, kind, intake)
            intake.hold(len(task.body.body))
            remaining = max(0.0, intake.deadline - anyio.current_time())
            trace = trace_context(request.headers)
            if self._settings.outbox is None:
                receipt: Receipt | Stored = await self._ml.submit_encoded(
                    task, task_id=task_id, timeout=remaining, trace=trace
                )
            else:
                receipt = await self._ml.store_encoded(task, task_id=task_id, trace=trace)
        except _Refused as refused:
            return answer(refused.status, str(refused), task_id, retry_after=refused.retry_after)
        except InvalidPayload as error:
            return answer(422, str(error), task_id)
        except PublishError as error:
            log.warning("a task was not confirmed: %s", error)
            return refusal(error, task_id, self._ml.status())
        except OutboxError as error:
            log.warning("a task was not stored: %s", error)
            full = isinstance(error, OutboxFull)
            return answer(
                503, "the outbox is full" if full else "the outbox cannot be written", task_id, retry_after=SOON
            )
        if isinstance(receipt, Stored):
            return JSONResponse({"task_id": receipt.message_id, "stored": True}, 202, NO_STORE)
        return JSONResponse(
            {"task_id": receipt.message_id, "possible_duplicate": receipt.possible_duplicate}, 202, NO_STORE
        )

    def _check_busy(self) -> None:
        if self._whole >= self._settings.max_requests:
            raise _Refused(503, BUSY, retry_after=SOON)

    async def _body(self, request: Request, intake: _Intake) -> bytearray:
        """Return the body of the request."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _Refused(415, "Content-Type must be application/json")
        limit = self._settings.max_body
        too_large = _Refused(413, f"the body must have at most {limit} bytes")
        announced = request.headers.get("content-length", "")
        length = int(announced[:20]) if announced.isdecimal() else 0
        if length > limit:
            raise too_large
        intake.check(length)
        body = bytearray()
        with anyio.move_on_at(min(intake.deadline, intake.began + self._settings.body_timeout)) as scope:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    if len(body) + len(chunk) > limit:
                        raise too_large
                    intake.check(len(chunk))
                    body += chunk
                    intake.hold(len(body))
        if scope.cancelled_caught:
            raise _Refused(408, f"the body did not arrive within {self._settings.body_timeout:g} s")
        return body

    async def _encoded(self, body: bytearray, kind: type[Payload], intake: _Intake) -> EncodedTask:
        """Return the task of a body, ready to be published."""
        size = parsed_size(body)
        if size > self._settings.max_parsed:
            raise _Refused(
                413, f"the body would take {size} bytes once parsed; at most {self._settings.max_parsed} are allowed"
            )
        if size <= AT_ONCE:
            return self._encode(body, kind)
        with anyio.move_on_at(intake.deadline):
            return await anyio.to_thread.run_sync(self._encode, body, kind, limiter=self._parser)
        raise _Refused(503, BUSY, retry_after=SOON)

    def _encode(self, body: bytearray, kind: type[Payload]) -> EncodedTask:
        payload = from_mapping(kind, decoded(body))
        if isinstance(payload, Transcribe):
            _check_scheme(payload.content.media_url, self._settings.media_schemes)
        return self._ml.encode(payload)


@define
class _Budget:
    """The bytes that all requests hold together."""

    limit: int
    held: int = 0


class _Intake:
    """One request: when it began, and how many bytes it holds."""

    def __init__(self, budget: _Budget, began: float, deadline: float) -> None:
        self._budget = budget
        self._held = 0
        self.is_whole = False
        self.began = began
        self.deadline = deadline

    def check(self, more: int) -> None:
        """Refuse the request if the budget has no place for this number of bytes."""
        if self._budget.held + more > self._budget.limit:
            raise _Refused(503, BUSY, retry_after=SOON)

    def hold(self, size: int) -> None:
        """Count this number of bytes in place of the number before."""
        self._budget.held += size - self._held
        self._held = size


def _check_scheme(media_url: str, schemes: tuple[str, ...]) -> None:
    scheme, separator, _ = media_url.partition("://")
    if (scheme.lower() if separator else "file") not in schemes:
        raise InvalidPayload("content.media_url", f"must have one of these schemes: {', '.join(schemes)}")


def _task_id(request: Request) -> str:
    try:
        return task_id_of(request.headers.get("idempotency-key"))
    except InvalidPayload as error:
        raise InvalidPayload("Idempotency-Key", error.reason) from None
