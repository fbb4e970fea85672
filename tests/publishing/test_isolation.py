"""A bad destination hurts no other one: each kind of badness beside good messages, in virtual time and without a wire."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

import warrener
from warrener import Breaker, Exchange, Message, Producer, PublishRefused, Receipt, open_producer
from warrener.drivers.base import Lane
from warrener.errors import Fault, FaultKind
from warrener.metrics import ProducerCollector
from warrener.testing.scripted import Published, ScriptedDriver, ScriptedLink, lives, refuses

pytestmark = pytest.mark.trio

URL = "amqp://localhost/"


def closed(code: int, text: str) -> Fault:
    """A channel.close as both drivers report it."""
    return Fault(FaultKind.CHANNEL_CLOSED, f"the broker closed the channel; see why: {text}", reply_code=code)


def not_found(exchange: str) -> Fault:
    return closed(404, f"NOT_FOUND - no exchange '{exchange}' in vhost '/'")


@define
class Broker:
    """Answers as RabbitMQ does: one channel after the other, in order, until a message closes the channel."""

    driver: ScriptedDriver
    #: exchange -> how a message to it closes the channel.
    closes: dict[str, Fault] = field(factory=dict)
    #: routing keys whose queue is full, and whose queue never answers.
    full: set[str] = field(factory=set)
    mute: set[str] = field(factory=set)
    max_size: float = math.inf
    #: user_ids that are not the user of the connection.
    strangers: set[str] = field(factory=set)
    latency: float = 0.01
    #: Every channel that was closed.
    closings: list[Lane] = field(factory=list)

    async def serve(self) -> None:
        """Answer what is published, `latency` later."""
        seen: dict[ScriptedLink, int] = {}
        dead: set[tuple[int, int]] = set()
        while True:
            await trio.sleep(self.latency)
            for link in tuple(self.driver.links):
                fresh = link.published[seen.get(link, 0) :]
                seen[link] = len(link.published)
                for message in fresh:
                    if (link.number, message.channel) not in dead:
                        self.take(link, message, dead)

    def take(self, link: ScriptedLink, message: Published, dead: set[tuple[int, int]]) -> None:
        envelope = message.envelope
        fault = self.closes.get(envelope.exchange)
        if len(message.body) > self.max_size:
            text = f"message size {len(message.body)} is larger than configured max size {self.max_size}"
            fault = closed(406, f"PRECONDITION_FAILED - {text}")
        if envelope.user_id in self.strangers:
            text = f"user_id property set to '{envelope.user_id}' but authenticated user was 'guest'"
            fault = closed(406, f"PRECONDITION_FAILED - {text}")
        if fault is not None:
            dead.add((link.number, message.channel))
            self.closings.append(message.lane)
            link.close_channel(message.lane, fault)
        elif envelope.routing_key in self.full:
            link.answer(message, "nack")
        elif envelope.routing_key not in self.mute:
            link.answer(message, "ack")


def silence(_message: Published) -> str:
    """The `Broker` answers, not the script."""
    return "silence"


@define
class Bench:
    """A producer, its broker, and what became of the messages."""

    producer: Producer
    broker: Broker
    driver: ScriptedDriver
    nursery: trio.Nursery
    took: dict[str, list[float]] = field(factory=dict)
    ended: dict[str, list[object]] = field(factory=dict)

    async def publish(self, name: str, **fields: Any) -> None:
        """Publish one message, and note how it ended and how long that took."""
        began = trio.current_time()
        body = fields.pop("body", b"x")
        try:
            outcome: object = await self.producer.publish(body, **fields)
        except warrener.PublishError as error:
            outcome = error
        self.took.setdefault(name, []).append(trio.current_time() - began)
        self.ended.setdefault(name, []).append(outcome)

    async def stream(self, name: str, rate: float, seconds: float, **fields: Any) -> None:
        """Publish `rate` messages a second, each in a task of its own."""
        for _ in range(int(rate * seconds)):
            self.nursery.start_soon(lambda: self.publish(name, **fields))
            await trio.sleep(1 / rate)

    def published_to(self, exchange: str) -> list[Published]:
        return [message for message in self.driver.published if message.envelope.exchange == exchange]


@asynccontextmanager
async def opened(driver: ScriptedDriver | None = None, **settings: Any) -> AsyncIterator[Bench]:
    """A bench around a body."""
    driver = driver or ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, **settings) as producer, trio.open_nursery() as nursery:
        broker = Broker(driver)
        nursery.start_soon(broker.serve)
        yield Bench(producer, broker, driver, nursery)
        nursery.cancel_scope.cancel()


def good(bench: Bench) -> list[float]:
    """Every good message was confirmed; return how long each took."""
    assert all(isinstance(outcome, Receipt) for outcome in bench.ended["good"])
    return sorted(bench.took["good"])


# --- a missing exchange -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [2, 20, 200])
async def test_a_missing_exchange_beside_good_messages(autojump_clock: MockClock, rate: int) -> None:
    """No link is lost, no good message is sent twice or waits, and each bad one is refused within two seconds."""
    async with opened() as bench:
        bench.broker.closes["missing"] = not_found("missing")
        async with trio.open_nursery() as streams:
            streams.start_soon(lambda: bench.stream("good", 50, 12, routing_key="q"))
            streams.start_soon(lambda: bench.stream("bad", rate, 12, exchange="missing", routing_key="q"))
        await trio.sleep(3)
        assert len(bench.driver.links) == 1
        assert good(bench)[-1] <= 3 * bench.broker.latency
        assert {outcome.attempts for outcome in bench.ended["good"]} == {1}
        assert all(isinstance(outcome, PublishRefused) for outcome in bench.ended["bad"])
        assert max(bench.took["bad"]) <= 2.0
        # One introduction, then at most one probe a second, all on the channel for suspects.
        assert len(bench.published_to("missing")) <= 14
        assert set(bench.broker.closings) == {Lane.SUSPECT}
        unwritten = [outcome for outcome in bench.ended["bad"] if not outcome.may_have_been_delivered]
        assert len(unwritten) == len(bench.ended["bad"])


async def test_two_hundred_at_once_to_a_missing_exchange(autojump_clock: MockClock) -> None:
    """Each is refused within two seconds; one was written, and the others got its answer without a byte written."""
    async with opened() as bench:
        bench.broker.closes["missing"] = not_found("missing")
        began = trio.current_time()
        outcomes = await bench.producer.publish_many([b"x"] * 200, exchange="missing", routing_key="q")
        assert trio.current_time() - began <= 2.0
        assert {type(outcome) for outcome in outcomes} == {PublishRefused}
        assert {outcome.reply_code for outcome in outcomes} == {404}
        assert [outcome.may_have_been_delivered for outcome in outcomes] == [False] * 200
        assert len(bench.published_to("missing")) == 1
        assert (len(bench.driver.links), bench.broker.closings) == (1, [Lane.SUSPECT])
        counters = bench.producer.counters
        assert (counters["rejected"], counters["unknown"]) == (counters["accepted"], 0)


async def test_two_hundred_names_that_do_not_exist(autojump_clock: MockClock) -> None:
    """Each name is met once, on the channel for suspects; a good exchange that is met among them is confirmed."""
    async with opened() as bench:
        bench.broker.closes.update({f"missing-{n}": not_found(f"missing-{n}") for n in range(200)})
        messages = [Message(b"x", exchange=f"missing-{n}", routing_key="q") for n in range(200)]
        messages.insert(100, Message(b"good", exchange="good", routing_key="q"))
        outcomes = list(await bench.producer.publish_many(messages))
        assert isinstance(outcomes.pop(100), Receipt)
        assert {type(outcome) for outcome in outcomes} == {PublishRefused}
        assert len(bench.driver.links) == 1


async def test_an_exchange_that_comes_into_being_is_found_by_a_probe(autojump_clock: MockClock) -> None:
    """Within about a second of its declaration, messages to it are confirmed, on the main channel again."""
    async with opened() as bench:
        bench.broker.closes["late"] = not_found("late")
        async with trio.open_nursery() as streams:
            streams.start_soon(lambda: bench.stream("bad", 20, 3, exchange="late", routing_key="q"))
            await trio.sleep(2.5)
            bench.broker.closes.clear()
        await trio.sleep(1)
        await bench.stream("good", 20, 2, exchange="late", routing_key="q")
        await trio.sleep(1)
        assert good(bench)[-1] <= 3 * bench.broker.latency
        assert bench.driver.published[-1].lane is Lane.MAIN


@pytest.mark.parametrize("memory", [0.5, 5.0])
async def test_a_refusal_is_remembered_for_refusal_memory(autojump_clock: MockClock, memory: float) -> None:
    """While it is remembered, a new message is refused at once; after that, the next one is written."""
    async with opened(refusal_memory=memory) as bench:
        bench.broker.closes["missing"] = not_found("missing")
        await bench.publish("first", exchange="missing", routing_key="q")
        await bench.publish("second", exchange="missing", routing_key="q")
        assert bench.took["second"] == [0.0]
        assert len(bench.published_to("missing")) == 1
        await trio.sleep(memory)
        await bench.publish("third", exchange="missing", routing_key="q")
        assert len(bench.published_to("missing")) == 2


async def test_an_exchange_that_is_deleted_costs_the_others_one_re_send(autojump_clock: MockClock) -> None:
    """A message in flight on the main channel is sent again, once; the link stays, and its breaker and storm limit too."""
    async with opened() as bench:
        for _ in range(10):
            bench.broker.closes.clear()
            await bench.publish("good", exchange="work", routing_key="q")
            bench.broker.closes["work"] = not_found("work")
            bench.nursery.start_soon(lambda: bench.publish("bad", exchange="work", routing_key="q"))
            bench.nursery.start_soon(lambda: bench.publish("good", routing_key="other"))
            await trio.sleep(6)
        good(bench)
        assert {type(outcome) for outcome in bench.ended["bad"]} == {PublishRefused}
        assert max(outcome.attempts for outcome in bench.ended["good"]) <= 2
        assert len(bench.driver.links) == 1


# --- forbidden and too large ------------------------------------------------------------------------------------------


async def test_a_forbidden_topic_refuses_its_own_key_only(autojump_clock: MockClock) -> None:
    """403 for one routing key of a topic exchange: other keys of the exchange go on."""
    async with opened() as bench:
        await bench.publish("good", exchange="topics", routing_key="free")
        fault = closed(403, "ACCESS_REFUSED - access to topic 'secret' in exchange 'topics' in vhost '/' refused")
        bench.broker.closes["topics"] = fault
        await bench.publish("bad", exchange="topics", routing_key="secret")
        bench.broker.closes.clear()
        await bench.publish("bad", exchange="topics", routing_key="secret")
        assert {outcome.reply_code for outcome in bench.ended["bad"]} == {403}
        await bench.publish("good", exchange="topics", routing_key="free")
        good(bench)
        assert len([each for each in bench.published_to("topics") if each.envelope.routing_key == "secret"]) == 1


async def test_a_body_beyond_the_brokers_limit_is_met_once(autojump_clock: MockClock) -> None:
    """The limit is learned from the refusal; larger bodies are then refused without a byte written."""
    async with opened() as bench:
        bench.broker.max_size = 1000
        for size in (2000, 1500, 1001):
            await bench.publish("bad", routing_key="q", body=b"x" * size)
        await bench.publish("good", routing_key="q", body=b"x" * 1000)
        good(bench)
        assert [(each.reply_code, each.may_have_been_delivered) for each in bench.ended["bad"]] == [(406, False)] * 3
        assert [len(message.body) for message in bench.driver.published] == [2000, 1000]


async def test_a_user_id_that_the_broker_refuses_is_met_once(autojump_clock: MockClock) -> None:
    """406 names the user_id: each publish with it is refused, the close counts for no storm, and the others go on."""
    async with opened() as bench:
        await bench.publish("good", routing_key="q")
        bench.broker.strangers = {"mallory"}
        bench.nursery.start_soon(lambda: bench.stream("bad", 50, 2, routing_key="q", user_id="mallory"))
        await bench.stream("good", 50, 2, routing_key="q")
        await trio.sleep(3)
        good(bench)
        assert {(type(each), each.reply_code) for each in bench.ended["bad"]} == {(PublishRefused, 406)}
        assert max(outcome.attempts for outcome in bench.ended["good"]) <= 2
        assert bench.broker.closings.count(Lane.MAIN) == 1
        assert len(bench.driver.links) == 1
        assert len([each for each in bench.driver.published if each.envelope.user_id]) <= 4


# --- blame needs proof ------------------------------------------------------------------------------------------------


async def test_a_close_that_names_nobody_makes_suspects(autojump_clock: MockClock) -> None:
    """Each is sent alone; the guilty one is found, and may have arrived with the others."""
    async with opened() as bench:
        await bench.producer.wait_connected()
        handles = [bench.producer.publish_nowait(b"%d" % n, routing_key="q") for n in range(3)]
        link = bench.driver.link
        link.close_channel(Lane.MAIN, closed(406, "PRECONDITION_FAILED - invalid"))
        await trio.testing.wait_all_tasks_blocked()
        assert [message.body for message in link.published[3:]] == [b"0"]
        link.close_channel(Lane.SUSPECT, closed(406, "PRECONDITION_FAILED - invalid"))
        with pytest.raises(PublishRefused) as caught:
            await handles[0].wait()
        assert caught.value.may_have_been_delivered
        for handle in handles[1:]:
            assert (await handle.wait()).attempts == 2


async def test_messages_that_the_broker_has_checked_are_no_suspects(autojump_clock: MockClock) -> None:
    """The ack of a later tag proves it: the one message behind it is guilty at once, and twenty unanswered ones delay nobody."""
    async with opened() as bench:
        bench.broker.mute.add("mute")
        await bench.producer.wait_connected()
        unanswered = [bench.producer.publish_nowait(b"x", routing_key="mute", timeout=5) for _ in range(20)]
        await bench.publish("good", routing_key="q")
        guilty = bench.producer.publish_nowait(b"x", routing_key="q")
        bench.driver.link.close_channel(Lane.MAIN, closed(406, "PRECONDITION_FAILED - invalid"))
        with pytest.raises(PublishRefused) as caught:
            await guilty.wait()
        assert not caught.value.may_have_been_delivered
        await bench.publish("good", routing_key="q")
        assert max(good(bench)) < 0.1
        assert bench.driver.link.number == 1
        for handle in unanswered:
            with pytest.raises(warrener.Unconfirmed):
                await handle.wait()


async def test_a_suspect_that_the_broker_never_answers_holds_up_no_other(autojump_clock: MockClock) -> None:
    """A second without a close is answer enough to send the next suspect."""
    async with opened() as bench:
        bench.broker.mute.add("mute")
        await bench.producer.wait_connected()
        handles = [bench.producer.publish_nowait(b"x", routing_key=key) for key in ("mute", "q", "q")]
        bench.driver.link.close_channel(Lane.MAIN, closed(541, "INTERNAL_ERROR"))
        with trio.fail_after(2):
            for handle in handles[1:]:
                assert isinstance(await handle.wait(), Receipt)


# --- nacks ------------------------------------------------------------------------------------------------------------


async def test_a_full_queue_turns_away_only_its_own(autojump_clock: MockClock) -> None:
    """Its messages are Nacked, then refused by its own breaker, which status() names; the healthy queue's are confirmed."""
    async with opened() as bench:
        bench.broker.full.add("full")
        for _ in range(7):
            await bench.publish("bad", routing_key="full")
            await bench.publish("good", routing_key="healthy")
        good(bench)
        kinds = [type(outcome) for outcome in bench.ended["bad"]]
        assert kinds == [warrener.Nacked] * 5 + [warrener.CircuitOpen] * 2
        assert "routing key 'full'" in str(bench.ended["bad"][-1])
        status = bench.producer.status()
        assert (status.circuit_breaker, status.consecutive_failures, status.healthy) == ("closed", 0, True)
        assert status.open_destinations == ("the default exchange, routing key 'full'",)
        assert bench.producer.counters["open_destinations"] == 1
        await trio.sleep(30)
        bench.broker.full.clear()
        await bench.publish("mended", routing_key="full")
        await bench.publish("mended", routing_key="full")
        assert {type(outcome) for outcome in bench.ended["mended"]} == {Receipt}
        assert bench.producer.status().open_destinations == ()


async def test_a_probe_that_a_policy_turns_away_gives_its_permit_back(autojump_clock: MockClock) -> None:
    """The destination is probed again when the broker takes publishes again."""
    async with opened(retry=warrener.Retry.fire_and_confirm(), breaker=Breaker(2, 1.0, 1)) as bench:
        await bench.producer.wait_connected()
        bench.broker.full.add("full")
        for _ in range(2):
            await bench.publish("full", routing_key="full")
        bench.broker.full.clear()
        await trio.sleep(1)
        bench.driver.link.listener.blocked("memory")
        await trio.sleep(0.1)
        await bench.publish("blocked", routing_key="full")
        assert type(bench.ended["blocked"][0]) is warrener.NotSent
        bench.driver.link.listener.unblocked()
        await trio.sleep(0.1)
        await bench.publish("good", routing_key="full")
        assert good(bench)


async def test_what_was_accepted_is_written_whatever_a_breaker_does(autojump_clock: MockClock) -> None:
    """Five nacks with a window of five: fifteen messages to a healthy queue, accepted before, are confirmed."""
    async with opened(max_in_flight=5) as bench:
        bench.broker.full.add("full")
        await bench.producer.wait_connected()
        messages = [Message(b"x", routing_key="full")] * 5 + [Message(b"x", routing_key="healthy") for _ in range(15)]
        outcomes = await bench.producer.publish_many(messages)
        assert [type(outcome) for outcome in outcomes] == [warrener.Nacked] * 5 + [Receipt] * 15


async def test_the_table_of_destinations_is_bounded(autojump_clock: MockClock) -> None:
    """The destination longest without a nack is forgotten; a status names ten of them."""
    async with opened(max_destinations=20, breaker=Breaker(threshold=1)) as bench:
        for number in range(50):
            bench.broker.full.add(f"full-{number}")
            await bench.publish("bad", routing_key=f"full-{number}")
        assert bench.producer.counters["open_destinations"] == 20
        shown = bench.producer.status().open_destinations
        assert len(shown) == 10
        assert "'full-49'" in shown[-1]
        await bench.publish("forgotten", routing_key="full-0")
        assert isinstance(bench.ended["forgotten"][0], warrener.Nacked)


# --- a queue that does not confirm -------------------------------------------------------------------------------------


async def test_a_queue_that_does_not_confirm_costs_its_own_messages_only(autojump_clock: MockClock) -> None:
    """The link stays; the message ends as Unconfirmed at its own deadline, and its late confirm is told."""
    async with opened(confirm_timeout=5, publish_timeout=12) as bench:
        bench.broker.mute.add("mute")
        async with bench.producer.outcomes() as outcomes, trio.open_nursery() as streams:
            streams.start_soon(lambda: bench.stream("good", 10, 20, routing_key="q"))
            await bench.publish("mute", routing_key="mute")
            late = bench.driver.published[0]
            assert (late.envelope.routing_key, bench.took["mute"]) in [("mute", [12.0]), ("q", [12.0])]
            muted = next(each for each in bench.driver.published if each.envelope.routing_key == "mute")
            bench.driver.link.answer(muted, "ack")
            assert isinstance((await anext(outcomes)).result, Receipt)
        await trio.sleep(1)
        assert isinstance(bench.ended["mute"][0], warrener.Unconfirmed)
        good(bench)
        assert len(bench.driver.links) == 1
        assert bench.producer.counters["overdue"] == 1


async def test_an_overdue_destination_holds_a_tenth_of_the_capacity(autojump_clock: MockClock) -> None:
    """Beyond that a further publish to it raises BufferFull, which names it; others are accepted as before."""
    async with opened(confirm_timeout=5, publish_timeout=60, max_in_flight=100, max_buffered=100) as bench:
        bench.broker.mute.add("mute")
        async with trio.open_nursery() as streams:
            streams.start_soon(lambda: bench.stream("good", 10, 12, routing_key="q"))
            for _ in range(9):
                bench.nursery.start_soon(lambda: bench.publish("mute", routing_key="mute"))
            await trio.sleep(6)
            assert bench.producer.counters["overdue"] == 9
            assert bench.producer.status().open_destinations == ("the default exchange, routing key 'mute'",)
            found = {each.name: each.samples[0].value for each in ProducerCollector(bench.producer).collect()}
            assert found["warrener_open_destinations"] == 1
            assert found["warrener_confirms_overdue"] == 9
            bench.nursery.start_soon(lambda: bench.publish("mute", routing_key="mute"))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(warrener.BufferFull, match="routing key 'mute'"):
                await bench.producer.publish(b"x", routing_key="mute")
        await trio.sleep(1)
        good(bench)


@pytest.mark.parametrize("how", ["publish", "nowait", "many"])
async def test_a_burst_to_a_queue_that_does_not_confirm_keeps_the_link(autojump_clock: MockClock, how: str) -> None:
    """It would fill the window before its queue is known to be bad: a tenth is kept for the others, and the link stays."""
    async with opened(confirm_timeout=5, publish_timeout=60, max_in_flight=100, max_buffered=200) as bench:
        bench.broker.mute.add("mute")
        await bench.publish("first", routing_key="q")
        most = 0
        for _ in range(180):
            if how == "publish":
                bench.nursery.start_soon(lambda: bench.publish("mute", routing_key="mute"))
            elif how == "nowait":
                bench.producer.publish_nowait(b"mute", routing_key="mute")
        if how == "many":
            bench.nursery.start_soon(lambda: bench.producer.publish_many([b"mute"] * 180, routing_key="mute"))
        await trio.sleep(0.1)
        for _ in range(300):
            bench.nursery.start_soon(lambda: bench.publish("good", routing_key="q"))
            await trio.sleep(0.1)
            most = max(most, bench.producer.status().in_flight)
        await trio.sleep(1)
        assert len(bench.driver.links) == 1
        assert 90 <= most <= 100
        took = good(bench)
        assert took[-1] <= 0.5
        assert took[len(took) * 95 // 100] <= 3 * bench.broker.latency
        with pytest.raises(warrener.BufferFull, match="routing key 'mute'"):
            await bench.producer.publish(b"x", routing_key="mute")


async def test_a_stream_to_a_queue_that_does_not_confirm_leaves_a_tenth_of_the_buffer(
    autojump_clock: MockClock,
) -> None:
    """Long before `confirm_timeout` it has filled its part of the window, then of the buffer; from then on it is refused."""
    async with opened(confirm_timeout=30, publish_timeout=60, max_in_flight=100, max_buffered=100) as bench:
        bench.broker.mute.add("mute")
        bench.nursery.start_soon(lambda: bench.stream("mute", 50, 20, routing_key="mute"))
        await bench.stream("good", 10, 25, routing_key="q")
        await trio.sleep(1)
        assert len(bench.driver.links) == 1
        assert good(bench)[-1] <= 0.5
        assert {type(outcome) for outcome in bench.ended["mute"]} == {warrener.BufferFull}
        assert len(bench.ended["mute"]) == 1000 - 90 - 90
        with pytest.raises(warrener.BufferFull, match=r"taken by messages to its destination.*routing key 'mute'"):
            await bench.producer.publish(b"x", routing_key="mute")


async def test_two_streams_that_fill_the_window_are_both_confirmed(autojump_clock: MockClock) -> None:
    """Nothing is wrong with either: the reserve delays no message beyond the time that the window needs."""
    async with opened(max_in_flight=100, max_buffered=5000) as bench:
        for _ in range(1000):
            bench.nursery.start_soon(lambda: bench.publish("good", routing_key="a"))
            bench.nursery.start_soon(lambda: bench.publish("good", routing_key="b"))
        await trio.sleep(3)
        assert len(good(bench)) == 2000
        # 90 messages in a `latency`, and the last one has its answer after another.
        assert good(bench)[-1] <= (2000 / 90 + 2) * bench.broker.latency


async def test_a_link_that_answers_nothing_is_replaced(autojump_clock: MockClock) -> None:
    """Neither ack nor nack for confirm_timeout, while messages wait: as before."""
    async with opened(confirm_timeout=5) as bench:
        await bench.publish("good", routing_key="q")
        bench.broker.mute.add("q")
        bench.nursery.start_soon(lambda: bench.publish("mute", routing_key="q"))
        await trio.sleep(4.5)
        assert bench.producer.status().healthy
        await trio.sleep(1)
        assert bench.producer.status().link == 1
        assert not bench.producer.status().healthy
        await trio.sleep(3)
        assert bench.producer.status().link == 2


async def test_bytes_that_still_leave_are_progress(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that takes three times confirm_timeout to carry arrives, and so does the small one behind it."""
    began = math.inf

    def share(link: ScriptedLink) -> float:
        return (trio.current_time() - began) / 15.0

    monkeypatch.setattr(ScriptedLink, "written", lambda link, channel: 0 if share(link) < 1 else link._tags[channel])
    monkeypatch.setattr(ScriptedLink, "bytes_out", property(lambda link: int(max(0.0, min(1.0, share(link))) * 2**24)))
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, confirm_timeout=5) as producer:
        await producer.wait_connected()
        began = trio.current_time()
        handles = [producer.publish_nowait(body, routing_key="q") for body in (b"x" * 2**20, b"small")]
        await trio.sleep(16)
        for message in driver.published:
            driver.link.answer(message, "ack")
        assert [(await handle.wait()).attempts for handle in handles] == [1, 1]
        assert len(driver.links) == 1


# --- the window -------------------------------------------------------------------------------------------------------


async def test_the_window_is_bounded_in_bytes_and_one_larger_message_goes_alone(autojump_clock: MockClock) -> None:
    """300 bytes at once; a body of 500 is written when nothing else is in flight."""
    driver = ScriptedDriver(lives(answer=silence))
    async with open_producer(URL, driver=driver, max_in_flight_bytes=300) as producer:
        await producer.wait_connected()
        for size in (100, 100, 100, 100, 500, 100):
            producer.publish_nowait(b"x" * size, routing_key="q")

        def answer(count: int) -> list[int]:
            for message in driver.published[:count]:
                driver.link.answer(message, "ack")
            return [len(message.body) for message in driver.published]

        assert answer(0) == [100, 100, 100]
        assert answer(3) == [100, 100, 100, 100]
        assert answer(4) == [100, 100, 100, 100, 500]
        assert answer(5) == [100, 100, 100, 100, 500, 100]
        answer(6)


# --- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "certain"),
    [("", True), ("amq.topic", True), ("ours", True), ("delayed", False), ("passive", False), ("unknown", False)],
)
async def test_a_return_is_certain_from_exchanges_of_a_standard_kind_only(
    autojump_clock: MockClock, exchange: str, certain: bool
) -> None:
    """A plugin's exchange may return a message, ack it, and deliver it later."""
    topology = (Exchange("ours", "topic"), Exchange("delayed", "x-delayed-message"), Exchange("passive", passive=True))
    driver = ScriptedDriver(lives(answer=lambda _: "return"))
    async with open_producer(URL, driver=driver, topology=topology) as producer:
        with pytest.raises(warrener.Unroutable) as caught:
            await producer.publish(b"x", exchange=exchange, routing_key="q")
        assert caught.value.may_have_been_delivered is not certain
        assert (producer.counters["rejected"], producer.counters["unknown"]) == (int(certain), int(not certain))


async def test_a_declaration_of_ours_ends_the_memory_and_makes_returns_certain(autojump_clock: MockClock) -> None:
    """`declare` of the refused exchange: the next message to it is written, and its return is certain."""
    async with opened() as bench:
        bench.broker.closes["new"] = not_found("new")
        await bench.publish("bad", exchange="new", routing_key="q")
        bench.broker.closes.clear()
        await bench.producer.declare(Exchange("new", "topic"))
        await bench.publish("good", exchange="new", routing_key="q")
        good(bench)
        handle = bench.producer.publish_nowait(b"x", exchange="new", routing_key="nobody")
        bench.driver.link.answer(bench.driver.published[-1], "return")
        with pytest.raises(warrener.Unroutable) as caught:
            await handle.wait()
        assert not caught.value.may_have_been_delivered


# --- promises that stay -----------------------------------------------------------------------------------------------


async def test_an_introduction_that_is_never_answered_delays_the_others_by_a_second(autojump_clock: MockClock) -> None:
    """Messages to the same exchange go on when the broker has closed nothing for a second."""
    async with opened() as bench:
        bench.broker.mute.add("mute")
        await bench.producer.wait_connected()
        mute = bench.producer.publish_nowait(b"x", exchange="work", routing_key="mute")
        await bench.stream("good", 20, 2, exchange="work", routing_key="q")
        await trio.sleep(1)
        assert good(bench)[-1] <= 1.1
        assert not mute.settled


async def test_messages_to_one_exchange_stay_in_order(autojump_clock: MockClock) -> None:
    """Through the introduction, and after the loss of a link."""
    driver = ScriptedDriver(refuses(), lives(2.005, answer=silence), lives(answer=silence))
    async with opened(driver) as bench:
        handles = [bench.producer.publish_nowait(b"%d" % n, exchange="work", routing_key="q") for n in range(20)]
        await trio.sleep(2)
        handles += [bench.producer.publish_nowait(b"%d" % n, exchange="work", routing_key="q") for n in range(20, 40)]
        for handle in handles:
            await handle.wait()
        for link in driver.links:
            bodies = [int(message.body) for message in link.published]
            assert bodies == sorted(bodies)
