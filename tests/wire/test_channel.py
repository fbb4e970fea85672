from __future__ import annotations

import re
import tracemalloc
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands

from tests.wire.far_side import Published, Sink, StrictReader, ack, drain, marshalled, nack, opened, returned
from tests.wire.test_codec import TABLES, plain
from warrener.records import Envelope, Returned
from warrener.wire import Session, events

ID = "0123456789abcdef0123456789abcdef"
TOKEN = "t" * 32

SHORT = st.text(max_size=60)
HEADERS = TABLES.filter(lambda headers: "x-warrener-token" not in headers)
ENVELOPES = st.builds(
    Envelope,
    exchange=SHORT,
    routing_key=SHORT,
    mandatory=st.booleans(),
    headers=st.none() | HEADERS,
    content_type=st.none() | SHORT,
    content_encoding=st.none() | SHORT,
    delivery_mode=st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | SHORT,
    reply_to=st.none() | SHORT,
    expiration=st.none() | st.integers(0, 10**9).map(str),
    timestamp=st.none() | st.just(datetime(2024, 2, 29, 12, tzinfo=UTC)),
    type=st.none() | SHORT,
    user_id=st.none() | SHORT,
    app_id=st.none() | SHORT,
)
#: The fields of an envelope and pamqp's names for them.
PROPERTIES = {
    "content_type": "content_type",
    "content_encoding": "content_encoding",
    "delivery_mode": "delivery_mode",
    "priority": "priority",
    "correlation_id": "correlation_id",
    "reply_to": "reply_to",
    "expiration": "expiration",
    "timestamp": "timestamp",
    "type": "message_type",
    "user_id": "user_id",
    "app_id": "app_id",
}


def read(session: Session, frame_max: int = 131_072) -> list[Published]:
    """What the session has published, read strictly and by pamqp."""
    reader = StrictReader(frame_max=frame_max)
    reader.feed(drain(session))
    assert reader.at_boundary
    return reader.published


def check(message: Published, envelope: Envelope, message_id: str, body: bytes, token: str | None) -> None:
    """Compare what pamqp read with what was published."""
    assert (message.method.exchange, message.method.routing_key) == (envelope.exchange, envelope.routing_key)
    assert (message.method.mandatory, message.method.immediate) == (envelope.mandatory, False)
    assert message.body == body
    properties = message.header.properties
    assert properties.message_id == message_id
    for ours, theirs in PROPERTIES.items():
        assert getattr(properties, theirs) == getattr(envelope, ours)
    headers = plain(dict(properties.headers or {}))
    assert headers.pop("x-warrener-token", None) == token
    assert headers == (envelope.headers or {})


# --- publishing ---------------------------------------------------------------------------------------------------


@given(
    ENVELOPES, st.lists(st.tuples(st.just(ID) | SHORT, st.binary(max_size=300), st.none() | st.just(TOKEN)), max_size=5)
)
def test_pamqp_reads_what_was_published(envelope: Envelope, messages: list[tuple[str, bytes, str | None]]) -> None:
    """Whatever the envelope, id, body and token: pamqp reads the same; a cached envelope changes nothing."""
    session = opened()
    publisher = session.publisher(1)
    for message_id, body, token in messages:
        assert publisher.validate(envelope, message_id, body, token) is None
        publisher.publish(envelope, message_id, body, token)
    published = read(session)
    for message, (message_id, body, token) in zip(published, messages, strict=True):
        check(message, envelope, message_id, body, token)


@pytest.mark.parametrize("message_id", [ID, "short", "é" * 16], ids=["32", "5", "16 letters in 32 bytes"])
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8175, 8176, 8177, 12_264, 100_000])
def test_bodies_around_the_frame_size(size: int, token: str | None, message_id: str) -> None:
    """Bodies at frame_max - 8, one less and one more, and multiples: as many frames as needed, none empty (I28)."""
    session = opened(frame_max=4096)
    body = bytes(range(256)) * (size // 256 + 1)
    envelope = Envelope(routing_key="k", content_type="text/plain", headers={"a": 1})
    session.publisher(1).publish(envelope, message_id, body[:size], token)
    (message,) = read(session, frame_max=4096)
    check(message, envelope, message_id, body[:size], token)


@pytest.mark.parametrize("text", ["a" * 255, "é" * 127 + "a"])
def test_short_strings_of_255_bytes(text: str) -> None:
    """Every short string of a publish may have 255 bytes, however many letters they are; pamqp reads them whole."""
    session = opened()
    strings = ("exchange", "routing_key", "content_type", "content_encoding", "correlation_id", "reply_to", "type", "user_id", "app_id")  # fmt: skip
    envelope = Envelope(**dict.fromkeys(strings, text))
    publisher = session.publisher(1)
    assert publisher.validate(envelope, text, b"body", None) is None
    publisher.publish(envelope, text, b"body", None)
    (message,) = read(session)
    check(message, envelope, text, b"body", None)


def test_equal_message_ids_in_flight() -> None:
    """Two messages with one id, key and body have a tag each, and a token tells whose the return is (I37)."""
    sink = Sink()
    session = opened(sink)
    tags = [session.publisher(1).publish(Envelope(), "same", b"x", token) for token in ("t" * 32, "u" * 32)]
    one, two = read(session)
    assert (one.header.properties.message_id, two.header.properties.message_id) == ("same", "same")
    session.receive(returned(b"x", two.header.properties) + ack(2) + ack(1))
    assert tags == [1, 2]
    assert [entry[2].token if entry[0] == "return" else entry[2] for entry in sink.log] == ["u" * 32, 2, 1]


def test_equal_envelopes_of_different_channels() -> None:
    """What is cached for one channel is not used on another."""
    session = opened(publishers=2)
    envelope = Envelope(routing_key="k")
    for number in (1, 2, 1, 2):
        session.publisher(number).publish(envelope, ID, b"x", None)
    assert [message.channel for message in read(session)] == [1, 2, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("many", ["envelopes", "sizes", "long headers", "headers beyond the frame"])
def test_what_is_kept_encoded_is_bounded(many: str) -> None:
    """Neither many envelopes nor many sizes nor long headers make a channel grow beyond four mebibytes (I34)."""
    session = opened()
    publisher = session.publisher(1)
    envelope = Envelope()
    tracemalloc.start()
    try:
        for number in range(10_000 if many in ("envelopes", "sizes") else 100):
            match many:
                case "envelopes":
                    publisher.publish(Envelope(), ID, b"", None)
                case "sizes":
                    publisher.publish(envelope, ID, bytes(number), None)
                case "long headers":
                    publisher.publish(Envelope(headers={"x": f"{number:0100000}"}), ID, b"", TOKEN)
                case _:
                    assert publisher.validate(Envelope(headers={"x": f"{number:01000000}"}), ID, b"", None)
            drain(session)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept <= 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("changes", "message_id", "why"),
    [
        ({"headers": {"x": float("nan")}}, ID, r"headers\['x'\] is nan"),
        ({"headers": {"x": 2**70}}, ID, "64 bits"),
        ({"headers": {1: "x"}}, ID, "not str"),
        ({"headers": {"x-warrener-token": "mine"}}, ID, "reserved"),
        ({"headers": {"x": "y" * 131_072}}, ID, "frame_max"),
        ({"routing_key": "é" * 128}, ID, "256 bytes"),
        ({"exchange": "e" * 256}, ID, "256 bytes"),
        ({"type": "e" * 256}, ID, "^type is 256 bytes"),
        ({"expiration": "\ud800"}, ID, "UTF-8"),
        ({"priority": 256}, ID, "priority"),
        ({"timestamp": datetime(1950, 1, 1, tzinfo=UTC)}, ID, "1970"),
        ({}, "é" * 128, "message_id is 256 bytes"),
        ({}, "\ud800", "message_id"),
    ],
)
def test_what_cannot_be_sent_is_said_before_a_tag_exists(changes: dict[str, Any], message_id: str, why: str) -> None:
    """`validate` names the reason; no tag is used up by it."""
    session = opened()
    publisher = session.publisher(1)
    reason = publisher.validate(Envelope(**changes), message_id, b"", None)
    assert reason is not None
    assert re.search(why, reason), reason
    assert (publisher.last_tag, drain(session)) == (0, b"")


@pytest.mark.parametrize("token", [None, TOKEN])
def test_header_frames_up_to_frame_max(token: str | None) -> None:
    """A header frame of exactly frame_max is sent, one byte more is refused, with and without a token."""
    session = opened(frame_max=4096)
    publisher = session.publisher(1)
    sizes = range(3900, 4096)
    verdicts = [publisher.validate(Envelope(headers={"x": "y" * size}), ID, b"", token) for size in sizes]
    largest = sizes[verdicts.index(next(verdict for verdict in verdicts if verdict)) - 1]
    publisher.publish(Envelope(headers={"x": "y" * largest}), ID, b"", token)
    sent = drain(session)
    assert len(sent) - sent.index(b"\xce\x02") - 1 == 4096
    StrictReader(frame_max=4096).feed(sent)


def test_a_body_that_would_close_the_connection() -> None:
    """A body beyond RabbitMQ's absolute limit is refused here, lest it cost everybody the connection."""

    class Vast(bytes):
        def __len__(self) -> int:
            return 512 * 1024 * 1024 + 1

    assert "536,870,912" in (opened().publisher(1).validate(Envelope(), ID, Vast(), None) or "")


# --- what counts as written -----------------------------------------------------------------------------------------


def test_written_counts_what_was_given_out() -> None:
    """A tag is written from the call on that gives out its last byte (I18)."""
    session = opened()
    publisher = session.publisher(1)
    for _ in range(3):
        publisher.publish(Envelope(), ID, b"x", None)
    assert publisher.written == 0
    session.data_to_send()
    assert publisher.written == 3


def test_a_message_that_is_given_out_in_parts() -> None:
    """Of a message that takes several sends, the tag is written with the last of them, the ones before it earlier."""
    session = opened()
    publisher = session.publisher(1)
    publisher.publish(Envelope(), ID, b"small", None)
    publisher.publish(Envelope(), ID, b"x" * 300_000, None)
    publisher.publish(Envelope(), ID, b"small", None)
    written = []
    while session.data_to_send():
        written.append(publisher.written)
    assert len(written) > 2
    assert written == sorted(written)
    assert written[0] == 1
    assert written[-2] in (1, 2)
    assert written[-1] == 3
    assert session.backlog == 0


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=6), st.integers(0, 20), st.sampled_from([None, TOKEN]))
@example([131_064 + 70_000], 2, None)
@example([70_000], 1, TOKEN)
def test_begun_and_written_are_exact(sizes: list[int], takes: int, token: str | None) -> None:
    """After any number of takings exactly the messages whose last byte was taken are written, and the next may be begun."""
    session = opened()
    publisher = session.publisher(1)
    for size in sizes:
        publisher.publish(Envelope(), ID, b"x" * size, token)
    reader = StrictReader(frame_max=131_072)
    for _ in range(takes):
        reader.feed(session.data_to_send())
        assert publisher.written == len(reader.published)
        assert publisher.begun == publisher.written + bool(reader._partial)


def test_written_of_a_closed_channel_stands() -> None:
    """What goes out after the broker closed the channel is discarded there and changes nothing (I14)."""
    session = opened()
    publisher = session.publisher(1)
    publisher.publish(Envelope(), ID, b"x" * 100_000, None)
    publisher.publish(Envelope(), ID, b"x", None)
    (closed,) = session.receive(marshalled(commands.Channel.Close(404, "", 60, 40), 1))
    assert isinstance(closed, events.ChannelClosed)
    assert (closed.written, closed.begun) == (0, 0)
    drain(session)
    assert (publisher.written, publisher.begun) == (0, 0)


def test_a_channel_that_is_closed_inside_a_message() -> None:
    """The broker has seen the method of a large message only: the message is begun and not written."""
    session = opened()
    publisher = session.publisher(1)
    publisher.publish(Envelope(), ID, b"small", None)
    publisher.publish(Envelope(), ID, b"x" * 1_000_000, None)
    session.data_to_send()
    (closed,) = session.receive(marshalled(commands.Channel.Close(404, "", 60, 40), 1))
    assert isinstance(closed, events.ChannelClosed)
    assert (closed.written, closed.begun) == (1, 2)


@pytest.mark.parametrize("confirm", [ack, nack])
def test_a_confirm_before_the_last_byte(confirm: Any) -> None:
    """A broker cannot answer for a message of which it does not have all bytes."""
    sink = Sink()
    session = opened(sink)
    publisher = session.publisher(1)
    publisher.publish(Envelope(), ID, b"x" * 1_000_000, None)
    session.data_to_send()
    assert publisher.begun == 1
    (broken,) = session.receive(confirm(1))
    assert isinstance(broken, events.ProtocolError)
    assert sink.log == []


# --- confirms -----------------------------------------------------------------------------------------------------


@st.composite
def confirms(draw: st.DrawFn) -> tuple[int, dict[int, str], list[tuple[str, int, bool]]]:
    """Verdicts on n tags, and a legal way to tell them: reordered, and coalesced where `multiple` can say it."""
    count = draw(st.integers(1, 12))
    verdicts = {tag: draw(st.sampled_from(["ack", "nack"])) for tag in range(1, count + 1)}
    left = dict(verdicts)
    told: list[tuple[str, int, bool]] = []
    while left:
        tag = draw(st.sampled_from(sorted(left)))
        covered = [each for each in left if each <= tag]
        multiple = all(left[each] == left[tag] for each in covered) and draw(st.booleans())
        told.append((left[tag], tag, multiple))
        for each in covered if multiple else [tag]:
            del left[each]
    return count, verdicts, told


def settle(count: int, log: list[tuple[Any, ...]]) -> dict[int, str]:
    """The naive model: each confirm settles the open tags that it covers."""
    settled: dict[int, str] = {}
    for kind, _, tag, multiple in log:
        for each in range(1, tag + 1) if multiple else [tag]:
            if each <= count:
                settled.setdefault(each, kind)
    return settled


@given(confirms(), st.integers(1, 40))
@example((9, dict.fromkeys(range(1, 10), "ack"), [("ack", 5, True), ("ack", 9, False), ("ack", 8, True)]), 7)
def test_any_coalescing_and_order_gives_the_same_verdicts(
    case: tuple[int, dict[int, str], list[tuple[str, int, bool]]], piece: int
) -> None:
    """Confirms coalesced and reordered in any legal way, in any pieces, settle what single ones do (I8, I11)."""
    count, verdicts, told = case
    sink = Sink()
    session = opened(sink)
    for _ in range(count):
        session.publisher(1).publish(Envelope(), ID, b"", None)
    drain(session)
    stream = b"".join((ack if kind == "ack" else nack)(tag, multiple) for kind, tag, multiple in told)
    for at in range(0, len(stream), piece):
        assert session.receive(stream[at : at + piece]) == []
    assert sink.log == [(kind, 1, tag, multiple) for kind, tag, multiple in told]
    assert settle(count, sink.log) == verdicts


@pytest.mark.parametrize("confirm", [ack, nack])
@pytest.mark.parametrize(("tag", "multiple"), [(0, False), (0, True), (4, False), (4, True), (2**63 - 1, False)])
def test_tags_that_were_never_assigned(confirm: Any, tag: int, multiple: bool) -> None:
    """Tag 0 and tags beyond the last are a fault, and confirm nothing (I9)."""
    sink = Sink()
    session = opened(sink)
    for _ in range(3):
        session.publisher(1).publish(Envelope(), ID, b"", None)
    drain(session)
    (broken,) = session.receive(confirm(1) + confirm(tag, multiple))
    assert isinstance(broken, events.ProtocolError)
    assert [entry[2] for entry in sink.log] == [1]


def test_confirms_on_channels_without_publishes() -> None:
    """A confirm for a channel that is not there, or only opening, or not for publishing, is a fault."""
    for channel in (1, 2, 3, 0):
        session = opened()
        session.open_publisher()
        (broken,) = session.receive(ack(1, channel=channel))
        assert isinstance(broken, events.ProtocolError), channel


# --- returns --------------------------------------------------------------------------------------------------------


def published_session(sink: Sink, count: int = 10) -> Session:
    """A session with tags 1 to `count` handed out."""
    session = opened(sink)
    for _ in range(count):
        session.publisher(1).publish(Envelope(), ID, b"", None)
    drain(session)
    return session


@pytest.mark.parametrize("between", range(1, 9))
@pytest.mark.parametrize("cut", [1, 5, 64, 10_000])
def test_a_return_and_its_ack_with_confirms_between(between: int, cut: int) -> None:
    """A return is told where it stands among the confirms, however many come before its own ack (F3, I13)."""
    sink = Sink()
    session = published_session(sink)
    properties = commands.Basic.Properties(message_id="mine", headers={"x-warrener-token": TOKEN, "other": [1]})
    stream = returned(b"body", properties) + b"".join(ack(tag) for tag in range(1, between + 1)) + ack(9)
    for at in range(0, len(stream), cut):
        session.receive(stream[at : at + cut])
    digest = blake2b(b"body", digest_size=16).digest()
    shown = "exchange '', routing key 'nowhere', message mine"
    expected = Returned(312, "NO_ROUTE", "", "nowhere", "mine", TOKEN, 4, digest, shown=shown)
    assert sink.log == [
        ("return", 1, expected),
        *[("ack", 1, tag, False) for tag in range(1, between + 1)],
        ("ack", 1, 9, False),
    ]
    assert sink.log[0][2].body_hash == expected.body_hash


def test_a_return_with_an_empty_body() -> None:
    """A content header with body size 0 completes the return; no body frame follows."""
    sink = Sink()
    session = published_session(sink)
    session.receive(returned() + ack(1))
    assert [entry[0] for entry in sink.log] == ["return", "ack"]
    assert (sink.log[0][2].message_id, sink.log[0][2].token, sink.log[0][2].body_size) == (None, None, 0)


@pytest.mark.parametrize("size", [1, 4087, 4088, 4089, 200_000])
def test_returned_bodies_are_hashed_and_not_kept(size: int) -> None:
    """A body of any size is hashed as it comes; beyond `max_inbound_body` too, and none of it is held (R19)."""
    sink = Sink()
    session = opened(sink, max_inbound_body=1000, frame_max=4096)
    session.publisher(1).publish(Envelope(), ID, b"", None)
    body = bytes(range(251)) * (size // 251 + 1)
    session.receive(returned(body[:size], pieces=4088))
    (entry,) = sink.log
    assert (entry[2].body_size, entry[2].body_hash) == (size, blake2b(body[:size], digest_size=16).digest())
    assert session.residue == 0


def test_contents_of_two_channels_may_interleave() -> None:
    """Frames of another channel, heartbeats and the connection's methods may stand inside a content."""
    sink = Sink()
    session = opened(sink, publishers=2)
    for channel in (1, 2):
        session.publisher(channel).publish(Envelope(), ID, b"", None)
    drain(session)
    one, two = returned(b"one", channel=1), returned(b"two", channel=2)
    head_one, head_two = one[: -len(b"one") - 8], two[: -len(b"two") - 8]
    blocked = marshalled(commands.Connection.Blocked("memory"))
    tail_one, tail_two = one.removeprefix(head_one), two.removeprefix(head_two)
    assert session.receive(head_one + head_two + blocked + tail_two + ack(1, channel=2) + tail_one + ack(1)) == [
        events.Blocked("memory")
    ]
    assert [(entry[0], entry[1]) for entry in sink.log] == [("return", 2), ("ack", 2), ("return", 1), ("ack", 1)]
