"""`Progress`: whether bytes of our publishes still leave, so that a missing confirm is no sign of a dead link."""

from __future__ import annotations

from warrener.drivers.base import Link

__all__ = ["Progress"]


class Progress:
    """Compares a link with the last look at it."""

    def __init__(self) -> None:
        #: Whether, at the last look, bytes of a publish were on their way: pending here, or in the kernel.
        self.unfinished = False
        self._link: Link | None = None
        self._bytes_out = 0

    def made(self, link: Link, tags: list[tuple[int, int]]) -> bool:
        """Whether bytes of publishes have left since the last look. `tags` has each open channel with its last tag.

        Heartbeats leave too. So bytes count only if some were on their way at the last look. On a slow line the kernel
        holds megabytes after the last byte of a publish was written.
        """
        if link is not self._link:
            self._link, self._bytes_out, self.unfinished = link, 0, False
        was_unfinished, before = self.unfinished, self._bytes_out
        self._bytes_out = link.bytes_out
        self.unfinished = link.bytes_left > 0 or any(link.written(channel) < last for channel, last in tags)
        return was_unfinished and self._bytes_out > before
