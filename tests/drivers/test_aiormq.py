"""The transport of the aiormq driver: frames in any split, and the exact mark of what may have reached the network."""

from __future__ import annotations

import logging
import struct
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from warrener.drivers.aiormq import _frames as frames
from warrener.drivers.aiormq._encoding import properties_of
from warrener.drivers.aiormq._frames import FrameFilter
from warrener.drivers.aiormq._link import AiormqLink
from warrener.drivers.aiormq._transport import Epoch, FilteringTransport, Parcel
from warrener.drivers.base import Lane, LinkDown
from warrener.errors import Fault, FaultKind
from warrener.records import Envelope


class _Recorder:
    """A filter that writes down what it takes from the stream."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        methods = {frames.BLOCKED: self._take, frames.CHANNEL_OPEN_OK: lambda _, frame: frame}
        self.filter = FrameFilter(methods, self._content, self._confirm)
        self.filter.channels = {0, 1, 2}

    def _take(self, channel: int, frame: bytes) -> bytes | None:
        self.seen.append(("method", channel, frame))

    def _content(self, kind: int, channel: int, frame: bytes) -> bool:
        self.seen.append((kind, channel, frame))
        return True

    def _confirm(self, channel: int, tag: int, multiple: bool, negative: bool) -> None:
        self.seen.append((channel, tag, multiple, negative))


_BLOCKED = pamqp.frame.marshal(commands.Connection.Blocked("low on memory"), 0)
_HEADER = pamqp.frame.marshal(ContentHeader(body_size=3), 1)
_BODY = pamqp.frame.marshal(ContentBody(b"abc"), 1)
_OTHERS = [pamqp.frame.marshal(commands.Channel.OpenOk(), channel) for channel in (1, 2)]
_STREAM = b"".join(
    [
        _OTHERS[0],
        pamqp.frame.marshal(commands.Basic.Ack(7, multiple=True), 1),
        _BLOCKED,
        _OTHERS[1],
        pamqp.frame.marshal(commands.Basic.Nack(9, requeue=True), 1),
        _HEADER,
        _BODY,
    ]
)
_SEEN = [(1, 7, True, False), ("method", 0, _BLOCKED), (1, 9, False, True), (2, 1, _HEADER), (3, 1, _BODY)]


@given(cuts=st.lists(st.integers(0, len(_STREAM)), max_size=20))
def test_frames_in_any_split(cuts: list[int]) -> None:
    """However the bytes arrive, the same events are taken and the same whole frames are passed on."""
    recorder = _Recorder()
    edges = [0, *sorted(cuts), len(_STREAM)]
    passed = [recorder.filter.feed(_STREAM[a:b]) for a, b in pairwise(edges) if b > a]
    assert recorder.seen == _SEEN
    assert b"".join(passed) == b"".join(_OTHERS)
    assert not recorder.filter.in_frame


def test_frames_byte_by_byte() -> None:
    """One byte at a time too, and nothing is passed on before its frame is whole."""
    recorder = _Recorder()
    passed = [recorder.filter.feed(_STREAM[at : at + 1]) for at in range(len(_STREAM))]
    assert recorder.seen == _SEEN
    assert [each for each in passed if each] == _OTHERS


def test_a_frame_over_the_limit_is_refused_by_its_first_bytes() -> None:
    """Seven bytes suffice; the limit before the tuning is 8192, end byte and all."""
    at_limit = struct.pack(">BHI", 3, 1, 8192 - 8) + bytes(8192 - 8) + b"\xce"
    start = _OTHERS[0]
    _Recorder().filter.feed(start + at_limit)
    with pytest.raises(LinkDown) as down:
        _Recorder().filter.feed(start + struct.pack(">BHI", 3, 1, 8192 - 7))
    assert down.value.fault.kind is FaultKind.ILLEGAL_FRAME


class _Stream:
    """A byte stream that takes one batch at a time, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.taken = anyio.Event()

    async def send(self, item: bytes) -> None:
        self.batches.append(item)
        await self.taken.wait()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        self.taken.set()

    async def send_eof(self) -> None:
        raise NotImplementedError


def _publish(tag: int, epoch: Epoch, body: bytes) -> tuple[Parcel, bytes]:
    frames = [commands.Basic.Publish(routing_key="q"), ContentHeader(body_size=len(body)), ContentBody(body)]
    return Parcel(epoch, tag, len(body)), b"".join(pamqp.frame.marshal(frame, 1) for frame in frames)


@pytest.fixture
def anyio_backend() -> str:
    """The transport lives on asyncio alone."""
    return "asyncio"


@pytest.mark.anyio
async def test_offered_is_marked_before_the_send_that_holds_the_last_byte() -> None:
    """While a send is under way, what it completes is written, and what it only begins is not."""
    stream = _Stream()
    sent: list[int] = []
    transport = FilteringTransport(
        stream, _Recorder().filter, lambda _, data: data, sent.append, lambda _: None, 30.0, 30.0
    )  # type: ignore[arg-type]
    streams = transport.start()  # kept: a stream writer that is let go closes its transport
    epoch = Epoch(1, Lane.MAIN, None)  # type: ignore[arg-type]
    for tag, size in ((1, 10), (2, 300_000), (3, 10)):
        parcel, data = _publish(tag, epoch, bytes(size))
        transport.expect(parcel)
        transport.write(data)
    assert (epoch.assigned, epoch.written) == (3, 0)
    with anyio.fail_after(60):
        while not stream.batches:
            await anyio.lowlevel.checkpoint()
        assert (epoch.written, sent) == (1, [])
        stream.taken.set()
        await transport.wait_flushed()
    assert (epoch.written, sent) == (3, [10, 300_010])
    transport.abort()
    await transport.wait_aborted()
    del streams


@pytest.mark.anyio
async def test_answers_that_nobody_takes_are_bounded() -> None:
    """A broker that asks without end and reads nothing costs no memory: it broke the protocol."""
    stream = _Stream()
    transport = FilteringTransport(
        stream, _Recorder().filter, lambda _, data: data, lambda _: None, lambda _: None, 30.0, 30.0
    )  # type: ignore[arg-type]
    streams = transport.start()  # kept: a stream writer that is let go closes its transport
    flow_ok = pamqp.frame.marshal(commands.Channel.FlowOk(True), 1)
    transport.answer(flow_ok)
    with anyio.fail_after(60):
        while not stream.batches:
            await anyio.lowlevel.checkpoint()
    with pytest.raises(LinkDown) as down:
        for _ in range(20_000):
            transport.answer(flow_ok)
    assert down.value.fault.kind is FaultKind.ILLEGAL_FRAME
    transport.abort()
    await transport.wait_aborted()
    del streams


@pytest.mark.anyio
async def test_nothing_is_sent_on_a_channel_that_the_broker_closed() -> None:
    """A publish that aiormq writes late is dropped, counted as gone, and never written."""
    stream = _Stream()
    stream.taken.set()
    sent: list[int] = []
    transport = FilteringTransport(
        stream, _Recorder().filter, lambda _, data: data, sent.append, lambda _: None, 30.0, 30.0
    )  # type: ignore[arg-type]
    streams = transport.start()  # kept: a stream writer that is let go closes its transport
    epoch = Epoch(1, Lane.MAIN, None, closed=True)  # type: ignore[arg-type]
    parcel, data = _publish(1, epoch, b"late")
    transport.expect(parcel)
    transport.write(data)
    await transport.wait_flushed()
    transport.abort()
    await transport.wait_aborted()
    del streams
    assert (stream.batches, sent, epoch.written) == ([], [4], 0)


@pytest.mark.parametrize("value", [0.1, float("nan"), float("inf"), 1e300])
def test_a_float_that_would_be_rounded_is_refused(value: float) -> None:
    """The codec has 32-bit floats only; a silent change is no option."""
    with pytest.raises((ValueError, OverflowError)):
        properties_of(Envelope(headers={"nested": [{"f": value}]}), "m", None)


def test_records_about_other_connections_still_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Only our own connections are silent; a program may use aiormq for itself."""
    logging.getLogger("aiormq.connection").warning("of somebody else")
    assert "of somebody else" in caplog.text


def test_between_abort_and_end_everything_assigned_counts_as_offered() -> None:
    """The engine may be in another thread: until it has stopped, what waits for it may still be handed over."""
    link = AiormqLink(
        wake=lambda: None,
        soon=lambda *_: None,
        call=lambda *_: None,  # type: ignore[arg-type, return-value]
        fail=lambda _: None,
        pull=lambda: None,
    )
    link.attach(SimpleNamespace(queue=[], written=lambda channel: 1))  # type: ignore[arg-type]
    link.opened(Lane.MAIN, 1)
    for _ in range(3):
        link.publish(Lane.MAIN, Envelope(), "m", b"", None)

    assert 1 == link.written(1)
    link.abort(Fault(FaultKind.CONFIRM_OVERDUE, "no confirm"))
    assert 3 == link.written(1)
    link.ended = True
    assert 1 == link.written(1)
