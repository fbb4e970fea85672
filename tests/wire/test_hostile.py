"""A hostile broker, or anyone on the path without TLS: every trick ends in a named fault, and costs no memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from tests.wire.far_side import (
    CREDENTIALS,
    START,
    Sink,
    ack,
    drain,
    marshalled,
    nack,
    opened,
    tuned,
)
from tests.wire.replay import TURN, check, replay
from warrener.records import Envelope
from warrener.wire import ProtocolErrorKind, Session, events, requests
from warrener.wire.codec import MAX_DEPTH, long_string, table
from warrener.wire.framing import BODY, HEADER, METHOD, frame

RETURN = marshalled(commands.Basic.Return(312, "NO_ROUTE", "", "nowhere"), 1)


def header(size: int) -> bytes:
    """A content header that announces `size` bytes."""
    return marshalled(ContentHeader(body_size=size), 1)


def body(data: bytes) -> bytes:
    """A body frame."""
    return marshalled(ContentBody(data), 1)


def deep_table(depth: int) -> bytes:
    """An empty table inside `depth` others."""
    written = table({})
    for _ in range(depth):
        written = long_string(b"\x01tF" + written)
    return written


def start_with(properties: bytes) -> bytes:
    """A Start with these bytes for server-properties."""
    return frame(
        METHOD, 0, commands.Connection.Start.index.to_bytes(4) + b"\x00\x09" + properties + b"\0\0\0\0\0\0\0\0"
    )


def publishing(sink: Sink) -> Session:
    """A session with tags 1 to 5 on channel 1."""
    session = opened(sink)
    for _ in range(5):
        session.publisher(1).publish(Envelope(), "m", b"", None)
    drain(session)
    return session


@pytest.mark.parametrize(
    "tricks",
    [
        # framing
        ack(1)[:-1] + b"\x00",
        frame(METHOD, 1, b"")[:-1] + b"\xcf",
        b"\x05\x00\x01\x00\x00\x00\x00\xce",
        b"\x08\x00\x01\x00\x00\x00\x00\xce",
        b"\x08\x00\x00\x00\x00\x00\x01x\xce",
        b"\x01\x00\x01\xff\xff\xff\xff",
        b"AMQP\x00\x00\x09\x01",
        # methods that are too short, too long, or unknown
        frame(METHOD, 1, b""),
        frame(METHOD, 1, b"\x00\x3c"),
        frame(METHOD, 1, b"\x00\x3c\x00\x50"),
        frame(METHOD, 1, ack(1)[7:-2]),
        frame(METHOD, 1, ack(1)[7:-1] + b"\x00"),
        frame(METHOD, 1, nack(1)[7:-1] + b"\x00"),
        frame(METHOD, 1, b"\xff\xff\xff\xff"),
        frame(METHOD, 1, RETURN[7:-3]),
        frame(METHOD, 0, b"\x00\x0a\x00\x3c\xffshort"),
        # methods that are impossible there
        marshalled(START),
        marshalled(commands.Connection.Tune(0, 0, 0)),
        marshalled(commands.Connection.OpenOk()),
        marshalled(commands.Connection.CloseOk()),
        marshalled(commands.Connection.Secure("more")),
        marshalled(commands.Connection.UpdateSecretOk()),
        marshalled(commands.Connection.Open("/")),
        marshalled(commands.Channel.OpenOk(), 1),
        marshalled(commands.Channel.OpenOk(), 0),
        marshalled(commands.Channel.CloseOk(), 1),
        marshalled(commands.Confirm.SelectOk(), 1),
        marshalled(commands.Basic.QosOk(), 1),
        marshalled(commands.Queue.DeclareOk("q", 0, 0), 1),
        marshalled(commands.Basic.Deliver("c", 1, False, "", "k"), 1),
        marshalled(commands.Basic.GetOk(1, False, "", "k", 0), 1),
        marshalled(commands.Basic.Cancel("c"), 1),
        marshalled(commands.Basic.Publish(), 1),
        marshalled(commands.Connection.Blocked("x"), 1),
        marshalled(commands.Channel.Flow(False), 9),
        marshalled(commands.Channel.Close(404, "", 0, 0), 9),
        ack(1, channel=9),
        # tags
        ack(0),
        ack(6),
        ack(0, multiple=True),
        nack(6, multiple=True),
        frame(METHOD, 1, b"\x00\x3c\x00\x50" + b"\xff" * 8 + b"\x00"),
        # content
        body(b"x"),
        header(1),
        RETURN + body(b"x"),
        RETURN + RETURN,
        RETURN + ack(1),
        RETURN + nack(1),
        RETURN + marshalled(commands.Channel.Flow(False), 1),
        RETURN + marshalled(commands.Channel.Close(404, "", 0, 0), 1),
        RETURN + header(5) + header(5),
        RETURN + header(5) + body(b"123456"),
        RETURN + header(5) + body(b"1234") + ack(1),
        RETURN + header(5) + frame(BODY, 1, b""),
        RETURN + header(0) + body(b"x"),
        RETURN + frame(HEADER, 1, b""),
        RETURN + frame(HEADER, 1, header(5)[7:-1] + b"x"),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 5, 0x8000)),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 5, 0x8000) + b"\xffabc"),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 5, 0x2000) + b"\xff\xff\xff\xff"),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 5, 0x2000) + deep_table(MAX_DEPTH)),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 5, 0x0001) + b"\x00\x00"),
        RETURN + frame(HEADER, 1, struct.pack(">HHQH", 50, 0, 5, 0)),
        frame(HEADER, 0, header(5)[7:-1]),
        frame(BODY, 0, b"x"),
    ],
)
def test_each_trick_is_a_fault(tricks: bytes) -> None:
    """In an open session each of these ends in one fault, in one piece or byte by byte; nothing is sent, none confirmed."""
    outcomes: list[Any] = []
    for size in (len(tricks), 1):
        sink = Sink()
        session = publishing(sink)
        session.beat()
        told = [event for at in range(0, len(tricks), size) for event in session.receive(tricks[at : at + size])]
        (broken,) = told
        assert isinstance(broken, events.ProtocolError)
        assert broken.kind is ProtocolErrorKind.ILLEGAL
        assert [entry for entry in sink.log if entry[0] != "return"] == []
        assert (drain(session), session.residue) == (b"", 0)
        outcomes.append(broken)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "start",
    [
        start_with(deep_table(MAX_DEPTH)),
        start_with(b"\xff\xff\xff\xff"),
        start_with(long_string(b"\x01aA" + long_string(b"\x00" * 8000 + b"?"))),
        start_with(long_string(b"\xff")),
        marshalled(START) + marshalled(START),
        marshalled(START) + marshalled(commands.Connection.OpenOk()),
        marshalled(START) + ack(1),
        marshalled(commands.Connection.Tune(0, 0, 0)),
        b"\x01\x00\x00\x00\x00\x20\x00",
        marshalled(commands.Channel.OpenOk(), 1),
    ],
)
def test_tricks_before_the_login(start: bytes) -> None:
    """The same holds for a peer that nothing is known of yet."""
    session = Session(CREDENTIALS, Sink())
    told = session.receive(start)
    assert [type(event) for event in told] == [events.ProtocolError]
    assert drain(session) == b""


def test_claimed_sizes_are_not_allocated() -> None:
    """Lengths of 4 GiB, bodies of 16 EiB and endless drips cost next to nothing (R19)."""
    sink = Sink()
    session = publishing(sink)
    tracemalloc.start()
    try:
        session.receive(RETURN + header(2**64 - 1))
        for _ in range(2000):
            session.receive(body(b"x" * 8000))
        session.receive(b"\x03\x00\x01\x00\x01\xff\x00" + b"x" * 100_000)
        assert session.residue <= 131_072
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert sink.log == []


@pytest.mark.parametrize("where", ["publisher", "control", "closing control"])
def test_questions_without_end(where: str) -> None:
    """A broker that asks for answers and takes none costs no memory: it is a fault before long (R19)."""
    session = publishing(Sink())
    question = marshalled(commands.Channel.Flow(True), 1)
    if where != "publisher":
        session.request(requests.take_one("q"))
        question = marshalled(commands.Channel.Flow(True), 2)
    if where == "closing control":
        session.release_control()
        question = marshalled(commands.Channel.Close(404, "", 0, 0), 2)
    drain(session)
    told = session.receive(question * 20_000)
    assert [type(event) for event in told] == [events.ProtocolError]
    assert drain(session) == b""


def test_questions_whose_answers_are_taken() -> None:
    """A broker may ask as often as it likes, as long as it takes the answers."""
    session = publishing(Sink())
    for _ in range(20):
        assert session.receive(marshalled(commands.Channel.Flow(True), 1) * 500) == []
        assert len(drain(session)) == 500 * len(marshalled(commands.Channel.FlowOk(True), 1))


def test_texts_are_one_printable_line() -> None:
    """Text from the broker cannot forge lines, move a cursor or reverse reading, wherever it comes from."""
    session = tuned()
    nasty = "a\r\n\x1b[2J\u202eb\x00"
    told = session.receive(marshalled(commands.Connection.Close(320, nasty, 0, 0)))
    assert repr(told[0]).count("\\\\r\\\\n\\\\x1b") == 1
    assert isinstance(told[0], events.CloseReceived)
    assert told[0].reply_text == "a\\r\\n\\x1b[2J\\u202eb\\x00"


#: What a RabbitMQ sent in real sessions, turn by turn; fuzz/record.py makes them anew.
RECORDINGS = {
    path.name: path.read_bytes() for path in (Path(__file__).parents[1] / "fuzz" / "corpus" / "wire").iterdir()
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a-whole-life", "Tuned Opened ChannelOpened Replied GetResult Refused Closed ack nack return"),
        ("an-alarm", "Tuned Opened ChannelOpened Replied GetResult Blocked Unblocked Closed ack nack return"),
        ("the-exchange-is-gone", "Tuned Opened ChannelOpened ChannelClosed Replied GetResult Closed ack return"),
        ("an-operator-closes", "Tuned Opened ChannelOpened Replied GetResult CloseReceived ack nack return"),
        ("a-wrong-password", "CloseReceived"),
        ("a-missing-vhost", "Tuned CloseReceived"),
    ],
)
def test_recorded_sessions(name: str, expected: str) -> None:
    """A recording leads through the session that it was taken from: the corpus reaches what it is there to reach."""
    told, log, _ = replay(RECORDINGS[name], 1 << 20, strictly=True)
    reached = {type(event).__name__ for event in told} | {entry[0] for entry in log}
    assert set(expected.split()) - reached == set()
    assert "ProtocolError" not in reached
    check(RECORDINGS[name])


def mutate(data: st.DataObject, capture: bytes) -> bytes:
    """The capture with up to five changes."""
    mutant = bytearray(capture)
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, len(mutant) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "repeat"])):
            case "set":
                mutant[at] = data.draw(st.integers(0, 255))
            case "cut" if len(mutant) > 30:
                del mutant[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                mutant[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                mutant[at:at] = mutant[at : at + 30]
    return bytes(mutant)


@given(st.sampled_from(sorted(RECORDINGS)), st.data())
def test_mutated_recordings(name: str, data: st.DataObject) -> None:
    """A recording with changes never raises, costs no memory, and says the same in any pieces; what is sent is legal.

    (I2, I3, R18, R19; `check` has the claims one by one.)
    """
    check(mutate(data, RECORDINGS[name]))


@given(st.binary(max_size=2000), st.integers(0, 17))
def test_any_bytes_after_any_turn(data: bytes, turn: int) -> None:
    """The same for bytes that nobody recorded, after any number of turns that somebody did."""
    turns = RECORDINGS["a-whole-life"].split(TURN)
    check(TURN.join([*turns[:turn], data]))


@pytest.mark.full
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no build for this system and Python")
@pytest.mark.parametrize("name", ["a number one byte short", "a frame's size unchecked"])
def test_the_fuzzer_finds_a_planted_length_bug(name: str) -> None:
    """A wrong length, planted in a copy of the package, is found by a bounded run (fuzz/planted.py has more of them)."""
    planted = Path(__file__).parents[1] / "fuzz" / "planted.py"
    done = subprocess.run([sys.executable, planted, name], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
