"""Many seeds at once: what each of them found, met and did, on as many processors as there are."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from attrs import evolve, frozen

from tests.simulation import outboxes
from tests.simulation.checks import Evidence, Finding, judge
from tests.simulation.coverage import rows_of
from tests.simulation.isolation import isolation
from tests.simulation.run import simulate
from tests.simulation.schedule import Call, Item, Plan, calm, draw
from tests.simulation.trace import verdict

__all__ = [
    "CorpusSummary",
    "Summary",
    "first_failure",
    "processors",
    "run_outboxes",
    "run_pairs",
    "run_seed",
    "run_seeds",
    "shrink",
    "smoke",
    "summarize_corpus",
]

#: One seed in this number runs twice, and must have the same trace both times.
TWICE = 50
#: A corpus of this many seeds or more must be as varied as promised.
ENOUGH = 1000
#: How many runs the shrinking of a failure may take.
SHRINK_RUNS = 400


@frozen
class Summary:
    """One run in a few words."""

    seed: int
    safety: bool
    findings: tuple[Finding, ...]
    #: The rows of the fault matrix that it met.
    rows: frozenset[str]
    publishes: int
    #: Virtual seconds.
    seconds: float
    faults: int
    #: The batches that links were given, and the messages in those of several messages.
    flights: int
    together: int
    #: Whether an outcome was unknown, and whether something was sent again.
    unknown: bool
    resent: bool
    hash: str


def summarize(plan: Plan) -> Summary:
    """Run a plan and judge it."""
    run = simulate(plan)
    seen = Evidence(run)
    return Summary(
        seed=plan.seed,
        safety=plan.mode == "safety",
        findings=tuple(judge(seen)),
        rows=rows_of(seen),
        publishes=len(run.trace.publishes),
        seconds=run.ended_at,
        faults=len(plan.faults),
        flights=sum(record.flights for record in run.trace.links.values()),
        together=sum(record.together for record in run.trace.links.values()),
        unknown=any(publish.final is not None and verdict(publish.final) == "unknown" for publish in seen.publishes),
        resent=any(sum(attempt.reached is not False for attempt in each.attempts) > 1 for each in seen.publishes),
        hash=run.hash,
    )


def run_seed(seed: int) -> Summary:
    """Run one seed; some of them twice."""
    summary = summarize(draw(seed))
    if seed % TWICE == 0:
        again = summarize(draw(seed)).hash
        if again != summary.hash:
            finding = Finding("R22 equal seed, equal trace", f"the hashes are {summary.hash} and {again}")
            return evolve(summary, findings=(*summary.findings, finding))
    return summary


def processors() -> int:
    """Return how many processes are worth while here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_seeds(seeds: Sequence[int], processes: int) -> Iterator[Summary]:
    """Run seeds in processes of their own, and yield what they say in the order of the seeds."""
    if processes <= 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run_seed, seeds, chunksize=10)


def run_pairs(seeds: Sequence[int], processes: int) -> Iterator[tuple[int, list[Finding]]]:
    """Run the plans with bad destinations, and yield each seed with its findings, in the order of the seeds."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from zip(seeds, pool.map(isolation, seeds, chunksize=5), strict=True)


def run_outboxes(seeds: Sequence[int], processes: int) -> Iterator[tuple[int, list[Finding], frozenset[str]]]:
    """Run the plans with an outbox, and yield each seed with its findings and the rows that it met, in the order of the seeds."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = pool.map(outboxes.run_seed, seeds, chunksize=5)
        for seed, (findings, rows) in zip(seeds, results, strict=True):
            yield seed, findings, rows


def smoke(publishes: int = 100) -> Summary:
    """Publish in bursts of ten, through a broker and a network without a fault."""
    return summarize(
        calm(
            tuple(
                Call(1.0 + number // 10, "publish", (Item(number, 100, "jobs"),), 30.0) for number in range(publishes)
            )
        )
    )


def first_failure(seeds: Sequence[int], processes: int) -> tuple[int, Finding] | None:
    """Return the first seed that fails and its first finding, and run few more seeds than that takes."""
    step = 10 * processes
    for at in range(0, len(seeds), step):
        for summary in run_seeds(seeds[at : at + step], processes):
            if summary.findings:
                return summary.seed, summary.findings[0]
        for seed, findings in run_pairs(seeds[at : at + step], processes):
            if findings:
                return seed, findings[0]
        for seed, findings, _ in run_outboxes(seeds[at : at + step], processes):
            if findings:
                return seed, findings[0]
    return None


@frozen
class CorpusSummary:
    """What a corpus amounts to; shares are of all seeds."""

    seeds: int
    least_publishes: int
    least_seconds: float
    #: Seeds without a flight, and the median of messages that flew together with others.
    without_flights: int
    median_together: float
    #: In safety mode.
    median_faults: float
    #: Seeds with an unknown outcome and a re-send.
    unknown_and_resent: float
    met: Counter[str]

    @property
    def shortcomings(self) -> list[str]:
        """What the corpus is too poor in."""
        short: list[str] = []
        if self.least_publishes < 50:
            short.append(f"a seed has {self.least_publishes} publishes, not 50")
        if self.least_seconds < 120:
            short.append(f"a seed has {self.least_seconds:.0f} virtual seconds, not 120")
        if self.without_flights > self.seeds // 20:
            short.append(f"{self.without_flights} seeds have no flight, more than one in 20")
        if self.median_together < 2:
            short.append(f"the median of messages that fly together is {self.median_together:g}, not 2")
        if self.seeds >= ENOUGH and self.median_faults < 3:
            short.append(f"the median of faults in safety mode is {self.median_faults}, not 3")
        if self.seeds >= ENOUGH and self.unknown_and_resent < 0.3:
            short.append(f"{self.unknown_and_resent:.0%} of the seeds see an unknown outcome and a re-send, not 30 %")
        return short


def summarize_corpus(summaries: Sequence[Summary]) -> CorpusSummary:
    """Add up what the runs of a corpus were like."""
    met: Counter[str] = Counter()
    for summary in summaries:
        met.update(summary.rows)
    return CorpusSummary(
        seeds=len(summaries),
        least_publishes=min(summary.publishes for summary in summaries),
        least_seconds=min(summary.seconds for summary in summaries),
        without_flights=sum(not summary.flights for summary in summaries),
        median_together=statistics.median([summary.together for summary in summaries]),
        median_faults=statistics.median([each.faults for each in summaries if each.safety] or [0]),
        unknown_and_resent=sum(each.unknown and each.resent for each in summaries) / len(summaries),
        met=met,
    )


def subset(plan: Plan, faults: Iterable[int], calls: Iterable[int]) -> Plan:
    """Return the plan with those of its faults and calls only, by their places."""
    return evolve(
        plan,
        faults=tuple(plan.faults[place] for place in sorted(faults)),
        calls=tuple(plan.calls[place] for place in sorted(calls)),
    )


def shrink(plan: Plan, check: str) -> tuple[list[int], list[int]]:
    """Drop faults and calls as long as the same check still fails; return the places of those that are left."""
    faults, calls = list(range(len(plan.faults))), list(range(len(plan.calls)))
    runs = 0

    def fails(kept_faults: list[int], kept_calls: list[int]) -> bool:
        nonlocal runs
        runs += 1
        findings = summarize(subset(plan, kept_faults, kept_calls)).findings
        return any(finding.check == check for finding in findings)

    for places, other in ((faults, calls), (calls, faults), (faults, calls)):
        step = max(1, len(places) // 2)
        while runs < SHRINK_RUNS:
            at = 0
            while at < len(places) and runs < SHRINK_RUNS:
                rest = places[:at] + places[at + step :]
                if fails(*((rest, other) if places is faults else (other, rest))):
                    places[:] = rest
                else:
                    at += step
            if step == 1:
                break
            step = max(1, step // 2)
    return faults, calls
