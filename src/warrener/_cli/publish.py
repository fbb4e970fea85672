"""``warrener publish``: publish lines, JSON or files, each confirmed, and keep what was not.

One task reads and publishes, one takes the outcomes in the order of the input. Between them are at most `window` messages
and `MAX_HELD` bytes, so memory is bounded whatever the input. The breaker is off: whoever publishes a file would rather
wait through an outage than fail fast; giving up after the attempts of the backoff ends the run.

With ``--resume FILE`` the run keeps its place in FILE: how many messages have their outcome, and a digest of the input so
far. The same command again goes on there, also after a crash of this program. Message ids are made from the run's own id
and the number of the message, so what a crash has published twice is twice in the queue under *one* id.

Exit status: 0 everything was confirmed; 1 something was not; 2 wrong arguments, settings or input; 128 + n signal n.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import asdict, define, field, frozen

from warrener._cli.publish_input import BadInput, Format, Piece, Target, described, pieces, size_of
from warrener._publishing.producer import Producer, PublishHandle, running
from warrener._settings.settings import Settings
from warrener._settings.sources import defaults
from warrener.errors import BufferFull, ConnectError, GaveUp, ProducerClosed, PublishError, SettingsError
from warrener.records import ConnectionState, Message, Receipt, Status

__all__ = ["Plan", "publish"]

#: Bytes of messages that may be without an outcome.
MAX_HELD = 32 * 1024 * 1024
#: Seconds between two notes of the place in the input, and between two looks at the progress.
NOTE_EVERY = 1.0
LOOK_EVERY = 0.25
#: Seconds between two lines where there is no progress bar.
LINE_EVERY = 5.0


@frozen(kw_only=True)
class Plan:
    """What the command line asks for."""

    paths: Sequence[str]
    form: Format
    target: Target
    url: str | None = None
    driver: Literal["native", "aiormq"] = "native"
    #: Seconds for each message, its wait through an outage included.
    timeout: float = math.inf
    #: How many messages may be without an outcome.
    window: int = 1000
    #: So many messages may fail; one more ends the run.
    tolerated: int = 100
    #: Where to write down what was not confirmed; None: a name that says which run it was.
    unconfirmed: Path | None = None
    resume: Path | None = None
    #: Lines in place of a bar.
    plain: bool = False
    quiet: bool = False


class _Refused(Exception):
    """The run cannot begin, or go on; its text is for the user."""


# --- the place in the input ----------------------------------------------------------------------------------------------


@define
class _Place:
    """How far the run has come: everything up to here has its outcome, and what was not confirmed is written down."""

    run: str = field(factory=lambda: str(uuid.uuid4()))
    #: How many messages of the input, and the digest of the input up to the last of them.
    messages: int = 0
    digest: str = ""
    confirmed: int = 0
    unconfirmed: int = 0
    #: Where they are written down, and how long that file is.
    file: str = ""
    file_octets: int = 0

    def message_id(self, number: int) -> str:
        """Return the id of the message with that number, in this run and whatever resumes it."""
        return str(uuid.uuid5(uuid.UUID(self.run), str(number)))


def _identity(plan: Plan) -> dict[str, object]:
    """What must be the same for a run to be resumed."""
    paths = [path if path == "-" else str(Path(path).absolute()) for path in plan.paths]
    target = plan.target
    return {
        "input": paths, "format": plan.form, "exchange": target.exchange, "routing_key": target.routing_key,
        "content_type": target.content_type,
    }  # fmt: skip


def _resumed(plan: Plan) -> _Place:
    """Return the place that the file of ``--resume`` holds, a new one where there is no such file."""
    if plan.resume is None or not plan.resume.exists():
        return _Place()
    try:
        kept = cast("dict[str, Any]", json.loads(plan.resume.read_text()))
        place, identity = _Place(**kept["place"]), dict(kept["of"])
        uuid.UUID(place.run)
    except OSError as error:
        raise _Refused(f"{plan.resume}: {os.strerror(error.errno or 0)}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _Refused(f"{plan.resume} is no file of --resume; name another") from None
    different = [name for name, value in _identity(plan).items() if identity.get(name) != value]
    if different:
        raise _Refused(f"{plan.resume} belongs to another run: {', '.join(different)} differ; name another file")
    return place


def _write(plan: Plan, place: _Place) -> None:
    """Put the place in its file, whole or not at all."""
    assert plan.resume is not None
    new = plan.resume.with_name(f"{plan.resume.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        json.dump({"of": _identity(plan), "place": asdict(place)}, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(plan.resume)


# --- one run ----------------------------------------------------------------------------------------------------------------


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
class _Figures:
    """For the view and the summary."""

    confirmed: int = 0
    resent: int = 0
    octets: int = 0
    errors: Counter[str] = field(factory=Counter[str])
    maybe: int = 0
    left: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    @property
    def unconfirmed(self) -> int:
        return self.errors.total()


class _Run:
    def __init__(self, plan: Plan, producer: Producer, place: _Place) -> None:
        self._plan = plan
        self.producer = producer
        self.place = place
        self.figures = _Figures()
        self._pending: deque[_Pending] = deque()
        self._held_octets = 0
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
        return bool(self.figures.unconfirmed or self.figures.left or self.stopped or self.bad_input)

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
                    self.figures.octets += piece.octets
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
        while self._pending and (len(self._pending) >= self._plan.window or self._held_octets + size > MAX_HELD):
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
        self._held_octets += size
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
            self._held_octets -= len(item.message.body)
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
            figures = self.figures
            figures.confirmed += 1
            figures.resent += outcome.possible_duplicate
            figures.octets += item.piece.octets
            figures.seconds += took
            figures.longest = max(figures.longest, took)
            self.place.confirmed += 1
            self._passed(item)
        else:
            self._keep(item, outcome)
            if self.figures.unconfirmed > self._plan.tolerated:
                self.stop_reading(f"more than {self._plan.tolerated} messages were not confirmed (--max-unconfirmed)")

    def _keep(self, item: _Pending, error: PublishError) -> None:
        """Write a message down that was not confirmed."""
        figures = self.figures
        figures.errors[type(error).__name__] += 1
        figures.maybe += error.may_have_been_delivered
        figures.octets += item.piece.octets
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
        os.truncate(descriptor, min(place.file_octets, os.fstat(descriptor).st_size))
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
                self.place.file_octets = self._kept.tell()
            if self._plan.resume is not None:
                _write(self._plan, self.place)
        except OSError as trouble:
            self.stop_reading(f"cannot keep the place in {self._plan.resume}: {os.strerror(trouble.errno or 0)}")

    def _finish(self) -> None:
        self.figures.left = len(self._left)
        self._note()
        if self._kept is not None:
            self._kept.close()


# --- what is seen of it --------------------------------------------------------------------------------------------------------


class _View(Protocol):
    def show(self, text: str, figures: _Figures) -> None: ...


class _Lines:
    """Plain lines, now and then."""

    def __init__(self) -> None:
        self._said_at = anyio.current_time()

    def show(self, text: str, figures: _Figures) -> None:
        if anyio.current_time() >= self._said_at + LINE_EVERY:
            self._said_at = anyio.current_time()
            print(f"{figures.confirmed:>9,} confirmed  {text}", file=sys.stderr, flush=True)


class _Nothing:
    def show(self, text: str, figures: _Figures) -> None:
        pass


def _open_view(plan: Plan) -> AbstractContextManager[_View]:
    if plan.quiet:
        return nullcontext(_Nothing())
    if plan.plain or not sys.stderr.isatty():
        return nullcontext(_Lines())
    try:
        return _bar(size_of(plan.paths))
    except ImportError:
        return nullcontext(_Lines())


def _bar(total: int | None) -> AbstractContextManager[_View]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.fields[confirmed]} confirmed", markup=False),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    @contextmanager
    def opened() -> Iterator[_View]:
        with progress:
            task = progress.add_task("", total=total, confirmed="0")

            class Bar:
                def show(self, text: str, figures: _Figures) -> None:
                    progress.update(
                        task, completed=figures.octets, description=text, confirmed=f"{figures.confirmed:,}"
                    )

            yield Bar()

    return opened()


class _Pace:
    """Rate and latency over the last two seconds or so."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int, float]] = deque(maxlen=round(2 / LOOK_EVERY))

    def text(self, figures: _Figures) -> str:
        now = anyio.current_time()
        self._past.append((now, figures.confirmed, figures.seconds))
        since, confirmed, seconds = self._past[0]
        count = figures.confirmed - confirmed
        if not count or now <= since:
            return "0/s"
        return f"{count / (now - since):,.0f}/s, {1000 * (figures.seconds - seconds) / count:,.1f} ms to confirm"


def _condition(status: Status) -> str:
    """Say what keeps messages from being confirmed, if anything does."""
    if status.connection_state is ConnectionState.CONNECTED:
        return "; the broker has an alarm and takes nothing for now" if status.blocked else ""
    if status.connection_state is ConnectionState.DISCONNECTED:
        next_dial = "" if status.retry_in is None else f", next attempt in {math.ceil(status.retry_in)} s"
        return f"; no connection{next_dial}"
    return f"; {status.connection_state.value.lower()}"


def _shown(file: str) -> str:
    """Return a path as it can be typed here."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _summary(run: _Run, took: float) -> Iterator[str]:
    figures, place = run.figures, run.place
    line = f"{figures.confirmed:,} confirmed in {took:.1f} s"
    if figures.confirmed:
        mean = 1000 * figures.seconds / figures.confirmed
        rate = figures.confirmed / took if took else 0.0
        line += f" ({rate:,.0f}/s; {mean:,.1f} ms to confirm on average, {1000 * figures.longest:,.1f} ms at most)"
    yield line
    if figures.resent:
        yield f"{figures.resent:,} of them may be twice in a queue, each under one message id"
    if figures.unconfirmed:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(figures.errors.items()))
        sure = figures.unconfirmed - figures.maybe
        yield f"{figures.unconfirmed:,} not confirmed ({kinds}): {sure:,} in no queue, {figures.maybe:,} may be in one"
        yield f"  to publish them again: warrener publish --format messages {_shown(place.file)}"
    if place.unconfirmed > figures.unconfirmed:
        yield f"{place.unconfirmed - figures.unconfirmed:,} were not confirmed before; they are in {_shown(place.file)}"
    if figures.left:
        yield f"{figures.left:,} read and not sent; the same command goes on there"
    if run.stopped is not None:
        yield f"stopped: {run.stopped}"
    if run.bad_input is not None:
        yield f"stopped: {run.bad_input}"


# --- the command -----------------------------------------------------------------------------------------------------------------


async def publish(plan: Plan) -> int:
    """Publish what the plan says; return the exit status. Everything that is said goes to standard error."""
    try:
        # A command ends when the broker stays away: eleven dials in a row, unless the user says otherwise.
        patience = defaults(backoff_cap="60", backoff_attempts="10")
        settings = Settings.resolve(plan.url, below=patience, breaker=None, when_exhausted="stay", topology=())
        place = _resumed(plan)
        _check_files(plan, place)
    except (SettingsError, _Refused) as error:
        print(f"warrener publish: {error}", file=sys.stderr)
        return 2
    run = _Run(plan, Producer(settings, driver=plan.driver), place)
    began = anyio.current_time()
    caught: list[int] = []
    async with running(run.producer) as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, run, caught)
        with _open_view(plan) as view:
            tasks.start_soon(_look, run, view)
            try:
                await producer.wait_connected()
            except (ConnectError, GaveUp, ProducerClosed) as error:
                run.stop_reading(str(error))
            else:
                async with anyio.create_task_group() as both:
                    both.start_soon(run.read)
                    both.start_soon(run.settle)
            tasks.cancel_scope.cancel()
    took = anyio.current_time() - began
    if not plan.quiet or run.failed:
        print(*_summary(run, took), sep="\n", file=sys.stderr)
    if run.bad_input is not None:
        return 2
    return 128 + caught[0] if caught else int(run.failed)


def _check_files(plan: Plan, place: _Place) -> None:
    """Find out beforehand what would otherwise be found out in the middle."""
    for path in plan.paths:
        if path != "-" and not Path(path).exists():
            raise _Refused(f"{path} is not there")
        if plan.form != "files" and Path(path).is_dir():
            raise _Refused(f"{path} is a folder; folders are for --format files")
    if plan.unconfirmed is not None and plan.unconfirmed.exists() and str(plan.unconfirmed.absolute()) != place.file:
        raise _Refused(f"{plan.unconfirmed} exists; remove it, or name another for --unconfirmed")
    kept = {"--unconfirmed": plan.unconfirmed or Path(place.file or "here"), "--resume": plan.resume}
    for option, file in kept.items():
        if file is not None and not os.access(file.absolute().parent, os.W_OK):
            raise _Refused(f"{file.absolute().parent} cannot be written to; name a file elsewhere with {option}")


async def _obey_signals(run: _Run, caught: list[int]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as closing:
            async for number in signals:
                if caught:
                    run.producer.abort()
                    continue
                caught.append(number)
                run.stop_reading(f"{signal.Signals(number).name}; what was under way has been settled")
                closing.start_soon(run.producer.aclose)


async def _look(run: _Run, view: _View) -> None:
    pace = _Pace()
    while True:
        view.show(pace.text(run.figures) + _condition(run.producer.status()), run.figures)
        await anyio.sleep(LOOK_EVERY)
