"""`Results`: the newest results that a breaker has seen, for a failure rate over a number of them or over a time."""

from __future__ import annotations

from attrs import field, frozen

__all__ = ["NONE", "Results", "noted", "tally"]

#: A window of time is counted in this number of slices; the oldest one leaves it as a whole.
SLICES = 10


@frozen
class Results:
    """Results of calls: the last ones, or those of the last seconds. A breaker that counts failures in a row keeps none."""

    #: The last results, one bit each: 1 is a failure. The newest one is the lowest bit.
    bits: int = 0
    #: Number of results in `bits`.
    count: int = 0
    #: (number of the slice of time, results, failures), oldest first.
    slices: tuple[tuple[int, int, int], ...] = field(default=())


NONE = Results()


def noted(results: Results, *, failure: bool, at: float, over: int | None, within: float | None) -> Results:
    """Add one result. `over`: the number of results that are kept; or `within`: the seconds for which they are kept."""
    if over is not None:
        bits = (results.bits << 1 | failure) & ((1 << over) - 1)
        return Results(bits, min(results.count + 1, over))
    if within is None:
        return results
    now = int(at * SLICES / within)
    slices = _kept(results, now)
    if slices and slices[-1][0] >= now:  # time does not run backwards
        number, count, failures = slices[-1]
        return Results(slices=(*slices[:-1], (number, count + 1, failures + failure)))
    return Results(slices=(*slices, (now, 1, int(failure))))


def tally(results: Results, *, at: float, within: float | None) -> tuple[int, int]:
    """Return the number of results in the window, and the number of failures among them."""
    if within is None:
        return results.count, results.bits.bit_count()
    slices = _kept(results, int(at * SLICES / within))
    return sum(count for _, count, _ in slices), sum(failures for _, _, failures in slices)


def _kept(results: Results, now: int) -> tuple[tuple[int, int, int], ...]:
    return tuple(each for each in results.slices if each[0] > now - SLICES)
