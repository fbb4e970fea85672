"""``warrener check``: is there a broker, and does it do the things that this library relies on?

Each step prints one line. The first step that fails prints the reason and the remedy, and ends the check. The steps use a
real producer, so they meet the same broker and settings as a program would. The queue of the check is exclusive to a
second link, so the broker deletes it however the check ends.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import anyio
import attrs
import trio

from warrener._cli.common import INTERRUPTED, Commands, add_driver, print_changes, silence_log, until_signal
from warrener._publishing.producer import Producer, running
from warrener._settings.settings import Settings
from warrener.drivers.base import Driver, Lane, Link, LinkDown, Peer
from warrener.errors import ConnectError, Fault, FaultKind, PublishError, SettingsError, Unroutable
from warrener.machine.backoff import Backoff
from warrener.records import Message, Receipt, Returned
from warrener.topology import Queue

__all__ = ["add_parser", "check", "named_driver", "watch"]

#: Messages that are published and read back.
MESSAGES = 10
#: Seconds until a published message must be confirmed, and until it must be found in the queue.
PATIENCE = 10.0

_ADVICE = {
    FaultKind.UNREACHABLE: "check that the broker runs, and its host and port: AMQP uses port 5672, with TLS 5671",
    FaultKind.HANDSHAKE_TIMEOUT: "check that RabbitMQ listens at this port and is not overloaded; read its log",
    FaultKind.AUTHENTICATION: "check user and password (rabbitmqctl authenticate_user); guest may log in locally only",
    FaultKind.VHOST: "check the end of the URL, rabbitmqctl list_vhosts and rabbitmqctl list_permissions",
    FaultKind.TLS: "check host name, certificates and RABBITMQ_SSL_CACERT; amqps:// needs the TLS port, usually 5671",
    FaultKind.PROTOCOL: "check the port: AMQP uses 5672, with TLS 5671; 15672 is the management page",
    FaultKind.TOPOLOGY: "give the user the permissions configure, write and read on queues named warrener.check.*",
}
_LAST_ADVICE = "read the broker's log"


class _Failed(Exception):
    """A step failed."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(why)
        self.why = why
        self.advice = advice


def _fail(fault: Fault) -> NoReturn:
    raise _Failed(str(fault), _ADVICE.get(fault.kind, _LAST_ADVICE)) from None


class _Ignored:
    """The listener of a link that publishes nothing."""

    def channel_opened(self, lane: Lane, channel: int) -> None: ...
    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None: ...
    def confirmed(self, channel: int, tag: int, multiple: bool) -> None: ...
    def nacked(self, channel: int, tag: int, multiple: bool) -> None: ...
    def returned(self, channel: int, returned: Returned) -> None: ...
    def blocked(self, reason: str) -> None: ...
    def unblocked(self) -> None: ...
    def writable(self) -> None: ...

    def pull(self) -> None: ...


def named_driver(name: str) -> Driver:
    """Return the driver of that name, ``native`` or ``aiormq``."""
    if name == "aiormq":
        from warrener.drivers.aiormq import AiormqDriver

        return AiormqDriver()
    from warrener.drivers.native import NativeDriver

    return NativeDriver()


class _Steps:
    """Prints a line for each step."""

    def __init__(self) -> None:
        self.step = "settings"

    def begin(self, step: str) -> None:
        self.step = step

    def done(self, text: str) -> None:
        print(f"ok    {self.step:<10} {text}", flush=True)

    def failed(self, failure: _Failed) -> None:
        print(f"FAIL  {self.step:<10} {failure.why}", flush=True)
        print(f"      {'remedy':<10} {failure.advice}", flush=True)


def add_parser(commands: Commands) -> None:
    """Add ``check`` to the commands."""
    parser = commands.add_parser(
        "check",
        help="connect, declare, publish, read back; say which step fails, and the remedy",
        description="Check a broker step by step. Exit status 0: all steps passed; 1: a step failed, and its line says "
        "why.",
        epilog="Other users of this machine can see a password on the command line; they cannot see RABBITMQ_URL.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="amqp://user:password@host/vhost (default: RABBITMQ_URL)")
    parser.add_argument(
        "--watch", action="store_true", help="instead of the steps, print each change of state until interrupted"
    )
    add_driver(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    silence_log()
    command = watch if args.watch else check
    status = INTERRUPTED
    try:
        status = trio.run(lambda: command(args.url, driver=args.driver))
    except* KeyboardInterrupt:
        pass
    return status


def _resolve(url: str | None, steps: _Steps) -> Settings | None:
    try:
        return Settings.resolve(url)
    except SettingsError as error:
        steps.failed(_Failed(str(error), "correct the URL or the environment variable"))
        return None


async def check(url: str | None, *, driver: str = "native") -> int:
    """Run the steps against the broker of `url` (None: ``RABBITMQ_URL``), print each, and return the exit status."""
    steps = _Steps()
    settings = _resolve(url, steps)
    if settings is None:
        return 1
    # One dial: the user wants to know how the broker is now.
    settings = attrs.evolve(settings, backoff=Backoff(attempts=0), when_exhausted="stay", topology=())
    try:
        await _check(settings, named_driver(driver), steps)
    except _Failed as failure:
        steps.failed(failure)
        return 1
    return 0


async def _check(settings: Settings, driver: Driver, steps: _Steps) -> None:
    steps.begin("connect")
    async with running(Producer(settings, driver=driver)) as producer:
        try:
            await producer.wait_connected(settings.connect_timeout + 1)
        except ConnectError as error:
            _fail(error.fault)
        steps.done(_described(settings, driver, producer.peer or Peer()))
        queue = f"warrener.check.{uuid.uuid4().hex}"
        steps.begin("declare")
        async with _own_link(settings, driver, queue) as link:
            steps.done(f"queue {queue} (temporary)")
            bodies = [b"warrener check %d" % number for number in range(MESSAGES)]
            steps.begin("publish")
            await _publish(producer, queue, bodies)
            steps.done(f"{MESSAGES} messages, each confirmed by the broker")
            steps.begin("unroutable")
            await _publish_unroutable(producer, f"{queue}.nobody")
            steps.done("the broker returned a message that no queue takes")
            steps.begin("read back")
            await _read_back(link, queue, bodies)
            steps.done(f"{MESSAGES} messages, in order and unchanged")
            steps.begin("clean up")
            await link.delete_queue(queue)
            steps.done("queue deleted")


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
    """Open a link that owns the queue; the loss of the link becomes `_Failed`."""
    try:
        async with driver.open(settings.endpoint, settings.link_options(), _Ignored()) as link:
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
        "the broker confirmed a message that no queue can hold, and did not return it",
        "look for a proxy between this program and RabbitMQ that drops basic.return",
    )


async def _read_back(link: Link, queue: str, bodies: Sequence[bytes]) -> None:
    found: list[bytes] = []
    with anyio.move_on_after(PATIENCE):
        while len(found) < len(bodies):
            found += await link.get(queue, len(bodies) + 1 - len(found))
            await anyio.sleep(0.01)
    if found != list(bodies):
        raise _Failed(_difference(found, bodies), _LAST_ADVICE)


def _difference(found: Sequence[bytes], bodies: Sequence[bytes]) -> str:
    """Say how the messages that were read differ from the published ones."""
    if len(found) < len(bodies):
        return f"{len(bodies) - len(found)} of {len(bodies)} messages are missing: the queue held {len(found)}"
    if len(found) > len(bodies):
        return f"{len(bodies)} messages were published, and the queue held {len(found)}"
    if sorted(found) == sorted(bodies):
        return f"the {len(bodies)} messages were read in another order than they were published"
    wrong = sum(body not in bodies for body in found)
    return f"{wrong} of {len(bodies)} messages were read with another body than they were published with"


# --- watching ---------------------------------------------------------------------------------------------------------


async def watch(url: str | None, *, driver: str = "native") -> int:
    """Print each change of the connection's state until SIGINT or SIGTERM; return the exit status."""
    steps = _Steps()
    settings = _resolve(url, steps)
    if settings is None:
        return 1
    # No limit of attempts: the user wants to see the broker come back, however long it is away.
    backoff = attrs.evolve(settings.backoff, attempts=None)
    settings = attrs.evolve(settings, backoff=backoff, when_exhausted="stay", topology=())
    print(f"watching {settings.endpoint}; Ctrl-C ends it", flush=True)

    async def watch() -> None:
        async with running(Producer(settings, driver=named_driver(driver))) as producer:
            await print_changes(producer)

    await until_signal(watch)
    return 0
