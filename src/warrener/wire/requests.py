"""Requests: methods that the broker answers one by one, as values. `Session.request` sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen
from pamqp import commands

from warrener.topology import Binding, Declaration, Exchange, Queue
from warrener.wire.codec import Method, Unsendable, method_payload
from warrener.wire.framing import METHOD, frame

__all__ = [
    "REPLIES",
    "Request",
    "declare",
    "delete_queue",
    "is_declaration",
    "is_secret_update",
    "purge",
    "take_one",
    "unbind",
    "update_secret",
]

#: The answers that a request may get.
REPLIES: Final[Mapping[type[Method], tuple[type[Method], ...]]] = {
    commands.Exchange.Declare: (commands.Exchange.DeclareOk,),
    commands.Exchange.Bind: (commands.Exchange.BindOk,),
    commands.Exchange.Unbind: (commands.Exchange.UnbindOk,),
    commands.Queue.Declare: (commands.Queue.DeclareOk,),
    commands.Queue.Bind: (commands.Queue.BindOk,),
    commands.Queue.Unbind: (commands.Queue.UnbindOk,),
    commands.Queue.Purge: (commands.Queue.PurgeOk,),
    commands.Queue.Delete: (commands.Queue.DeleteOk,),
    commands.Basic.Get: (commands.Basic.GetOk, commands.Basic.GetEmpty),
}


def is_declaration(method: int) -> bool:
    """Whether class and method id, in one number, are those of a request about the topology."""
    return any(kind.index == method for kind in REPLIES if kind is not commands.Basic.Get)


def is_secret_update(method: int) -> bool:
    """Whether class and method id, in one number, are those of connection.update-secret."""
    return method == commands.Connection.UpdateSecret.index


@frozen
class Request:
    """A method that the broker answers, with its arguments."""

    kind: type[Method]
    arguments: Mapping[str, Any]

    def encode(self, channel: int, frame_max: int) -> bytes:
        """Return the frame; raises `Unsendable`."""
        data = frame(METHOD, channel, method_payload(self.kind, **self.arguments))
        if len(data) > frame_max:
            raise Unsendable(f"{self.kind.name} takes {len(data):,} bytes; this broker takes {frame_max:,} (frame_max)")
        return data


def declare(declaration: Declaration) -> Request:
    """Return the request that makes one exchange, queue or binding."""
    match declaration:
        case Exchange():
            return Request(
                commands.Exchange.Declare,
                {
                    "exchange": declaration.name,
                    "exchange_type": declaration.type,
                    "passive": declaration.passive,
                    "durable": declaration.durable,
                    "auto_delete": declaration.auto_delete,
                    "internal": declaration.internal,
                    "arguments": declaration.arguments,
                },
            )
        case Queue():
            return Request(
                commands.Queue.Declare,
                {
                    "queue": declaration.name,
                    "passive": declaration.passive,
                    "durable": declaration.durable,
                    "exclusive": declaration.exclusive,
                    "auto_delete": declaration.auto_delete,
                    "arguments": declaration.arguments,
                },
            )
        case Binding():
            return _binding(declaration, commands.Queue.Bind, commands.Exchange.Bind)


def unbind(binding: Binding) -> Request:
    """Return the request that ends a binding."""
    return _binding(binding, commands.Queue.Unbind, commands.Exchange.Unbind)


def _binding(binding: Binding, of_queue: type[Method], of_exchange: type[Method]) -> Request:
    key: dict[str, Any] = {"routing_key": binding.routing_key, "arguments": binding.arguments}
    if isinstance(binding.destination, Exchange):
        return Request(of_exchange, {"destination": binding.destination.name, "source": binding.source} | key)
    # An empty name is the queue that was declared last on this channel: a server-named one.
    return Request(of_queue, {"queue": binding.destination.name, "exchange": binding.source} | key)


def purge(queue: str) -> Request:
    """Return the request that removes the messages of a queue that are ready."""
    return Request(commands.Queue.Purge, {"queue": queue})


def delete_queue(queue: str) -> Request:
    """Return the request that deletes a queue."""
    return Request(commands.Queue.Delete, {"queue": queue})


def take_one(queue: str) -> Request:
    """Return the request that takes one message without an acknowledgement."""
    return Request(commands.Basic.Get, {"queue": queue, "no_ack": True})


def update_secret(secret: str) -> Request:
    """Return the request, on channel 0, that replaces the secret of the login."""
    return Request(commands.Connection.UpdateSecret, {"new_secret": secret, "reason": "the secret expires"})
