"""Where the ML tasks go: one topic exchange, five durable quorum queues, each bound by its own name.

The declarations are idempotent and made on each new link. The arguments of an existing queue cannot change, so the
dead-letter exchange, which the queues name in their arguments, is a choice to be made before the queues exist.
"""

from __future__ import annotations

from collections.abc import Mapping

from warrener.records import FieldValue
from warrener.topology import Binding, Declaration, Exchange, Queue

__all__ = ["DEFAULT_EXCHANGE", "DELIVERY_LIMIT", "QUEUES", "topology"]

DEFAULT_EXCHANGE = "bookmarkai.ml"
QUEUES = ("ml.summarize", "ml.summarize_local", "ml.transcribe", "ml.transcribe_local", "ml.embed")

#: How often a worker may fail to acknowledge a task before RabbitMQ drops it (or dead-letters it).
DELIVERY_LIMIT = 5


def topology(exchange: str = DEFAULT_EXCHANGE, *, dead_letter: bool = False) -> tuple[Declaration, ...]:
    """Return what the ML producer declares.

    With `dead_letter`, tasks that failed `DELIVERY_LIMIT` times go to the exchange ``<exchange>.dlx`` and wait in the
    queue of the same name; without it RabbitMQ drops them.
    """
    arguments: dict[str, FieldValue] = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    if not dead_letter:
        return _declarations(exchange, arguments)
    letters = f"{exchange}.dlx"
    return (
        # These come first, so that the dead-letter exchange and its queue exist before a queue names the exchange.
        Exchange(letters, "topic"),
        Queue(letters, arguments={"x-queue-type": "quorum"}),
        Binding(source=letters, destination=letters, routing_key="#"),
        *_declarations(exchange, arguments | {"x-dead-letter-exchange": letters}),
    )


def _declarations(exchange: str, arguments: Mapping[str, FieldValue]) -> tuple[Declaration, ...]:
    return (
        Exchange(exchange, "topic"),
        *(Queue(name, arguments=arguments) for name in QUEUES),
        *(Binding(source=exchange, destination=name, routing_key=name) for name in QUEUES),
    )
