"""One run of ``warrener publish``: one task reads and publishes, one takes the outcomes in the order of the input."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections import Counter, deque
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import define, field

from warrener._cli.publish_files import Place, write_place
from warrener._cli.publish_input import BadInput, Piece, described, pieces
from warrener._cli.publish_plan import Plan
from warrener._publishing.handles import PublishHandle
from warrener._publishing.producer import Producer
from warrener.errors import BufferFull, GaveUp, ProducerClosed, PublishError
from warrener.records import Message, Receipt

__all__ = ["Progress", "Run"]

#: Bytes of messages that may be without an outcome.
MAX_HELD = 32 * 1024 * 1024
#: Seconds between two notes of the place in the input.
NOTE_EVERY = 1.0


@define
class _Pending:
    """A message without an outcome, or with one that could not be anything else."""

    number: int
    piece: Piece
    message: Message
    handle: PublishHandle | PublishError
    called: float

    async def outcome(self) -> Receipt | PublishError:
        if isinstance(self.handle, PublishError):
            return self.handle
        try:
            return await self.handle.wait()
        except PublishError as error:
            return error


@define
class Progress:
    """For the view and the summary."""

    confirmed: int = 0
    resent: int = 0
    bytes_read: int = 0
    errors: Counter[str] = field(factory=Counter[str])
    maybe: int = 0
    left: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    @property
    def unconfirmed(self) -> int:
        return self.errors.total()


class Run:
    def __init__(self, plan: Plan, producer: Producer, place: Place) -> None:
        self._plan = plan
        self.producer = producer
        self.place = place
        self.progress = Progress()
        self._pending: deque[_Pending] = deque()
        self._held_bytes = 0
        # Certainly not sent because the run ends. With --resume they are left to the next one.
        self._left: list[tuple[_Pending, PublishError]] = []
        self._news = anyio.Event()
        self._all_read = False
        self._reading = anyio.CancelScope()
        self._kept: IO[bytes] | None = None
        # A message could neither be confirmed nor written down: the place must not move past it.
        self._stuck = False
        self._noted_at = -math.inf
        #: Why the input was not read to its end, in words.
        self.stopped: str | None = None
        self.bad_input: str | None = None

    @property
    def failed(self) -> bool:
        """Whether anything is not as it should be."""
        return bool(self.progress.unconfirmed or self.progress.left or self.stopped or self.bad_input)

    # --- reading and publishing

    async def read(self) -> None:
        """Publish the input, as far as it goes."""
        with self._reading:
            try:
                await self._read()
            except BadInput as error:
                self.bad_input = str(error)
        self._all_read = True
        self._tell()

    async def _read(self) -> None:
        plan, place = self._plan, self.place
        source = pieces(plan.paths, plan.form)
        skipped, number = place.messages, 0
        while True:
            # In a thread: standard input may keep us waiting for ever, which is no reason not to hear a signal.
            batch = await anyio.to_thread.run_sync(partial(next, source, None), abandon_on_cancel=True)
            if batch is None:
                break
            for piece in batch:
                number += 1
                if number <= skipped:
                    self.progress.bytes_read += piece.size
                if number > skipped:
                    await self._publish(number, piece, plan.target.message(piece, plan.form, place.message_id(number)))
                elif number == skipped and piece.digest.hex() != place.digest:
                    raise BadInput(
                        f"{piece.where}: the input up to here is not what it was; {plan.resume} cannot be used"
                    )
        if number < skipped:
            raise BadInput(f"the input has {number} messages, and {skipped} of them were published; it is another one")

    async def _publish(self, number: int, piece: Piece, message: Message) -> None:
        size = len(message.body)
        while self._pending and (len(self._pending) >= self._plan.window or self._held_bytes + size > MAX_HELD):
            await self._wait()
        called = anyio.current_time()
        while True:
            try:
                handle: PublishHandle | PublishError = self.producer.publish_nowait(message, timeout=self._plan.timeout)
            except BufferFull as full:
                if self._pending:
                    await self._wait()
                    continue
                handle = full
            except PublishError as error:
                handle = error
            break
        self._held_bytes += size
        self._pending.append(_Pending(number, piece, message, handle, called))
        self._tell()
        if len(self._pending) % 64 == 0:
            await anyio.lowlevel.checkpoint()

    def stop_reading(self, why: str) -> None:
        """Read no more; what was published is still settled."""
        self.stopped = self.stopped or why
        self._reading.cancel()

    def _tell(self) -> None:
        self._news.set()

    async def _wait(self) -> None:
        # Never both tasks at once: the one waits for room, which means that the other has something to settle.
        self._news = anyio.Event()
        await self._news.wait()

    # --- taking the outcomes

    async def settle(self) -> None:
        """Take the outcomes, in the order of the input, until there are no more to come."""
        while True:
            while not self._pending:
                if self._all_read:
                    self._finish()
                    return
                await self._wait()
            outcome = await self._pending[0].outcome()
            item = self._pending.popleft()
            self._held_bytes -= len(item.message.body)
            self._take(item, outcome)
            self._tell()

    def _take(self, item: _Pending, outcome: Receipt | PublishError) -> None:
        if isinstance(outcome, GaveUp):
            self.stop_reading(f"the broker: {outcome.last_fault or outcome.reason}")
        if self._plan.resume is not None and isinstance(outcome, GaveUp | ProducerClosed):
            self._left.append((item, outcome))
            return
        # Whatever comes after one that was left makes the place move past it, so it has to be kept.
        left, self._left = self._left, []
        for earlier, error in left:
            self._keep(earlier, error)
        if isinstance(outcome, Receipt):
            took = anyio.current_time() - item.called
            progress = self.progress
            progress.confirmed += 1
            progress.resent += outcome.possible_duplicate
            progress.bytes_read += item.piece.size
            progress.seconds += took
            progress.longest = max(progress.longest, took)
            self.place.confirmed += 1
            self._passed(item)
        else:
            self._keep(item, outcome)
            if self.progress.unconfirmed > self._plan.tolerated:
                self.stop_reading(f"more than {self._plan.tolerated} messages were not confirmed (--max-unconfirmed)")

    def _keep(self, item: _Pending, error: PublishError) -> None:
        """Write a message down that was not confirmed."""
        progress = self.progress
        progress.errors[type(error).__name__] += 1
        progress.maybe += error.may_have_been_delivered
        progress.bytes_read += item.piece.size
        self.place.unconfirmed += 1
        try:
            if self._kept is None:
                self._kept = self._open()
            line = described(item.message, error, item.piece.where).encode() + b"\n"
            if self._kept.write(line) != len(line):
                raise OSError(errno.ENOSPC, "")
        except OSError as trouble:
            self._stuck = True
            where = f"{item.message.message_id} ({item.piece.where})"
            print(f"not confirmed, and not written down: {where}", file=sys.stderr)
            self.stop_reading(f"{self.place.file}: {os.strerror(trouble.errno or 0)}")
        self._passed(item)

    def _open(self) -> IO[bytes]:
        place = self.place
        name = self._plan.unconfirmed or Path(f"warrener-unconfirmed-{place.run[:8]}.jsonl")
        place.file = place.file or str(name.absolute())
        descriptor = os.open(place.file, os.O_WRONLY | os.O_CREAT, 0o600)
        # A crash may have left lines behind the place. A file that somebody has taken away begins anew.
        os.truncate(descriptor, min(place.file_size, os.fstat(descriptor).st_size))
        os.lseek(descriptor, 0, os.SEEK_END)
        return os.fdopen(descriptor, "wb", buffering=0)

    def _passed(self, item: _Pending) -> None:
        if self._stuck:
            return
        self.place.messages, self.place.digest = item.number, item.piece.digest.hex()
        if anyio.current_time() >= self._noted_at + NOTE_EVERY:
            self._note()

    def _note(self) -> None:
        """Note the place; what was not confirmed is in its file before the place says so."""
        self._noted_at = anyio.current_time()
        try:
            if self._kept is not None:
                os.fsync(self._kept.fileno())
                self.place.file_size = self._kept.tell()
            if self._plan.resume is not None:
                write_place(self._plan, self.place)
        except OSError as trouble:
            self.stop_reading(f"cannot keep the place in {self._plan.resume}: {os.strerror(trouble.errno or 0)}")

    def _finish(self) -> None:
        self.progress.left = len(self._left)
        self._note()
        if self._kept is not None:
            self._kept.close()
