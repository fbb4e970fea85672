"""What ``warrener publish`` reads, and the one format in which it writes down what was not confirmed.

Input is read in pieces, one for each message, and never held as a whole. The formats:

* ``lines``: each line is a message; empty lines are skipped.
* ``jsonl``: the same, and each line must be JSON.
* ``messages``: each line is a JSON object that describes a message: ``body`` (text) or ``body_base64``, and any field of
  `Message`. `described` writes such lines, so that messages that failed can be published again, with
  the same ids.
* ``files``: each file is a message; a folder stands for all files below it, in the order of their names.

Each piece carries a digest of all input up to its end. A later run that finds the same digest at the same place is
reading the same input.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, cast

from attrs import field, fields, frozen

from warrener.errors import InvalidMessage, PublishError, WarrenerError, printable
from warrener.records import Message

__all__ = ["FORMATS", "MAX_BODY", "STDIN", "BadInput", "Format", "Piece", "Target", "described", "pieces", "size_of"]

Format: TypeAlias = Literal["lines", "jsonl", "messages", "files"]
FORMATS: tuple[Format, ...] = ("lines", "jsonl", "messages", "files")

#: The name of standard input.
STDIN = "-"
#: The largest message, bytes: RabbitMQ's own limit since 4.0.
MAX_BODY = 16 * 1024 * 1024
#: A line of ``messages`` may be longer than its body: base64 and the other fields.
_MAX_LINE = 2 * MAX_BODY
_CHUNK = 64 * 1024

#: Keys that `described` adds for people; they are skipped when its output is read again.
_REMARKS = frozenset({"error", "may_have_been_delivered", "from"})
#: What a line of ``messages`` may set.
_FIELDS = frozenset(row.name for row in fields(Message)) - {"body", "timestamp"}


class BadInput(WarrenerError):
    """The input cannot be read, or a piece of it is no message; the text says where and why."""


@frozen
class Piece:
    """The input for one message."""

    #: File and line, for people.
    where: str
    data: bytes = field(repr=False)
    #: Of the whole input up to the end of this piece.
    digest: bytes
    #: Bytes of input that it took, its line end included.
    size: int
    #: Where the next piece begins: the file, the number of its line, and the bytes before it.
    path: str
    next_line: int
    offset: int


@frozen
class Target:
    """The destination and the content type of messages that do not name their own."""

    exchange: str = ""
    routing_key: str | None = None
    content_type: str | None = None

    def message(self, piece: Piece, form: Format, message_id: str) -> Message:
        """Return the message that the piece stands for; raises `BadInput`."""
        try:
            if form == "messages":
                return self._described(_json(piece.data), message_id)
            if form == "jsonl":
                _json(piece.data)
            return self._message(piece.data, {"message_id": message_id})
        except InvalidMessage as error:
            raise BadInput(f"{piece.where}: {error.reason}") from None
        except RecursionError:
            raise BadInput(f"{piece.where}: the JSON is nested too deeply") from None
        except ValueError as error:
            raise BadInput(f"{piece.where}: {error}") from None

    def _described(self, value: object, message_id: str) -> Message:
        if not isinstance(value, dict):
            _refuse("the line is not a JSON object")
        given = {key: item for key, item in cast("dict[str, object]", value).items() if key not in _REMARKS}
        if ("body" in given) == ("body_base64" in given):
            raise ValueError("the object must have either body or body_base64, not both")
        text, coded = given.pop("body", ""), given.pop("body_base64", None)
        if not isinstance(text, str) or not isinstance(coded, str | None):
            _refuse("body and body_base64 must be text; publish other JSON with --format jsonl")
        try:
            body = text.encode() if coded is None else base64.b64decode(coded, validate=True)
        except binascii.Error:
            raise ValueError("body_base64 is not base64") from None
        unknown = sorted(given.keys() - _FIELDS)
        if unknown:
            raise ValueError(f"{printable(unknown[0], 60)} is no field of a message")
        return self._message(body, {"message_id": message_id} | given)

    def _message(self, body: bytes, given: dict[str, Any]) -> Message:
        if len(body) > MAX_BODY:
            raise ValueError(f"the body has more than {MAX_BODY} bytes, which is the maximum")
        if self.routing_key is None and "routing_key" not in given:
            raise ValueError("the message has no routing_key, and --routing-key was not given")
        own: dict[str, Any] = {
            "exchange": self.exchange,
            "routing_key": self.routing_key,
            "content_type": self.content_type,
        }
        return Message(body, **(own | given))


def described(message: Message, error: PublishError, where: str) -> str:
    """Return the line that stands for a message that was not confirmed; ``--format messages`` reads it."""
    given = {
        row.name: value
        for row in fields(Message)
        if row.name in _FIELDS and (value := getattr(message, row.name)) not in (None, row.default, {})
    }
    try:
        body: dict[str, object] = {"body": message.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(message.body).decode()}
    remarks = {"error": str(error), "may_have_been_delivered": error.may_have_been_delivered, "from": where}
    # The line always has the fields that options can set, so that its values (an empty exchange, too) win over options.
    target = {name: getattr(message, name) for name in ("exchange", "routing_key", "content_type")}
    return json.dumps({**target, **given, **body, **remarks})


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except ValueError:
        raise ValueError("the line is not valid JSON") from None


# --- reading ------------------------------------------------------------------------------------------------------------


def size_of(paths: Sequence[str]) -> int | None:
    """Return how many bytes there are to read; None where that is not known beforehand."""
    total = 0
    for path in paths:
        if path == STDIN or not (Path(path).is_file() or Path(path).is_dir()):
            return None
        total += sum(file.stat().st_size for file in _files_of(path))
    return total


def pieces(paths: Sequence[str], form: Format) -> Iterator[list[Piece]]:
    """Yield the input as it comes, some pieces at a time; blocks while none comes. Raises `BadInput`."""
    seen = hashlib.blake2b(digest_size=16)

    def piece(where: str, data: bytes, size: int, path: str, next_line: int, offset: int) -> Piece:
        seen.update(len(data).to_bytes(8, "big") + data)
        return Piece(where, data, seen.digest(), size, path, next_line, offset)

    for path in paths:
        try:
            if form == "files":
                yield from ([piece(*one)] for one in _whole_files(path))
            else:
                yield from _lines(path, piece)
        except OSError as error:
            raise BadInput(f"{printable(path)}: {os.strerror(error.errno or 0)}") from None


def _files_of(path: str) -> list[Path]:
    given = Path(path)
    return sorted(file for file in given.rglob("*") if file.is_file()) if given.is_dir() else [given]


def _whole_files(path: str) -> Iterator[tuple[str, bytes, int, str, int, int]]:
    if path == STDIN:
        data = sys.stdin.buffer.read(MAX_BODY + 1)
        yield STDIN, data, len(data), STDIN, 1, len(data)
        return
    for file in _files_of(path):
        with file.open("rb") as opened:
            data = opened.read(MAX_BODY + 1)
        yield str(file), data, len(data), str(file), 1, len(data)


def _lines(path: str, piece: Callable[[str, bytes, int, str, int, int], Piece]) -> Iterator[list[Piece]]:
    """Yield the lines as they come; os.read returns what is there, where a file object would wait for more."""
    descriptor = sys.stdin.fileno() if path == STDIN else os.open(path, os.O_RDONLY)
    number, offset, begun, size = 1, 0, list[bytes](), 0
    try:
        while chunk := os.read(descriptor, _CHUNK):
            first, *rest = chunk.split(b"\n")
            begun.append(first)
            size += len(first)
            if size > _MAX_LINE:
                raise BadInput(f"{path}:{number}: a line has more than {_MAX_LINE} bytes")
            if not rest:
                continue
            batch: list[Piece] = []
            for line in (b"".join(begun), *rest[:-1]):
                taken = len(line) + 1
                number, offset = number + 1, offset + taken
                if line.strip():
                    batch.append(piece(f"{path}:{number - 1}", line.removesuffix(b"\r"), taken, path, number, offset))
            begun, size = [rest[-1]], len(rest[-1])
            yield batch
        last = b"".join(begun)
        if last.strip():
            where = f"{path}:{number}"
            yield [piece(where, last.removesuffix(b"\r"), len(last), path, number + 1, offset + len(last))]
    finally:
        if path != STDIN:
            os.close(descriptor)
