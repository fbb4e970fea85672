"""``warrener rehearse``: what a fleet of producers does to a broker that comes back, in virtual time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from attrs import evolve

from warrener._cli.common import Commands
from warrener._cli.completion import names_file
from warrener._cli.rehearsal import Fleet, Rehearsal, rehearse
from warrener._cli.rehearse_plot import plot, sparkline
from warrener.errors import SettingsError
from warrener.machine import Backoff, Policy

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add ``rehearse`` to the commands."""
    parser = commands.add_parser(
        "rehearse",
        help="rehearse how a fleet of producers reconnects after an outage",
        description="Run the real state machine of many producers in virtual time. All of them lose one broker, which "
        "comes back and accepts a limited number of connections a second. Needs no broker.",
    )
    backoff = Backoff()
    parser.add_argument("--producers", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    parser.add_argument(
        "--accept-rate",
        type=float,
        default=100.0,
        metavar="N",
        help="connections a second after the outage (default: 100)",
    )
    parser.add_argument(
        "--jitter",
        type=float,
        nargs="+",
        default=[backoff.jitter, 0.0],
        metavar="J",
        help="default: 0.5 and 0, to compare",
    )
    parser.add_argument("--initial", type=float, default=backoff.initial, metavar="SECONDS", help="backoff_initial")
    parser.add_argument("--factor", type=float, default=backoff.factor, metavar="F", help="backoff_factor")
    parser.add_argument("--cap", type=float, default=backoff.cap, metavar="SECONDS", help="backoff_cap")
    parser.add_argument("--connect-timeout", type=float, default=10.0, metavar="SECONDS", help="default: 10")
    parser.add_argument(
        "--silent",
        action="store_true",
        help="a dial during the outage gets no answer and times out; by default it is refused",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the seed of the random delays (default: 0)")
    names_file(parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot as SVG"))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        results = [rehearse(fleet) for fleet in _fleets(args)]
    except (SettingsError, ValueError) as error:
        print(f"warrener rehearse: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([_figures(result) for result in results]))
    else:
        _print(args, results)
    if args.plot is not None:
        args.plot.write_text(plot(results), encoding="utf-8")
    return 0


def _fleets(args: argparse.Namespace) -> list[Fleet]:
    if args.producers < 1:
        raise ValueError(f"--producers must be at least 1, not {args.producers}")
    for name in ("outage", "accept_rate", "connect_timeout"):
        if not 0 < getattr(args, name) < 1e6:
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0, not {getattr(args, name):g}")
    backoff = Backoff(initial=args.initial, factor=args.factor, cap=args.cap)
    return [
        Fleet(
            producers=args.producers,
            outage=args.outage,
            accept_rate=args.accept_rate,
            policy=Policy(backoff=evolve(backoff, jitter=jitter), breaker=None),
            connect_timeout=args.connect_timeout,
            silent=args.silent,
            seed=args.seed,
        )
        for jitter in args.jitter
    ]


def _figures(result: Rehearsal) -> dict[str, object]:
    return {
        "jitter": result.fleet.policy.backoff.jitter,
        "producers": result.fleet.producers,
        "outage": result.fleet.outage,
        "accept_rate": result.fleet.accept_rate,
        "dials": sum(result.dials),
        "peak_dials_per_second": result.peak,
        "peak_multiple_of_accept_rate": round(result.peak_multiple, 2),
        "crowded_out": result.crowded_out,
        "seconds_to_half": result.back(0.5),
        "seconds_to_99_percent": result.back(0.99),
        "seconds_to_all": result.back(1.0),
        "dials_per_second": list(result.dials),
    }


def _print(args: argparse.Namespace, results: list[Rehearsal]) -> None:
    print(
        f"{args.producers} producers, an outage of {args.outage:g} s, then {args.accept_rate:g} connections a second; "
        f"the shortest possible recovery is {args.producers / args.accept_rate:.3g} s"
    )
    print()
    print(f"{'jitter':>7} {'peak dials/s':>13} {'x rate':>7} {'timed out':>10} {'half':>8} {'99 %':>8} {'all':>8}")
    for result in results:
        back = [
            f"{seconds:.1f} s" if (seconds := result.back(share)) is not None else "never" for share in (0.5, 0.99, 1)
        ]
        print(
            f"{result.fleet.policy.backoff.jitter:>7g} {result.peak:>13} {result.peak_multiple:>7.1f} "
            f"{result.crowded_out:>10} {back[0]:>8} {back[1]:>8} {back[2]:>8}"
        )
    print()
    print("Peak and times count from the return of the broker. Dials a second since the loss:")
    for result in results:
        print(f"{result.fleet.policy.backoff.jitter:>7g} {sparkline(result.dials)} max {max(result.dials)}")
