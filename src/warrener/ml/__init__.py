"""The ML producer: transcription, summary and embedding tasks as confirmed Celery messages, and the service around it."""

from warrener.ml.payloads import (
    Embed,
    EmbedBatch,
    EmbedContent,
    EmbedOptions,
    InvalidPayload,
    Summarize,
    SummarizeContent,
    SummarizeOptions,
    Transcribe,
    TranscribeContent,
    TranscribeOptions,
)
from warrener.ml.producer import MLProducer
from warrener.ml.settings import MLSettings

__all__ = [
    "Embed",
    "EmbedBatch",
    "EmbedContent",
    "EmbedOptions",
    "InvalidPayload",
    "MLProducer",
    "MLSettings",
    "Summarize",
    "SummarizeContent",
    "SummarizeOptions",
    "Transcribe",
    "TranscribeContent",
    "TranscribeOptions",
]
