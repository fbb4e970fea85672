"""The breaker: each of its rules, and a walk against a naive model (I26)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from warrener.errors import SettingsError
from warrener.machine import Breaker, Permit, admit, cooled, failed, released, retry_after, succeeded
from warrener.machine.breaker import spotless
from warrener.testing.strategies import breakers, instants, permits


def tripped(breaker: Breaker, at: float = 0.0) -> Breaker:
    """Fail a closed breaker until it is open."""
    for _ in range(breaker.threshold):
        breaker = failed(breaker, None, at)
    return breaker


@given(breakers(closed=True))
def test_trips_exactly_at_the_threshold(breaker: Breaker) -> None:
    """One failure fewer leaves it closed, the next one opens it."""
    for count in range(1, breaker.threshold):
        breaker = failed(breaker, None, 0.0)
        assert (breaker.state, breaker.failures) == ("closed", count)

    breaker = failed(breaker, None, 7.0)

    assert (breaker.state, breaker.failures, breaker.opened_at) == ("open", breaker.threshold, 7.0)


def test_a_closed_breaker_does_not_count_its_permits() -> None:
    """Everybody is admitted, with one and the same permit of its generation, and the record stays as it is."""
    breaker = Breaker()

    assert admit(breaker, 0.0) == (breaker, Permit(0, 0))
    assert admit(breaker, 1.0)[0] is breaker


@given(breakers(closed=True))
def test_an_ack_starts_the_count_again(breaker: Breaker) -> None:
    """Only failures in a row count."""
    for _ in range(3):
        for _ in range(breaker.threshold - 1):
            breaker = failed(breaker, None, 0.0)
        breaker = succeeded(breaker, None, 0.0)

    assert (breaker.state, breaker.failures) == ("closed", 0)


@given(breakers(closed=True), st.integers(min_value=1, max_value=20))
def test_failures_while_open_count_on_and_do_not_extend_the_cooldown(breaker: Breaker, more: int) -> None:
    """A dial loop that fails all the time must not keep publishers out for ever."""
    opened = tripped(breaker)
    later = opened
    for _ in range(more):
        later = failed(later, None, breaker.cooldown / 2)

    assert later == evolve(opened, failures=breaker.threshold + more)


def test_open_admits_nobody_before_the_cooldown_is_over() -> None:
    """The refusal says how long it will last; at the very end of the cooldown the first probe is granted."""
    breaker = tripped(Breaker(threshold=2, cooldown=30.0), at=100.0)

    assert admit(breaker, 129.9) == (breaker, None)
    assert retry_after(breaker, 110.0) == 20.0
    half_open, permit = admit(breaker, 130.0)
    assert (half_open.state, permit) == ("half_open", Permit(half_open.generation, 1))


@given(breakers(), instants())
def test_who_is_refused_is_told_how_long_to_wait(breaker: Breaker, at: float) -> None:
    """A refusal says more than nothing and at most the cooldown; where a permit is to be had, there is no wait."""
    at = max(at, breaker.opened_at) if breaker.state == "open" else at

    _, permit = admit(breaker, at)

    if permit is None:
        assert 0 < retry_after(breaker, at) <= (breaker.cooldown if breaker.state == "open" else 1.0)
    else:
        assert retry_after(breaker, at) == 0


@given(breakers())
def test_cooled_makes_open_half_open_and_leaves_the_rest(breaker: Breaker) -> None:
    """The timer, or a link that comes up, opens an open breaker halfway; twice is once."""
    after = cooled(breaker)

    assert (after.state == "half_open") == (breaker.state != "closed")
    assert cooled(after) is after
    if breaker.state != "open":
        assert after is breaker


@given(st.integers(min_value=1, max_value=5))
def test_exactly_as_many_permits_as_probes(probes: int) -> None:
    """While half open, `probes` callers are admitted and the next one is told to come back in a second."""
    breaker = cooled(tripped(Breaker(probes=probes)))
    granted = []
    for _ in range(probes):
        breaker, permit = admit(breaker, 0.0)
        granted.append(permit)

    assert len({permit for permit in granted if permit is not None}) == probes
    assert admit(breaker, 0.0) == (breaker, None)
    assert retry_after(breaker, 0.0) == 1.0


def test_a_released_permit_is_granted_anew_and_only_once() -> None:
    """A cancelled probe gives its place to one other caller, however often it is released."""
    breaker, first = admit(cooled(tripped(Breaker())), 0.0)
    assert first is not None
    breaker = released(breaker, first)
    assert released(breaker, first) is breaker
    breaker, second = admit(breaker, 0.0)

    assert second not in (None, first)
    assert admit(released(breaker, first), 0.0)[1] is None


def test_a_probe_decides() -> None:
    """Its ack closes the breaker; its failure opens it for a fresh cooldown."""
    breaker, permit = admit(cooled(tripped(Breaker(threshold=3))), 0.0)

    closed, opened = succeeded(breaker, permit, 50.0), failed(breaker, permit, 50.0)

    assert (closed.state, closed.failures) == ("closed", 0)
    assert (opened.state, opened.failures, opened.opened_at) == ("open", 4, 50.0)


def test_a_failure_of_the_connection_opens_a_half_open_breaker() -> None:
    """A failed dial while half open means a fresh cooldown."""
    breaker = failed(cooled(tripped(Breaker(cooldown=30.0))), None, 80.0)

    assert (breaker.state, retry_after(breaker, 80.0)) == ("open", 30.0)


def test_an_ack_without_a_permit_does_not_close_a_half_open_breaker() -> None:
    """A confirm of what was written before the trip resets the count; only a probe closes."""
    breaker = succeeded(cooled(tripped(Breaker())), None, 0.0)

    assert (breaker.state, breaker.failures) == ("half_open", 0)


@given(breakers(), permits(), instants())
def test_results_of_another_generation_change_nothing(breaker: Breaker, permit: Permit, at: float) -> None:
    """A call that began before the breaker changed its state says nothing about the state it changed to (I26)."""
    if permit.generation == breaker.generation:
        permit = Permit(permit.generation - 1, permit.number)

    assert succeeded(breaker, permit, at) is breaker
    assert failed(breaker, permit, at) is breaker
    assert released(breaker, permit) is breaker


@given(breakers(), instants())
def test_every_result_starts_a_generation_exactly_when_the_state_changes(breaker: Breaker, at: float) -> None:
    """The generation grows by one with each change of state, so that old permits and timers are known."""
    for after in (failed(breaker, None, at), succeeded(breaker, None, at), cooled(breaker), admit(breaker, at)[0]):
        assert (after.generation == breaker.generation + 1) == (after.state != breaker.state)
        assert after.generation - breaker.generation in (0, 1)


class BreakerWalk(RuleBasedStateMachine):
    """Callers, dials and time against one breaker; the model is a few plain variables."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.breaker = Breaker(threshold=3, cooldown=10.0, probes=2)
        self.model = "closed"
        self.failures = 0
        self.opened_at = -math.inf
        #: Permits that still count; emptied whenever the model changes its state.
        self.out: set[Permit] = set()
        self.current: set[Permit] = set()

    def enter(self, model: str) -> None:
        self.model, self.out, self.current = model, set(), set()
        if model == "open":
            self.opened_at = self.at
        if model == "closed":
            self.failures = 0

    @rule(seconds=st.sampled_from((0.0, 0.5, 4.0, 11.0)))
    def time_passes(self, seconds: float) -> None:
        self.at += seconds

    @rule(target=permits)
    def ask(self) -> object:
        if self.model == "open" and self.at >= self.opened_at + 10.0:
            self.enter("half_open")
        expected = self.model == "closed" or (self.model == "half_open" and len(self.out) < 2)

        self.breaker, permit = admit(self.breaker, self.at)

        assert (permit is not None) == expected
        if permit is None:
            return multiple()
        if self.model == "half_open":
            assert permit not in self.current
            self.out.add(permit)
        self.current.add(permit)
        return permit

    @rule(permit=permits)
    def ack(self, permit: Permit) -> None:
        self.breaker = succeeded(self.breaker, permit, self.at)
        if self.model == "closed" and permit in self.current:
            self.failures = 0
            self.note(failure=False)
        elif permit in self.out:
            self.enter("closed")

    @rule(permit=permits)
    def fail(self, permit: Permit) -> None:
        self.breaker = failed(self.breaker, permit, self.at)
        if self.model == "closed" and permit in self.current:
            self.count()
        elif permit in self.out:
            self.failures += 1
            self.enter("open")

    @rule(permit=permits)
    def give_back(self, permit: Permit) -> None:
        self.breaker = released(self.breaker, permit)
        self.out.discard(permit)

    @rule()
    def dial_fails(self) -> None:
        self.breaker = failed(self.breaker, None, self.at)
        if self.model == "half_open":
            self.failures += 1
            self.enter("open")
        else:
            self.count()

    def count(self) -> None:
        self.failures += 1
        if self.model == "closed":
            self.note(failure=True)
            if self.trips():
                self.enter("open")

    def note(self, *, failure: bool) -> None:
        """Only a window keeps results."""

    def trips(self) -> bool:
        return self.failures >= 3

    @rule()
    @precondition(lambda self: self.model == "open")
    def link_comes_up(self) -> None:
        self.breaker = cooled(self.breaker)
        opened_at = self.opened_at
        self.enter("half_open")
        self.opened_at = opened_at

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert (self.breaker.state, self.breaker.failures) == (self.model, self.failures)
        assert len(self.breaker.outstanding) == len(self.out) <= 2


class RateWalk(BreakerWalk):
    """At least three failures, and at least half of the last six results."""

    def __init__(self) -> None:
        self.window: list[tuple[float, bool]] = []
        super().__init__()
        self.breaker = Breaker(threshold=3, cooldown=10.0, probes=2, rate=0.5, over=6)

    def enter(self, model: str) -> None:
        super().enter(model)
        self.window.clear()

    def note(self, *, failure: bool) -> None:
        self.window.append((self.at, failure))

    def counted(self) -> list[bool]:
        return [failure for _, failure in self.window[-6:]]

    def trips(self) -> bool:
        return sum(self.counted()) >= 3 and sum(self.counted()) >= 0.5 * len(self.counted())


class TimedRateWalk(RateWalk):
    """At least three failures, and at least half of the results of the last 20 seconds, counted in slices of 2 seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(threshold=3, cooldown=10.0, probes=2, rate=0.5, within=20.0)

    def counted(self) -> list[bool]:
        return [failure for at, failure in self.window if at // 2.0 > self.at // 2.0 - 10]


TestRateWalk = RateWalk.TestCase
TestRateWalk.settings = settings(stateful_step_count=60)
TestTimedRateWalk = TimedRateWalk.TestCase
TestTimedRateWalk.settings = settings(stateful_step_count=60)
TestBreakerWalk = BreakerWalk.TestCase
TestBreakerWalk.settings = settings(stateful_step_count=60)


# --- a rate in a window ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"rate": 0.0, "over": 10}, "rate must be more than 0"),
        ({"rate": 1.1, "over": 10}, "rate must be more than 0"),
        ({"rate": 0.5}, "a rate needs a window"),
        ({"rate": 0.5, "over": 10, "within": 1.0}, "not both"),
        ({"over": 10}, "give `rate`, too"),
        ({"within": 10.0}, "give `rate`, too"),
        ({"rate": 0.5, "over": 4}, "can never hold threshold=5 failures"),
        ({"rate": 1.0, "over": 1}, "can never hold threshold=5 failures"),
        ({"rate": 0.5, "within": 0.0}, "within must be more than 0"),
        ({"slow": 0.0}, "slow must be more than 0"),
    ],
)
def test_a_contradiction_of_a_variant_is_refused(variant: dict[str, Any], words: str) -> None:
    """When the breaker is made."""
    with pytest.raises(SettingsError, match=words):
        Breaker(**variant)


@pytest.mark.parametrize("window", [{"over": 20}, {"within": 9.0}])
def test_the_settings_of_a_breaker_stay_through_all_its_states(window: dict[str, Any]) -> None:
    """Closed, open, half open, open again and closed again; and after each failure and each permit."""
    names = ("threshold", "cooldown", "probes", "rate", "over", "within", "slow")
    breaker = Breaker(2, 3.0, 4, rate=0.5, slow=1.5, **window)
    settings = [getattr(breaker, name) for name in names]
    seen: list[Breaker] = [failed(breaker, None, 0.0)]
    seen.append(tripped(seen[-1]))
    half, first = admit(seen[-1], 3.0)
    seen += [half, cooled(seen[-1])]
    half, second = admit(half, 3.0)
    assert first is not None
    assert second is not None
    seen += [half, released(half, second), failed(half, first, 4.0), succeeded(half, first, 4.0)]
    assert [each.state for each in seen] == ["closed", "open", *["half_open"] * 4, "open", "closed"]
    assert [[getattr(each, name) for name in names] for each in seen] == [settings] * len(seen)


def results(breaker: Breaker, text: str, seconds: float = 1.0) -> tuple[Breaker, float]:
    """Feed results, one in each `seconds`: "f" is a failure, "." an ack."""
    at = 0.0
    for each in text:
        at += seconds
        breaker = failed(breaker, None, at) if each == "f" else succeeded(breaker, None, at)
    return breaker, at


def test_a_rate_over_the_last_results() -> None:
    """Acks between the failures do not save it; enough acks before them do."""
    breaker = Breaker(threshold=2, rate=0.5, over=4)

    assert results(breaker, "f.f")[0].state == "open"
    assert results(breaker, "f..f")[0].state == "open"
    assert results(breaker, "f...f...f")[0].state == "closed"
    assert results(breaker, "f" + "." * 9 + "f")[0].state == "closed"


def test_a_rate_over_a_time() -> None:
    """Failures leave the window after its seconds."""
    breaker = Breaker(threshold=2, rate=0.5, within=10.0)

    assert results(breaker, "f.f")[0].state == "open"
    assert results(breaker, "ff", seconds=12.0)[0].state == "closed"
    assert len(results(breaker, "." * 500)[0].results.slices) <= 10


def test_a_breaker_is_spotless_when_no_failure_is_in_its_window() -> None:
    """Then it can be forgotten."""
    for variant, acks in ((Breaker(), 1), (Breaker(rate=0.5, over=6), 6), (Breaker(rate=0.5, within=5.0), 5)):
        assert spotless(variant, 0.0)
        breaker, at = results(variant, "f" + "." * (acks - 1))
        assert not spotless(breaker, at)
        breaker = succeeded(breaker, None, at + 1.0)
        assert spotless(breaker, at + 1.0)
        assert not spotless(tripped(variant), 0.0)


@given(st.lists(st.booleans(), max_size=40), st.integers(3, 12), st.floats(0.1, 1))
def test_a_rate_trips_exactly_when_the_window_says_so(outcomes: list[bool], over: int, rate: float) -> None:
    """Beside a list of the last results."""
    breaker = Breaker(threshold=3, rate=rate, over=over)
    seen: list[bool] = []
    for outcome in outcomes:
        breaker = failed(breaker, None, 0.0) if outcome else succeeded(breaker, None, 0.0)
        seen = [*seen, outcome][-over:]
        if outcome and sum(seen) >= 3 and sum(seen) >= rate * len(seen):
            assert breaker.state == "open"
            return
        assert breaker.state == "closed"


def test_results_of_one_instant_are_counted_together() -> None:
    """However many there are, and if the clock stands still: what is kept is bounded."""
    breaker = Breaker(2000, rate=1.0, within=10.0)
    for number in range(1000):
        breaker = failed(breaker, None, 5.0 if number % 2 else 4.0)
        assert len(breaker.results.slices) <= 2
    assert sum(count for _, count, _ in breaker.results.slices) == 1000
