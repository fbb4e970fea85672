"""The producer: the object that a user holds. It outlives links, and gives each publish its one outcome.

`Producer.publish` makes a `Delivery`, has it accepted (`admission`) and written (`sender`), and waits until the ledger has
set its outcome. The supervisor does everything about links. `run()` connects the two.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Literal, Self, Unpack

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import evolve

from warrener._backend import Backend, backend
from warrener._ids import id_prefix, message_ids
from warrener._publishing.accepting import accepted, offered, published
from warrener._publishing.assembly import assembled
from warrener._publishing.declaring import Declaring
from warrener._publishing.destinations import Destinations
from warrener._publishing.enqueuing import Enqueuing
from warrener._publishing.envelopes import (
    PUBLISH_TIMEOUT,
    Envelopes,
    require_destination,
    seconds,
    with_message_fields,
    with_target_fields,
)
from warrener._publishing.handles import PublishHandle, received
from warrener._publishing.ledger import Ledger
from warrener._publishing.many import ManyPublishes
from warrener._publishing.observing import Observing
from warrener._publishing.outcome_stream import OutcomeStream, streaming
from warrener._publishing.place import Place, not_running
from warrener._publishing.relaying import OutboxLike, RelayLike, running_beside
from warrener._publishing.running import running
from warrener._publishing.runs import receipt_of
from warrener._publishing.sender import Sender
from warrener._publishing.streams import Streams
from warrener._publishing.targets import Direct, Target
from warrener._publishing.watching import present_status, until_connected
from warrener._retry_rules import RetryRules
from warrener._settings.settings import Settings, SettingsFields
from warrener._supervision.supervisor import Supervisor
from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Driver, Link, Peer
from warrener.errors import (
    Fault,
    FaultKind,
    PublishError,
    SettingsError,
    Unreachable,
    connect_error,
)
from warrener.records import (
    Body,
    ClosingReport,
    ConnectionState,
    Message,
    MessageFields,
    Receipt,
    Status,
    TargetFields,
)
from warrener.retry import Retry, retry_rules
from warrener.topology import Declaration, Exchange, standard_exchanges
from warrener.tracing import instrument

__all__ = ["PUBLISH_TIMEOUT", "MessageFields", "Producer", "open_producer", "running"]


class Producer(Declaring, Enqueuing, Observing):
    """A supervised publisher with confirms. Run it in a nursery or task group: ``await nursery.start(producer.run)``.

    Or run it around a body: ``async with Producer(url) as producer``. `url_or_settings` is an ``amqp://`` or ``amqps://`` URL,
    a `Settings`, or None for the URL in ``RABBITMQ_URL``. `driver` is "native", "aiormq" or a `Driver`. `outbox` is where
    `enqueue` stores messages. Each row of the table of defaults (docs/reference.md) is a keyword. An argument wins over the URL's query, and the query over the environment.

    Raises `SettingsError` if a setting is missing, unknown or contradicts another.
    """

    def __init__(
        self,
        url_or_settings: str | Settings | Sequence[str] | None = None,
        *,
        driver: Literal["native", "aiormq"] | Driver = "native",
        outbox: OutboxLike | None = None,
        rng: random.Random | None = None,
        **settings: Unpack[SettingsFields],
    ) -> None:
        self.settings = Settings.resolve(url_or_settings, **settings)
        self.name = self.settings.name
        self._driver = _driver(driver)
        self._rng = rng or random.Random()
        prefix = id_prefix(rng)
        self._envelopes = Envelopes(message_ids(prefix))
        self._publish_timeout = self.settings.publish_timeout
        self._streams = Streams()
        self._place = Place()
        self._direct = Direct(self._place, self._publish_timeout)
        self._run_called = False
        self._report = ClosingReport()
        self._outbox = outbox
        self._relay: RelayLike | None = None
        self._around: AbstractAsyncContextManager[Producer] | None = None
        # Set by run(), None before it.
        self._finished: anyio.Event | None = None
        self._backend: Backend | None = None
        self._sender: Sender | None = None
        self._supervisor: Supervisor | None = None
        s = self.settings
        self._ledger = Ledger(
            max_buffered=s.max_buffered,
            max_buffered_bytes=s.max_buffered_bytes,
            max_in_flight=s.max_in_flight,
            max_in_flight_bytes=s.max_in_flight_bytes,
            retry=retry_rules(s.retry_policy),
            confirm_timeout=s.confirm_timeout,
            refusal_memory=s.refusal_memory,
            max_destinations=s.max_destinations,
            standard_exchanges=standard_exchanges(s.topology),
            id_prefix=prefix,
        )
        self._destinations = Destinations(s.breaker, s.max_destinations, s.breaker_scope)
        self._topology = LiveTopology(s.topology, strict=s.topology_errors == "strict")
        if s.links > 1:
            from warrener._publishing.links import LinkedProducer

            # The number of links may stand in the URL or in the environment, so it is known only here.
            object.__setattr__(self, "__class__", LinkedProducer)
            self._split()

    def _split(self) -> None:
        """Make the parts of a producer with several links; with one link there is nothing to do."""

    def __repr__(self) -> str:
        return f"<Producer {self.name!r} {self.status().endpoint} {self.connection_state.value}>"

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Run the producer around a body; see `open_producer`."""
        if self._around is not None:
            raise RuntimeError(
                "this Producer was used in an `async with` before; make a new Producer for each `async with`"
            )
        around = running(self)
        await around.__aenter__()
        self._around = around
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Drain and close; after an error or a cancellation, close without draining."""
        assert self._around is not None
        return await self._around.__aexit__(kind, error, traceback)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Supervise the connection until `aclose()` or a cancellation; for `nursery.start` and `task_group.start`.

        It starts whether or not a broker is there. With ``when_exhausted="raise"``, a `ConnectError` is raised without an
        ExceptionGroup when the attempts are used up. A second call is a RuntimeError. When `run()` has ended, each accepted
        message has its outcome, and no task, socket or timer is left.
        """
        finished = self._begin()
        traced = instrument(self)
        self._backend = backend()
        supervisor, sender = assembled(
            self.settings, self._driver, self._rng, self._backend, self._ledger, self._destinations, self._topology,
            self._streams.told,
        )  # fmt: skip
        supervisor.watch(lambda: self._streams.changed(self.status))
        self._supervisor, self._sender = supervisor, sender
        self._direct.sender = None if traced else sender
        self._relay = None if self._outbox is None else self._outbox.relay(self)
        try:
            # The relay outlives the connection: it writes down the outcomes that the end of the connection decides.
            async with running_beside(self._relay):
                try:
                    await supervisor.run(started=task_status.started)
                finally:
                    supervisor.finalize()
                    self._report = ClosingReport(
                        confirmed=self._ledger.counters.confirmed,
                        unconfirmed=tuple(sender.settling.unconfirmed),
                        not_sent=tuple(sender.settling.not_sent),
                    )
                    self._streams.end()
        finally:
            self._place.leave()
            finished.set()

    def _begin(self) -> anyio.Event:
        """Note that the producer runs here; return the event that is set when it has ended."""
        if self._run_called:
            why = "it was closed before it ran" if self._finished is None else "run() may be called once"
            raise RuntimeError(f"this producer cannot run: {why}; make another Producer")
        self._run_called = True
        self._finished = anyio.Event()
        self._place.enter()
        return self._finished

    async def aclose(self) -> ClosingReport:
        """Accept nothing more, wait at most `drain_timeout` for outcomes, close, and report.

        It may be called again. If `run()` was never called, it returns at once; otherwise it waits until `run()` has ended.
        """
        if self._finished is None or self._supervisor is None or self._sender is None:
            self._close_unused()
            await anyio.lowlevel.checkpoint()
            return self._report
        self._place.check()
        if not self._finished.is_set():
            # `stop` first: with an empty ledger `stop_accepting` posts `Drained`, which is ignored before a stop.
            self._supervisor.stop(drain=True)
            self._sender.stop_accepting()
        await self._finished.wait()
        return self._report

    def abort(self) -> None:
        """Close without draining: messages that were written and not confirmed end as `Unconfirmed`.

        The broker has `close_timeout` to answer the close. Then the connection is aborted, within `abort_timeout`.
        """
        if self._supervisor is None or self._sender is None:
            self._close_unused()
            return
        self._place.check()
        self._supervisor.stop(drain=False)
        self._sender.stop_accepting()

    def _close_unused(self) -> None:
        """Close a producer that never ran: it cannot run any more, and its streams end."""
        if not self._run_called:
            self._run_called = True
            self._streams.changed(self.status)
            self._streams.end()

    # --- publishing -------------------------------------------------------------------------------------------------

    @with_message_fields
    async def publish(
        self,
        body: Body | Message,
        *,
        key: str | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        retry: Retry | None = None,
        **fields: Unpack[MessageFields],
    ) -> Receipt:
        """Publish one message; return when the broker has confirmed it.

        Either ``publish(body, **fields of Message)`` or ``publish(message)``; both mixed is a TypeError. `timeout` is
        seconds from the call (default: the producer's `publish_timeout`; ``math.inf`` allowed). It bounds the whole call:
        the wait for capacity, for a link, and for the confirm. `retry` is the policy of this message alone; None: the
        producer's. With several `links`, messages of one `key` travel on one link, in order; with one link all do.

        Raises a `PublishError`; its `may_have_been_delivered` says whether a queue may hold the message. If this call is
        cancelled before the message is written, nothing is sent. If it is cancelled later, `outcomes()` tells the outcome.
        Always a checkpoint.
        """
        sender, backend = self._sender, self._backend
        if sender is None or backend is None or threading.get_ident() != self._place.thread:
            raise self._not_here()
        ticket = backend.ticket() or await backend.checked_ticket()
        allowed = self._publish_timeout if timeout is PUBLISH_TIMEOUT else seconds(timeout, self._publish_timeout)
        if (
            type(body) is bytes
            and retry is None
            and (envelope := self._envelopes.known(fields)) is not None
            and (
                sender.add(envelope, body, ticket, allowed, backend.clock())
                or sender.join(envelope, body, ticket, allowed)
            )
        ):
            await backend.wait(ticket)
            if ticket.code:
                return receipt_of(sender.id_prefix, ticket.code)
            return received(ticket)
        rules = None if retry is None else retry_rules(retry)
        return await published(sender, self._envelopes, body, allowed, rules, fields)

    @with_message_fields
    async def publish_many(
        self,
        messages: Iterable[Body | Message] | AsyncIterable[Body | Message],
        *,
        key: str | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        retry: Retry | None = None,
        **fields: Unpack[MessageFields],
    ) -> Sequence[Receipt | PublishError]:
        """Publish many messages, pipelined; return their outcomes in the order given, errors as values.

        Either messages, or bodies that share the fields given; a routing key or an exchange must be among the fields of
        bodies. Messages are accepted as capacity comes free, so their number has no limit. `timeout` is seconds from the
        call; messages that are not written by then end as `NotSent`. `retry` is the policy of these messages; None: the
        producer's.
        """
        sender, backend = self._sender, self._backend
        if sender is None or backend is None or threading.get_ident() != self._place.thread:
            raise self._not_here()
        await backend.checkpoint_if_cancelled()
        deadline = backend.clock() + seconds(timeout, self._publish_timeout)
        rules = None if retry is None else retry_rules(retry)
        many = ManyPublishes(sender, self._envelopes, deadline, fields, rules)
        return await many.publish(messages)

    @with_message_fields
    def publish_nowait(
        self,
        body: Body | Message,
        *,
        key: str | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        retry: Retry | None = None,
        **fields: Unpack[MessageFields],
    ) -> PublishHandle:
        """Accept one message without waiting; raise `BufferFull` if there is no capacity. The handle has the outcome.

        `timeout` and `retry` are as for `publish`.
        """
        sender, backend = self._sender, self._backend
        if sender is None or backend is None or threading.get_ident() != self._place.thread:
            raise self._not_here()
        rules = None if retry is None else retry_rules(retry)
        allowed = seconds(timeout, self._publish_timeout)
        handle, waiting = offered(sender, self._envelopes, body, allowed, rules, fields)
        if waiting is not None:
            raise sender.admission.full(waiting)
        return handle

    @with_message_fields
    def publish_stream(
        self,
        source: AsyncIterable[Body | Message] | Iterable[Body | Message],
        *,
        window: int = 1000,
        key: str | None = None,
        timeout: float = PUBLISH_TIMEOUT,
        retry: Retry | None = None,
        **fields: Unpack[MessageFields],
    ) -> AbstractAsyncContextManager[OutcomeStream]:
        """Publish what the source yields, while the body of ``async with`` reads the outcomes, in the order of the source.

        ``async with producer.publish_stream(source, window=1000) as outcomes: async for outcome in outcomes``. The source is
        read on as long as fewer than `window` outcomes wait to be read. Errors are items and are not raised; an exception of
        the source is raised behind the outcomes of the messages before it. `timeout` is seconds from the moment at which a
        message was taken from the source. When the body ends, messages without an outcome are cancelled. The rest is as for
        `publish_many`.
        """
        if not self._run_called or threading.get_ident() != self._place.thread:
            raise self._not_here()
        rules = None if retry is None else retry_rules(retry)
        allowed = seconds(timeout, self._publish_timeout)
        if fields:
            require_destination("publish_stream", fields)
        return streaming(lambda message: self._accepted(message, key, allowed, rules, fields), source, window)

    async def _accepted(
        self, body: Body | Message, key: str | None, allowed: float, rules: RetryRules | None, fields: MessageFields
    ) -> PublishHandle | PublishError:
        """Accept a message of a stream; `key` chooses the link where there are several."""
        if self._sender is None:
            raise self._not_here()
        return await accepted(self._sender, self._envelopes, body, allowed, rules, fields)

    @with_target_fields
    def to(self, exchange: str = "", routing_key: str = "", **fields: Unpack[TargetFields]) -> Target:
        """Return a `Target`: it publishes bodies to this exchange and routing key, with these fields of `Message`.

        The fields are checked and encoded once. Raises `InvalidMessage` for a value that AMQP cannot carry.
        """
        return Target(self, self._direct, exchange, routing_key, fields)

    def _relay_here(self) -> RelayLike:
        if self._outbox is None:
            raise RuntimeError("this producer has no outbox; make it with outbox=warrener.outbox.SQLiteOutbox(path)")
        if self._relay is None or threading.get_ident() != self._place.thread:
            raise self._not_here()
        return self._relay

    def _not_here(self) -> Exception:
        """Return the error for a call to a producer that does not run, or runs elsewhere."""
        return self._place.error() if self._sender is not None else not_running(closed=self._run_called)

    # --- topology: see `Declaring` ----------------------------------------------------------------------------------

    async def _on_link(self) -> tuple[LiveTopology, Link]:
        supervisor = self._supervisor
        if supervisor is None:
            raise self._not_here()
        self._place.check()
        await until_connected(supervisor, self._publish_timeout)
        link = supervisor.live_link
        if link is None:  # the link was lost after the wait had ended
            raise Unreachable(supervisor.record.last_fault or Fault(FaultKind.CONNECTION_LOST, "the link was lost"))
        return supervisor.topology, link

    def _declared(self, declarations: Iterable[Declaration]) -> None:
        standard = standard_exchanges(declarations)
        for each in declarations:
            if isinstance(each, Exchange):
                self._ledger.declared(each.name, standard=None if each.passive else each.name in standard)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def connection_state(self) -> ConnectionState:
        """The first field of `status()`."""
        if self._supervisor is None:
            return ConnectionState.CLOSED if self._run_called else ConnectionState.DISCONNECTED
        return self._supervisor.connection_state

    def status(self) -> Status:
        """The producer at this instant: O(1), without side effects; it dials nothing."""
        now = 0.0 if self._backend is None else self._backend.clock()
        status = present_status(
            self.connection_state, self._supervisor, self._ledger, self._destinations, self.settings, now
        )
        return status if self._relay is None else evolve(status, outbox=self._relay.status())

    @property
    def peer(self) -> Peer | None:
        """The result of the present link's handshake; None while there is no link."""
        return None if self._supervisor is None else self._supervisor.peer

    async def wait_connected(self, timeout: float = math.inf) -> None:
        """Wait until messages can be written: the link is up, and the broker does not block publishers.

        Raises a `ConnectError` at once for a lasting refusal (credentials, vhost, TLS, protocol, topology). Raises
        `Unreachable` after `timeout` seconds, `GaveUp` if the attempts are used up, `ProducerClosed` after a close.
        """
        if self._supervisor is None:
            raise self._not_here()
        self._place.check()
        await until_connected(self._supervisor, timeout)
        refusal = self._supervisor.topology.refusal
        if refusal is not None:
            raise connect_error(refusal)

    def reconnect(self) -> bool:
        """Hint that the broker is back: dial now, or dial again after giving up. False if ignored (one hint per second)."""
        if self._supervisor is None or self._finished is None or self._finished.is_set():
            return False
        self._place.check()
        return self._supervisor.reconnect()

    async def hand_over(self, endpoint: int | None = None) -> bool:
        """Go on at another endpoint, and return when messages can be written there. False if this was ignored.

        `endpoint` is a position in the list of URLs, from 0; None means the next one that is ready. The producer writes
        nothing more, waits for the confirms of the messages in flight, at most `drain_timeout`, closes the link, and dials. A
        message that has no confirm by then is treated as after the loss of a link. It is ignored unless the link is up.

        Raises as `wait_connected` does.
        """
        if self._supervisor is None:
            raise self._not_here()
        self._place.check()
        handing_over = self._supervisor.hand_over(endpoint)
        await anyio.lowlevel.checkpoint()
        if handing_over:
            await until_connected(self._supervisor, math.inf)
        return handing_over


@asynccontextmanager
async def open_producer(
    url_or_settings: str | Settings | Sequence[str] | None = None,
    *,
    driver: Literal["native", "aiormq"] | Driver = "native",
    outbox: OutboxLike | None = None,
    rng: random.Random | None = None,
    **settings: Unpack[SettingsFields],
) -> AsyncIterator[Producer]:
    """Run a producer around the body of ``async with``. Arguments as for `Producer`.

    A normal exit drains. An exception or a cancellation skips draining and closes within `abort_timeout`. An exception of
    the body is raised without an ExceptionGroup. If `run()` raises, the body is cancelled and that error is raised, without
    an ExceptionGroup too. If both raise, the body's error is raised, and its context is the error of `run()`.
    """
    async with running(Producer(url_or_settings, driver=driver, outbox=outbox, rng=rng, **settings)) as producer:
        yield producer


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
