"""The corpus of seeds: it finds nothing, it is the same each time, and it meets what it has to meet."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from attrs import evolve

from tests.simulation import corpus, coverage, schedule
from tests.simulation.__main__ import main, run_corpus
from tests.simulation.checks import Evidence, Finding
from tests.simulation.corpus import Summary, run_seed, shrink, smoke, subset, summarize_corpus
from tests.simulation.run import simulate
from tests.simulation.schedule import draw

ROOT = Path(__file__).resolve().parents[2]

HASHES = """
from tests.simulation.schedule import draw
from tests.simulation.run import simulate
print([simulate(draw(seed)).hash for seed in (3, 9, 155)])
"""


def test_nothing_is_found() -> None:
    """The first seeds of the corpus pass every check; `make test` runs 500 of them, `make test-full` 2,000."""
    assert [] == [(seed, findings) for seed in range(10) if (findings := run_seed(seed).findings)]


def test_a_hundred_publishes_without_a_fault() -> None:
    """The smoke test that a mutant has to pass: 100 confirmed, nothing found."""
    summary = smoke()

    assert ((), 100) == (summary.findings, summary.publishes)


@pytest.mark.slow
def test_equal_seeds_have_equal_traces_in_every_process() -> None:
    """A seed is the whole truth: neither the process, nor the salt of its hashes, nor what ran before changes a trace."""
    here = [simulate(draw(seed)).hash for seed in (155, 9, 3)][::-1]
    for salt in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", HASHES],
            env=os.environ | {"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        )

        assert str(here) == told.stdout.strip()


def test_the_wall_clock_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that jumps by days, both ways, changes nothing (row 45, R23)."""
    steady = simulate(draw(9)).hash
    readings = iter(range(1, 10_000_000))
    monkeypatch.setattr(time, "time", lambda: (-1) ** (reading := next(readings)) * 86_400.0 * reading % 1e9)

    assert steady == simulate(draw(9)).hash


def test_a_trace_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed of the sample that runs twice is compared with itself."""
    times = iter((0.0, 1.0))
    monkeypatch.setattr(corpus, "draw", lambda seed: evolve(draw(seed), sync_interval=next(times)))

    assert ["R22 equal seed, equal trace"] == [finding.check for finding in run_seed(0).findings]


def test_the_streams_of_a_seed_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw another workload reshuffles neither the network nor the settings nor the kinds of faults."""
    plan = draw(21)
    workload = schedule._workload
    monkeypatch.setattr(schedule, "_workload", lambda *args, **options: workload(*args, **options)[::2])
    other = draw(21)

    assert plan.calls != other.calls
    assert (plan.producer, plan.network, plan.brokers) == (other.producer, other.network, other.brokers)
    assert plan.kinds == other.kinds


@pytest.mark.slow
def test_a_failing_plan_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failure does not need is dropped: here all but one fault and one call."""

    def judge(seen: Evidence) -> list[Finding]:
        resets = [fault for fault in seen.plan.faults if fault.kind == "rst"]
        return [Finding("a check", "")] if resets and len(seen.plan.calls) >= 1 else []

    monkeypatch.setattr(corpus, "judge", judge)
    plan = next(plan for plan in map(draw, range(100)) if "rst" in plan.kinds and len(plan.kinds) > 5)
    faults, calls = shrink(plan, "a check")

    assert (1, 1) == (len(faults), len(calls))
    assert "rst" == subset(plan, faults, calls).faults[0].kind


def test_one_seed_tells_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    """`--seed` replays a seed, `--faults` and `--calls` a part of it."""
    assert 0 == main(["--seed", "3", "--faults", "0", "--calls", ","])
    story = capsys.readouterr().out

    assert 1 == story.count("FAULT")
    assert "link 1: dial" in story
    assert "all is well" in story


@pytest.mark.slow
def test_a_failing_seed_is_printed_with_the_way_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure names seed, check and a command; the status is not 0."""
    monkeypatch.setattr(corpus, "judge", lambda seen: [Finding("a check", "it is wrong")])

    assert 1 == run_corpus(range(4, 5), processes=1)
    told = capsys.readouterr().out
    assert "seed 4 fails" in told
    assert "a check: it is wrong" in told
    assert "python -m tests.simulation --seed 4 --faults , --calls ," in told


# --- reachability -----------------------------------------------------------------------------------------------------


def test_every_row_of_the_matrix_is_in_the_table() -> None:
    """Rows 1 to 55 once each, and the six sequences; each is met, tested or excluded, five excluded at most."""
    names = [row.name for row in coverage.ROWS]

    assert [str(number) for number in range(1, 56)] == names[:55]
    assert ["F3", "F4", "F7", "I30", "F11", "R11"] == names[55:]
    assert all(row.met is not None or row.tests or row.excluded for row in coverage.ROWS)
    assert len([row for row in coverage.ROWS if row.excluded]) <= coverage.MOST_EXCLUSIONS


@pytest.mark.parametrize("test", sorted({test for row in coverage.ROWS for test in row.tests}))
def test_a_test_that_reaches_a_row_exists(test: str) -> None:
    """Each test that the table names is there."""
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text())

    assert name in {getattr(node, "name", "") for node in tree.body}


def test_a_row_that_is_never_met_is_missing() -> None:
    """The table says NEVER, and the names of what is missing are those that runs have to meet."""
    lines, missing = coverage.table({"1": 3}, 10)

    assert {row.name for row in coverage.ROWS if row.met is not None} - {"1"} == set(missing)
    assert "3 of 10 seeds" in lines[0]
    assert "NEVER" in lines[1]


@pytest.mark.parametrize(
    ("summary", "word"),
    [
        ({"publishes": 49}, "publishes"),
        ({"seconds": 119.0}, "seconds"),
        ({"faults": 2}, "median"),
        ({"flights": 0}, "no flight"),
        ({"together": 1}, "fly together"),
        ({"resent": False}, "re-send"),
    ],
)
def test_a_poor_corpus_is_told(summary: dict[str, float], word: str) -> None:
    """Fewer publishes, seconds, faults or unknown outcomes than promised fail the run."""
    good = Summary(1, True, (), frozenset(), 50, 120.0, 3, 9, 9, True, True, "")
    rich, poor = summarize_corpus([good] * 1000), summarize_corpus([evolve(good, **summary)] * 1000)

    assert [] == rich.shortcomings
    assert [True] == [word in text for text in poor.shortcomings]


def test_the_figures_count_rows() -> None:
    """How many seeds met a row is added up."""
    one = Summary(1, True, (), frozenset({"1", "2"}), 50, 120.0, 3, 9, 9, True, True, "")

    assert Counter({"1": 2, "2": 1}) == summarize_corpus([one, evolve(one, rows=frozenset({"1"}))]).met
