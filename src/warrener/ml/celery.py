"""A task as a Celery message, protocol version 2 (docs.celeryq.dev, "Message Protocol").

The body is a JSON array ``[args, kwargs, embed]``. The name of the task, its id and its number of retries are in the AMQP
headers, where the worker reads them before the body. Worker logs and monitors show ``argsrepr`` and ``kwargsrepr``, so these
hold the keys and no values.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from typing import cast

from attrs import field, frozen

from warrener._ids import new_task_id
from warrener.ml.payloads import Backend, Embed, EmbedBatch, InvalidPayload, Payload, Summarize, Transcribe
from warrener.records import FieldValue, Message

__all__ = ["ROUTES", "Route", "TaskBody", "origin", "route_of", "task_body", "task_id_of", "task_message"]


@frozen
class Route:
    """The queue of a task, and its name in Celery."""

    routing_key: str
    task: str


ROUTES: Mapping[tuple[type[Payload], Backend], Route] = {
    (Summarize, "api"): Route("ml.summarize", "llm_service.tasks.summarize_content"),
    (Summarize, "local"): Route("ml.summarize_local", "llm_service.tasks.summarize_content_local"),
    (Transcribe, "api"): Route("ml.transcribe", "whisper.tasks.transcribe_api"),
    (Transcribe, "local"): Route("ml.transcribe_local", "whisper.tasks.transcribe_local"),
    # One queue and one task for both: options.backend carries the choice.
    (Embed, "api"): Route("ml.embed", "vector_service.tasks.generate_embeddings"),
    (Embed, "local"): Route("ml.embed", "vector_service.tasks.generate_embeddings"),
    (EmbedBatch, "api"): Route("ml.embed", "vector_service.tasks.generate_embeddings_batch"),
    (EmbedBatch, "local"): Route("ml.embed", "vector_service.tasks.generate_embeddings_batch"),
}

#: The third element of the body: no callbacks, no workflow.
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def route_of(payload: Payload, backend: Backend) -> Route:
    """Return the route of `payload` to this backend."""
    return ROUTES[type(payload), backend]


def origin() -> str:
    """Return the sender as Celery writes it: the process and the host."""
    return f"{os.getpid()}@{socket.gethostname()}"


#: A UUID as it is usually written. `uuid.UUID` also takes braces, signs and 0x, and would give two keys one id.
_TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def task_id_of(given: str | uuid.UUID | None) -> str:
    """Return `given` as it is written, or a new random id; raises `InvalidPayload` for anything that is no UUID."""
    if given is None:
        return new_task_id()
    text = str(given)
    if _TASK_ID.fullmatch(text):
        return text
    raise InvalidPayload("task_id", "must be a UUID, e.g. 123e4567-e89b-42d3-a456-426614174000")


@frozen
class TaskBody:
    """A task as the body of a message, ready to be published."""

    route: Route
    body: bytes = field(repr=False)
    #: The kwargs without their values.
    shape: str


def task_body(route: Route, kwargs: Mapping[str, object]) -> TaskBody:
    """Return the body that has a Celery worker run ``route.task(**kwargs)``.

    Raises `InvalidPayload` if `kwargs` cannot be written as JSON.
    """
    try:
        body = json.dumps([[], kwargs, _EMBED], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload("the payload", f"cannot be written as JSON ({type(error).__name__})") from None
    return TaskBody(route, body, _shape(kwargs))


def task_message(
    task: TaskBody, *, task_id: str, exchange: str, origin: str, trace: Mapping[str, str] | None = None
) -> Message:
    """Return the message of a task.

    `trace` holds ``traceparent`` and perhaps ``tracestate``; they go into the headers at top level.
    """
    headers: dict[str, FieldValue] = {
        "lang": "py",
        "task": task.route.task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": task.shape,
        "origin": origin,
        "ignore_result": False,
        "shadow": None,
    }
    return Message(
        task.body,
        exchange=exchange,
        routing_key=task.route.routing_key,
        headers=headers | cast("dict[str, FieldValue]", dict(trace or {})),
        content_type="application/json",
        content_encoding="utf-8",
        message_id=task_id,
        correlation_id=task_id,
        reply_to="",
        persistent=True,
        mandatory=True,
    )


def _shape(kwargs: Mapping[str, object]) -> str:
    """Return the kwargs as a monitor may show them: the keys, with how many items a list has, and no values."""

    def inside(value: object) -> str:
        return f"[{len(cast('list[object]', value))} tasks]" if isinstance(value, list) else "…"

    return "{" + ", ".join(f"'{key}': {inside(value)}" for key, value in kwargs.items()) + "}"
