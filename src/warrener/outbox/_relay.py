"""The relay: one task that writes to the outbox, claims from it, and hands runs of rows to the producer.

The coordinator is the only task that touches the store, one transaction at a time, so that the calls of `enqueue` that
wait together, the deletes of confirmed rows and the next claim share one commit. `_decisions` makes the decisions; here
are the tasks, the thread and the clock.
"""

from __future__ import annotations

import copy
import logging
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
import anyio.abc
from attrs import evolve

from warrener._backend import Backend, backend
from warrener.errors import ProducerClosed, PublishError
from warrener.outbox._counts import Counts
from warrener.outbox._decisions import RelayPolicy, Run, Window
from warrener.outbox._intake import Intake, Pending
from warrener.outbox._relay_log import RelayLog
from warrener.outbox._rows import decode, encode, flagged
from warrener.outbox._store import Store
from warrener.outbox._store_health import STORE_RETRY, StoreHealth
from warrener.outbox._store_thread import StoreThread
from warrener.outbox.errors import OutboxError, OutboxNotFlushed, OutboxProblem, OutboxUnusable
from warrener.outbox.records import FIRST, Done, NewRow, OutboxStatus, Row, Settlement, Stored, Want, Work
from warrener.records import ConnectionState, Message, Receipt, Status

__all__ = ["Publisher", "Relay"]

_log = logging.getLogger("warrener.outbox")

#: While the broker is away for longer than this, the claimed rows are given back, so that another relay can take them.
_GIVE_BACK_AFTER = 1.0
#: Seconds for which outcomes wait for new rows or a claim, so that one commit, and so one fsync, serves both.
_SETTLE_WITHIN = 0.01


class Publisher(Protocol):
    """What a relay needs of a producer."""

    @property
    def name(self) -> str:
        """The producer's name, for the log."""
        ...

    def status(self) -> Status:
        """The producer at this instant."""
        ...

    async def publish_many(self, messages: Iterable[Message], *, timeout: float) -> Sequence[Receipt | PublishError]:
        """Publish a run; one outcome for each message."""
        ...

    def changes(self) -> AbstractAsyncContextManager[Any]:
        """Each transition of the connection."""
        ...

    def outcomes(self) -> AbstractAsyncContextManager[Any]:
        """Outcomes that came after their publish had ended."""
        ...


class _Watch:
    """A caller that waits for the confirm of one message."""

    def __init__(self) -> None:
        self.confirmed = anyio.Event()
        self.receipt: Receipt | None = None


class Relay:
    """Run it in a task group beside its producer: ``await tasks.start(relay.run)``."""

    def __init__(
        self,
        store: Store,
        producer: Publisher,
        policy: RelayPolicy,
        *,
        poll_interval: float,
        publish_timeout: float,
    ) -> None:
        self._store = store
        self._producer = producer
        self._policy = policy
        self._poll_interval = poll_interval
        self._publish_timeout = publish_timeout
        self._window = Window(policy)
        self._token = uuid.uuid4().hex
        self._backend: Backend | None = None
        self._news: anyio.Event | None = None
        self._intake = Intake(self._wake)
        self._flush_waiters: list[tuple[int, anyio.Event]] = []
        self._flush_due = False
        #: By message id.
        self._watches: dict[str, _Watch] = {}
        #: Whether the newest row was refused because the outbox was full.
        self._full = False
        self._stopping = False
        self._ended = False
        # Claims: where the next scan begins, and whether rows may wait there.
        self._scan_from = FIRST
        self._rows_may_wait = True
        #: Whether a hint came since the newest claim was asked for; it may be about rows that the claim did not see.
        self._hinted = False
        self._down_since: float | None = None
        #: Whether the connection may have changed since it was looked at.
        self._link_news = True
        self._renew_at = math.inf
        #: When the outcomes that are known must be written, at the latest; infinity: there are none.
        self._settle_at = math.inf
        self._thread = StoreThread(store)
        self._health = StoreHealth(producer.name)
        self._counts = Counts(producer.name)
        self._lines = RelayLog(producer.name, store.place)
        self._last_confirm: datetime | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Relay until `stop`, or cancellation. Raises `OutboxUnusable` where the outbox cannot be opened.

        When the database server does not answer, `run` does not raise: it tries again until the server answers.
        """
        self._backend = backend()
        self._intake.begin(self._backend)
        self._thread.begin(self._backend.clock)
        self._news = anyio.Event()
        try:
            try:
                await self._thread.call_alone(self._store.open)
            except OutboxUnusable as error:
                if error.problem is not OutboxProblem.UNREACHABLE:
                    raise
                self._health.failed(error, self._backend.clock())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_link)
                tasks.start_soon(self._watch_outcomes)
                tasks.start_soon(self._poll)
                tasks.start_soon(self._thread.interrupt_late_calls)
                tasks.start_soon(self._listen)
                task_status.started()
                await self._coordinate(tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._stopping = self._ended = True
            with anyio.CancelScope(shield=True):
                await self._finish()

    @property
    def ended(self) -> bool:
        """Whether `run` has returned or raised."""
        return self._ended

    def stop(self) -> None:
        """Claim and accept nothing more; `run` returns when the outcomes of all rows handed out are written."""
        self._stopping = True
        self._wake()

    async def _finish(self) -> None:
        """Write the known outcomes to the store, give all other rows back, disconnect."""
        self._intake.end()
        self._window.abandon()
        with suppress(OutboxUnusable):
            if self._window.has_orders:
                await self._thread.call_alone(
                    self._store.transact, Work(settlement=self._window.orders()), self._token, 0.0
                )
            await self._thread.call_alone(self._store.release, self._token)
        await self._thread.call(self._store.close)
        self._lines.count_left_out(math.inf)

    # --- for publishers ---------------------------------------------------------------------------------------------

    async def enqueue(self, message: Message, *, key: str | None = None) -> Stored:
        """Store the message; return when it is on disk.

        Cancelled before the row is on its way to the disk, nothing is stored. Cancelled later, the call waits for the
        disk and returns, because the message is stored. Raises `OutboxFull`, `OutboxUnusable`, `ProducerClosed`.
        """
        row = encode(message, key)
        if self._stopping:
            raise ProducerClosed(row.message_id, "the producer is closed; the message was not stored")
        if not self._intake.open:
            raise RuntimeError("the producer is not running: enqueue() needs `await nursery.start(producer.run)` first")
        return await self._intake.store(row, message)

    async def enqueue_and_wait(self, message: Message, *, key: str | None = None, patience: float) -> Receipt | Stored:
        """Store the message; return its receipt if the confirm comes within `patience` seconds, otherwise `Stored`."""
        watch = _Watch()
        self._watches[message.message_id] = watch
        try:
            stored = await self.enqueue(message, key=key)
            with anyio.move_on_after(patience):
                await watch.confirmed.wait()
        finally:
            if self._watches.get(message.message_id) is watch:
                del self._watches[message.message_id]
        return watch.receipt or stored

    async def wait_flushed(self, timeout: float) -> None:
        """Wait until everything stored so far is confirmed or set aside. Raises `OutboxNotFlushed` at the timeout."""
        done = anyio.Event()
        with anyio.move_on_after(timeout):
            waiter = (await self._last_position(), done)
            self._flush_waiters.append(waiter)
            try:
                self._flush_due = True
                self._wake()
                await done.wait()
                return
            finally:
                self._flush_waiters.remove(waiter)
        status = self.status()
        reason = self._lines.why_rows_wait(self._producer.status(), status, holds=self._policy.on_poison == "hold")
        raise OutboxNotFlushed(timeout=timeout, waiting=status.backlog, reason=reason)

    async def _last_position(self) -> int:
        while True:
            try:
                return await self._thread.call(self._store.last_position)
            except OutboxUnusable as error:
                if error.problem is not OutboxProblem.UNREACHABLE:
                    raise
                await anyio.sleep(STORE_RETRY[0])

    def status(self) -> OutboxStatus:
        """The outbox as it was counted last, at most about a second ago."""
        return evolve(
            self._counts.now(self._window.confirmed),
            full=self._full,
            last_confirm=self._last_confirm,
            confirmed=self._window.confirmed,
            possible_duplicates=self._window.possible_duplicates,
            last_error=None if self._health.failure is None else str(self._health.failure),
        )

    # --- the coordinator --------------------------------------------------------------------------------------------

    async def _coordinate(self, tasks: anyio.abc.TaskGroup) -> None:
        assert self._backend is not None
        clock = self._backend.clock
        while True:
            now = clock()
            self._follow_link(now)
            self._start_runs(tasks)
            if not self._window.has_orders:
                self._settle_at = math.inf
            elif self._settle_at == math.inf:
                self._settle_at = now + _SETTLE_WITHIN
            work, pending = self._next_work(now)
            if work is not None:
                await self._do(work, pending, now)
            elif self._stopping and not self._window.flights and not self._window.has_orders:
                return
            elif self._stopping and self._health.failure is not None and not self._window.flights:
                return  # the store cannot be used now: `_finish` tries once more
            else:
                await self._nap(now)

    def _start_runs(self, tasks: anyio.abc.TaskGroup) -> None:
        assert self._backend is not None
        if self._down_since is None and not self._stopping:
            for run in self._window.runs(self._backend.clock()):
                tasks.start_soon(self._publish, run, tasks)

    def _follow_link(self, now: float) -> None:
        if self._link_news:
            self._link_news = False
            status = self._producer.status()
            up = status.connection_state is ConnectionState.CONNECTED and not status.blocked
            if not up and self._down_since is None:
                self._down_since = now
            elif up and self._down_since is not None:
                self._down_since = None
                self._rows_may_wait = True
        if self._down_since is None:
            return
        if len(self._window) and not self._window.flights and now - self._down_since >= _GIVE_BACK_AFTER:
            self._window.release_unsent()

    def _next_work(self, now: float) -> tuple[Work | None, list[Pending]]:
        pending = self._intake.take()
        failing = self._health.failure is not None
        rows = [one.row for one in pending]
        # After a failure, inserts have a transaction of their own, and the relay's other work waits for `retry_at`:
        # a full disk that refuses a row must not hold up the deletes that free space.
        if now < self._health.retry_at or (failing and pending):
            work = Work(inserts=rows)
        else:
            want: Want | None = None
            relaying = self._down_since is None and not self._stopping
            if relaying and self._rows_may_wait:
                want = self._window.want(self._scan_from)
            # New rows are claimed here only if no older rows may wait: older rows are claimed first.
            take = relaying and not self._rows_may_wait and bool(rows) and self._window.can_take(rows)
            if want is not None:
                self._rows_may_wait = self._hinted = False
            renew = now >= self._renew_at and len(self._window) > 0
            flush_to = self._flush_to()
            # A flush asks for the counts too: they are right when `wait_flushed` returns.
            count = now >= self._counts.due or flush_to is not None
            shared = rows or want is not None or renew or count or self._stopping or self._full
            settle = self._window.has_orders and (shared or now >= self._settle_at)
            work = Work(
                inserts=rows,
                take=take,
                settlement=self._window.orders() if settle else Settlement(),
                renew=renew,
                want=want,
                count=count,
                flushed_to=flush_to,
            )
        asked = pending or work.settlement or work.renew or work.count
        asked = asked or work.want is not None or work.flushed_to is not None
        return (work if asked else None), pending

    def _flush_to(self) -> int | None:
        """The position to ask about: the lowest that a caller of `wait_flushed` waits for, if it may be reached now."""
        if not self._flush_waiters or not (self._flush_due or self._window.has_orders):
            return None
        position = min(position for position, _ in self._flush_waiters)
        return None if self._window.holds_up_to(position) else position

    async def _do(self, work: Work, pending: list[Pending], began: float) -> None:
        try:
            done = await self._thread.call(self._store.transact, work, self._token, self._policy.lease)
        except OutboxUnusable as error:
            self._rows_may_wait = self._rows_may_wait or work.want is not None
            # Each caller raises an exception of its own.
            self._intake.answer(pending, [copy.copy(error) for _ in pending])
            if not pending or self._health.failure is None:
                assert self._backend is not None
                self._health.failed(error, self._backend.clock())
            return
        except BaseException:
            text = (
                "the outbox stopped; perhaps the message is stored: look for its message_id before you enqueue it again"
            )
            self._intake.answer(pending, [OutboxError(text) for _ in pending])
            raise
        self._health.worked()
        if pending:
            self._intake.answer(pending, done.stored)
            self._full = not isinstance(done.stored[-1], int)
            if done.claim is None or any(one.row.key is not None for one in pending):
                self._rows_may_wait = True
        if pending or work.settlement or done.claimed.rows:
            self._counts.changed = True
        self._apply(work, done, began)
        if done.claim is not None:
            self._window.take_new(_taken(done.claim, pending))

    def _apply(self, work: Work, done: Done, began: float) -> None:
        if not done.owned:
            _log.warning(
                "%s: another relay took over this relay's rows, because its lease of %g s ran out; they may be published twice",
                self._producer.name, self._policy.lease,
            )  # fmt: skip
            self._window.lost()
            self._token = uuid.uuid4().hex
            self._renew_at = math.inf
            self._rows_may_wait = True
            return
        if work.settlement:
            self._report(work.settlement, began)
            self._window.written(work.settlement)
            self._flush_due = bool(self._flush_waiters)
        if work.settlement or work.renew or done.claimed.rows or done.claim is not None:
            self._window.leased_until = began + self._policy.lease
            self._renew_at = began + self._policy.lease / 4
        if work.want is not None:
            self._lines.took_over(done.claimed.taken_over)
            self._window.take(done.claimed, work.want)
            self._rows_may_wait = self._rows_may_wait or done.claimed.more
            if not self._hinted:
                self._scan_from = done.claimed.scanned_to
        if work.flushed_to is not None:
            self._flush_due = False
            if done.flushed:
                for position, event in self._flush_waiters:
                    if position <= work.flushed_to:
                        event.set()
                        self._flush_due = True  # others may wait for a higher position
        if done.status is not None:
            assert self._backend is not None
            self._counts.take(done.status, self._window.deleted, began, self._backend.clock())

    def _report(self, settlement: Settlement, now: float) -> None:
        if settlement.confirmed:
            self._full = False
            self._last_confirm = datetime.now(UTC)
        self._lines.settled(settlement, now)

    async def _nap(self, now: float) -> None:
        """Sleep until there is something to do."""
        due = min(
            self._window.wakes_at(),
            self._renew_at if len(self._window) else math.inf,
            self._counts.due,
            self._settle_at,
            math.inf if self._down_since is None else self._down_since + _GIVE_BACK_AFTER,
        )
        if due <= now:  # the work is due and cannot be done now
            due = math.inf if self._health.retry_at <= now else self._health.retry_at  # inf: an event will set `_news`
        due = max(due, self._health.retry_at)
        assert self._news is not None
        with anyio.move_on_after(max(0.0, due - now)):
            await self._news.wait()
        self._news = anyio.Event()

    # --- tasks beside it --------------------------------------------------------------------------------------------

    async def _publish(self, run: Run, tasks: anyio.abc.TaskGroup) -> None:
        messages = [_message(flagged, row.message, row.possible_duplicate) for row in run.rows]
        outcomes: Sequence[Receipt | PublishError]
        try:
            outcomes = await self._producer.publish_many(messages, timeout=self._publish_timeout)
        except PublishError as error:  # the producer is closed
            outcomes = [error] * len(messages)
        assert self._backend is not None
        self._window.landed(run, outcomes, self._backend.clock())
        for outcome in outcomes if self._watches else ():
            if isinstance(outcome, Receipt) and outcome.message_id in self._watches:
                watch = self._watches.pop(outcome.message_id)
                watch.receipt = outcome
                watch.confirmed.set()
        # The coordinator may be waiting for the disk; the next rows of these keys need not wait for it.
        self._start_runs(tasks)
        self._wake()

    async def _watch_link(self) -> None:
        async with self._producer.changes() as changes:
            async for _ in changes:
                self._link_news = True
                self._wake()

    async def _watch_outcomes(self) -> None:
        async with self._producer.outcomes() as outcomes:
            async for outcome in outcomes:
                if self._window.late(outcome.message_id, outcome.result):
                    self._wake()

    async def _poll(self) -> None:
        assert self._backend is not None
        clock = self._backend.clock
        while True:
            await anyio.sleep(self._poll_interval)
            self._hint()
            self._link_news = True
            self._flush_due = bool(self._flush_waiters)  # another relay may have published the rows
            self._lines.count_left_out(clock())
            self._wake()

    async def _listen(self) -> None:
        """Follow the hints of the store: they wake the relay sooner, and the poll finds what they miss."""
        while True:
            await self._store.wait_hint()
            self._hint()

    # --- within -----------------------------------------------------------------------------------------------------

    def _hint(self) -> None:
        """Rows may wait anywhere in the outbox."""
        self._scan_from, self._rows_may_wait, self._hinted = FIRST, True, True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()


def _taken(claim: int, pending: Sequence[Pending]) -> Iterator[Row]:
    """Return the rows that were claimed in the transaction that stored them."""
    for one in pending:
        row, message, position = one.row, one.message, one.result
        if row.key is None and isinstance(position, int):
            if message.headers or not message.message_id:  # headers may have been changed since
                yield _read(claim, position, row)
            else:
                yield Row(position, claim, None, message)


def _read(claim: int, position: int, row: NewRow) -> Row:
    try:
        message = decode(row.message_id, row.exchange, row.routing_key, row.properties, row.body)
    except ValueError as error:
        return Row(position, claim, None, None, problem=str(error))
    return Row(position, claim, None, message)


def _message(flag: Callable[[Message], Message], message: Message | None, possible_duplicate: bool) -> Message:
    assert message is not None, "a row without a message is never published"
    return flag(message) if possible_duplicate else message
