"""`MLProducer`: transcription, summary and embedding tasks, as confirmed Celery messages.

    async with MLProducer() as ml:                                   # settings from the environment
        receipt = await ml.summarize(share_id="42", text="…", style="brief")
        receipt.message_id                                           # the Celery task id

Each call returns when the broker has confirmed the message, and raises otherwise: `InvalidPayload` before anything is
sent, or the `PublishError` that says whether a worker may see the task all the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import anyio
import anyio.abc
from attrs import frozen

from warrener._publishing.producer import PUBLISH_TIMEOUT, Producer, running
from warrener._settings.settings import Settings, SettingsFields
from warrener._settings.sources import defaults
from warrener.drivers.base import Driver
from warrener.ml import celery
from warrener.ml.payloads import (
    BACKENDS,
    Backend,
    Embed,
    EmbedBatch,
    EmbedBatchFields,
    EmbedFields,
    InvalidPayload,
    Payload,
    Summarize,
    SummarizeFields,
    Transcribe,
    TranscribeFields,
    from_keywords,
    wire_form,
)
from warrener.ml.settings import PRODUCER_DEFAULTS, MLSettings
from warrener.ml.task_counters import TASK_TYPES, TaskCounters
from warrener.ml.topology import topology
from warrener.outbox import outbox_at
from warrener.records import ClosingReport, Message, Receipt, Status, Stored
from warrener.tracing import caller

__all__ = ["EncodedTask", "MLProducer"]

_P = TypeVar("_P", bound=Payload)

#: Seconds for which a stored task's confirm is waited for.
PATIENCE = 1.0


@frozen
class EncodedTask:
    """A task that is ready to be published."""

    #: The label `task_type` of the metrics.
    kind: str
    body: celery.TaskBody


class MLProducer:
    """Publishes ML tasks; a component of a nursery (``await nursery.start(ml.run)``) or an ``async with`` block.

    `settings` None: `MLSettings.load()`. `driver` and `producer_options` go to the `Producer` (``breaker=None`` …).
    A ready `producer` may be given instead; then the caller chooses its topology. Raises `SettingsError`.
    """

    def __init__(
        self,
        settings: MLSettings | None = None,
        *,
        producer: Producer | None = None,
        driver: Literal["native", "aiormq"] | Driver | None = None,
        **producer_options: Unpack[SettingsFields],
    ) -> None:
        if producer is not None and (producer_options or driver is not None):
            raise TypeError(
                f"a call with producer= takes no {', '.join(producer_options) or 'driver'}; drop one of them"
            )
        self.settings = settings if settings is not None else MLSettings.load()
        if producer is None:
            declared = topology(self.settings.exchange, dead_letter=self.settings.dead_letter)
            options: SettingsFields = {"topology": declared, **producer_options}
            broker = self.settings.broker or Settings.resolve(below=defaults(**PRODUCER_DEFAULTS))
            place = self.settings.outbox
            outbox = None if place is None else outbox_at(place)
            producer = Producer(broker, driver=driver or self.settings.driver, outbox=outbox, **options)
        self.producer = producer
        self.counters = TaskCounters()
        self._origin = celery.origin()
        self._block: AbstractAsyncContextManager[object] | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run the producer, as `Producer.run`."""
        await self.producer.run(task_status=task_status)

    async def aclose(self) -> ClosingReport:
        """Drain and close, as `Producer.aclose`."""
        return await self.producer.aclose()

    async def __aenter__(self) -> Self:
        self._block = running(self.producer)
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(kind, error, traceback)

    def status(self) -> Status:
        """The producer's status."""
        return self.producer.status()

    def reconnect(self) -> bool:
        """Hint that the broker is back, as `Producer.reconnect`."""
        return self.producer.reconnect()

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def summarize(
        self,
        task: Summarize | None = None,
        /,
        *,
        backend: Backend | None = None,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
        **keywords: Unpack[SummarizeFields],
    ) -> Receipt:
        """Have a text summarised.

        A record, or keywords: ``share_id, text, title, url, content_type, provider, model,
        max_length, style``. For the other arguments, and what is raised, see `submit`.
        """
        return await self.submit(
            _payload(Summarize, task, keywords), backend=backend, task_id=task_id, timeout=timeout, trace=trace
        )

    async def transcribe(
        self,
        task: Transcribe | None = None,
        /,
        *,
        backend: Backend | None = None,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
        **keywords: Unpack[TranscribeFields],
    ) -> Receipt:
        """Have a recording transcribed.

        A record, or keywords: ``share_id, media_url, duration, language, normalize,
        prompt, skip_silent``. For the other arguments, and what is raised, see `submit`.
        """
        return await self.submit(
            _payload(Transcribe, task, keywords), backend=backend, task_id=task_id, timeout=timeout, trace=trace
        )

    async def embed(
        self,
        task: Embed | None = None,
        /,
        *,
        backend: Backend | None = None,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
        **keywords: Unpack[EmbedFields],
    ) -> Receipt:
        """Have the embeddings of a text made.

        A record, or keywords: ``share_id, text, type, metadata,
        embedding_type, force_model, chunk_strategy``. For the other arguments, and what is raised, see `submit`.
        """
        return await self.submit(
            _payload(Embed, task, keywords), backend=backend, task_id=task_id, timeout=timeout, trace=trace
        )

    async def embed_batch(
        self,
        task: EmbedBatch | None = None,
        /,
        *,
        backend: Backend | None = None,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
        **keywords: Unpack[EmbedBatchFields],
    ) -> Receipt:
        """Have the embeddings of several texts made by one task.

        A record, or ``tasks=[…]`` of `Embed` records or
        mappings. For the other arguments, and what is raised, see `submit`.
        """
        return await self.submit(
            _payload(EmbedBatch, task, keywords), backend=backend, task_id=task_id, timeout=timeout, trace=trace
        )

    async def submit(
        self,
        payload: Payload,
        *,
        backend: Backend | None = None,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Publish one task; return when the broker has confirmed it. The receipt's ``message_id`` is the task id.

        `backend` wins over the payload's own options, and these win over the preferences of the settings. `task_id` is
        a UUID for a caller that may ask again: the same id on a second try lets workers recognise a duplicate.
        `timeout` is seconds from the call (default: the producer's ``publish_timeout``). `trace` is the W3C trace
        context of the caller, ``traceparent`` and perhaps ``tracestate``.

        Raises `InvalidPayload`, naming the field, before anything is sent; else a `PublishError`.
        """
        return await self.submit_encoded(
            self.encode(payload, backend=backend), task_id=task_id, timeout=timeout, trace=trace
        )

    def encode(self, payload: Payload, *, backend: Backend | None = None) -> EncodedTask:
        """Return the task as the body of a message; may be called in any thread, as a large body takes its time."""
        if backend is not None and backend not in BACKENDS:
            raise InvalidPayload("backend", f"must be one of {', '.join(BACKENDS)}")
        own = None if isinstance(payload, EmbedBatch) else payload.options.backend
        route = celery.route_of(payload, self.settings.backend_for(payload, backend or own))
        kwargs = wire_form(payload, lambda chosen: self.settings.backend_for(payload, backend or chosen))
        return EncodedTask(TASK_TYPES[type(payload)], celery.task_body(route, kwargs))

    async def submit_encoded(
        self,
        task: EncodedTask,
        *,
        task_id: str | uuid.UUID | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        trace: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Publish a task that `encode` returned; otherwise as `submit`."""
        receipt = await self._counted(task, task_id, trace, partial(self.producer.publish, timeout=timeout))
        assert isinstance(receipt, Receipt)
        return receipt

    async def store_encoded(
        self, task: EncodedTask, *, task_id: str | uuid.UUID | None = None, trace: Mapping[str, str] | None = None
    ) -> Receipt | Stored:
        """Store a task that `encode` returned in the outbox; return its receipt if the confirm comes within a second.

        Raises `InvalidPayload`, or the `OutboxError` that says why the task was not stored.
        """
        return await self._counted(task, task_id, trace, partial(self.producer.enqueue_and_wait, patience=PATIENCE))

    async def _counted(
        self,
        task: EncodedTask,
        task_id: str | uuid.UUID | None,
        trace: Mapping[str, str] | None,
        send: Callable[[Message], Awaitable[Receipt | Stored]],
    ) -> Receipt | Stored:
        given = celery.task_id_of(task_id)
        called = anyio.current_time()
        try:
            with caller(trace) as headers:
                message = celery.task_message(
                    task.body, task_id=given, exchange=self.settings.exchange, origin=self._origin, trace=headers
                )
                self.counters.sending(task.kind, len(message.body))
                outcome = await send(message)
        except Exception as error:
            self.counters.failed_one(task.kind, anyio.current_time() - called, error)
            raise
        except anyio.get_cancelled_exc_class():
            self.counters.cancelled_one(task.kind, anyio.current_time() - called)
            raise
        attempts = outcome.attempts if isinstance(outcome, Receipt) else 1
        self.counters.confirmed_one(task.kind, anyio.current_time() - called, attempts)
        return outcome


def _payload(kind: type[_P], task: _P | None, keywords: Mapping[str, object]) -> _P:
    """Return the record that was given, or the one that the keywords describe."""
    if task is None:
        return from_keywords(kind, keywords)
    if keywords:
        raise TypeError(
            f"a call with a {kind.__name__} takes no keywords; set them in the record: {', '.join(keywords)}"
        )
    if not isinstance(task, kind):
        raise InvalidPayload("the payload", f"must be a {kind.__name__}, not {type(task).__name__}")
    return task
