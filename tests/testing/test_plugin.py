"""The fixtures work in a test suite of another project, under each runner of asynchronous tests."""

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
    """A directory with the tests of another project."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    return pytester


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """Run the suite in a process of its own; pytest finds the plugin by the entry point of the installed package."""
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["native", pytest.param("aiormq", marks=pytest.mark.full)])
@pytest.mark.parametrize("runner", RUNNERS)
def test_fixtures_under(runner: str, driver: str, suite: pytest.Pytester) -> None:
    """Broker, proxy and producer under each runner."""
    mark, count, options = RUNNERS[runner]
    publish, survive = PUBLISH.format(driver=driver), SURVIVE.format(driver=driver)
    suite.makepyfile(SUITE.format(mark=mark, publish=publish, survive=survive))

    run(suite, *options).assert_outcomes(passed=count)


@pytest.mark.slow
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


def blocks(word: str) -> str:
    """Return the one code block of docs/testing.md that has this word."""
    page = Path(__file__).parents[2] / "docs" / "testing.md"
    (block,) = [
        each.split("```")[0] for each in page.read_text().split("```python\n")[1:] if word in each.split("```")[0]
    ]
    return block


@pytest.mark.slow
def test_the_script_of_the_documentation_passes(suite: pytest.Pytester) -> None:
    """The first code block of docs/testing.md, pasted into a file."""
    script = blocks("test_a_task_reaches_its_queue")
    assert len(script.splitlines()) <= 10
    suite.makepyfile(script)

    run(suite, "-p", "no:asyncio").assert_outcomes(passed=1)


USE_TWICE = """
{mark}
async def test_publishes({broker}, producer):
    {broker}.declare_queue("tasks")
    await producer.publish(b"1", routing_key="tasks")

{mark}
async def test_publishes_again({broker}, producer):
    {broker}.declare_queue("tasks")
    await producer.publish(b"2", routing_key="tasks")
    assert {broker}.messages("tasks")[-1] == b"2"
"""


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["anyio", "pytest-trio"])
def test_a_fixture_may_hold_a_producer_open_under(runner: str, suite: pytest.Pytester) -> None:
    """The fixture of docs/testing.md for the plugins that set up and tear down in one task."""
    mark, count, options = RUNNERS[runner]
    suite.makepyfile(blocks("@pytest.fixture") + USE_TWICE.format(mark=mark, broker="warrener_broker"))

    run(suite, *options).assert_outcomes(passed=count)


@pytest.mark.slow
def test_a_producer_of_the_session_under_pytest_asyncio(suite: pytest.Pytester) -> None:
    """The fixture of docs/testing.md that gives the producer a task of its own."""
    use = USE_TWICE.format(mark='@pytest.mark.asyncio(loop_scope="session")', broker="warrener_broker_per_session")
    suite.makepyfile("import pytest\n" + blocks("pytest_asyncio.fixture") + use)

    run(suite, *RUNNERS["pytest-asyncio"][2]).assert_outcomes(passed=2)


@pytest.mark.slow
def test_the_error_of_a_fixture_that_pytest_asyncio_tears_down_elsewhere(suite: pytest.Pytester) -> None:
    """The error says what to write, and run() has ended."""
    fixture = blocks("@pytest.fixture").replace("pytest.fixture", "pytest_asyncio.fixture")
    use = USE_TWICE.format(mark="@pytest.mark.asyncio", broker="warrener_broker")
    suite.makepyfile("import pytest_asyncio\n" + fixture + use)

    result = run(suite, *RUNNERS["pytest-asyncio"][2])
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(
        ["*RuntimeError: one task began the producer's `async with` and another task ended it*"]
    )


@pytest.mark.slow
def test_brokers_of_a_module_and_of_the_session(suite: pytest.Pytester) -> None:
    """One lives for a module, one for the run, and one for each test."""
    script = """
    def test_first(warrener_broker, warrener_broker_per_module, warrener_broker_per_session):
        for broker in (warrener_broker, warrener_broker_per_module, warrener_broker_per_session):
            broker.declare_queue("q")

    def test_second(warrener_broker, warrener_broker_per_module, warrener_broker_per_session):
        assert [{}, {"q": 0}, {"q": 0}] == [
            broker.queues() for broker in (warrener_broker, warrener_broker_per_module, warrener_broker_per_session)
        ]
    """
    other = """
    def test_third(warrener_broker_per_module, warrener_broker_per_session):
        assert [{}, {"q": 0}] == [broker.queues() for broker in (warrener_broker_per_module, warrener_broker_per_session)]
    """
    suite.makepyfile(test_one=script, test_two=other)

    run(suite).assert_outcomes(passed=3)
