"""What the service that this library replaces got wrong, each mistake as a test by its name.

Those of its payloads, HTTP and metrics have their tests in tests/ml. What only a real broker can show of these here (a
broker absent at start, the cost of a burst, one poison message, SIGTERM) is in tests/broker/test_survives.py as well.
"""

from __future__ import annotations

import ssl
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
import trustme

import warrener
from warrener import Backoff, Breaker, ConnectionState, Message, Producer, Receipt, open_producer
from warrener._settings.settings import Settings
from warrener.drivers._dial import _make_context
from warrener.drivers.base import Lane
from warrener.errors import Fault, FaultKind, SettingsError
from warrener.metrics import ProducerCollector
from warrener.ml.payloads import Summarize, SummarizeContent
from warrener.ml.settings import MLSettings
from warrener.testing.scripted import Published, ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from trio.testing import MockClock

pytestmark = pytest.mark.trio

URL = "amqp://gateway:hunter2@localhost/"
SECRET = "hunter2"


def silence(_message: Published) -> str:
    """A broker that never answers."""
    return "silence"


# --- loss ---------------------------------------------------------------------------------------------------------


async def test_unroutable_counted_as_success(autojump_clock: MockClock) -> None:
    """A returned message is Unroutable although the broker acks it."""
    async with open_producer(URL, driver=ScriptedDriver(lives(answer=lambda _: "return"))) as producer:
        with pytest.raises(warrener.Unroutable):
            await producer.publish(b"x", routing_key="nobody")


async def test_a_publish_parked_for_retry_reported_as_success(autojump_clock: MockClock) -> None:
    """While the broker is away a publish neither returns nor counts as confirmed."""
    async with open_producer(URL, driver=ScriptedDriver(refuses()), breaker=None) as producer:
        with trio.move_on_after(30) as scope:
            await producer.publish(b"x", routing_key="tasks")
        assert scope.cancelled_caught
        assert producer.counters["confirmed"] == 0


async def test_shutdown_dropping_queued_and_in_flight_messages(autojump_clock: MockClock) -> None:
    """Closing settles both; what it cannot settle it reports by id."""
    driver = ScriptedDriver(lives(latency=0.3))
    async with open_producer(URL, driver=driver, max_in_flight=2) as producer:
        await producer.wait_connected()
        handles = [producer.publish_nowait(b"%d" % n, routing_key="tasks") for n in range(6)]
        report = await producer.aclose()
        assert (report.confirmed, report.unconfirmed, report.not_sent) == (6, (), ())
        assert all([isinstance(await handle.wait(), Receipt) for handle in handles])


async def test_retries_burnt_while_the_breaker_is_open(autojump_clock: MockClock) -> None:
    """A message accepted before the breaker opened is written once, when a link is up, however long that took."""
    driver = ScriptedDriver(lives(20.0), *[refuses()] * 6, lives())
    async with open_producer(URL, driver=driver, backoff=Backoff(jitter=0.0), publish_timeout=300) as producer:
        await trio.sleep(20.5)
        receipt = await producer.publish(b"x", routing_key="tasks")
        assert receipt.attempts == 1


async def test_exhausted_messages_only_logged_with_private_text(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Giving up is raised to the publisher; no log line holds a body, a header or a password."""
    caplog.set_level("DEBUG")
    async with open_producer(
        URL, driver=ScriptedDriver(refuses()), backoff=Backoff(attempts=1), breaker=None
    ) as producer:
        with pytest.raises(warrener.GaveUp):
            await producer.publish(b"private text", routing_key="tasks", headers={"who": "private header"})
    logged = caplog.text
    assert "private" not in logged
    assert SECRET not in logged


async def test_failures_classified_by_matching_error_text(autojump_clock: MockClock) -> None:
    """A fault is classified by its kind, whatever its text says."""
    misleading = Fault(FaultKind.UNREACHABLE, "ACCESS_REFUSED - 403 NOT_FOUND PRECONDITION_FAILED")
    driver = ScriptedDriver(refuses(misleading), lives())
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()  # a permanent refusal would raise here


async def test_unbounded_retry_store(autojump_clock: MockClock) -> None:
    """What waits is bounded by count and by bytes; the rest is told BufferFull."""
    async with open_producer(
        URL, driver=ScriptedDriver(refuses()), max_buffered=100, max_buffered_bytes=5000, breaker=None
    ) as producer:
        refused = 0
        for _ in range(200):
            try:
                producer.publish_nowait(b"x" * 100, routing_key="tasks")
            except warrener.BufferFull:
                refused += 1
        assert (producer.status().buffered, refused) == (50, 150)


# --- duplicates ---------------------------------------------------------------------------------------------------


async def test_a_confirm_timeout_resending_on_the_same_live_channel(autojump_clock: MockClock) -> None:
    """It made 7 copies of one task: here a message is never twice in one epoch."""
    driver = ScriptedDriver(*[lives(answer=silence)] * 3, lives())
    async with open_producer(URL, driver=driver, publish_timeout=600) as producer:
        receipt = await producer.publish(b"x", routing_key="tasks")
        epochs = [(message.link, message.channel) for message in driver.published]
        assert len(set(epochs)) == len(epochs) == receipt.attempts == 4


async def test_back_pressure_taken_for_failure(autojump_clock: MockClock) -> None:
    """It made 2,725 copies of 2,047 ids: a slow broker is waited for, and each message is written once."""
    driver = ScriptedDriver(lives(latency=0.01))
    async with open_producer(
        URL, driver=driver, max_in_flight=10, max_buffered=20, publish_timeout=600, confirm_timeout=600
    ) as producer:
        outcomes = await producer.publish_many(Message(b"%d" % n, routing_key="tasks") for n in range(500))
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert len(driver.published) == 500


async def test_waiting_for_the_whole_channels_confirms(autojump_clock: MockClock) -> None:
    """One nack failed 12 good publishes: here it fails its own."""
    driver = ScriptedDriver(lives(answer=lambda message: "nack" if message.body == b"7" else "ack"))
    async with open_producer(URL, driver=driver) as producer:
        outcomes = await producer.publish_many(Message(b"%d" % n, routing_key="tasks") for n in range(13))
    assert [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Receipt)] == [7]


async def test_a_lost_confirm_poisoning_later_waits(autojump_clock: MockClock) -> None:
    """One confirm that never comes holds up nobody but its own publish."""
    driver = ScriptedDriver(lives(answer=lambda message: "silence" if message.body == b"lost" else "ack"))
    async with open_producer(URL, driver=driver) as producer:
        with pytest.raises(warrener.Unconfirmed):
            await producer.publish(b"lost", routing_key="tasks", timeout=1)
        began = trio.current_time()
        await producer.publish(b"next", routing_key="tasks")
        assert trio.current_time() == began


# --- connection ---------------------------------------------------------------------------------------------------


async def test_one_drop_counted_as_two_attempts(autojump_clock: MockClock) -> None:
    """A link that is lost is one failure and, after its delay, one dial: attempt number one."""
    driver = ScriptedDriver(lives(20.0), refuses())
    async with open_producer(URL, driver=driver, backoff=Backoff(jitter=0.0), drain_timeout=0) as producer:
        await trio.sleep(20.5)
        status = producer.status()
        assert (status.reconnect_attempts, status.consecutive_failures, len(driver.dials)) == (0, 1, 1)
        await trio.sleep(1)
        assert (producer.status().reconnect_attempts, len(driver.dials)) == (1, 2)


async def test_each_publish_while_down_dialing_at_once(autojump_clock: MockClock) -> None:
    """Ten attempts were gone in 15 ms: here fifty publishers wait, and the next dial comes when it is due."""
    driver = ScriptedDriver(lives(20.0), lives())
    async with open_producer(URL, driver=driver, backoff=Backoff(jitter=0.0)) as producer:
        await trio.sleep(20.1)
        async with trio.open_nursery() as publishers:
            for _ in range(50):
                publishers.start_soon(lambda: producer.publish(b"x", routing_key="tasks"))
            await trio.sleep(0.1)
            assert (producer.status().reconnect_attempts, len(driver.dials)) == (0, 1)
        assert len(driver.dials) == 2
        assert driver.dials[1] - driver.dials[0] == pytest.approx(21.0)


async def test_a_broker_absent_at_start_killing_the_process(autojump_clock: MockClock) -> None:
    """The producer starts without it, and what is published then is confirmed when it comes."""
    driver = ScriptedDriver(*[refuses()] * 3, lives())
    async with open_producer(URL, driver=driver) as producer:
        receipt = await producer.publish(b"x", routing_key="tasks")
        assert (receipt.attempts, receipt.link) == (1, 4)


async def test_dead_for_good_after_the_10th_attempt_with_nobody_told(autojump_clock: MockClock) -> None:
    """Giving up is visible in status, is told to publishers, and a hint revives the producer."""
    driver = ScriptedDriver(*[refuses()] * 11, lives())
    async with open_producer(
        URL, driver=driver, backoff=Backoff(jitter=0.0, cap=60, attempts=10), breaker=None
    ) as producer:
        with pytest.raises(warrener.GaveUp):
            await producer.wait_connected()
        status = producer.status()
        assert (status.healthy, status.reconnect_attempts) == (False, 10)
        assert status.last_fault is not None
        assert producer.reconnect()
        await producer.wait_connected()
        await producer.publish(b"x", routing_key="tasks")


async def test_a_dead_connections_late_close_tearing_down_its_successor(autojump_clock: MockClock) -> None:
    """Facts of an ended link change nothing: not its confirms, not its channels, not its end."""
    driver = ScriptedDriver(lives(20.0), lives(answer=silence))
    async with open_producer(URL, driver=driver, backoff=Backoff(jitter=0.0), drain_timeout=1) as producer:
        await trio.sleep(22)
        handle = producer.publish_nowait(b"x", routing_key="tasks")
        await trio.testing.wait_all_tasks_blocked()
        dead = driver.links[0]
        dead.listener.confirmed(1, 1, True)
        dead.listener.nacked(1, 1, True)
        dead.listener.blocked("late")
        dead.listener.channel_closed(Lane.MAIN, 1, Fault(FaultKind.CHANNEL_CLOSED, "late", reply_code=404), 1)
        dead.abort(Fault(FaultKind.CONNECTION_LOST, "late"))
        await trio.testing.wait_all_tasks_blocked()
        status = producer.status()
        assert (status.link, status.connection_state, status.blocked) == (2, ConnectionState.CONNECTED, False)
        assert not handle.settled
        driver.link.listener.confirmed(1, 1, False)
        assert (await handle.wait()).link == 2


async def test_leaked_connections_after_channel_errors(autojump_clock: MockClock) -> None:
    """A channel error costs a channel, not a link; a storm of them replaces the link and closes the old one."""
    driver = ScriptedDriver(lives(answer=silence), lives())
    gone = Fault(FaultKind.CHANNEL_CLOSED, "INTERNAL_ERROR", reply_code=541)
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        for _ in range(5):
            driver.link.close_channel(Lane.MAIN, gone)
            await trio.testing.wait_all_tasks_blocked()
        assert len(driver.links) == 1
        driver.link.close_channel(Lane.MAIN, gone)
        await trio.sleep(1)
        await producer.wait_connected()
        fault = producer.status().last_fault
        assert fault is not None
        assert fault.kind is FaultKind.CHANNEL_STORM
        assert len(driver.links) == 2


# --- settings -----------------------------------------------------------------------------------------------------


async def test_heartbeat_ignored(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What RABBITMQ_HEARTBEAT says is what the driver is told to negotiate."""
    monkeypatch.setenv("RABBITMQ_HEARTBEAT", "7")
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        assert driver.link.options.heartbeat == 7.0


async def test_a_custom_ca_raising_type_error(tmp_path: Path) -> None:
    """The authority that RABBITMQ_SSL_CACERT names, and no other, is trusted."""
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))

    settings = Settings.resolve("amqps://u:p@broker/", environ={"RABBITMQ_SSL_CACERT": str(file)})
    context = _make_context(settings.endpoint)

    assert context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


async def test_use_ssl_with_an_amqp_url_silently_plaintext() -> None:
    """The two contradict each other, and that is said at start."""
    with pytest.raises(SettingsError, match="RABBITMQ_USE_SSL"):
        Settings.resolve("amqp://u:p@localhost/", environ={"RABBITMQ_USE_SSL": "true"})


async def test_preferred_llm_backend_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preference decides where the message goes."""
    monkeypatch.setenv("PREFERRED_LLM_BACKEND", "local")
    task = Summarize(share_id="s", content=SummarizeContent(text="x"))

    assert MLSettings.load(url=URL).backend_for(task, None) == "local"


async def test_a_default_password_in_code() -> None:
    """Without a URL there is no broker, and without a user in it no stranger's broker is tried as guest."""
    for url in (None, "amqp://broker.example/"):
        with pytest.raises(SettingsError):
            Settings.resolve(url, environ={})


# --- breaker ------------------------------------------------------------------------------------------------------


async def test_failed_dials_uncounted_so_never_open(autojump_clock: MockClock) -> None:
    """With the broker down the breaker opens, after its threshold of failed dials."""
    async with open_producer(URL, driver=ScriptedDriver(refuses())) as producer:
        await trio.sleep(20)
        assert producer.status().circuit_breaker == "open"


async def test_50_of_50_calls_admitted_after_the_cooldown(autojump_clock: MockClock) -> None:
    """Half-open admits as many as there are probes."""
    driver = ScriptedDriver(*[refuses()] * 4, lives(latency=1.0))
    async with open_producer(
        URL, driver=driver, backoff=Backoff(jitter=0.0), breaker=Breaker(threshold=3, cooldown=60)
    ) as producer:
        await producer.wait_connected()
        told: list[object] = []

        async def publish() -> None:
            try:
                told.append(await producer.publish(b"x", routing_key="tasks"))
            except warrener.CircuitOpen as error:
                told.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(publish)
        assert sum(isinstance(answer, Receipt) for answer in told) == 1


async def test_each_later_failure_retripping(autojump_clock: MockClock) -> None:
    """It tripped 813 times from one event: while open the counter counts on, and that is one trip."""
    backoff = Backoff(jitter=0.0, cap=60)
    async with open_producer(
        URL, driver=ScriptedDriver(refuses()), backoff=backoff, breaker=Breaker(cooldown=10_000)
    ) as producer:
        await trio.sleep(303.5)
        assert producer.counters["breaker_trips"] == 1
        assert producer.status().consecutive_failures == 11


async def test_any_reconnect_force_closing_it(autojump_clock: MockClock) -> None:
    """A link that comes up makes it half-open; only an ack closes it."""
    driver = ScriptedDriver(*[refuses()] * 5, lives())
    async with open_producer(URL, driver=driver, breaker=Breaker(cooldown=10_000)) as producer:
        await producer.wait_connected()
        assert producer.status().circuit_breaker == "half_open"
        await producer.publish(b"x", routing_key="tasks")
        await trio.testing.wait_all_tasks_blocked()
        assert producer.status().circuit_breaker == "closed"


async def test_a_wall_clock_deadline(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cooldown is thirty seconds of the monotonic clock, however the wall clock is set meanwhile."""
    driver = ScriptedDriver(refuses())
    backoff = Backoff(initial=1000, cap=1000, jitter=0)
    async with open_producer(URL, driver=driver, backoff=backoff, breaker=Breaker(threshold=1)) as producer:
        await trio.sleep(1)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        await trio.sleep(28)
        assert producer.status().circuit_breaker == "open"
        monkeypatch.setattr(time, "time", lambda: 0.0)
        await trio.sleep(2)
        assert producer.status().circuit_breaker == "half_open"


async def test_a_stale_gauge(autojump_clock: MockClock) -> None:
    """What is shown of the breaker is what it is now, though nobody has published since it changed."""
    driver = ScriptedDriver(refuses())
    backoff = Backoff(initial=1000, cap=1000, jitter=0)
    async with open_producer(URL, driver=driver, backoff=backoff, breaker=Breaker(threshold=1)) as producer:
        assert shown_breaker(producer) == 0
        await trio.sleep(1)
        assert shown_breaker(producer) == 1
        await trio.sleep(30)
        assert shown_breaker(producer) == 2


def shown_breaker(producer: Producer) -> float:
    """The gauge as a scrape finds it: 0 closed, 1 open, 2 half-open."""
    (family,) = [each for each in ProducerCollector(producer).collect() if each.name.endswith("breaker_state")]
    return family.samples[0].value


# --- hangs --------------------------------------------------------------------------------------------------------


async def test_a_stalled_confirm_hanging_the_caller_while_health_says_healthy(autojump_clock: MockClock) -> None:
    """The caller has its deadline, and health turns when the oldest confirm is overdue."""
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(
        URL, driver=driver, confirm_timeout=5, backoff=Backoff(initial=30, cap=60, jitter=0)
    ) as producer:
        await producer.wait_connected()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                await trio.sleep(6)
                assert not producer.status().healthy

            nursery.start_soon(look)
            with pytest.raises(warrener.Unconfirmed):
                await producer.publish(b"x", routing_key="tasks", timeout=8)
        assert trio.current_time() - began == pytest.approx(8)


async def test_quadratic_confirm_tracking(autojump_clock: MockClock) -> None:
    """It took 8 s and 1.1 GB for 2,000 messages: here twice as many in flight at once run twice as many lines."""
    assert await lines_run(600) <= 2.1 * await lines_run(300)


async def lines_run(messages: int) -> int:
    """How many lines of the library run for so many publishes, all in flight at once; a count, not a time."""
    lines = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        if "/warrener/" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            handles = [producer.publish_nowait(b"x", routing_key="tasks") for _ in range(messages)]
            await trio.testing.wait_all_tasks_blocked()
            for tag in range(messages, 0, -1):
                driver.link.listener.confirmed(1, tag, False)
            for handle in handles:
                await handle.wait()
        finally:
            sys.settrace(before)
    return lines


async def test_shutdown_not_terminal(autojump_clock: MockClock) -> None:
    """Closed is closed: no dial, no publish, whatever is asked afterwards."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        await producer.aclose()
        assert not producer.reconnect()
        with pytest.raises(warrener.ProducerClosed):
            await producer.publish(b"x", routing_key="tasks")
        await trio.sleep(1000)
        assert (len(driver.dials), producer.connection_state) == (1, ConnectionState.CLOSED)


async def test_close_without_a_deadline(autojump_clock: MockClock) -> None:
    """A broker that never answers Close holds the producer up for `close_timeout` and no longer."""
    producer = Producer(URL, driver=ScriptedDriver(lives(closing=1000.0)))
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await producer.wait_connected()
        began = trio.current_time()
        await producer.aclose()
        assert trio.current_time() - began <= 3.0 + 1.0


async def test_publishing_on_while_the_broker_says_blocked(autojump_clock: MockClock) -> None:
    """Blocked: not one message is handed to the link."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, drain_timeout=1) as producer:
        await producer.wait_connected()
        driver.link.listener.blocked("low on disk")
        await trio.testing.wait_all_tasks_blocked()
        producer.publish_nowait(b"x", routing_key="tasks")
        await trio.sleep(30)
        assert driver.published == []
