"""The circuit breaker: a pure record, its own settings and its present state in one.

It gates publishers and nothing else: the dial loop is paced by backoff alone and never asks (R15). What a user passes
as a setting is simply a closed breaker. Three states:

* *closed*: everybody is admitted. Failures in a row are counted, an ack sets the count to 0, and the failure that makes
  it `threshold` trips the breaker.
* *open*: nobody is admitted until `cooldown` seconds after the trip. Failures go on being counted; they do not extend
  the cooldown.
* *half open*: `probes` permits may be out at once. A probe's ack closes the breaker, a probe's failure opens it for a
  fresh cooldown, and so does a failure of the connection itself; a probe that was never written, or was cancelled,
  gives its permit back.

What must stay true (I26): every change of state starts a new *generation*, a permit belongs to the generation that
granted it, and a result from an older generation changes nothing. So a call that began long before the trip can
neither close nor open what came after it, and no flag is needed to keep late callers out. Within a generation a permit
counts once: it is outstanding, and then it is settled or given back. Time is an argument (`at`, monotonic seconds).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from attrs import field, frozen

from warrener.errors import SettingsError

__all__ = ["Breaker", "BreakerState", "Permit", "admit", "cooled", "failed", "released", "retry_after", "succeeded"]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

#: Seconds after which a caller may try again while every probe is out: its outcome is near, but not known.
PROBE_PATIENCE = 1.0


@frozen
class Permit:
    """The right to write one message; results of an older generation are ignored."""

    generation: int
    #: Which permit of its generation, from 1; 0 for all that a closed breaker grants, since it does not count them.
    number: int


@frozen
class Breaker:
    """A consecutive-failure breaker: three settings, and the state that starts out closed.

    Raises `SettingsError` where a setting makes no sense.
    """

    #: Failures in a row that trip it.
    threshold: int = 5
    #: Seconds from a trip to half open.
    cooldown: float = 30.0
    #: Permits that may be outstanding at once while half open.
    probes: int = 1

    state: BreakerState = field(default="closed", kw_only=True)
    #: Failures since the last ack.
    failures: int = field(default=0, kw_only=True)
    #: Grows by one with every change of `state`.
    generation: int = field(default=0, kw_only=True)
    #: The instant of the last trip; means nothing while closed.
    opened_at: float = field(default=-math.inf, kw_only=True)
    #: Numbers of the permits that are out; at most `probes`, and none unless half open.
    outstanding: frozenset[int] = field(default=frozenset(), kw_only=True)
    #: How many permits this generation has granted: the number of the last one.
    issued: int = field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be meant; one comparison where all is well, since each failure makes a new record."""
        if self.threshold >= 1 <= self.probes and 0 <= self.cooldown < math.inf:
            return
        if self.threshold < 1:
            raise SettingsError(f"breaker: threshold must be at least 1, not {self.threshold}")
        if not 0 <= self.cooldown < math.inf:
            raise SettingsError(f"breaker: cooldown must be 0 seconds or more, not {self.cooldown}")
        raise SettingsError(f"breaker: probes must be at least 1, not {self.probes}")


def admit(breaker: Breaker, at: float) -> tuple[Breaker, Permit | None]:
    """Ask for a permit at instant `at`; None means: fail fast.

    An open breaker whose cooldown is over becomes half open here, so the answer is right even where the timer that
    should have said so is late.
    """
    match breaker.state:
        case "closed":
            return breaker, Permit(breaker.generation, 0)
        case "open":
            return _grant(cooled(breaker)) if at >= breaker.opened_at + breaker.cooldown else (breaker, None)
        case "half_open":
            return _grant(breaker)


def cooled(breaker: Breaker) -> Breaker:
    """Make an open breaker half open: its cooldown is over, or a link has come up. Others stay as they are."""
    if breaker.state != "open":
        return breaker
    return _enter(breaker, "half_open", breaker.failures, breaker.opened_at)


def succeeded(breaker: Breaker, permit: Permit | None, at: float) -> Breaker:
    """Take an ack into account; `permit` is None for a message that was written without one.

    `at` is there so that results have one shape; an ack needs no instant.
    """
    if permit is not None:
        if not _valid(breaker, permit):
            return breaker
        if breaker.state == "half_open":
            return _enter(breaker, "closed", 0, -math.inf)
    return breaker if breaker.failures == 0 else _with(breaker, 0, breaker.outstanding, breaker.issued)


def failed(breaker: Breaker, permit: Permit | None, at: float) -> Breaker:
    """Take a failure into account; `permit` is None for a failure of the connection: a dial, a link."""
    if permit is not None and not _valid(breaker, permit):
        return breaker
    failures = breaker.failures + 1
    if breaker.state == "half_open" or (breaker.state == "closed" and failures >= breaker.threshold):
        return _enter(breaker, "open", failures, at)
    return _with(breaker, failures, breaker.outstanding, breaker.issued)


def released(breaker: Breaker, permit: Permit) -> Breaker:
    """Take back a permit that was not used; a second time, or from an older generation, changes nothing."""
    if breaker.state != "half_open" or not _valid(breaker, permit):
        return breaker
    return _with(breaker, breaker.failures, breaker.outstanding - {permit.number}, breaker.issued)


def retry_after(breaker: Breaker, at: float) -> float:
    """Return the seconds after which asking again may help: 0 where a permit is to be had now."""
    match breaker.state:
        case "closed":
            return 0.0
        case "open":
            # Rounding must not make the wait longer than the cooldown itself.
            return min(breaker.cooldown, max(0.0, breaker.opened_at + breaker.cooldown - at))
        case "half_open":
            return 0.0 if len(breaker.outstanding) < breaker.probes else PROBE_PATIENCE


def _valid(breaker: Breaker, permit: Permit) -> bool:
    """Whether a result for this permit still says something: its generation lasts, and it is out."""
    if permit.generation != breaker.generation:
        return False
    return breaker.state == "closed" or permit.number in breaker.outstanding


def _grant(breaker: Breaker) -> tuple[Breaker, Permit | None]:
    if len(breaker.outstanding) >= breaker.probes:
        return breaker, None
    number = breaker.issued + 1
    granted = _with(breaker, breaker.failures, breaker.outstanding | {number}, number)
    return granted, Permit(breaker.generation, number)


def _enter(breaker: Breaker, state: BreakerState, failures: int, opened_at: float) -> Breaker:
    """Change the state: a new generation, without permits."""
    return Breaker(
        breaker.threshold,
        breaker.cooldown,
        breaker.probes,
        state=state,
        failures=failures,
        generation=breaker.generation + 1,
        opened_at=opened_at,
    )


def _with(breaker: Breaker, failures: int, outstanding: frozenset[int], issued: int) -> Breaker:
    """Change what may change within a generation; `attrs.evolve` takes several times as long."""
    return Breaker(
        breaker.threshold,
        breaker.cooldown,
        breaker.probes,
        state=breaker.state,
        failures=failures,
        generation=breaker.generation,
        opened_at=breaker.opened_at,
        outstanding=outstanding,
        issued=issued,
    )
