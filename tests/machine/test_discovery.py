"""A walk with `Policy.discovery`: brokers come and go, and a model says which endpoint each dial has to go to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from warrener.errors import Fault, FaultKind
from warrener.machine import (
    Backoff,
    EndpointRecord,
    Endpoints,
    Event,
    Policy,
    Record,
    _discovering,
    effects,
    events,
    initial,
    states,
    transition,
)
from warrener.machine.endpoints import found

REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)
LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
DOWN = Fault(FaultKind.LOOKUP, "endpoints() raised ConnectionError")
POLICY = Policy(backoff=Backoff(initial=1, cap=8, jitter=0, attempts=6), breaker=None, discovery=True)

#: The brokers of the world, by name.
NAMES = "abcd"


class Walk(RuleBasedStateMachine):
    """One producer. The model: the names behind the indexes, and for each name its failures."""

    def __init__(self) -> None:
        super().__init__()
        self.record: Record = initial()
        self.at = 0.0
        self.names: list[str] = []
        self.failures: dict[str, int] = {}
        #: The names that this pass has dialed.
        self.dialed: list[str] = []
        self.timers = 0

    def feed(self, event: Event) -> None:
        step = transition(self.record, event, POLICY)
        self.record = step.record
        for effect in step.effects:
            match effect:
                case effects.CancelTimer("retry"):
                    self.timers = 0
                case effects.StartRetryTimer():
                    assert self.timers == 0, "two questions at once"
                    self.timers = 1
                case effects.Dial(endpoint=index):
                    assert 0 <= index < len(self.names), "an endpoint that is not in the list"
                    name = self.names[index]
                    assert name not in self.dialed, "dialed twice in one pass"
                    self.dialed.append(name)
                case _:
                    pass

    @initialize()
    def start(self) -> None:
        self.feed(events.StartRequested(self.at, ()))
        assert self.record.state == states.Waiting(0)

    @rule(seconds=st.sampled_from((0.1, 1.0, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.at += seconds

    @precondition(lambda self: isinstance(self.record.state, states.Waiting))
    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    def the_program_answers(self, names: list[str]) -> None:
        """The answer is dialed: new names first, those that are known behind them."""
        kept = tuple(self.names.index(name) if name in self.names else None for name in names)
        new = [name for name in names if name not in self.names]
        self.failures = {name: self.failures.get(name, 0) if name in self.names else 0 for name in names}
        self.names, self.dialed, self.timers = names, [], 0
        self.feed(events.EndpointsFound(self.record.link, kept, tuple(range(len(names))), self.at))
        assert isinstance(self.record.state, states.Dialing)
        assert not new or self.dialed == new[:1]

    @precondition(lambda self: isinstance(self.record.state, states.Waiting))
    @rule()
    def the_program_fails(self) -> None:
        """Known endpoints are dialed; without one, the attempt is over."""
        self.dialed, self.timers = [], 0
        self.feed(events.DiscoveryFailed(self.record.link, DOWN, self.at))
        assert isinstance(self.record.state, states.Dialing) == bool(self.names)
        assert self.record.last_fault == DOWN

    @precondition(lambda self: isinstance(self.record.state, states.Dialing))
    @rule(fault=st.sampled_from((REFUSED, PASSWORD)))
    def the_dial_fails(self, fault: Fault) -> None:
        self.failures[self.dialed[-1]] += 1
        self.feed(events.DialFailed(self.record.link, fault, self.at))

    @precondition(lambda self: isinstance(self.record.state, states.Dialing))
    @rule(proven=st.booleans())
    def the_link_lives_and_dies(self, proven: bool) -> None:
        """A proven link ends the pass: what follows its loss is a new question."""
        link, name = self.record.link, self.dialed[-1]
        self.feed(events.LinkOpened(link, self.at))
        self.feed(events.TopologyRestored(link, self.at))
        if proven:
            self.feed(events.PublishConfirmed(link, self.at))
            self.failures[name] = 0
        self.failures[name] += 1
        self.feed(events.LinkLost(link, LOST, self.at))
        assert not proven or isinstance(self.record.state, states.Waiting)

    @precondition(lambda self: isinstance(self.record.state, (states.Waiting, states.GaveUp)))
    @rule()
    def a_hint(self) -> None:
        """It asks at once, at most once a second, and dials nothing before the answer."""
        obeyed = self.at - self.record.hinted_at >= 1.0
        dialed = list(self.dialed)
        self.feed(events.ReconnectRequested(self.at))
        assert self.dialed == dialed
        assert not obeyed or isinstance(self.record.state, states.Waiting)

    @precondition(lambda self: isinstance(self.record.state, (states.Waiting, states.Dialing)))
    @rule(kept=st.lists(st.none() | st.integers(min_value=0, max_value=5), max_size=4))
    def a_late_answer(self, kept: list[int | None]) -> None:
        """An answer to an old question changes nothing."""
        before = self.record
        self.feed(events.EndpointsFound(self.record.link - 1, tuple(kept), tuple(range(len(kept))), self.at))
        self.feed(events.DiscoveryFailed(self.record.link - 1, DOWN, self.at))
        assert self.record is before

    @invariant()
    def every_wait_has_one_question(self) -> None:
        assert self.timers == int(isinstance(self.record.state, states.Waiting))

    @invariant()
    def every_endpoint_keeps_its_failures(self) -> None:
        endpoints = self.record.endpoints
        assert sorted(endpoints.queue) == list(range(len(self.names)))
        assert {name: endpoints.records[index].failures for index, name in enumerate(self.names)} == self.failures


TestDiscovery = Walk.TestCase
TestDiscovery.settings = settings(stateful_step_count=40)


def _forgets_the_failures(before: Endpoints, kept: Any, order: Any) -> Endpoints:
    after = found(before, kept, order)
    return evolve(after, records=tuple(EndpointRecord() for _ in after.records))


def _forgets_an_endpoint(before: Endpoints, kept: Any, order: Any) -> Endpoints:
    after = found(before, kept, order)
    return evolve(after, queue=after.queue[:-1]) if len(after.queue) > 1 else after


def _known_ones_first(before: Endpoints, kept: Any, order: Any) -> Endpoints:
    after = found(before, kept, order)
    return evolve(after, queue=after.queue[::-1])


@pytest.mark.full
@pytest.mark.parametrize("planted", [_forgets_the_failures, _forgets_an_endpoint, _known_ones_first])
def test_the_walk_notices(planted: Callable[..., Endpoints], monkeypatch: pytest.MonkeyPatch) -> None:
    """Known mistakes of clients that look their brokers up, planted one at a time."""
    monkeypatch.setattr(_discovering, "found", planted)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            Walk,
            settings=settings(
                max_examples=300,
                stateful_step_count=20,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
