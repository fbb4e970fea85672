"""What ``warrener publish`` says: a bar where rich is installed, lines otherwise, and a summary in the end."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import anyio

from warrener._cli.common import next_attempt
from warrener._cli.publish_input import size_of
from warrener._cli.publish_plan import Plan
from warrener._cli.publish_run import Progress, Run
from warrener.records import ConnectionState, Status

__all__ = ["LOOK_EVERY", "Pace", "View", "condition", "open_view", "summary"]

#: Seconds between two looks at the progress.
LOOK_EVERY = 0.25
#: Seconds between two lines where there is no progress bar.
LINE_EVERY = 5.0


class View(Protocol):
    def show(self, text: str, progress: Progress) -> None: ...


class _Lines:
    """Plain lines, now and then."""

    def __init__(self) -> None:
        self._said_at = anyio.current_time()

    def show(self, text: str, progress: Progress) -> None:
        if anyio.current_time() >= self._said_at + LINE_EVERY:
            self._said_at = anyio.current_time()
            print(f"{progress.confirmed:>9,} confirmed  {text}", file=sys.stderr, flush=True)


class _Nothing:
    def show(self, text: str, progress: Progress) -> None:
        pass


def open_view(plan: Plan) -> AbstractContextManager[View]:
    if plan.quiet:
        return nullcontext(_Nothing())
    if plan.plain or not sys.stderr.isatty():
        return nullcontext(_Lines())
    try:
        return _bar(size_of(plan.paths))
    except ImportError:
        return nullcontext(_Lines())


def _bar(total: int | None) -> AbstractContextManager[View]:
    import rich.progress
    from rich.console import Console

    bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn("{task.fields[confirmed]} confirmed", markup=False),
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    @contextmanager
    def opened() -> Iterator[View]:
        with bar:
            task = bar.add_task("", total=total, confirmed="0")

            class Bar:
                def show(self, text: str, progress: Progress) -> None:
                    bar.update(
                        task, completed=progress.bytes_read, description=text, confirmed=f"{progress.confirmed:,}"
                    )

            yield Bar()

    return opened()


class Pace:
    """Rate and latency over the last two seconds or so."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int, float]] = deque(maxlen=round(2 / LOOK_EVERY))

    def text(self, progress: Progress) -> str:
        now = anyio.current_time()
        self._past.append((now, progress.confirmed, progress.seconds))
        since, confirmed, seconds = self._past[0]
        count = progress.confirmed - confirmed
        if not count or now <= since:
            return "0/s"
        return f"{count / (now - since):,.0f}/s, {1000 * (progress.seconds - seconds) / count:,.1f} ms to confirm"


def condition(status: Status) -> str:
    """Say what keeps messages from being confirmed, if anything does."""
    if status.connection_state is ConnectionState.CONNECTED:
        return "; the broker has an alarm and takes nothing for now" if status.blocked else ""
    if status.connection_state is ConnectionState.DISCONNECTED:
        return ", ".join(part for part in ("; no connection", next_attempt(status)) if part)
    return f"; {status.connection_state.value.lower()}"


def _shown(file: str) -> str:
    """Return a path as it can be typed here."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def summary(run: Run, took: float) -> Iterator[str]:
    progress, place = run.progress, run.place
    line = f"{progress.confirmed:,} confirmed in {took:.1f} s"
    if progress.confirmed:
        mean = 1000 * progress.seconds / progress.confirmed
        rate = progress.confirmed / took if took else 0.0
        line += f" ({rate:,.0f}/s; {mean:,.1f} ms to confirm on average, {1000 * progress.longest:,.1f} ms at most)"
    yield line
    if progress.resent:
        yield f"{progress.resent:,} of them may be twice in a queue, each under one message id"
    if progress.unconfirmed:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(progress.errors.items()))
        sure = progress.unconfirmed - progress.maybe
        yield f"{progress.unconfirmed:,} not confirmed ({kinds}): {sure:,} in no queue, {progress.maybe:,} may be in one"
        for kind, reason in sorted(progress.reasons.items()):
            yield f"  the first {kind}: {reason}"
        yield f"  to publish them again: warrener publish --format messages {_shown(place.file)}"
    if place.unconfirmed > progress.unconfirmed:
        earlier = place.unconfirmed - progress.unconfirmed
        yield f"{earlier:,} were not confirmed in earlier runs; they are in {_shown(place.file)}"
    if progress.left:
        yield f"{progress.left:,} read and not sent; the same command continues with them"
    if run.stopped is not None:
        yield f"stopped: {run.stopped}"
    if run.bad_input is not None:
        yield f"stopped: {run.bad_input}"
