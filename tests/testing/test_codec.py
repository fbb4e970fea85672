"""The broker's decoding lets nothing illegal pass."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame, header

from warrener.testing.broker import _codec as codec
from warrener.testing.broker._codec import Framer, IllegalBytes

DECLARE = frame.marshal(
    commands.Queue.Declare(queue="q", durable=True, arguments={"x-max-length": 5, "a": ["b", {"c": 1.5}]}), 1
)
CONTENT = frame.marshal(
    header.ContentHeader(
        body_size=3, properties=commands.Basic.Properties(headers={"t": "x"}, message_id="m", delivery_mode=2)
    ),
    1,
)


def payload(data: bytes) -> bytes:
    return data[7:-1]


def test_decodes_what_is_legal() -> None:
    """Fields by pamqp, tables with the types that the client chose."""
    method = codec.decode_method(payload(DECLARE))
    content = codec.decode_content_header(payload(CONTENT))

    assert ("queue.declare", "q", True) == (method.name, method.fields.queue, method.fields.durable)
    assert ("byte", 5) == method.tables["arguments"]["x-max-length"]
    assert (3, "m", payload(CONTENT)[12:]) == (content.body_size, content.properties.message_id, content.raw_properties)


@pytest.mark.parametrize("data", [DECLARE, CONTENT])
def test_every_truncation_and_every_byte_more_is_illegal(data: bytes) -> None:
    """pamqp itself takes both in silence."""
    whole = payload(data)
    decode = codec.decode_method if data is DECLARE else codec.decode_content_header

    for length in range(len(whole)):
        with pytest.raises(IllegalBytes):
            decode(whole[:length])
    with pytest.raises(IllegalBytes):
        decode(whole + b"\0")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x04", 501),  # no such type of frame
        (b"\x08\x00\x01\x00\x00\x00\x00\xce", 501),  # a heartbeat that is not on channel 0
        (b"\x08\x00\x00\x00\x00\x00\x01x\xce", 501),  # a heartbeat with a payload
        (b"\x01\x00\x01\x00\x00\x00\x01x\xcf", 501),  # another end byte
        (b"\x03\x00\x01\x00\x00\x0f\xf9", 501),  # 4097 bytes and frame_max is 4096
    ],
)
def test_bad_frames(data: bytes, code: int) -> None:
    """A frame is refused as soon as its header, or its end, is there."""
    framer = Framer(4096)
    framer.feed(data)

    with pytest.raises(IllegalBytes) as caught:
        framer.next()

    assert code == caught.value.code


@given(st.lists(st.integers(0, len(DECLARE + CONTENT)), max_size=5))
def test_any_split_gives_the_same_frames(cuts: list[int]) -> None:
    """Framing does not depend on how the bytes arrive (I3)."""
    data, framer, frames = DECLARE + CONTENT, Framer(0), []
    edges = [0, *sorted(cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        framer.feed(data[begin:end])
        while (found := framer.next()) is not None:
            frames.append((found.type, found.channel, found.payload))

    assert [(1, 1, payload(DECLARE)), (2, 1, payload(CONTENT))] == frames


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """Decoding is total: a value, or IllegalBytes (I2)."""
    for decode in (codec.decode_method, codec.decode_content_header):
        for prefix in (b"", b"\x00\x32\x00\x0a", b"\x00<\x00\x00"):
            try:
                decode(prefix + data)
            except IllegalBytes:
                continue


def test_encodes_names_that_pamqp_refuses() -> None:
    """RabbitMQ has no rule for names, so a return may carry any."""
    data = codec.encode_method(
        1, "basic.return", reply_code=312, reply_text="NO_ROUTE", exchange="a b", routing_key="!"
    )

    assert "a b" == codec.decode_method(payload(data)).fields.exchange
