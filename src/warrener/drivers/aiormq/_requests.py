"""Declarations, deletions and basic.get: pipelined, each call on a channel of its own. The update of the secret, too.

aiormq opens and closes the channel. The requests are encoded and their answers read by `warrener.wire`, because aiormq
waits for each answer before it sends the next request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeAlias

from attrs import define, field
from pamqp import commands

from warrener.drivers import _faults
from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.aiormq._channels import GONE, Channels
from warrener.drivers.aiormq._contents import Contents
from warrener.drivers.aiormq._transport import FilteringTransport
from warrener.drivers.base import LinkDown
from warrener.errors import Fault
from warrener.topology import Declaration, Queue
from warrener.wire import Unsendable, requests
from warrener.wire.channel import Content
from warrener.wire.codec import ContentHeader, Malformed, Method, read_method
from warrener.wire.requests import REPLIES, Request

__all__ = ["Requests"]

_CLOSE = Request(commands.Channel.Close, {"reply_code": 200, "reply_text": "done"})

#: An answer, with the content of basic.get-ok.
_Answer: TypeAlias = "tuple[Method, Content | None]"


def _drop(_content: Content, _header: ContentHeader) -> None:
    """Drop a message whose caller no longer waits for it."""


@define(eq=False)
class _Call:
    """The requests of one caller, on their channel."""

    number: int
    #: Method and entity of the requests without an answer; the answers that the caller has not taken yet.
    unanswered: deque[tuple[type[Method], str]] = field(factory=deque[tuple[type[Method], str]])
    answers: deque[_Answer] = field(factory=deque[_Answer])
    news: asyncio.Event = field(factory=asyncio.Event)
    #: The broker closed the channel; the caller wants no more answers.
    closed: bool = False
    over: bool = False


class Requests:
    """What `Link` offers besides publishing; every method raises `LinkDown`."""

    def __init__(
        self,
        channels: Channels,
        transport: FilteringTransport,
        contents: Contents,
        timeout: float,
        *,
        frame_max: Callable[[], int],
        unanswered: Callable[[Fault], None],
        mask: Callable[[str], None],
    ) -> None:
        self._channels = channels
        self._transport = transport
        self._contents = contents
        self._timeout = timeout
        self._frame_max = frame_max
        #: Ends the link because of a request that the broker does not answer.
        self._fail = unanswered
        #: Adds a secret that is masked in the broker's texts.
        self._mask = mask
        #: The broker's answer to the newest secret, while it is due.
        self._secret_taken: asyncio.Event | None = None
        self._calls: dict[int, _Call] = {}

    @property
    def entity(self) -> str | None:
        """What the first request without an answer is about."""
        return next((call.unanswered[0][1] for call in self._calls.values() if call.unanswered and not call.over), None)

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Declare in the given order, without waiting in between; return the names of the queues among them."""
        wanted = [(str(each), requests.declare(each)) for each in declarations]
        names: list[str] = []
        async with self._channel() as call:
            for entity, request in wanted:
                self._send(call, request, entity)
            for done, (entity, _) in enumerate(wanted):
                behind = f", the first {done} of {len(wanted)} declarations are done" if len(wanted) > 1 else ""
                method, _ = await self._answer(call, entity, f"the declaration of {entity}", behind)
                if isinstance(method, commands.Queue.DeclareOk):
                    names.append(method.queue or "")
        return names

    async def ask(self, request: Request, entity: str) -> int:
        """Make one request about the entity; return how many messages it removed."""
        async with self._channel() as call:
            self._send(call, request, entity)
            method, _ = await self._answer(call, entity, f"{request.kind.name} of {entity}")
        match method:
            case commands.Queue.DeleteOk(message_count=count) | commands.Queue.PurgeOk(message_count=count):
                return count or 0
            case _:
                return 0

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue, one after the other."""
        entity = str(Queue(queue))
        bodies: list[bytes] = []
        async with self._channel() as call:
            while len(bodies) < limit:
                self._send(call, requests.take_one(queue), entity)
                _, content = await self._answer(call, entity, f"Basic.Get of {entity}")
                if content is None:
                    break
                if content.kept is None:
                    text = f"a message of {content.received:,} bytes is larger than max_inbound_body"
                    raise LinkDown(_faults.unusable(text))
                bodies.append(bytes(content.kept))
        return bodies

    async def update_secret(self, secret: str) -> None:
        """Give the broker a new secret; return when it has taken it. The link ends where the broker refuses it."""
        try:
            data = requests.update_secret(secret).encode(0, self._frame_max())
        except Unsendable as error:
            raise LinkDown(_faults.secret_not_encodable(error)) from None
        self._mask(secret)
        self._secret_taken = taken = asyncio.Event()
        self._transport.inject(data)
        try:
            async with asyncio.timeout(self._timeout):
                await taken.wait()
        except TimeoutError:
            raise self._unanswered("the update of the secret") from None

    # --- the wire ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _channel(self) -> AsyncGenerator[_Call]:
        """Open a channel for the requests of one caller, and close it afterwards."""
        number = 0
        try:
            async with asyncio.timeout(self._timeout):
                number = self._channels.free_number()
                await self._channels.new_channel(number)
        except TimeoutError:
            raise self._unanswered("the opening of a channel") from None
        except GONE as error:
            raise self._gone(error, number) from None
        # The broker may have closed the channel in the moment in which it opened.
        call = self._calls[number] = _Call(number, closed=self._channels.refused(number))
        try:
            yield call
        finally:
            call.over = True
            if call.closed:
                del self._calls[number]
            else:
                # Answers that are still due come before close-ok, which aiormq takes as the channel's end.
                self._transport.inject(_CLOSE.encode(number, self._frame_max()))

    def _send(self, call: _Call, request: Request, entity: str) -> None:
        try:
            data = request.encode(call.number, self._frame_max())
        except Unsendable as error:
            raise LinkDown(_faults.not_encodable(entity, error)) from None
        call.unanswered.append((request.kind, entity))
        if not call.closed:
            self._transport.inject(data)

    async def _answer(self, call: _Call, entity: str, about: str, behind: str = "") -> _Answer:
        """Wait for the next answer, `timeout` seconds from the answer before it."""
        try:
            async with asyncio.timeout(self._timeout):
                while not call.answers and not call.closed:
                    call.news.clear()
                    await call.news.wait()
        except TimeoutError:
            raise self._unanswered(about, behind) from None
        if call.answers:
            return call.answers.popleft()
        refusal = self._channels.refusal(call.number) or (0, "")
        raise LinkDown(_faults.declaration_refused(*refusal, entity))

    def _unanswered(self, about: str, behind: str = "") -> LinkDown:
        fault = _faults.unanswered(about, self._timeout, behind)
        self._fail(fault)
        return LinkDown(fault)

    def _gone(self, error: BaseException, number: int) -> BaseException:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            return error  # The caller was cancelled; aiormq cancels by itself when a channel goes away.
        return LinkDown(self._channels.fault_of_opening(error, number))

    # --- for the protocol -------------------------------------------------------------------------------------------

    def on_secret_taken(self) -> None:
        """Take the broker's answer to the update of the secret."""
        if self._secret_taken is None or self._secret_taken.is_set():
            raise Malformed("Connection.UpdateSecretOk came, and no update of the secret was sent")
        self._secret_taken.set()

    def on_answer(self, channel: int, data: bytes) -> bool:
        """Take an answer; False where the channel is not that of a request."""
        call = self._calls.get(channel)
        if call is None:
            return False
        method = read_method(frames.payload(data))
        if call.over:
            if isinstance(method, commands.Basic.GetOk):
                self._contents.begin(channel, Content(method, kept=None), _drop)
            return True
        if not call.unanswered or not isinstance(method, REPLIES[call.unanswered[0][0]]):
            raise Malformed(f"{method.name} came on channel {channel}, which did not ask for it")
        if isinstance(method, commands.Basic.GetOk):

            def done(content: Content, _: ContentHeader) -> None:
                self._take(call, method, content)

            self._contents.begin(channel, Content(method, kept=bytearray()), done)
        else:
            self._take(call, method, None)
        return True

    def _take(self, call: _Call, method: Method, content: Content | None) -> None:
        call.unanswered.popleft()
        call.answers.append((method, content))
        call.news.set()

    def closing(self, channel: int) -> bool:
        """Whether a close of ours for the channel is out: aiormq must not send another one."""
        return channel in self._calls and self._calls[channel].over

    def on_close_ok(self, channel: int) -> None:
        """The broker confirmed the end of a channel."""
        self._calls.pop(channel, None)

    def on_close(self, channel: int) -> None:
        """The broker closed the channel: the first request without an answer is refused."""
        call = self._calls.get(channel)
        if call is not None:
            call.closed = True
            call.news.set()
            if call.over:  # the closes have crossed; close-ok follows
                self._channels.refusal(channel)
