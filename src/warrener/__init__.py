"""A RabbitMQ producer for Trio and anyio that survives its broker and tells the truth about each message."""

import importlib
from typing import TYPE_CHECKING

from warrener._publishing.handles import PublishHandle
from warrener._publishing.outcome_stream import OutcomeStream
from warrener._publishing.producer import Producer, open_producer
from warrener._publishing.streams import Changes, Outcomes
from warrener._publishing.targets import Target
from warrener._settings.settings import Settings
from warrener.drivers.base import Driver, Link, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import (
    AuthenticationRefused,
    BufferFull,
    CircuitOpen,
    ConnectError,
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    ProtocolMismatch,
    PublishError,
    PublishRefused,
    SettingsError,
    TLSRefused,
    TopologyMismatch,
    Unconfirmed,
    Unreachable,
    Unroutable,
    VhostRefused,
    WarrenerError,
)
from warrener.machine import Backoff, Breaker
from warrener.records import (
    ClosingReport,
    ConnectionState,
    Credentials,
    Endpoint,
    Message,
    Outcome,
    Receipt,
    Status,
)
from warrener.retry import Budget, Retry
from warrener.topology import Binding, Exchange, Queue

__all__ = [
    "AuthenticationRefused",
    "Backoff",
    "Binding",
    "Breaker",
    "Budget",
    "BufferFull",
    "Changes",
    "CircuitOpen",
    "ClosingReport",
    "ConnectError",
    "ConnectionState",
    "Credentials",
    "DeadlineExceeded",
    "Driver",
    "Endpoint",
    "Exchange",
    "Fault",
    "FaultKind",
    "GaveUp",
    "InvalidMessage",
    "Link",
    "LinkDown",
    "LinkListener",
    "LinkOptions",
    "Message",
    "Nacked",
    "NotSent",
    "Outcome",
    "OutcomeStream",
    "Outcomes",
    "Peer",
    "Producer",
    "ProducerClosed",
    "ProtocolMismatch",
    "PublishError",
    "PublishHandle",
    "PublishRefused",
    "Queue",
    "Receipt",
    "Retry",
    "Settings",
    "SettingsError",
    "Status",
    "TLSRefused",
    "Target",
    "TopologyMismatch",
    "Unconfirmed",
    "Unreachable",
    "Unroutable",
    "VhostRefused",
    "WarrenerError",
    "open_producer",
]

if TYPE_CHECKING:
    from warrener import outbox as outbox


def __getattr__(name: str) -> object:
    # `warrener.outbox` is there after `import warrener`; it is loaded when it is first used.
    if name == "outbox":
        return importlib.import_module("warrener.outbox")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
