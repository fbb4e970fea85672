"""Fixtures and rules for all tests: backends, brokers, hypothesis profiles, and the guard on tests of time."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQMissing, rabbitmq_bin

if TYPE_CHECKING:
    from collections.abc import Iterator

# Deadlines measure the machine, not the code: off. HYPOTHESIS_PROFILE chooses another profile than the machine's kind does.
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", parent=settings.get_profile("dev"), max_examples=15)  # `make check`
settings.register_profile("ci", parent=settings.get_profile("dev"), max_examples=60)
settings.register_profile("full", parent=settings.get_profile("ci"), max_examples=1000)
# Thousands of runs, each expected to fail: the same few examples every time, and no search for a smaller one.
settings.register_profile(
    "mutation",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),  # only a claim that does not hold may fail a test
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

try:
    import uvloop  # noqa: F401 - whether it is there is the question
except ImportError:
    _LOOPS = ["asyncio"]
else:
    _LOOPS = ["asyncio", "uvloop"]

_BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "trio": ("trio", {}),
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}


# The transport of uvloop differs from asyncio's where bytes are written: tests/drivers/test_native.py and `make test-full`.
@pytest.fixture(params=["trio", "asyncio", *[pytest.param(loop, marks=pytest.mark.full) for loop in _LOOPS[1:]]])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """What `pytest.mark.anyio` runs a test on: each backend in turn."""
    return _BACKENDS[request.param]


#: Against a real broker a driver is at home on one loop and a copy on the other: the loop makes no difference to the broker,
#: and the conformance suite has every pair on the embedded broker.
_COPIES = {"broker": {("native", "asyncio"), ("aiormq", "trio")}, "drivers": {("aiormq", "trio")}}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `full` what is a copy, so that `make test` keeps each claim about the broker once for each driver.

    What needs a PostgreSQL is `slow`: `make check` does not set one up.
    """
    for item in items:
        if "private_postgresql" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        given = getattr(getattr(item, "callspec", None), "params", {})
        pair = (given.get("driver"), given.get("anyio_backend"))
        if item.get_closest_marker("broker") and pair in _COPIES.get(item.path.parent.name, ()):
            item.add_marker(pytest.mark.full)


# --- brokers ------------------------------------------------------------------------------------------------------


#: What `--rabbitmq` calls the RabbitMQ of this machine; anything else is a folder that holds another.
HERE = "here"

#: The version of each RabbitMQ that was used, by what its tests are called after.
VERSIONS = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test-rabbit4` and `make conformance` run tests against another RabbitMQ than this machine's, or against both."""
    parser.addoption(
        "--rabbitmq",
        action="append",
        metavar="WHICH",
        help=f"'{HERE}' (the default), or a folder with a system whose RabbitMQ is to be used; may be repeated",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes the private broker once for each `--rabbitmq`."""
    chosen = metafunc.config.getoption("--rabbitmq")
    if chosen and "private_rabbitmq" in metafunc.fixturenames:
        ids = [Path(which).name for which in chosen]
        metafunc.parametrize("private_rabbitmq", chosen, ids=ids, indirect=True, scope="session")


def _require_broker() -> None:
    """Skip on a machine without RabbitMQ; fail in CI, unless `RABBITMQ_URL` says that this is known there."""
    try:
        rabbitmq_bin()
    except RabbitMQMissing as missing:
        if os.environ.get("CI") and not os.environ.get("RABBITMQ_URL"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def private_rabbitmq(request: pytest.FixtureRequest) -> Iterator[PrivateRabbitMQ]:
    """The private broker of this run, as the previous test left it; tests take `rabbitmq`."""
    # Without a parameter it was asked for while a test ran (`rabbitmq_url`).
    which = getattr(request, "param", (request.config.getoption("--rabbitmq") or [HERE])[0])
    if which == HERE:
        _require_broker()
    with PrivateRabbitMQ(root=None if which == HERE else Path(which)) as broker:
        request.config.stash.setdefault(VERSIONS, {})[Path(which).name] = ".".join(map(str, broker.version))
        yield broker


@pytest.fixture
def rabbitmq(private_rabbitmq: PrivateRabbitMQ) -> Iterator[PrivateRabbitMQ]:
    """A private broker to inflict faults on: running, thawed, without alarm or connections when the test begins."""
    _heal(private_rabbitmq)
    yield private_rabbitmq
    private_rabbitmq.thaw()  # a frozen broker would hold up whoever closes a connection next


def _heal(broker: PrivateRabbitMQ) -> None:
    broker.thaw()
    broker.start()
    broker.memory_alarm(False)
    broker.close_all_connections("the next test begins")


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """The URL of some healthy broker: `RABBITMQ_URL` where it is set, otherwise the private one."""
    given = os.environ.get("RABBITMQ_URL")
    return given or request.getfixturevalue("rabbitmq").url


_queue_numbers = itertools.count(1)


@pytest.fixture
def queue_name() -> str:
    """A queue name that no other test uses, in this run or another on the same broker."""
    return f"warrener-test-{os.getpid()}-{time.time_ns():x}-{next(_queue_numbers)}"


# --- tests of time ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_real_beside_virtual_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test on virtual time takes none of the real kind: it neither sleeps nor has a socket."""
    if not {"autojump_clock", "mock_clock"} & set(request.fixturenames):
        return

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a test of virtual time slept in real time, or connected a socket")

    monkeypatch.setattr(time, "sleep", refuse)
    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse, raising=False)
