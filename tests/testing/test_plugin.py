"""The fixtures work in somebody else's suite, under each runner of asynchronous tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"

PUBLISH = """
    async with warrener_producer(driver="{driver}") as producer:
        receipt = await producer.publish(b"hello", routing_key="tasks")
    assert receipt.attempts == 1
    assert warrener_broker.messages("tasks") == [b"hello"]
"""
SURVIVE = """
    async with warrener_producer(fault_proxy.url, driver="{driver}", backoff=Backoff(initial=0.1)) as producer:
        await producer.publish(b"1", routing_key="tasks")
        fault_proxy.reset()
        await producer.publish(b"2", routing_key="tasks")
    assert warrener_broker.messages("tasks")[-1] == b"2"
"""
SUITE = """
import pytest
from warrener import Backoff

{mark}
async def test_publishes(warrener_broker, warrener_producer):
    warrener_broker.declare_queue("tasks")
{publish}
{mark}
async def test_survives(warrener_broker, fault_proxy, warrener_producer):
    warrener_broker.declare_queue("tasks")
{survive}
"""
RUNNERS = {
    "anyio": ("@pytest.mark.anyio", 4, ["-p", "no:trio", "-p", "no:asyncio"]),
    "pytest-trio": ("@pytest.mark.trio", 2, ["-p", "no:asyncio"]),
    "pytest-asyncio": ("@pytest.mark.asyncio", 2, ["-p", "no:trio", "-p", "no:anyio"]),
}


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory of tests of somebody else's."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    return pytester


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """Run the suite in a process of its own; pytest finds the plugin by the entry point of the installed package."""
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["native", pytest.param("aiormq", marks=pytest.mark.full)])
@pytest.mark.parametrize("runner", RUNNERS)
def test_fixtures_under(runner: str, driver: str, suite: pytest.Pytester) -> None:
    """Broker, proxy and producer, whoever runs the loop."""
    mark, count, options = RUNNERS[runner]
    publish, survive = PUBLISH.format(driver=driver), SURVIVE.format(driver=driver)
    suite.makepyfile(SUITE.format(mark=mark, publish=publish, survive=survive))

    run(suite, *options).assert_outcomes(passed=count)


def test_illegal_bytes_fail_the_test_that_sent_them(suite: pytest.Pytester) -> None:
    """At the latest when the fixture is torn down."""
    suite.makepyfile("""
        import socket

        def test_speaks_http(warrener_broker):
            with socket.create_connection(("127.0.0.1", warrener_broker.port)) as raw:
                raw.sendall(b"GET / HT")
                while not warrener_broker.violations:
                    pass
    """)
    result = run(suite)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ProtocolViolated: connection 1: the protocol header is b'GET / HT'*"])


def test_the_script_of_the_documentation_passes(suite: pytest.Pytester) -> None:
    """The first code block of docs/testing.md, pasted into a file."""
    page = Path(__file__).parents[2] / "docs" / "testing.md"
    script = page.read_text().split("```python\n")[1].split("```")[0]
    assert len(script.splitlines()) <= 10
    suite.makepyfile(script)

    run(suite, "-p", "no:asyncio").assert_outcomes(passed=1)
