"""The arguments of queues: which each type knows, in RabbitMQ's order, and which values they can have (RabbitMQ 3.10).

The order matters where several arguments are wrong: the reply text names the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

from warrener.testing.broker._codec import TypedTable

__all__ = ["ARGUMENTS", "INTEGERS", "first_foreign", "first_wrong"]

#: By type of queue, in the order in which a second declaration is compared. An argument that only other types know is
#: refused, one that no type knows is ignored.
ARGUMENTS: Final = {
    "classic": (
        "x-expires", "x-message-ttl", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-max-length",
        "x-max-length-bytes", "x-max-priority", "x-overflow", "x-queue-mode", "x-queue-version",
        "x-single-active-consumer", "x-queue-type", "x-queue-master-locator",
    ),
    "quorum": (
        "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-expires", "x-max-length",
        "x-max-length-bytes", "x-max-in-memory-length", "x-max-in-memory-bytes", "x-overflow", "x-single-active-consumer",
        "x-queue-type", "x-quorum-initial-group-size", "x-delivery-limit", "x-message-ttl", "x-queue-leader-locator",
    ),
}  # fmt: skip
#: Further arguments that only streams know.
_STREAMS: Final = ("x-max-age", "x-stream-max-segment-size-bytes", "x-initial-cluster-size")

INTEGERS: Final = frozenset(
    {"byte", "unsignedbyte", "short", "unsignedshort", "signedint", "unsignedint", "long", "timestamp"}
)
_LONGEST_EXPIRY: Final = 4_294_967_295

#: From type, value and all arguments to RabbitMQ's reason, or None.
_Check: TypeAlias = Callable[[str, object, TypedTable], "str | None"]


def _integer(kind: str, value: object, _: TypedTable, *, least: int = 0, most: int | None = None) -> str | None:
    if kind not in INTEGERS - {"timestamp"} or not isinstance(value, int):
        return f'"expected integer, got {kind}"'
    if value == 0 < least:
        return "{value_zero,0}"
    if value < 0:
        return f"{{value_negative,{value}}}"
    return f"{{max_value_exceeded,{value}}}" if most is not None and value > most else None


def _milliseconds(kind: str, value: object, arguments: TypedTable, *, least: int = 0) -> str | None:
    reason = _integer(kind, value, arguments, least=least)
    if reason is None and isinstance(value, int) and value > _LONGEST_EXPIRY:
        return f"{{value_too_big,{value}}}"
    return reason


def _text(kind: str, value: object, _: TypedTable, *, among: tuple[str, ...] = (), otherwise: str = "") -> str | None:
    if kind != "longstr":
        return f"{{unacceptable_type,{kind}}}"
    return otherwise.format(value) if among and value not in among else None


def _boolean(kind: str, _value: object, _: TypedTable) -> str | None:
    return None if kind == "bool" else f"{{unacceptable_type,{kind}}}"


def _dead_letter_key(kind: str, value: object, arguments: TypedTable) -> str | None:
    if kind == "longstr" and "x-dead-letter-exchange" not in arguments:
        return "routing_key_but_no_dlx_defined"
    return _text(kind, value, arguments)


def _version(kind: str, value: object, arguments: TypedTable) -> str | None:
    reason = _integer(kind, value, arguments)
    return f"\"unsupported queue version '{value}'\"" if reason is None and value not in (1, 2) else reason


#: In the order in which the values of a new queue are looked at.
_CHECKS: Final[Mapping[str, _Check]] = {
    "x-expires": partial(_milliseconds, least=1),
    "x-message-ttl": _milliseconds,
    "x-dead-letter-exchange": _text,
    "x-dead-letter-routing-key": _dead_letter_key,
    "x-dead-letter-strategy": partial(_text, among=("at-most-once", "at-least-once"), otherwise="invalid_dlx_strategy"),
    "x-max-length": _integer,
    "x-max-length-bytes": _integer,
    "x-max-in-memory-length": _integer,
    "x-max-in-memory-bytes": _integer,
    "x-max-priority": partial(_integer, most=255),
    "x-overflow": partial(
        _text, among=("drop-head", "reject-publish", "reject-publish-dlx"), otherwise="invalid_overflow"
    ),
    "x-queue-mode": partial(_text, among=("default", "lazy"), otherwise="\"unsupported queue mode '{}'\""),
    "x-queue-version": _version,
    "x-single-active-consumer": _boolean,
    "x-quorum-initial-group-size": partial(_integer, least=1),
    "x-queue-leader-locator": partial(
        _text, among=("client-local", "random", "least-leaders"), otherwise="invalid_queue_locator_arg"
    ),
}


def first_wrong(queue_type: str, arguments: TypedTable) -> tuple[str, str] | None:
    """Return the first argument whose value RabbitMQ refuses, and its reason."""
    for label, check in _CHECKS.items():
        if label in arguments and label in ARGUMENTS[queue_type]:
            kind, value = arguments[label]
            reason = check(kind, value, arguments)
            if reason is not None:
                return label, reason
    return None


def first_foreign(queue_type: str, arguments: TypedTable) -> str | None:
    """Return the first argument that only other types of queue know."""
    known = ARGUMENTS[queue_type]
    others = {label for labels in (*ARGUMENTS.values(), _STREAMS) for label in labels} - set(known)
    return next((label for label in arguments if label in others), None)
