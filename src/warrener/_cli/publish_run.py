"""One run of ``warrener publish``: one task reads and publishes, one takes the outcomes in the order of the input."""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import define, evolve, field

from warrener._cli.publish_files import MAX_REPEATED, Place, PlaceFile, UnconfirmedFile, reason
from warrener._cli.publish_input import BadInput, Piece, described, pieces
from warrener._cli.publish_plan import Plan, Refused
from warrener._publishing.handles import PublishHandle
from warrener._publishing.producer import Producer
from warrener.errors import BufferFull, GaveUp, ProducerClosed, PublishError
from warrener.records import Message, Receipt

__all__ = ["Progress", "Run"]

#: Bytes of messages that may be without an outcome.
MAX_HELD = 32 * 1024 * 1024
#: The place is written when this number of messages has passed since, and after this number of seconds.
NOTE_AFTER = 50
NOTE_EVERY = 1.0


@define
class _Pending:
    """A message that was published, or whose publish was refused at the call."""

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
    """The numbers of the view and of the summary."""

    confirmed: int = 0
    resent: int = 0
    bytes_read: int = 0
    errors: Counter[str] = field(factory=Counter[str])
    #: Of each kind of error, the reason that the first one gave.
    reasons: dict[str, str] = field(factory=dict[str, str])
    maybe: int = 0
    left: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    @property
    def unconfirmed(self) -> int:
        return self.errors.total()


class Run:
    """Publishes the input and keeps the account: `read` and `settle` are its two tasks."""

    def __init__(self, plan: Plan, producer: Producer, place: Place, place_file: PlaceFile | None) -> None:
        self._plan = plan
        self.producer = producer
        self.place = place
        self.progress = Progress()
        self._pending: deque[_Pending] = deque()
        self._held_bytes = 0
        # Not sent because the run ends. With --resume they are left to the next run.
        self._left: list[tuple[_Pending, PublishError]] = []
        self._news = anyio.Event()
        self._all_read = False
        self._reading = anyio.CancelScope()
        self._place_file = place_file
        self._unconfirmed = UnconfirmedFile(Path(place.file), known=bool(place.messages or place.lines))
        # Lines of messages that were not confirmed, which no file has yet, and where those messages come from.
        self._lines: list[str] = []
        self._lines_of: list[str] = []
        # A message could neither be confirmed nor written down: the place must not move past it.
        self._stuck = False
        self._noted = place.messages
        self._noted_at = -math.inf
        self._lines_noted = False
        #: Why the input was not read to its end, in words.
        self.stopped: str | None = None
        self.bad_input: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a message was not confirmed, or the input was not read to its end."""
        return bool(self.progress.unconfirmed or self.progress.left or self.stopped or self.bad_input)

    def open_files(self, *, named: bool) -> None:
        """Append the lines that a crash left out. `named`: create the file of ``--unconfirmed``. Raises as `append`."""
        if self.place.lines:
            self._unconfirmed.complete(self.place.lines.encode(), self.place.file_size)
            self.place.lines = ""
        elif named:
            self._unconfirmed.create()
        if self._place_file is not None:
            # The file holds the run's id, so if this run is killed, the next one makes the same message ids.
            self._place_file.save(self.place)

    def close_files(self) -> None:
        """Close the file of the messages that were not confirmed."""
        self._unconfirmed.close()

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
            # In a thread: standard input may keep us waiting for ever, and a signal must be heard meanwhile.
            batch = await anyio.to_thread.run_sync(partial(next, source, None), abandon_on_cancel=True)
            if batch is None:
                break
            for piece in batch:
                number += 1
                if number <= skipped:
                    self.progress.bytes_read += piece.size
                if number > skipped:
                    await self._publish(number, piece, plan.target.message(piece, plan.form, place.message_id(number)))
                elif number == skipped:
                    self._check_resumed(piece)
        if number < skipped:
            raise BadInput(
                f"the input has only {number} messages, but an earlier run published {skipped}: it is not the same input"
            )

    def _check_resumed(self, piece: Piece) -> None:
        if piece.digest.hex() != self.place.digest:
            raise BadInput(
                f"{piece.where}: the input up to here differs from that of the earlier run; {self._plan.resume} cannot be used"
            )
        if not self._plan.quiet:
            place = self.place
            where = f"{place.path} line {place.line}, byte {place.offset}"
            print(f"resumed: continues after message {place.messages}, at {where}", file=sys.stderr, flush=True)

    async def _publish(self, number: int, piece: Piece, message: Message) -> None:
        size = len(message.body)
        while self._pending and (
            len(self._pending) >= self._plan.window
            or self._held_bytes + size > MAX_HELD
            or (self._place_file is not None and number > self._noted + MAX_REPEATED)
        ):
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
        """Read no more; the messages that were published still get their outcome."""
        self.stopped = self.stopped or why
        self._reading.cancel()

    def _tell(self) -> None:
        self._news.set()

    async def _wait(self) -> None:
        # The two tasks never wait here together: `read` waits only while messages are pending, `settle` while none is.
        self._news = anyio.Event()
        await self._news.wait()

    # --- taking the outcomes

    async def settle(self) -> None:
        """Take the outcomes, in the order of the input, until there are no more to come."""
        while True:
            while not self._pending:
                if self._all_read:
                    self.progress.left = len(self._left)
                    await self._note()
                    await self._end_place()
                    return
                await self._wait()
            outcome = await self._pending[0].outcome()
            item = self._pending.popleft()
            self._held_bytes -= len(item.message.body)
            self._take(item, outcome)
            unnoted = self.place.messages - self._noted
            if unnoted >= NOTE_AFTER or anyio.current_time() >= self._noted_at + NOTE_EVERY:
                await self._note()
            self._tell()

    def _take(self, item: _Pending, outcome: Receipt | PublishError) -> None:
        if isinstance(outcome, GaveUp):
            self.stop_reading(f"the broker: {outcome.last_fault or outcome.reason}")
        if self._place_file is not None and isinstance(outcome, GaveUp | ProducerClosed):
            self._left.append((item, outcome))
            return
        # The place for `--resume` is one position in the input, and it moves behind this message now. So the earlier
        # messages that were left for the next run are written to the file of unconfirmed messages.
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
        """Make the line of a message that was not confirmed; `_note` writes the line to the file."""
        progress = self.progress
        progress.errors[type(error).__name__] += 1
        progress.reasons.setdefault(type(error).__name__, error.reason)
        progress.maybe += error.may_have_been_delivered
        progress.bytes_read += item.piece.size
        self.place.unconfirmed += 1
        self._lines.append(described(item.message, error, item.piece.where) + "\n")
        self._lines_of.append(f"{item.message.message_id} ({item.piece.where})")
        self._passed(item)

    def _passed(self, item: _Pending) -> None:
        piece, place = item.piece, self.place
        place.messages, place.digest = item.number, piece.digest.hex()
        place.path, place.line, place.offset = piece.path, piece.next_line, piece.offset

    async def _note(self) -> None:
        """Write the place, and the lines of the messages that were not confirmed."""
        self._noted_at = anyio.current_time()
        place = evolve(self.place, lines="".join(self._lines), file_size=self._unconfirmed.size())
        lines_of, self._lines, self._lines_of = self._lines_of, [], []
        if not self._stuck and (place.messages > self._noted or place.lines):
            try:
                await anyio.to_thread.run_sync(self._write, place)
                self._noted = place.messages
                self._lines_noted = bool(place.lines)
            except (OSError, Refused) as trouble:
                self._stuck = True
                text = reason(trouble) if isinstance(trouble, OSError) else str(trouble)
                self.stop_reading(f"cannot write {self._plan.resume or self.place.file}: {text}")
        if self._stuck:
            for where in lines_of:
                print(f"not confirmed, and could not be saved: {where}", file=sys.stderr)

    async def _end_place(self) -> None:
        """Save the place without the lines that were appended, so that no later run appends them to a new file."""
        if self._lines_noted and not self._stuck and self._place_file is not None:
            try:
                await anyio.to_thread.run_sync(self._place_file.save, self.place)
            except OSError as trouble:
                self.stop_reading(f"cannot write {self._plan.resume}: {reason(trouble)}")

    def _write(self, place: Place) -> None:
        if self._place_file is not None:
            self._place_file.save(place)
        if place.lines:
            self._unconfirmed.append(place.lines.encode())
