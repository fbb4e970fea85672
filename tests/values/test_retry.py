"""Retry policies are pure values: contradictions are refused, and the explanation is what the page prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import warrener.errors
from warrener import Backoff, Budget, Retry, Settings, SettingsError
from warrener.retry import COSTS, Situation, Spending, accrued, spent

PAGE = (Path(__file__).parents[2] / "docs/retry-policies.md").read_text()
PRESETS = {name: getattr(Retry, name)() for name in ("at_least_once", "at_most_once", "persistent", "fire_and_confirm")}
URL = "amqp://localhost/"
#: The tables of the page, by the policy that stands above each.
TABLES = dict(re.findall(r"^`(Retry[^`]*)`:[^\n]*\n\n```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"on": {"lost"}}, ["`on` must be a set of 'unknown', 'nacked', 'not_sent' and 'overdue'", "lost"]),
        ({"on": "unknown"}, ["`on` must be a set", "unknown"]),
        ({"on": 5}, ["`on` must be a set", "5"]),
        ({"attempts": 0}, ["attempts", "at least 1"]),
        ({"attempts": True}, ["attempts", "whole number"]),
        ({"attempts": 1.5}, ["attempts", "whole number"]),
        ({"backoff": 3}, ["backoff must be a Backoff", "int"]),
        ({"budget": 0.1}, ["budget must be a Budget", "float"]),
        ({"fail_fast": None}, ["fail_fast must be True or False"]),
        ({"attempts": 1}, ["attempts=1", "'unknown'"]),
        ({"attempts": 3, "on": {"not_sent"}}, ["attempts=3 has no effect", "`on` contains neither"]),
        ({"on": {"unknown"}}, ["'unknown'", "must contain 'not_sent'"]),
        ({"on": {"nacked"}}, ["'nacked'", "must contain 'not_sent'"]),
        ({"backoff": Backoff()}, ["backoff", "lacks 'nacked'"]),
        (
            {"on": {"nacked", "not_sent"}, "backoff": Backoff(attempts=3)},
            ["backoff has attempts=3", "Retry(attempts=…)"],
        ),
        ({"on": {"overdue", "not_sent"}}, ["'overdue'", "must contain 'unknown'"]),
        ({"on": {"overdue", "unknown"}}, ["must contain 'not_sent'"]),
        ({"on": {"overdue", "unknown", "not_sent"}, "attempts": 1}, ["attempts=1", "'overdue'"]),
        ({"on": {"not_sent"}, "budget": Budget()}, ["budget", "nothing is written again"]),
        ({"on": (), "fail_fast": False}, ["fail_fast=False", "add it"]),
    ],
)
def test_a_contradiction_is_refused_when_it_is_made(policy: dict[str, Any], words: list[str]) -> None:
    """With the reason, and before any message meets it."""
    with pytest.raises(SettingsError) as caught:
        Retry(**policy)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("name", ["ratio", "floor", "window"])
@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1", None, True])
def test_a_budget_that_cannot_be_meant_is_refused(name: str, value: Any) -> None:
    """By the name of its part."""
    with pytest.raises(SettingsError, match=f"budget: {name}"):
        Budget(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("ratio", 1.5)])
def test_a_budget_of_no_use_is_refused(name: str, value: float) -> None:
    """No window, and more further attempts than first ones."""
    with pytest.raises(SettingsError, match=f"budget: {name}"):
        Budget(**{name: value})


@pytest.mark.parametrize("situation", Situation, ids=lambda each: each.name)
@pytest.mark.parametrize("policy", [*PRESETS.values(), Retry(on={"unknown", "nacked", "not_sent"}, budget=Budget())])  # type: ignore[arg-type]
def test_each_cell_agrees_with_the_error_it_names(policy: Retry, situation: Situation) -> None:
    """The error exists, and is as certain as the cell says."""
    fate = policy.fate(situation)
    if fate.error is None:
        assert not fate.may_have_been_delivered
        return
    kind = getattr(warrener.errors, fate.error)
    assert kind.may_have_been_delivered is fate.may_have_been_delivered


def test_the_presets_do_as_they_are_called() -> None:
    """Once, at least once, through outages, at once."""
    assert PRESETS["at_least_once"] == Retry()
    assert PRESETS["at_most_once"].fate(Situation.LOST_AFTER_WRITING).error == "Unconfirmed"
    assert PRESETS["persistent"].fate(Situation.BREAKER_OPEN).error is None
    assert PRESETS["fire_and_confirm"].fate(Situation.NO_LINK).error == "NotSent"
    limited = Retry(attempts=3).fate(Situation.LOST_AFTER_WRITING)
    assert "at most 3 times in all" in limited.text


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_prints_the_explanation(name: str) -> None:
    """docs/retry-policies.md holds the table of each preset, word for word."""
    assert TABLES[f"Retry.{name}()"] == PRESETS[name].explain() + "\n"


def test_every_table_of_the_page_is_what_its_policy_explains() -> None:
    """The policies beside the tables are Python."""
    assert len(TABLES) == 6
    for policy, table in TABLES.items():
        made = eval(policy, {"Retry": Retry, "Budget": Budget})  # noqa: S307 - the text of our own page
        assert made.explain() + "\n" == table


def test_a_nack_is_explained() -> None:
    """With the delay, the limit and the budget."""
    policy = Retry(on={"unknown", "nacked", "not_sent"}, attempts=4, backoff=Backoff(initial=2), budget=Budget())  # type: ignore[arg-type]
    assert policy.fate(Situation.NACKED).text == (
        "it is written again after a delay of 2 s, which grows to 15 s, marked as a possible duplicate, at most 4 times in all, "
        "as far as the budget allows"
    )


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_policy_of_a_producer() -> None:
    """`delivery` names one; `retry` replaces it; together they must agree."""
    assert Settings.resolve(URL, environ={}).retry_policy == Retry.at_least_once()
    assert Settings.resolve(URL, environ={}, delivery="at_most_once").retry_policy == Retry.at_most_once()
    policy = Retry(attempts=3)
    assert Settings.resolve(URL, environ={}, retry=policy).retry_policy is policy
    with pytest.raises(SettingsError, match="delivery is at_most_once, but retry writes messages again"):
        Settings.resolve(URL, environ={}, delivery="at_most_once", retry=policy)
    late = Retry(on={"nacked", "not_sent"}, backoff=Backoff(initial=10, jitter=0.5))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no message would be written again"):
        Settings.resolve(URL, environ={}, retry=late, publish_timeout=5)
    assert Settings.resolve(URL, environ={}, retry=late, publish_timeout=6).retry_policy is late
    overdue = Retry(on={"unknown", "overdue", "not_sent"})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no message would be overdue before its deadline"):
        Settings.resolve(URL, environ={}, retry=overdue, publish_timeout=30)
    with pytest.raises(SettingsError, match="delivery is at_most_once"):
        Settings.resolve(URL, environ={}, retry=overdue, delivery="at_most_once")
    with pytest.raises(SettingsError, match="retry must be a Retry"):
        Settings.resolve(URL, environ={}, retry="persistent")  # type: ignore[arg-type]


# --- the budget -------------------------------------------------------------------------------------------------------

BUDGETS = st.builds(Budget, ratio=st.floats(0, 1), floor=st.floats(0, 10), window=st.floats(0.1, 60))
STEPS = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 20), st.sampled_from([*COSTS.values(), 0.0])), min_size=1, max_size=40
)


@given(BUDGETS, STEPS)
def test_further_attempts_stay_within_the_budget(budget: Budget, steps: list[tuple[float, int, float]]) -> None:
    """All that is paid is at most the full floor, the floor of the time, and the ratio of the first attempts (R14, I27)."""
    spending: Spending | None = None
    at = paid = first = 0.0
    for seconds, attempts, cost in steps:
        at += seconds
        first += attempts
        spending = accrued(budget, spending, at, first_attempts=attempts)
        spending, allowed = spent(budget, spending, cost, at)
        paid += cost if allowed else 0.0
        assert spending.tokens >= 0
    assert paid <= budget.floor * (budget.window + at) + budget.ratio * first + 1e-6


@given(BUDGETS, st.floats(0, 100))
def test_an_idle_budget_comes_to_its_floor(budget: Budget, tokens: float) -> None:
    """It forgets, both ways, within a few windows."""
    later = accrued(budget, Spending(tokens, 0.0), 40 * budget.window)
    assert later.tokens == pytest.approx(budget.floor * budget.window, abs=1e-6)


def test_a_budget_forgets_the_messages_of_long_ago() -> None:
    """1,000 messages, spread over an hour in which nothing was paid, are worth those of about one window."""
    budget = Budget(ratio=0.1, floor=0, window=10)
    budget.first_attempts(0, 0.0)
    budget.first_attempts(1000, 3600.0)

    assert not budget.paid(0.3, 3600.0)
    assert budget.paid(0.27, 3600.0)


def test_equal_budgets_are_two_accounts() -> None:
    """Whoever holds the same object shares its tokens; `==` compares the values."""
    one, other = Budget(floor=0.1), Budget(floor=0.1)
    assert one == other
    assert one.paid(1, 0.0)
    assert not one.paid(1, 0.0)
    assert other.paid(1, 0.0)


def test_a_budget_begins_anew_in_another_event_loop() -> None:
    """Its clock may show an earlier time; a few seconds of difference are not taken for that."""
    budget = Budget(floor=0.1)
    assert budget.paid(1, 1_000_000.0)
    assert not budget.paid(1, 999_995.0)
    assert budget.paid(1, 5.0)


def test_a_budget_does_not_run_backwards() -> None:
    """An older instant counts as the newest one."""
    budget = Budget()
    assert accrued(budget, Spending(3.0, 10.0), 5.0) == Spending(3.0, 10.0)
    assert spent(budget, Spending(0.5, 10.0), 1.0, 10.0) == (Spending(0.5, 10.0), False)
