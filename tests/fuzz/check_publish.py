"""Any input of `warrener publish`: each piece is a message or one `BadInput`, and what was described can be read again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from warrener import NotSent
from warrener._cli.publish_input import FORMATS, BadInput, Piece, Target, described, pieces
from warrener.errors import printable

_FILE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "input"  # noqa: S108
_TARGET = Target(routing_key="q")


def check(data: bytes) -> None:
    """The first byte chooses the format, the others are the file."""
    form = FORMATS[data[0] % len(FORMATS)] if data else "lines"
    _FILE.write_bytes(data[1:])
    taken = 0
    try:
        for some in pieces([str(_FILE)], form):
            for piece in some:
                taken += piece.size
                message = _TARGET.message(piece, form, "id")
                line = (
                    described(message, NotSent(message.message_id or "id", "why"), piece.where).encode().rstrip(b"\n")
                )
                assert b"\n" not in line
                again = Target().message(Piece("again", line, b"", len(line), "again", 2, len(line)), "messages", "id")
                assert (again.body, again.headers) == (message.body, message.headers)
    except BadInput as error:
        assert str(error) == printable(str(error), 10_000), "the error is no line of printable characters"
    assert taken <= len(data)
