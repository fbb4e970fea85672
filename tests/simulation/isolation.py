"""The check of isolation: a bad destination hurts no message but its own.

What happens to a message is explained by its own destination, its own deadline and the state of the link. So a message to
a sound destination, called while the link has no fault, has the same outcome beside bad destinations as alone, and takes
at most one virtual second longer. The one exception: when the broker closes a channel because of another message, a
message in flight on that channel is sent again, or under `at_most_once` ends as `Unconfirmed`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from tests.simulation.checks import TICK, Evidence, Finding, judge
from tests.simulation.neighbours import BAD, FAULTS_FROM, FIRST_BAD, alone, beside
from tests.simulation.run import simulate
from tests.simulation.trace import LinkRecord, Publish
from tests.simulation.workload import describe
from warrener import PublishRefused, Receipt, Unconfirmed
from warrener.drivers.base import Lane

__all__ = ["compare", "isolation"]

#: How long a target that was mended may stay refused: `refusal_memory` and the probe after it.
MEMORY = 7.0
#: How much longer than alone a sound message may take beside bad destinations.
DELAY = 1.0
#: How long a message to a target that is refused may wait for its `PublishRefused`.
REFUSED_WITHIN = 2.0
#: The reply codes by which a broker closes a channel because of one publish.
EXPLAINED: Final = frozenset({403, 404, 406})


def isolation(seed: int) -> list[Finding]:
    """Run the plan of a seed beside bad destinations and alone, and return what is wrong with either or both."""
    plan = beside(seed)
    with_bad, without = Evidence(simulate(plan)), Evidence(simulate(alone(plan)))
    return [*judge(with_bad), *judge(without), *compare(with_bad, without)]


def compare(with_bad: Evidence, without: Evidence) -> list[Finding]:
    """Return what the bad destinations did to others."""
    findings = {
        "A1 a sound message ends as it does alone": _outcomes(with_bad, without),
        "A2 a sound link stays": _links(with_bad),
        "A3 a guilty message closes the main channel once": _guilty(with_bad),
        "A4 a refused target is told soon": _refused(with_bad),
    }
    findings["A5 the next dial begins with another address"] = _next_address(with_bad)
    return [Finding(name, text) for name, texts in findings.items() for text in texts]


def _sound(seen: Evidence, publish: Publish) -> bool:
    """Whether its destination is well when it is called."""
    if publish.item.number < FIRST_BAD:
        return True
    mended_at = BAD["returning"][1]
    assert mended_at is not None
    return publish.item.address == "returning" and publish.called_at >= mended_at + MEMORY


def _outcomes(with_bad: Evidence, without: Evidence) -> Iterator[str]:
    for publish in with_bad.publishes:
        twin = without.trace.publishes[publish.item.number]
        if not _sound(with_bad, publish) or publish.ended_at is None or twin.ended_at is None:
            continue
        if not isinstance(twin.final, Receipt):
            yield f"message {publish.item.number} ended alone as {twin.final and describe(twin.final)}"
            continue
        if not isinstance(publish.final, Receipt) and not _cut_off_by_another(with_bad, publish):
            yield f"message {publish.item.number} is confirmed alone, and {publish.final and describe(publish.final)}"
        took, took_alone = publish.ended_at - publish.called_at, twin.ended_at - twin.called_at
        if took > took_alone + DELAY:
            yield f"message {publish.item.number} took {took:.3f} s, and {took_alone:.3f} s alone"


def _cut_off_by_another(seen: Evidence, publish: Publish) -> bool:
    """Whether at_most_once forbids to send it again after its channel was closed because of another message."""
    if seen.plan.producer.at_least_once or not isinstance(publish.final, Unconfirmed):
        return False
    ends = [seen.trace.channel_ends.get((attempt.link, attempt.channel)) for attempt in publish.attempts]
    return any(end is not None and end[1] in EXPLAINED for end in ends)


def _links(seen: Evidence) -> Iterator[str]:
    for record in seen.links:
        if record.ended_at is not None and record.ended_at < FAULTS_FROM and not _silent(seen, record):
            yield f"link {record.number} was lost at {record.ended_at:.1f}: {record.fault}"


def _silent(seen: Evidence, record: LinkRecord) -> bool:
    """Whether the broker had answered nothing on the link for `confirm_timeout`, as when only mute queues are left."""
    if record.overdue is None:
        return False
    answers = [each.answered_at or 0.0 for each in seen.trace.attempts.values() if each.link == record.number]
    return record.overdue[1] - max(answers, default=0.0) >= seen.plan.producer.confirm_timeout - TICK


def _guilty(seen: Evidence) -> Iterator[str]:
    """An exchange that no confirm has covered closes no main channel, and no message closes one twice."""
    main = {(each.link, each.channel) for each in seen.trace.attempts.values() if each.lane is Lane.MAIN}
    for epoch, (at, code) in seen.trace.channel_ends.items():
        if epoch in main and code in (403, 404) and at < FAULTS_FROM:
            yield f"the main channel {epoch} was closed with {code} for an exchange that no confirm has covered"
    for publish in seen.publishes:
        closed = [
            each
            for each in publish.attempts
            if each.lane is Lane.MAIN
            and each.answer is None
            and (seen.trace.channel_ends.get((each.link, each.channel)) or (0.0, None))[1] in EXPLAINED
        ]
        if publish.item.poison and len(closed) > 1:
            yield f"message {publish.item.number} closed the main channel {len(closed)} times"


def _next_address(seen: Evidence) -> Iterator[str]:
    """After a dial that failed; the name gives its addresses in one order."""
    if len(seen.network.addresses) < 2:
        return
    firsts = seen.network.first_addresses
    for record, following in itertools.pairwise(seen.links):
        one, other = firsts.get(record.number), firsts.get(following.number)
        if record.opened_at is None and one is not None and one == other:
            yield f"the dials of links {record.number} and {following.number} both begin with {one}"


def _refused(seen: Evidence) -> Iterator[str]:
    for publish in seen.publishes:
        if publish.item.address not in ("absent", "forbidden") or publish.item.number < FIRST_BAD:
            continue
        if publish.ended_at is None or publish.ended_at >= FAULTS_FROM:
            continue
        if _cut_off_by_another(seen, publish):
            continue
        if not isinstance(publish.result, PublishRefused):
            yield f"message {publish.item.number} to {publish.item.address!r}: {publish.result and describe(publish.result)}"
        elif publish.ended_at > publish.called_at + REFUSED_WITHIN + TICK:
            yield f"message {publish.item.number} was refused after {publish.ended_at - publish.called_at:.3f} s"
