"""The embedded broker in memory and virtual time: what depends on the clock, on chance and on crashes."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from pamqp import commands, heartbeat
from trio.testing import MockClock

from tests.testing.rawclient import PROTOCOL_HEADER, MemoryClient, content
from warrener.testing.broker import EmbeddedBroker, ProtocolViolated, Tuning

DURABLE = 2


async def client_of(broker: EmbeddedBroker, **options: object) -> MemoryClient:
    client = MemoryClient(await broker.connect())
    await client.handshake(**options)  # type: ignore[arg-type]
    return client


@pytest.mark.trio
async def test_a_client_that_says_nothing_is_let_go_after_ten_seconds(autojump_clock: MockClock) -> None:
    """The handshake has one deadline, however slowly it drips."""
    async with EmbeddedBroker(listen=False) as broker:
        stream = await broker.connect()
        for byte in PROTOCOL_HEADER[:7]:
            await trio.sleep(1)
            await stream.send(bytes([byte]))
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()

        assert 10 == trio.current_time()
        await stream.aclose()


@pytest.mark.trio
async def test_heartbeats_come_at_half_the_interval_and_a_silent_client_is_dropped_without_a_close(
    autojump_clock: MockClock,
) -> None:
    """A beat at least every T; the end after 2T to 3T of silence (F8)."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker, heartbeat=10)
        began = last = trio.current_time()
        with pytest.raises(anyio.EndOfStream):
            while True:
                _, beat = await client.read(heartbeats=True)
                assert isinstance(beat, heartbeat.Heartbeat)
                assert trio.current_time() - last <= 10
                last = trio.current_time()

        assert 20 <= trio.current_time() - began <= 30
        await client.stream.aclose()


@pytest.mark.trio
async def test_an_alarm_blocks_at_the_first_content_and_leaves_the_heart_beating(autojump_clock: MockClock) -> None:
    """connection.blocked only when content arrives; then nothing is read, silence is not counted, beats go on (F7)."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("q")
        client = await client_of(broker, heartbeat=10)
        broker.alarm()
        await client.send(commands.Basic.Qos(prefetch_count=1))
        await client.expect("Basic.QosOk")
        await client.send(*content("q", b"half"))
        assert "low on memory" == (await client.expect("Connection.Blocked")).reason
        assert () == broker.log  # the header was seen, the body waits in the broker's buffer
        await client.send(commands.Basic.Qos(prefetch_count=2))
        for _ in range(20):
            _, beat = await client.read(heartbeats=True)
            assert isinstance(beat, heartbeat.Heartbeat)
        assert (True,) == tuple(seen.blocked for seen in broker.clients)
        broker.alarm(False)
        await client.expect("Connection.Unblocked")
        assert {"Basic.Ack", "Basic.QosOk"} == {(await client.read())[1].name for _ in range(2)}
        await client.close()


@pytest.mark.trio
async def test_a_blocked_connection_stops_its_client_s_writes(autojump_clock: MockClock) -> None:
    """With the window full, `send` waits."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker)
        broker.alarm()
        with trio.move_on_after(60) as patience:
            await client.send(*content("q", bytes(100_000)), *content("q", bytes(100_000)))

        assert patience.cancelled_caught


@pytest.mark.trio
async def test_bytes_left_behind_by_a_client_may_be_processed_after_it_is_gone(autojump_clock: MockClock) -> None:
    """A zombie: written during an alarm, given up, and in the queue once the alarm is over."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("q")
        client = await client_of(broker)
        broker.alarm()
        await client.send(*content("q", b"zombie"))
        await client.expect("Connection.Blocked")
        await client.stream.aclose()
        await trio.sleep(100)
        assert [] == broker.messages("q")
        broker.alarm(False)
        await trio.testing.wait_all_tasks_blocked()

        assert [b"zombie"] == broker.messages("q")
        assert ["eof"] == [end.how for end in broker.ended]


@pytest.mark.parametrize(
    ("queue_type", "survivors"), [("classic", [b"synced"]), ("quorum", [b"synced", b"transient", b"unsynced"])]
)
@pytest.mark.trio
async def test_a_crash_keeps_what_was_safe(autojump_clock: MockClock, queue_type: str, survivors: list[bytes]) -> None:
    """Classic: what was synced, and persistent. Quorum: everything that was enqueued. The log keeps every line."""
    async with EmbeddedBroker(listen=False, sync_interval=0.2) as broker:
        broker.declare_queue("q", arguments={"x-queue-type": queue_type})
        client = await client_of(broker)
        await client.send(*content("q", b"synced", delivery_mode=DURABLE, message_id="1"))
        assert (True, 1, False) == await client.confirm()
        await client.send(*content("q", b"transient", delivery_mode=1, message_id="2"))
        await client.send(*content("q", b"unsynced", delivery_mode=DURABLE, message_id="3"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        broker.crash()
        with pytest.raises(ConnectionRefusedError):
            await broker.connect()
        broker.restart()

        assert survivors == sorted(broker.messages("q"))
        assert [("1", "q"), ("2", "q"), ("3", "q")] == [(line.message_id, line.queue) for line in broker.log]
        assert hashlib.blake2b(b"synced", digest_size=16).digest() == broker.log[0].body_hash
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                await client.read()
        await client.stream.aclose()


@pytest.mark.trio
async def test_a_stop_in_order_says_320_and_loses_nothing_that_is_durable(autojump_clock: MockClock) -> None:
    """Everything is synced before the end."""
    async with EmbeddedBroker(listen=False, sync_interval=5) as broker:
        broker.declare_queue("q")
        client = await client_of(broker)
        await client.send(*content("q", b"x", delivery_mode=DURABLE))
        await trio.testing.wait_all_tasks_blocked(0.01)
        broker.stop()
        close = await client.expect("Connection.Close")
        broker.restart()

        text = "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
        assert (320, text, [b"x"]) == (close.reply_code, close.reply_text, broker.messages("q"))
        await client.stream.aclose()


@pytest.mark.trio
async def test_a_stalled_queue_neither_stores_nor_confirms_until_it_goes_on(autojump_clock: MockClock) -> None:
    """A quorum queue without a leader: no ack and no nack; then everything at once."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("q", arguments={"x-queue-type": "quorum"})
        client = await client_of(broker)
        broker.stall_confirms()
        await client.send(*content("q"), *content("q"), *content("nowhere"))
        assert (True, 3, False) == await client.confirm()  # no queue, no waiting
        with trio.move_on_after(3600) as patience:
            await client.read()
        assert patience.cancelled_caught
        assert () == broker.log
        broker.stall_confirms(False)

        assert (True, 2, True) == await client.confirm()
        assert 2 == len(broker.log)
        await client.close()


@pytest.mark.trio
async def test_a_queue_that_dies_nacks_and_one_that_is_deleted_acks(autojump_clock: MockClock) -> None:
    """Neither tells whether the message is stored (F1, F2)."""
    async with EmbeddedBroker(listen=False, sync_interval=60) as broker:
        for name in ("dies", "deleted"):
            broker.declare_queue(name)
        client = await client_of(broker)
        await client.send(*content("dies", delivery_mode=DURABLE), *content("deleted", delivery_mode=DURABLE))
        await trio.testing.wait_all_tasks_blocked(0.01)
        broker.kill_queue("dies")
        assert (False, 1, True) == await client.confirm()
        broker.delete_queue("deleted")
        assert (True, 2, False) == await client.confirm()
        await client.close()


@pytest.mark.trio
async def test_a_frozen_broker_does_nothing_until_it_thaws(autojump_clock: MockClock) -> None:
    """No reads, no writes, no time."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker, heartbeat=10)
        broker.freeze()
        await client.send(commands.Basic.Qos(prefetch_count=1))
        with trio.move_on_after(1000) as patience:
            while True:
                await client.read(heartbeats=True)
        assert patience.cancelled_caught
        broker.thaw()
        await client.expect("Basic.QosOk")
        await client.close()


@pytest.mark.trio
async def test_time_to_live_dead_letters_and_disuse(autojump_clock: MockClock) -> None:
    """x-message-ttl sends to the dead-letter exchange; x-expires deletes the queue."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("dead")
        arguments = {"x-message-ttl": 5000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        broker.declare_queue("q", arguments={**arguments, "x-expires": 60_000})
        client = await client_of(broker)
        await client.send(*content("q", b"1"), *content("q", b"2", expiration="1000"))
        await client.confirm()
        await trio.sleep(4)
        assert {"q": 2, "dead": 0} == broker.queues()  # messages expire at the head of a queue only
        await trio.sleep(2)
        assert {"q": 0, "dead": 2} == broker.queues()
        await trio.sleep(60)
        assert {"dead": 2} == broker.queues()
        await client.close()


@pytest.mark.trio
async def test_a_delivery_limit_ends_a_poison_message(autojump_clock: MockClock) -> None:
    """A quorum queue gives a message back as often as its limit says, and counts in a header."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("dead")
        arguments = {"x-delivery-limit": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        broker.declare_queue("q", arguments={**arguments, "x-queue-type": "quorum"})
        client = await client_of(broker)
        await client.send(*content("q", b"poison"))
        await client.confirm()
        counts = []
        for tag in (1, 2, 3):
            await client.send(commands.Basic.Get(queue="q"), commands.Basic.Reject(delivery_tag=tag))
            await client.expect("Basic.GetOk")
            counts.append(((await client.expect("ContentHeader")).properties.headers or {}).get("x-delivery-count"))
            await client.expect("ContentBody")
        await client.send(commands.Basic.Get(queue="q"))
        await client.expect("Basic.GetEmpty")

        assert [None, 1, 2] == counts
        assert [b"poison"] == broker.messages("dead")
        await client.close()


@pytest.mark.trio
async def test_a_full_queue_drops_its_head_or_rejects(autojump_clock: MockClock) -> None:
    """x-overflow decides."""
    async with EmbeddedBroker(listen=False) as broker:
        broker.declare_queue("drops", arguments={"x-max-length": 2})
        broker.declare_queue("rejects", arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
        client = await client_of(broker)
        accepted = []
        for queue in ("drops", "rejects"):
            for body in (b"1", b"2", b"3"):
                await client.send(*content(queue, body))
                accepted.append((await client.confirm())[0])

        assert [True] * 5 + [False] == accepted
        assert ([b"2", b"3"], [b"1", b"2"]) == (broker.messages("drops"), broker.messages("rejects"))
        await client.close()


async def one_run(seed: int) -> bytes:
    """Return everything that a client hears in a run with rng."""
    rng = random.Random(seed)
    heard = b""
    async with EmbeddedBroker(listen=False, rng=rng, sync_interval=0.2) as broker:
        for name in ("a", "b"):
            broker.declare_queue(name)
        client = await client_of(broker)
        for number in range(30):
            key = ("a", "b", "nowhere")[number % 3]
            await client.send(*content(key, b"%d" % number, delivery_mode=1 + number % 2, mandatory=True))
            if number % 7 == 0:
                await trio.sleep(0.05)
        with trio.move_on_after(10):
            while True:
                heard += await client.stream.receive()
        await client.stream.aclose()
    return heard


@pytest.mark.parametrize("seed", range(3))
def test_equal_seeds_give_equal_bytes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the order of Trio's tasks fixed too, nothing else is left to rng."""
    scheduler: Any = sys.modules["trio._core._run"]  # Trio has no public switch for its shuffle
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)

    def run(seed: int) -> bytes:
        scheduler._r.seed(0)
        return trio.run(one_run, seed, clock=MockClock(autojump_threshold=0))

    assert run(seed) == run(seed)
    assert 1 < len({run(other) for other in range(4)})


# --- what a client must not do ---------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_violation_fails_the_block(autojump_clock: MockClock) -> None:
    """Whoever sent the bytes hears of it when the block is left."""
    with pytest.raises(ProtocolViolated, match=r"connection 1: basic\.qos_ok from a client"):
        async with EmbeddedBroker(listen=False) as broker:
            client = await client_of(broker)
            await client.send(commands.Basic.QosOk())
            await client.expect("Connection.Close")
            await client.stream.aclose()


@pytest.mark.trio
async def test_a_violation_does_not_hide_another_error(autojump_clock: MockClock) -> None:
    """What the test raised itself is what leaves the block, bare."""
    with pytest.raises(KeyError):
        async with EmbeddedBroker(listen=False) as broker:
            client = await client_of(broker)
            await client.send(commands.Basic.QosOk())
            await client.expect("Connection.Close")
            await client.stream.aclose()
            raise KeyError("the test's own")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([commands.Connection.Close(200, "", 0, 0), commands.Basic.Qos()], id="after Close"),
        pytest.param([commands.Connection.StartOk({}, "PLAIN", "", "")], id="out of order"),
        pytest.param([commands.Basic.Publish(), commands.Basic.Qos()], id="a publish without content"),
        pytest.param([commands.Channel.Close(200, "", 0, 0), commands.Basic.Qos()], id="on a closed channel"),
        pytest.param([commands.Channel.Open()], id="a channel opened twice"),
    ],
)
@pytest.mark.trio
async def test_violations(autojump_clock: MockClock, sent: list[object]) -> None:
    """Legal frames in illegal places are recorded."""
    async with EmbeddedBroker(listen=False, strict=False) as broker:
        client = await client_of(broker)
        for one in sent:
            await client.send(
                one, channel=0 if isinstance(one, commands.Connection.Close | commands.Connection.StartOk) else 1
            )
        await trio.testing.wait_all_tasks_blocked(0.01)

        assert 1 == len(broker.violations)
        await client.stream.aclose()


@pytest.mark.trio
async def test_ordinary_refusals_and_frames_on_their_way_are_no_violations(autojump_clock: MockClock) -> None:
    """A publish that crosses a channel.close, or a connection.close, is no violation."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker)
        await client.send(*content("k", exchange="nox"), *content("k", exchange="nox"))
        await client.expect("Channel.Close")
        await client.send(*content("k"), commands.Channel.CloseOk(), commands.Channel.Open())
        await client.expect("Channel.OpenOk")
        broker.close_all_connections(320, "maintenance")
        await client.send(*content("k"), commands.Basic.Qos())
        assert "CONNECTION_FORCED - maintenance" == (await client.expect("Connection.Close")).reply_text
        await client.send(commands.Connection.CloseOk(), channel=0)
        with pytest.raises(anyio.EndOfStream):
            await client.read()
        await client.stream.aclose()


@pytest.mark.trio
async def test_closes_that_cross_are_both_answered(autojump_clock: MockClock) -> None:
    """Neither side waits for ever (I30)."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker)
        broker.close_all_connections()
        await client.send(commands.Connection.Close(200, "", 0, 0), channel=0)
        await client.expect("Connection.Close")
        await client.expect("Connection.CloseOk")
        await client.send(commands.Connection.CloseOk(), channel=0)
        with pytest.raises(anyio.EndOfStream):
            await client.read()
        await client.stream.aclose()


@pytest.mark.trio
async def test_a_publish_after_flow_ok_false_is_a_violation(autojump_clock: MockClock) -> None:
    """channel.flow is obeyed from the moment the client says so."""
    async with EmbeddedBroker(listen=False, strict=False, tuning=Tuning(heartbeat=0)) as broker:
        client = await client_of(broker)
        broker.flow(active=False)
        await client.expect("Channel.Flow")
        await client.send(*content("nowhere"))
        await client.confirm()
        assert () == broker.violations
        await client.send(commands.Channel.FlowOk(active=False), *content("nowhere"))
        await client.confirm()

        assert 1 == len(broker.violations)
        await client.close()


@pytest.mark.trio
async def test_the_hook_can_swallow_and_the_broker_can_say_anything(autojump_clock: MockClock) -> None:
    """Hostile mode: methods ignored, bytes made up."""
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker)
        broker.intercept = lambda _connection, _channel, what: getattr(what, "name", "") == "basic.qos"
        await client.send(commands.Basic.Qos())
        broker.send_bytes(b"HTTP/1.1 400\r\n")

        assert b"HTTP/1.1 400\r\n" == await client.stream.receive()
        await client.close()


@pytest.mark.trio
async def test_an_operator_closes_open_connections_only(autojump_clock: MockClock) -> None:
    """`close_all_connections` leaves alone who is still shaking hands: RabbitMQ does not list them either."""
    async with EmbeddedBroker(listen=False) as broker:
        greeted = MemoryClient(await broker.connect())
        opened = await client_of(broker)
        broker.close_all_connections(320, "maintenance")
        await opened.expect("Connection.Close")
        await greeted.handshake()

        assert ["open", "waiting for close-ok"] == sorted(client.phase.value for client in broker.clients)
        await greeted.stream.aclose()
        await opened.stream.aclose()


@pytest.mark.trio
async def test_one_queue_never_confirms_and_another_confirms_late(autojump_clock: MockClock) -> None:
    """The confirms of a third queue pass both; the end of a general stall does not end the stall of one queue."""
    async with EmbeddedBroker(listen=False) as broker:
        for name in ("mute", "slow", "well"):
            broker.declare_queue(name)
        broker.stall_confirms(queue="mute")
        broker.delay_confirms(3.0, "slow")
        client = await client_of(broker)
        began = trio.current_time()
        await client.send(*content("mute", b"1"), *content("slow", b"2"), *content("well", b"3"))
        assert (3, began) == ((await client.expect("Basic.Ack")).delivery_tag, trio.current_time())
        assert (2, began + 3) == ((await client.expect("Basic.Ack")).delivery_tag, trio.current_time())
        broker.stall_confirms()
        broker.stall_confirms(on=False)
        with trio.move_on_after(60) as patience:
            await client.expect("Basic.Ack")
        assert patience.cancelled_caught
        broker.stall_confirms(on=False, queue="mute")
        assert 1 == (await client.expect("Basic.Ack")).delivery_tag
        assert [b"1"] == broker.messages("mute")
        await client.close()


@pytest.mark.trio
async def test_a_delayed_exchange_returns_and_acks_and_delivers_afterwards(autojump_clock: MockClock) -> None:
    """As the plugin rabbitmq_delayed_message_exchange does; without the plugin the type is unknown."""
    async with EmbeddedBroker(listen=False, delayed_messages=True) as broker:
        client = await client_of(broker)
        arguments = {"x-delayed-type": "direct"}
        await client.send(
            commands.Exchange.Declare(exchange="later", exchange_type="x-delayed-message", arguments=arguments)
        )
        await client.expect("Exchange.DeclareOk")
        broker.declare_queue("q")
        broker.bind_queue("q", "later", "key")
        headers = {"x-delay": 2000}
        await client.send(*content("key", b"x", exchange="later", mandatory=True, headers=headers))
        assert "NO_ROUTE" == (await client.expect("Basic.Return")).reply_text
        for _ in range(2):  # header and body of the returned message
            await client.read()
        await client.expect("Basic.Ack")
        assert [] == broker.messages("q")
        await trio.sleep(2.01)
        assert [b"x"] == broker.messages("q")
        await client.close()
    async with EmbeddedBroker(listen=False) as broker:
        client = await client_of(broker)
        await client.send(
            commands.Exchange.Declare(exchange="later", exchange_type="x-delayed-message", arguments=arguments)
        )
        assert 503 == (await client.expect("Connection.Close")).reply_code
        await client.stream.aclose()
