"""Declarations, deletions and basic.get: pipelined, one caller at a time. The update of the secret, beside them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

import anyio

from warrener.drivers import _faults
from warrener.drivers.base import LinkDown
from warrener.errors import Fault, FaultKind
from warrener.topology import Declaration, Queue
from warrener.wire import Session, SessionPhase, Unsendable, events, requests
from warrener.wire.requests import Request

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
        #: What the requests without an answer are about, and the answers that no caller has taken yet.
        self._unanswered: deque[str] = deque()
        self._answers: deque[Answer] = deque()
        self._answered = anyio.Event()
        #: The broker has taken the newest secret.
        self._secret_taken = anyio.Event()
        #: Why the link is over.
        self._fault: Fault | None = None

    def on_answer(self, answer: Answer) -> None:
        """Take the answer to the first request that has none."""
        if self._unanswered:
            self._unanswered.popleft()
        self._answers.append(answer)
        self._answered.set()

    @property
    def entity(self) -> str | None:
        """What the first request without an answer is about."""
        return self._unanswered[0] if self._unanswered else None

    def end(self, fault: Fault) -> None:
        """The link is over: no answer comes any more."""
        self._fault = self._fault or fault
        self._answered.set()
        self._secret_taken.set()

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Declare in the given order, without waiting in between; return the names of the queues among them."""
        wanted = [(str(each), requests.declare(each)) for each in declarations]
        names: list[str] = []
        async with self._lock:
            try:
                for entity, request in wanted:
                    self._send(request, entity)
                for done, (entity, _) in enumerate(wanted):
                    behind = f", the first {done} of {len(wanted)} declarations are done" if len(wanted) > 1 else ""
                    answer = await self._answer(f"the declaration of {entity}", behind)
                    if isinstance(answer, events.Refused):
                        raise LinkDown(_faults.declaration_refused(answer.reply_code, answer.reply_text, entity))
                    if isinstance(answer, events.Replied) and answer.queue:
                        names.append(answer.queue)
            finally:
                self._release()
        return names

    async def ask(self, request: Request, entity: str) -> int:
        """Make one request about the entity; return how many messages it removed."""
        async with self._lock:
            try:
                self._send(request, entity)
                answer = await self._answer(f"{request.kind.name} of {entity}")
                if isinstance(answer, events.Refused):
                    raise LinkDown(_faults.declaration_refused(answer.reply_code, answer.reply_text, entity))
                return answer.messages if isinstance(answer, events.Replied) else 0
            finally:
                self._release()

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue, one after the other."""
        entity = str(Queue(queue))
        bodies: list[bytes] = []
        async with self._lock:
            try:
                while len(bodies) < limit:
                    self._send(requests.take_one(queue), entity)
                    answer = await self._answer(f"Basic.Get of {entity}")
                    if isinstance(answer, events.Refused):
                        raise LinkDown(_faults.channel_closed_by_broker(answer.reply_code, answer.reply_text))
                    if not isinstance(answer, events.GetResult) or answer.size is None:
                        break
                    if answer.body is None:
                        text = f"a message of {answer.size:,} bytes is larger than max_inbound_body"
                        raise LinkDown(_faults.unusable(text))
                    bodies.append(answer.body)
            finally:
                self._release()
        return bodies

    async def update_secret(self, secret: str) -> None:
        """Give the broker a new secret; return when it has taken it."""
        self._require_open()
        self._secret_taken = taken = anyio.Event()
        try:
            self._session.update_secret(secret, "the secret expires")
        except Unsendable as error:
            raise LinkDown(_faults.secret_not_encodable(error)) from None
        self._wake_writer()
        with anyio.move_on_after(self._timeout):
            await taken.wait()
        if not taken.is_set():
            raise LinkDown(self._abort(_faults.unanswered("the update of the secret", self._timeout)))
        if self._fault is not None:
            raise LinkDown(self._fault)

    def on_secret_taken(self) -> None:
        """The broker has taken the new secret."""
        self._secret_taken.set()

    def _require_open(self) -> None:
        if self._fault is not None:
            raise LinkDown(self._fault)
        if self._session.phase is not SessionPhase.OPEN:
            raise LinkDown(Fault(FaultKind.CLOSED, "the link is closing"))

    def _send(self, request: Request, entity: str) -> None:
        """Send a request about the entity."""
        self._require_open()
        try:
            self._session.request(request)
        except Unsendable as error:
            raise LinkDown(_faults.not_encodable(entity, error)) from None
        self._unanswered.append(entity)
        self._wake_writer()

    async def _answer(self, about: str, behind: str = "") -> Answer:
        """Wait for the next answer, `timeout` seconds from the answer before it."""
        with anyio.move_on_after(self._timeout):
            while not self._answers:
                if self._fault is not None:
                    raise LinkDown(self._fault)
                self._answered = anyio.Event()
                await self._answered.wait()
        if not self._answers:
            raise LinkDown(self._abort(_faults.unanswered(about, self._timeout, behind)))
        return self._answers.popleft()

    def _release(self) -> None:
        self._unanswered.clear()
        self._answers.clear()
        self._session.release_control()
        self._wake_writer()
