"""The two files of ``warrener publish``: the place in the input, and the messages that were not confirmed.

Both are regular files that only their owner can read. A path that is a symbolic link is refused, so no other file is
overwritten. A file is created exclusively, and one run holds it at a time.

A crash at any point loses nothing. The place is replaced in one step, after its bytes are on the disk. It moves past a
message when the message was confirmed. It also moves past a message that was not confirmed, because the place then
holds the message's line: such lines are first written with the place and then appended to the other file. After a
crash, a later run appends the lines that are missing. The file of the unconfirmed messages is never cut.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import attrs
from attrs import asdict, define, field

from warrener._cli.publish_plan import Plan, Refused

__all__ = ["MAX_REPEATED", "Lock", "Place", "PlaceFile", "UnconfirmedFile", "identity", "reason"]

#: Messages that may be published beyond the last place that is on the disk: a crash repeats no more than these.
MAX_REPEATED = 200

_EVERY_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def reason(error: OSError) -> str:
    """Return the text of an error of the operating system."""
    return os.strerror(error.errno) if error.errno else str(error)


def _open(path: Path, flags: int) -> int:
    """Open a regular file; refuse a path that is a symbolic link."""
    try:
        descriptor = os.open(path, flags | _EVERY_OPEN, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(f"{path} is a symbolic link; name a file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is no regular file; name another")
    return descriptor


def _sync_folder(path: Path) -> None:
    """Sync the folder of a file, so that its name is on the disk, too; some file systems cannot sync a folder."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class Lock:
    """Holds a file by the file ``<name>.lock``, which has the number of the process; a second run is refused.

    The kernel releases the lock at the end of the process, also after SIGKILL.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}.lock")
        self._held = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        while self._descriptor < 0:
            descriptor = _open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run before may have removed the file between our two steps.
                if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                    self._descriptor = descriptor
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "another process"
                raise Refused(f"{self._held} is in use by the run of process {holder}") from None
            except FileNotFoundError:
                pass
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


@define
class Place:
    """How far the run has come: each message up to here was confirmed, or is written down as not confirmed."""

    run: str = field(factory=lambda: str(uuid.uuid4()))
    #: Number of messages, and the digest of the input up to the end of the last one.
    messages: int = 0
    digest: str = ""
    #: Where the next message begins: the file, the number of its line, and the bytes before it.
    path: str = ""
    line: int = 1
    offset: int = 0
    confirmed: int = 0
    unconfirmed: int = 0
    #: The file of the messages that were not confirmed.
    file: str = ""
    #: Lines that are to be appended to it, and its size before that.
    lines: str = ""
    file_size: int = 0

    def __attrs_post_init__(self) -> None:
        for attribute in attrs.fields(Place):
            value = getattr(self, attribute.name)
            if type(value) is not type(attribute.default if isinstance(attribute.default, int) else "") or value == -1:
                raise TypeError(attribute.name)

    def message_id(self, number: int) -> str:
        """Return the id of the message with that number, in this run and in every run that resumes it."""
        return str(uuid.uuid5(uuid.UUID(self.run), str(number)))


def identity(plan: Plan) -> dict[str, object]:
    """Return the arguments that must be the same for a run to be resumed."""
    paths = [path if path == "-" else str(Path(path).absolute()) for path in plan.paths]
    target = plan.target
    return {
        "input": paths, "format": plan.form, "exchange": target.exchange, "routing_key": target.routing_key,
        "content_type": target.content_type,
    }  # fmt: skip


class PlaceFile:
    """The file of ``--resume``."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        self._identity = identity(plan)

    def load(self) -> Place:
        """Return the place that the file holds, a new one where there is no such file; raises `Refused`."""
        try:
            with os.fdopen(_open(self._path, os.O_RDONLY), "rb") as file:
                kept = cast("dict[str, Any]", json.loads(file.read()))
            place, of = Place(**kept["place"]), dict(kept["of"])
            uuid.UUID(place.run)
        except FileNotFoundError:
            return Place()
        except OSError as error:
            raise Refused(f"{self._path}: {reason(error)}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Refused(f"{self._path} was not written by --resume; name another file") from None
        different = [name for name, value in self._identity.items() if of.get(name) != value]
        if different:
            raise Refused(f"{self._path} belongs to another run: {', '.join(different)} differ; name another file")
        return place

    def save(self, place: Place) -> None:
        """Write this place to a new file, sync the new file, then replace the old one by it; raises OSError."""
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)  # left by a crash; a link is removed and not followed
        descriptor = _open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            _write(descriptor, json.dumps({"of": self._identity, "place": asdict(place)}).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(self._path)
        _sync_folder(self._path)


class UnconfirmedFile:
    """The file of the messages that were not confirmed, one line for each."""

    def __init__(self, path: Path, *, known: bool) -> None:
        #: `known`: an earlier part of this run made the file; another file of that name is not touched.
        self._known = known
        self._path = path
        self._descriptor = -1

    def size(self) -> int:
        """Return its size, 0 where there is no such file."""
        try:
            return self._path.lstat().st_size
        except FileNotFoundError:
            return 0

    def append(self, lines: bytes) -> None:
        """Append whole lines; they are on the disk when this returns. Raises OSError and `Refused`."""
        descriptor = self._opened()
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody has edited the file
            lines = b"\n" + lines
        _write(descriptor, lines)
        os.fsync(descriptor)

    def complete(self, lines: bytes, size: int) -> None:
        """Append those of `lines` that an earlier run did not append; before that run the file had `size` bytes."""
        descriptor = self._opened()
        there = os.pread(descriptor, len(lines), size)
        if lines.startswith(there):  # none, a part or all of the lines: no other program wrote here
            _write(descriptor, lines[len(there) :])
            os.fsync(descriptor)
            return
        # Somebody has edited the file. Its text stays, and a line that it holds is not appended again.
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        self.append(b"".join(line for line in lines.splitlines(keepends=True) if line[:-1] not in text))

    def close(self) -> None:
        """Close it; an empty one is removed."""
        if self._descriptor >= 0:
            if not os.fstat(self._descriptor).st_size:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        if self._descriptor < 0:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            self._descriptor = _open(self._path, flags if self._known else flags | os.O_EXCL)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                self._descriptor = -1
                raise Refused(f"{self._path} is in use by another run") from None
            self._known = True
            _sync_folder(self._path)
        return self._descriptor

    def create(self) -> None:
        """Create it now, exclusively, so that a second run of this name is refused before it publishes anything."""
        self._opened()
