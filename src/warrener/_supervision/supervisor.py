"""The supervisor: facts go into a mailbox, one pure function answers each with orders, one task carries out the orders.

`Supervisor.run` is a nursery task and the only owner of the record. It takes one event at a time from the mailbox, calls
`warrener.machine.transition`, stores the new record and performs the effects in order. There is no checkpoint in between,
so no other task can see a state whose effects have not begun. An effect that takes time (a dial, a timer) starts a task in
the supervisor's own task group, and that task answers with an event.

Two questions need their answer at once, from the task of a publisher: `admit` (the breaker) and `reconnect`. They empty the
mailbox first, so the order of facts holds, and then step the machine in place. `_step` is a plain function and is never
re-entered: effects only post events, and messages are written after the step.

A *link* is one task (`LinkTask`). It ends by posting `LinkLost`, `DialFailed` or `LinkClosed`; the socket is closed by then.
A cancelled `run()` posts nothing: a cancellation is no event of the machine.

Changes of state are logged, and delays are drawn, in this module only.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, assert_never

import anyio
import anyio.abc
from attrs import evolve

from warrener._log_limit import LogLimit
from warrener._supervision.counts import Counts
from warrener._supervision.endpoint_list import EndpointList
from warrener._supervision.link_task import LinkTask
from warrener._supervision.lookups import Logins
from warrener._supervision.orders import Publishing
from warrener._supervision.timers import Timers
from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Driver, Link, LinkDown, LinkOptions, Peer
from warrener.errors import Fault, connect_error
from warrener.machine import (
    Permit,
    Policy,
    Record,
    connection_state,
    effects,
    events,
    initial,
    retry_after,
    states,
    transition,
)
from warrener.machine.breaker import PROBE_PATIENCE
from warrener.records import ConnectionState, Credentials, Endpoint

__all__ = ["Supervisor"]

log = logging.getLogger("warrener")


def _word(state: states.State) -> str:
    """Return the word that the log has for a state."""
    word = "gave up" if isinstance(state, states.GaveUp) else type(state).__name__.lower()
    return f"{word} (blocked)" if isinstance(state, states.Up) and state.blocked else word


class _Watcher(Protocol):
    def __call__(self) -> None: ...


class _ChangeLog:
    """One line for each change of state; for blocked and unblocked, which a broker can repeat without end, a limit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocked_lines = LogLimit()

    def wants(self, before: states.State, after: states.State, now: float) -> bool:
        """Whether a log line is written for this change of state."""
        if not isinstance(before, states.Up) or not isinstance(after, states.Up) or before.blocked is after.blocked:
            return True
        if left_out := self._blocked_lines.left_out(now):
            log.warning("%s: blocked and unblocked %d more times", self._name, left_out)
        return self._blocked_lines.allows()

    def write(
        self, before: states.State, after: states.State, link: str, fault: Fault | None, retry_in: float | None
    ) -> None:
        """Log the change."""
        level = logging.WARNING if fault is not None and not fault.orderly else logging.INFO
        what = f"{_word(before)} -> {_word(after)}"
        if after is before:
            what = f"{_word(after)}, closing when accepted messages have their outcome"
        why = f": {fault}" if fault is not None else ""
        waits = isinstance(after, states.Waiting) and retry_in is not None
        then = f"; next attempt in {retry_in:.3g} s" if waits else ""
        log.log(level, "%s: %s (%s)%s%s", self._name, what, link, why, then)


class Supervisor:
    """Owns the record of the machine; the head of this module explains it. One per producer, made in its `run()`."""

    def __init__(
        self,
        *,
        name: str,
        driver: Driver,
        endpoints: EndpointList,
        credentials: Callable[[], Awaitable[Credentials]] | None = None,
        options: LinkOptions,
        topology: LiveTopology,
        policy: Policy,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.record: Record = initial()
        self.breaker_closed = True
        self.wants_confirms = False
        #: Set once by the producer, before `run`.
        self.publishing: Publishing
        self._name = name
        self._driver = driver
        self._endpoints = endpoints
        self._logins: Logins | None = None
        if credentials is not None:
            self._logins = Logins(
                credentials,
                options.connect_timeout,
                clock,
                failed=self._renewal_failed,
                replace_link=lambda: self.post(events.HandOverRequested(clock(), self.record.endpoints.current)),
            )
        self._options = options
        self.topology = topology
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._mailbox: deque[events.Event] = deque()
        self._mail = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._timers = Timers(clock, self.post, self._spawn)
        self._link_task: LinkTask | None = None
        #: Around the timer of deadlines. It runs until the loop of `run` has ended and the last link has.
        self._timekeeping = anyio.CancelScope(shield=True)
        self._leaving = False
        self._retry_at = math.inf
        self._confirm_posted = False
        self._drained_posted = False
        #: A step has started publishing, or made the breaker less strict, so that `_pump` has work.
        self._may_write = False
        self._answer: Permit | float | None = None
        self._finished: effects.Finish | None = None
        self._crash: Exception | None = None
        self._watchers: list[_Watcher] = []
        self.counts = Counts()
        self._change_log = _ChangeLog(name)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self, *, started: Callable[[], None]) -> None:
        """Supervise until closed. With ``when_exhausted="raise"`` a `ConnectError` is raised without an ExceptionGroup."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._guarded, self._keep_time)
            self.post(events.StartRequested(at=self._clock(), order=self._endpoints.order()))
            self._drain_mailbox()
            started()
            try:
                while self._finished is None:
                    await self._mail.wait()
                    self._mail = anyio.Event()
                    self._drain_mailbox()
            finally:
                # A cancelled link may take `abort_timeout` to end. Meanwhile nothing is accepted or written.
                self.publishing.link_ended()
                self.publishing.stop_accepting()
                self._leaving = True
                self._end_time()
            tasks.cancel_scope.cancel()
        if self._crash is not None:
            raise self._crash
        if self._finished is not None and self._finished.fault is not None:
            raise connect_error(self._finished.fault)

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint of the present link, or of the last one; None while no endpoint is known."""
        return self._endpoints.at(self.record.endpoints.current)

    async def _discover(self, link: int) -> Callable[[], events.Event]:
        """Ask the program for the endpoints; return a function that takes the answer and makes its event."""
        try:
            found = await self._endpoints.ask(self._options.connect_timeout)
        except LinkDown as down:
            fault = down.fault
            self.counts.fault(fault)
            return lambda: events.DiscoveryFailed(link, fault, at=self._clock())
        return lambda: events.EndpointsFound(link, *self._endpoints.take(found), at=self._clock())

    async def _keep_time(self) -> None:
        """Keep deadlines until the last link has ended, also if `run()` is cancelled before that."""
        with self._timekeeping:
            await self.publishing.run_timer()

    def _end_time(self) -> None:
        if self._leaving and self._link_task is None:
            self._timekeeping.cancel()

    def finalize(self) -> None:
        """Bring the record to Closed when the tasks are gone, however `run` ended; then end the messages that are left.

        Events that the tasks posted last come first: one of them may have begun a new link.
        """
        self._tasks = None
        self._drain_mailbox()
        self.post(events.StopRequested(at=self._clock(), drain=False))
        self._drain_mailbox()
        self.post(events.LinkClosed(self.record.link, at=self._clock()))
        self._drain_mailbox()
        self.publishing.close()

    def post(self, event: events.Event) -> None:
        """Put a fact into the mailbox."""
        self._mailbox.append(event)
        self._mail.set()

    def _drain_mailbox(self) -> None:
        while self._mailbox:
            self._step(self._mailbox.popleft())
        self._pump()

    def _pump(self) -> None:
        """Write messages if a step allowed it. Never called within a step: writing asks the breaker, also a step."""
        if self._may_write:
            self._may_write = False
            self.publishing.pump()

    def _step(self, event: events.Event) -> None:
        before = self.record
        step = transition(before, event, self._policy)
        self.record = record = step.record
        for effect in step.effects:
            self._perform(effect)
        if record is not before:
            breaker = record.breaker
            self.breaker_closed = breaker is None or breaker.state == "closed"
            self.wants_confirms = self._confirm_changes(record)
            self._confirm_posted = False
            self.publishing.note_fault(record.last_fault)
            self._note_breaker(before, record)

    def _confirm_changes(self, record: Record) -> bool:
        state = record.state
        return isinstance(state, states.Up) and (not state.proven or record.failures > 0 or record.attempts > 0)

    def _note_breaker(self, before: Record, after: Record) -> None:
        old = "closed" if before.breaker is None else before.breaker.state
        new = "closed" if after.breaker is None else after.breaker.state
        if old == new:
            return
        if new == "open":
            self.counts.counters["breaker_trips"] += 1
            log.warning("%s: circuit breaker opens after %d failures in a row", self._name, after.failures)
        else:
            log.info("%s: circuit breaker is %s", self._name, new.replace("_", "-"))
        self._notify()
        self._may_write = self._may_write or new != "open"

    def _perform(self, effect: effects.Effect) -> None:  # noqa: C901 - one case for each effect, each a line or two
        match effect:
            case effects.Dial(link, endpoint, address):
                self._dial(link, endpoint, address)
            case effects.ReplayTopology(link):
                if (task := self._present(link)) is not None:
                    task.replay.set()
            case effects.CloseLink(link):
                if (task := self._present(link)) is not None:
                    task.close()
            case effects.AbortLink(link, fault):
                if (task := self._present(link)) is not None:
                    task.abort(fault)
            case effects.ReportSettled(link):
                self.publishing.report_settled(link)
            case effects.StartPublishing(link):
                self.publishing.start_publishing(link)
                self._may_write = True
            case effects.PausePublishing(link):
                self.publishing.pause_publishing(link)
            case effects.StopPublishing(_, fault):
                self.publishing.stop_publishing(fault)
            case effects.FailPending(fault):
                self.publishing.fail_pending(fault)
            case effects.RefusePublishing(fault):
                self.publishing.refuse_publishing(fault)
            case effects.StartRetryTimer(link, shortest, longest):
                delay = self._rng.uniform(shortest, longest)
                self._retry_at = self._clock() + delay
                ask = None if self._endpoints.discover is None else lambda: self._discover(link)
                self._timers.run("retry", delay, lambda at: events.RetryTimerFired(link, at=at), ask=ask)
            case (
                effects.StartStableTimer()
                | effects.StartPreferTimer()
                | effects.StartCooldownTimer()
                | effects.StartDrainTimer()
                | effects.StartHandOverTimer()
                | effects.StartCloseTimer()
            ):
                self._timers.start(effect)
            case effects.CancelTimer(timer):
                if timer == "retry":
                    self._retry_at = math.inf
                self._timers.cancel(timer)
            case effects.Admit(permit):
                self._answer = permit
            case effects.Refuse(retry_after):
                self._answer = retry_after
            case effects.Announce(before, after, fault):
                self._announce(before, after, fault)
            case effects.Finish():
                self._finished = effect
            case _:
                assert_never(effect)

    def _announce(self, before: states.State, after: states.State, fault: Fault | None) -> None:
        self.counts.counters["state_changes"] += 1
        if self._change_log.wants(before, after, self._clock()):
            where = f" to {self.endpoint}" if len(self._endpoints) > 1 else ""
            self._change_log.write(before, after, f"link {self.record.link}{where}", fault, self.retry_in)
        if isinstance(before, states.GaveUp) and isinstance(after, states.Waiting):
            self.publishing.accept_again()
        if isinstance(after, states.Up) and not isinstance(before, states.Up):
            self.counts.up(self._clock())
        self._notify()

    # --- links ------------------------------------------------------------------------------------------------------

    def _dial(self, number: int, endpoint: int, address: int) -> None:
        if self._tasks is None:
            return
        self._retry_at = math.inf
        if self.record.attempts:
            self.counts.counters["reconnect_attempts"] += 1
        self.publishing.accept_again()
        task = self._link_task = LinkTask(number, self.publishing, self.post, self._clock, self._logins)
        options = evolve(self._options, first_address=address)
        self._tasks.start_soon(self._guarded, self._live, task, self._endpoints.dialed(endpoint), options)

    async def _live(self, task: LinkTask, endpoint: Endpoint, options: LinkOptions) -> None:
        """Run one link; when it has ended, count its end and post the event of it."""
        try:
            await task.run(self._driver, endpoint, options, self.topology)
        finally:
            if self._link_task is task:
                self._link_task = None
            self._end_time()
        self.publishing.link_ended()
        end = task.ending()
        self.counts.ended(end)
        self.post(end)

    def _renewal_failed(self, fault: Fault) -> None:
        self.counts.fault(fault)
        log.warning("%s: the credentials were not renewed; the producer asks for them again: %s", self._name, fault)

    def _present(self, link: int) -> LinkTask | None:
        """Return the task of the link with this number, if it still runs."""
        task = self._link_task
        return task if task is not None and task.number == link else None

    def _spawn(self, function: Callable[[], Awaitable[None]]) -> bool:
        """Start a task of the supervisor. False while `finalize` runs: no task may start any more."""
        if self._tasks is None:
            return False
        self._tasks.start_soon(self._guarded, function)
        return True

    async def _guarded(self, function: Callable[..., object], *args: object) -> None:
        """Run a task. An unexpected error is recorded here and raised by `run` without an ExceptionGroup."""
        try:
            await function(*args)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - raised by `run` itself
            self._crash = self._crash or error
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()

    # --- what the sender asks and tells -----------------------------------------------------------------------------

    def admit(self) -> Permit | float | None:
        """Ask the breaker: a permit, None where none is needed, or the seconds to wait before asking again."""
        self._drain_mailbox()
        self._step(events.AdmissionRequested(at=self._clock()))
        answer, self._answer = self._answer, None
        self._pump()
        return answer

    def patience(self) -> float:
        """Return the seconds to wait before asking the breaker, without asking it."""
        breaker = self.record.breaker
        return PROBE_PATIENCE if breaker is None else retry_after(breaker, self._clock()) or PROBE_PATIENCE

    def holds(self, permit: Permit) -> bool:
        """Whether the permit still counts: the breaker has not changed its state since it granted it."""
        breaker = self.record.breaker
        return breaker is not None and permit.generation == breaker.generation

    def confirmed(self, link: int, permit: Permit | None) -> None:
        """The broker acked a message. Without a permit, only the first one since the record changed is posted."""
        if permit is None:
            if self._confirm_posted:
                return
            self._confirm_posted = True
        self.post(events.PublishConfirmed(link, at=self._clock(), permit=permit))

    def released(self, permit: Permit) -> None:
        """Give the permit back of a message that was not written, or that has no publisher any more."""
        self.post(events.PermitReleased(permit, at=self._clock()))

    def channel_closed(self, link: int, fault: Fault) -> None:
        """The broker closed a publishing channel; the driver opens another one."""
        self.post(events.ChannelClosed(link, fault, at=self._clock()))

    def blocked(self, link: int) -> None:
        """The broker blocks publishers."""
        self.post(events.PublishingBlocked(link, at=self._clock()))

    def unblocked(self, link: int) -> None:
        """The broker takes publishes again."""
        self.post(events.PublishingUnblocked(link, at=self._clock()))

    def confirm_overdue(self, link: int) -> None:
        """The link has to be replaced because its publishes are not answered."""
        self.post(events.ConfirmOverdue(link, at=self._clock()))

    def settled(self, link: int) -> None:
        """No message is in flight on the link, which is being handed over."""
        self.post(events.InFlightSettled(link, at=self._clock()))

    def drained(self) -> None:
        """The producer closes, and no accepted message is pending."""
        if not self._drained_posted:
            self._drained_posted = True
            self.post(events.Drained(at=self._clock()))

    # --- what the producer asks -------------------------------------------------------------------------------------

    def stop(self, *, drain: bool) -> None:
        """Close the link. With `drain`, accepted messages get their outcome first."""
        self.post(events.StopRequested(at=self._clock(), drain=drain))

    def hand_over(self, endpoint: int | None) -> bool:
        """Go on at another endpoint when the messages in flight have their confirms. False if this was ignored."""
        self._drain_mailbox()
        before = self.record
        self._step(events.HandOverRequested(at=self._clock(), endpoint=endpoint))
        return self.record is not before

    def reconnect(self) -> bool:
        """Hint that the broker is back. False if the hint was ignored."""
        self._drain_mailbox()
        before = self.record.hinted_at
        self._step(events.ReconnectRequested(at=self._clock()))
        return self.record.hinted_at != before

    @property
    def connection_state(self) -> ConnectionState:
        """Which of the five public states the record is in."""
        return connection_state(self.record)

    @property
    def retry_in(self) -> float | None:
        """Seconds until the next dial, where one is due."""
        return max(0.0, self._retry_at - self._clock()) if self._retry_at < math.inf else None

    @property
    def peer(self) -> Peer | None:
        """The result of the present link's handshake."""
        task = self._link_task
        return task.link.peer if task is not None and task.link is not None else None

    @property
    def live_link(self) -> Link | None:
        """The link on which messages are published; None while there is none."""
        task = self._link_task
        return task.link if task is not None and isinstance(self.record.state, states.Up) else None

    def watch(self, watcher: _Watcher) -> Callable[[], None]:
        """Call `watcher` (a plain, quick function) after each change of state; return a function that ends this."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _notify(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
