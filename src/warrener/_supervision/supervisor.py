"""The supervisor: facts go into a mailbox; one task feeds them to one pure function; the task does what that answers.

Theory of operation
===================

`Supervisor.run` is a nursery task and the only owner of the record. It takes events from the mailbox, one at a time,
calls `warrener.machine.transition`, stores the new record and performs the effects, in order, without a checkpoint: no
other task can see a state whose effects have not begun. An effect that takes time (a dial, a timer) starts a task in
the supervisor's own task group; that task answers with an event. Two questions need their answer at once, from a
publisher's own task: `admit` (the breaker) and `reconnect`. They empty the mailbox first, so the order of facts holds,
and step the machine in place; `step` is a plain function and never re-entered: effects only ever post, and what an opened
sender lets through is written after the step.

A *link* is one task (`_LinkTask`): it enters the driver's block, reports `LinkOpened`, replays the topology when it is
told to, and then waits to be closed. It reports `LinkLost`, `DialFailed` or `LinkClosed` by leaving the block, so by
then the socket is closed. A cancelled `run()` posts nothing: cancellation is nobody's event.

Here, and nowhere else, changes of state are logged and delays are drawn.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol, assert_never

import anyio
import anyio.abc

from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener._publishing.sender import Sender
from warrener.drivers.base import Driver, Link, LinkDown, LinkOptions, Peer
from warrener.errors import Fault, FaultKind, connect_error
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
from warrener.records import ConnectionState, Endpoint
from warrener.topology import Declaration, in_order

__all__ = ["Supervisor"]

log = logging.getLogger("warrener")


def _word(state: states.State) -> str:
    """How the log calls a state."""
    word = "gave up" if isinstance(state, states.GaveUp) else type(state).__name__.lower()
    return f"{word} (blocked)" if isinstance(state, states.Up) and state.blocked else word


class _Watcher(Protocol):
    def __call__(self) -> None: ...


class _LinkTask:
    """One link, from the dial to the end of its block."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: Link | None = None
        self.replay = anyio.Event()
        #: Around the whole block: cancelling it abandons a dial.
        self.scope = anyio.CancelScope()
        #: Around the block's body: cancelling it leaves the block in good order.
        self.body = anyio.CancelScope()
        self.ended_by_us = False

    def close(self) -> None:
        self.ended_by_us = True
        (self.scope if self.link is None else self.body).cancel()

    def abort(self, fault: Fault) -> None:
        if self.link is None:
            self.scope.cancel()
        else:
            self.link.abort(fault)


class Supervisor:
    """See the module's docstring. Made inside `run()`'s loop; used by one producer."""

    def __init__(
        self,
        *,
        name: str,
        driver: Driver,
        endpoint: Endpoint,
        options: LinkOptions,
        topology: tuple[Declaration, ...],
        policy: Policy,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.record: Record = initial()
        self.breaker_closed = True
        self.wants_confirms = False
        self.sender: Sender  # set once by the producer, before run()
        self._name = name
        self._driver = driver
        self._endpoint = endpoint
        self._options = options
        self._topology = in_order(topology)
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._mailbox: deque[events.Event] = deque()
        self._mail = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._timers: dict[str, anyio.CancelScope] = {}
        self._life: _LinkTask | None = None
        #: Around the sender's timer; `run()` has left its loop.
        self._timekeeping = anyio.CancelScope(shield=True)
        self._leaving = False
        self._retry_at = math.inf
        self._confirm_posted = False
        self._drained_posted = False
        #: A step has let publishers in, or made the breaker less strict: see `_let_in`.
        self._may_write = False
        self._answer: Permit | float | None = None
        self._finished: effects.Finish | None = None
        self._crash: Exception | None = None
        self._watchers: list[_Watcher] = []
        #: Plain ints, for metrics: what has happened since the start, by the words of docs/reference.md.
        self.counters: dict[str, int] = {
            "state_changes": 0, "reconnect_attempts": 0, "breaker_trips": 0, "dials_failed": 0, "links_lost": 0,
        }  # fmt: skip
        #: How often each kind of fault ended a dial or a link.
        self.faults: dict[FaultKind, int] = {}
        #: Seconds from the loss of a link to the next one being up.
        self.reconnect_times = Histogram(RECONNECT_BOUNDS)
        self._down_since: float | None = None

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self, *, started: Callable[[], None]) -> None:
        """Supervise until closed. Raises one bare `ConnectError` with ``when_exhausted="raise"``, never a group."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._guarded, self._keep_time)
            self.post(events.StartRequested(at=self._clock()))
            self._drain_mailbox()
            started()
            try:
                while self._finished is None:
                    await self._mail.wait()
                    self._mail = anyio.Event()
                    self._drain_mailbox()
            finally:
                # Cancelled, a link may take `abort_timeout` to end: nothing new is let in or handed over meanwhile.
                self.sender.halt()
                self.sender.stop_accepting()
                self._leaving = True
                self._end_time()
            tasks.cancel_scope.cancel()
        if self._crash is not None:
            raise self._crash
        if self._finished is not None and self._finished.fault is not None:
            raise connect_error(self._finished.fault)

    async def _keep_time(self) -> None:
        """Run the sender's timer to the end of the last link, a cancelled `run()` or not: deadlines hold until then (R1)."""
        with self._timekeeping:
            await self.sender.run_timer()

    def _end_time(self) -> None:
        if self._leaving and self._life is None:
            self._timekeeping.cancel()

    def finalize(self) -> None:
        """Bring the record to Closed after the tasks are gone, however they ended; then settle what is left."""
        self._tasks = None
        for event in (
            events.StopRequested(at=self._clock(), drain=False),
            events.LinkClosed(self.record.link, at=self._clock()),
        ):
            self.post(event)
        self._drain_mailbox()
        self.sender.close()

    def post(self, event: events.Event) -> None:
        """Put a fact into the mailbox."""
        self._mailbox.append(event)
        self._mail.set()

    def _drain_mailbox(self) -> None:
        while self._mailbox:
            self._step(self._mailbox.popleft())
        self._let_in()

    def _let_in(self) -> None:
        """Hand over what may be written by now. Between steps, never within one: writing asks the breaker, a step too."""
        if self._may_write:
            self._may_write = False
            self.sender.pump()

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
            self.sender.ledger.last_fault = record.last_fault
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
            self.counters["breaker_trips"] += 1
            log.warning("%s: circuit breaker opens after %d failures in a row", self._name, after.failures)
        else:
            log.info("%s: circuit breaker is %s", self._name, new.replace("_", "-"))
        self._notify()
        self._may_write = self._may_write or new != "open"

    def _perform(self, effect: effects.Effect) -> None:  # noqa: C901 - one case for each effect, each a line or two
        match effect:
            case effects.Dial(link):
                self._dial(link)
            case effects.ReplayTopology(link):
                if self._life is not None and self._life.number == link:
                    self._life.replay.set()
            case effects.CloseLink(link):
                if self._life is not None and self._life.number == link:
                    self._life.close()
            case effects.AbortLink(link, fault):
                if self._life is not None and self._life.number == link:
                    self._life.abort(fault)
            case effects.StartPublishing(link):
                self.sender.open(link)
                self._may_write = True
            case effects.PausePublishing(link):
                self.sender.pause(link)
            case effects.StopPublishing(_, fault):
                self.sender.shut(fault)
            case effects.FailPending(fault):
                self.sender.fail_pending(fault)
            case effects.StartRetryTimer(link, shortest, longest):
                delay = self._rng.uniform(shortest, longest)
                self._retry_at = self._clock() + delay
                self._start_timer("retry", delay, lambda at: events.RetryTimerFired(link, at=at))
            case effects.StartStableTimer(link, delay):
                self._start_timer("stable", delay, lambda at: events.StableTimerFired(link, at=at))
            case effects.StartCooldownTimer(generation, delay):
                self._start_timer("cooldown", delay, lambda at: events.CooldownTimerFired(generation, at=at))
            case effects.StartDrainTimer(delay):
                self._start_timer("drain", delay, lambda at: events.DrainTimerFired(at=at))
            case effects.StartCloseTimer(link, delay):
                self._start_timer("close", delay, lambda at: events.CloseTimerFired(link, at=at))
            case effects.CancelTimer(timer):
                self._cancel_timer(timer)
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
        self.counters["state_changes"] += 1
        level = logging.WARNING if fault is not None and not fault.orderly else logging.INFO
        what = f"{_word(before)} -> {_word(after)}"
        if after is before:
            what = f"{_word(after)}, closing: what was accepted is settled first"
        why = f": {fault}" if fault is not None else ""
        retry_in = self.retry_in
        then = (
            f"; next attempt in {retry_in:.3g} s" if isinstance(after, states.Waiting) and retry_in is not None else ""
        )
        log.log(level, "%s: %s (link %d)%s%s", self._name, what, self.record.link, why, then)
        if isinstance(after, states.Up) and not isinstance(before, states.Up) and self._down_since is not None:
            self.reconnect_times.observe(self._clock() - self._down_since)
            self._down_since = None
        self._notify()

    # --- timers -----------------------------------------------------------------------------------------------------

    def _start_timer(self, name: str, delay: float, event: Callable[[float], events.Event]) -> None:
        self._cancel_timer(name, forget_retry=False)
        if self._tasks is None:
            return  # finalize(): no task may start any more
        scope = self._timers[name] = anyio.CancelScope()
        deadline = self._clock() + delay

        async def sleep() -> None:
            with scope:
                await anyio.sleep(max(0.0, deadline - self._clock()))
                if self._timers.get(name) is scope:
                    del self._timers[name]
                self.post(event(self._clock()))

        self._tasks.start_soon(self._guarded, sleep)

    def _cancel_timer(self, name: str, *, forget_retry: bool = True) -> None:
        if name == "retry" and forget_retry:
            self._retry_at = math.inf
        scope = self._timers.pop(name, None)
        if scope is not None:
            scope.cancel()

    # --- links ------------------------------------------------------------------------------------------------------

    def _dial(self, number: int) -> None:
        if self._tasks is None:
            return
        self._retry_at = math.inf
        if self.record.attempts:
            self.counters["reconnect_attempts"] += 1
        self.sender.accept_again()
        life = self._life = _LinkTask(number)
        self._tasks.start_soon(self._guarded, self._live, life)

    async def _live(self, life: _LinkTask) -> None:
        """One link: the driver's block, and the event that leaving it posts."""
        number, fault = life.number, None
        listener = self.sender.expect(number)
        try:
            with life.scope:
                async with self._driver.open(self._endpoint, self._options, listener) as link:
                    with life.body:
                        life.link = link
                        self.sender.attach(link)
                        self.post(events.LinkOpened(number, at=self._clock()))
                        await life.replay.wait()
                        await self._declare(link)
                        self.post(events.TopologyRestored(number, at=self._clock()))
                        await anyio.sleep_forever()
        except LinkDown as down:
            fault = down.fault
        finally:
            if self._life is life:
                self._life = None
            self._end_time()
        self.sender.halt()
        if fault is None:
            self.post(events.LinkClosed(number, at=self._clock()))
            return
        self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1
        if life.link is None:
            self.counters["dials_failed"] += 1
            self.post(events.DialFailed(number, fault, at=self._clock()))
        else:
            self.counters["links_lost"] += 1
            if self._down_since is None:
                self._down_since = self._clock()
            self.post(events.LinkLost(number, fault, at=self._clock()))

    async def _declare(self, link: Link) -> None:
        if not self._topology:
            return
        timeout = self._options.connect_timeout
        with anyio.move_on_after(timeout) as scope:
            await link.declare(self._topology)
        if scope.cancelled_caught:
            raise LinkDown(
                Fault(FaultKind.HANDSHAKE_TIMEOUT, f"the broker did not answer the declarations within {timeout:g} s")
            )

    async def _guarded(self, function: Callable[..., object], *args: object) -> None:
        """Run a task so that an error of our own ends `run()` bare: recorded here, raised after the group is left."""
        try:
            await function(*args)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - raised by run() itself, bare
            self._crash = self._crash or error
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()

    # --- what the sender asks and tells -------------------------------------------------------------------------------

    def admit(self) -> Permit | float | None:
        """Ask the breaker: a permit, None where none is needed, or the seconds to wait before asking again."""
        self._drain_mailbox()
        self._step(events.AdmissionRequested(at=self._clock()))
        answer, self._answer = self._answer, None
        self._let_in()
        return answer

    def patience(self) -> float:
        """Return the seconds to wait before asking the breaker, without asking it: at least what a probe may take."""
        breaker = self.record.breaker
        return PROBE_PATIENCE if breaker is None else retry_after(breaker, self._clock()) or PROBE_PATIENCE

    def confirmed(self, link: int, permit: Permit | None) -> None:
        """The broker acked. Without a permit it is posted once until the record has changed."""
        if permit is None:
            if self._confirm_posted:
                return
            self._confirm_posted = True
        self.post(events.PublishConfirmed(link, at=self._clock(), permit=permit))

    def nacked(self, link: int, permit: Permit | None) -> None:
        """The broker nacked."""
        self.post(events.PublishNacked(link, at=self._clock(), permit=permit))

    def released(self, permit: Permit) -> None:
        """A probe was not used."""
        self.post(events.PermitReleased(permit, at=self._clock()))

    def channel_closed(self, link: int, fault: Fault) -> None:
        """The broker closed a publishing channel; the driver replaces it."""
        self.post(events.ChannelClosed(link, fault, at=self._clock()))

    def blocked(self, link: int) -> None:
        """The broker takes no publishes for now."""
        self.post(events.PublishingBlocked(link, at=self._clock()))

    def unblocked(self, link: int) -> None:
        """The broker takes publishes again."""
        self.post(events.PublishingUnblocked(link, at=self._clock()))

    def confirm_overdue(self, link: int) -> None:
        """The oldest publish of the link is overdue."""
        self.post(events.ConfirmOverdue(link, at=self._clock()))

    def drained(self) -> None:
        """Nothing accepted is unsettled any more."""
        if not self._drained_posted:
            self._drained_posted = True
            self.post(events.Drained(at=self._clock()))

    # --- what the producer asks -------------------------------------------------------------------------------------

    def stop(self, *, drain: bool) -> None:
        """Close; with `drain`, settle first what was accepted."""
        self.post(events.StopRequested(at=self._clock(), drain=drain))

    def reconnect(self) -> bool:
        """Hint that the broker is back; whether it was heeded."""
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
        """What the handshake of the present link settled."""
        life = self._life
        return life.link.peer if life is not None and life.link is not None else None

    def watch(self, watcher: _Watcher) -> Callable[[], None]:
        """Call `watcher` (a plain, quick function) after each change of state; returns how to stop."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _notify(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()
