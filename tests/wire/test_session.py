from __future__ import annotations

from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from tests.wire.far_side import (
    CREDENTIALS,
    START,
    Sink,
    StrictReader,
    ack,
    drain,
    marshalled,
    open_publisher,
    opened,
    returned,
    tuned,
)
from warrener.records import Credentials, Envelope
from warrener.topology import Binding, Exchange, Queue
from warrener.wire import (
    ProtocolErrorKind,
    Session,
    SessionPhase,
    events,
    negotiate_heartbeat,
    negotiate_limit,
    requests,
)
from warrener.wire.channel import ChannelState


def frames(session: Session) -> list[Any]:
    """What the session sends, read strictly."""
    reader = StrictReader(frame_max=131_072)
    reader.feed(drain(session))
    assert reader.at_boundary
    return [frame for _, frame in reader.frames]


def names(session: Session) -> list[str]:
    """The names of the frames that the session sends."""
    return [frame.name for frame in frames(session)]


# --- handshake ----------------------------------------------------------------------------------------------------


def test_handshake() -> None:
    """Header, start-ok, tune-ok and open go out, each after what it answers; then a publisher, step by step."""
    session = Session(CREDENTIALS, Sink(), vhost="warren", client_properties={"connection_name": "me"})
    assert drain(session) == b"AMQP\x00\x00\x09\x01"
    assert session.receive(marshalled(START)) == []
    (start_ok,) = frames(session)
    assert (start_ok.mechanism, start_ok.response, start_ok.locale) == ("PLAIN", "\0someone\0swordfish", "en_US")
    assert start_ok.client_properties["connection_name"] == "me"
    assert set(start_ok.client_properties["capabilities"]) == {
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
    }
    (event,) = session.receive(marshalled(commands.Connection.Tune(2047, 131072, 60)))
    assert isinstance(event, events.Tuned)
    assert (event.tuning.product, event.tuning.version) == ("Scripted", "1.2")
    tune_ok, connection_open = frames(session)
    assert dict(tune_ok) == {"channel_max": 2047, "frame_max": 131072, "heartbeat": 60}
    assert connection_open.virtual_host == "warren"
    assert session.receive(marshalled(commands.Connection.OpenOk())) == [events.Opened()]
    assert drain(session) == b""
    assert session.open_publisher() == 1
    assert names(session) == ["Channel.Open"]
    assert session.receive(marshalled(commands.Channel.OpenOk(), 1)) == []
    assert names(session) == ["Confirm.Select"]
    with pytest.raises(RuntimeError, match="not open for publishing yet"):
        session.publisher(1).publish(Envelope(), "m", b"", None)
    assert session.receive(marshalled(commands.Confirm.SelectOk(), 1)) == []
    (qos,) = frames(session)
    assert (qos.name, qos.prefetch_count) == ("Basic.Qos", 100)
    assert session.receive(marshalled(commands.Basic.QosOk(), 1)) == [events.ChannelOpened(1)]


WHOLE = b"".join(
    (
        marshalled(START),
        marshalled(commands.Connection.Tune(2047, 131072, 60)),
        marshalled(commands.Connection.OpenOk()),
        marshalled(commands.Connection.Blocked("memory")),
        marshalled(commands.Connection.Unblocked()),
        marshalled(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0)),
        marshalled(commands.Connection.Close(320, "again", 0, 0)),
    )
)


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_pieces_of_any_size(size: int) -> None:
    """A whole session in pieces gives the events and the bytes that it gives in one piece (I3)."""
    one, many = Session(CREDENTIALS, Sink()), Session(CREDENTIALS, Sink())
    expected = one.receive(WHOLE)
    told = [event for at in range(0, len(WHOLE), size) for event in many.receive(WHOLE[at : at + size])]
    assert told == expected
    assert [type(event).__name__ for event in told] == ["Tuned", "Opened", "Blocked", "Unblocked", "CloseReceived"]
    assert drain(one) == drain(many)


@pytest.mark.parametrize(
    ("written", "allowed", "chosen", "response"),
    [
        ("PLAIN AMQPLAIN", ("PLAIN", "AMQPLAIN"), "PLAIN", b"\0someone\0swordfish"),
        ("AMQPLAIN", ("PLAIN", "AMQPLAIN"), "AMQPLAIN", b"\x05LOGINS\0\0\0\x07someone\x08PASSWORDS\0\0\0\x09swordfish"),
        ("EXTERNAL PLAIN", ("EXTERNAL",), "EXTERNAL", b""),
        ("ANONYMOUS PLAIN", ("PLAIN",), "PLAIN", b"\0someone\0swordfish"),
    ],
)
def test_mechanisms(written: str, allowed: tuple[str, ...], chosen: str, response: bytes) -> None:
    """The first of our own list that the broker offers is used, whatever the broker puts first."""
    session = Session(CREDENTIALS, Sink(), mechanisms=allowed)
    drain(session)
    session.receive(marshalled(commands.Connection.Start(0, 9, {}, written, "en_US")))
    sent = drain(session)
    assert pamqp.frame.unmarshal(sent)[2].mechanism == chosen  # type: ignore[union-attr]
    assert len(response).to_bytes(4) + response + b"\x05en_US" in sent


@pytest.mark.parametrize("written", ["", "EXTERNAL", "ANONYMOUS SCRAM-SHA-256", "PLAINX"])
def test_no_mechanism_of_ours(written: str) -> None:
    """A broker that offers nothing of the list is refused, and no response is sent."""
    session = Session(CREDENTIALS, Sink())
    drain(session)
    told = session.receive(marshalled(commands.Connection.Start(0, 9, {}, written, "en_US")))
    assert told == [events.ProtocolError(ProtocolErrorKind.NO_MECHANISM, written)]
    assert drain(session) == b""


@pytest.mark.parametrize(
    ("greeting", "known_by"),
    [
        (b"AMQP\x00\x01\x00\x00", 8),
        (b"HTTP/1.1 400 Bad", 8),
        (b"\x15\x03\x01\x00\x02\x02\x28", 2),
        (b"220 mail ESMTP", 8),
    ],
)
def test_not_amqp(greeting: bytes, known_by: int) -> None:
    """Another protocol is known by eight bytes, however they come; a TLS alert, which has seven, by two."""
    session = Session(CREDENTIALS, Sink())
    told = [event for byte in greeting for event in session.receive(bytes([byte]))]
    (broken,) = told
    assert isinstance(broken, events.ProtocolError)
    assert (broken.kind, broken.data) == (ProtocolErrorKind.NOT_AMQP, greeting[:known_by])
    assert drain(session) == b""


def test_another_step_of_the_login() -> None:
    """Our mechanisms have one step; a broker that wants a second one is refused, and nothing is sent."""
    session = Session(CREDENTIALS, Sink())
    session.receive(marshalled(START))
    drain(session)
    (broken,) = session.receive(marshalled(commands.Connection.Secure("more")))
    assert isinstance(broken, events.ProtocolError)
    assert (broken.kind, drain(session)) == (ProtocolErrorKind.UNUSABLE, b"")


def test_no_bytes_mean_nothing() -> None:
    """An empty piece is no greeting."""
    session = Session(CREDENTIALS, Sink())
    assert session.receive(b"") == []
    assert session.receive(marshalled(START)) == []
    assert session.phase is SessionPhase.AUTHENTICATING


def test_another_version() -> None:
    """A Start of another protocol version is refused."""
    session = Session(CREDENTIALS, Sink())
    (broken,) = session.receive(marshalled(commands.Connection.Start(1, 0, {}, "PLAIN", "en_US")))
    assert isinstance(broken, events.ProtocolError)
    assert broken.kind is ProtocolErrorKind.UNUSABLE


@pytest.mark.parametrize(
    ("ours", "theirs", "settled"),
    [(60, 60, 60), (60, 30, 30), (30, 60, 30), (60, 0, 60), (0, 60, 0), (0, 0, 0), (0.5, 60, 1), (1e9, 0, 65535)],
)
def test_heartbeat_negotiation(ours: float, theirs: int, settled: int) -> None:
    """The smaller interval, in whole seconds; the broker's 0 leaves it to us, our own 0 turns heartbeats off (I32)."""
    assert negotiate_heartbeat(ours, theirs) == settled


@pytest.mark.parametrize(("ours", "theirs", "settled"), [(9, 0, 9), (9, 9, 9), (9, 8, 8), (9, 10, 9)])
def test_limit_negotiation(ours: int, theirs: int, settled: int) -> None:
    """The smaller of two limits, ours where the broker has none: never 0 (I32)."""
    assert negotiate_limit(ours, theirs) == settled


@pytest.mark.parametrize(
    ("channel_max", "frame_max", "usable"),
    [(0, 0, True), (3, 4096, True), (2047, 4095, False), (2047, 1, False), (2, 131072, False), (1, 0, False)],
)
def test_tuning_that_cannot_be_used(channel_max: int, frame_max: int, usable: bool) -> None:
    """frame_max below AMQP's floor, or too few channels: refused without a tune-ok (I32)."""
    session = Session(CREDENTIALS, Sink())
    session.receive(marshalled(START))
    drain(session)
    (event,) = session.receive(marshalled(commands.Connection.Tune(channel_max, frame_max, 60)))
    if usable:
        assert isinstance(event, events.Tuned)
        assert (event.tuning.channel_max, event.tuning.frame_max) == (channel_max or 2047, frame_max or 131_072)
    else:
        assert isinstance(event, events.ProtocolError)
        assert event.kind is ProtocolErrorKind.UNUSABLE
        assert drain(session) == b""


def test_frame_cap_follows_the_tuning() -> None:
    """8192 bytes until tune-ok, what was agreed on afterwards."""
    session = tuned(frame_max=16_384)
    big = marshalled(commands.Connection.Blocked("x" * 255))
    assert session.receive(marshalled(commands.Connection.OpenOk()) + big)[-1] == events.Blocked("x" * 255)
    (broken,) = session.receive(b"\x03\x00\x01" + (16_384 - 7).to_bytes(4))
    assert isinstance(broken, events.ProtocolError)
    fresh = Session(CREDENTIALS, Sink())
    (broken,) = fresh.receive(b"\x01\x00\x00" + (8192 - 7).to_bytes(4) + b"\x00")
    assert isinstance(broken, events.ProtocolError)
    assert "8192" in broken.text


def test_login_refused_twice() -> None:
    """403 while authenticating is told once and answered once; RabbitMQ's second close is ignored (F10)."""
    session = Session(CREDENTIALS, Sink())
    session.receive(marshalled(START))
    drain(session)
    close = marshalled(commands.Connection.Close(403, "ACCESS_REFUSED", 0, 0))
    assert session.receive(close + close) == [events.CloseReceived(403, "ACCESS_REFUSED", SessionPhase.AUTHENTICATING)]
    assert session.receive(close) == []
    assert names(session) == ["Connection.CloseOk"]


def test_secrets_are_not_kept() -> None:
    """The response is gone from the session once it was taken; no repr, event or text has it."""
    session = Session(CREDENTIALS, Sink())
    drain(session)
    session.receive(marshalled(START))
    pending = session._out.pending
    assert b"swordfish" in pending
    drain(session)
    assert b"swordfish" not in bytes(pending)
    assert "swordfish" not in repr(vars(session))


@pytest.mark.parametrize(
    "arguments",
    [
        {"vhost": "é" * 128},
        {"vhost": "\ud800"},
        {"frame_max": 4096},
        {"credentials": Credentials("\ud800", "")},
        {"credentials": Credentials("someone", "secret" * 1400)},
        {"client_properties": {"connection_name": "n" * 8000}},
    ],
)
def test_what_cannot_be_encoded_is_said_at_once(arguments: dict[str, Any]) -> None:
    """A session that could not finish its handshake is not begun."""
    with pytest.raises(ValueError) as raised:
        Session(**({"credentials": CREDENTIALS, "confirm_handler": Sink()} | arguments))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("mechanism", ["PLAIN", "AMQPLAIN"])
def test_a_login_as_long_as_a_frame(mechanism: str) -> None:
    """A password (a token) is taken as long as start-ok then fits into 8192 bytes, which is what RabbitMQ reads there."""
    longest = 0
    for length in range(7700, 8100):
        try:
            session = Session(Credentials("someone", "p" * length), Sink(), mechanisms=(mechanism,))
        except ValueError:
            break
        longest = length
        session.receive(marshalled(commands.Connection.Start(0, 9, {}, mechanism, "en_US")))
        assert len(drain(session)) - len(b"AMQP\x00\x00\x09\x01") <= 8192
    assert 7700 < longest < 8099


# --- blocking -----------------------------------------------------------------------------------------------------


def test_blocked_and_unblocked() -> None:
    """Both are told; an unblocked that nothing preceded is not."""
    session = opened()
    assert session.receive(marshalled(commands.Connection.Unblocked())) == []
    assert session.receive(marshalled(commands.Connection.Blocked("low\r\non \x1b[31mmemory"))) == [
        events.Blocked("low\\r\\non \\x1b[31mmemory")
    ]
    assert session.receive(marshalled(commands.Connection.Unblocked())) == [events.Unblocked()]


def test_flow_is_answered_and_blocks() -> None:
    """channel.flow is answered; publishing goes on when neither flow nor connection blocks it."""
    session = opened()
    assert len(session.receive(marshalled(commands.Channel.Flow(False), 1))) == 1
    (flow_ok,) = frames(session)
    assert (flow_ok.name, flow_ok.active) == ("Channel.FlowOk", False)
    session.receive(marshalled(commands.Connection.Blocked("memory")))
    assert session.receive(marshalled(commands.Channel.Flow(True), 1)) == []
    assert session.receive(marshalled(commands.Connection.Unblocked())) == [events.Unblocked()]


def test_a_closed_channel_does_not_block() -> None:
    """The stopped flow of a channel ends with the channel."""
    session = opened()
    session.receive(marshalled(commands.Channel.Flow(False), 1))
    told = session.receive(marshalled(commands.Channel.Close(404, "NOT_FOUND", 60, 40), 1))
    assert told == [events.ChannelClosed(1, 404, "NOT_FOUND", 0, 0), events.Unblocked()]


@pytest.mark.parametrize(
    "shown",
    [
        "p@ss w/rd",
        "p%40ss%20w%2Frd",
        "p%40ss%20w/rd",
        "p%40ss+w%2frd",
        "cEBzcyB3L3Jk",
        "AGFubgBwQHNzIHcvcmQ=",
        "YW5uOnBAc3Mgdy9yZA",
    ],
)
def test_the_password_is_masked_in_every_text_of_the_broker(shown: str) -> None:
    """Raw, percent-encoded, base64: in the greeting, a close, a refusal, a return and a blocked reason."""
    sink = Sink()
    credentials = Credentials("ann", "p@ss w/rd")
    session = Session(credentials, sink)
    text = f"you said {shown}!"
    told: list[Any] = []
    start = commands.Connection.Start(server_properties={"product": text, "version": text}, mechanisms="PLAIN")
    for frame in (start, commands.Connection.Tune(2047, 131072, 60), commands.Connection.OpenOk()):
        told += session.receive(marshalled(frame))
    open_publisher(session)
    session.publisher(1).publish(Envelope(), "m", b"", None)
    session.request(requests.declare(Queue("q")))
    drain(session)
    for frame, channel in (
        (commands.Channel.OpenOk(), 2),
        (commands.Channel.Close(406, text, 50, 10), 2),
        (commands.Basic.Return(312, text, "", text), 1),
        (ContentHeader(body_size=0, properties=commands.Basic.Properties()), 1),
        (commands.Connection.Blocked(text), 0),
        (commands.Channel.Close(404, text, 60, 40), 1),
        (commands.Connection.Close(320, text, 0, 0), 0),
    ):
        told += session.receive(marshalled(frame, channel))
    everything = repr([told, sink.log])
    assert shown not in everything
    assert everything.count("you said ***") == 8


def test_texts_without_the_password_stay_as_they_are() -> None:
    """An empty password masks nothing."""
    session = Session(Credentials("ann", ""), Sink())
    for frame in (START, commands.Connection.Tune(2047, 131072, 60), commands.Connection.OpenOk()):
        session.receive(marshalled(frame))
    assert session.receive(marshalled(commands.Connection.Blocked("low on memory"))) == [
        events.Blocked("low on memory")
    ]


def test_a_new_secret_is_masked_beside_the_old_one() -> None:
    """A broker may quote either of them after the update."""
    session = Session(Credentials("ann", "old-secret"), Sink())
    for frame in (START, commands.Connection.Tune(2047, 131072, 60), commands.Connection.OpenOk()):
        session.receive(marshalled(frame))
    session.update_secret("new-secret")
    (told,) = session.receive(marshalled(commands.Connection.Blocked("old-secret, new-secret and ann")))
    assert told == events.Blocked("***, *** and ann")


def test_update_secret() -> None:
    """A new secret goes out and its answer is told; an answer nobody asked for is illegal."""
    session = opened()
    session.update_secret("fresh", "expires")
    with pytest.raises(RuntimeError, match="not answered"):
        session.update_secret("fresher")
    (method,) = frames(session)
    assert (method.name, method.new_secret) == ("Connection.UpdateSecret", "fresh")
    assert session.receive(marshalled(commands.Connection.UpdateSecretOk())) == [events.SecretUpdated()]
    (broken,) = session.receive(marshalled(commands.Connection.UpdateSecretOk()))
    assert isinstance(broken, events.ProtocolError)


def test_heartbeats() -> None:
    """A heartbeat is a frame of its own, from tuning until the end."""
    session = Session(CREDENTIALS, Sink())
    drain(session)
    session.beat()
    assert drain(session) == b""
    session = opened()
    session.beat()
    assert [type(frame) for frame in frames(session)] == [Heartbeat]
    session.close()
    session.beat()
    assert names(session) == ["Connection.Close", "Heartbeat"]
    session.fail()
    session.beat()
    assert drain(session) == b""


# --- closing ------------------------------------------------------------------------------------------------------


def test_our_close() -> None:
    """After our close nothing but its answer counts, and nothing else is sent (I29)."""
    sink = Sink()
    session = opened(sink)
    session.publisher(1).publish(Envelope(), "m", b"", None)
    drain(session)
    session.publisher(1).publish(Envelope(), "n", b"", None)
    session.close()
    session.close()
    assert names(session) == ["Connection.Close"]
    late = (
        ack(1) + returned() + marshalled(commands.Connection.Blocked("x")) + marshalled(commands.Channel.Flow(False), 1)
    )
    assert session.receive(late) == []
    assert session.publisher(1).publish(Envelope(), "o", b"", None) == 3
    assert drain(session) == b""
    assert session.receive(marshalled(commands.Connection.CloseOk()) + ack(1)) == [events.Closed()]
    assert (sink.log, session.publisher(1).written, session.phase) == ([], 1, SessionPhase.OVER)


def test_crossed_closes() -> None:
    """Both sides close at once: we answer, that is the end, and their answer is no surprise (I30)."""
    session = opened()
    session.close()
    crossing = marshalled(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0))
    assert session.receive(crossing) == [events.Closed()]
    assert session.receive(marshalled(commands.Connection.CloseOk())) == []
    assert names(session) == ["Connection.Close", "Connection.CloseOk"]


def test_their_close_drops_what_was_not_taken() -> None:
    """What was published and not sent is not sent after the broker's close; `written` tells which (I29, I30)."""
    session = opened()
    publisher = session.publisher(1)
    publisher.publish(Envelope(), "m", b"sent", None)
    drain(session)
    publisher.publish(Envelope(), "n", b"x" * 200_000, None)
    (told,) = session.receive(marshalled(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0)))
    assert told == events.CloseReceived(320, "CONNECTION_FORCED", SessionPhase.OPEN)
    assert names(session) == ["Connection.CloseOk"]
    assert publisher.publish(Envelope(), "o", b"", None) == 3
    assert (drain(session), publisher.written) == (b"", 1)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("ours", [False, True])
def test_bytes_behind_a_close_mean_nothing(ours: bool, size: int) -> None:
    """What comes behind the end is not looked at, legal or not, in the same piece or another (I3; found by fuzzing)."""
    session = opened()
    if ours:
        session.close()
        drain(session)
    close = marshalled(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0))
    stream = close + b"\x08\x01\x00\x00\x00\x00\x00\xce"
    told = [event for at in range(0, len(stream), size) for event in session.receive(stream[at : at + size])]
    assert told == [events.Closed() if ours else events.CloseReceived(320, "CONNECTION_FORCED", SessionPhase.OPEN)]
    assert names(session) == ["Connection.CloseOk"]


def test_after_a_fault_not_one_byte() -> None:
    """Illegal bytes silence the session: nothing pending, nothing later, no event (R18)."""
    session = opened()
    session.publisher(1).publish(Envelope(), "m", b"", None)
    (broken,) = session.receive(ack(2))
    assert isinstance(broken, events.ProtocolError)
    assert broken.kind is ProtocolErrorKind.ILLEGAL
    session.beat()
    session.close()
    session.release_control()
    assert session.receive(marshalled(commands.Connection.Close(320, "", 0, 0))) == []
    assert drain(session) == b""


# --- channels -----------------------------------------------------------------------------------------------------


def test_a_closed_channel_is_replaced_under_a_fresh_number() -> None:
    """The broker's channel.close is answered; the next publisher has the next number and tags from 1 (I6)."""
    session = opened()
    publisher = session.publisher(1)
    assert [publisher.publish(Envelope(), "m", b"", None) for _ in range(3)] == [1, 2, 3]
    drain(session)
    assert publisher.publish(Envelope(), "m", b"", None) == 4
    told = session.receive(marshalled(commands.Channel.Close(404, "NOT_FOUND - no exchange", 60, 40), 1))
    assert told == [events.ChannelClosed(1, 404, "NOT_FOUND - no exchange", 3, 3)]
    drain(session)
    assert publisher.publish(Envelope(), "m", b"", None) == 5
    assert (publisher.written, drain(session)) == (3, b"")
    assert open_publisher(session) == 2
    assert session.publisher(2).publish(Envelope(), "m", b"", None) == 1


def test_closed_channels_are_forgotten_in_time() -> None:
    """A broker that closes one channel after the other costs no memory; what was written on the last ones stays known."""
    session = opened()
    for number in range(2, 103):
        session.publisher(number - 1).publish(Envelope(), "m", b"", None)
        drain(session)
        session.receive(marshalled(commands.Channel.Close(404, "", 60, 40), session.publisher(number - 1).wire_number))
        session.open_publisher()
        for answer in (commands.Channel.OpenOk(), commands.Confirm.SelectOk(), commands.Basic.QosOk()):
            session.receive(marshalled(answer, session.publisher(number).wire_number))
    assert [session.publisher(number).written for number in range(95, 103)] == [1] * 7 + [0]
    assert len(session._table.known) <= 10


def test_a_channel_that_was_open_for_long_is_known_when_it_is_closed() -> None:
    """The channels that are forgotten are those closed first, not those opened first: main channels come and go beside it."""
    session = opened()
    old = open_publisher(session)
    main = 1
    for _ in range(20):
        session.receive(marshalled(commands.Channel.Close(406, "", 60, 40), session.publisher(main).wire_number))
        main = open_publisher(session)
    session.publisher(old).publish(Envelope(), "m", b"", None)
    drain(session)
    closes = [commands.Channel.Close(406, "", 60, 40)] * 2
    numbers = [session.publisher(number).wire_number for number in (main, old)]
    told = session.receive(b"".join(marshalled(*each) for each in zip(closes, numbers, strict=True)))
    assert [type(each) for each in told] == [events.ChannelClosed] * 2
    session.open_publisher()
    assert session.publisher(old).written == 1


def test_numbers_come_back_as_late_as_possible() -> None:
    """Channel numbers on the wire go round; one that is in use is passed over."""
    session = Session(CREDENTIALS, Sink())
    for method in (START, commands.Connection.Tune(3, 131072, 60), commands.Connection.OpenOk()):
        session.receive(marshalled(method))
    used = []
    for _ in range(5):
        number = session.open_publisher()
        used.append(session.publisher(number).wire_number)
        if number > 1:
            session.receive(marshalled(commands.Channel.Close(404, "", 60, 40), used[-1]))
    assert used == [1, 2, 3, 2, 3]


def test_all_numbers_taken() -> None:
    """A session without a free channel says so."""
    session = Session(CREDENTIALS, Sink())
    for method in (START, commands.Connection.Tune(3, 131072, 60), commands.Connection.OpenOk()):
        session.receive(marshalled(method))
    for _ in range(3):
        session.open_publisher()
    with pytest.raises(ValueError, match="all 3 channels"):
        session.open_publisher()


# --- the control channel -------------------------------------------------------------------------------------------


def test_requests() -> None:
    """Requests go in order on a channel of their own, which is opened for the first and closed at the end."""
    session = opened()
    session.request(requests.declare(Exchange("e", "topic", arguments={"alternate-exchange": "ae"})))
    assert names(session) == ["Channel.Open"]
    session.receive(marshalled(commands.Channel.OpenOk(), 2))
    (declare,) = frames(session)
    assert (declare.exchange, declare.exchange_type, declare.durable) == ("e", "topic", True)
    assert declare.arguments == {"alternate-exchange": "ae"}
    assert session.receive(marshalled(commands.Exchange.DeclareOk(), 2)) == [events.Replied()]
    session.request(requests.declare(Queue("q", auto_delete=True)))
    (declare,) = frames(session)
    assert (declare.queue, declare.durable, declare.auto_delete, declare.passive) == ("q", True, True, False)
    assert session.receive(marshalled(commands.Queue.DeclareOk("q", 0, 0), 2)) == [events.Replied("q")]
    session.request(requests.declare(Binding(source="e", destination="q", routing_key="k")))
    (bind,) = frames(session)
    assert (bind.queue, bind.exchange, bind.routing_key) == ("q", "e", "k")
    assert session.receive(marshalled(commands.Queue.BindOk(), 2)) == [events.Replied()]
    session.request(requests.delete_queue("q"))
    assert names(session) == ["Queue.Delete"]
    session.request(requests.take_one("r"))
    assert names(session) == ["Basic.Get"], "a second request does not wait for the first answer"
    assert session.receive(marshalled(commands.Queue.DeleteOk(0), 2)) == [events.Replied()]
    assert session.receive(marshalled(commands.Basic.GetEmpty(""), 2)) == [events.GetResult(None, None)]
    session.release_control()
    assert names(session) == ["Channel.Close"]
    assert session.receive(marshalled(commands.Channel.CloseOk(), 2)) == []
    (broken,) = session.receive(marshalled(commands.Channel.CloseOk(), 2))
    assert isinstance(broken, events.ProtocolError)


def test_a_refused_request() -> None:
    """The broker refuses by closing the channel; the next request opens another."""
    session = opened()
    session.request(requests.declare(Queue("q")))
    session.receive(marshalled(commands.Channel.OpenOk(), 2))
    told = session.receive(marshalled(commands.Channel.Close(406, "PRECONDITION_FAILED", 50, 10), 2))
    assert told == [events.Refused(406, "PRECONDITION_FAILED")]
    assert names(session) == ["Channel.Open", "Queue.Declare", "Channel.CloseOk"]
    session.request(requests.declare(Queue("q")))
    assert names(session) == ["Channel.Open"]


def test_nothing_that_comes_on_a_released_control_channel_counts() -> None:
    """Until the broker confirms its end, whatever was on its way there is ignored: contents and confirms, too."""
    session = opened()
    session.request(requests.take_one("q"))
    session.receive(
        marshalled(commands.Channel.OpenOk(), 2) + marshalled(commands.Basic.GetOk(1, False, "", "q", 0), 2)
    )
    session.release_control()
    late = returned(b"body", channel=2).removeprefix(
        marshalled(commands.Basic.Return(312, "NO_ROUTE", "", "nowhere"), 2)
    )
    assert session.receive(late + ack(1, channel=2)) == []
    assert session.receive(marshalled(commands.Channel.CloseOk(), 2)) == []


def test_an_answer_that_nobody_asked_for() -> None:
    """A reply on the control channel without a request, or to another one, is a fault."""
    for reply in (commands.Queue.DeclareOk("q", 0, 0), commands.Basic.GetEmpty(), commands.Channel.OpenOk()):
        session = opened()
        session.request(requests.delete_queue("q"))
        session.receive(marshalled(commands.Channel.OpenOk(), 2))
        (broken,) = session.receive(marshalled(reply, 2))
        assert isinstance(broken, events.ProtocolError)


def test_orders_to_a_session_that_is_not_open() -> None:
    """Neither a channel nor a request can be had before open-ok, or after the end."""
    session = tuned()
    for order in (
        session.open_publisher,
        lambda: session.request(requests.delete_queue("q")),
        lambda: session.update_secret("x"),
    ):
        with pytest.raises(RuntimeError, match="opening"):
            order()


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_request_that_is_given_up(answered: int) -> None:
    """A request may be left at any moment: its late answer is ignored, and the next one has a fresh channel."""
    session = opened()
    session.request(requests.declare(Queue("q")))
    answers = [marshalled(commands.Channel.OpenOk(), 2), marshalled(commands.Queue.DeclareOk("q", 0, 0), 2)]
    for answer in answers[:answered]:
        session.receive(answer)
    session.release_control()
    session.request(requests.declare(Queue("other")))
    for answer in answers[answered:]:
        assert session.receive(answer) == []
    crossing = marshalled(commands.Channel.Close(406, "", 50, 10), 2)
    assert session.receive(crossing + marshalled(commands.Channel.CloseOk(), 2)) == []
    session.receive(marshalled(commands.Channel.OpenOk(), 3))
    assert session.receive(marshalled(commands.Queue.DeclareOk("other", 0, 0), 3)) == [events.Replied("other")]


def test_taking_messages() -> None:
    """basic.get gives bodies, empty ones too; one beyond the limit is not kept; an empty queue says so."""
    session = opened(max_inbound_body=10)
    session.request(requests.take_one("q"))
    session.receive(marshalled(commands.Channel.OpenOk(), 2))

    def answer(body: bytes) -> bytes:
        content = returned(body, channel=2, pieces=4)
        method = marshalled(commands.Basic.Return(312, "NO_ROUTE", "", "nowhere"), 2)
        return marshalled(commands.Basic.GetOk(1, False, "", "q", 0), 2) + content.removeprefix(method)

    assert session.receive(answer(b"0123456789")) == [events.GetResult(b"0123456789", 10)]
    session.request(requests.take_one("q"))
    assert session.receive(answer(b"")) == [events.GetResult(b"", 0)]
    session.request(requests.take_one("q"))
    assert session.receive(answer(b"0123456789a")) == [events.GetResult(None, 11)]
    session.request(requests.take_one("q"))
    assert session.receive(marshalled(commands.Basic.GetEmpty(), 2)) == [events.GetResult(None, None)]


def test_an_unencodable_request_opens_nothing() -> None:
    """A declaration that AMQP cannot carry is refused before a channel is opened for it."""
    session = opened()
    with pytest.raises(ValueError, match="arguments"):
        session.request(requests.declare(Queue("q", arguments={"x": float("nan")})))
    assert drain(session) == b""


def test_a_request_beyond_the_frame() -> None:
    """A declaration or a secret that no frame of this broker holds is refused, not sent: it would cost the connection (I28)."""
    session = opened(frame_max=4096)
    with pytest.raises(ValueError, match=r"Queue\.Declare takes .* bytes; this broker takes 4,096"):
        session.request(requests.declare(Queue("q", arguments={"x": "y" * 4096})))
    with pytest.raises(ValueError, match=r"Connection\.UpdateSecret takes"):
        session.update_secret("s" * 5000)
    assert drain(session) == b""
    session.update_secret("s" * 4000)
    assert names(session) == ["Connection.UpdateSecret"]


# --- legality of what is sent ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(["publish", "big", "beat", "declare", "release", "close channel", "open", "take"]), max_size=30
    )
)
def test_whatever_is_ordered_the_bytes_are_legal(orders: list[str]) -> None:
    """A strict reader on the far side finds every byte legal, in any order of orders and takings (R18, I28)."""
    session = opened(frame_max=4096)
    reader = StrictReader(frame_max=4096)
    newest = 1
    published = 0
    for order in orders:
        ready = session.publisher(newest).state is ChannelState.READY
        match order:
            case "publish" | "big" if ready:
                session.publisher(newest).publish(Envelope(), "m", b"x" * (20_000 if order == "big" else 3), "t" * 32)
                published += 1
            case "beat":
                session.beat()
            case "declare":
                try:
                    session.request(requests.declare(Queue("q")))
                except RuntimeError:
                    session.release_control()
            case "release":
                session.release_control()
            case "close channel" if ready:
                session.receive(
                    marshalled(commands.Channel.Close(404, "", 60, 40), session.publisher(newest).wire_number)
                )
            case "open" if not ready:
                newest = session.open_publisher()
                wire_number = session.publisher(newest).wire_number
                for answer in (commands.Channel.OpenOk(), commands.Confirm.SelectOk(), commands.Basic.QosOk()):
                    session.receive(marshalled(answer, wire_number))
            case "take":
                reader.feed(session.data_to_send())
            case _:
                pass
    reader.feed(drain(session))
    assert reader.at_boundary
    assert len(reader.published) == published
    session.close()
    reader.feed(drain(session))
    assert reader.frames[-1][1].name == "Connection.Close"
