"""One stream of bytes from a broker, replayed to a session in two ways; what must hold whatever the bytes are.

A stream is cut into turns by `TURN`. After each turn the client does what a link does next: it opens a publisher,
publishes, declares a queue, takes a message. So the bytes of real sessions, recorded turn by turn, lead deep into the
protocol, and any change to them is still a stream. The fuzzer (tests/fuzz/), the recorder of its corpus and the tests share this.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from attrs import define, field

from tests.wire.far_side import CREDENTIALS, Sink, StrictReader
from warrener.records import Envelope
from warrener.topology import Binding, Exchange, Queue
from warrener.wire import Event, Session, SessionPhase, events, requests
from warrener.wire.channel import ChannelState

#: Ends a turn: a frame that cannot be, lest real bytes hold it.
TURN = b"\x00\xff\xfeTURN"
#: Small, so that a body beyond it is no rarity.
MAX_INBOUND_BODY = 40
#: What a session may hold of an unfinished frame, before the tuning and after it.
CAPS = (8192, 131_072)
#: Publishes in all; enough for confirms in any order.
PUBLISHES = 30

QUEUE = "warrener.fuzz"
EXCHANGE = "warrener.fuzz.exchange"
#: Where messages go in turn: to a queue, to no queue, to an exchange; with and without headers of their own.
ENVELOPES = (
    Envelope(routing_key=QUEUE),
    Envelope(routing_key="nowhere", headers={"n": [1, {"deep": None}], "text": "ü"}),
    Envelope(exchange=EXCHANGE, routing_key="k", content_type="text/plain", priority=3, type="t"),
)
DECLARATIONS = (
    Exchange(EXCHANGE, "topic"),
    Queue(QUEUE, arguments={"x-max-length": 3, "x-overflow": "reject-publish"}),
    Binding(source=EXCHANGE, destination=QUEUE, routing_key="#"),
)


@define
class Client:
    """A session, and the plan of what it does after each turn. The plan looks at nothing but the session and its events."""

    sink: Sink = field(factory=Sink)
    session: Session = field(init=False)
    published: int = 0
    _publishers: int = 0
    _control: str = "free"
    _requests: int = 0
    _turns: int = 0

    def __attrs_post_init__(self) -> None:
        self.session = Session(CREDENTIALS, self.sink, max_inbound_body=MAX_INBOUND_BODY)

    def note(self, told: list[Event]) -> None:
        """Remember what the events mean for the next turn."""
        for event in told:
            match event:
                case events.Replied() | events.Refused() | events.GetResult():
                    self._control = "free"
                case events.ChannelClosed(channel) if channel == self._publishers:
                    self._publishers = -channel
                case _:
                    pass

    def take_turn(self) -> None:
        """Do what a link does next."""
        session = self.session
        self._turns += 1
        if session.phase is not SessionPhase.OPEN:
            return
        if self._turns > 14:
            session.close()
            return
        if self._publishers <= 0:
            if self._publishers > -5:
                self._publishers = session.open_publisher()
            return
        if self._control == "free" and self._requests < 12:
            self._request()
        publisher = session.publisher(self._publishers)
        if publisher.state is ChannelState.READY and self._requests > len(DECLARATIONS):
            for _ in range(min(5, PUBLISHES - self.published)):
                number = self.published
                self.published += 1
                token = None if number % 2 else f"{number:032}"
                body = b"x" * (number % 3 * 30)
                publisher.publish(ENVELOPES[number % 3], f"{number:032}", body, token)

    def _request(self) -> None:
        session = self.session
        number = self._requests
        self._requests += 1
        if number in (4, 8):
            session.release_control()
        self._control = "busy"
        if number < len(DECLARATIONS):
            session.request(requests.declare(DECLARATIONS[number]))
        elif number == 10:
            session.request(requests.delete_queue(QUEUE))
        else:
            session.request(requests.take_one(QUEUE))


def skip_frames(data: bytes, cap: int) -> bytes | None:
    """Return what follows the whole frames at the beginning; None where a frame then claims to be larger than the cap."""
    while len(data) >= 7:
        size = int.from_bytes(data[3:7]) + 8
        if size > cap:
            return None
        if size > len(data):
            break
        data = data[size:]
    return data


def replay(stream: bytes, piece: int, *, strictly: bool) -> tuple[list[Any], ...]:
    """Feed the stream in pieces of `piece` bytes; return events, confirms and what was sent. Asserts what must hold.

    `strictly`: have a strict reader judge what is sent, too. It costs more than all the rest.
    """
    client = Client()
    session = client.session
    reader = StrictReader(frame_max=CAPS[1])
    told: list[Any] = []
    sent = blake2b()
    broken = False
    # What does not begin as a frame is looked at in eight bytes, whatever they would claim as one.
    unread: bytes | None = b"" if stream[:1] == b"\x01" else None

    def send() -> None:
        while data := session.data_to_send():
            assert not broken, "bytes after the fault"
            sent.update(data)
            if strictly:
                reader.feed(data)

    for number, turn in enumerate(stream.split(TURN)):
        if number:
            client.take_turn()
            send()  # what was not written cannot be confirmed
        for at in range(0, len(turn), piece):
            fresh = session.receive(turn[at : at + piece])
            told += fresh
            client.note(fresh)
            assert session.residue <= CAPS[session.tuning is not None], "more is held than a frame"
            assert not broken or not fresh, "a event after the fault"
            broken = broken or any(isinstance(event, events.ProtocolError) for event in fresh)
        if unread is not None and session.phase is not SessionPhase.OVER:
            unread = skip_frames(unread + turn, CAPS[session.tuning is not None])
            assert unread is not None, "more than a legal frame is waited for"
        contents = [channel.content for channel in session._table.channels.values() if channel.content is not None]
        assert sum(len(content.kept or b"") for content in contents) <= MAX_INBOUND_BODY, (
            "more is kept than a body may have"
        )
        send()
        assert reader.at_boundary or session.phase is SessionPhase.OVER
    for entry in client.sink.log:
        assert entry[0] == "return" or 0 < entry[2] <= client.published, "a confirm of what was never published"
    assert all(
        event.body is None or len(event.body) <= MAX_INBOUND_BODY
        for event in told
        if isinstance(event, events.GetResult)
    )
    return told, client.sink.log, [sent.hexdigest()]


def check(stream: bytes) -> None:
    """Replay the stream in two ways; raises AssertionError, or whatever a defect raises, where something does not hold."""
    piece = 1 + sum(stream[-7:]) % 29
    whole, pieces = replay(stream, 1 << 20, strictly=True), replay(stream, piece, strictly=False)
    assert pieces == whole, "pieces of another size told something else"
