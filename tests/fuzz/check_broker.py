"""Any bytes of a client: the embedded broker answers in whole frames, holds no more than a frame, and raises nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from pamqp import commands, frame

from warrener.testing.broker._confirms import EveryBatch
from warrener.testing.broker._model import Node
from warrener.testing.broker._protocol import Connection, Tuning
from warrener.testing.broker._timers import Timers

#: What every client says first; behind it a channel is open.
HANDSHAKE = b"".join(
    [
        b"AMQP\x00\x00\x09\x01",
        frame.marshal(commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"), 0),
        frame.marshal(commands.Connection.TuneOk(channel_max=10, frame_max=4096, heartbeat=1), 0),
        frame.marshal(commands.Connection.Open(), 0),
        frame.marshal(commands.Channel.Open(), 1),
    ]
)
#: Ends a turn, as in tests/wire/replay.py: a second passes.
TURN = b"\x00\xff\xfeTURN"
FRAME_MAX = 4096


def _judge(output: bytes) -> None:
    """The output is the protocol header, or whole frames."""
    if output[:4] == b"AMQP":
        output = output[8:]
    while output:
        size = int.from_bytes(output[3:7]) + 8
        assert output[0] in (1, 2, 3, 8), "an unknown frame"
        assert len(output) >= size, "a torn frame"
        assert output[size - 1] == 0xCE, "a frame without its end"
        output = output[size:]


def check(data: bytes) -> None:
    """One connection of one broker; the first byte says whether the handshake was made."""
    now = 0.0
    timers = Timers(lambda: now)
    node = Node(timers, rng=None, sync_interval=0.0, wall_clock=lambda: datetime.fromtimestamp(now, UTC))
    violations: list[object] = []
    connection = Connection(
        1,
        node,
        Tuning(frame_max=FRAME_MAX, handshake_timeout=5.0),
        EveryBatch(),
        on_output=lambda: None,
        on_violation=violations.append,
        intercept=lambda: None,
    )
    if data[:1] == b"\x01":
        connection.receive(HANDSHAKE)
        _judge(connection.take_output())
    for turn in data[1:].split(TURN):
        connection.receive(turn)
        if connection.ending is None and not connection.blocked:
            assert connection.residue <= FRAME_MAX, "more is held than a frame"
        now += 1.0
        timers.fire()
        _judge(connection.take_output())
    connection.lost()
    for vhost in node.vhosts.values():
        for queue in vhost.queues.values():
            assert not getattr(queue, "unacked", None), "a lost connection leaves messages unacked"
