"""The service under load, while its broker is killed, blocked, flooded, restarted and frozen; tests/ml/load.py tells the story."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.ml import load
from tests.ml.load import Answer, Phase, Report


@pytest.mark.broker
@pytest.mark.full
def test_every_answer_is_true_in_every_condition_of_the_broker(start_service, rabbitmq) -> None:
    """Each 202 is in a queue, nothing refused is, duplicates were announced, no answer is late, and memory is bounded."""
    service = start_service(rabbitmq.url, load.ENVIRONMENT, **load.SETTINGS)
    service.wait_log("-> up")
    report = load.run(service, rabbitmq, 4.0)
    print(*report.lines(), sep="\n")
    statuses = {phase.name: phase.statuses() for phase in report.phases}
    assert report.faults() == []
    # It did show something: every kind of answer, and none but 202 while all was well.
    assert {202} == set(statuses["well"]) == set(statuses["well again"]) == set(statuses["well in the end"])
    assert {503} == set(statuses["blocked and flooded"])
    assert statuses["back"][503]
    assert statuses["frozen (SIGSTOP)"][504]
    # A held body is there a few times over (bytes, text, message, frames); and of every connection, of those that are
    # refused too, the server reads ahead.
    grown = max(phase.memory for phase in report.phases) - report.memory_before
    assert grown < 4 * load.MAX_HELD + load.FLOOD * 10 * 64 * 1024


def answer(status: int, *, seconds: float = 0.1, may: bool = False, duplicate: bool = False) -> Answer:
    return Answer(status, seconds, may, duplicate)


def report(answers: dict[str, Answer], **found: int) -> Report:
    return Report([Phase("well", answers)], Counter(found), 0)


def test_a_true_account_has_no_faults() -> None:
    """Confirmed and there; refused and not; unknown, either way; twice, and announced."""
    answers = {
        "a": answer(202), "b": answer(503), "c": answer(504, may=True), "d": answer(504, may=True),
        "e": answer(202, duplicate=True),
    }  # fmt: skip
    assert [] == report(answers, a=1, c=2, e=2).faults()


@pytest.mark.parametrize(
    ("answers", "found", "fault"),
    [
        ({"a": answer(202)}, {}, "1 202 and in no queue"),
        ({"a": answer(503)}, {"a": 1}, "1 refused, and in a queue"),
        ({}, {"a": 1}, "1 in a queue, and nobody was answered"),
        ({"a": answer(202)}, {"a": 2}, "1 twice in a queue, and nobody was told"),
        ({"a": answer(503, seconds=60)}, {}, "1 answered later than 34 s"),
        ({"a": answer(500)}, {}, "1 with another status"),
    ],
)
def test_each_fault_is_found(answers, found, fault) -> None:
    """What the account of the test above rests on."""
    assert [fault] == report(answers, **found).faults()
