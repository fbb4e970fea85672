"""The last minutes of a producer, for the status page: one sample a second, and the last transitions.

The history is bounded in memory. Without `run()` it advances only when a page asks (`advance`), so a mounted app needs no
task of its own. The service runs `run()`, so the page shows the last minutes as soon as it is opened.

The page may be open to strangers, so a fault is named by its kind; its text may hold the broker's address.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio
from attrs import asdict, frozen

from warrener.http import condition
from warrener.ml.producer import MLProducer
from warrener.records import Status

__all__ = ["History", "Sample", "Transition"]

#: Seconds between two samples, how many are kept, and how many transitions.
INTERVAL = 1.0
SAMPLES = 300
TRANSITIONS = 30


@frozen
class Sample:
    """The numbers of one second."""

    #: Seconds since the epoch, for display only.
    at: float
    #: Confirms in a second.
    rate: float
    #: Mean milliseconds from call to confirm; None where nothing was confirmed.
    latency: float | None
    in_flight: int
    condition: str


@frozen
class Transition:
    """One change of the state that users see."""

    at: float
    condition: str
    breaker: str
    link: int
    #: The kind of the last fault, as words.
    fault: str | None


class History:
    """Samples and transitions of one producer, each list bounded."""

    def __init__(self, ml: MLProducer, *, wall: Callable[[], float] = time.time) -> None:
        self._ml = ml
        self._wall = wall
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.transitions: deque[Transition] = deque(maxlen=TRANSITIONS)
        #: Counts transitions, so that a reader can tell which ones it has seen.
        self.noted = 0
        self.ended = False
        self._news = anyio.Event()
        self._sampled_at: float | None = None
        self._confirmed = 0
        self._seconds = 0.0
        self._last: tuple[object, ...] = ()

    async def run(self) -> None:
        """Watch until the producer is closed."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            async with self._ml.producer.changes() as changes:
                async for status in changes:
                    self.note(status)
            tasks.cancel_scope.cancel()

    async def _tick(self) -> None:
        while True:
            self.advance()
            await anyio.sleep(INTERVAL)

    def end(self) -> None:
        """End the streams of all watchers."""
        self.ended = True
        self._wake()

    def note(self, status: Status) -> None:
        """Remember a transition, if `status` is one."""
        seen = (condition(status), status.circuit_breaker, status.link)
        if seen == self._last:
            return
        self._last = seen
        self.noted += 1
        self.transitions.append(Transition(self._wall(), seen[0], status.circuit_breaker, status.link, _fault(status)))

    def advance(self) -> None:
        """Take a sample, if the last one is a second old."""
        now = anyio.current_time()
        elapsed = INTERVAL if self._sampled_at is None else now - self._sampled_at
        if elapsed < INTERVAL * 0.9:
            return
        status, counters = self._ml.status(), self._ml.counters
        self.note(status)
        confirmed = counters.confirmed - self._confirmed
        seconds = counters.confirm_seconds - self._seconds
        self._sampled_at, self._confirmed, self._seconds = now, counters.confirmed, counters.confirm_seconds
        latency = 1000 * seconds / confirmed if confirmed else None
        self.samples.append(Sample(self._wall(), confirmed / elapsed, latency, status.in_flight, condition(status)))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def wait_sample(self) -> None:
        """Wait for the next sample, or take it; return at once when the history has ended."""
        if self.ended:
            return
        with anyio.move_on_after(INTERVAL):
            await self._news.wait()
        self.advance()

    def snapshot(self, *, since: int = -1) -> dict[str, object]:
        """Return the content of the page: the present, the transitions after number `since`, and, for -1, all samples."""
        status = self._ml.status()
        fresh = list(self.transitions)[-(self.noted - max(since, 0)) :] if self.noted > max(since, 0) else []
        samples = list(self.samples) if since < 0 else list(self.samples)[-1:]
        return {
            "at": self._wall(),
            "condition": condition(status),
            "state": status.connection_state.value,
            "healthy": status.healthy,
            "breaker": status.circuit_breaker,
            "blocked": status.blocked,
            "attempts": status.reconnect_attempts,
            "failures": status.consecutive_failures,
            "retry_in": status.retry_in,
            "in_flight": status.in_flight,
            "buffered": status.buffered,
            "link": status.link,
            "fault": _fault(status),
            "confirmed": self._ml.counters.confirmed,
            "samples": [asdict(sample) for sample in samples],
            "transitions": [asdict(transition) for transition in fresh],
        }


def _fault(status: Status) -> str | None:
    """Return the kind of the last fault, as words from a closed set."""
    return None if status.last_fault is None else status.last_fault.kind.value.replace("_", " ")
