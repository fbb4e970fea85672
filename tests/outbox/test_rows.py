"""A message as columns, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warrener.errors import InvalidMessage
from warrener.outbox._rows import DUPLICATE_HEADER, decode, encode, flagged
from warrener.records import Message

instants = st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the strategy adds the zone
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.decimals(-1000, 1000, places=3)
    | instants
)
names = st.text(max_size=5) | st.sampled_from(["!bytes", "!table", "!other"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
addresses = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
short = st.none() | st.text(max_size=5)


def again(row):
    return decode(row.message_id, row.exchange, row.routing_key, row.properties, row.body)


@given(
    st.builds(
        Message,
        st.binary(max_size=9),
        exchange=addresses,
        routing_key=addresses,
        headers=st.dictionaries(names, values, max_size=3),
        content_type=short,
        content_encoding=short,
        priority=st.none() | st.integers(0, 255),
        expiration=st.none() | st.floats(0, 1000),
        correlation_id=short,
        reply_to=short,
        type=short,
        app_id=short,
        user_id=short,
        timestamp=st.none() | instants,
        persistent=st.booleans(),
        mandatory=st.booleans(),
    )
)
def test_a_message_comes_back_as_it_was(message):
    """Every property, and every type of header that AMQP has."""
    assert again(encode(message)) == message


def test_a_plain_message_has_empty_properties():
    """The columns that SQL has to name are the routing key and the body."""
    assert encode(Message(b"x", routing_key="q"), "key").properties == "{}"


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"properties": "{"}, "properties"),
        ({"properties": "[]"}, "properties"),
        ({"properties": b"{}"}, "properties"),
        ({"properties": '{"colour":"red"}'}, "colour"),
        ({"properties": '{"persistent":"yes"}'}, "persistent"),
        ({"properties": '{"priority":999}'}, "priority"),
        ({"properties": '{"timestamp":"yesterday"}'}, "timestamp"),
        ({"properties": '{"timestamp":5}'}, "timestamp"),
        ({"properties": '{"headers":[]}'}, "headers"),
        ({"properties": '{"headers":{"x":{"!bytes":"%"}}}'}, "bytes"),
        ({"properties": '{"headers":{"x":{"!color":"red"}}}'}, "color"),
        ({"properties": "[" * 100_000}, "properties"),
        ({"routing_key": "k" * 256}, "routing_key"),
        ({"routing_key": 5}, "routing_key"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": b"x"}, "message_id"),
        ({"body": 3}, "body"),
    ],
)
def test_nonsense_is_named(columns, named):
    """A row that another program wrote wrongly raises ValueError with the name of the column or property."""
    whole = {"message_id": "m", "exchange": "", "routing_key": "q", "properties": "{}", "body": b""} | columns

    with pytest.raises(ValueError, match=named):
        decode(**whole)


def test_a_body_may_be_text():
    """SQL writes a body as text; it is sent as UTF-8."""
    assert decode("m", "", "q", "{}", "größe").body == "größe".encode()


@pytest.mark.parametrize("name", ["exchange", "routing_key", "message_id"])
def test_text_that_postgresql_cannot_keep_is_refused_at_once(name):
    """The caller is told, before a whole transaction fails for it."""
    with pytest.raises(InvalidMessage, match=name):
        encode(Message(b"", **{name: "a\0"}))
    with pytest.raises(InvalidMessage, match="key"):
        encode(Message(b""), "a\0")


def test_the_flag_keeps_everything_else():
    """A consumer sees that the message may be a copy, and otherwise the same message."""
    message = Message(b"x", routing_key="q", headers={"a": Decimal(1)}, timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    copy = flagged(message)

    assert copy.headers == {"a": Decimal(1), DUPLICATE_HEADER: True}
    assert copy.message_id == message.message_id
    assert copy.timestamp == message.timestamp


def test_a_key_must_be_text():
    """Another type would be another key in each database."""
    with pytest.raises(TypeError, match="key"):
        encode(Message(b""), 42)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("body", 5, "column body holds a number; it must hold text or a blob of bytes"),
        ("body", None, "column body holds NULL; it must hold text or a blob of bytes"),
        ("routing_key", b"q", "column routing_key holds a blob; it must hold text"),
        ("properties", 5, "column properties holds a number; it must hold JSON text"),
        ("properties", '{"content_type": 5}', "column properties: content_type must be text, not 5"),
        ("properties", '{"expiration": "60"}', "expiration must be a number of seconds, not '60'"),
        ("routing_key", "r" * 300, "routing_key is 300 bytes long; AMQP short strings hold at most 255"),
    ],
)
def test_what_a_row_holds_is_said_in_the_words_of_a_database(column, value, text):
    """The text has no type of Python, no message id, which the row shows already, and no advice to a publisher."""
    columns = {"message_id": "m", "exchange": "", "routing_key": "q", "properties": "{}", "body": b"x", column: value}
    with pytest.raises(ValueError) as caught:
        decode(**columns)
    assert str(caught.value) == text
