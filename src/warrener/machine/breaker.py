"""The circuit breaker: one pure record with its settings and its present state.

The breaker refuses new calls only: it never delays a dial, because the backoff alone separates dials. The setting that
a user gives is a closed breaker. There are three states:

* *closed*: every call is admitted. Failures in a row are counted, and an ack sets the count to 0. The breaker opens when
  the count reaches `threshold`. With `rate`, a window of results counts instead: the last `over` results, or those
  of the last `within` seconds. The breaker opens when the window has at least `threshold` failures, and the failures
  are at least the part `rate` of its results.
* *open*: no call is admitted until `cooldown` seconds after the opening. Failures are still counted; they do not make
  the cooldown longer.
* *half open*: at most `probes` calls are admitted at once, each with a permit; such a call is a *probe*. The ack of a
  probe closes the breaker. The failure of a probe, or of the connection, opens it again for a whole cooldown. A probe
  that is cancelled, or never written, returns its permit.

Invariants: permits are counted. Every change of state starts a new *generation*. A permit belongs to the generation that
granted it, and a result from an older generation changes nothing: a call that began before the breaker opened can neither
close nor open it later. Within its generation a permit is outstanding once, and then it has a result or is returned.
Time is an argument (`at`, in monotonic seconds).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from attrs import field, frozen

from warrener.errors import SettingsError
from warrener.machine._results import NONE, Results, noted, tally

__all__ = [
    "Breaker",
    "BreakerState",
    "Permit",
    "admit",
    "cooled",
    "failed",
    "released",
    "retry_after",
    "spotless",
    "succeeded",
]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

#: Seconds after which a caller may try again while every permit is out: the result of a probe is not known yet.
PROBE_PATIENCE = 1.0


@frozen
class Permit:
    """The right to write one message while the breaker is half open."""

    generation: int
    #: The number of the permit in its generation, from 1; 0 for every permit of a closed breaker, which counts none.
    number: int


@frozen
class Breaker:
    """A breaker that counts failures in a row, or their rate in a window: its settings, and the state, closed at the start.

    Raises `SettingsError` if a setting makes no sense.
    """

    #: The number of failures in a row that opens the breaker; with `rate`, the least number of failures in the window.
    threshold: int = 5
    #: Seconds from open to half open.
    cooldown: float = 30.0
    #: The number of permits that can be outstanding at once while the breaker is half open.
    probes: int = 1
    #: More than 0, at most 1: the part of the results in the window that opens the breaker. None: failures in a row count.
    rate: float | None = field(default=None, kw_only=True)
    #: The window of `rate`: this number of results, or this number of seconds.
    over: int | None = field(default=None, kw_only=True)
    within: float | None = field(default=None, kw_only=True)
    #: A confirm that takes more than this number of seconds is a failure of its destination. None: none is.
    slow: float | None = field(default=None, kw_only=True)

    state: BreakerState = field(default="closed", kw_only=True)
    #: Failures since the last ack.
    failures: int = field(default=0, kw_only=True)
    #: Grows by one with every change of `state`.
    generation: int = field(default=0, kw_only=True)
    #: The instant at which the breaker last opened; without meaning while it is closed.
    opened_at: float = field(default=-math.inf, kw_only=True)
    #: The numbers of the permits that are out: at most `probes`, and only while the breaker is half open.
    outstanding: frozenset[int] = field(default=frozenset(), kw_only=True)
    #: The number of permits that this generation has granted.
    issued: int = field(default=0, kw_only=True)
    #: The results in the window of `rate`, while the breaker is closed.
    results: Results = field(default=NONE, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuse values that make no sense. Valid values cost one comparison, because each failure makes a new record."""
        if self.threshold >= 1 <= self.probes and 0 <= self.cooldown < math.inf:
            if not self.rate == self.over == self.within == self.slow is None:
                self._check_variants()
            return
        if self.threshold < 1:
            raise SettingsError(f"breaker: threshold must be at least 1, not {self.threshold}")
        if not 0 <= self.cooldown < math.inf:
            raise SettingsError(f"breaker: cooldown must be 0 seconds or more, not {self.cooldown}")
        raise SettingsError(f"breaker: probes must be at least 1, not {self.probes}")

    def _check_variants(self) -> None:
        rate, over, within, slow = self.rate, self.over, self.within, self.slow
        if slow is not None and not 0 < slow < math.inf:
            raise SettingsError(f"breaker: slow must be more than 0 seconds, not {slow}")
        if rate is None:
            if over is not None or within is not None:
                raise SettingsError(
                    "breaker: `over` and `within` are the window of `rate`; give `rate`, too, or drop them"
                )
            return
        if not 0 < rate <= 1:
            raise SettingsError(f"breaker: rate must be more than 0 and at most 1, not {rate}")
        if (over is None) == (within is None):
            raise SettingsError("breaker: a rate needs a window: give `over` (results) or `within` (seconds), not both")
        if over is not None and over < self.threshold:
            raise SettingsError(
                f"breaker: over={over} results can never hold threshold={self.threshold} failures; raise `over`, or lower"
                " `threshold`"
            )
        if within is not None and not 0 < within < math.inf:
            raise SettingsError(f"breaker: within must be more than 0 seconds, not {within}")


def admit(breaker: Breaker, at: float) -> tuple[Breaker, Permit | None]:
    """Ask for a permit at instant `at`. None: the call is refused.

    An open breaker whose cooldown is over becomes half open here. The answer is therefore right even if the cooldown
    timer is late.
    """
    match breaker.state:
        case "closed":
            return breaker, Permit(breaker.generation, 0)
        case "open":
            return _grant(cooled(breaker)) if at >= breaker.opened_at + breaker.cooldown else (breaker, None)
        case "half_open":
            return _grant(breaker)


def cooled(breaker: Breaker) -> Breaker:
    """Make an open breaker half open: its cooldown is over, or a link is up. A breaker in another state does not change."""
    if breaker.state != "open":
        return breaker
    return _enter(breaker, "half_open", breaker.failures, breaker.opened_at)


def succeeded(breaker: Breaker, permit: Permit | None, at: float) -> Breaker:
    """Count an ack. `permit` is None for a message without a permit."""
    if permit is not None:
        if not _valid(breaker, permit):
            return breaker
        if breaker.state == "half_open":
            return _enter(breaker, "closed", 0, -math.inf)
    results = _noted(breaker, failure=False, at=at)
    if breaker.failures == 0 and results is breaker.results:
        return breaker
    return _with(breaker, 0, breaker.outstanding, breaker.issued, results)


def failed(breaker: Breaker, permit: Permit | None, at: float) -> Breaker:
    """Count a failure. `permit` is None for a failure of the connection, which is a failed dial or a lost link."""
    if permit is not None and not _valid(breaker, permit):
        return breaker
    failures = breaker.failures + 1
    results = _noted(breaker, failure=True, at=at)
    if breaker.state == "half_open" or (breaker.state == "closed" and _trips(breaker, failures, results, at)):
        return _enter(breaker, "open", failures, at)
    return _with(breaker, failures, breaker.outstanding, breaker.issued, results)


def released(breaker: Breaker, permit: Permit) -> Breaker:
    """Take back a permit that was not used. A permit that is not outstanding changes nothing."""
    if breaker.state != "half_open" or not _valid(breaker, permit):
        return breaker
    return _with(breaker, breaker.failures, breaker.outstanding - {permit.number}, breaker.issued, breaker.results)


def retry_after(breaker: Breaker, at: float) -> float:
    """Return the seconds after which a caller can ask again; 0: a permit is free now."""
    match breaker.state:
        case "closed":
            return 0.0
        case "open":
            # Rounding must not make the answer longer than the cooldown.
            return min(breaker.cooldown, max(0.0, breaker.opened_at + breaker.cooldown - at))
        case "half_open":
            return 0.0 if len(breaker.outstanding) < breaker.probes else PROBE_PATIENCE


def spotless(breaker: Breaker, at: float) -> bool:
    """Say whether a closed breaker is as good as new: it counts no failure."""
    failed = tally(breaker.results, at=at, within=breaker.within)[1]
    return breaker.state == "closed" and breaker.failures == failed == 0


def _noted(breaker: Breaker, *, failure: bool, at: float) -> Results:
    """Return the results in the window with one more, if the breaker is closed and counts a rate."""
    if breaker.rate is None or breaker.state != "closed":
        return breaker.results
    return noted(breaker.results, failure=failure, at=at, over=breaker.over, within=breaker.within)


def _trips(breaker: Breaker, failures: int, results: Results, at: float) -> bool:
    """Say whether a failure opens a closed breaker; it is counted in both arguments already."""
    if breaker.rate is None:
        return failures >= breaker.threshold
    total, failed = tally(results, at=at, within=breaker.within)
    return failed >= breaker.threshold and failed >= breaker.rate * total


def _valid(breaker: Breaker, permit: Permit) -> bool:
    """Say whether a result for this permit counts: its generation is the present one, and the permit is out."""
    if permit.generation != breaker.generation:
        return False
    return breaker.state == "closed" or permit.number in breaker.outstanding


def _grant(breaker: Breaker) -> tuple[Breaker, Permit | None]:
    if len(breaker.outstanding) >= breaker.probes:
        return breaker, None
    number = breaker.issued + 1
    granted = _with(breaker, breaker.failures, breaker.outstanding | {number}, number, breaker.results)
    return granted, Permit(breaker.generation, number)


def _enter(breaker: Breaker, state: BreakerState, failures: int, opened_at: float) -> Breaker:
    """Change the state: a new generation, without permits."""
    return Breaker(
        breaker.threshold,
        breaker.cooldown,
        breaker.probes,
        rate=breaker.rate,
        over=breaker.over,
        within=breaker.within,
        slow=breaker.slow,
        state=state,
        failures=failures,
        generation=breaker.generation + 1,
        opened_at=opened_at,
    )


def _with(breaker: Breaker, failures: int, outstanding: frozenset[int], issued: int, results: Results) -> Breaker:
    """Change the fields that change within a generation. `attrs.evolve` would take several times as long."""
    return Breaker(
        breaker.threshold,
        breaker.cooldown,
        breaker.probes,
        rate=breaker.rate,
        over=breaker.over,
        within=breaker.within,
        slow=breaker.slow,
        state=breaker.state,
        failures=failures,
        generation=breaker.generation,
        opened_at=breaker.opened_at,
        outstanding=outstanding,
        issued=issued,
        results=results,
    )
