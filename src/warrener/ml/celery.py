"""A task as a Celery message, protocol version 2: byte for byte what a Celery worker expects.

(docs.celeryq.dev, "Message Protocol".) The body is a JSON array ``[args, kwargs, embed]``; what the worker needs before it reads the body (task name, id,
retries, …) is in the AMQP headers. ``argsrepr`` and ``kwargsrepr`` are shown in worker logs and monitors, so they say
which keys there are and nothing of what people wrote.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping
from typing import cast

from attrs import frozen

from warrener._ids import new_task_id
from warrener.ml.payloads import Backend, Embed, EmbedBatch, InvalidPayload, Payload, Summarize, Transcribe
from warrener.records import FieldValue, Message

__all__ = ["ROUTES", "Route", "origin", "route_of", "task_id_of", "task_message"]


@frozen
class Route:
    """Which queue takes a task, and how Celery calls it."""

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
    """Return where `payload` goes when `backend` is to do it."""
    return ROUTES[type(payload), backend]


def origin() -> str:
    """Return who sends, as Celery writes it: the process and the host."""
    return f"{os.getpid()}@{socket.gethostname()}"


def task_id_of(given: str | uuid.UUID | None) -> str:
    """Return `given` as the text of a UUID, or a new random one; raises `InvalidPayload` for anything else."""
    if given is None:
        return new_task_id()
    try:
        return str(given if isinstance(given, uuid.UUID) else uuid.UUID(given))
    except (ValueError, AttributeError, TypeError):
        raise InvalidPayload("task_id", "must be a UUID, e.g. 123e4567-e89b-42d3-a456-426614174000") from None


def task_message(
    route: Route,
    kwargs: Mapping[str, object],
    *,
    task_id: str,
    exchange: str,
    origin: str,
    trace: Mapping[str, str] | None = None,
) -> Message:
    """Return the message that has a Celery worker run ``route.task(**kwargs)``.

    `trace` holds ``traceparent`` and perhaps ``tracestate``; they go into the headers at top level. Raises
    `InvalidPayload` if `kwargs` cannot be written as JSON.
    """
    try:
        body = json.dumps([[], kwargs, _EMBED], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload("the payload", f"cannot be written as JSON ({type(error).__name__})") from None
    headers: dict[str, FieldValue] = {
        "lang": "py",
        "task": route.task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": _shape(kwargs),
        "origin": origin,
        "ignore_result": False,
        "shadow": None,
    }
    return Message(
        body,
        exchange=exchange,
        routing_key=route.routing_key,
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
