"""The cluster run judges what it claims to judge: planted losses and duplicates are counted, and a silence is measured."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.cluster.account import Account, Event, Outcome, read_outcomes, silences, summary
from tests.cluster.plan import KINDS, plan


def told(**verdicts: str) -> list[Outcome]:
    return [Outcome(message_id, verdict, 0.0) for message_id, verdict in verdicts.items()]


def test_a_true_account() -> None:
    """A duplicate that was announced, an unknown message that is there, and one that is not: all as told."""
    account = Account()
    account.settle(told(a="confirmed", b="duplicate?", c="unknown", d="unknown", e="not sent"), ["a", "b", "b", "c"])
    assert account.true
    assert (account.in_queues, account.twice_told) == (4, 1)


@pytest.mark.parametrize(
    ("verdict", "held", "wrong"),
    [
        ("confirmed", [], "lost"),
        ("duplicate?", [], "lost"),
        ("confirmed", ["a", "a"], "twice_untold"),
        ("failed", ["a", "a"], "twice_untold"),
        ("not sent", ["a"], "ghosts"),
        ("confirmed", ["a", "b"], "strangers"),
    ],
)
def test_each_untruth_is_counted(verdict: str, held: list[str], wrong: str) -> None:
    """One message that was told wrongly makes the whole account untrue."""
    account = Account()
    account.settle(told(a=verdict), held)
    assert getattr(account, wrong) == 1
    assert not account.true


def test_a_silence_is_the_longest_time_without_a_confirm() -> None:
    """Within the event only, and of the queue that was affected most; an event without any confirm was dark throughout."""
    events = [Event("kill", True, 10.0, 20.0), Event("kill", True, 30.0, 40.0), Event("freeze", False, 50.0, 60.0)]
    confirms = {
        "0": [9.0, *(10.0 + tenth / 10 for tenth in range(100)), 39.0],
        "1": [9.9, 11.0, 15.0, 19.0, 31.0, 32.0, 33.0, 34.0, 35.0, 36.0, 37.0, 38.0, 39.0],
    }
    found = silences(events, confirms)
    assert found == {"kill, own node": [4.0, 9.0], "freeze, another node": [10.0]}
    assert summary(found)[1] == ("kill, own node", 2, 6.5, 9.0)


def test_a_torn_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves a part of a line."""
    journal = tmp_path / "q.outcomes"
    journal.write_text("a\tconfirmed\t1.5\nb\tconf")
    assert read_outcomes(journal) == [Outcome("a", "confirmed", 1.5)]
    assert read_outcomes(tmp_path / "none") == []


def test_the_plan_follows_from_the_seed() -> None:
    """Every client meets the same events, each kind among them, within its limits."""
    steps = list(islice(plan(7), 200))
    assert steps == list(islice(plan(7), 200))
    assert steps != list(islice(plan(8), 200))
    assert {step.kind for step in steps} == set(KINDS)
    assert all(KINDS[step.kind][0] <= step.hold <= KINDS[step.kind][1] for step in steps)
