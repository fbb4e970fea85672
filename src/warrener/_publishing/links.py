"""`LinkedProducer`: a producer with several links, each with its own machine, ledger, sender and breaker.

Each link is a producer of its own, a *member*, with its share of the capacity. A publish goes to one member and stays there:
to the member of its key, otherwise to the one that has the fewest messages among those that can write. So the loss of a link
touches the messages of that link only, and the account of the producer is the sum of its members' ledgers. No caller
borrows a link, so no link can be lost by a caller that does not give it back.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import evolve

from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener._publishing.envelopes import PUBLISH_TIMEOUT, with_message_fields
from warrener._publishing.handles import PublishHandle
from warrener._publishing.producer import Producer
from warrener._publishing.relaying import running_beside
from warrener._publishing.streams import Streams
from warrener._retry_rules import RetryRules
from warrener._settings.settings import SHARED_LIMITS, Settings
from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Link, Peer
from warrener.errors import FaultKind, ProducerClosed, PublishError, WarrenerError
from warrener.machine import states
from warrener.records import (
    Body,
    ClosingReport,
    ConnectionState,
    Message,
    MessageFields,
    Outcome,
    Receipt,
    Status,
)
from warrener.retry import Retry
from warrener.topology import Declaration

__all__ = ["LinkedProducer"]

#: From the worst to the best; the producer's state is that of its best link.
_RANKS = (
    ConnectionState.CLOSED,
    ConnectionState.CLOSING,
    ConnectionState.DISCONNECTED,
    ConnectionState.CONNECTING,
    ConnectionState.CONNECTED,
)
#: A name is cut to this number of characters before the number of the link is added.
_NAME = 200


def _share(settings: Settings, number: int) -> Settings:
    """Return the settings of one link: its share of the capacity, and a name of its own."""
    # Rounded down, so that all links together stay within the limit; `Settings` refuses a limit below the number of links.
    shares = {limit: getattr(settings, limit) // settings.links for limit in SHARED_LIMITS}
    return evolve(settings, links=1, name=f"{settings.name[:_NAME]}#{number}", **shares)


class _Upward(Streams):
    """The streams of a member: its changes and outcomes go to the readers of the whole producer."""

    def __init__(self, whole: Streams, status: Callable[[], Status]) -> None:
        super().__init__()
        self._whole = whole
        self._whole_status = status

    def changed(self, status: Callable[[], Status]) -> None:
        """Tell the status of the whole producer."""
        self._whole.changed(self._whole_status)

    def told(self, outcome: Outcome) -> None:
        """Tell an outcome whose caller has left."""
        self._whole.told(outcome)


class _Member(Producer):
    """One link of a producer with several."""

    def __init__(self, settings: Settings, streams: Streams, topology: LiveTopology, **parts: Any) -> None:
        super().__init__(settings, **parts)
        self._streams = streams
        self._topology = topology

    @property
    def closed_before_it_ran(self) -> bool:
        """Whether `aclose()` came before `run()`."""
        return self._run_called

    @property
    def load(self) -> tuple[bool, int]:
        """How much the link has to do; the smaller one is the better choice. A link that cannot write comes last."""
        supervisor = self._supervisor
        state = None if supervisor is None else supervisor.record.state
        writes = (
            isinstance(state, states.Up) and not state.blocked and supervisor is not None and supervisor.breaker_closed
        )
        return not writes, self._ledger.in_flight + self._ledger.buffered

    async def accept(
        self, body: Body | Message, allowed: float, rules: RetryRules | None, fields: MessageFields
    ) -> PublishHandle | PublishError:
        """Accept a message of a stream."""
        return await self._accepted(body, None, allowed, rules, fields)

    async def live(self) -> tuple[LiveTopology, Link]:
        """Wait for the link; return the topology and the link."""
        return await self._on_link()

    def declared(self, declarations: Iterable[Declaration]) -> None:
        """Note what the broker has accepted on another link."""
        self._declared(declarations)

    @property
    def report(self) -> ClosingReport:
        """The closing report of this link."""
        return self._report


class LinkedProducer(Producer):
    """What `Producer(url, links=n)` makes for n above 1; the head of this module explains it."""

    _members: tuple[_Member, ...]
    _turn: int

    def _split(self) -> None:
        self._members = tuple(
            _Member(
                _share(self.settings, number),
                _Upward(self._streams, self.status),
                self._topology,
                driver=self._driver,
                rng=self._rng,
            )
            for number in range(1, self.settings.links + 1)
        )
        self._turn = 0

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Supervise all links, as `Producer.run` does one. The first link whose `run` raises ends the others."""
        finished = self._begin()
        self._relay = None if self._outbox is None else self._outbox.relay(self)
        try:
            async with running_beside(self._relay):
                try:
                    await self._run_members(task_status)
                finally:
                    reports = [member.report for member in self._members]
                    self._report = ClosingReport(
                        confirmed=sum(report.confirmed for report in reports),
                        unconfirmed=tuple(each for report in reports for each in report.unconfirmed),
                        not_sent=tuple(each for report in reports for each in report.not_sent),
                    )
                    self._streams.end()
        finally:
            self._place.leave()
            finished.set()

    async def _run_members(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        failure: Exception | None = None

        async def run(member: _Member, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            nonlocal failure
            if member.closed_before_it_ran:
                task_status.started()
                return
            try:
                await member.run(task_status=task_status)
            except Exception as error:  # noqa: BLE001 - raised again behind the task group, without an ExceptionGroup
                failure = failure or error
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            try:
                for member in self._members:
                    await tasks.start(run, member)
            except RuntimeError:  # `run()` ended before it had started; its own error is raised below
                if failure is None:
                    raise
            else:
                task_status.started()
        if failure is not None:
            raise failure

    async def aclose(self) -> ClosingReport:
        """Close all links at once, each with its drain; as `Producer.aclose`."""
        if self._finished is None:
            self._close_unused()
            await anyio.lowlevel.checkpoint()
            return self._report
        self._place.check()
        async with anyio.create_task_group() as tasks:
            for member in self._members:
                tasks.start_soon(member.aclose)
        await self._finished.wait()
        return self._report

    def abort(self) -> None:
        """Close all links without draining; as `Producer.abort`."""
        if self._finished is None:
            self._close_unused()
            return
        self._place.check()
        for member in self._members:
            member.abort()

    def _close_unused(self) -> None:
        for member in self._members:
            member.abort()
        super()._close_unused()

    # --- publishing -------------------------------------------------------------------------------------------------

    def _member(self, key: str | None) -> _Member:
        """Return the link of the key; without a key, the link with the fewest messages."""
        if not self._run_called:
            raise self._not_here()
        members = self._members
        if key is not None:
            return members[zlib.crc32(key.encode(errors="surrogatepass")) % len(members)]
        # The search begins behind the link that was chosen last, so that equal links take turns.
        turn = self._turn = (self._turn + 1) % len(members)
        return min((*members[turn:], *members[:turn]), key=_load)

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
        """Publish one message on one link; as `Producer.publish`."""
        return await self._member(key).publish(body, timeout=timeout, retry=retry, **fields)

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
        """Publish many messages, all on one link; as `Producer.publish_many`."""
        return await self._member(key).publish_many(messages, timeout=timeout, retry=retry, **fields)

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
        """Accept one message on one link without waiting; as `Producer.publish_nowait`."""
        return self._member(key).publish_nowait(body, timeout=timeout, retry=retry, **fields)

    async def _accepted(
        self, body: Body | Message, key: str | None, allowed: float, rules: RetryRules | None, fields: MessageFields
    ) -> PublishHandle | PublishError:
        return await self._member(key).accept(body, allowed, rules, fields)

    def _not_here(self) -> Exception:
        if not self._run_called:
            return super()._not_here()
        if self._finished is None or self._finished.is_set():
            return ProducerClosed("", "the producer is closed")
        return self._place.error()

    # --- topology: see `Declaring` ----------------------------------------------------------------------------------

    async def _on_link(self) -> tuple[LiveTopology, Link]:
        return await self._member(None).live()

    def _declared(self, declarations: Iterable[Declaration]) -> None:
        for member in self._members:
            member.declared(declarations)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def connection_state(self) -> ConnectionState:
        """The state of the best link."""
        if not self._run_called or self._finished is None:
            return super().connection_state
        return max((member.connection_state for member in self._members), key=_RANKS.index)

    def status(self) -> Status:
        """The whole producer at this instant, and each link in `links`; as `Producer.status`."""
        links = tuple(member.status() for member in self._members)
        whole = combined(self.connection_state, links)
        return whole if self._relay is None else evolve(whole, outbox=self._relay.status())

    @property
    def peer(self) -> Peer | None:
        """The result of the handshake of the first link that is up."""
        return next((member.peer for member in self._members if member.peer is not None), None)

    async def wait_connected(self, timeout: float = math.inf) -> None:
        """Wait until one link is up and not blocked. Raises as `Producer.wait_connected`, if no link can come up."""
        if not self._run_called:
            raise self._not_here()
        self._place.check()
        errors: list[WarrenerError] = []
        connected = False

        async def wait(member: _Member) -> None:
            nonlocal connected
            try:
                await member.wait_connected(timeout)
            except WarrenerError as error:
                errors.append(error)
            else:
                connected = True
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for member in self._members:
                tasks.start_soon(wait, member)
        if not connected:
            raise errors[0]

    def reconnect(self) -> bool:
        """Give every link the hint that the broker is back. False if all ignored it."""
        obeyed = [member.reconnect() for member in self._members]
        return any(obeyed)

    async def hand_over(self, endpoint: int | None = None) -> bool:
        """Hand over one link after the other, so that the others go on publishing. False if all ignored it."""
        if not self._run_called:
            raise self._not_here()
        obeyed = [await member.hand_over(endpoint) for member in self._members]
        return any(obeyed)

    @property
    def counters(self) -> Mapping[str, int]:
        """The sum of the links' counts."""
        counted = [member.counters for member in self._members]
        names = dict.fromkeys(name for each in counted for name in each)
        return {name: sum(each.get(name, 0) for each in counted) for name in names}

    @property
    def faults(self) -> Mapping[FaultKind, int]:
        """Number of dials and links that each kind of fault ended, over all links."""
        counted = [member.faults for member in self._members]
        kinds = dict.fromkeys(kind for each in counted for kind in each)
        return {kind: sum(each.get(kind, 0) for each in counted) for kind in kinds}

    @property
    def reconnect_times(self) -> Histogram:
        """Seconds from the loss of a link until it is up again, over all links."""
        whole = Histogram(RECONNECT_BOUNDS)
        for member in self._members:
            whole.add(member.reconnect_times)
        return whole


def _load(member: _Member) -> tuple[bool, int]:
    return member.load


def combined(state: ConnectionState, links: tuple[Status, ...]) -> Status:
    """Return one status for all links: that of the best one, with the sums, and healthy only if all are."""
    best = max(links, key=lambda link: (_RANKS.index(link.connection_state), not link.blocked, link.healthy))
    waits = [link.retry_in for link in links if link.retry_in is not None]
    names = dict.fromkeys(name for link in links for name in link.open_destinations)
    return evolve(
        best,
        connection_state=state,
        reconnect_attempts=max(link.reconnect_attempts for link in links),
        consecutive_failures=max(link.consecutive_failures for link in links),
        healthy=all(link.healthy for link in links),
        in_flight=sum(link.in_flight for link in links),
        buffered=sum(link.buffered for link in links),
        retry_in=min(waits, default=None),
        last_fault=next((link.last_fault for link in links if not link.healthy and link.last_fault), best.last_fault),
        link=max(link.link for link in links),
        open_destinations=tuple(names)[:10],
        topology_fault=next((link.topology_fault for link in links if link.topology_fault is not None), None),
        links=links,
    )
