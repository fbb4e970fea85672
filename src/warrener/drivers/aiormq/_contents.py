"""Messages on their way in: returned ones, whose body is hashed and not kept, and those that basic.get took."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from warrener.drivers.aiormq import _frames as frames
from warrener.wire.channel import Content
from warrener.wire.codec import ContentHeader, read_content_header

__all__ = ["Contents", "Done"]

Done: TypeAlias = Callable[[Content, ContentHeader], None]


class Contents:
    """Gathers header and body frames, and reports each message once it is complete."""

    def __init__(self, max_inbound_body: int) -> None:
        self._max_inbound_body = max_inbound_body
        self._unfinished: dict[int, tuple[Content, Done]] = {}

    def __contains__(self, channel: object) -> bool:
        """Whether a message is incomplete on the channel."""
        return channel in self._unfinished

    def begin(self, channel: int, content: Content, done: Done) -> None:
        """A method with content has come; `done` is called with the whole message."""
        self._unfinished[channel] = (content, done)

    def forget(self, channel: int) -> None:
        """The channel is closed: the rest does not come."""
        self._unfinished.pop(channel, None)

    def on_content(self, kind: int, channel: int, data: bytes) -> bool:
        """Take a header or body frame; False where it belongs to no message that was begun."""
        if channel not in self._unfinished:
            return False
        content, done = self._unfinished[channel]
        if kind == frames.HEADER:
            content.begin(read_content_header(frames.payload(data)), self._max_inbound_body)
        else:
            content.extend(frames.payload(data))
        header = content.complete
        if header is not None:
            del self._unfinished[channel]
            done(content, header)
        return True
