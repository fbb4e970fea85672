"""``warrener check``: is there a broker, and does it do what this library relies on?

Each step is one line; the first that fails says why and what to do, and ends the check. The steps go through a real
producer, so that what is checked is what a program would get; the queue that they use is exclusive to a second link of the
check's own, so that it is gone afterwards whatever way the check ends.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NoReturn

import anyio
import attrs

from warrener._publishing.producer import Producer, running
from warrener._settings.settings import Settings
from warrener.drivers.base import Driver, Lane, Link, LinkDown, Peer
from warrener.errors import ConnectError, Fault, FaultKind, GaveUp, PublishError, SettingsError, Unroutable
from warrener.machine.backoff import Backoff
from warrener.records import Message, Receipt, Returned, Status
from warrener.topology import Queue

__all__ = ["check", "named_driver", "watch"]

#: How many messages make the round trip.
MESSAGES = 10
#: Seconds until a published message must be confirmed, and until it must be found in the queue.
PATIENCE = 10.0

_ADVICE = {
    FaultKind.UNREACHABLE: "is the broker running, and are host and port right? AMQP has 5672, with TLS 5671",
    FaultKind.HANDSHAKE_TIMEOUT: "is it RabbitMQ that listens there, and not overloaded? see its log",
    FaultKind.AUTHENTICATION: "check user and password (rabbitmqctl authenticate_user); guest may log in locally only",
    FaultKind.VHOST: "check the end of the URL, rabbitmqctl list_vhosts and rabbitmqctl list_permissions",
    FaultKind.TLS: "check host name, certificates and RABBITMQ_SSL_CACERT; amqps:// needs the TLS port, usually 5671",
    FaultKind.PROTOCOL: "check the port: AMQP has 5672, with TLS 5671; 15672 is the management page",
    FaultKind.TOPOLOGY: "the user needs the permissions configure, write and read on a queue named warrener._cli.check.*",
}
_LAST_ADVICE = "see the broker's log"


class _Failed(Exception):
    """A step failed."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.why = why
        self.advice = advice


def _fail(fault: Fault) -> NoReturn:
    raise _Failed(str(fault), _ADVICE.get(fault.kind, _LAST_ADVICE)) from None


class _Unheard:
    """LinkListener of a link that publishes nothing."""

    def channel_opened(self, lane: Lane, channel: int) -> None: ...
    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None: ...
    def confirmed(self, channel: int, tag: int, multiple: bool) -> None: ...
    def nacked(self, channel: int, tag: int, multiple: bool) -> None: ...
    def returned(self, channel: int, returned: Returned) -> None: ...
    def blocked(self, reason: str) -> None: ...
    def unblocked(self) -> None: ...
    def writable(self) -> None: ...


def named_driver(name: str) -> Driver:
    """Return the driver of that name, ``native`` or ``aiormq``."""
    if name == "aiormq":
        from warrener.drivers.aiormq import AiormqDriver

        return AiormqDriver()
    from warrener.drivers.native import NativeDriver

    return NativeDriver()


class _Progress:
    """What is printed: a line for each step."""

    def __init__(self) -> None:
        self.step = "settings"

    def begin(self, step: str) -> None:
        self.step = step

    def done(self, text: str) -> None:
        print(f"ok    {self.step:<10} {text}", flush=True)

    def failed(self, failure: _Failed) -> None:
        print(f"FAIL  {self.step:<10} {failure.why}", flush=True)
        print(f"      {'do':<10} {failure.advice}", flush=True)


def _resolve(url: str | None, progress: _Progress) -> Settings | None:
    try:
        return Settings.resolve(url)
    except SettingsError as error:
        progress.failed(_Failed(str(error), "correct the URL or the environment variable"))
        return None


async def check(url: str | None, *, driver: str = "native") -> int:
    """Run the steps against the broker of `url` (None: ``RABBITMQ_URL``), print each, and return the exit status."""
    progress = _Progress()
    settings = _resolve(url, progress)
    if settings is None:
        return 1
    # One dial: who asks wants to know what is true now.
    settings = attrs.evolve(settings, backoff=Backoff(attempts=0), when_exhausted="stay", topology=())
    try:
        await _check(settings, named_driver(driver), progress)
    except _Failed as failure:
        progress.failed(failure)
        return 1
    return 0


async def _check(settings: Settings, driver: Driver, progress: _Progress) -> None:
    progress.begin("connect")
    async with running(Producer(settings, driver=driver)) as producer:
        try:
            await producer.wait_connected(settings.connect_timeout + 1)
        except ConnectError as error:
            _fail(error.fault)
        except GaveUp as error:
            _fail(error.last_fault or Fault(FaultKind.UNREACHABLE, "no connection"))
        progress.done(_described(settings, driver, producer.peer or Peer()))
        queue = f"warrener._cli.check.{uuid.uuid4().hex}"
        progress.begin("declare")
        async with _own_link(settings, driver, queue) as link:
            progress.done(f"queue {queue} (temporary)")
            bodies = [b"warrener check %d" % number for number in range(MESSAGES)]
            progress.begin("publish")
            await _publish(producer, queue, bodies)
            progress.done(f"{MESSAGES} messages, each confirmed by the broker")
            progress.begin("unroutable")
            await _publish_unroutable(producer, f"{queue}.nobody")
            progress.done("a message that no queue takes comes back, and is reported as that")
            progress.begin("read back")
            await _read_back(link, queue, bodies)
            progress.done(f"{MESSAGES} messages, as they were published")
            progress.begin("clean up")
            await link.delete_queue(queue)
            progress.done("queue deleted")


def _described(settings: Settings, driver: Driver, peer: Peer) -> str:
    heartbeat = f"heartbeat {peer.heartbeat:g} s" if peer.heartbeat else "heartbeat off"
    parts = [
        f"{settings.endpoint} at {peer.address or 'an unknown address'}",
        f"{peer.product or 'a broker'} {peer.version}".strip(),
        heartbeat,
        f"frame_max {peer.frame_max}",
        f"channel_max {peer.channel_max}",
        f"TLS {peer.tls or 'none'}",
        f"login {peer.mechanism}",
        f"driver {driver.name}",
    ]
    return "; ".join(parts)


@asynccontextmanager
async def _own_link(settings: Settings, driver: Driver, queue: str) -> AsyncIterator[Link]:
    """Open a link that owns the queue; whatever ends it becomes `_Failed`."""
    try:
        async with driver.open(settings.endpoint, settings.link_options(), _Unheard()) as link:
            await link.declare([Queue(queue, durable=False, exclusive=True)])
            yield link
    except LinkDown as down:
        _fail(down.fault)


async def _publish(producer: Producer, queue: str, bodies: Sequence[bytes]) -> None:
    messages = [Message(body, routing_key=queue, persistent=False) for body in bodies]
    for outcome in await producer.publish_many(messages, timeout=PATIENCE):
        if not isinstance(outcome, Receipt):
            _fail_publish(producer, outcome)


def _fail_publish(producer: Producer, error: PublishError) -> NoReturn:
    status = producer.status()
    if status.blocked:
        raise _Failed(str(error), "an alarm blocks publishers: free memory or disk on the broker, then try again")
    fault = status.last_fault
    raise _Failed(str(error), _LAST_ADVICE if fault is None else _ADVICE.get(fault.kind, _LAST_ADVICE))


async def _publish_unroutable(producer: Producer, nowhere: str) -> None:
    try:
        await producer.publish(b"", routing_key=nowhere, persistent=False, timeout=PATIENCE)
    except Unroutable:
        return
    except PublishError as error:
        _fail_publish(producer, error)
    raise _Failed(
        "a message that no queue can hold was confirmed and not returned",
        "something between this program and RabbitMQ swallows basic.return; is there a proxy?",
    )


async def _read_back(link: Link, queue: str, bodies: Sequence[bytes]) -> None:
    found: list[bytes] = []
    with anyio.move_on_after(PATIENCE):
        while len(found) < len(bodies):
            found += await link.get(queue, len(bodies) + 1 - len(found))
            await anyio.sleep(0.01)
    if found != list(bodies):
        raise _Failed(
            f"{len(found)} of {len(bodies)} messages came back as they were published", "see the broker's log"
        )


# --- watching ---------------------------------------------------------------------------------------------------------


async def watch(url: str | None, *, driver: str = "native") -> int:
    """Print each change of the connection's state until SIGINT or SIGTERM; return the exit status."""
    progress = _Progress()
    settings = _resolve(url, progress)
    if settings is None:
        return 1
    # To watch is to wait: whoever stops the broker and has a coffee should see it come back.
    backoff = attrs.evolve(settings.backoff, attempts=None)
    settings = attrs.evolve(settings, backoff=backoff, when_exhausted="stay", topology=())
    print(f"watching {settings.endpoint}; Ctrl-C ends it", flush=True)
    async with anyio.create_task_group() as group:
        group.start_soon(_end_on_signal, group.cancel_scope)
        async with running(Producer(settings, driver=named_driver(driver))) as producer, producer.changes() as changes:
            last = ""
            async for status in changes:
                line = _status_line(status)
                if line != last:
                    print(f"{datetime.now().astimezone():%H:%M:%S}  {line}", flush=True)
                last = line
    return 0


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


def _status_line(status: Status) -> str:
    parts = [f"{status.connection_state.value:<12} link {status.link}"]
    if status.blocked:
        parts.append("BLOCKED by an alarm of the broker")
    if status.reconnect_attempts:
        parts.append(f"attempt {status.reconnect_attempts}")
    if status.circuit_breaker != "closed":
        parts.append(f"breaker {status.circuit_breaker}")
    if status.retry_in is not None:
        parts.append(f"next dial in {status.retry_in:.1f} s")
    if status.heartbeat is not None:
        parts.append(f"heartbeat {status.heartbeat:g} s")
    if status.last_fault is not None and status.heartbeat is None:
        parts.append(str(status.last_fault))
    return "; ".join(parts)
