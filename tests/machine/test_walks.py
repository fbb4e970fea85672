"""A guided walk: nine events in ten are about the live link, and a simple model of the link says which answer is right.

Random lists of events pass with a planted bug (a `PublishingBlocked` forgotten while `Restoring`), since they hardly ever
get a link up; a walk that follows the machine's own orders finds it at once.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from warrener.errors import Fault, FaultKind
from warrener.machine import (
    Backoff,
    Breaker,
    Event,
    Permit,
    Policy,
    Record,
    effects,
    events,
    initial,
    states,
    transition,
)

LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
MISMATCH = Fault(FaultKind.TOPOLOGY, "PRECONDITION_FAILED", reply_code=406, entity="queue 'tasks'")
GONE = Fault(FaultKind.CHANNEL_CLOSED, "NOT_FOUND", reply_code=404)

POLICY = Policy(
    backoff=Backoff(cap=60, jitter=0, attempts=4), breaker=Breaker(threshold=3, cooldown=20.0, probes=2), prefer="first"
)

#: Not visible to the machine: how far the link is that was ordered last.
NONE, DIALED, OPENED, LET_IN = "no link", "dialed", "opened", "let in"

#: Reports and timers of a link that has ended, from a task or a timer that was late.
OLD: tuple[Callable[[int, float], Event], ...] = (
    events.LinkOpened,
    events.LinkClosed,
    events.TopologyRestored,
    events.RetryTimerFired,
    events.StableTimerFired,
    events.CloseTimerFired,
    events.PublishingBlocked,
    events.PublishingUnblocked,
    events.ConfirmOverdue,
    events.PublishConfirmed,
    lambda link, at: events.LinkLost(link, LOST, at),
    lambda link, at: events.DialFailed(link, REFUSED, at),
    lambda link, at: events.ChannelClosed(link, GONE, at),
)


class Walk(RuleBasedStateMachine):
    """One producer and its broker. The model: where the link is, what was ordered, and counts kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.log: list[Event] = []
        self.restart()

    def restart(self) -> None:
        """A new producer; its predecessor has closed."""
        self.replay()
        self.record: Record = initial()
        self.log = []
        self.link = 0
        self.phase = NONE
        self.ending = False  # told to close or abort the link
        self.blocked = False
        self.proven = False
        self.sender = "stopped"
        self.timers: dict[str, object] = {}
        self.attempts = 0
        self.failures = 0
        self.gave_up = False
        self.stopped = False
        self.finished = False
        self.draining = False
        self.permits: list[Permit] = []
        self.storm: list[float] = []
        self.hinted_at = -10.0
        #: The endpoints that can still be dialed in this pass, first the next; when each is ready, and its failures.
        self.order: list[int] = []
        self.untried: set[int] = set()
        self.first_of_pass = True
        self.ready_at: dict[int, float] = {}
        self.failed: dict[int, int] = {}
        self.address: dict[int, int] = {}
        self.endpoint = 0
        self.was_up = False
        self.refused: set[int] = set()
        #: The endpoint to which the link is being handed over.
        self.target: int | None = None
        self.forced: int | None = None
        self.wait_is_over = False
        self.breaker, self.run, self.out, self.generation = "closed", 0, set[Permit](), 0

    # --- feeding the machine, and doing what it orders ---------------------------------------------------------------

    def feed(self, event: Event) -> tuple[effects.Effect, ...]:
        self.log.append(event)
        step = transition(self.record, event, POLICY)
        self.record = step.record
        for effect in step.effects:
            self.perform(effect)
        return step.effects

    def perform(self, effect: effects.Effect) -> None:  # noqa: C901 - one case for each effect
        assert not self.finished, f"{effect} after Finish"
        match effect:
            case effects.Dial(link, endpoint, address):
                assert self.phase is NONE, "a second link"
                self.takes(endpoint, address)
                assert link == self.link + 1
                assert "retry" not in self.timers, "the retry timer still runs"
                self.link, self.phase, self.ending, self.blocked, self.proven = link, DIALED, False, False, False
                self.storm = []
            case effects.ReplayTopology(link):
                assert (link, self.phase) == (self.link, OPENED)
            case effects.StartPublishing(link):
                self.was_up = True
                assert (link, self.phase, self.ending) == (self.link, LET_IN, False)
                assert self.sender != "open"
                self.sender = "open"
            case effects.PausePublishing(link):
                self.was_up = True
                assert (link, self.phase) == (self.link, LET_IN)
                assert self.sender != "paused"
                self.sender = "paused"
            case effects.StopPublishing(link):
                assert link == self.link
                assert self.sender != "stopped"
                self.sender = "stopped"
            case effects.CloseLink(link) | effects.AbortLink(link):
                assert link == self.link
                assert self.phase is not NONE
                assert self.target is None or self.stopped or self.wait_is_over, "closed before the confirms"
                self.ending = True
            case effects.StartRetryTimer(link, shortest, longest):
                assert "retry" not in self.timers
                assert 0.1 <= shortest == longest <= 60.0
                self.timers["retry"] = link
            case effects.StartStableTimer(link):
                self.timers["stable"] = link
            case effects.StartPreferTimer(link):
                self.timers["prefer"] = link
            case effects.StartHandOverTimer(link):
                self.timers["hand_over"] = link
            case effects.ReportSettled(link):
                assert (link, self.phase, self.sender == "open") == (self.link, LET_IN, False)
            case effects.StartCooldownTimer(generation):
                self.timers["cooldown"] = generation
            case effects.StartDrainTimer():
                self.timers["drain"] = True
            case effects.StartCloseTimer(link):
                self.timers["close"] = link
            case effects.CancelTimer(timer):
                self.timers.pop(timer, None)
            case effects.FailPending():
                self.gave_up = True
            case effects.RefusePublishing(fault):
                assert self.refused == set(self.order), "an endpoint does not refuse for good"
                assert not self.was_up or fault.kind is FaultKind.TOPOLOGY, "messages could wait"
            case effects.Finish():
                self.finished = True
            case effects.Announce() | effects.Admit() | effects.Refuse():
                pass

    # --- the model's own account ----------------------------------------------------------------------------------------

    def new_pass(self, *, hinted: bool = False) -> None:
        if hinted:
            self.ready_at = dict.fromkeys(self.order, -1.0)
        self.untried = set(self.order)
        self.first_of_pass = True

    def choices(self) -> list[int]:
        """The endpoints that the pass can go on with, in order."""
        if self.forced is not None:
            return [self.forced]
        ready = [index for index in self.order if index in self.untried and self.ready_at[index] <= self.at]
        if self.first_of_pass and not ready:
            return [min(self.order, key=lambda index: self.ready_at[index])]
        return ready

    def takes(self, endpoint: int, address: int) -> None:
        assert self.choices()[0] == endpoint, "not the next endpoint of the pass"
        assert self.address[endpoint] == address, "not the next address"
        self.endpoint, self.first_of_pass, self.forced = endpoint, False, None
        self.untried.discard(endpoint)

    def fails(self, fault: Fault, *, proven: bool) -> None:
        """The endpoint goes to the end; an orderly shutdown is no failure."""
        index = self.endpoint
        self.order.remove(index)
        self.order.append(index)
        self.address[index] += int(fault.orderly or not proven)
        self.refused.discard(index)
        if not fault.orderly:
            delay = 60.0 if fault.permanent else min(60.0, 2.0 ** self.failed[index])
            self.failed[index] += 1
            self.ready_at[index] = self.at + delay
            if fault.permanent:
                self.refused.add(index)
        if proven:
            # A new pass, in which this one was tried and every other one may be.
            self.untried = set(self.order) - {index}

    def proves(self) -> None:
        if self.failed[self.endpoint]:
            self.failed[self.endpoint], self.ready_at[self.endpoint] = 0, -1.0
        self.refused.discard(self.endpoint)

    def count_failure(self) -> None:
        self.failures += 1
        self.run += 1
        if self.breaker == "half_open" or (self.breaker == "closed" and self.run >= 3):
            self.enter("open")

    def enter(self, state: str) -> None:
        self.breaker, self.out = state, set()
        self.generation += 1

    @property
    def alive(self) -> bool:
        return not self.finished and bool(self.log)

    @property
    def up(self) -> bool:
        return self.alive and self.phase is LET_IN and not self.ending and self.target is None

    # --- asked for ----------------------------------------------------------------------------------------------------

    @initialize(order=st.sampled_from(((0,), (0,), (1, 0), (0, 2, 1))))
    def start(self, order: tuple[int, ...]) -> None:
        self.order = list(order)
        self.ready_at = dict.fromkeys(order, -1.0)
        self.failed = dict.fromkeys(order, 0)
        self.address = dict.fromkeys(order, 0)
        self.new_pass()
        self.feed(events.StartRequested(self.at, order))
        assert self.phase is DIALED

    @rule()
    @precondition(lambda self: self.finished)
    def begin_again(self) -> None:
        order = tuple(self.order)
        self.restart()
        self.start(order)

    def advance(self) -> None:
        """Do the next thing that goes well, as far as there is one: without this, walks seldom get a link up."""
        if self.gave_up or self.stopped:
            return
        if self.ending:
            self.is_lost(LOST)
        elif self.phase is NONE:
            self.retry_timer_fires()
        elif self.phase is DIALED:
            self.opens()
        elif self.phase is OPENED:
            self.topology_restored()

    @rule()
    @precondition(lambda self: self.alive and not self.up)
    def advances(self) -> None:
        self.advance()

    @rule()
    @precondition(lambda self: self.alive and not self.up)
    def advances_further(self) -> None:
        self.advance()
        self.advance()

    @rule()
    @precondition(lambda self: self.alive and not self.up)
    def comes_up(self) -> None:
        for _ in range(3):
            self.advance()

    @rule(seconds=st.sampled_from((0.1, 1.0, 5.0)))
    def time_passes(self, seconds: float) -> None:
        self.at += seconds

    @rule(rarely=st.integers(min_value=0, max_value=3))
    @precondition(lambda self: self.alive)
    def hint(self, rarely: int) -> None:
        if rarely and not self.gave_up:
            return
        heeded = self.at - self.hinted_at >= 1.0 and self.phase is NONE and not self.stopped
        before = self.link
        revived = self.gave_up
        if heeded:
            self.new_pass(hinted=True)
        self.feed(events.ReconnectRequested(self.at))
        assert self.link == before + int(heeded)
        if heeded:
            self.hinted_at = self.at
            self.attempts = 0 if revived else self.attempts + 1
            self.gave_up = False

    @rule(drain=st.booleans(), rarely=st.integers(min_value=0, max_value=7))
    @precondition(lambda self: self.alive)
    def stop(self, drain: bool, rarely: int) -> None:
        if rarely:
            return
        if not self.stopped:
            self.draining = drain and not self.gave_up
            self.stopped = not self.draining
        self.feed(events.StopRequested(self.at, drain))

    @rule(rarely=st.integers(min_value=0, max_value=5))
    @precondition(lambda self: self.alive and self.draining)
    def drained(self, rarely: int) -> None:
        if rarely:
            return
        self.stopped, self.draining = True, False
        self.feed(events.Drained(self.at))

    # --- the link -------------------------------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.alive and self.phase is DIALED)
    def opens(self) -> None:
        self.phase = OPENED
        self.feed(events.LinkOpened(self.link, self.at))

    @rule(permanent=st.booleans())
    @precondition(lambda self: self.alive and self.phase is DIALED)
    def dial_fails(self, permanent: bool) -> None:
        self.phase = NONE
        fault = Fault(FaultKind.AUTHENTICATION, "refused", reply_code=403) if permanent else REFUSED
        if not self.stopped:
            self.fails(fault, proven=False)
            if not self.choices():
                self.count_failure()
        self.ended(events.DialFailed(self.link, fault, self.at), goes_on=not self.stopped and bool(self.choices()))

    @rule()
    @precondition(lambda self: self.alive and self.phase is OPENED and not self.ending)
    def topology_restored(self) -> None:
        self.phase = LET_IN
        if self.breaker == "open":
            self.enter("half_open")
        self.feed(events.TopologyRestored(self.link, self.at))
        assert self.sender == ("paused" if self.blocked else "open")

    @rule(fault=st.sampled_from((LOST, LOST, SHUTDOWN, MISMATCH)))
    @precondition(lambda self: self.alive and self.phase in (OPENED, LET_IN))
    def is_lost(self, fault: Fault) -> None:
        if self.target is not None and not self.stopped:
            self.goes_on(events.LinkLost(self.link, fault, self.at))
            return
        if not self.ending and fault is LOST:
            self.count_failure()
        self.phase = NONE
        goes_on = False
        if not self.ending and not self.stopped:
            self.fails(fault, proven=self.proven)
            if self.proven:
                goes_on = fault is SHUTDOWN and bool(self.choices()) and self.attempts < 4
                self.attempts += int(goes_on)
            else:
                goes_on = bool(self.choices())
        self.ended(events.LinkLost(self.link, fault, self.at), goes_on=goes_on)

    @rule()
    @precondition(lambda self: self.alive and self.ending and self.stopped and self.phase is not NONE)
    def is_closed(self) -> None:
        self.phase = NONE
        self.ended(events.LinkClosed(self.link, self.at))

    @rule(ask=st.booleans())
    @precondition(lambda self: self.up and not self.stopped)
    def is_handed_over(self, ask: bool) -> None:
        others = [index for index in self.order if index != self.endpoint and self.ready_at[index] <= self.at]
        target = self.order[-1] if ask else (others or [self.endpoint])[0]
        self.target = None if self.draining else target
        self.wait_is_over = False
        self.feed(events.HandOverRequested(self.at, target if ask else None))

    @rule()
    @precondition(lambda self: "prefer" in self.timers)
    def prefer_timer_fires(self) -> None:
        assert self.timers.pop("prefer") == self.link
        busy = self.draining or self.blocked
        self.target = None if busy else 0
        self.wait_is_over = False
        self.feed(events.PreferTimerFired(self.link, self.at))
        assert ("prefer" in self.timers) == busy

    @rule(settled=st.booleans())
    @precondition(lambda self: "hand_over" in self.timers)
    def waiting_for_confirms_ends(self, settled: bool) -> None:
        self.wait_is_over = True
        if settled:
            self.feed(events.InFlightSettled(self.link, self.at))
        else:
            self.timers.pop("hand_over")
            self.feed(events.HandOverTimerFired(self.link, self.at))
        assert self.ending

    @rule()
    @precondition(lambda self: self.alive and self.target is not None and self.ending and not self.stopped)
    def is_closed_for_the_next(self) -> None:
        self.goes_on(events.LinkClosed(self.link, self.at))

    def goes_on(self, event: Event) -> None:
        """The link has ended during a hand-over: its target is dialed at once, and that is no failure."""
        assert self.target is not None
        left, before = self.endpoint, self.link
        self.order = [self.target, *(index for index in self.order if index not in (self.target, left))]
        if left != self.target:
            self.order.append(left)
        self.address[left] += 1
        self.untried, self.forced = set(self.order), self.target
        self.phase, self.ending, self.target = NONE, False, None
        self.feed(event)
        assert (self.link, self.phase) == (before + 1, DIALED)

    def ended(self, event: Event, *, goes_on: bool = False) -> None:
        """The link or the dial is gone: the next endpoint, a retry within the attempts, the end, or giving up."""
        self.ending = False
        before = self.link
        self.feed(event)
        if self.stopped:
            assert self.finished
        elif goes_on:
            assert (self.link, self.phase) == (before + 1, DIALED)
        elif self.attempts >= 4:
            assert self.gave_up
            assert self.finished == self.draining
        else:
            assert self.timers["retry"] == self.link

    @rule(blocked=st.booleans())
    @precondition(lambda self: self.alive and self.phase is not NONE)
    def blocks_or_unblocks(self, blocked: bool) -> None:
        self.blocked = blocked
        event = events.PublishingBlocked if blocked else events.PublishingUnblocked
        self.feed(event(self.link, self.at))

    @rule()
    @precondition(lambda self: self.up)
    def is_lost_while_up(self) -> None:
        self.is_lost(LOST)

    @rule(data=st.data())
    @precondition(lambda self: self.up)
    def confirms(self, data: st.DataObject) -> None:
        permit = data.draw(st.sampled_from([None, *self.permits[-4:]]))
        self.proven, self.attempts, self.failures = True, 0, 0
        self.proves()
        if permit is None:
            self.run = 0
        elif permit in self.out:
            self.enter("closed")
            self.run = 0
        self.feed(events.PublishConfirmed(self.link, self.at, permit))

    @rule()
    @precondition(lambda self: self.up)
    def confirm_is_overdue(self) -> None:
        if not self.blocked:
            self.count_failure()
            self.fails(LOST, proven=self.proven)
        self.feed(events.ConfirmOverdue(self.link, self.at))
        assert self.ending == (not self.blocked)

    @rule()
    @precondition(lambda self: self.up)
    def channel_closes(self) -> None:
        self.storm = [*(at for at in self.storm if self.at - at < 10.0), self.at]
        if len(self.storm) > 5:
            self.fails(LOST, proven=self.proven)
        self.feed(events.ChannelClosed(self.link, GONE, self.at))
        assert self.ending == (len(self.storm) > 5)

    # --- timers, and the breaker ------------------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: "retry" in self.timers)
    def retry_timer_fires(self) -> None:
        link = self.timers.pop("retry")
        assert link == self.link
        self.attempts += 1
        self.new_pass()
        self.feed(events.RetryTimerFired(self.link, self.at))
        assert self.phase is DIALED

    @rule()
    @precondition(lambda self: "stable" in self.timers)
    def stable_timer_fires(self) -> None:
        assert self.timers.pop("stable") == self.link
        self.proven, self.attempts = True, 0
        self.proves()
        self.feed(events.StableTimerFired(self.link, self.at))

    @rule()
    @precondition(lambda self: "cooldown" in self.timers and not self.stopped)
    def cooldown_timer_fires(self) -> None:
        generation = self.timers.pop("cooldown")
        assert (generation, self.breaker) == (self.generation, "open")
        self.enter("half_open")
        self.feed(events.CooldownTimerFired(self.generation - 1, self.at))

    @rule()
    @precondition(lambda self: "drain" in self.timers)
    def drain_timer_fires(self) -> None:
        self.timers.pop("drain")
        self.stopped, self.draining = True, False
        self.feed(events.DrainTimerFired(self.at))

    @rule()
    @precondition(lambda self: "close" in self.timers)
    def close_timer_fires(self) -> None:
        assert self.timers.pop("close") == self.link
        self.feed(events.CloseTimerFired(self.link, self.at))
        assert self.ending or self.finished

    @rule()
    @precondition(lambda self: self.alive and not self.stopped and not self.gave_up)
    def is_asked(self) -> None:
        # The clock of the walk does not drive the cooldown: whoever asks in time is refused, so only half open matters.
        if self.breaker == "open" and self.at >= (self.record.breaker or Breaker()).opened_at + 20.0:
            self.enter("half_open")
        (answer, *_) = self.feed(events.AdmissionRequested(self.at))
        if self.breaker == "closed":
            assert answer == effects.Admit(None)
        elif self.breaker == "half_open" and len(self.out) < 2:
            assert isinstance(answer, effects.Admit)
            assert answer.permit is not None
            assert answer.permit not in self.permits
            self.out.add(answer.permit)
            self.permits.append(answer.permit)
        else:
            assert isinstance(answer, effects.Refuse)
            assert 0 < answer.retry_after <= 20.0

    @rule(data=st.data())
    @precondition(lambda self: self.alive and not self.stopped and self.permits)
    def permit_comes_back(self, data: st.DataObject) -> None:
        permit = data.draw(st.sampled_from(self.permits[-4:]))
        self.out.discard(permit)
        self.feed(events.PermitReleased(permit, self.at))

    # --- one event in ten is about an old link ------------------------------------------------------------------------------

    @rule(make=st.sampled_from(OLD))
    @precondition(lambda self: self.alive and self.link > 1)
    def something_old(self, make: Callable[[int, float], Event]) -> None:
        before = self.record
        assert self.feed(make(self.link - 1, self.at)) == ()
        assert self.record is before

    # --- what must always be true ---------------------------------------------------------------------------------------------

    @invariant()
    def the_counts_agree(self) -> None:
        if self.stopped or self.finished:
            return
        assert (self.record.attempts, self.record.failures) == (self.attempts, self.failures)

    @invariant()
    def the_endpoints_agree(self) -> None:
        """No endpoint is forgotten, and each has the failures that the model counted."""
        if self.stopped or self.finished or not self.log:
            return
        endpoints = self.record.endpoints
        assert list(endpoints.queue) == self.order
        assert {index: record.failures for index, record in enumerate(endpoints.records)} == self.failed
        assert endpoints.current == self.endpoint

    @invariant()
    def the_breaker_agrees(self) -> None:
        breaker = self.record.breaker
        if breaker is None or self.stopped or self.finished:
            return
        assert (breaker.state, breaker.failures) == (self.breaker, self.run)
        assert {permit.number for permit in self.out} == breaker.outstanding

    @invariant()
    def the_sender_follows_the_link(self) -> None:
        if self.target is not None and not self.stopped:
            assert self.sender == "paused"
        elif self.up and not self.stopped:
            assert self.sender == ("paused" if self.blocked else "open")
        elif self.phase is NONE or self.phase is DIALED or self.phase is OPENED:
            assert self.sender == "stopped" or self.stopped

    @invariant()
    def every_wait_has_its_timer(self) -> None:
        """Nothing is waited for without a bound, and no timer runs that nobody waits for (I19)."""
        state = self.record.state
        assert ("retry" in self.timers) == isinstance(state, states.Waiting)
        assert ("stable" in self.timers) == (isinstance(state, states.Up) and not state.proven)
        assert ("drain" in self.timers) == (self.draining and not self.finished)
        closing = isinstance(state, states.HandingOver) and state.closing
        assert isinstance(state, states.Closing) <= ("close" in self.timers)
        assert ("close" in self.timers) <= (closing or isinstance(state, states.Closing))
        assert ("hand_over" in self.timers) == (isinstance(state, states.HandingOver) and not closing)
        assert ("prefer" in self.timers) == (isinstance(state, states.Up) and self.endpoint != 0)
        if self.finished:
            assert not self.timers
        elif not self.stopped:
            assert ("cooldown" in self.timers) == (self.breaker == "open")

    @invariant()
    def the_state_agrees_with_the_model(self) -> None:
        state = self.record.state
        if self.finished:
            assert state == states.Closed(self.link)
        elif not self.log:
            assert state == states.Idle()
        elif self.stopped:
            assert state.link == self.link
            assert isinstance(state, states.Closing)
        elif self.target is not None:
            assert state == states.HandingOver(self.link, self.target, self.proven, closing=self.ending)
        elif self.ending:
            assert isinstance(state, states.Dropping)
        elif self.phase is LET_IN:
            assert state == states.Up(self.link, self.blocked, self.proven)
        elif self.phase is OPENED:
            assert state == states.Restoring(self.link, self.blocked)
        elif self.phase is DIALED:
            assert state == states.Dialing(self.link, self.blocked)
        else:
            assert state == (states.GaveUp(self.link) if self.gave_up else states.Waiting(self.link))

    def teardown(self) -> None:
        self.replay()

    def replay(self) -> None:
        """Folding the log of events from the start gives the same record (I39)."""
        if not self.log:
            return
        record = initial()
        for event in self.log:
            record = transition(record, event, POLICY).record
        assert record == self.record


TestWalk = Walk.TestCase
TestWalk.settings = settings(stateful_step_count=100)
