from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from tests.wire.far_side import ack, marshalled, nack
from warrener.wire.codec import Malformed
from warrener.wire.framing import FLOOR, HEARTBEAT, Parser, frame

STREAM = b"".join(
    (
        marshalled(commands.Channel.OpenOk(), 1),
        ack(1),
        HEARTBEAT,
        nack(7, multiple=True, channel=3),
        frame(3, 1, b"\xce" * 20),
        frame(2, 1, b""),
        ack(2**63 - 1, multiple=True),
        HEARTBEAT,
    )
)
SEEN: list[tuple[Any, ...]] = [
    ("frame", 1, 1, bytes(marshalled(commands.Channel.OpenOk(), 1)[7:-1])),
    ("ack", 1, 1, False),
    ("nack", 3, 7, True),
    ("frame", 3, 1, b"\xce" * 20),
    ("frame", 2, 1, b""),
    ("ack", 1, 2**63 - 1, True),
]


def recording_parser() -> tuple[Parser, list[tuple[Any, ...]]]:
    """A parser, and the list in which its calls are noted."""
    log: list[tuple[Any, ...]] = []
    parser = Parser(
        lambda *confirm: log.append(("ack", *confirm)),
        lambda *confirm: log.append(("nack", *confirm)),
        lambda kind, channel, payload: log.append(("frame", kind, channel, bytes(payload))),
    )
    return parser, log


def test_whole() -> None:
    """One piece gives all frames in order, confirms by the short way."""
    parser, log = recording_parser()
    parser.feed(STREAM)
    assert log == SEEN
    assert parser.residue == 0


@pytest.mark.parametrize("at", range(len(STREAM)))
def test_cut_anywhere(at: int) -> None:
    """Two pieces give what one gives, wherever the cut is."""
    parser, log = recording_parser()
    parser.feed(STREAM[:at])
    parser.feed(STREAM[at:])
    assert log == SEEN


def test_byte_by_byte_with_another_frame_begun() -> None:
    """Single bytes give what one piece gives; an unfinished frame is kept and not reported."""
    parser, log = recording_parser()
    for byte in STREAM + ack(9)[:-1]:
        parser.feed(bytes([byte]))
    assert log == SEEN
    assert parser.residue == len(ack(9)) - 1


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_split(cuts: list[int]) -> None:
    """Any split gives what one piece gives (I3)."""
    parser, log = recording_parser()
    at = 0
    for cut in [*sorted(cuts), len(STREAM)]:
        parser.feed(STREAM[at:cut])
        at = cut
    assert log == SEEN


@given(st.integers(1, 65_535), st.integers(0, 2**63 - 1), st.booleans(), st.booleans(), st.integers(0, 42))
def test_pamqp_writes_the_confirms(channel: int, tag: int, multiple: bool, positive: bool, cut: int) -> None:
    """ConfirmHandler of any channel and tag, written by pamqp and cut anywhere, are read by the short way as what they are."""
    parser, log = recording_parser()
    stream = (ack if positive else nack)(tag, multiple, channel) * 2
    parser.feed(stream[:cut])
    parser.feed(stream[cut:])
    assert log == [("ack" if positive else "nack", channel, tag, multiple)] * 2


def test_a_method_as_long_as_a_confirm() -> None:
    """Thirteen bytes of another method are a frame like any other."""
    parser, log = recording_parser()
    parser.feed(frame(1, 1, b"\x00\x3c\x00\x1e" + bytes(9)))
    assert log == [("frame", 1, 1, b"\x00\x3c\x00\x1e" + bytes(9))]


def test_completions_count_ends_of_frames_only() -> None:
    """Bytes that end no frame leave `completions` as it is: what a frame's deadline rests on."""
    parser, _ = recording_parser()
    parser.feed(ack(1)[:20])
    assert parser.completions == 0
    parser.feed(ack(1)[20:])
    assert parser.completions == 1


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"\x01\x00\x00\x00\x00\x1f\xf9", "larger than"),  # one byte over the floor
        (b"\x03\x00\x01\xff\xff\xff\xff", "larger than"),
        (b"\x00\x00\x00\x00\x00\x00\x00", "unknown type"),
        (b"\x04\x00\x01\x00\x00\x00\x08", "unknown type"),
        (b"AMQP\x00\x00\x09", "unknown type"),
        (b"\x08\x00\x01\x00\x00\x00\x00", "heartbeat"),
        (b"\x08\x00\x00\x00\x00\x00\x01", "heartbeat"),
        (b"\x02\x00\x00\x00\x00\x00\x0e", "channel 0"),
        (b"\x03\x00\x00\x00\x00\x00\x01", "channel 0"),
    ],
)
def test_judged_by_seven_bytes(header: bytes, why: str) -> None:
    """A frame that cannot be legal is refused with the seventh byte, before anything of it is kept."""
    parser, log = recording_parser()
    parser.feed(header[:6])
    with pytest.raises(Malformed, match=why):
        parser.feed(header[6:])
    assert log == []
    assert parser.residue == 0


def test_largest_frame() -> None:
    """A frame of exactly the cap is legal."""
    parser, log = recording_parser()
    parser.feed(frame(1, 1, bytes(FLOOR - 8)))
    assert [entry[:3] for entry in log] == [("frame", 1, 1)]


def test_frames_before_the_illegal_one_count() -> None:
    """What came whole before an illegal frame was reported (confirms in it are true)."""
    parser, log = recording_parser()
    with pytest.raises(Malformed, match="in place of 0xce"):
        parser.feed(ack(1) + ack(2)[:-1] + b"\x00")
    assert log == [("ack", 1, 1, False)]


@given(st.binary(max_size=200))
def test_residue_is_bounded(data: bytes) -> None:
    """Whatever comes, no more than the cap is held."""
    parser, _ = recording_parser()
    try:
        for at in range(0, len(data), 7):
            parser.feed(data[at : at + 7])
            assert parser.residue <= FLOOR
    except Malformed:
        assert parser.residue == 0
