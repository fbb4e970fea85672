"""Messages that are written together: runs of `publish_many`, and publishes that wait for the link to ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anyio
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from warrener import (
    BufferFull,
    DeadlineExceeded,
    GaveUp,
    Message,
    Nacked,
    Outcome,
    Producer,
    ProducerClosed,
    Receipt,
    Unconfirmed,
    Unroutable,
    open_producer,
)
from warrener.errors import Fault, FaultKind
from warrener.records import Lane
from warrener.testing.scripted import Published, ScriptedDriver, lives, refuses

URL = "amqp://localhost/"

pytestmark = pytest.mark.trio


def bodies(count: int) -> list[bytes]:
    """Return bodies that tell their place."""
    return [b"%d" % number for number in range(count)]


def by_body(answers: dict[bytes, str]) -> Any:
    """A broker that answers some messages in another way than with an ack."""
    return lambda message: answers.get(message.body, "ack")


def silence(_message: Published) -> str:
    """A broker that never answers."""
    return "silence"


def kinds(outcomes: Any) -> list[type]:
    """Return the types of the outcomes."""
    return [type(outcome) for outcome in outcomes]


def balanced(producer: Producer) -> bool:
    """Whether everything accepted is settled, and nothing is held."""
    counters, status = producer.counters, producer.status()
    settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
    return counters["accepted"] == settled and status.in_flight == status.buffered == 0


# --- runs -------------------------------------------------------------------------------------------------------------


async def test_a_run_is_written_together(autojump_clock: MockClock) -> None:
    """In flights, in order, with an id each; receipts are a sequence."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(bodies(3000), routing_key="q")
        assert balanced(producer)
        assert producer.counters["confirmed"] == 3000
    assert driver.link.batches == [1024, 1024, 952]
    assert [message.body for message in driver.published] == bodies(3000)
    ids = [message.message_id for message in driver.published]
    assert [outcome.message_id for outcome in outcomes] == ids
    assert len(set(ids)) == len(outcomes) == 3000
    assert kinds(outcomes) == [Receipt] * 3000
    assert outcomes[-1] == outcomes[2999] == Receipt(ids[-1], 1, False, 1)
    assert [outcome.message_id for outcome in outcomes[10:2000:7]] == ids[10:2000:7]
    assert outcomes == list(outcomes)
    assert "3000" in repr(outcomes)
    with pytest.raises(IndexError):
        outcomes[3000]


async def test_a_run_from_a_generator_is_taken_in_pieces(autojump_clock: MockClock) -> None:
    """It is not read to its end at once."""
    driver = ScriptedDriver()
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for body in bodies(5000):
            read += 1
            yield body

    async with open_producer(URL, driver=driver, max_in_flight=100) as producer:
        await producer.wait_connected()
        driver.link.life = lives(answer=silence)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: producer.publish_many(source(), routing_key="q"))
            await trio.testing.wait_all_tasks_blocked()
            assert read == 1024
            assert len(driver.published) == 90  # the last tenth is for other destinations
            nursery.cancel_scope.cancel()


async def test_a_run_never_holds_more_than_the_window(autojump_clock: MockClock) -> None:
    """What is handed over is bounded by what is confirmed, for messages and for bytes."""
    for limits, most in (({"max_in_flight": 7}, 7), ({"max_in_flight_bytes": 20, "max_buffered_bytes": 20}, 2)):
        highest = 0

        def note(message: Published, waiting: list[Any] = []) -> str:  # noqa: B006 - kept for the length of the test
            nonlocal highest
            highest = max(highest, producer.status().in_flight)
            return "ack"

        driver = ScriptedDriver(lives(latency=0.1, answer=note))
        async with open_producer(URL, driver=driver, **limits) as producer:  # type: ignore[arg-type]
            await producer.wait_connected()
            outcomes = await producer.publish_many([b"%010d" % n for n in range(100)], routing_key="q")
            assert kinds(outcomes) == [Receipt] * 100
            assert highest == most


async def test_a_nack_and_a_return_in_a_run_hit_their_message(autojump_clock: MockClock) -> None:
    """The others are confirmed, before and after."""
    driver = ScriptedDriver(lives(answer=by_body({b"3": "nack", b"5": "return"})))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(bodies(9), routing_key="q")
        assert balanced(producer)
    assert driver.link.batches[0] == 9
    expected = [Receipt] * 9
    expected[3], expected[5] = Nacked, Unroutable  # type: ignore[call-overload]
    assert kinds(outcomes) == expected
    assert [outcome.message_id for outcome in outcomes] == [message.message_id for message in driver.published]


async def test_a_run_goes_on_after_a_lost_link(autojump_clock: MockClock) -> None:
    """What was written and not confirmed is sent again and says so; what was not is written on the next link."""
    driver = ScriptedDriver(lives(1.0, latency=0.3, unoffered=2), lives())
    async with open_producer(URL, driver=driver, max_in_flight=6, breaker=None) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(bodies(12), routing_key="q")
        assert balanced(producer)
    assert kinds(outcomes) == [Receipt] * 12
    assert [outcome.possible_duplicate for outcome in outcomes] == [False] * 3 + [True] * 4 + [False] * 5  # type: ignore[union-attr]
    assert [message.body for message in driver.links[1].published] == bodies(12)[3:]


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
async def test_a_run_ends_when_the_attempts_are_used_up(
    autojump_clock: MockClock, delivery: Literal["at_most_once", "at_least_once"]
) -> None:
    """Long before its deadline: its task does not stay parked behind a link that is lost."""
    answers = by_body(dict.fromkeys(bodies(9), "silence"))
    driver = ScriptedDriver(lives(1.0, answer=answers), refuses())
    async with open_producer(
        URL, driver=driver, max_in_flight=3, delivery=delivery, backoff_attempts=3, breaker=None
    ) as producer:
        await producer.wait_connected()
        await producer.publish(b"first", routing_key="q")
        outcomes = await producer.publish_many(bodies(9), routing_key="q", timeout=10_000.0)
        assert balanced(producer)
    assert kinds(outcomes) == [Unconfirmed] * 3 + [GaveUp] * 6
    assert trio.current_time() < 100.0


async def test_a_run_behind_a_lost_link_waits_for_capacity_as_others_do(autojump_clock: MockClock) -> None:
    """The buffer takes what it has room for, and `max_block` limits the wait of the next message."""
    driver = ScriptedDriver(lives(1.0, answer=by_body(dict.fromkeys(bodies(9), "silence"))), refuses())
    async with open_producer(
        URL, driver=driver, max_in_flight=3, max_buffered=2, max_block=5.0, delivery="at_most_once", breaker=None
    ) as producer:
        await producer.wait_connected()
        await producer.publish(b"first", routing_key="q")
        outcomes = await producer.publish_many(bodies(6), routing_key="q", timeout=500.0)
        assert balanced(producer)
    assert kinds(outcomes) == [Unconfirmed] * 3 + [DeadlineExceeded] * 2 + [BufferFull]


async def test_the_deadline_of_a_run_ends_each_of_its_messages(autojump_clock: MockClock) -> None:
    """Confirmed; written and not confirmed; never written."""
    driver = ScriptedDriver(lives(answer=by_body(dict.fromkeys(bodies(9)[2:], "silence"))))
    async with open_producer(URL, driver=driver, max_in_flight=3) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(bodies(9), routing_key="q", timeout=5.0)
    assert trio.current_time() >= 5.0
    assert kinds(outcomes) == [Receipt] * 2 + [Unconfirmed] * 3 + [DeadlineExceeded] * 4
    assert len(driver.published) == 5


async def test_no_message_of_a_run_is_written_past_its_deadline(mock_clock: MockClock) -> None:
    """Also where an ack makes room before the timer and the run's task have run: the loop had stood still."""
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, max_in_flight=3) as producer:
        await producer.wait_connected()
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def publish() -> None:
                results.extend(await producer.publish_many(bodies(9), routing_key="q", timeout=5.0))

            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(6.0)
            driver.link.listener.confirmed(1, 3, True)
        assert len(driver.published) == 3
        assert kinds(results) == [Receipt] * 3 + [DeadlineExceeded] * 6
        assert balanced(producer)


async def test_a_run_that_leaves_lets_the_next_one_go_on(autojump_clock: MockClock) -> None:
    """Its next body was too large for the rest of the window; no ack comes that would ask the other one."""
    driver = ScriptedDriver(lives(answer=by_body({b"held": "silence"})))
    async with open_producer(URL, driver=driver, max_in_flight_bytes=100, max_buffered_bytes=100) as producer:
        await producer.wait_connected()
        await producer.publish(b"first", routing_key="q")
        held = producer.publish_nowait(b"held", routing_key="q", timeout=60.0)
        async with trio.open_nursery() as nursery:

            async def large() -> None:
                outcomes = await producer.publish_many([b"l" * 100], routing_key="q", timeout=5.0)
                assert kinds(outcomes) == [DeadlineExceeded]

            nursery.start_soon(large)
            await trio.testing.wait_all_tasks_blocked()
            outcomes = await producer.publish_many([b"small"] * 3, routing_key="q", timeout=20.0)
            assert kinds(outcomes) == [Receipt] * 3
            assert trio.current_time() < 6.0
        driver.link.listener.confirmed(1, 2, False)
        assert isinstance(await held.wait(), Receipt)


async def test_a_run_without_time_is_not_written(autojump_clock: MockClock) -> None:
    """As `publish` with a timeout of 0."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        outcomes = await producer.publish_many(bodies(3), routing_key="q", timeout=0.0)
        assert kinds(outcomes) == [DeadlineExceeded] * 3
    assert not driver.published


async def test_a_cancelled_run_sends_nothing_more_and_tells_what_became_of_the_rest(autojump_clock: MockClock) -> None:
    """Confirmed ones at once, those in flight when their answer comes."""
    driver = ScriptedDriver(lives(answer=by_body(dict.fromkeys(bodies(9)[2:], "silence"))))
    told: list[Outcome] = []
    async with open_producer(URL, driver=driver, max_in_flight=3) as producer, producer.outcomes() as outcomes:
        await producer.wait_connected()
        with trio.move_on_after(1.0) as scope:
            await producer.publish_many(bodies(9), routing_key="q", timeout=60.0)
        assert scope.cancelled_caught
        assert producer.status().in_flight == 3
        assert len(driver.published) == 5
        driver.link.listener.confirmed(1, 5, True)
        assert balanced(producer)
        with trio.move_on_after(1.0):
            async for outcome in outcomes:
                told += [outcome]
    assert [outcome.message_id for outcome in told] == [message.message_id for message in driver.published]
    assert [type(outcome.result) for outcome in told] == [Receipt] * 5


async def test_a_run_waits_while_the_broker_blocks_publishers(autojump_clock: MockClock) -> None:
    """And goes on afterwards, each message once."""
    driver = ScriptedDriver(lives(latency=0.1))
    async with open_producer(URL, driver=driver, max_in_flight=2) as producer:
        await producer.wait_connected()
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def publish() -> None:
                results.extend(await producer.publish_many(bodies(8), routing_key="q"))

            nursery.start_soon(publish)
            await trio.sleep(0.25)
            driver.link.listener.blocked("memory")
            await trio.sleep(5.0)
            written = len(driver.published)
            assert 2 <= written <= 4
            driver.link.listener.unblocked()
    assert kinds(results) == [Receipt] * 8
    assert [message.body for message in driver.published] == bodies(8)


async def test_a_closed_producer_ends_a_run(autojump_clock: MockClock) -> None:
    """What is accepted drains, the rest is refused."""
    driver = ScriptedDriver(lives(latency=1.0))
    async with open_producer(URL, driver=driver, max_in_flight=2, max_buffered=1) as producer:
        await producer.wait_connected()
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def publish() -> None:
                results.extend(await producer.publish_many(bodies(6), routing_key="q"))

            nursery.start_soon(publish)
            await trio.sleep(0.5)
            await producer.aclose()
    assert kinds(results) == [Receipt] * 2 + [ProducerClosed] * 4


async def test_a_channel_close_in_a_run_is_pinned_on_one_message(autojump_clock: MockClock) -> None:
    """The others are sent again, alone or behind it, and confirmed."""
    guilty = Fault(FaultKind.CHANNEL_CLOSED, "INTERNAL_ERROR", reply_code=541)
    driver = ScriptedDriver(lives(latency=0.1))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def publish() -> None:
                results.extend(await producer.publish_many(bodies(4), routing_key="q"))

            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            driver.link.close_channel(Lane.MAIN, guilty)
    assert kinds(results) == [Receipt] * 4
    assert all(receipt.possible_duplicate for receipt in results)


async def test_runs_and_publishers_share_a_full_window(autojump_clock: MockClock) -> None:
    """A long run does not keep a publisher waiting, and many publishers do not keep a run waiting."""
    driver = ScriptedDriver(lives(latency=0.1))
    order: list[str] = []
    async with open_producer(URL, driver=driver, max_in_flight=2) as producer:
        await producer.wait_connected()
        await producer.publish(b"first", routing_key="q")

        async def run() -> None:
            await producer.publish_many(bodies(20), routing_key="q")
            order.append("run")

        async def publish() -> None:
            await producer.publish(b"x", routing_key="q")
            order.append("x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(0.15)
            for _ in range(5):
                nursery.start_soon(publish)
    assert order.index("run") == 5
    assert [message.body for message in driver.published].index(b"x") < 12


# --- publishes that wait for the link to ask ----------------------------------------------------------------------------


async def held(producer: Producer, driver: ScriptedDriver) -> None:
    """Have the link ask for messages only when the test says so."""
    await producer.wait_connected()
    await producer.publish(b"first", routing_key="q")
    driver.link.holds_pulls = True


async def test_runs_take_turns(autojump_clock: MockClock) -> None:
    """A long run does not keep a short one waiting: each has one flight, then it is the next one's turn."""
    driver = ScriptedDriver(lives(latency=0.1))
    async with open_producer(URL, driver=driver, max_in_flight=100) as producer:
        await producer.wait_connected()
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b", b"c"):
                target = producer.to(routing_key=letter.decode())
                nursery.start_soon(target.publish_many, [letter] * 300)
                await trio.testing.wait_all_tasks_blocked()
    order = [message.body for message in driver.published]
    assert set(order[100:130]) == set(order[-30:]) == {b"a", b"b", b"c"}


async def test_a_cancelled_run_whose_later_messages_were_all_answered(autojump_clock: MockClock) -> None:
    """The second flight has only answered messages left, and goes with the first one."""
    driver = ScriptedDriver(lives(answer=lambda message: "ack" if int(message.body) >= 1024 else "silence"))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        with trio.move_on_after(1) as scope:
            await producer.publish_many(bodies(1040), routing_key="q")
        assert scope.cancelled_caught
        assert driver.link.batches == [1024, 16]
        assert (producer.counters["confirmed"], producer.status().in_flight) == (16, 1024)
        producer.abort()


async def test_a_run_is_charged_to_the_destination_of_each_message(autojump_clock: MockClock) -> None:
    """Not to that of its first message: runs to a mute queue that begin with another queue leave the reserve, too."""
    driver = ScriptedDriver(
        lives(answer=lambda message: "silence" if message.envelope.routing_key == "mute" else "ack")
    )
    async with open_producer(URL, driver=driver, max_in_flight=1000) as producer, trio.open_nursery() as nursery:
        await producer.wait_connected()
        for number in range(40):
            keys = [f"q{number}", *["mute"] * 99]
            nursery.start_soon(producer.publish_many, [Message(b"x", routing_key=key) for key in keys])
        await trio.sleep(5)
        assert producer.status().in_flight == 900
        await producer.publish(b"x", routing_key="other", timeout=1.0)
        nursery.cancel_scope.cancel()


async def test_a_ticket_that_is_used_again_knows_nothing_of_the_message_before(autojump_clock: MockClock) -> None:
    """A nack made deliveries of two messages. The next publish, cancelled in flight, is told by its own id."""
    driver = ScriptedDriver(lives(answer=by_body({b"bad": "nack", b"last": "silence"})))
    async with open_producer(URL, driver=driver) as producer, producer.outcomes() as outcomes:
        await producer.wait_connected()
        target = producer.to(routing_key="q")
        await target.publish(b"first")
        results: list[Receipt | Nacked] = []

        async def publish(body: bytes) -> None:
            try:
                results.append(await target.publish(body))
            except Nacked as nacked:
                results.append(nacked)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, b"good")
            nursery.start_soon(publish, b"bad")
        assert set(kinds(results)) == {Nacked, Receipt}
        for _ in range(3):
            with trio.move_on_after(1.0):
                await producer.to(routing_key="other").publish(b"last")
        silent = [message.message_id for message in driver.published if message.body == b"last"]
        driver.link.listener.confirmed(1, len(driver.published), True)
        told = [await anext(outcomes) for _ in silent]
        assert [outcome.message_id for outcome in told] == silent
        assert kinds([outcome.result for outcome in told]) == [Receipt] * 3


async def test_publishes_that_come_together_are_one_flight(autojump_clock: MockClock) -> None:
    """By whichever call they come."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await held(producer, driver)
        target = producer.to(routing_key="q")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: producer.publish(b"0", routing_key="q"))
            nursery.start_soon(lambda: target.publish(b"1"))
            handle = producer.publish_nowait(b"2", routing_key="q")
            await trio.testing.wait_all_tasks_blocked()
            assert (producer.status().buffered, producer.status().in_flight) == (3, 0)
            driver.link.listener.pull()
            receipt = await handle.wait()
        assert driver.link.batches[-1] == 3
        assert receipt.message_id == handle.message_id
        assert handle.message_id in {message.message_id for message in driver.published if message.body == b"2"}


async def test_a_publish_that_is_cancelled_before_the_link_asks_is_not_sent(autojump_clock: MockClock) -> None:
    """The others keep their ids, and their order."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await held(producer, driver)
        handles = [producer.publish_nowait(b"%d" % n, routing_key="q") for n in range(2)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: producer.publish(b"cancelled", routing_key="q"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        handles.append(producer.publish_nowait(b"2", routing_key="q"))
        ids = [handle.message_id for handle in handles]
        driver.link.listener.pull()
        receipts = [await handle.wait() for handle in handles]
        assert [receipt.message_id for receipt in receipts] == ids
        assert [message.body for message in driver.published[1:]] == [b"0", b"1", b"2"]
        assert [message.message_id for message in driver.published[1:]] == ids
        assert producer.counters["cancelled"] == 1
        assert balanced(producer)


async def test_a_publish_in_a_cancelled_scope_is_not_sent(autojump_clock: MockClock) -> None:
    """Whether or not the link asks at once."""
    driver = ScriptedDriver()
    async with open_producer(URL, driver=driver) as producer:
        await held(producer, driver)
        driver.link.holds_pulls = False
        with trio.CancelScope() as scope:
            scope.cancel()
            await producer.publish(b"cancelled", routing_key="q")
        assert scope.cancelled_caught
        assert [message.body for message in driver.published] == [b"first"]


async def test_a_link_that_does_not_ask_in_time(autojump_clock: MockClock) -> None:
    """A message that was not handed over by its deadline was certainly not sent; a later one has a clock of its own."""
    driver = ScriptedDriver(lives())
    async with open_producer(URL, driver=driver) as producer:
        await held(producer, driver)
        first = producer.publish_nowait(b"0", routing_key="q", timeout=5.0)
        await trio.sleep(3.0)
        second = producer.publish_nowait(b"1", routing_key="q", timeout=5.0)
        with pytest.raises(DeadlineExceeded):
            await first.wait()
        assert trio.current_time() == pytest.approx(5.0, abs=0.01)
        assert not second.settled
        driver.link.listener.pull()
        assert isinstance(await second.wait(), Receipt)


async def test_a_lost_link_takes_no_message_that_it_did_not_ask_for(autojump_clock: MockClock) -> None:
    """They go to the next link, once, and are no duplicates."""
    driver = ScriptedDriver(lives(), lives())
    async with open_producer(URL, driver=driver) as producer:
        await held(producer, driver)
        handles = [producer.publish_nowait(b"%d" % n, routing_key="q") for n in range(3)]
        driver.link.abort(Fault(FaultKind.CONNECTION_LOST, "lost"))
        receipts = [await handle.wait() for handle in handles]
    assert [(receipt.attempts, receipt.possible_duplicate, receipt.link) for receipt in receipts] == [(1, False, 2)] * 3
    assert [message.body for message in driver.links[1].published] == [b"0", b"1", b"2"]


async def test_a_handle_of_a_flight_can_be_left_and_asked_again(autojump_clock: MockClock) -> None:
    """Cancelling the wait does not cancel the message."""
    driver = ScriptedDriver(lives(latency=2.0))
    async with open_producer(URL, driver=driver) as producer:
        await producer.wait_connected()
        await producer.publish(b"first", routing_key="q")
        handle = producer.publish_nowait(b"x", routing_key="q")
        assert not handle.settled
        with trio.move_on_after(0.5):
            await handle.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle.wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await handle.wait()
        assert handle.settled
        assert (await handle.wait()).message_id == handle.message_id


@pytest.mark.parametrize("how", ["publish", "run"])
async def test_the_confirm_clock_of_a_flight_wakes_the_timer(autojump_clock: MockClock, how: str) -> None:
    """The link asks after the timer has gone to sleep; a short confirm_timeout or a short deadline counts all the same."""
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, confirm_timeout=5.0, breaker=None) as producer:
        await producer.wait_connected()
        driver.link.life = lives()
        await producer.publish(b"first", routing_key="q")
        await trio.sleep(1.0)
        driver.link.life = lives(answer=silence)
        driver.link.holds_pulls = True
        async with trio.open_nursery() as nursery:
            if how == "publish":
                nursery.start_soon(lambda: producer.publish(b"x", routing_key="q", timeout=60.0))
            else:
                nursery.start_soon(lambda: producer.publish_many([b"x"], routing_key="q", timeout=60.0))
            await trio.testing.wait_all_tasks_blocked()
            driver.link.listener.pull()
            asked_at = trio.current_time()
            while len(driver.links) < 2:
                await trio.sleep(0.1)
            assert trio.current_time() - asked_at < 6.0
            nursery.cancel_scope.cancel()
