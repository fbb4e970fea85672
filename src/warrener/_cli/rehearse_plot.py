"""How a rehearsal is drawn: one line of blocks for a terminal, and an SVG picture without any library."""

from __future__ import annotations

from collections.abc import Sequence

from warrener._cli.rehearsal import Rehearsal

__all__ = ["plot", "sparkline"]

_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Columns of the line of blocks.
_COLUMNS = 72
_LEGEND = "bars: dials a second; dashed: the accept rate; line: producers that are back, from 0 to all"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 860, 240, 64, 40, 44


def sparkline(values: Sequence[int], columns: int = _COLUMNS) -> str:
    """Return one line of blocks; each stands for the largest value of its part."""
    width = max(1, -(-len(values) // columns))
    parts = [max(values[at : at + width]) for at in range(0, len(values), width)]
    top = max(parts, default=0) or 1
    return "".join(_BLOCKS[-(-value * (len(_BLOCKS) - 1) // top)] for value in parts)


def plot(results: Sequence[Rehearsal]) -> str:
    """Return an SVG with one panel for each rehearsal: dials a second as bars, the share that has recovered as a line."""
    seconds = max((len(result.dials) for result in results), default=1)
    panels = [_panel(result, seconds, number * _HEIGHT) for number, result in enumerate(results)]
    height = _HEIGHT * len(results)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            *panels,
            "</svg>",
            "",
        ]
    )


def _panel(result: Rehearsal, seconds: int, top: int) -> str:
    fleet = result.fleet
    wide, high = _WIDTH - _LEFT - 20, _HEIGHT - _TOP - _BOTTOM
    most = max(*result.dials, int(fleet.accept_rate), 1)
    step = wide / seconds
    floor = top + _TOP + high

    def x(second: float) -> float:
        return round(_LEFT + second * step, 2)

    def y(share: float) -> float:
        return round(floor - high * share, 2)

    bars = "".join(
        f"M{x(second)} {floor}V{y(dials / most)}H{x(second + 1)}V{floor}Z"
        for second, dials in enumerate(result.dials)
        if dials
    )
    every = max(1, len(result.recovered) // 200)
    points = [(at, (index + 1) / fleet.producers) for index, at in enumerate(result.recovered)][::every]
    line = " ".join(f"{x(at)},{y(share)}" for at, share in points)
    whole = result.back(1.0)
    all_back = "not all back" if whole is None else f"all back after {whole:.0f} s"
    title = (
        f"jitter {fleet.policy.backoff.jitter:g}: peak {result.peak} dials a second after the return "
        f"({result.peak_multiple:.1f} x the accept rate), {all_back}"
    )
    return "\n".join(
        [
            f'<text x="{_LEFT}" y="{top + 24}" font-size="14">{title}</text>',
            f'<path d="{bars}" fill="#6b8fb5"/>',
            f'<path d="M{_LEFT} {y(fleet.accept_rate / most)}H{_LEFT + wide}" stroke="#b5533c" stroke-dasharray="5 4"/>',
            f'<path d="M{x(fleet.outage)} {top + _TOP}V{floor}" stroke="#808080" stroke-dasharray="2 3"/>',
            f'<polyline points="{line}" fill="none" stroke="#3c7d3c" stroke-width="2"/>',
            f'<path d="M{_LEFT} {top + _TOP}V{floor}H{_LEFT + wide}" fill="none" stroke="#404040"/>',
            f'<text x="{_LEFT - 6}" y="{y(1) + 4}" text-anchor="end">{most}</text>',
            f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">0</text>',
            f'<text x="{x(fleet.outage)}" y="{floor + 16}" text-anchor="middle">broker back, {fleet.outage:g} s</text>',
            f'<text x="{_LEFT + wide}" y="{floor + 16}" text-anchor="end">{seconds} s</text>',
            f'<text x="{_LEFT}" y="{floor + 34}" fill="#404040">{_LEGEND}</text>',
        ]
    )
