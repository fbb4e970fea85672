"""The producer: what a user holds. It outlives links, and tells each publisher the truth about each message.

`Producer.publish` makes a `Delivery`, asks the sender once (closing, gave up, breaker, room), has it accepted, and parks
until the ledger has decided its outcome. Everything about links is the supervisor's; `run()` ties the two together and
is the one place where the producer's tasks live.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Generic, Literal, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import asdict

from warrener._backend import Backend, backend
from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener._ids import message_ids
from warrener._publishing.ledger import Delivery, Ledger
from warrener._publishing.sender import Batch, Sender
from warrener._settings.settings import Settings, SettingsFields
from warrener._supervision.supervisor import Supervisor
from warrener.drivers.base import Driver, Peer
from warrener.errors import (
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    InvalidMessage,
    ProducerClosed,
    PublishError,
    SettingsError,
    Unconfirmed,
    Unreachable,
    connect_error,
)
from warrener.machine import Policy, states
from warrener.records import (
    ClosingReport,
    ConnectionState,
    Envelope,
    FieldValue,
    Message,
    Outcome,
    Receipt,
    Status,
)

__all__ = ["Changes", "MessageFields", "Outcomes", "Producer", "PublishHandle", "open_producer"]

#: Stands for the producer's `publish_timeout` where a call names none: this very object, not any other NaN. None would read
#: as "no deadline", and that is `math.inf`.
PUBLISH_TIMEOUT: Final = float("nan")
#: How many envelopes (distinct sets of fields) a producer keeps ready; beyond it, it starts afresh.
ENVELOPE_CACHE = 1024
#: How many items a watcher of `changes()` may lag behind; then the oldest is dropped and counted.
CHANGES_LIMIT = 256
#: The same for `outcomes()`.
OUTCOMES_LIMIT = 1000
#: How many messages `publish_many` has in hand before it lets other tasks run.
MANY_STRIDE = 128


class MessageFields(TypedDict, total=False):
    """The fields of `Message` but its body, as keywords of `Producer.publish`."""

    exchange: str
    routing_key: str
    headers: Mapping[str, FieldValue]
    content_type: str | None
    content_encoding: str | None
    priority: int | None
    expiration: float | None
    message_id: str
    correlation_id: str | None
    reply_to: str | None
    type: str | None
    app_id: str | None
    user_id: str | None
    timestamp: datetime | None
    persistent: bool
    mandatory: bool


Item = TypeVar("Item")


def _envelope(message: Message) -> Envelope:
    return Envelope(
        exchange=message.exchange,
        routing_key=message.routing_key,
        mandatory=message.mandatory,
        headers=dict(message.headers) or None,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=2 if message.persistent else 1,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration is None else str(round(message.expiration * 1000)),
        timestamp=message.timestamp,
        type=message.type,
        user_id=message.user_id,
        app_id=message.app_id,
    )


#: The fields of a message without headers that its envelope is made of, as a key.
_plain_fields = attrgetter(
    "exchange", "routing_key", "content_type", "content_encoding", "priority", "expiration", "correlation_id",
    "reply_to", "type", "app_id", "user_id", "timestamp", "persistent", "mandatory",
)  # fmt: skip


class _Stream(Generic[Item]):
    """A bounded queue between the producer, which never waits for it, and one reader."""

    def __init__(self, limit: int) -> None:
        self._items: deque[Item] = deque()
        self._limit = limit
        self._news = anyio.Event()
        self._ended = False
        #: How many items were dropped because the reader lagged behind.
        self.missed = 0

    def put(self, item: Item) -> None:
        if len(self._items) >= self._limit:
            self._items.popleft()
            self.missed += 1
        self._items.append(item)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._items.popleft()


class Changes(_Stream[Status]):
    """What `Producer.changes()` yields."""


class Outcomes(_Stream[Outcome]):
    """What `Producer.outcomes()` yields."""


class Producer:
    """A supervised, confirmed publisher; run it in a nursery or task group with ``await nursery.start(producer.run)``.

    `url_or_settings` is an ``amqp://`` or ``amqps://`` URL, a `Settings`, or None for the environment's
    ``RABBITMQ_URL``. `driver` is "native", "aiormq" or a `Driver`. Every row of the table of defaults
    (docs/reference.md) is a keyword; explicit arguments win over the URL's query, that over the environment.

    Raises `SettingsError` for anything missing, unknown or contradictory, here and not later.
    """

    def __init__(
        self,
        url_or_settings: str | Settings | Sequence[str] | None = None,
        *,
        driver: Literal["native", "aiormq"] | Driver = "native",
        rng: random.Random | None = None,
        **settings: Unpack[SettingsFields],
    ) -> None:
        self.settings = Settings.resolve(url_or_settings, **settings)
        self.name = self.settings.name
        self._driver = _driver(driver)
        self._rng = rng or random.Random()
        self._new_id = message_ids(rng)
        self._envelopes: dict[tuple[Any, ...], Envelope] = {}
        self._publish_timeout = self.settings.publish_timeout
        self._run_called = False
        self._finished: anyio.Event | None = None
        self._report = ClosingReport()
        self._closing_from: int | None = None
        self._streams: set[_Stream[Any]] = set()
        # Set by run(), None before it.
        self._backend: Backend | None = None
        self._sender: Sender | None = None
        self._supervisor: Supervisor | None = None
        s = self.settings
        self._ledger = Ledger(
            max_buffered=s.max_buffered,
            max_buffered_bytes=s.max_buffered_bytes,
            max_in_flight=s.max_in_flight,
            at_least_once=s.delivery == "at_least_once",
            confirm_timeout=s.confirm_timeout,
        )

    def __repr__(self) -> str:
        return f"<Producer {self.name!r} {self.settings.endpoint} {self.connection_state.value}>"

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Supervise the connection until `aclose()`, or cancellation; for `nursery.start` and `task_group.start`.

        Starts whether or not a broker is there. Raises a `ConnectError`, bare, when the attempts are used up and
        ``when_exhausted="raise"``; RuntimeError on a second call. When it returns or raises, every accepted message
        has its outcome, and no task, socket or timer is left.
        """
        if self._run_called:
            why = "the producer was closed before it ran" if self._finished is None else "it may be called once"
            raise RuntimeError(f"Producer.run(): {why}; make another Producer")
        self._run_called = True
        s = self.settings
        self._backend = backend()
        self._finished = anyio.Event()
        supervisor = Supervisor(
            name=self.name,
            driver=self._driver,
            endpoint=s.endpoint,
            options=s.link_options(),
            topology=s.topology,
            policy=Policy(
                backoff=s.backoff,
                breaker=s.breaker,
                stable_for=s.stable_for,
                drain_timeout=s.drain_timeout,
                close_timeout=s.close_timeout,
                abort_timeout=s.abort_timeout,
                when_exhausted=s.when_exhausted,
            ),
            clock=self._backend.clock,
            rng=self._rng,
        )
        sender = Sender(
            self._ledger,
            self._backend,
            supervisor,
            name=self.name,
            max_block=s.max_block,
            confirm_timeout=s.confirm_timeout,
        )
        supervisor.sender = sender
        supervisor.watch(self._notify)
        sender.listen(self._tell)
        self._supervisor, self._sender = supervisor, sender
        try:
            await supervisor.run(started=task_status.started)
        finally:
            self._begin_closing()
            supervisor.finalize()
            self._report = self._closing_report()
            self._finished.set()
            for stream in tuple(self._streams):
                stream.end()

    async def aclose(self) -> ClosingReport:
        """Stop accepting, settle what was accepted within `drain_timeout`, close, and say what became of the rest.

        Idempotent. Returns at once if `run()` was never started; otherwise waits for it to end.
        """
        if self._finished is None or self._supervisor is None or self._sender is None:
            self._run_called = True  # a producer that was closed does not start any more
            await anyio.lowlevel.checkpoint()
            return self._report
        if not self._finished.is_set():
            self._begin_closing()
            # In this order: an empty ledger says "drained" at once, which means nothing before the stop is asked for.
            self._supervisor.stop(drain=True)
            self._sender.stop_accepting()
        await self._finished.wait()
        return self._report

    def abort(self) -> None:
        """Close without draining; what was written and not confirmed ends `Unconfirmed`.

        The broker has `close_timeout` to answer; then the link is aborted, within `abort_timeout`.
        """
        if self._supervisor is not None and self._sender is not None:
            self._begin_closing()
            self._supervisor.stop(drain=False)
            self._sender.stop_accepting()

    def _begin_closing(self) -> None:
        if self._closing_from is None:
            self._closing_from = self._ledger.counters.confirmed

    def _closing_report(self) -> ClosingReport:
        return ClosingReport(
            confirmed=self._ledger.counters.confirmed - (self._closing_from or 0),
            unconfirmed=() if self._sender is None else tuple(self._sender.unconfirmed),
            not_sent=() if self._sender is None else tuple(self._sender.not_sent),
        )

    # --- publishing -------------------------------------------------------------------------------------------------

    async def publish(
        self, body: bytes | Message, *, timeout: float = PUBLISH_TIMEOUT, **fields: Unpack[MessageFields]
    ) -> Receipt:
        """Publish one message; return when the broker has confirmed it.

        Either ``publish(body, **fields of Message)`` or ``publish(message)``; both mixed is a TypeError. `timeout` is
        seconds from the call (default: the producer's `publish_timeout`; ``math.inf`` allowed), and bounds everything:
        the wait for room, for a link, and for the confirm.

        Raises a `PublishError`; its `may_have_been_delivered` says whether a queue may hold the message. Cancelled
        before the message is handed over, nothing is sent; cancelled later, it is tracked to its outcome
        (`outcomes()`). Always a checkpoint.
        """
        sender, backend = self._sender, self._backend
        if sender is None or backend is None:
            raise self._not_running()
        await backend.checkpoint_if_cancelled()
        called = backend.clock()
        try:
            delivery = self._delivery(body, called, timeout, fields)
        except InvalidMessage:
            await anyio.lowlevel.checkpoint()
            raise
        if not sender.write_straight(delivery, called):
            refusal = sender.refusal(delivery)
            if refusal is not None:
                await anyio.lowlevel.checkpoint()
                raise refusal
            if not sender.try_accept(delivery, called):
                refusal = await sender.wait_for_room(delivery)
                if refusal is not None:
                    raise refusal
        if delivery.outcome is None:
            await backend.park(delivery, sender.cancelled)
        else:
            await anyio.lowlevel.checkpoint()
        outcome = delivery.outcome
        if type(outcome) is Receipt:
            return outcome
        raise _raised(outcome)

    async def publish_many(
        self, messages: Iterable[Message] | AsyncIterable[Message], *, timeout: float = PUBLISH_TIMEOUT
    ) -> list[Receipt | PublishError]:
        """Publish many messages, pipelined; return their outcomes in the order given, errors as values.

        Admits as room appears and never fails for its own length; what was not written when `timeout` (seconds from
        the call) ends is a `NotSent`.
        """
        sender, backend = self._sender, self._backend
        if sender is None or backend is None:
            raise self._not_running()
        await backend.checkpoint_if_cancelled()
        deadline = backend.clock() + self._seconds(timeout)
        batch = Batch()
        try:
            if isinstance(messages, AsyncIterable):
                async for message in messages:
                    if not self._admit(sender, backend, batch, message, deadline):
                        await self._admit_with_room(sender, batch)
            else:
                for taken, message in enumerate(messages):
                    if taken % MANY_STRIDE == MANY_STRIDE - 1:
                        await anyio.lowlevel.checkpoint()
                    if not self._admit(sender, backend, batch, message, deadline):
                        await self._admit_with_room(sender, batch)
            if batch.left:
                await backend.park(batch, Batch.forget)
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            for delivery in batch.deliveries():
                sender.cancelled(delivery)
            raise
        return [item if isinstance(item, PublishError) else _settled(item) for item in batch.items]

    def _admit(self, sender: Sender, backend: Backend, batch: Batch, message: Message, deadline: float) -> bool:
        """Put the message, or why it is refused, into the batch; False when it has to wait for room."""
        called = backend.clock()
        try:
            delivery = self._delivery(message, called, PUBLISH_TIMEOUT, {})
        except InvalidMessage as refused:
            batch.items.append(refused)
            return True
        delivery.deadline = deadline
        if sender.write_straight(delivery, called):
            delivery.waiter = batch
            batch.left += 1
            batch.items.append(delivery)
            return True
        refusal = sender.refusal(delivery)
        if refusal is None and called >= deadline:
            sender.give_back(delivery)
            refusal = DeadlineExceeded(delivery.message_id, "its turn came after the deadline")
        if refusal is not None:
            batch.items.append(refusal)
            return True
        batch.items.append(delivery)
        if not sender.try_accept(delivery, called):
            return False
        if delivery.outcome is None:
            delivery.waiter = batch
            batch.left += 1
        return True

    async def _admit_with_room(self, sender: Sender, batch: Batch) -> None:
        """Wait until the last message of the batch is let in, or refused."""
        delivery = batch.items[-1]
        assert isinstance(delivery, Delivery)
        refusal = await sender.wait_for_room(delivery)
        if refusal is not None:
            batch.items[-1] = refusal
        elif delivery.outcome is None:
            delivery.waiter = batch
            batch.left += 1

    def publish_nowait(
        self, body: bytes | Message, *, timeout: float = PUBLISH_TIMEOUT, **fields: Unpack[MessageFields]
    ) -> PublishHandle:
        """Accept one message without waiting; `BufferFull` when there is no room. The handle gives the outcome."""
        sender, backend = self._sender, self._backend
        if sender is None or backend is None:
            raise self._not_running()
        called = backend.clock()
        delivery = self._delivery(body, called, timeout, fields)
        if sender.write_straight(delivery, called):
            return PublishHandle(sender, delivery)
        refusal = sender.refusal(delivery)
        if refusal is None and not sender.try_accept(delivery, called):
            sender.give_back(delivery)
            refusal = sender.full(delivery)
        if refusal is not None:
            raise refusal
        return PublishHandle(sender, delivery)

    def _delivery(self, body: bytes | Message, called: float, timeout: float, fields: MessageFields) -> Delivery:
        deadline = called + (self._publish_timeout if timeout is PUBLISH_TIMEOUT else self._seconds(timeout))
        if type(body) is bytes and "message_id" not in fields:
            key = tuple(fields.items())
            try:
                envelope = self._envelopes.get(key)
            except TypeError:  # headers are not hashable: nothing to keep
                message = Message(body, **fields)
                return Delivery(_envelope(message), body, self._new_id(), deadline)
            if envelope is None:
                envelope = self._kept(key, Message(body, **fields))
            return Delivery(envelope, body, self._new_id(), deadline)
        if isinstance(body, Message):
            if fields:
                raise TypeError(f"publish(message) takes no fields beside it: {', '.join(fields)}")
            message = body
        else:
            message = Message(body, **fields)
        envelope = _envelope(message) if message.headers else self._kept(_plain_fields(message), message)
        # The id may be in flight twice, so a returned message is matched by a token of its own (F3).
        return Delivery(envelope, message.body, message.message_id, deadline, self._new_id())

    def _kept(self, key: tuple[Any, ...], message: Message) -> Envelope:
        """Return the envelope of this key, made from the message when it is new: drivers cache by its identity."""
        envelope = self._envelopes.get(key)
        if envelope is None:
            envelope = _envelope(message)
            if len(self._envelopes) >= ENVELOPE_CACHE:
                self._envelopes.clear()
            self._envelopes[key] = envelope
        return envelope

    def _seconds(self, timeout: float) -> float:
        if timeout is PUBLISH_TIMEOUT:
            return self._publish_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise TypeError(f"timeout must be float seconds (math.inf for no deadline), not {timeout!r}")
        if not timeout >= 0:
            raise ValueError(f"timeout must be seconds, 0 or more (math.inf allowed), not {timeout!r}")
        return float(timeout)

    def _not_running(self) -> Exception:
        if self._run_called:
            return ProducerClosed("", "the producer is closed")
        return RuntimeError("the producer is not running: await nursery.start(producer.run) first, or open_producer()")

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def connection_state(self) -> ConnectionState:
        """The first field of `status()`."""
        if self._supervisor is None:
            return ConnectionState.CLOSED if self._run_called else ConnectionState.DISCONNECTED
        return self._supervisor.connection_state

    def status(self) -> Status:
        """The producer at this instant: O(1), no side effect, dials nothing."""
        supervisor, ledger = self._supervisor, self._ledger
        state = self.connection_state
        if supervisor is None:
            return Status(
                connection_state=state, reconnect_attempts=0, consecutive_failures=0, circuit_breaker="closed",
                healthy=False, blocked=False, in_flight=0, buffered=0, retry_in=None, last_fault=None,
                endpoint=str(self.settings.endpoint), heartbeat=None, link=0,
            )  # fmt: skip
        record, peer = supervisor.record, supervisor.peer
        blocked = isinstance(record.state, states.Up) and record.state.blocked
        breaker = "closed" if record.breaker is None else record.breaker.state
        healthy = (
            state is ConnectionState.CONNECTED
            and not blocked
            and breaker != "open"
            and (self._backend is None or not ledger.overdue(self._backend.clock()))
        )
        return Status(
            connection_state=state,
            reconnect_attempts=record.attempts,
            consecutive_failures=record.failures,
            circuit_breaker=breaker,
            healthy=healthy,
            blocked=blocked,
            in_flight=ledger.in_flight,
            buffered=ledger.buffered,
            retry_in=supervisor.retry_in,
            last_fault=record.last_fault,
            endpoint=str(self.settings.endpoint),
            heartbeat=None if peer is None else peer.heartbeat,
            link=record.link,
        )

    @property
    def peer(self) -> Peer | None:
        """What the handshake of the present link settled; None while there is none."""
        return None if self._supervisor is None else self._supervisor.peer

    async def wait_connected(self, timeout: float = math.inf) -> None:
        """Wait until publishers are let in.

        Raises a `ConnectError` at once for a refusal that time does not mend (credentials, vhost, TLS, protocol,
        topology) and after `timeout` seconds (`Unreachable`); `GaveUp`; `ProducerClosed`.
        """
        if self._supervisor is None:
            raise self._not_running()
        await anyio.lowlevel.checkpoint()
        supervisor = self._supervisor
        changed = anyio.Event()

        def note() -> None:
            changed.set()

        stop = supervisor.watch(note)
        try:
            with anyio.move_on_after(timeout):
                while True:
                    record = supervisor.record
                    fault = record.last_fault
                    if isinstance(record.state, states.Up):
                        return
                    if isinstance(record.state, (states.Closed, states.Closing)) or record.draining:
                        raise ProducerClosed("", "the producer is closed", last_fault=fault)
                    if isinstance(record.state, states.GaveUp):
                        raise GaveUp("", "the reconnect attempts are used up", last_fault=fault)
                    if isinstance(record.state, states.Waiting) and fault is not None and fault.permanent:
                        raise connect_error(fault)
                    changed = anyio.Event()
                    await changed.wait()
            fault = supervisor.record.last_fault
            why = f"; last fault: {fault}" if fault is not None else ""
            raise Unreachable(Fault(FaultKind.UNREACHABLE, f"no connection within {timeout:g} s{why}"))
        finally:
            stop()

    def reconnect(self) -> bool:
        """Hint that the broker is back: dial now, or try again after giving up; False when ignored (one per second)."""
        return False if self._supervisor is None or self._is_finished() else self._supervisor.reconnect()

    def _is_finished(self) -> bool:
        return self._finished is not None and self._finished.is_set()

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Changes]:
        """Watch the producer: the present `Status` first, then one for each transition, until CLOSED.

        At most 256 wait to be read; then the oldest is dropped and counted in ``.missed``.
        """
        stream = Changes(CHANGES_LIMIT)
        stream.put(self.status())
        with self._attached(stream):
            yield stream

    @asynccontextmanager
    async def outcomes(self) -> AsyncIterator[Outcomes]:
        """Late and abandoned outcomes: of cancelled publishes, and answers that came after their deadline.

        At most 1,000 wait to be read; then the oldest is dropped and counted in ``.missed``.
        """
        stream = Outcomes(OUTCOMES_LIMIT)
        with self._attached(stream):
            yield stream

    @contextmanager
    def _attached(self, stream: _Stream[Any]) -> Iterator[None]:
        if self._is_finished():
            stream.end()
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    def _notify(self) -> None:
        status = None
        for stream in self._streams:
            if isinstance(stream, Changes):
                status = status or self.status()
                stream.put(status)

    def _tell(self, outcome: Outcome) -> None:
        for stream in self._streams:
            if isinstance(stream, Outcomes):
                stream.put(outcome)

    @property
    def counters(self) -> Mapping[str, int]:
        """Plain counters since the start, for metrics; accepted = confirmed + rejected + nacked + unknown + pending."""
        return {**asdict(self._ledger.counters), **({} if self._supervisor is None else self._supervisor.counters)}

    @property
    def faults(self) -> Mapping[FaultKind, int]:
        """How often each kind of fault ended a dial or a link."""
        return {} if self._supervisor is None else self._supervisor.faults

    @property
    def reconnect_times(self) -> Histogram:
        """Seconds from the loss of a link to the next one being up."""
        return Histogram(RECONNECT_BOUNDS) if self._supervisor is None else self._supervisor.reconnect_times


class PublishHandle:
    """The outcome to come of one `publish_nowait`."""

    def __init__(self, sender: Sender, delivery: Delivery) -> None:
        self._sender = sender
        self._delivery = delivery

    @property
    def message_id(self) -> str:
        """The id under which the message goes."""
        return self._delivery.message_id

    @property
    def settled(self) -> bool:
        """Whether `wait()` would return or raise at once."""
        return self._delivery.outcome is not None

    async def wait(self) -> Receipt:
        """Return the receipt, or raise the `PublishError`, once the outcome is there; again and again, if asked to.

        Cancelling it is nothing to the message, which keeps its own deadline. One task at a time
        (`anyio.BusyResourceError`).
        """
        delivery = self._delivery
        if delivery.outcome is not None:
            await anyio.lowlevel.checkpoint()
        elif delivery.waiter is not None:
            raise anyio.BusyResourceError("waiting for")
        else:
            await self._sender.watch(delivery)
        outcome = delivery.outcome
        if isinstance(outcome, Receipt):
            return outcome
        raise _raised(outcome)


@asynccontextmanager
async def open_producer(
    url_or_settings: str | Settings | Sequence[str] | None = None,
    *,
    driver: Literal["native", "aiormq"] | Driver = "native",
    rng: random.Random | None = None,
    **settings: Unpack[SettingsFields],
) -> AsyncIterator[Producer]:
    """Run a producer around the block of ``async with``. Arguments as for `Producer`.

    A normal exit drains; an exception or a cancellation skips draining and closes within `abort_timeout`. What the
    block raises leaves it bare. If `run()` raises, the block is cancelled and that error leaves bare; if both raise,
    the block's does, with run()'s as its context.
    """
    async with running(Producer(url_or_settings, driver=driver, rng=rng, **settings)) as producer:
        yield producer


@asynccontextmanager
async def running(producer: Producer) -> AsyncIterator[Producer]:
    """Run this producer around a block, with the guarantees of `open_producer`."""
    from_run: Exception | None = None
    from_block: BaseException | None = None
    cancelled = anyio.get_cancelled_exc_class()
    # A scope of the block's own: it takes back the cancellation that it dealt, also out of a group that the block raises.
    block = anyio.CancelScope()

    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal from_run
        try:
            await producer.run(task_status=task_status)
        except Exception as error:  # noqa: BLE001 - raised again, bare, once the task group is left
            from_run = error
            block.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(run)
            try:
                with block:
                    yield producer
            except cancelled:
                producer.abort()
                raise
            except BaseException as error:  # noqa: BLE001 - raised again, bare, once the task group is left
                from_block = error
                producer.abort()
                # A broker that does not answer Close may hold the error up no longer than this.
                tasks.cancel_scope.deadline = anyio.current_time() + producer.settings.abort_timeout
            else:
                await producer.aclose()
    except cancelled:
        # An error outranks the cancellation that came while it was on its way out, as in any nursery.
        if from_block is None and from_run is None:
            raise
    if from_block is not None:
        context = from_run or from_block.__context__
        try:
            raise from_block
        finally:  # the raise puts there what the caller is handling: the block's error as it was before the scope
            from_block.__context__ = context
    if from_run is not None:
        raise from_run


def _settled(delivery: Delivery) -> Receipt | PublishError:
    outcome = delivery.outcome
    return outcome if outcome is not None else Unconfirmed(delivery.message_id, "the producer lost track of it")


def _raised(outcome: Receipt | PublishError | None) -> PublishError:
    if isinstance(outcome, PublishError):
        return outcome
    raise AssertionError("a publisher was woken without an outcome")


def _driver(driver: str | Driver) -> Driver:
    if not isinstance(driver, str):
        return driver
    if driver == "native":
        from warrener.drivers.native import NativeDriver

        return NativeDriver()
    if driver == "aiormq":
        from warrener.drivers.aiormq import AiormqDriver

        return AiormqDriver()
    raise SettingsError(f"driver must be 'native', 'aiormq' or a Driver, not {driver!r}")
