"""The fold of outcomes over attempts (R5) and its algebra (I16)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener._publishing.ledger import Verdict, fold, verdict_of
from warrener.errors import DeadlineExceeded, Nacked, NotSent, PublishRefused, Unconfirmed, Unroutable
from warrener.records import Receipt

verdicts = st.lists(st.sampled_from(Verdict))
C, U, N, R = Verdict.CONFIRMED, Verdict.UNKNOWN, Verdict.NACKED, Verdict.REJECTED


def test_the_table() -> None:
    """Any confirmed wins; else any unknown; else any nacked; else rejected."""
    table = {
        (C, C): C, (C, U): C, (C, N): C, (C, R): C,
        (U, U): U, (U, N): U, (U, R): U,
        (N, N): N, (N, R): N,
        (R, R): R,
    }  # fmt: skip
    assert {pair: fold(pair) for pair in table} == table


@given(verdicts)
def test_order_does_not_matter(attempts: list[Verdict]) -> None:
    """Commutative: every permutation folds alike."""
    assert {fold(each) for each in itertools.permutations(attempts[:5])} == {fold(attempts[:5])}


@given(verdicts, verdicts, verdicts)
def test_grouping_does_not_matter(one: list[Verdict], two: list[Verdict], three: list[Verdict]) -> None:
    """Associative: folding folds is folding all."""
    assert fold((fold((fold(one), fold(two))), fold(three))) == fold(one + two + three)


@given(verdicts)
def test_repetition_does_not_matter(attempts: list[Verdict]) -> None:
    """Idempotent."""
    assert fold(attempts * 2) == fold(attempts)


@given(verdicts, st.sampled_from(Verdict))
def test_another_attempt_never_lowers_the_outcome(attempts: list[Verdict], another: Verdict) -> None:
    """Monotone in C > U > N > R, and rejected is the neutral element."""
    assert fold([*attempts, another]) >= fold(attempts)
    assert fold([*attempts, R]) == fold(attempts)


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (Receipt("m", 1, False, 1), C),
        (Unconfirmed("m", "r"), U),
        (Nacked("m", "r"), N),
        (Unroutable("m", "r"), R),
        (NotSent("m", "r"), R),
        (DeadlineExceeded("m", "r"), R),
        (PublishRefused("m", "r", reply_code=404, reply_text="t"), R),
        (PublishRefused("m", "r", reply_code=404, reply_text="t", may_have_been_delivered=True), U),
    ],
)
def test_every_outcome_states_a_verdict(result: object, verdict: Verdict) -> None:
    """What callers are told is one of the four."""
    assert verdict_of(result) is verdict  # type: ignore[arg-type]
