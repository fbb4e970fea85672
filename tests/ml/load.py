"""HTTP clients submit tasks to the service while its broker is killed, blocked, flooded and restarted.

Every request carries an Idempotency-Key of its own, so in the end each answer can be held against what is in the queues,
as an independent client finds it. Run as a program it prints the table:

    python -m tests.ml.load [SECONDS OF EACH PHASE]
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
import anyio.to_thread
import httpx
import trio
from attrs import define, field, frozen

from tests.ml.conftest import Service
from warrener.ml.topology import QUEUES
from warrener.testing.rabbitmq import PrivateRabbitMQ

#: Seconds; shorter than by default, so that a phase can show it.
REQUEST_TIMEOUT = 4.0
#: Seconds between an answer's deadline and the client having it, on a busy machine.
SLACK = 30.0
CLIENTS = 32
#: More than the service takes in at once (max_requests), with bodies that would not fit together (max_held).
FLOOD = 200
MAX_REQUESTS = 128
MAX_HELD = 8 * 1024 * 1024
FLOOD_BODY = 100_000

TASKS: Mapping[str, dict[str, Any]] = {
    "summarize": {"share_id": "load", "content": {"text": "A long article. " * 40}, "options": {"style": "brief"}},
    "transcribe": {"share_id": "load", "content": {"media_url": "https://recordings.example/load.ogg"}},
    "embed": {"share_id": "load", "content": {"text": "warren, burrow, tunnel", "type": "caption"}},
    "embed-batch": {"tasks": [{"share_id": "load", "content": {"text": f"text {number}"}} for number in range(10)]},
}
#: As bytes: what is measured is the service, and not how fast its clients write JSON.
BODIES = [(kind, json.dumps(task).encode()) for kind, task in TASKS.items()]
FLOODS = [("embed", json.dumps({"share_id": "load", "content": {"text": "x" * FLOOD_BODY}}).encode())]


@frozen
class Answer:
    """What one request was told."""

    status: int
    seconds: float
    may_have_been_delivered: bool
    possible_duplicate: bool


@define
class Phase:
    """What happened while the broker was in one condition."""

    name: str
    #: By the task id that the client chose.
    answers: dict[str, Answer] = field(factory=dict[str, Answer])
    #: Requests that ended without an answer, by the client's error.
    unanswered: Counter[str] = field(factory=Counter[str])
    seconds: float = 0.0
    #: The most that the service's process had in memory, bytes.
    memory: int = 0

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers.values())


@define
class Report:
    """The whole run, and what was in the queues after it."""

    phases: list[Phase]
    found: Counter[str]
    memory_before: int

    @property
    def answers(self) -> dict[str, Answer]:
        return {task: answer for phase in self.phases for task, answer in phase.answers.items()}

    def faults(self) -> list[str]:
        """What was not as promised, in words; nothing when all was."""
        answers, found = self.answers, self.found
        taken = {task for task, answer in answers.items() if answer.status == 202}
        refused = {
            task for task, answer in answers.items() if answer.status != 202 and not answer.may_have_been_delivered
        }
        told = {task for task, answer in answers.items() if answer.possible_duplicate or answer.may_have_been_delivered}
        claims = [
            (len(taken - found.keys()), "202 and in no queue"),
            (len(refused & found.keys()), "refused, and in a queue"),
            (len(found.keys() - answers.keys()), "in a queue, and nobody was answered"),
            (len({task for task, count in found.items() if count > 1} - told), "twice in a queue, and nobody was told"),
            (sum(phase.unanswered.total() for phase in self.phases), "without an answer"),
            (
                sum(answer.seconds > REQUEST_TIMEOUT + SLACK for answer in answers.values()),
                f"answered later than {REQUEST_TIMEOUT + SLACK:g} s",
            ),
            (len([1 for answer in answers.values() if answer.status not in (202, 503, 504)]), "with another status"),
        ]
        return [f"{count} {what}" for count, what in claims if count]

    def lines(self) -> Iterator[str]:
        """The table."""
        yield (
            f"{'the broker is':<22}{'s':>5}{'requests':>10}{'202':>8}{'503':>8}{'504':>6}{'other':>7}"
            f"{'p50 ms':>9}{'p99 ms':>9}{'longest s':>11}{'RSS MiB':>9}"
        )
        for phase in self.phases:
            statuses = phase.statuses()
            taken = sorted(answer.seconds for answer in phase.answers.values()) or [math.nan]
            other = sum(count for status, count in statuses.items() if status not in (202, 503, 504))
            yield (
                f"{phase.name:<22}{phase.seconds:>5.0f}{len(phase.answers):>10}{statuses[202]:>8}{statuses[503]:>8}"
                f"{statuses[504]:>6}{other + phase.unanswered.total():>7}{1000 * statistics.median(taken):>9.1f}"
                f"{1000 * taken[int(0.99 * (len(taken) - 1))]:>9.1f}{taken[-1]:>11.2f}{phase.memory / 2**20:>9.0f}"
            )
        confirmed = sum(answer.status == 202 for answer in self.answers.values())
        twice = sum(count > 1 for count in self.found.values())
        yield (
            f"{confirmed} answers 202; {len(self.found)} tasks in the queues, {twice} of them twice; "
            f"RSS before {self.memory_before / 2**20:.0f} MiB"
        )
        yield "; ".join(self.faults()) or "every 202 is in a queue, no refused task is, no answer came late"


class _Load:
    def __init__(self, service: Service, broker: PrivateRabbitMQ, seconds: float) -> None:
        self._service = service
        self._broker = broker
        self._seconds = seconds
        self.phases: list[Phase] = []
        self.memory_before = 0
        #: Tasks of no phase, by which it is found out that all is well again.
        self.probes: set[str] = set()

    async def tell(self) -> None:
        """The story: each phase with its clients."""
        broker = self._broker
        # A broker that is killed within a second of the declarations can lose a quorum queue's leader for good; what
        # is asked here is what becomes of queues that have lived. An orderly restart writes them down.
        await self._order(broker.restart)
        await self._until_ready()
        await self._order(lambda: found_in_queues(broker.url))  # what others have left there
        self.memory_before = memory_of(self._service.program.pid)
        await self._phase("well")
        await self._phase("killed (SIGKILL)", broker.kill)
        await self._phase("back", broker.start)
        await self._until_ready()
        await self._phase("well again")
        await self._phase("blocked (alarm)", lambda: broker.memory_alarm(True))
        await self._phase("blocked and flooded", clients=FLOOD, bodies=FLOODS)
        await self._order(lambda: broker.memory_alarm(False))
        await self._until_ready()
        await self._phase("well after that")
        await self._phase("restarted in order", broker.restart)
        await self._until_ready()
        await self._phase("frozen (SIGSTOP)", broker.freeze)
        await self._order(broker.thaw)
        await self._until_ready()
        await self._phase("well in the end")

    async def _order(self, order: Callable[[], object]) -> None:
        await anyio.to_thread.run_sync(order)

    async def _until_ready(self) -> None:
        async with httpx.AsyncClient(base_url=self._service.url, timeout=10) as http:
            with anyio.fail_after(90):
                while (await http.get("/readyz")).status_code != 200:
                    await anyio.sleep(0.1)
                # Half-open lets one task through at a time; one that is taken closes the breaker.
                while True:
                    probe = str(uuid.uuid4())
                    self.probes.add(probe)
                    answer = await http.post(
                        "/v1/ml/tasks/embed", json=TASKS["embed"], headers={"Idempotency-Key": probe}
                    )
                    if answer.status_code == 202:
                        break
                    await anyio.sleep(0.2)

    async def _phase(
        self,
        name: str,
        order: Callable[[], object] | None = None,
        *,
        clients: int = CLIENTS,
        bodies: Sequence[tuple[str, bytes]] = BODIES,
    ) -> None:
        phase = Phase(name)
        self.phases.append(phase)
        connected = [await Client.connect(self._service.url) for _ in range(clients)]
        began = anyio.current_time()
        until = began + self._seconds
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, phase, until)
            for number, client in enumerate(connected):
                tasks.start_soon(self._submit, client, phase, number, bodies, until)
            if order is not None:
                await anyio.sleep(min(0.5, self._seconds / 4))  # in the midst of them
                await self._order(order)
        phase.seconds = anyio.current_time() - began

    async def _watch(self, phase: Phase, until: float) -> None:
        while anyio.current_time() < until:
            phase.memory = max(phase.memory, memory_of(self._service.program.pid))
            await anyio.sleep(0.1)

    async def _submit(
        self, client: Client, phase: Phase, number: int, bodies: Sequence[tuple[str, bytes]], until: float
    ) -> None:
        async with client:
            while anyio.current_time() < until:
                number += 1
                kind, body = bodies[number % len(bodies)]
                task = str(uuid.uuid4())
                called = anyio.current_time()
                try:
                    with anyio.fail_after(REQUEST_TIMEOUT + 2 * SLACK):
                        status, told = await client.submit(kind, body, task)
                except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                    phase.unanswered[type(error).__name__] += 1
                    await client.reconnect()
                    continue
                phase.answers[task] = Answer(
                    status,
                    anyio.current_time() - called,
                    told.get("may_have_been_delivered", False),
                    told.get("possible_duplicate", False),
                )
                if status == 503:
                    # What Retry-After says, or sooner; a client that came back at once would measure its own speed.
                    await anyio.sleep(min(client.retry_after, 1.0))


class Client:
    """One connection: hundreds of them cost a client library more than they cost the service."""

    def __init__(self, host: str, port: int, stream: anyio.abc.SocketStream) -> None:
        self._address = (host, port)
        self._stream = stream
        #: Seconds, from the last answer that was a 503.
        self.retry_after = 0.0

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect; the address is the URL's."""
        host, _, port = url.removeprefix("http://").rpartition(":")
        return cls(host, int(port), await anyio.connect_tcp(host, int(port)))

    async def reconnect(self) -> None:
        """Go on with a new connection."""
        await self._stream.aclose()
        self._stream = await anyio.connect_tcp(*self._address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()

    async def submit(self, kind: str, body: bytes, task: str) -> tuple[int, dict[str, Any]]:
        """Post a task; return the status and the decoded answer."""
        head = (
            f"POST /v1/ml/tasks/{kind} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nIdempotency-Key: {task}\r\n\r\n"
        )
        await self._stream.send(head.encode() + body)
        answer = await self._stream.receive()
        while b"\r\n\r\n" not in answer:
            answer += await self._stream.receive()
        headers, _, content = answer.partition(b"\r\n\r\n")
        (length,) = re.findall(rb"(?i)\r\ncontent-length: (\d+)", headers)
        while len(content) < int(length):
            content += await self._stream.receive()
        for seconds in re.findall(rb"(?i)\r\nretry-after: (\d+)", headers):
            self.retry_after = float(seconds)
        if b"\r\nconnection: close" in headers.lower():
            await self.reconnect()
        return int(headers.split(b" ", 2)[1]), json.loads(content)


def memory_of(process: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def found_in_queues(url: str) -> Counter[str]:
    """How often each task is in the queues; an independent client empties them."""
    import kombu

    found: Counter[str] = Counter()
    with kombu.Connection(url.replace("amqp://", "pyamqp://")) as connection, connection.channel() as channel:
        for queue in QUEUES:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                found[message.headers["id"]] += 1
    return found


def run(service: Service, broker: PrivateRabbitMQ, seconds: float) -> Report:
    """Tell the story against a service that was started with `SETTINGS`."""
    load = _Load(service, broker, seconds)
    trio.run(load.tell)
    found = found_in_queues(broker.url)
    for probe in load.probes:
        found.pop(probe, None)
    return Report(load.phases, found, load.memory_before)


#: Of the service, as the settings of `start_service`.
SETTINGS = {
    "request_timeout": str(REQUEST_TIMEOUT),
    "max_requests": str(MAX_REQUESTS),
    "max_held": str(MAX_HELD),
}
#: Quick to try again, quick to close the breaker, so that phases are short.
ENVIRONMENT = {
    "WARRENER_BACKOFF_CAP": "1",
    "WARRENER_BACKOFF_ATTEMPTS": "forever",
    "WARRENER_BREAKER_COOLDOWN": "2",
    "WARRENER_CONFIRM_TIMEOUT": "3",
    "WARRENER_HEARTBEAT": "4",
}


@contextmanager
def _standing_alone() -> Iterator[tuple[Service, PrivateRabbitMQ]]:
    with PrivateRabbitMQ() as broker:
        service = Service(ENVIRONMENT, "native", broker.url, **SETTINGS)
        try:
            yield service, broker
        finally:
            service.program.terminate()
            service.wait_end()


if __name__ == "__main__":
    with _standing_alone() as (its_service, its_broker):
        report = run(its_service, its_broker, float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
    print(*report.lines(), sep="\n")
    sys.exit(bool(report.faults()))
