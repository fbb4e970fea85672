"""The answers of the service to its clients.

A client may be a stranger, so no answer names a host, a port, a virtual host or a destination. The texts below stand for
the errors of the producer; the log has the details.
"""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from warrener.errors import (
    BufferFull,
    CircuitOpen,
    DeadlineExceeded,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishError,
    PublishRefused,
    Unconfirmed,
    Unroutable,
)
from warrener.records import Status

__all__ = ["BEGAN", "BUSY", "NO_STORE", "SOON", "answer", "refusal"]

#: The key of a request's state that holds the instant of its first byte, on the loop's clock.
BEGAN = "warrener_began"

#: Seconds after which a client may try again, where the producer does not know when it will be connected.
SOON = 1.0
#: The same where an operator has to act.
LATER = 60.0

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

BUSY = "not sent: the service is handling too many tasks; try again"

_MAYBE = "a queue may hold it; send it again only with the same Idempotency-Key"

#: The first class that fits is used.
_TEXTS: tuple[tuple[type[PublishError], str], ...] = (
    (CircuitOpen, "not sent: the connection to the broker fails; try again later"),
    (BufferFull, "not sent: too many tasks wait for the broker; try again later"),
    (DeadlineExceeded, "not sent: the broker was not ready in time; try again later"),
    (ProducerClosed, "not sent: the service shuts down; try again later"),
    (GaveUp, "not sent: the service no longer tries to reach the broker; an operator must act"),
    (NotSent, "not sent; try again later"),
    (Unroutable, "no queue took the task; an operator must check the bindings"),
    (PublishRefused, "the broker refused the task; an operator must act"),
    (Nacked, f"the broker did not store the task in every queue; {_MAYBE}"),
    (Unconfirmed, f"the broker did not confirm the task in time; {_MAYBE}"),
)


def answer(
    status: int, error: str, task_id: str | None, *, may: bool = False, retry_after: float | None = None
) -> JSONResponse:
    """Return an answer that is no 202; `may`: whether a queue may hold the task all the same."""
    headers = dict(NO_STORE)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return JSONResponse({"error": error, "task_id": task_id, "may_have_been_delivered": may}, status, headers)


def refusal(error: PublishError, task_id: str | None, status: Status) -> JSONResponse:
    """Return the answer that stands for an error of the producer, whose status is `status`."""
    code, retry_after = _code(error, status)
    return answer(code, _text(error), task_id, may=error.may_have_been_delivered, retry_after=retry_after)


def _text(error: PublishError) -> str:
    if isinstance(error, InvalidMessage):
        return error.reason  # the text names a field of the client's own task, and no value
    text = next((text for kind, text in _TEXTS if isinstance(error, kind)), "the task was not confirmed")
    return f"{text}; {_MAYBE}" if error.may_have_been_delivered and _MAYBE not in text else text


def _code(error: PublishError, status: Status) -> tuple[int, float | None]:
    """Return the status code, and after how many seconds to try again."""
    match error:
        case InvalidMessage():
            return 422, None
        case CircuitOpen():
            return 503, error.retry_after
        case GaveUp():
            return 503, LATER
        case NotSent():
            return 503, status.retry_in or SOON
        case Unconfirmed():
            return 504, None
        case _:
            return 502, None
