"""`Publisher.publish_batch` puts the same bytes on the wire as a loop of `publish`, under the same tags."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener._ids import IdRange
from warrener.records import Envelope
from warrener.wire.channel import ChannelState, Outgoing, Publisher

ENVELOPES = (Envelope(routing_key="a"), Envelope("x", "bb", headers={"h": 1}, app_id="app"), Envelope(routing_key="a"))
PREFIX = "0123456789abcdef0123"


def channel(frame_max: int = 4096) -> Publisher:
    """Return an open channel."""
    publisher = Publisher(1, 1, frame_max, Outgoing(), state=ChannelState.READY)
    publisher.outgoing.publishers.append(publisher)
    return publisher


def taken(publisher: Publisher) -> bytes:
    """Take all bytes."""
    parcels: list[bytes] = []
    while data := publisher.outgoing.take():
        parcels.append(data)
    return b"".join(parcels)


sizes = st.sampled_from([0, 0, 5, 5, 5, 200, 4088, 4089, 9000])


@given(
    st.lists(st.tuples(st.sampled_from(ENVELOPES), sizes, st.integers(1, 40)), min_size=1, max_size=8),
    st.sampled_from([1 << 47, (1 << 47) + 4090, 4095]),
    st.booleans(),
)
def test_a_batch_is_a_loop(groups: Sequence[tuple[Envelope, int, int]], first: int, as_text: bool) -> None:
    """Any envelopes and sizes, alike or not; digits of the id that carry over; ids as a range or as texts."""
    envelopes = [envelope for envelope, _, count in groups for _ in range(count)]
    bodies = [bytes([at % 256]) * size for at, (_, size, count) in enumerate(groups) for _ in range(count)]
    ids = IdRange(PREFIX, first, len(bodies))
    one, batch = channel(), channel()
    for envelope, message_id, body in zip(envelopes, ids, bodies, strict=True):
        one.publish(envelope, message_id, body, None)
    assert batch.publish_batch(envelopes, list(ids) if as_text else ids, bodies) == 1
    assert batch.last_tag == one.last_tag == len(bodies)
    assert taken(batch) == taken(one)
    assert batch.written == batch.begun == len(bodies)
    assert batch.publish_batch(envelopes, ids, bodies) == len(bodies) + 1


own_ids = st.sampled_from(["0" * 32, "é" * 16, "é" * 32, "", "short", "x" * 255])


@given(
    st.lists(st.tuples(st.sampled_from(ENVELOPES), sizes, st.integers(1, 40), own_ids), min_size=1, max_size=8),
    st.sampled_from([1 << 47, (1 << 47) + 4090, 4095]),
)
def test_a_batch_with_tokens_is_a_loop(groups: Sequence[tuple[Envelope, int, int, str]], first: int) -> None:
    """Any envelopes, sizes and ids; tokens as a range."""
    envelopes = [envelope for envelope, _, count, _ in groups for _ in range(count)]
    bodies = [bytes([at % 256]) * size for at, (_, size, count, _) in enumerate(groups) for _ in range(count)]
    ids = [own for _, _, count, own in groups for _ in range(count)]
    tokens = IdRange(PREFIX, first, len(bodies))
    one, batch = channel(), channel()
    for envelope, message_id, body, token in zip(envelopes, ids, bodies, tokens, strict=True):
        one.publish(envelope, message_id, body, token)
    assert batch.publish_batch(envelopes, ids, bodies, tokens) == 1
    assert batch.last_tag == one.last_tag == len(bodies)
    assert taken(batch) == taken(one)
    assert batch.written == batch.begun == len(bodies)
    assert batch.publish_batch(envelopes, ids, bodies, tokens) == len(bodies) + 1


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_large_batch_is_written_in_parcels(with_tokens: bool) -> None:
    """`written` grows with each parcel, and never beyond the bytes that were taken."""
    publisher = channel(131_072)
    count, size = 1000, 300
    ids = IdRange(PREFIX, 1, count)
    tokens = {"tokens": ids} if with_tokens else {}
    publisher.publish_batch([ENVELOPES[0]] * count, ids[:] if with_tokens else ids, [bytes(size)] * count, **tokens)
    seen, length = 0, 0
    steps: list[int] = []
    while data := publisher.outgoing.take():
        length += len(data)
        assert 60_000 < len(data) < 70_000 or publisher.written == count
        assert publisher.written > seen
        seen = publisher.written
        steps.append(seen)
    assert steps[-1] == count
    assert len(steps) >= 5
    assert length % count == 0


def test_a_batch_on_a_closed_channel_takes_tags_and_sends_nothing() -> None:
    """As one publish does."""
    publisher = channel()
    publisher.end()
    assert publisher.publish_batch([ENVELOPES[0]] * 3, IdRange(PREFIX, 1, 3), [b"x"] * 3) == 1
    assert (publisher.last_tag, publisher.written, taken(publisher)) == (3, 0, b"")


def test_a_range_of_ids_is_a_sequence_of_text() -> None:
    """Read one by one, by slices, and from the end."""
    ids = IdRange("p" * 20, 255, 3)
    texts = ["p" * 20 + "0000000000ff", "p" * 20 + "000000000100", "p" * 20 + "000000000101"]
    assert list(ids) == texts
    assert ids[1:] == texts[1:]
    assert ids[-1] == texts[-1]
    assert len(ids) == 3
