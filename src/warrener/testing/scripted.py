"""`ScriptedDriver`: a driver without a wire, for tests in virtual time. Script in, history out.

    driver = ScriptedDriver(lives(10.0), refuses(), refuses(), lives())
    async with open_producer("amqp://localhost/", driver=driver) as producer: ...

Each dial takes the next line of the script; the last line repeats. Nothing happens by itself but what the script says,
and all waiting is `anyio.sleep`, so Trio's MockClock can jump over it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import repeat

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

from warrener.drivers.base import Lane, LinkDown, LinkListener, LinkOptions, Peer
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, Envelope, Returned
from warrener.topology import Binding, Declaration, Queue

__all__ = ["Life", "Published", "ScriptedDriver", "ScriptedLink", "hangs", "lives", "refuses"]

LOST = Fault(FaultKind.CONNECTION_LOST, "the scripted link was lost")
REFUSED = Fault(FaultKind.UNREACHABLE, "the scripted dial was refused")


@frozen
class Published:
    """One message as the link was given it."""

    link: int
    lane: Lane
    channel: int
    tag: int
    envelope: Envelope
    message_id: str
    body: bytes
    token: str | None


#: What becomes of a message: "ack", "nack", "return" (then an ack) or "silence".
Answer = Callable[[Published], str]


def _ack(_published: Published) -> str:
    return "ack"


@frozen
class Life:
    """One line of a script; made by `lives`, `refuses` or `hangs`."""

    #: Seconds from the call until the dial is answered.
    dialing: float = 0.0
    #: Refuse the dial with this; None: it succeeds.
    refusal: Fault | None = None
    #: Seconds until the link is lost.
    seconds: float = math.inf
    end: Fault = LOST
    #: Seconds from a publish to its answer.
    latency: float = 0.0
    answer: Answer = _ack
    #: Refuse the declaration of its entity with this; without an entity, any declaration.
    topology: Fault | None = None
    #: At the link's end, how many of the last messages had not been written to the network.
    unoffered: int = 0
    #: Seconds that the close handshake takes.
    closing: float = 0.0
    #: End the link with this when it is given a new secret; None: the secret is taken.
    secret: Fault | None = None


def lives(
    seconds: float = math.inf,
    *,
    dialing: float = 0.0,
    end: Fault = LOST,
    latency: float = 0.0,
    answer: Answer = _ack,
    topology: Fault | None = None,
    unoffered: int = 0,
    closing: float = 0.0,
    secret: Fault | None = None,
) -> Life:
    """A dial that succeeds, and a link that is lost after `seconds`."""
    return Life(dialing, None, seconds, end, latency, answer, topology, unoffered, closing, secret)


def refuses(fault: Fault = REFUSED, *, dialing: float = 0.0) -> Life:
    """A dial that fails after `dialing` seconds."""
    return Life(dialing, fault)


def hangs() -> Life:
    """A dial without an answer: it fails after `connect_timeout`."""
    return Life(math.inf, REFUSED)


@define(eq=False)
class ScriptedLink:
    """A link that a test can also drive by hand."""

    number: int
    life: Life
    listener: LinkListener
    options: LinkOptions
    published: list[Published] = field(factory=list[Published])
    declared: list[Declaration] = field(factory=list[Declaration])
    #: The secrets that replaced the password.
    secrets: list[str] = field(factory=list[str], repr=False)
    congested: bool = False
    #: The sizes of the batches that the link was given.
    batches: list[int] = field(factory=list[int])
    #: Whether a requested pull waits until the test calls ``listener.pull()``. False: it follows at once.
    holds_pulls: bool = False
    peer: Peer = field(factory=lambda: Peer(product="Scripted", heartbeat=60.0))
    _channels: dict[Lane, int] = field(factory=dict[Lane, int])
    _tags: dict[int, int] = field(factory=dict[int, int])
    _pending: deque[Published] = field(factory=deque[Published])
    _news: anyio.Event = field(factory=anyio.Event)
    _scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    _fault: Fault | None = None

    def publish(self, lane: Lane, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> int:
        """As `Link.publish`."""
        channel = self._channels[lane]
        tag = self._tags[channel] = self._tags[channel] + 1
        message = Published(self.number, lane, channel, tag, envelope, message_id, body, token)
        self.published.append(message)
        self._pending.append(message)
        self._news.set()
        return tag

    def publish_batch(
        self,
        envelopes: Sequence[Envelope],
        message_ids: Sequence[str],
        bodies: Sequence[bytes],
        tokens: Sequence[str] | None = None,
    ) -> int:
        """As `Link.publish_batch`."""
        self.batches.append(len(bodies))
        tags = [
            self.publish(Lane.MAIN, envelope, message_id, body, token)
            for envelope, message_id, body, token in zip(
                envelopes, message_ids, bodies, tokens or repeat(None, len(bodies)), strict=True
            )
        ]
        return tags[0]

    def request_pull(self) -> None:
        """As `Link.request_pull`: at once, unless the test holds pulls."""
        if not self.holds_pulls:
            self.listener.pull()

    def validate(self, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> str | None:
        """Everything can be sent."""
        return None

    def written(self, channel: int) -> int:
        """All but the script's last `unoffered` tags."""
        return max(0, self._tags.get(channel, 0) - self.life.unoffered)

    def open_suspect_channel(self) -> None:
        """As `Link.open_suspect_channel`."""
        if Lane.SUSPECT not in self._channels:
            self.open_channel(Lane.SUSPECT)

    def begun(self, channel: int) -> int:
        """As `Link.begun`: here every begun tag is also written."""
        return self.written(channel)

    #: As `Link.bytes_left`; a test may set it.
    bytes_left: int = field(default=0, init=False)

    @property
    def bytes_out(self) -> int:
        """The bytes of all bodies that were published."""
        return sum(len(message.body) for message in self.published)

    async def declare(self, declarations: Iterable[Declaration]) -> list[str]:
        """Note the declarations, or refuse them by the script."""
        await anyio.lowlevel.checkpoint()
        names: list[str] = []
        refusal = self.life.topology
        for each in declarations:
            if refusal is not None and refusal.entity in (None, str(each)):
                if refusal.reply_code == 503:  # for an unknown type of exchange a broker closes the connection
                    self.abort(refusal)
                raise LinkDown(refusal)
            self.declared.append(each)
            names += [each.name] if isinstance(each, Queue) else []
        return names

    async def unbind(self, binding: Binding) -> None:
        """Forget the binding."""
        await anyio.lowlevel.checkpoint()
        if binding in self.declared:
            self.declared.remove(binding)

    async def purge(self, queue: str) -> int:
        """No queue holds anything."""
        await anyio.lowlevel.checkpoint()
        return 0

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """No queue holds anything."""
        await anyio.lowlevel.checkpoint()
        return []

    async def delete_queue(self, queue: str) -> int:
        """Forget the queue."""
        await anyio.lowlevel.checkpoint()
        self.declared = [each for each in self.declared if not (isinstance(each, Queue) and each.name == queue)]
        return 0

    async def update_secret(self, secret: str) -> None:
        """Note the secret, or end the link by the script."""
        await anyio.lowlevel.checkpoint()
        self.secrets.append(secret)
        if self.life.secret is not None:
            self.abort(self.life.secret)
            raise LinkDown(self.life.secret)

    def abort(self, fault: Fault) -> None:
        """End the link now, as if the peer had ended it."""
        if self._fault is None:
            self._fault = fault
            self._scope.cancel()

    # --- by hand ---

    def open_channel(self, lane: Lane) -> int:
        """Open the lane's next channel and report it."""
        channel = len(self._tags) + 1
        self._tags[channel] = 0
        self._channels[lane] = channel
        self.listener.channel_opened(lane, channel)
        return channel

    def close_channel(self, lane: Lane, fault: Fault) -> None:
        """Close the lane's channel as the broker does; MAIN is opened anew, as every driver does."""
        channel = self._channels.pop(lane)
        self._pending = deque(message for message in self._pending if message.channel != channel)
        self.listener.channel_closed(lane, channel, fault, self._tags[channel])
        if lane is Lane.MAIN:
            self.open_channel(lane)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Follow the script while the body runs; at its end raise one `LinkDown` without an ExceptionGroup."""
        raised: Exception | None = None
        async with anyio.create_task_group() as tasks:
            self._scope = tasks.cancel_scope
            self.open_channel(Lane.MAIN)
            tasks.start_soon(self._answer_all)
            if self.life.seconds < math.inf:
                tasks.start_soon(self._die)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised again, without an ExceptionGroup, once the task group is left
                raised = error
            else:
                with anyio.move_on_after(self.options.close_timeout):
                    await anyio.sleep(self.life.closing)
            tasks.cancel_scope.cancel()
        if raised is not None:
            raise raised
        if self._fault is not None:
            raise LinkDown(self._fault)

    async def _answer_all(self) -> None:
        while True:
            while self._pending:
                message = self._pending.popleft()
                await anyio.sleep(self.life.latency)
                self.answer(message, self.life.answer(message))
            self._news = anyio.Event()
            await self._news.wait()

    def answer(self, message: Published, answer: str) -> None:
        """Answer one message: "ack", "nack", "return" or "silence"."""
        if answer == "return":
            envelope = message.envelope
            self.listener.returned(
                message.channel,
                Returned(
                    312, "NO_ROUTE", envelope.exchange, envelope.routing_key, message.message_id, message.token,
                    len(message.body), shown=f"routing key {envelope.routing_key!r}, message {message.message_id}",
                ),
            )  # fmt: skip
        if answer in ("ack", "return"):
            self.listener.confirmed(message.channel, message.tag, False)
        elif answer == "nack":
            self.listener.nacked(message.channel, message.tag, False)

    async def _die(self) -> None:
        await anyio.sleep(self.life.seconds)
        self.abort(self.life.end)


class ScriptedDriver:
    """See the module's docstring."""

    name = "scripted"

    def __init__(self, *script: Life) -> None:
        self._script = deque(script or (lives(),))
        #: Every link that was opened, and the instants of all dials.
        self.links: list[ScriptedLink] = []
        self.dials: list[float] = []
        #: The endpoint of each dial.
        self.endpoints: list[Endpoint] = []

    @property
    def link(self) -> ScriptedLink:
        """The newest link."""
        return self.links[-1]

    @property
    def published(self) -> list[Published]:
        """What was published, over all links."""
        return [message for link in self.links for message in link.published]

    @asynccontextmanager
    async def open(
        self, endpoint: Endpoint, options: LinkOptions, listener: LinkListener
    ) -> AsyncIterator[ScriptedLink]:
        """Follow the next line of the script."""
        life = self._script.popleft() if len(self._script) > 1 else self._script[0]
        self.dials.append(anyio.current_time())
        self.endpoints.append(endpoint)
        await anyio.sleep(min(life.dialing, options.connect_timeout))
        if life.refusal is not None or life.dialing > options.connect_timeout:
            raise LinkDown(life.refusal or REFUSED)
        link = ScriptedLink(len(self.links) + 1, life, listener, options)
        self.links.append(link)
        async with link.living():
            yield link
