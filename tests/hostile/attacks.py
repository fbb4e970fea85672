"""What hostile brokers do: each attack is a function of one connection, which ends when the client has had enough."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from attrs import frozen
from pamqp import commands

from tests.hostile.wire import Conn, marshal, raw, returned

__all__ = ["ATTACKS", "Attack"]

B, C, X, Q = commands.Basic, commands.Channel, commands.Connection, commands.Queue

Run: TypeAlias = Callable[[Conn, random.Random], None]


@frozen
class Attack:
    """One kind of hostile input."""

    name: str
    run: Run


ATTACKS: list[Attack] = []


def attack(run: Run) -> Run:
    """Add the function to the list; its docstring is the name."""
    ATTACKS.append(Attack((run.__doc__ or "").rstrip("."), run))
    return run


_HUGE = {f"name-{number}": [number] * 20 for number in range(300)}


def _nested(levels: int) -> bytes:
    payload = b""
    for _ in range(levels):
        payload = b"\x01aF" + len(payload).to_bytes(4) + payload
    return payload


def _start(table: bytes, mechanisms: bytes = b"PLAIN") -> bytes:
    payload = b"\0\x0a\0\x0a\0\x09" + len(table).to_bytes(4) + table
    payload += len(mechanisms).to_bytes(4) + mechanisms + b"\0\0\0\x05en_US"
    return raw(1, 0, payload)


# --- before the connection is open ------------------------------------------------------------------------------------


@attack
def random_bytes(conn: Conn, rng: random.Random) -> None:
    """Random bytes in place of a greeting."""
    conn.send(rng.randbytes(rng.randrange(1, 3000)), inputs=1)


@attack
def other_protocols(conn: Conn, rng: random.Random) -> None:
    """Greetings of other protocols: TLS, HTTP, AMQP 1.0, SSH, none."""
    greetings = (
        b"\x15\x03\x03\0\x02\x02\x46", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\1\0\0", b"SSH-2.0-x\r\n", b"", b"A",
        b"\x01", conn.secret.encode()[:8],
    )  # fmt: skip
    conn.send(rng.choice(greetings), inputs=1)


@attack
def handshake_cut(conn: Conn, rng: random.Random) -> None:
    """A handshake that ends, falls silent or drips at any byte."""
    conn.receive()
    whole = marshal(X.Start(0, 9, {"product": "x"}, "PLAIN", "en_US"))
    conn.send(whole[: rng.randrange(len(whole))], inputs=1)
    if rng.random() < 0.3:
        conn.wait(3)
    elif rng.random() < 0.3:
        conn.drip(whole)


@attack
def server_properties(conn: Conn, rng: random.Random) -> None:
    """Server properties: 8 KB of tables, 40 levels deep, the password in each text."""
    conn.receive()
    secret = rng.choice(conn.secrets)
    kind = rng.randrange(5)
    if kind == 0:
        conn.send(_start(_nested(rng.choice((30, 33, 40, 900)))), inputs=1)
    elif kind == 1:
        conn.send(_start(b"\x01aA\0\0\x1f\x00" + b"V" * 0x1F00), inputs=1)
    elif kind == 2:
        conn.send(_start(b"", secret.encode() * 20), inputs=1)
    elif kind == 3:
        conn.send(_start(b"\x07productS\xff\xff\xff\xff"), inputs=1)
    else:
        text = (secret.encode() + b"\x1b[2J\r\n" + "\u202e".encode()) * 20
        conn.send(_start(b"\x07productS" + len(text).to_bytes(4) + text), inputs=1)
        conn.receive()
        conn.tune()
        conn.serve()


@attack
def tunings(conn: Conn, rng: random.Random) -> None:
    """Tunings of any value."""
    conn.greet()
    odd = (0, 1, 2, 3, 4095, 4096, 8192, 65535)
    conn.inputs += 1
    conn.tune(rng.choice(odd), rng.choice((*odd, 0xFFFFFFFF)), rng.choice((0, 1, 65535)))
    conn.until(B.Publish)


@attack
def closes_anywhere(conn: Conn, rng: random.Random) -> None:
    """connection.close at each step, with the password and control characters in its text."""
    code = rng.choice((0, 200, 311, 320, 402, 403, 404, 406, 501, 504, 505, 530, 541, 65535))
    text = rng.choice(("", rng.choice(conn.secrets), "ACCESS_REFUSED - user 'ann'", "\r\n\x1b[31m\u2028forged line"))
    step = rng.randrange(4)
    if step:
        conn.greet()
    if step > 1:
        conn.tune()
    if step > 2:
        conn.until(B.Publish)
    for _ in range(rng.choice((1, 1, 2, 500))):
        conn.send(marshal(X.Close(code, text, rng.choice((0, 10, 50, 60)), 10)), inputs=1)
    conn.wait(0.3)


@attack
def out_of_order(conn: Conn, rng: random.Random) -> None:
    """Methods of the connection out of their order."""
    methods = (
        X.Start(0, 9, {}, "PLAIN", "en_US"),
        X.Secure("x"),
        X.Tune(1, 1, 1),
        X.OpenOk(),
        X.CloseOk(),
        X.Unblocked(),
    )
    conn.greet()
    if rng.random() < 0.5:
        conn.tune()
    conn.send(marshal(rng.choice(methods)) * rng.choice((1, 1000)), inputs=1)
    conn.wait(0.2)


# --- floods on an open connection -------------------------------------------------------------------------------------


@attack
def blocked_flood(conn: Conn, rng: random.Random) -> None:
    """connection.blocked and unblocked without end."""
    conn.open()
    conn.flood(marshal(X.Blocked(f"low on memory {conn.secret}")) + marshal(X.Unblocked()), 2)


@attack
def early_blocked(conn: Conn, rng: random.Random) -> None:
    """connection.blocked and unblocked without end, before the first channel is open."""
    conn.greet()
    conn.tune()
    conn.flood(marshal(X.Blocked("x" * 255)) + marshal(X.Unblocked()), 2)


@attack
def only_blocked(conn: Conn, rng: random.Random) -> None:
    """connection.blocked again and again, and never unblocked."""
    conn.open()
    conn.flood(marshal(X.Blocked("x" * 255)))


@attack
def flow_flood(conn: Conn, rng: random.Random) -> None:
    """channel.flow on and off without end."""
    conn.open()
    conn.flood(marshal(C.Flow(active=False), conn.channel) + marshal(C.Flow(active=True), conn.channel), 2)


@attack
def heartbeats(conn: Conn, rng: random.Random) -> None:
    """Heartbeats without end."""
    conn.open()
    conn.flood(b"\x08\0\0\0\0\0\0\xce")


@attack
def unknown_acks(conn: Conn, rng: random.Random) -> None:
    """Acks and nacks of tags that do not exist, on channels that do not exist."""
    conn.open()
    conn.wait(rng.uniform(0, 0.1))
    tag, bits = rng.choice((0, 10**6, 2**63, 2**64 - 1)), rng.randrange(2)
    payload = rng.choice((b"\0\x3c\0\x50", b"\0\x3c\0\x78")) + tag.to_bytes(8) + bits.to_bytes(1)
    conn.send(raw(1, rng.choice((conn.channel, 77, 0)), payload) * 100, inputs=100)
    conn.wait(0.2)


@attack
def repeated_acks(conn: Conn, rng: random.Random) -> None:
    """Acks of tags that have their answer already, without end."""
    conn.open()
    multiple = rng.random() < 0.5
    conn.flood(
        marshal(B.Ack(1, multiple=multiple), conn.channel) + marshal(B.Nack(1, multiple=multiple), conn.channel), 2
    )


@attack
def strange_returns(conn: Conn, rng: random.Random) -> None:
    """Returns that match no message, without end."""
    conn.open()
    many = [
        returned(conn.channel, message_id=f"id-{n}", headers={"x-warrener-token": f"{n:032}"}) for n in range(200)
    ] + [returned(conn.channel, text=rng.choice(conn.secrets), key=conn.secret) for _ in range(200)]  # fmt: skip
    conn.flood(b"".join(many), len(many))


@attack
def huge_returns(conn: Conn, rng: random.Random) -> None:
    """Returns with headers of 100 KB, and with tokens of 100 KB, without end."""
    conn.open()
    headers = rng.choice((_HUGE, {"x-warrener-token": "t" * 100_000}))
    conn.flood(returned(conn.channel, headers=headers) * 3, 3)


@attack
def endless_return(conn: Conn, rng: random.Random) -> None:
    """A return of 2**62 bytes."""
    conn.open()
    header = b"\0\x3c\0\0" + (2**62).to_bytes(8) + b"\0\0"
    conn.send(marshal(B.Return(312, "NO_ROUTE", "", "q"), conn.channel) + raw(2, conn.channel, header))
    conn.flood(raw(3, conn.channel, bytes(100_000)))


@attack
def deliveries(conn: Conn, rng: random.Random) -> None:
    """Messages that nobody consumes: basic.deliver and get-ok of 2**62 bytes, on any channel."""
    conn.open()
    method = rng.choice((B.Deliver("tag", 1, False, "", "q"), B.GetOk(1, False, "", "q", 0), None))
    channel = rng.choice((conn.channel, conn.channel, conn.channel + 1, 0))
    if method is not None:
        conn.send(marshal(method, channel))
    conn.send(raw(2, channel, b"\0\x3c\0\0" + (2**62).to_bytes(8) + b"\0\0"))
    conn.flood(raw(3, channel, bytes(100_000)))


@attack
def small_deliveries(conn: Conn, rng: random.Random) -> None:
    """Small messages that nobody consumes, without end."""
    conn.open()
    content = raw(2, conn.channel, b"\0\x3c\0\0" + (1).to_bytes(8) + b"\0\0") + raw(3, conn.channel, b"x")
    conn.flood(marshal(B.Deliver("tag", 1, False, "", "q"), conn.channel) + content)


@attack
def unasked_answers(conn: Conn, rng: random.Random) -> None:
    """Answers to requests that were never made, without end, on any channel."""
    conn.open()
    answers = (
        Q.DeclareOk("q", 0, 0), Q.BindOk(), C.OpenOk(), B.QosOk(), commands.Confirm.SelectOk(), B.GetEmpty(), B.CancelOk("t"),
        B.ConsumeOk("t"), B.Cancel("t"), C.CloseOk(), commands.Tx.SelectOk(), B.RecoverOk(), C.FlowOk(active=True),
    )  # fmt: skip
    conn.flood(marshal(rng.choice(answers), rng.choice((conn.channel, conn.channel, conn.channel + 1, 900))))


@attack
def channel_closes(conn: Conn, rng: random.Random) -> None:
    """The publishing channel is closed each time it is opened; the text names exchanges, queues, or nothing."""
    conn.open()
    texts = (
        "NOT_FOUND - no exchange 'x' in vhost '/'", "PRECONDITION_FAILED - inequivalent arg", "", conn.secret,
        "ACCESS_REFUSED - access to exchange 'q' in vhost '/' refused", "INTERNAL_ERROR",
    )  # fmt: skip
    while True:
        code = rng.choice((403, 404, 406, 200, 541))
        blamed = rng.choice(((60, 40), (0, 0), (50, 10)))
        conn.send(marshal(C.Close(code, rng.choice(texts), *blamed), conn.channel), inputs=1)
        conn.until(B.Publish)


@attack
def closes_of_no_channel(conn: Conn, rng: random.Random) -> None:
    """channel.close for 60,000 channels that are not open."""
    conn.open()
    conn.send(
        b"".join(marshal(C.Close(404, "x" * 255, 60, 40), number) for number in range(100, 60_000)), inputs=59_900
    )
    conn.wait(1)


@attack
def refused_declarations(conn: Conn, rng: random.Random) -> None:
    """Declarations are refused, with every code."""
    conn.greet()
    conn.tune()
    for _ in range(3):
        conn.until(Q.Declare)
        code, text = (
            rng.choice((403, 404, 405, 406, 500)),
            rng.choice(("", conn.secret, "inequivalent arg", "invalid arg")),
        )
        conn.send(marshal(C.Close(code, text, 50, 10), 2), inputs=1)
    conn.wait(0.5)


@attack
def drip(conn: Conn, rng: random.Random) -> None:
    """A frame that comes byte by byte."""
    conn.open()
    conn.drip(returned(conn.channel, headers=_HUGE))


@attack
def large_frames(conn: Conn, rng: random.Random) -> None:
    """Frames over the limit, without end byte, of unknown type, on channel 0."""
    conn.open(frame_max=rng.choice((0, 4096, 131072)))
    size = rng.choice((131_073, 2**31, 2**32 - 1))
    bad = (
        b"\x01\0\x01" + size.to_bytes(4) + bytes(1000), raw(1, 1, bytes(100))[:-1] + b"\0", raw(9, 1, b""), raw(3, 0, b"x"),
        raw(8, 1, b""), raw(8, 0, b"x"), raw(1, 1, b"\0"),
    )  # fmt: skip
    conn.send(rng.choice(bad), inputs=1)
    conn.wait(0.3)


@attack
def random_frames(conn: Conn, rng: random.Random) -> None:
    """Frames of the right form with random content."""
    conn.open()
    for _ in range(50):
        kind, channel = rng.choice((1, 1, 1, 2, 3, 8)), rng.choice((0, conn.channel, conn.channel, 2, 9))
        index = rng.choice((b"\0\x0a\0", b"\0\x14\0", b"\0\x3c\0", b"\0\x55\0")) + rng.choice(
            (10, 11, 20, 40, 50, 60, 80)
        ).to_bytes(1)
        payload = (index if kind == 1 else b"\0\x3c\0\0") + rng.randbytes(rng.randrange(60))
        conn.send(raw(kind, channel, payload), inputs=1)
    conn.wait(0.1)


@attack
def mutated_recordings(conn: Conn, rng: random.Random) -> None:
    """Recorded sessions with changed bytes."""
    recordings = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").rglob("*"))
    files = [each for each in recordings if each.is_file()]
    data = bytearray(rng.choice(files).read_bytes())
    for _ in range(rng.randrange(1, 6)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    conn.receive()
    conn.send(bytes(data), inputs=1)
    conn.wait(0.1)


@attack
def never_reads(conn: Conn, rng: random.Random) -> None:
    """A broker that opens and then does not read."""
    conn.open()
    conn.inputs += 1
    conn.wait(4, reading=False)


@attack
def asks_and_never_reads(conn: Conn, rng: random.Random) -> None:
    """Requests without end, whose answers are not read."""
    conn.open()
    unit = marshal(C.Flow(active=True), conn.channel) * 1000
    while True:
        conn.send(unit, inputs=1000, reading=False)


@attack
def mute(conn: Conn, rng: random.Random) -> None:
    """A broker that takes messages and answers none; then ends the connection inside a confirm."""
    conn.open()
    conn.inputs += 1
    conn.wait(rng.uniform(0, 0.5))
    conn.send(marshal(B.Ack(1), conn.channel)[: rng.randrange(1, 20)])


@attack
def one_confirm_and_gone(conn: Conn, rng: random.Random) -> None:
    """A broker that confirms one message on each connection and ends it."""
    conn.open()
    conn.send(marshal(B.Ack(1), conn.channel), inputs=1)
    conn.wait(0.05)


@attack
def nacks(conn: Conn, rng: random.Random) -> None:
    """A broker that nacks everything."""
    conn.open()
    while True:
        conn.send(marshal(B.Nack(conn.published, multiple=True), conn.channel), inputs=1)
        conn.until(B.Publish)
