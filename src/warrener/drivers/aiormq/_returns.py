"""Returned messages on their way in: the body is hashed and not kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from attrs import define, field
from pamqp import commands
from pamqp.header import ContentHeader

from warrener.drivers import _faults
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.base import LinkDown
from warrener.errors import printable
from warrener.records import Returned
from warrener.wire.codec import TOKEN_HEADER

__all__ = ["Returns"]


@define(eq=False)
class _Content:
    """A returned message of which more is due."""

    method: commands.Basic.Return
    header: ContentHeader | None = None
    size: int = 0
    digest: Any = field(factory=lambda: hashlib.blake2b(digest_size=16))


class Returns:
    """Gathers basic.return, header and body frames, and reports each message once it is complete."""

    def __init__(self, report: Callable[[int, Returned], None]) -> None:
        #: `(channel, returned)`, with AMQP's channel number.
        self._report = report
        self._contents: dict[int, _Content] = {}

    def __contains__(self, channel: int) -> bool:
        """Whether a returned message is still incomplete on the channel."""
        return channel in self._contents

    def forget(self, channel: int) -> None:
        """The channel is closed: the rest does not come."""
        self._contents.pop(channel, None)

    def on_return(self, channel: int, data: bytes) -> None:
        """Take basic.return."""
        self._contents[channel] = _Content(frames.read(data, commands.Basic.Return))

    def on_content(self, kind: int, channel: int, data: bytes) -> bool:
        """Take a header or body frame; False where it belongs to no return."""
        content = self._contents.get(channel)
        if content is None:
            return False
        if kind == frames.HEADER:
            if content.header is not None:
                raise LinkDown(_faults.illegal_frame("two headers for one returned message"))
            content.header = frames.read(data, ContentHeader)
        else:
            body = data[7:-1]
            content.size += len(body)
            content.digest.update(body)
        header = content.header
        if header is None:
            raise LinkDown(_faults.illegal_frame("a body without its header"))
        if content.size > header.body_size:
            raise LinkDown(_faults.illegal_frame("a body longer than its header says"))
        if content.size == header.body_size:
            del self._contents[channel]
            self._report(channel, _returned(content, header))
        return True


def _returned(content: _Content, header: ContentHeader) -> Returned:
    properties = header.properties
    token = (properties.headers or {}).get(TOKEN_HEADER)
    return Returned(
        reply_code=int(content.method.reply_code or 0),
        reply_text=printable(content.method.reply_text or ""),
        exchange=printable(content.method.exchange or ""),
        routing_key=printable(content.method.routing_key or ""),
        message_id=properties.message_id,
        token=token if isinstance(token, str) else None,
        body_size=content.size,
        body_hash=content.digest.digest(),
    )
