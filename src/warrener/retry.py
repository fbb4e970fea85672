"""Retry policies: values that say what happens to a message after each kind of trouble, and explain it in words.

    >>> Retry.at_most_once().fate(Situation.LOST_AFTER_WRITING).error
    'Unconfirmed'

A policy never changes whether a reported outcome is certain (docs/guarantees.md). It only says whether the
producer tries again by itself, within the deadline of the message. All values are pure, except that a `Budget` is an
account: everything that holds the same `Budget` spends from the same tokens.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection
from functools import partial
from typing import Literal, TypeAlias, cast

from attrs import define, field, frozen

from warrener._retry_rules import COSTS, RetryRules
from warrener.errors import SettingsError, printable
from warrener.machine.backoff import Backoff, retry_delay

__all__ = [
    "COSTS",
    "Budget",
    "Cause",
    "Fate",
    "Retry",
    "Situation",
    "Spending",
    "accrued",
    "retry_rules",
    "spent",
]

#: When a message is tried again: its attempt ended and may have arrived, the broker nacked it, it was not written, or its
#: confirm is overdue while the link works.
Cause: TypeAlias = Literal["unknown", "nacked", "not_sent", "overdue"]
_CAUSES = frozenset({"unknown", "nacked", "not_sent", "overdue"})


class Situation(enum.Enum):
    """A situation in which the policy decides about a message."""

    NO_LINK = "there is no link when publish is called"
    BLOCKED = "the broker blocks publishers when publish is called"
    BREAKER_OPEN = "the circuit breaker is open when publish is called"
    LOST_BEFORE_WRITING = "the link is lost before the message is written"
    LOST_AFTER_WRITING = (
        "the link is lost, or the channel is closed, after the message was written and before its confirm"
    )
    OVERDUE = "its confirm is missing for longer than confirm_timeout, while other messages are confirmed"
    NACKED = "the broker nacks the message"
    SUPPRESSED = (
        "the broker nacks the message, and the budget is used up, or its destination has too many messages that wait"
    )
    DEADLINE_AFTER_A_NACK = "its deadline passes during the delay after a nack"
    RETURNED = "the broker returns the message: no queue takes it"
    REFUSED = "the broker refuses the message: 403, 404 or 406"
    DEADLINE_BEFORE_WRITING = "its deadline passes before it is written"
    DEADLINE_AFTER_WRITING = "its deadline passes after it was written"


@frozen
class Fate:
    """What happens to a message in one situation."""

    #: In words, for `Retry.explain`.
    text: str
    #: The name of the error that ends it at once; None: it goes on.
    error: str | None = None
    #: Whether a queue may hold the message then.
    may_have_been_delivered: bool = False


# --- the budget -------------------------------------------------------------------------------------------------------


@frozen
class Spending:
    """The tokens of a budget at the instant `at`."""

    tokens: float
    at: float


@define(eq=False, repr=False)
class _Account:
    spending: Spending | None = None


@frozen(kw_only=True)
class Budget:
    """Limits how much load further attempts add: `ratio` of the accepted messages, plus `floor` for each second.

    It counts in tokens, and forgets within about `window` seconds. A further attempt costs 1 token after a nack, 2 after a
    nack if an earlier attempt of the message has no answer, and 3 for an overdue message. Attempts after a lost link or a
    closed channel, and dials, cost nothing: without them nothing would be sent at all.

    A `Budget` is an account. All policies and producers of one event loop that hold the same object share its tokens; two
    objects with equal values share nothing. Raises `SettingsError` for a value that makes no sense.
    """

    ratio: float = 0.1
    floor: float = 1.0
    window: float = 10.0
    _account: _Account = field(factory=_Account, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("ratio", "floor", "window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise SettingsError(f"budget: {name} must be a finite number, 0 or more, not {printable(value, 60)}")
        if self.window == 0:
            raise SettingsError("budget: window must be more than 0 seconds")
        if self.ratio > 1:
            raise SettingsError(f"budget: ratio must be at most 1, not {self.ratio:g}: more would double the load")

    def first_attempts(self, count: int, at: float) -> None:
        """Note `count` messages that were accepted since the last call; `at` is the present instant, in monotonic seconds."""
        self._account.spending = accrued(self, self._present(at), at, first_attempts=count)

    def paid(self, cost: float, at: float) -> bool:
        """Pay for one more attempt at the instant `at`. False: the budget forbids it, and nothing was paid."""
        self._account.spending, allowed = spent(self, self._present(at), cost, at)
        return allowed

    def _present(self, at: float) -> Spending | None:
        """Return the tokens; those of another event loop, whose clock shows a later time, do not count."""
        spending = self._account.spending
        return None if spending is not None and at < spending.at - self.window else spending


def accrued(budget: Budget, spending: Spending | None, at: float, *, first_attempts: int = 0) -> Spending:
    """Return the tokens at the instant `at`. None: the budget is new, and its floor is full.

    Tokens decay with the time constant `window`, and ``floor`` tokens a second are added, so that an idle budget
    approaches ``floor * window``.
    The first attempts since the last instant are taken to be spread evenly over that time, and decay in the same way.
    """
    full = budget.floor * budget.window
    if spending is None:
        return Spending(full + budget.ratio * first_attempts, at)
    at = max(at, spending.at)
    windows = (at - spending.at) / budget.window
    kept = math.exp(-windows)
    left_of_new = -math.expm1(-windows) / windows if windows > 0 else 1.0
    return Spending(full + (spending.tokens - full) * kept + budget.ratio * first_attempts * left_of_new, at)


def spent(budget: Budget, spending: Spending | None, cost: float, at: float) -> tuple[Spending, bool]:
    """Pay for one more attempt at the instant `at`; False: the budget forbids it, and nothing was paid."""
    now = accrued(budget, spending, at)
    if now.tokens < cost:
        return now, False
    return Spending(now.tokens - cost, now.at), True


# --- the policy ---------------------------------------------------------------------------------------------------------


def _as_causes(on: Collection[Cause]) -> frozenset[Cause]:
    # Anything else stays as it is, and is refused by the check that follows.
    return frozenset(on) if isinstance(on, set | frozenset | tuple | list) else cast("frozenset[Cause]", on)


@frozen(kw_only=True)
class Retry:
    """What a producer does by itself after an attempt that was not confirmed. Raises `SettingsError` for a contradiction.

    The presets are named for their promise: `at_least_once` (the default), `at_most_once`, `persistent`, `fire_and_confirm`.
    """

    #: The outcomes of an attempt after which the message is tried again.
    on: frozenset[Cause] = field(default=frozenset({"unknown", "not_sent"}), converter=_as_causes)
    #: Maximum number of times that a message is written; None: only its deadline limits them.
    attempts: int | None = None
    #: The delay before a message that was nacked is written again; only with "nacked". None: 0.5 to 1 s, then twice that,
    #: up to 15 s.
    backoff: Backoff | None = None
    #: Limits the load of further attempts after a nack and for overdue messages; None: no limit.
    budget: Budget | None = None
    #: Whether an open breaker of the connection refuses new messages. False: they wait in the buffer until their deadline.
    fail_fast: bool = True

    def __attrs_post_init__(self) -> None:
        on: object = self.on
        if not isinstance(on, frozenset) or not on <= _CAUSES:
            raise SettingsError(
                f"retry: `on` must be a set of 'unknown', 'nacked', 'not_sent' and 'overdue', not {printable(on, 80)}"
            )
        attempts: object = self.attempts
        if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
            raise SettingsError(
                f"retry: attempts must be a whole number, at least 1, or None, not {printable(attempts, 60)}"
            )
        for name, kind in (("backoff", Backoff), ("budget", Budget)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise SettingsError(f"retry: {name} must be a {kind.__name__} or None, not {type(value).__name__}")
        if not isinstance(self.fail_fast, bool):
            raise SettingsError(f"retry: fail_fast must be True or False, not {printable(self.fail_fast, 60)}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        again = self.on & {"unknown", "nacked", "overdue"}
        if self.attempts == 1 and again:
            raise SettingsError(
                f"retry: with attempts=1 nothing is written again, but `on` contains {min(again)!r}; drop one of them"
            )
        if not again and self.attempts not in (None, 1):
            raise SettingsError(
                f"retry: attempts={self.attempts} has no effect, because `on` contains neither 'unknown' nor 'nacked' nor "
                "'overdue'; add one of them to `on`, or drop attempts"
            )
        if again and "not_sent" not in self.on:
            raise SettingsError(
                f"retry: `on` contains {min(again)!r}, so it must contain 'not_sent', too: a message may have to wait for a link "
                "before it is written again"
            )
        if "overdue" in self.on and "unknown" not in self.on:
            raise SettingsError(
                "retry: `on` contains 'overdue', so it must contain 'unknown', too: an attempt whose confirm is overdue may have "
                "arrived"
            )
        if self.backoff is not None and "nacked" not in self.on:
            raise SettingsError("retry: backoff is the delay after a nack, but `on` lacks 'nacked'; drop backoff")
        if self.backoff is not None and self.backoff.attempts is not None:
            raise SettingsError(
                f"retry: backoff has attempts={self.backoff.attempts}, which counts dials; give Retry(attempts=…), the number of "
                "times that a message is written, and drop it from backoff"
            )
        if self.budget is not None and not again:
            raise SettingsError("retry: there is a budget, but nothing is written again; drop the budget")
        if not self.fail_fast and "not_sent" not in self.on:
            raise SettingsError(
                "retry: with fail_fast=False a message waits while the breaker is open, but `on` lacks 'not_sent'; add it"
            )

    # --- presets ----------------------------------------------------------------------------------------------------

    @classmethod
    def at_least_once(cls) -> Retry:
        """A message whose outcome is unknown is written again, until its deadline. The default."""
        return cls()

    @classmethod
    def at_most_once(cls) -> Retry:
        """A message waits for a link, and is written once."""
        return cls(on={"not_sent"}, attempts=1)

    @classmethod
    def persistent(cls) -> Retry:
        """As `at_least_once`, and an open circuit breaker turns nothing away: messages wait through an outage."""
        return cls(fail_fast=False)

    @classmethod
    def fire_and_confirm(cls) -> Retry:
        """One attempt, now: a message that cannot be written at once is not sent, and its confirm is waited for."""
        return cls(on=(), attempts=1)

    # --- what happens -----------------------------------------------------------------------------------------------

    def fate(self, situation: Situation) -> Fate:
        """Return what happens to a message in this situation."""
        waits = "not_sent" in self.on
        match situation:
            case Situation.NO_LINK | Situation.BLOCKED:
                return _WAITS if waits else Fate("it is not sent", "NotSent")
            case Situation.BREAKER_OPEN:
                return Fate("it is not sent", "CircuitOpen") if self.fail_fast else _WAITS
            case Situation.LOST_BEFORE_WRITING:
                return Fate("it waits for the next link") if waits else Fate("it is not sent", "NotSent")
            case Situation.LOST_AFTER_WRITING:
                if "unknown" not in self.on:
                    return _UNKNOWN
                limit = "" if self.attempts is None else f", at most {self.attempts} times in all"
                return Fate(f"it is written again on the next link, marked as a possible duplicate{limit}")
            case Situation.OVERDUE:
                return self._when_overdue()
            case Situation.NACKED:
                return self._after_a_nack()
            case Situation.SUPPRESSED:
                again = "nacked" in self.on
                text = 'it ends, and the cause of the error is "suppressed"' if again else "it ends"
                return Fate(text, "Nacked", may_have_been_delivered=True)
            case Situation.DEADLINE_AFTER_A_NACK:
                again = "nacked" in self.on
                text = "it ends" if again else "this does not happen, because a nack ends it"
                return Fate(text, "Nacked", may_have_been_delivered=True)
            case Situation.RETURNED:
                return Fate("it ends; a returned message is never sent again", "Unroutable")
            case Situation.REFUSED:
                return Fate("it ends; a refused message is never sent again", "PublishRefused")
            case Situation.DEADLINE_BEFORE_WRITING:
                return Fate("it ends", "DeadlineExceeded")
            case Situation.DEADLINE_AFTER_WRITING:
                return _UNKNOWN

    def _limits(self) -> str:
        limit = "" if self.attempts is None else f", at most {self.attempts} times in all"
        return limit if self.budget is None else f"{limit}, as far as the budget allows"

    def _when_overdue(self) -> Fate:
        if "overdue" not in self.on:
            return Fate("it waits for its confirm until its deadline")
        return Fate(f"it is written again at once; the first confirm counts; a duplicate is possible{self._limits()}")

    def _after_a_nack(self) -> Fate:
        if "nacked" not in self.on:
            return Fate("it ends", "Nacked", may_have_been_delivered=True)
        backoff = self.backoff or Backoff()
        return Fate(
            f"it is written again after a delay of {backoff.initial:g} s, which grows to {backoff.cap:g} s, marked as a possible "
            f"duplicate{self._limits()}"
        )

    def explain(self) -> str:
        """Return a table, one line for each situation: what happens, and which error the caller gets."""
        lines = [_explained(situation.value, self.fate(situation)) for situation in Situation]
        return "\n".join(lines)


_WAITS = Fate("it waits in the buffer, until its deadline")
_UNKNOWN = Fate("it ends; it is not written again", "Unconfirmed", may_have_been_delivered=True)


def _explained(situation: str, fate: Fate) -> str:
    if fate.error is None:
        return f"{situation}: {fate.text}"
    where = "a queue may hold it" if fate.may_have_been_delivered else "no queue holds it"
    return f"{situation}: {fate.text}; {fate.error} ({where})"


def retry_rules(retry: Retry) -> RetryRules:
    """Return the policy as the ledger needs it. Raises TypeError for anything but a `Retry`."""
    if not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry, not {type(retry).__name__}")
    return RetryRules(
        unknown="unknown" in retry.on,
        nacked="nacked" in retry.on,
        overdue="overdue" in retry.on,
        waits="not_sent" in retry.on,
        fail_fast=retry.fail_fast,
        attempts=retry.attempts,
        delays=partial(retry_delay, retry.backoff or Backoff()),
        tokens=retry.budget,
    )
