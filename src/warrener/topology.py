"""Exchanges, queues and bindings that a producer declares on each new link, and the order in which it does.

Every value is checked when it is made: `SettingsError` names the field. Arguments are copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeAlias

from attrs import Attribute, field, frozen

from warrener._properties import FieldValue, Unsendable, checked_table, why_not_short
from warrener.errors import SettingsError, printable

__all__ = ["Binding", "Declaration", "Exchange", "Queue", "in_order", "standard_exchanges"]

# --- checks -------------------------------------------------------------------------------------------------------------


def _refuse_long(kind: str, what: str, value: object) -> None:
    if not isinstance(value, str):
        raise SettingsError(f"the {what} of {kind} must be str, not {type(value).__name__}")
    if why_not := why_not_short(value):
        raise SettingsError(f"the {what} of {kind} {why_not}")


def _kind(record: object) -> str:
    return {"Exchange": "an exchange", "Queue": "a queue", "Binding": "a binding"}[type(record).__name__]


def _short(record: object, attribute: Attribute[Any], value: object) -> None:
    _refuse_long(_kind(record), attribute.name.replace("_", " "), value)


def _named(record: object, attribute: Attribute[Any], value: object) -> None:
    _short(record, attribute, value)
    if not value:
        raise SettingsError(f"the {attribute.name} of {_kind(record)} must not be empty")


def _flag_field(default: bool) -> Any:
    def check(record: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, bool):
            shown = printable(value, 60)
            raise SettingsError(f"{attribute.name} of {_kind(record)} must be True or False, not {shown}")

    return field(default=default, validator=check, kw_only=True)


def _as_arguments(arguments: object) -> dict[str, FieldValue]:
    try:
        return checked_table(arguments, "arguments")
    except Unsendable as error:
        raise SettingsError(str(error)) from None


def _arguments_field() -> Any:
    return field(factory=dict[str, FieldValue], converter=_as_arguments, kw_only=True)


# --- the values -----------------------------------------------------------------------------------------------------------


@frozen
class Exchange:
    """An exchange to declare (exchange.declare). Declaring is idempotent; another definition of it is a mismatch."""

    name: str = field(validator=_named)
    type: str = field(default="direct", validator=_named)
    durable: bool = _flag_field(True)
    auto_delete: bool = _flag_field(False)
    internal: bool = _flag_field(False)
    #: Only check that it exists (any type and arguments).
    passive: bool = _flag_field(False)
    arguments: Mapping[str, FieldValue] = _arguments_field()

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@frozen
class Queue:
    """A queue to declare (queue.declare). A queue whose name the broker chooses is made by `Queue.server_named`."""

    name: str = field(validator=_short)
    durable: bool = _flag_field(True)
    exclusive: bool = _flag_field(False)
    auto_delete: bool = _flag_field(False)
    passive: bool = _flag_field(False)
    arguments: Mapping[str, FieldValue] = _arguments_field()
    _named_by_server: bool = field(default=False, kw_only=True, repr=False, alias="_named_by_server")

    def __attrs_post_init__(self) -> None:
        if not self.name and not self._named_by_server:
            raise SettingsError(
                "the name of a queue must not be empty; a queue that the broker names is Queue.server_named()"
            )

    @classmethod
    def server_named(cls, *, arguments: Mapping[str, FieldValue] | None = None) -> Self:
        """Return a queue that the broker names anew on each link; it lives as long as the link (exclusive, not durable).

        A declaration or a topology may have one. Bind it by ``Binding(source=…, destination=queue)``.
        """
        return cls(
            "", durable=False, exclusive=True, auto_delete=True, arguments=arguments or {}, _named_by_server=True
        )

    @property
    def is_server_named(self) -> bool:
        """Whether the broker chooses the name."""
        return self._named_by_server

    def __str__(self) -> str:
        return "a server-named queue" if self._named_by_server else f"queue {self.name!r}"


def _as_source(source: object) -> Any:
    return source.name if isinstance(source, Exchange) else source


def _as_destination(destination: object) -> Any:
    if isinstance(destination, str) and destination:
        return Queue(destination)
    if isinstance(destination, Queue):
        # The binding keeps only the queue's name: bindings that differ only in the queue's definition are equal.
        return destination if destination.is_server_named else Queue(destination.name)
    return Exchange(destination.name) if isinstance(destination, Exchange) else destination


def _destination(_binding: object, _attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, Queue | Exchange):
        kind = "an empty name" if value == "" else type(value).__name__
        raise SettingsError(
            f"the destination of a binding must be the name of a queue, a Queue or an Exchange, not {kind}"
        )


@frozen(kw_only=True)
class Binding:
    """A binding of a destination to the exchange `source`: queue.bind, or exchange.bind.

    `destination` is the name of a queue, a `Queue`, or an `Exchange`.
    """

    #: The name of the exchange that the messages come from; an `Exchange` is taken by its name.
    source: str = field(converter=_as_source, validator=_named)
    destination: Queue | Exchange = field(converter=_as_destination, validator=_destination)
    routing_key: str = field(default="", validator=_short)
    arguments: Mapping[str, FieldValue] = _arguments_field()

    def __str__(self) -> str:
        return f"binding of {self.destination} to exchange {self.source!r} by {self.routing_key!r}"


Declaration: TypeAlias = Exchange | Queue | Binding


def in_order(topology: Iterable[Declaration]) -> tuple[Declaration, ...]:
    """Return the declarations as they must be made: exchanges, then queues, then bindings; else as given.

    A server-named queue comes last of the queues: AMQP takes the empty name for the queue that was declared last.
    """

    def rank(declaration: Declaration) -> int:
        match declaration:
            case Exchange():
                return 0
            case Queue():
                return 2 if declaration.is_server_named else 1
            case Binding():
                return 3

    return tuple(sorted(topology, key=rank))


def standard_exchanges(topology: Iterable[Declaration]) -> frozenset[str]:
    """Return the exchanges that are declared with a type of AMQP itself. A plugin's type may deliver a returned message."""
    return frozenset(
        each.name
        for each in topology
        if isinstance(each, Exchange) and not each.passive and each.type in ("direct", "fanout", "topic", "headers")
    )
