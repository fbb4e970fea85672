"""Exchanges, queues and bindings that a producer declares on each new link, and the order in which it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from attrs import field, frozen

from warrener.records import FieldValue

__all__ = ["Binding", "Declaration", "Exchange", "Queue", "in_order"]


@frozen
class Exchange:
    """An exchange to declare (exchange.declare). Declaring is idempotent; another definition of it is a mismatch."""

    name: str
    type: str = "direct"
    durable: bool = field(default=True, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    internal: bool = field(default=False, kw_only=True)
    #: Only check that it exists (any type and arguments).
    passive: bool = field(default=False, kw_only=True)
    arguments: Mapping[str, FieldValue] = field(factory=dict[str, FieldValue], kw_only=True)

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@frozen
class Queue:
    """A queue to declare (queue.declare)."""

    name: str
    durable: bool = field(default=True, kw_only=True)
    exclusive: bool = field(default=False, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    passive: bool = field(default=False, kw_only=True)
    arguments: Mapping[str, FieldValue] = field(factory=dict[str, FieldValue], kw_only=True)

    def __str__(self) -> str:
        return f"queue {self.name!r}"


@frozen
class Binding:
    """A binding of a queue to an exchange (queue.bind)."""

    queue: str
    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, FieldValue] = field(factory=dict[str, FieldValue], kw_only=True)

    def __str__(self) -> str:
        return f"binding of queue {self.queue!r} to exchange {self.exchange!r} by {self.routing_key!r}"


Declaration: TypeAlias = Exchange | Queue | Binding


def in_order(topology: Iterable[Declaration]) -> tuple[Declaration, ...]:
    """Return the declarations as they must be made: exchanges, then queues, then bindings; else as given."""
    rank = {Exchange: 0, Queue: 1, Binding: 2}
    return tuple(sorted(topology, key=lambda declaration: rank[type(declaration)]))
