"""A rehearsal: many producers lose one broker, which comes back and accepts a limited number of connections a second.

Each producer is the real state machine (`warrener.machine`); the network and the broker are a model with an event queue of
its own, in virtual time:

* At instant 0 every producer is connected, and the broker ends all links.
* While the broker is away, each dial is refused at once. If the machine of the broker is away too (`silent`), a dial ends
  after `connect_timeout`.
* After `outage` seconds the broker accepts connections. It finishes `accept_rate` handshakes a second, in the order in which
  the dials arrived. A dial that waits longer than `connect_timeout` fails and leaves the queue.
* A producer counts as recovered when its first message on the new link is confirmed.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

from attrs import field, frozen

from warrener.errors import Fault, FaultKind
from warrener.machine import Event, Policy, Record, effects, events, initial, transition

__all__ = ["Fleet", "Rehearsal", "rehearse"]

_LOST = Fault(FaultKind.CONNECTION_LOST, "the broker was stopped")
_REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
_TIMED_OUT = Fault(FaultKind.HANDSHAKE_TIMEOUT, "no answer within connect_timeout")

#: A rehearsal ends at this virtual instant, in seconds, even if producers are still away.
HORIZON = 24 * 3600.0

_Action: TypeAlias = Callable[[], None]


@frozen
class Fleet:
    """What is rehearsed; durations are seconds."""

    producers: int
    outage: float
    accept_rate: float
    policy: Policy
    connect_timeout: float = 10.0
    #: Dials during the outage get no answer, instead of a refusal at once.
    silent: bool = False
    seed: int = 0


@frozen
class Rehearsal:
    """What happened."""

    #: Dials in each second since the loss.
    dials: tuple[int, ...]
    #: The instants at which producers recovered, in order.
    recovered: tuple[float, ...]
    #: Dials that failed after the broker was back, because it was too busy.
    crowded_out: int
    fleet: Fleet = field(repr=False)

    @property
    def peak(self) -> int:
        """The largest number of dials in one second after the broker was back."""
        return max(self.dials[int(self.fleet.outage) :], default=0)

    @property
    def peak_multiple(self) -> float:
        """That number as a multiple of the connections that the broker accepts in a second."""
        return self.peak / self.fleet.accept_rate

    def back(self, share: float) -> float | None:
        """Return the seconds from the broker's return until this share of the producers has recovered; None: never."""
        index = max(0, -int(-self.fleet.producers * share // 1) - 1)
        return None if index >= len(self.recovered) else self.recovered[index] - self.fleet.outage


def rehearse(fleet: Fleet) -> Rehearsal:
    """Run it to the end, and return what happened. Equal arguments give equal results."""
    return _Run(fleet).run()


class _Run:
    """The event queue, the broker, and the producers."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.rng = random.Random(fleet.seed)
        self.now = 0.0
        self.dials: Counter[int] = Counter()
        self.recovered: list[float] = []
        self.crowded_out = 0
        self._queue: list[tuple[float, int, _Action]] = []
        self._order = count()
        #: Dials that wait for the broker, first come, first served.
        self._waiting: deque[_Producer] = deque()
        self._serving = False

    def run(self) -> Rehearsal:
        producers = [_Producer(self) for _ in range(self.fleet.producers)]
        for producer in producers:
            producer.lose()
        while self._queue and len(self.recovered) < len(producers):
            at, _, action = heapq.heappop(self._queue)
            if at > HORIZON:
                break
            self.now = at
            action()
        last = max(self.dials, default=0)
        return Rehearsal(
            tuple(self.dials[second] for second in range(last + 1)), tuple(self.recovered), self.crowded_out, self.fleet
        )

    def after(self, delay: float, action: _Action) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), action))

    # --- the broker -------------------------------------------------------------------------------------------------

    def dial(self, producer: _Producer, link: int) -> None:
        self.dials[int(self.now)] += 1
        fleet = self.fleet
        if self.now < fleet.outage:
            if fleet.silent:
                self.after(fleet.connect_timeout, lambda: producer.dial_failed(link, _TIMED_OUT))
            else:
                self.after(0.0, lambda: producer.dial_failed(link, _REFUSED))
            return
        self._waiting.append(producer)
        producer.waits = link
        self.after(fleet.connect_timeout, lambda: self._give_up(producer, link))
        if not self._serving:
            self._serving = True
            self.after(1 / fleet.accept_rate, self._serve)

    def _give_up(self, producer: _Producer, link: int) -> None:
        if producer.waits == link:
            producer.waits = None
            self._waiting.remove(producer)
            self.crowded_out += 1
            producer.dial_failed(link, _TIMED_OUT)

    def _serve(self) -> None:
        if self._waiting:
            producer = self._waiting.popleft()
            link, producer.waits = producer.waits, None
            assert link is not None
            producer.connected(link)
        self._serving = bool(self._waiting)
        if self._serving:
            self.after(1 / self.fleet.accept_rate, self._serve)


class _Producer:
    """One producer: keeps its record, and carries out its effects in the model of the network."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._record: Record = initial()
        #: The link whose dial waits in the broker's queue.
        self.waits: int | None = None
        self._retry: int = 0
        for event in (
            events.StartRequested(0.0),
            events.LinkOpened(1, 0.0),
            events.TopologyRestored(1, 0.0),
            events.PublishConfirmed(1, 0.0),
        ):
            self._record = transition(self._record, event, run.fleet.policy).record

    def lose(self) -> None:
        self._step(events.LinkLost(1, _LOST, 0.0))

    def dial_failed(self, link: int, fault: Fault) -> None:
        self._step(events.DialFailed(link, fault, self._run.now))

    def connected(self, link: int) -> None:
        at = self._run.now
        for event in (
            events.LinkOpened(link, at),
            events.TopologyRestored(link, at),
            events.PublishConfirmed(link, at),
        ):
            self._step(event)
        self._run.recovered.append(at)

    def _step(self, event: Event) -> None:
        step = transition(self._record, event, self._run.fleet.policy)
        self._record = step.record
        for effect in step.effects:
            match effect:
                case effects.Dial(link):
                    self._run.dial(self, link)
                case effects.StartRetryTimer(link, shortest, longest):
                    delay = self._run.rng.uniform(shortest, longest)
                    self._run.after(delay, lambda link=link: self._retry_now(link))  # type: ignore[misc]
                case _:
                    pass  # timers and orders that mean nothing for a producer without messages

    def _retry_now(self, link: int) -> None:
        self._step(events.RetryTimerFired(link, self._run.now))
