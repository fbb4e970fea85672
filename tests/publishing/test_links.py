"""Several links: where a message goes, what the loss of one link touches, and that the sums are the account."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import warrener
from warrener import ConnectionState, Producer, Receipt, open_producer
from warrener._publishing.links import LinkedProducer
from warrener.errors import Fault, FaultKind
from warrener.metrics import ProducerCollector
from warrener.outbox import SQLiteOutbox
from warrener.testing import EmbeddedBroker
from warrener.testing.scripted import Published, ScriptedDriver, lives, refuses

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trio.testing import MockClock

URL = "amqp://localhost/"
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)


def silence(_message: Published) -> str:
    return "silence"


async def settled(producer: Producer) -> None:
    """Wait until all links are up."""
    while not producer.status().healthy:
        await trio.sleep(0.1)


# --- where a message goes -------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_equal_links_take_turns(autojump_clock: MockClock) -> None:
    """Eight messages at once on four links: two for each."""
    driver = ScriptedDriver(lives(latency=1.0))
    async with open_producer(URL, driver=driver, links=4) as producer:
        await settled(producer)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(lambda: producer.publish(b"x", routing_key="q"))
        assert [len(link.published) for link in driver.links] == [2, 2, 2, 2]


@pytest.mark.trio
async def test_the_least_loaded_link_is_chosen(autojump_clock: MockClock) -> None:
    """A link whose broker does not answer gets no more than its turn."""
    driver = ScriptedDriver(lives(answer=silence), lives())
    async with open_producer(URL, driver=driver, links=2, drain_timeout=0) as producer:
        await settled(producer)
        async with trio.open_nursery() as nursery:
            for _ in range(20):

                @nursery.start_soon
                async def publish() -> None:
                    await producer.publish(b"x", routing_key="q")

                await trio.testing.wait_all_tasks_blocked()
            assert [len(link.published) for link in driver.links] == [1, 19]
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_key_has_its_own_link(autojump_clock: MockClock) -> None:
    """Each message of a key goes to the same link, in order, and many keys use every link."""
    driver = ScriptedDriver(lives(latency=0.1))
    async with open_producer(URL, driver=driver, links=3) as producer:
        await settled(producer)
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(
                    lambda number=number: producer.publish(
                        str(number).encode(), routing_key="q", key=f"customer-{number % 20}"
                    )
                )
        homes: dict[int, set[int]] = {}
        for link in driver.links:
            assert link.published
            numbers = [int(message.body) for message in link.published]
            for number in numbers:
                homes.setdefault(number % 20, set()).add(link.number)
        assert all(len(links) == 1 for links in homes.values())


@pytest.mark.trio
async def test_a_target_sends_each_key_on_its_link(autojump_clock: MockClock) -> None:
    """By all its calls, and on the same link as the producer's own calls."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, links=3) as producer:
        await settled(producer)
        target = producer.to(routing_key="q")
        for number in range(12):
            body, key = b"%d" % number, f"customer-{number}"
            await producer.publish(body, routing_key="q", key=key)
            await target.publish(body, key=key)
            await target.publish_nowait(body, key=key).wait()
            await target.publish_many([body, body], key=key)
    for link in driver.links:
        assert link.published
        counts = Counter(message.body for message in link.published)
        assert set(counts.values()) == {5}


@pytest.mark.trio
async def test_all_links_together_stay_within_the_limits(autojump_clock: MockClock) -> None:
    """A share is rounded down: three links of a producer with 10 in flight have 9, not 12."""
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, links=3, max_in_flight=10, max_buffered=20) as producer:
        await settled(producer)
        with pytest.raises(warrener.BufferFull):
            for _ in range(100):
                producer.publish_nowait(b"x", routing_key="q")
        await trio.testing.wait_all_tasks_blocked()
        status = producer.status()
        assert (status.in_flight, status.buffered) == (9, 18)
        producer.abort()


@pytest.mark.trio
async def test_one_call_of_publish_many_stays_on_one_link(autojump_clock: MockClock) -> None:
    """Its messages keep their order."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver, links=3) as producer:
        await settled(producer)
        bodies = [str(number).encode() for number in range(50)]
        outcomes = await producer.publish_many(bodies, routing_key="q")
        assert all(isinstance(outcome, Receipt) for outcome in outcomes)
        handle = producer.publish_nowait(b"last", routing_key="q")
        await handle.wait()
        await producer.to(routing_key="q").publish(b"target")
    assert sorted(len(link.published) for link in driver.links) in ([0, 2, 50], [1, 1, 50])
    assert [
        message.body for link in driver.links for message in link.published[:50] if len(link.published) > 2
    ] == bodies


# --- one link's death -----------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_the_death_of_one_link_touches_its_own_messages_only(autojump_clock: MockClock) -> None:
    """Those of the other link are confirmed once; new ones go to the link that lives; the status tells both."""
    driver = ScriptedDriver(lives(5.0, answer=silence), lives(latency=0.5), refuses(), lives())
    async with open_producer(URL, driver=driver, links=2) as producer:
        await settled(producer)
        receipts: list[Receipt] = []

        async def publish() -> None:
            receipts.append(await producer.publish(b"x", routing_key="q"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(publish)
            await trio.sleep(5.1)
            status = producer.status()
            assert (status.connection_state, status.healthy) == (ConnectionState.CONNECTED, False)
            assert [link.connection_state.value for link in status.links] == ["DISCONNECTED", "CONNECTED"]
            assert status.last_fault is not None
            for _ in range(4):
                await publish()
        flagged = [receipt for receipt in receipts if receipt.possible_duplicate]
        assert len(flagged) == 5
        assert sum(receipt.attempts for receipt in receipts) == 14 + 5
        assert producer.counters["confirmed"] == 14
        assert producer.counters["links_lost"] == 1


@pytest.mark.trio
async def test_a_key_waits_for_its_own_link(autojump_clock: MockClock) -> None:
    """Order per key is worth more than speed: a message of a lost link's key waits until that link is back."""
    driver = ScriptedDriver(lives(5.0), lives(), lives())
    async with open_producer(URL, driver=driver, links=2, backoff_jitter=0) as producer:
        await settled(producer)
        await trio.sleep(5.1)
        keys = [f"k{number}" for number in range(8)]
        began = trio.current_time()
        waited: dict[str, float] = {}

        async def publish(key: str) -> None:
            await producer.publish(b"x", routing_key="q", key=key)
            waited[key] = trio.current_time() - began

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(publish, key)
        assert {seconds for seconds in waited.values() if seconds < 0.5} == {0.0}
        assert any(0.5 < seconds < 1.0 for seconds in waited.values())


lifetimes = st.sampled_from((0.5, 2.0, 7.0, math.inf))


@given(st.lists(lifetimes, min_size=1, max_size=8), st.integers(min_value=2, max_value=4), st.data())
@settings(max_examples=30)
def test_the_sum_of_the_ledgers_is_the_account(seconds: list[float], links: int, data: st.DataObject) -> None:
    """Whatever the links do: each publish has one outcome, and the producer's counts are what the publishers were told."""
    script = [lives(each, latency=0.05, dialing=0.1) for each in seconds] + [lives(latency=0.05)]
    keys = data.draw(st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=40))
    told: list[Receipt | warrener.PublishError] = []

    async def main() -> None:
        async with open_producer(URL, driver=ScriptedDriver(*script), links=links, backoff_initial=0.2) as producer:

            async def publish(key: str | None) -> None:
                try:
                    told.append(await producer.publish(b"x", routing_key="q", key=key, timeout=30))
                except warrener.PublishError as error:
                    told.append(error)

            async with trio.open_nursery() as nursery:
                for key in keys:
                    nursery.start_soon(publish, key)
                    await trio.sleep(0.1)
            counters = producer.counters
            parts = [dict(member.counters) for member in producer._members]  # type: ignore[attr-defined]
        assert len(told) == len(keys)
        confirmed = sum(isinstance(outcome, Receipt) for outcome in told)
        assert counters["confirmed"] == confirmed
        assert counters["accepted"] == sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
        assert all(counters[name] == sum(part[name] for part in parts) for name in counters)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- life -----------------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_the_whole_waits_for_one_link_and_fails_if_none_can_come(autojump_clock: MockClock) -> None:
    """`wait_connected` returns with the first link, and raises what the links say if all are refused."""
    driver = ScriptedDriver(refuses(), lives())
    async with open_producer(URL, driver=driver, links=2) as producer:
        await producer.wait_connected()
        assert producer.connection_state is ConnectionState.CONNECTED
    async with open_producer(URL, driver=ScriptedDriver(refuses(PASSWORD)), links=3) as producer:
        with pytest.raises(warrener.AuthenticationRefused):
            await producer.wait_connected()
        with pytest.raises(warrener.NotSent):
            await producer.publish(b"x", routing_key="q")


@pytest.mark.trio
async def test_closing_reports_the_sum(autojump_clock: MockClock) -> None:
    """Each link drains; what has no confirm by then is in one report, and further calls are refused."""
    driver = ScriptedDriver(lives(), lives(answer=silence))
    producer = Producer(URL, driver=driver, links=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(producer.run)
        await settled(producer)
        handles = [producer.publish_nowait(b"x", routing_key="q") for _ in range(6)]
        report = await producer.aclose()
        assert (report.confirmed, len(report.unconfirmed)) == (3, 3)
        assert set(report.unconfirmed) < {handle.message_id for handle in handles}
        with pytest.raises(warrener.ProducerClosed):
            await producer.publish(b"x", routing_key="q")
        assert producer.connection_state is ConnectionState.CLOSED


@pytest.mark.trio
async def test_run_that_gives_up_raises_bare(autojump_clock: MockClock) -> None:
    """With ``when_exhausted="raise"`` the first link that gives up ends the producer, without an ExceptionGroup."""
    with pytest.raises(warrener.Unreachable):
        await Producer(URL, driver=ScriptedDriver(refuses()), links=3, when_exhausted="raise", backoff_attempts=1).run()


@pytest.mark.trio
async def test_calls_before_and_after_run(autojump_clock: MockClock) -> None:
    """The same errors as with one link."""
    producer = Producer(URL, driver=ScriptedDriver(lives()), links=2)
    assert isinstance(producer, LinkedProducer)
    assert "DISCONNECTED" in repr(producer)
    for call in (producer.publish(b"x", routing_key="q"), producer.wait_connected(), producer.hand_over()):
        with pytest.raises(RuntimeError, match="not running"):
            await call
    await producer.aclose()
    with pytest.raises(RuntimeError, match="closed before it ran"):
        await producer.run()
    with pytest.raises(warrener.ProducerClosed):
        await producer.publish(b"x", routing_key="q")


@pytest.mark.trio
async def test_cancelling_run_ends_every_link(autojump_clock: MockClock) -> None:
    """Each accepted message has its outcome, and no link is left."""
    driver = ScriptedDriver(lives(answer=silence))
    producer = Producer(URL, driver=driver, links=3)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 5
        await nursery.start(producer.run)
        await settled(producer)
        handles = [producer.publish_nowait(b"x", routing_key="q") for _ in range(9)]
    for handle in handles:
        with pytest.raises(warrener.Unconfirmed):
            await handle.wait()


@pytest.mark.trio
async def test_changes_outcomes_hints_and_hand_overs(autojump_clock: MockClock) -> None:
    """The streams are those of all links; a hand-over goes through the links one by one."""
    driver = ScriptedDriver(lives(latency=2.0))
    urls = ["amqp://localhost:1/", "amqp://localhost:2/"]
    async with open_producer(urls, driver=driver, links=2, endpoint_order="ordered") as producer:
        async with producer.changes() as changes, producer.outcomes() as outcomes:
            async for change in changes:
                if change.healthy:
                    break
            with trio.move_on_after(1):
                await producer.publish(b"x", routing_key="q")
            assert isinstance((await anext(outcomes)).result, Receipt)
            assert await producer.hand_over()
        assert {link.endpoint for link in producer.status().links} == {"amqp://localhost:2/"}
        assert not producer.reconnect()
        assert producer.peer is not None


@pytest.mark.trio
async def test_declarations_are_those_of_every_link(autojump_clock: MockClock) -> None:
    """Declared once on a live link, and again on each link that is opened later."""
    driver = ScriptedDriver(lives(5.0), lives(5.0), lives())
    async with open_producer(URL, driver=driver, links=2) as producer:
        await settled(producer)
        await producer.declare(warrener.Queue("q"))
        assert sum(len(link.declared) for link in driver.links) == 1
        await trio.sleep(10)
        assert [len(link.declared) for link in driver.links[2:4]] == [1, 1]


def test_what_links_cannot_be() -> None:
    """Too few, too many, and a queue that belongs to one connection."""
    for wrong in (0, 65, 1.5):
        with pytest.raises(warrener.SettingsError, match="links must be"):
            Producer(URL, links=wrong)  # type: ignore[arg-type]
    with pytest.raises(warrener.SettingsError, match="belongs to one connection"):
        Producer(URL, links=2, topology=[warrener.Queue("q", exclusive=True)])
    assert Producer(f"{URL}?links=2").settings.links == 2


@pytest.mark.trio
async def test_metrics_have_a_series_for_each_link(autojump_clock: MockClock) -> None:
    """By the number of the link, from 0."""
    driver = ScriptedDriver(lives(), refuses())
    async with open_producer(URL, driver=driver, links=2) as producer:
        await producer.wait_connected()
        found = {
            (sample.name, sample.labels.get("link")): sample.value
            for family in ProducerCollector(producer).collect()
            for sample in family.samples
        }
    assert found["warrener_link_connected", "0"] + found["warrener_link_connected", "1"] == 1
    assert found["warrener_link_pending", "0"] == 0


# --- on every event loop --------------------------------------------------------------------------------------------


@pytest.fixture
async def broker() -> AsyncGenerator[EmbeddedBroker]:
    """An embedded broker with a port."""
    async with EmbeddedBroker() as running:
        yield running


@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["native", "aiormq"])
async def test_links_on_a_broker(driver: Any, broker: EmbeddedBroker) -> None:
    """Three connections, every message once, in order within its key."""
    with anyio.fail_after(60):
        async with open_producer(broker.url, driver=driver, links=3) as producer:
            await producer.declare(warrener.Queue("q"))
            async with anyio.create_task_group() as tasks:

                async def publish(key: str) -> None:
                    for number in range(20):
                        await producer.publish(f"{key}{number}".encode(), routing_key="q", key=key)

                for key in "abcdef":
                    tasks.start_soon(publish, key)
            held = [body.decode() for body in broker.messages("q")]
    assert len(held) == 120
    for key in "abcdef":
        assert [body for body in held if body[0] == key] == [f"{key}{number}" for number in range(20)]


@pytest.mark.anyio
async def test_an_outbox_keeps_its_order_over_links(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """The relay publishes through all links; messages of one key arrive in the order in which they were stored."""
    outbox = SQLiteOutbox(tmp_path / "outbox.db")
    with anyio.fail_after(60):
        async with open_producer(broker.url, links=2, outbox=outbox) as producer:
            await producer.declare(warrener.Queue("q"))
            for number in range(30):
                await producer.enqueue(f"{'ab'[number % 2]}{number:02}".encode(), key="ab"[number % 2], routing_key="q")
            await producer.wait_flushed()
    held = [body.decode() for body in broker.messages("q")]
    for key in "ab":
        assert [body for body in held if body[0] == key] == sorted(body for body in held if body[0] == key)
    assert len(held) == 30
