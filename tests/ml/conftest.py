"""A producer without a broker, for the tests of what stands around it."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import evolve

from warrener._histogram import RECONNECT_BOUNDS, Histogram
from warrener._settings.settings import Settings
from warrener.errors import FaultKind
from warrener.ml import MLProducer, MLSettings
from warrener.records import ClosingReport, ConnectionState, Message, Receipt, Status

UP = Status(
    connection_state=ConnectionState.CONNECTED, reconnect_attempts=0, consecutive_failures=0, circuit_breaker="closed",
    healthy=True, blocked=False, in_flight=0, buffered=0, retry_in=None, last_fault=None,
    endpoint="amqp://broker.internal:5672/", heartbeat=60.0, link=1,
)  # fmt: skip


class FakeProducer:
    """Has the methods of `Producer` that are used around it; a test sets what they say."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.now = UP
        self.settings = Settings.resolve("amqp://ml:hunter2@broker.internal/", environ={})
        self.published: list[tuple[Message, float | None]] = []
        self.outcome: Exception | None = None
        self.attempts = 1
        self.hold: anyio.Event | None = None
        self.counters: dict[str, int] = {}
        self.faults: dict[FaultKind, int] = {}
        self.reconnect_times = Histogram(RECONNECT_BOUNDS)
        self.looks = 0

    def becomes(self, **changes: Any) -> None:
        """Change the status."""
        self.now = evolve(self.now, **changes)

    def status(self) -> Status:
        self.looks += 1
        return self.now

    async def publish(self, message: Message, *, timeout: float | None = None) -> Receipt:
        self.published.append((message, timeout))
        if self.hold is not None:
            await self.hold.wait()
        if self.outcome is not None:
            raise self.outcome
        return Receipt(message.message_id, self.attempts, possible_duplicate=self.attempts > 1, link=1)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Status]]:
        async def once() -> AsyncIterator[Status]:
            yield self.now

        yield once()

    async def run(self, *, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def aclose(self) -> ClosingReport:
        return ClosingReport()

    def abort(self) -> None:
        pass

    def reconnect(self) -> bool:
        return True


@pytest.fixture
def driver() -> str:
    """The driver that tests with a real broker take: the default one, where it is there."""
    return "native" if importlib.util.find_spec("warrener.drivers.native") else "aiormq"


@pytest.fixture
def producer() -> FakeProducer:
    """A producer whose broker confirms at once, until told otherwise."""
    return FakeProducer()


@pytest.fixture
def ml_with(producer: FakeProducer) -> Callable[..., MLProducer]:
    """Make an ML producer around the fake one, with these settings."""

    def make(**settings: Any) -> MLProducer:
        fake: Any = producer
        return MLProducer(MLSettings(**settings), producer=fake)

    return make


@pytest.fixture
def ml(ml_with: Callable[..., MLProducer]) -> MLProducer:
    """An ML producer with default settings around the fake one."""
    return ml_with()


class Service:
    """The service as a program of its own, and what it logs."""

    def __init__(
        self, environment: dict[str, str], driver: str, url: str, *, files: int | None = None, **settings: str
    ) -> None:
        variables = {f"ML_PRODUCER_{name.upper()}": value for name, value in settings.items()}
        limit = (
            ""
            if files is None
            else f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); "
        )
        self.program = subprocess.Popen(
            [sys.executable, "-c", f"{limit}import sys; from warrener.ml.service import main; sys.exit(main())"],
            env={
                **{
                    name: value for name, value in os.environ.items() if not name.startswith(("WARRENER_", "RABBITMQ_"))
                },
                "RABBITMQ_URL": url,
                "ML_PRODUCER_DRIVER": driver,
                "ML_PRODUCER_LOG": "json",
                "ML_PRODUCER_BIND": "127.0.0.1:0",
                **variables,
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._read_to = 0
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.program.stderr is not None
        for line in self.program.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _find(self, text: str, start: int) -> int:
        """Wait for a line with `text`, from line number `start` on; return its number."""
        with self._news:
            while True:
                for number in range(start, len(self.lines)):
                    if text in self.lines[number]:
                        return number
                start = len(self.lines)
                assert not self._ended, f"the service ended without saying {text!r}:\n{''.join(self.lines)}"
                assert self._news.wait(timeout=60), f"the service does not say {text!r}:\n{''.join(self.lines)}"

    def wait_log(self, text: str) -> str:
        """Return the next line of the log that holds `text`."""
        number = self._find(text, self._read_to)
        self._read_to = number + 1
        return self.lines[number]

    @functools.cached_property
    def url(self) -> str:
        """Where it listens."""
        message: str = json.loads(self.lines[self._find("listening on", 0)])["message"]
        return message.removeprefix("listening on ")

    def signal(self, number: int) -> None:
        self.program.send_signal(number)

    def wait_end(self) -> int:
        """Return the exit status."""
        status = self.program.wait(timeout=60)
        self._reader.join(timeout=60)
        return status


@pytest.fixture
def start_service(driver: str) -> Iterator[Callable[..., Service]]:
    """Start services; none outlives the test."""
    services: list[Service] = []

    def start(
        url: str, environment: dict[str, str] | None = None, *, files: int | None = None, **settings: str
    ) -> Service:
        services.append(Service(environment or {}, driver, url, files=files, **settings))
        return services[-1]

    yield start
    for service in services:
        print("the service's log:", *service.lines, sep="\n")  # shown by pytest when the test fails
        service.program.kill()
        service.program.wait()
        service._reader.join(timeout=60)
        assert service.program.stderr is not None
        service.program.stderr.close()


#: A word that no text of ours holds.
DEAD_PASSWORD = "hunter2-s3cr3t"


@pytest.fixture
def dead_url() -> Iterator[str]:
    """The URL of a port on which nobody listens, and nobody will."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # taken, and not listening: every dial is refused
        yield f"amqp://nobody:{DEAD_PASSWORD}@127.0.0.1:{holder.getsockname()[1]}/"
