"""`python -m tests.simulation`: run seeds, print what they found and met, and how to see a failure again."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.simulation import outboxes
from tests.simulation.checks import Evidence, Finding, judge
from tests.simulation.corpus import (
    ENOUGH,
    Summary,
    processors,
    run_outboxes,
    run_pairs,
    run_seeds,
    shrink,
    subset,
    summarize_corpus,
)
from tests.simulation.coverage import table
from tests.simulation.isolation import isolation
from tests.simulation.neighbours import alone, beside
from tests.simulation.run import simulate
from tests.simulation.schedule import Plan, draw

#: The failing seeds that are shrunk, each of which takes a while.
SHRUNK = 3
#: One seed in two is a plan with an outbox too, and a pair of plans beside bad destinations.
OF_OTHERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where every seed was well and the corpus as varied as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, metavar="N", help="how many seeds to run (2000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them (0)")
    parser.add_argument(
        "--processes", type=int, default=processors(), metavar="N", help="as many as there are processors"
    )
    parser.add_argument("--seed", type=int, help="run this seed alone, and tell its story")
    parser.add_argument("--faults", type=_places, help="with --seed: only these of its faults, by place (0,3,4)")
    parser.add_argument("--calls", type=_places, help="with --seed: only these of its calls")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--beside", action="store_true", help="run the plans with bad destinations")
    other.add_argument("--outbox", action="store_true", help="run the plans with an outbox")
    chosen = parser.parse_args(arguments)
    if chosen.seed is None:
        seeds = range(chosen.first, chosen.first + chosen.seeds)
        if chosen.beside:
            return run_beside(seeds, chosen.processes)
        if chosen.outbox:
            return run_with_outboxes(seeds, chosen.processes, Counter())
        return run_corpus(seeds, chosen.processes)
    if chosen.outbox:
        return tell_outbox(chosen.seed)
    if chosen.beside:
        plan = beside(chosen.seed)
        return tell(plan) | tell(alone(plan)) | tell_findings(isolation(chosen.seed))
    plan = draw(chosen.seed)
    faults = range(len(plan.faults)) if chosen.faults is None else chosen.faults
    calls = range(len(plan.calls)) if chosen.calls is None else chosen.calls
    return tell(subset(plan, faults, calls))


def _places(text: str) -> list[int]:
    return [int(place) for place in text.split(",") if place]


def tell(plan: Plan) -> int:
    """Run one plan and print everything about it."""
    run = simulate(plan)
    findings = judge(Evidence(run))
    print(f"seed {plan.seed}: {plan.mode} mode, {plan.brokers} broker(s), ends by {plan.ending!r}")
    print(plan.producer)
    print(plan.network)
    print(run.trace.story())
    print(f"hash {run.hash}")
    return tell_findings(findings)


def tell_outbox(seed: int) -> int:
    """Run the plan with an outbox of a seed and print everything about it."""
    plan = outboxes.draw_outbox(seed)
    seen = outboxes.run_outbox(plan)
    print(f"seed {seed}: {plan.processes} process(es), {len(plan.deaths)} deaths, {plan.plan.brokers} broker(s)")
    print(plan.policy)
    print(plan.plan.producer)
    print(plan.plan.network)
    print(seen.run.trace.story())
    print(f"hash {seen.run.hash}")
    return tell_findings(outboxes.judge(seen))


def tell_findings(findings: Sequence[Finding]) -> int:
    """Print findings; return 0 where there are none."""
    for finding in findings:
        print(finding)
    print("all is well" if not findings else f"{len(findings)} findings")
    return bool(findings)


def run_corpus(seeds: Sequence[int], processes: int) -> int:
    """Run many seeds and print what they amount to."""
    print(f"warrener {_version()}: seeds {seeds[0]} to {seeds[-1]} on {processes} processes")
    began = time.monotonic()
    summaries: list[Summary] = []
    failed: list[Summary] = []
    for summary in run_seeds(seeds, processes):
        summaries.append(summary)
        if summary.findings:
            failed.append(summary)
            _print_failure(summary, smaller=len(failed) <= SHRUNK)
    took = time.monotonic() - began
    result = summarize_corpus(summaries)
    failed_outboxes = run_with_outboxes(seeds[::OF_OTHERS], processes, result.met)
    lines, missing = table(result.met, result.seeds)
    print("\n".join(lines))
    wrong = result.shortcomings
    if missing and result.seeds >= ENOUGH:
        wrong.append(f"never met: rows {', '.join(missing)}")
    failed_beside = run_beside(seeds[::OF_OTHERS], processes)
    print(
        f"{result.seeds} seeds in {took:.0f} s ({result.seeds / took * 60:.0f} a minute), {len(failed)} failed; each has "
        f"at least {result.least_publishes} publishes and {result.least_seconds:.0f} virtual seconds; median of faults in "
        f"safety mode {result.median_faults:g}, of messages that fly together {result.median_together:g}; {result.without_flights} "
        f"seeds have no flight; {result.unknown_and_resent:.0%} of the seeds saw an unknown outcome and a "
        f"re-send"
    )
    for shortcoming in wrong:
        print(f"the corpus is too poor: {shortcoming}")
    return bool(failed or wrong or failed_beside or failed_outboxes)


def run_with_outboxes(seeds: Sequence[int], processes: int, met: Counter[str]) -> bool:
    """Run the plans with an outbox, print what is wrong with them, and count the rows that they met."""
    began, failed = time.monotonic(), 0
    for seed, findings, rows in run_outboxes(seeds, processes):
        failed += bool(findings)
        met.update(rows)
        _print_findings(seed, findings, "--outbox")
    print(f"{len(seeds)} plans with an outbox in {time.monotonic() - began:.0f} s, {failed} failed")
    return bool(failed)


def run_beside(seeds: Sequence[int], processes: int) -> int:
    """Run the plans of many seeds beside bad destinations and alone, and print what is wrong with them."""
    began, failed = time.monotonic(), 0
    for seed, findings in run_pairs(seeds, processes):
        failed += bool(findings)
        _print_findings(seed, findings, "--beside")
    print(f"{len(seeds)} pairs of plans in {time.monotonic() - began:.0f} s, {failed} failed")
    return bool(failed)


def _print_findings(seed: int, findings: Sequence[Finding], option: str) -> None:
    if findings:
        print(f"seed {seed} fails:")
        for finding in findings[:5]:
            print(f"    {finding}")
        print(f"    again: python -m tests.simulation --seed {seed} {option}", flush=True)


def _print_failure(summary: Summary, *, smaller: bool) -> None:
    print(f"seed {summary.seed} fails:")
    for finding in summary.findings[:5]:
        print(f"    {finding}")
    replay = f"python -m tests.simulation --seed {summary.seed}"
    if smaller:
        faults, calls = shrink(draw(summary.seed), summary.findings[0].check)
        replay += f" --faults {_list(faults)} --calls {_list(calls)}"
    print(f"    again: {replay}", flush=True)


def _list(places: list[int]) -> str:
    return ",".join(str(place) for place in places) or ","


def _version() -> str:
    """Return the version, and in a checkout the commit, of what runs here."""
    version, git = importlib.metadata.version("warrener"), shutil.which("git")
    if git is None:
        return version
    here = Path(__file__).parent
    asked = subprocess.run([git, "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return f"{version} ({asked.stdout.strip()})" if asked.returncode == 0 else version


if __name__ == "__main__":
    sys.exit(main())
