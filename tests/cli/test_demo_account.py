"""The demo's account: it balances only when nothing is wrong with it, and says what is."""

from __future__ import annotations

from collections import Counter

import pytest

from warrener._cli import demo_view
from warrener._cli.demo_account import Account
from warrener._publishing.producer import Producer
from warrener.errors import CircuitOpen, NotSent, PublishError, Unconfirmed
from warrener.records import Receipt


def _receipt(name: str, attempts: int = 1) -> Receipt:
    return Receipt(name, attempts=attempts, possible_duplicate=attempts > 1, link=1)


def _account() -> Account:
    """An account that balances and has shown everything."""
    outcomes: dict[str, Receipt | PublishError] = {
        "once": _receipt("once"),
        "twice": _receipt("twice", attempts=2),
        "refused": CircuitOpen("refused", "open", retry_after=1.0),
        "unsure": Unconfirmed("unsure", "no confirm"),
    }
    return Account(
        outcomes=outcomes,
        called=set(outcomes),
        counters={"accepted": 3, "confirmed": 2, "rejected": 0, "nacked": 0, "unknown": 1},
        found=Counter({"once": 1, "twice": 2, "unsure": 1}),
        alarm_seen=True,
    )


def test_a_balanced_account_has_no_faults() -> None:
    """Confirmed once, confirmed twice and flagged, turned away, and unsure but there: all of that is in order."""
    assert _account().faults() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda account: account.found.pop("once"), "1 confirmed messages lost"),
        (lambda account: account.found.update({"once": 1}), "1 duplicates that were not flagged"),
        (
            lambda account: account.found.update({"refused": 1}),
            "1 messages in a queue that were reported as not delivered",
        ),
        (lambda account: account.found.update({"stranger": 1}), "1 messages in a queue that nobody published"),
        (lambda account: account.outcomes.pop("unsure"), "1 messages without an outcome"),
        (lambda account: account.called.add("forgotten"), "1 messages without an outcome"),
        (
            lambda account: account.counters.update({"accepted": 4}),
            "1 accepted messages that were neither confirmed nor ended with an error",
        ),
        (
            lambda account: account.counters.update({"confirmed": 3}),
            "1 confirms that only the producer or only the publishers counted",
        ),
        (lambda account: account.outcomes.update({"twice": _receipt("twice")}), "nothing was re-sent"),
        (lambda account: account.outcomes.update({"refused": NotSent("refused", "x")}), "nothing failed fast"),
        (lambda account: setattr(account, "alarm_seen", False), "the producer did not report the alarm"),
    ],
)
def test_each_fault_is_found_and_named(change: object, words: str) -> None:
    """Whatever is wrong with the account, or missing from the demo, is said in words."""
    account = _account()
    change(account)  # type: ignore[operator]
    assert words in account.faults()


def test_the_account_is_printed_as_sums() -> None:
    """The printed account shows both sums, what was lost and what is there twice."""
    text = "\n".join(_account().lines())
    for part in (
        "4  = 3 accepted + 1 refused at the call",
        "3  = 2 confirmed + 1 ended with an error",
        "lost             0",
        "duplicates       1",
    ):
        assert part in text


@pytest.mark.parametrize("view", ["plain", "rich"])
def test_both_views_show_the_numbers(view: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With rich or without, the view shows state, breaker, attempts, in flight, confirmed, re-sent and failed fast."""
    if view == "rich":
        pytest.importorskip("rich")
    status = Producer("amqp://localhost").status()
    opened = demo_view._rich_view() if view == "rich" else demo_view.open_view(plain=True)
    with opened as shown:
        shown.say("something happened")
        shown.show(demo_view.Snapshot(status=status, confirmed=71, resent=72, failed_fast=73))
    printed = capsys.readouterr().out
    for part in ("something happened", "DISCONNECTED", "breaker", "attempts", "in flight", "71", "72", "73"):
        assert part in printed
