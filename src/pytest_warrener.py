"""The pytest plugin of `warrener`: synchronous fixtures, for test suites of programs that publish.

They are synchronous, and their servers run on threads, so that they work under anyio's plugin, pytest-trio,
pytest-asyncio and none of them: a fixture that holds a task group open breaks under runners that set up and tear down in
different tasks. pytest loads this module in every run in an environment where warrener is installed; so it stands
outside of the package, and imports nothing of it until a fixture is used. See docs/testing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from warrener import Producer
    from warrener.testing import EmbeddedBroker, FaultProxy


class ProducerFactory(Protocol):
    """What the fixture `warrener_producer` gives: `open_producer`, with the embedded broker's URL as the default."""

    def __call__(self, url: str | None = None, **settings: Any) -> AbstractAsyncContextManager[Producer]:
        """Make one, to be opened in the test. The arguments are those of open_producer."""
        ...


def _broker() -> Iterator[EmbeddedBroker]:
    from warrener.testing import EmbeddedBroker

    with EmbeddedBroker.in_thread() as broker:
        yield broker


@pytest.fixture
def warrener_broker() -> Iterator[EmbeddedBroker]:
    """A new embedded broker for each test, on a thread; a client that sends it illegal bytes fails the test."""
    yield from _broker()


@pytest.fixture(scope="module")
def warrener_broker_per_module() -> Iterator[EmbeddedBroker]:
    """One embedded broker for all tests of a module; illegal bytes fail the module's last test."""
    yield from _broker()


@pytest.fixture(scope="session")
def warrener_broker_per_session() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the whole run; illegal bytes fail the last test."""
    yield from _broker()


@pytest.fixture
def fault_proxy(warrener_broker: EmbeddedBroker) -> Iterator[FaultProxy]:
    """A proxy on a thread, in front of `warrener_broker`; clients connect to its `url`."""
    from warrener.testing import FaultProxy

    with FaultProxy.in_thread(warrener_broker.url) as proxy:
        yield proxy


@pytest.fixture
def warrener_producer(warrener_broker: EmbeddedBroker) -> ProducerFactory:
    """A factory for producers; open one in the test by ``async with``, the default URL is the broker's."""

    def factory(url: str | None = None, **settings: Any) -> AbstractAsyncContextManager[Producer]:
        from warrener import open_producer

        return open_producer(url or warrener_broker.url, **settings)

    return factory
