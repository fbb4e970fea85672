"""The control channel: declarations, deletions and basic.get, apart from the channels that carry messages.

The broker closes the channel of a request that it refuses, and that must not be a channel with messages on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field
from pamqp import commands

from warrener.wire import events
from warrener.wire.channel import ChannelState, Content
from warrener.wire.codec import ContentHeader, Malformed, Method
from warrener.wire.requests import REPLIES, Request

__all__ = ["ControlChannel"]


@define(eq=False)
class ControlChannel:
    """Sends requests one behind the other, without waiting; the answers come in the same order."""

    wire_number: int
    _send: Callable[[Request], None]
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
            self._send(request)

    def on_method(self, method: Method) -> events.Event | None:
        """Take a method other than channel.close and channel.flow; return what it means."""
        if self.state is ChannelState.OPENING and isinstance(method, commands.Channel.OpenOk):
            self.state = ChannelState.READY
            while self._waiting:
                self.ask(self._waiting.popleft())
            return None
        if not self._asked or not isinstance(method, REPLIES[self._asked[0]]):
            raise Malformed(f"{method.name} came on the control channel, which did not ask for it")
        if isinstance(method, commands.Basic.GetOk):
            self.content = Content(method, kept=bytearray())
            return None
        self._asked.popleft()
        match method:
            case commands.Basic.GetEmpty():
                return events.GetResult(None, None)
            case commands.Queue.DeclareOk(queue=queue):
                return events.Replied(queue=queue or "")
            case commands.Queue.DeleteOk(message_count=count) | commands.Queue.PurgeOk(message_count=count):
                return events.Replied(messages=count or 0)
            case _:
                return events.Replied()

    def on_content(self, content: Content, header: ContentHeader) -> events.Event:
        """Take a whole message; return it as an event."""
        self._asked.popleft()
        return events.GetResult(None if content.kept is None else bytes(content.kept), header.body_size)

    def close(self) -> None:
        """Begin our close; answers that are still due are ignored."""
        self.state = ChannelState.CLOSING
        self.content = None
        self._send(Request(commands.Channel.Close, {"reply_code": 200, "reply_text": "done"}))
