"""The counters of the ML producer: plain numbers, under the names that the dashboards of its predecessor read.

Each task is counted once, under one status, when its call ends. A payload that is refused is no task and is not counted.
A task that is neither confirmed nor refused counts as `unconfirmed`. All labels come from the closed sets below.
"""

from __future__ import annotations

from collections.abc import Mapping

from warrener._histogram import Histogram
from warrener.errors import (
    BufferFull,
    CircuitOpen,
    DeadlineExceeded,
    GaveUp,
    InvalidMessage,
    Nacked,
    ProducerClosed,
    PublishRefused,
    Unconfirmed,
    Unroutable,
)
from warrener.ml.payloads import Embed, EmbedBatch, Payload, Summarize, Transcribe

__all__ = ["FAILURES", "STATUSES", "TASK_TYPES", "TaskCounters"]

#: The values of the label `task_type`.
TASK_TYPES: Mapping[type[Payload], str] = {
    Summarize: "summarize_llm",
    Transcribe: "transcribe_whisper",
    Embed: "embed_vectors",
    EmbedBatch: "embed_vectors_batch",
}

#: The values of the label `status`: confirmed; refused, returned or not sent; not sent in time; written and not confirmed;
#: not sent because the breaker was open; cancelled by the caller.
STATUSES = ("success", "failure", "timeout", "unconfirmed", "circuit_breaker_open", "cancelled")

#: The values of the label `reason` of publish failures, by the exception that the caller saw.
FAILURES: Mapping[type[Exception], str] = {
    Unroutable: "unroutable",
    Nacked: "nacked",
    PublishRefused: "refused",
    Unconfirmed: "unconfirmed",
    CircuitOpen: "circuit_open",
    BufferFull: "buffer_full",
    DeadlineExceeded: "deadline_exceeded",
    ProducerClosed: "closed",
    GaveUp: "gave_up",
    InvalidMessage: "invalid",
}
OTHER_FAILURE = "other"

_STATUS = {"circuit_open": "circuit_breaker_open", "deadline_exceeded": "timeout", "unconfirmed": "unconfirmed"}

#: Seconds; the last bound is the deadline of a request.
DURATION_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
SIZE_BOUNDS = (100.0, 500.0, 1_000.0, 5_000.0, 10_000.0, 50_000.0, 100_000.0, 500_000.0, 1_000_000.0, 5_000_000.0)


class TaskCounters:
    """The counters of one ML producer."""

    def __init__(self) -> None:
        kinds = tuple(TASK_TYPES.values())
        self.sent = {(kind, status): 0 for kind in kinds for status in STATUSES}
        self.durations = {(kind, status): Histogram(DURATION_BOUNDS) for kind in kinds for status in STATUSES}
        self.retries = dict.fromkeys(kinds, 0)
        self.sizes = {kind: Histogram(SIZE_BOUNDS) for kind in kinds}
        self.failures = dict.fromkeys((*FAILURES.values(), OTHER_FAILURE), 0)
        #: Over all kinds, for the status page: confirmed calls and the sum of the seconds that they took.
        self.confirmed = 0
        self.confirm_seconds = 0.0

    def sending(self, kind: str, size: int) -> None:
        """Note the size, in bytes, of a message that is to be published."""
        self.sizes[kind].observe(size)

    def confirmed_one(self, kind: str, seconds: float, attempts: int) -> None:
        """Count a call that ended with a receipt."""
        self._count(kind, "success", seconds)
        self.retries[kind] += attempts - 1
        self.confirmed += 1
        self.confirm_seconds += seconds

    def failed_one(self, kind: str, seconds: float, error: Exception) -> None:
        """Count a call that ended with an error."""
        reason = FAILURES.get(type(error), OTHER_FAILURE)
        self.failures[reason] += 1
        self._count(kind, _STATUS.get(reason, "failure"), seconds)

    def cancelled_one(self, kind: str, seconds: float) -> None:
        """Count a call that its caller cancelled."""
        self._count(kind, "cancelled", seconds)

    def _count(self, kind: str, status: str, seconds: float) -> None:
        self.sent[kind, status] += 1
        self.durations[kind, status].observe(seconds)
