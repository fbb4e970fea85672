"""Messages are checked when they are made, and keep nothing mutable of the caller's."""

from __future__ import annotations

import copy
import pickle
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from warrener._publishing.runs import receipt_of
from warrener.errors import InvalidMessage
from warrener.records import Envelope, Message, Receipt

LONG = "x" * 256


def deep(levels: int) -> dict[str, Any]:
    """Return tables nested so deep."""
    table: dict[str, Any] = {}
    for _ in range(levels - 1):
        table = {"x": table}
    return table


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mandatory": None}, ["mandatory must be True or False", "None"]),
        ({"mandatory": 1}, ["mandatory must be True or False"]),
        ({"persistent": None}, ["persistent must be True or False", "None"]),
        ({"exchange": None}, ["exchange must be str", "NoneType"]),
        ({"routing_key": None}, ["routing_key must be str", "NoneType"]),
        ({"routing_key": b"q"}, ["routing_key must be str", "bytes"]),
        ({"routing_key": LONG}, ["routing_key is 256 bytes long"]),
        ({"app_id": "\ud800"}, ["app_id cannot be encoded"]),
        ({"message_id": 5}, ["message_id must be str or UUID", "int"]),
        ({"correlation_id": b"5"}, ["correlation_id must be str", "bytes"]),
        ({"priority": 256}, ["priority"]),
        ({"priority": True}, ["priority"]),
        ({"expiration": -1}, ["expiration"]),
        ({"expiration": "5"}, ["expiration", "a number of seconds, not '5'"]),
        ({"timestamp": datetime(2026, 1, 1)}, ["timestamp", "without a time zone", "datetime.now(UTC)"]),  # noqa: DTZ001
        ({"timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, ["timestamp lies before 1970"]),
        ({"timestamp": 5}, ["timestamp must be a datetime", "int"]),
        ({"headers": [("a", 1)]}, ["headers must be a mapping", "list"]),
        ({"headers": {1: 2}}, ["headers has a name that is int, not str"]),
        ({"headers": {LONG: 2}}, ["headers has a name that is 256 bytes long"]),
        ({"headers": {"a": object()}}, ["headers['a'] is object"]),
        ({"headers": {"a": (1, 2)}}, ["headers['a'] is tuple"]),
        ({"headers": {"a": {1, 2}}}, ["headers['a'] is set"]),
        ({"headers": {"a": [1, {"b": 1 << 63}]}}, ["headers['a'][1]['b'] is an integer of more than 64 bits"]),
        ({"headers": {"a": float("nan")}}, ["headers['a'] is nan"]),
        ({"headers": {"a": Decimal("1E+1000000")}}, ["headers['a'] is a Decimal outside"]),
        ({"headers": {"a": Decimal("NaN")}}, ["headers['a'] is a Decimal outside"]),
        ({"headers": {"a": "\ud800"}}, ["headers['a'] cannot be encoded"]),
        ({"headers": {"a": datetime(2026, 1, 1)}}, ["headers['a']", "without a time zone"]),  # noqa: DTZ001
        ({"headers": deep(33)}, ["headers is nested more than 32 deep"]),
        ({"headers": {"a": [0] * 16_384}}, ["headers holds more than 16,384 values"]),
    ],
)
def test_a_field_that_amqp_cannot_carry_is_refused_at_once(fields: dict[str, Any], words: list[str]) -> None:
    """By name, when the message is made, whatever the connection does; nothing unrelated is quoted."""
    with pytest.raises(InvalidMessage) as caught:
        Message(b"x", **{"routing_key": "q", **fields})
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.last_fault is None


@pytest.mark.parametrize("body", ["text", None, 5, ["x"]])
def test_a_body_is_bytes(body: Any) -> None:
    """Nothing is encoded by accident."""
    with pytest.raises(InvalidMessage, match="body must be bytes"):
        Message(body)


def test_mutable_bodies_and_uuids_are_welcome() -> None:
    """They become the bytes and the text that AMQP carries."""
    key = uuid.UUID("12345678-1234-5678-1234-567812345678")
    source = bytearray(b"abc")
    for body in (source, memoryview(source), memoryview(b"a1b2c3")[::2]):
        message = Message(body, routing_key="q", message_id=key, correlation_id=key)
        assert type(message.body) is bytes
        assert message.body == b"abc"
        assert message.message_id == message.correlation_id == str(key)
    kept = Message(source)
    source[0] = 0
    assert kept.body == b"abc"


def test_the_headers_that_were_given_are_the_headers_that_are_sent() -> None:
    """A copy at every depth, with the types as they were."""
    nested: dict[str, Any] = {"list": [1, {"deep": bytearray(b"x")}]}
    headers: dict[str, Any] = {"nested": nested, "true": True, "one": 1, "float": 1.0}
    message = Message(b"", headers=headers)
    nested["list"][1]["deep"][0] = 0
    nested["list"].append(2)
    headers["more"] = 1
    assert message.headers == {"nested": {"list": [1, {"deep": b"x"}]}, "true": True, "one": 1, "float": 1.0}
    assert [type(value) for value in message.headers.values()] == [dict, bool, int, float]


@pytest.mark.parametrize(
    ("seconds", "wire"),
    [(0, "0"), (0.0, "0"), (0.0004, "1"), (0.001, "1"), (0.0016, "2"), (1, "1000"), (1.5, "1500"), (60.0, "60000")],
)
def test_a_short_lifetime_does_not_become_none(seconds: float, wire: str) -> None:
    """The text 0 lets the broker drop the message at once; only the number 0 means that."""
    assert Envelope.of(Message(b"", expiration=seconds)).expiration == wire


def test_a_time_with_any_zone_is_taken() -> None:
    """The instant is known, so it can be carried."""
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    assert Message(b"", timestamp=at, headers={"at": at}).timestamp == at


def test_a_receipt_is_equal_by_its_four_fields() -> None:
    """However it was made: each looks like four values, and equals nothing that is no receipt."""
    made, plain = receipt_of("p", (3 << 48) + 1), Receipt("p000000000001", 1, False, 3)
    assert made == plain
    assert {made, plain} == {plain}
    assert tuple(made) == tuple(plain) == ("p000000000001", 1, False, 3)
    assert len(made) == len(plain) == 4
    assert repr(made) == repr(plain)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == plain  # noqa: S301 - its own bytes
    assert made != tuple(plain)
    assert plain != tuple(plain)
