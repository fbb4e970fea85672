"""A driver around the driver that writes down what crosses the seam: every attempt with its tag, and every answer.

With it a check need not believe the producer: which tag was confirmed in which epoch is known from the outside. It can
also be *chatty*: repeat an acknowledgement of several tags as a broker may (first the highest alone, then all of them),
which changes nothing for a client that takes `multiple` as "all outstanding up to this one" (F4).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

from tests.simulation.trace import DIALED, Attempt, LinkRecord, Trace
from warrener.drivers.base import Driver, Lane, Link, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, Envelope, Returned
from warrener.topology import Declaration

__all__ = ["RecordingDriver", "number_of"]


def number_of(body: bytes, sizes: dict[bytes, int]) -> int:
    """Return the number of the message with this body."""
    return int(body[:8]) if len(body) >= 8 else sizes[body]


class RecordingDriver:
    """Opens links through `driver` and writes down what crosses the seam."""

    def __init__(self, driver: Driver, trace: Trace, short_bodies: dict[bytes, int], *, chatty: bool) -> None:
        self._driver = driver
        self._trace = trace
        self._short_bodies = short_bodies
        self._chatty = chatty
        self.opened = 0

    @property
    def name(self) -> str:
        """How logs call it."""
        return self._driver.name

    @asynccontextmanager
    async def open(self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener) -> AsyncGenerator[Link]:
        """Open a link; see `warrener.drivers.base.Driver`."""
        self.opened += 1
        number = self.opened
        trace = self._trace
        _, _, member = options.connection_name.partition("#")
        own_number = 1 + sum(each.member == int(member or 0) for each in trace.links.values())
        record = LinkRecord(number, trace.clock(), endpoint.port, int(member or 0), own_number)
        trace.links[number] = record
        DIALED.set(number)
        recording = RecordingListener(listener, trace, record, chatty=self._chatty)
        trace.note(f"link {number}: dial")
        try:
            async with self._driver.open(endpoint, options, recording) as link:
                record.opened_at = trace.clock()
                trace.note(f"link {number}: open")
                yield RecordingLink(link, trace, record, recording, self._short_bodies)
        except LinkDown as down:
            record.fault = down.fault
            raise
        finally:
            record.ended_at = trace.clock()
            record.outstanding = sum(len(attempts) for attempts in recording.outstanding.values())
            trace.note(f"link {number}: over, {record.fault}")


class RecordingLink:
    """A link that writes down what is published on it."""

    def __init__(
        self, link: Link, trace: Trace, record: LinkRecord, listener: RecordingListener, short_bodies: dict[bytes, int]
    ) -> None:
        self._link = link
        self._trace = trace
        self._record = record
        self._listener = listener
        self._short_bodies = short_bodies

    @property
    def peer(self) -> Peer:
        """What the handshake settled."""
        return self._link.peer

    @property
    def congested(self) -> bool:
        """Whether the owner should hold back."""
        return self._link.congested

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """Hand over one message."""
        tag = self._link.publish(lane, envelope, message_id, body, token)
        self._note(lane, tag, message_id, body, token)
        return tag

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """Hand over messages under consecutive tags."""
        self._record.flights += 1
        if len(bodies) > 1:
            self._record.together += len(bodies)
        first = self._link.publish_batch(envelopes, message_ids, bodies, tokens)
        for tag, (message_id, body) in enumerate(zip(message_ids, bodies, strict=True), first):
            self._note(Lane.MAIN, tag, message_id, body, None if tokens is None else tokens[tag - first])
        return first

    def request_pull(self) -> None:
        """Ask to be asked for messages."""
        self._link.request_pull()

    def _note(self, lane: Lane, tag: int, message_id: str, body: bytes, token: str | None) -> None:
        channel = self._listener.channels[lane]
        number = number_of(body, self._short_bodies)
        trace = self._trace
        link = self._record.number
        attempt = Attempt(number, link, lane, channel, tag, trace.clock())
        trace.attempts[link, channel, tag] = attempt
        publish = trace.publishes[number]
        publish.attempts.append(attempt)
        publish.message_id = message_id
        if token is not None:
            self._listener.tokens[token] = attempt
        else:
            self._listener.ids[message_id] = attempt
        self._listener.outstanding.setdefault(channel, {})[tag] = attempt
        trace.note(f"link {link}.{channel}: publish {number} as tag {tag}")

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Say why it cannot be sent."""
        return self._link.validate(envelope, message_id, body, token)

    def written(self, channel: int) -> int:
        """Return the highest tag that may have reached the network."""
        written = self._link.written(channel)
        if self._record.aborted_at is not None or self._record.ended_at is not None:
            self._listener.end_of_channel(channel, written)
        return written

    def begun(self, channel: int) -> int:
        """Return the highest tag that was begun."""
        return self._link.begun(channel)

    @property
    def bytes_left(self) -> int:
        """As the link says."""
        return self._link.bytes_left

    @property
    def bytes_out(self) -> int:
        """Return the bytes that the peer has taken."""
        return self._link.bytes_out

    def open_suspect_channel(self) -> None:
        """Open the suspects' channel."""
        self._link.open_suspect_channel()

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare."""
        await self._link.declare(declarations)
        self._record.declared_at = self._trace.clock()

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take bodies."""
        return await self._link.get(queue, limit)

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue."""
        await self._link.delete_queue(queue)

    def abort(self, fault: Fault) -> None:
        """End the link."""
        self._trace.note(f"link {self._record.number}: aborted: {fault.kind.value}")
        self._record.aborted_at = self._trace.clock()
        if fault.kind is FaultKind.CONFIRM_OVERDUE:
            waiting = [each.at for attempts in self._listener.outstanding.values() for each in attempts.values()]
            self._record.overdue = (min(waiting, default=None), self._trace.clock())
        self._link.abort(fault)


class RecordingListener:
    """LinkListener that are written down on their way to the owner."""

    def __init__(self, listener: LinkListener, trace: Trace, record: LinkRecord, *, chatty: bool) -> None:
        self._listener = listener
        self._trace = trace
        self._record = record
        self._number = record.number
        self._chatty = chatty
        self.channels: dict[Lane, int] = {}
        self.tokens: dict[str, Attempt] = {}
        self.ids: dict[str, Attempt] = {}
        #: By channel, what the broker has not answered.
        self.outstanding: dict[int, dict[int, Attempt]] = {}
        self._acked_at = -1.0

    def _note(self, what: str) -> None:
        self._trace.note(f"link {self._number}.{what}")

    def end_of_channel(self, channel: int, written: int) -> None:
        """Note which of the unanswered may have reached the broker."""
        for tag, attempt in self.outstanding.get(channel, {}).items():
            if attempt.reached is None:
                attempt.reached = tag <= written

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """See `LinkListener`."""
        self._note(f"{channel}: channel for {lane.value}")
        self.channels[lane] = channel
        if lane is Lane.SUSPECT:
            self._trace.see("suspect channel")
        self._listener.channel_opened(lane, channel)

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """See `LinkListener`."""
        self._note(f"{channel}: channel closed, {fault.reply_code}, written {written}")
        self._trace.see(f"channel closed {fault.reply_code}")
        self._trace.channel_ends[self._number, channel] = (self._trace.clock(), fault.reply_code)
        self.end_of_channel(channel, written)
        self.outstanding.pop(channel, None)
        self._listener.channel_closed(lane, channel, fault, written)

    def _settle(self, channel: int, tag: int, multiple: bool, answer: str) -> None:
        outstanding, trace = self.outstanding.get(channel, {}), self._trace
        tags = [each for each in outstanding if each <= tag] if multiple else [tag]
        waiting = [each for each in outstanding.values() if each.returned]
        settled: list[Attempt] = []
        for each in tags:
            attempt = outstanding.pop(each, None)
            if attempt is not None:
                attempt.answer, attempt.answered_at, attempt.reached = answer, trace.clock(), True
                settled.append(attempt)
                if attempt.returned:
                    trace.see(f"return then {answer}")
        if waiting and settled and not any(attempt.answer for attempt in waiting):
            # Between a return and its own confirm came those of others.
            trace.see("F3 interleaving")
        if answer == "ack":
            self._acked_at = trace.clock()
        elif multiple and self._acked_at == trace.clock():
            trace.see("nack multiple after ack")
        if multiple and len(settled) > 1:
            trace.see(f"{answer} multiple")
        if not settled and (self._number, channel, tag) in trace.attempts:
            trace.see("settled twice")
        trace.see(answer)

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """See `LinkListener`."""
        self._note(f"{channel}: ack {tag}{'+' if multiple else ''}")
        self._record.acked = True
        if self._chatty and multiple:
            self._settle(channel, tag, False, "ack")
            self._listener.confirmed(channel, tag, False)
        self._settle(channel, tag, multiple, "ack")
        self._listener.confirmed(channel, tag, multiple)

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """See `LinkListener`."""
        self._note(f"{channel}: nack {tag}{'+' if multiple else ''}")
        self._settle(channel, tag, multiple, "nack")
        self._listener.nacked(channel, tag, multiple)

    def returned(self, channel: int, returned: Returned) -> None:
        """See `LinkListener`."""
        attempt = self.tokens.get(returned.token) if returned.token is not None else None
        if attempt is None and returned.token is None and returned.message_id is not None:
            attempt = self.ids.get(returned.message_id)
        self._note(f"{channel}: return of {attempt.number if attempt is not None else 'an unknown message'}")
        if attempt is not None:
            attempt.returned = attempt.reached = True
            if returned.body_size == 0:
                self._trace.see("return of an empty body")
        else:
            self._trace.see("foreign return")
        self._listener.returned(channel, returned)

    def blocked(self, reason: str) -> None:
        """See `LinkListener`."""
        self._note(f" blocked: {reason}")
        self._trace.see("flow stopped" if "flow" in reason else "blocked")
        self._record.blocked = True
        self._listener.blocked(reason)

    def unblocked(self) -> None:
        """See `LinkListener`."""
        self._note(" unblocked")
        self._record.blocked, self._record.unblocked_at = False, self._trace.clock()
        self._listener.unblocked()

    def writable(self) -> None:
        """See `LinkListener`."""
        self._listener.writable()

    def pull(self) -> None:
        """See `LinkListener`."""
        self._listener.pull()
