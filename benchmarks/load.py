"""What a client is asked to do, and what it measured; the same for every client, in Python or not.

A client keeps `in_flight` messages unconfirmed, `warm_up` confirms long uncounted, then `count` counted: the meter runs
in the steady state only, so neither the connecting nor the starting of 500 tasks is part of a figure. A client that can
have only one message in flight ignores `in_flight`.

A load is *equal* or *bare*. Equal: each client asks the broker for the same work and listens to the same answers: persistent,
mandatory, a message_id of 32 characters that no other message has, and a handler for returned messages. Bare: persistent and
confirmed, nothing else; warrener still sends its message_id, which cannot be turned off.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import count

from attrs import asdict, define, field, frozen

#: So many of the publishers note how long each of their messages took; the others only count.
WITNESSES = 16


@frozen
class Load:
    """What to do; handed to a client as JSON."""

    url: str
    queue: str
    count: int
    warm_up: int
    in_flight: int = 500
    size: int = 256
    #: Whether each message is mandatory and has a message_id; see the module's text.
    equal: bool = True

    def to_json(self) -> str:
        """Return the load as the one argument of a client."""
        return json.dumps(asdict(self))


def message_ids() -> Iterator[str]:
    """Return ids as the library makes them: 32 characters, the last ones a counter."""
    return (f"{number:032x}" for number in count(1))


def unexpected_return(*_: object) -> None:
    """Handle a returned message; no load has one, so one ends the client with an error."""
    raise RuntimeError("the broker returned a message")


def processor_seconds() -> float:
    """Return the CPU time of this process so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@define
class Meter:
    """Counts confirms; the seconds and the CPU time between the first counted confirm and the last."""

    load: Load
    done: bool = False
    latencies: list[float] = field(factory=list[float])
    _confirmed: int = 0
    _next_mark: int = field(init=False)
    _began: tuple[float, float] | None = None
    _took: tuple[float, float] = (0.0, 0.0)

    def __attrs_post_init__(self) -> None:
        self._next_mark = self.load.warm_up

    def confirm(self, count: int = 1) -> None:
        """Count confirms as they come."""
        self._confirmed += count
        if self._confirmed >= self._next_mark and not self.done:
            self._mark()

    def _mark(self) -> None:
        instant = (time.perf_counter(), processor_seconds())
        if self._began is None:
            self._began = instant
            self._next_mark = self._confirmed + self.load.count
            self.latencies.clear()
        else:
            self._took = (instant[0] - self._began[0], instant[1] - self._began[1])
            # Confirms come in groups: what came beyond the mark was paid for as well.
            self._confirmed -= self._next_mark - self.load.count
            self.done = True

    def report(self) -> dict[str, float | list[float]]:
        """Return what was measured."""
        wall, cpu = self._took
        return {
            "confirmed": self._confirmed,
            "seconds": wall,
            "cpu_seconds": cpu,
            "latencies": sorted(self.latencies),
            "resident_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


def say(report: dict[str, float | list[float]]) -> None:
    """Write what was measured where the runner reads it: one line of JSON."""
    json.dump(report, sys.stdout)
    sys.stdout.write("\n")
