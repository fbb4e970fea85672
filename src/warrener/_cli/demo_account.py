"""The demo's account: compares the publishers' outcomes with the messages that another client found in the queues.

The account balances only if every call has exactly one outcome, every confirmed message is in a queue, every message in a
queue was published, no message that was reported as not delivered is in a queue, and every duplicate was flagged as a
possible duplicate. The demo fails too if it has shown nothing: no message was re-sent, no call failed fast, or no alarm
was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import define, field

from warrener.errors import CircuitOpen, PublishError
from warrener.records import Receipt

__all__ = ["Account"]


@define
class Account:
    """The outcome of each message, as its publisher got it, and the messages that were found in the queues."""

    outcomes: dict[str, Receipt | PublishError] = field(factory=dict[str, Receipt | PublishError])
    #: The ids under which the publishers called; each must have an outcome in the end.
    called: set[str] = field(factory=set[str])
    #: The producer's own counters, for comparison.
    counters: Mapping[str, int] = field(factory=dict[str, int])
    found: Counter[str] = field(factory=Counter[str])
    alarm_seen: bool = False

    @property
    def confirmed(self) -> dict[str, Receipt]:
        """The messages that the broker confirmed."""
        return {one: outcome for one, outcome in self.outcomes.items() if isinstance(outcome, Receipt)}

    @property
    def otherwise(self) -> dict[str, PublishError]:
        """The messages that ended with an error."""
        return {one: outcome for one, outcome in self.outcomes.items() if isinstance(outcome, PublishError)}

    @property
    def accepted(self) -> int:
        """Number of messages that the producer accepted; it refused the others at the call."""
        return self.counters["accepted"]

    @property
    def reported_otherwise(self) -> int:
        """Number of accepted messages that ended without a confirm."""
        return sum(self.counters[name] for name in ("rejected", "nacked", "unknown"))

    @property
    def failed_fast(self) -> int:
        """Number of calls that the open breaker refused."""
        return sum(isinstance(outcome, CircuitOpen) for outcome in self.outcomes.values())

    @property
    def resent(self) -> int:
        """Number of messages that were written more than once."""
        return sum(receipt.attempts > 1 for receipt in self.confirmed.values())

    @property
    def duplicates(self) -> dict[str, int]:
        """The messages that are in the queues more than once."""
        return {one: count for one, count in self.found.items() if count > 1}

    def _flagged(self, message_id: str) -> bool:
        outcome = self.outcomes.get(message_id)
        if isinstance(outcome, Receipt):
            return outcome.possible_duplicate
        return outcome is not None and outcome.may_have_been_delivered

    def faults(self) -> list[str]:
        """Return the errors of the account, and the events that the demo should have shown and did not."""
        lost = [one for one in self.confirmed if not self.found[one]]
        unflagged = [one for one in self.duplicates if not self._flagged(one)]
        ghosts = [one for one, error in self.otherwise.items() if not error.may_have_been_delivered and self.found[one]]
        strangers = [one for one in self.found if one not in self.called]
        claims = [
            (len(self.called - self.outcomes.keys()), "messages without an outcome"),
            (
                abs(self.counters["confirmed"] - len(self.confirmed)),
                "confirms that only the producer or only the publishers counted",
            ),
            (
                abs(self.accepted - len(self.confirmed) - self.reported_otherwise),
                "accepted messages that were neither confirmed nor ended with an error",
            ),
            (len(lost), "confirmed messages lost"),
            (len(unflagged), "duplicates that were not flagged"),
            (len(ghosts), "messages in a queue that were reported as not delivered"),
            (len(strangers), "messages in a queue that nobody published"),
        ]
        wrong = [f"{count} {text}" for count, text in claims if count]
        shown = [
            (self.resent > 0, "nothing was re-sent"),
            (self.failed_fast > 0, "nothing failed fast"),
            (self.alarm_seen, "the producer did not report the alarm"),
        ]
        return wrong + [text for holds, text in shown if not holds]

    def lines(self) -> list[str]:
        """Return the lines of the account."""
        kinds = Counter(type(error).__name__ for error in self.otherwise.values())
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "nothing"
        turned_away = len(self.called) - self.accepted
        lost = sum(not self.found[one] for one in self.confirmed)
        flagged = sum(self._flagged(one) for one in self.duplicates)
        extra = sum(self.found[one] > 0 for one in self.otherwise)
        rows = [
            ("calls", len(self.called), f"= {self.accepted} accepted + {turned_away} refused at the call"),
            (
                "accepted",
                self.accepted,
                f"= {len(self.confirmed)} confirmed + {self.reported_otherwise} ended with an error",
            ),
            ("confirmed", len(self.confirmed), f"{self.resent} of them were written more than once"),
            ("errors", len(self.otherwise), f"refused or not confirmed: {told}"),
            ("in queues", self.found.total(), f"{len(self.found)} different messages, {extra} of them unconfirmed"),
            ("lost", lost, "confirmed, and in no queue"),
            ("duplicates", len(self.duplicates), f"{flagged} of them flagged as possible duplicates"),
        ]
        return [f"  {name:<11}{number:>7}  {text}" for name, number, text in rows]
