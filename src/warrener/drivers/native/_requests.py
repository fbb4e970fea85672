"""Declarations, deletions and basic.get: pipelined, one caller at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import anyio

from warrener.drivers import _faults
from warrener.drivers.base import LinkDown
from warrener.errors import Fault, FaultKind
from warrener.topology import Declaration
from warrener.wire import Session, SessionPhase, Unsendable, events

__all__ = ["Answer", "Requests"]

Answer: TypeAlias = events.Replied | events.GetResult | events.Refused


class Requests:
    """Sends requests on the session's control channel and waits for each answer, `timeout` seconds at most."""

    def __init__(
        self, session: Session, timeout: float, *, abort: Callable[[Fault], Fault], wake_writer: Callable[[], None]
    ) -> None:
        self._session = session
        self._timeout = timeout
        self._abort = abort
        self._wake_writer = wake_writer
        self._lock = anyio.Lock()
        self._answers: deque[Answer] = deque()
        self._answered = anyio.Event()
        #: Why the link is over.
        self._fault: Fault | None = None

    def on_answer(self, answer: Answer) -> None:
        """Take the answer to the first request that has none."""
        self._answers.append(answer)
        self._answered.set()

    def end(self, fault: Fault) -> None:
        """The link is over: no answer comes any more."""
        self._fault = self._fault or fault
        self._answered.set()

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare in the given order, without waiting in between, on a channel that is closed afterwards."""
        wanted = tuple(declarations)
        async with self._lock:
            try:
                self._begin()
                for declaration in wanted:
                    try:
                        self._session.declare(declaration)
                    except Unsendable as error:
                        raise LinkDown(_faults.not_encodable(str(declaration), error)) from None
                self._wake_writer()
                for done, declaration in enumerate(wanted):
                    about = f"the declaration of {declaration}"
                    if len(wanted) > 1:
                        about += f", after {done} of {len(wanted)} declarations"
                    answer = await self._answer(about)
                    if isinstance(answer, events.Refused):
                        raise LinkDown(
                            _faults.declaration_refused(answer.reply_code, answer.reply_text, str(declaration))
                        )
            finally:
                self._release()

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue, one after the other."""
        bodies: list[bytes] = []
        async with self._lock:
            try:
                while len(bodies) < limit:
                    answer = await self._ask(partial(self._session.take_one, queue), f"basic.get of queue {queue!r}")
                    if not isinstance(answer, events.GetResult) or answer.size is None:
                        break
                    if answer.body is None:
                        text = f"a message of {answer.size:,} bytes is larger than max_inbound_body"
                        raise LinkDown(_faults.unusable(text))
                    bodies.append(answer.body)
            finally:
                self._release()
        return bodies

    async def delete_queue(self, queue: str) -> None:
        """Delete a queue."""
        async with self._lock:
            try:
                await self._ask(partial(self._session.delete_queue, queue), f"the deletion of queue {queue!r}")
            finally:
                self._release()

    def _begin(self) -> None:
        if self._fault is not None:
            raise LinkDown(self._fault)
        if self._session.phase is not SessionPhase.OPEN:
            raise LinkDown(Fault(FaultKind.CLOSED, "the link is closing"))
        self._answers.clear()

    async def _ask(self, order: Callable[[], None], about: str) -> Answer:
        """Send one request and wait for its answer; a refusal raises `LinkDown`."""
        self._begin()
        order()
        self._wake_writer()
        answer = await self._answer(about)
        if isinstance(answer, events.Refused):
            raise LinkDown(_faults.channel_closed_by_broker(answer.reply_code, answer.reply_text))
        return answer

    async def _answer(self, about: str) -> Answer:
        """Wait for the next answer."""
        with anyio.move_on_after(self._timeout):
            while not self._answers:
                if self._fault is not None:
                    raise LinkDown(self._fault)
                self._answered = anyio.Event()
                await self._answered.wait()
        if not self._answers:
            text = f"the broker did not answer {about} within {self._timeout:g} s (declare_timeout)"
            raise LinkDown(self._abort(Fault(FaultKind.STALLED, text)))
        return self._answers.popleft()

    def _release(self) -> None:
        self._session.release_control()
        self._wake_writer()
