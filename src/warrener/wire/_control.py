"""The control channel: declarations, deletions and basic.get, apart from the channels that carry messages.

The broker closes the channel of a request that it refuses, and that must not be a channel with messages on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field, frozen
from pamqp import commands

from warrener.errors import printable
from warrener.topology import Binding, Declaration, Exchange, Queue
from warrener.wire import events
from warrener.wire.channel import ChannelState, Content
from warrener.wire.codec import ContentHeader, Malformed, Method

__all__ = ["ControlChannel", "Request", "declare", "delete_queue", "take_one"]

#: The answers that a request may get.
_REPLIES: Final[Mapping[type[Method], tuple[type[Method], ...]]] = {
    commands.Exchange.Declare: (commands.Exchange.DeclareOk,),
    commands.Exchange.Bind: (commands.Exchange.BindOk,),
    commands.Queue.Declare: (commands.Queue.DeclareOk,),
    commands.Queue.Bind: (commands.Queue.BindOk,),
    commands.Queue.Delete: (commands.Queue.DeleteOk,),
    commands.Basic.Get: (commands.Basic.GetOk, commands.Basic.GetEmpty),
}


@frozen
class Request:
    """A method that the broker answers, with its arguments."""

    kind: type[Method]
    arguments: Mapping[str, Any]


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
            return bind(declaration)


def bind(binding: Binding) -> Request:
    """Return the request that binds a queue or an exchange to an exchange."""
    key: dict[str, Any] = {"routing_key": binding.routing_key, "arguments": binding.arguments}
    if isinstance(binding.destination, Exchange):
        names = {"destination": binding.destination.name, "source": binding.source}
        return Request(commands.Exchange.Bind, names | key)
    # An empty name is the queue that was declared last on this channel: a server-named one.
    return Request(commands.Queue.Bind, {"queue": binding.destination.name, "exchange": binding.source} | key)


def delete_queue(queue: str) -> Request:
    """Return the request that deletes a queue."""
    return Request(commands.Queue.Delete, {"queue": queue})


def take_one(queue: str) -> Request:
    """Return the request that takes one message without an acknowledgement."""
    return Request(commands.Basic.Get, {"queue": queue, "no_ack": True})


@define(eq=False)
class ControlChannel:
    """Sends requests one behind the other, without waiting; the answers come in the same order."""

    wire_number: int
    #: Sends a method on this channel.
    _send: Callable[[type[Method], Mapping[str, Any]], None]
    state: ChannelState = ChannelState.OPENING
    #: The message that is being received.
    content: Content | None = None
    #: Requests that wait for the channel to open; the methods that wait for their answer.
    _waiting: deque[Request] = field(factory=deque[Request])
    _asked: deque[type[Method]] = field(factory=deque[type[Method]])

    def ask(self, request: Request) -> None:
        """Send the request, as soon as the channel is open."""
        if self.state is ChannelState.OPENING:
            self._waiting.append(request)
        else:
            self._asked.append(request.kind)
            self._send(request.kind, request.arguments)

    def on_method(self, method: Method) -> events.Event | None:
        """Take a method other than channel.close and channel.flow; return what it means."""
        if self.state is ChannelState.OPENING and isinstance(method, commands.Channel.OpenOk):
            self.state = ChannelState.READY
            while self._waiting:
                self.ask(self._waiting.popleft())
            return None
        if not self._asked or not isinstance(method, _REPLIES[self._asked[0]]):
            raise Malformed(f"{method.name} came on the control channel, which did not ask for it")
        if isinstance(method, commands.Basic.GetOk):
            self.content = Content(method, kept=bytearray())
            return None
        self._asked.popleft()
        return events.GetResult(None, None) if isinstance(method, commands.Basic.GetEmpty) else events.Replied()

    def on_content(self, content: Content, header: ContentHeader) -> events.Event:
        """Take a whole message; return it as an event."""
        self._asked.popleft()
        return events.GetResult(None if content.kept is None else bytes(content.kept), header.body_size)

    def on_close(self, close: commands.Channel.Close) -> events.Event | None:
        """Take channel.close: the first request without an answer is refused. None: our own close has crossed it."""
        if self.state is ChannelState.CLOSING:
            return None
        return events.Refused(close.reply_code or 0, printable(close.reply_text))

    def close(self) -> None:
        """Begin our close; answers that are still due are ignored."""
        self.state = ChannelState.CLOSING
        self.content = None
        self._send(commands.Channel.Close, {"reply_code": 200, "reply_text": "done"})
