"""One list of AMQP properties: message fields, keywords, envelope and the encoders of both drivers agree with it."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

import attrs
import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from warrener._properties import PROPERTIES, SHORT_STRINGS, Unsendable, checked_table
from warrener.drivers.aiormq._encoding import properties_of
from warrener.records import Envelope, Message, MessageFields
from warrener.wire.channel import ChannelState, Outgoing, Publisher
from warrener.wire.codec import read_table, table

ARGUMENTS = {"exchange", "routing_key", "mandatory"}
FIELDS = {each.field for each in PROPERTIES}
ENVELOPE_NAMES = {"persistent": "delivery_mode"}

VALUES: dict[str, Any] = {
    "headers": {"h": 1},
    "persistent": True,
    "priority": 9,
    "expiration": 1.5,
    "timestamp": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
}
WIRE = {"persistent": 2, "expiration": "1500"}


def test_the_message_has_the_properties_and_the_arguments_of_a_publish() -> None:
    """Fields, constructor and keywords: the same names, the same annotations."""
    assert {each.name for each in attrs.fields(Message)} == FIELDS | ARGUMENTS | {"body"}
    parameters = inspect.signature(Message).parameters
    keywords = {name: each.annotation for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert keywords == {name: each.__forward_arg__ for name, each in MessageFields.__annotations__.items()}
    assert set(keywords) == FIELDS | ARGUMENTS


def test_the_envelope_has_all_of_them_but_the_id() -> None:
    """The id differs from message to message."""
    names = {ENVELOPE_NAMES.get(name, name) for name in FIELDS | ARGUMENTS} - {"message_id"}
    assert {each.name for each in attrs.fields(Envelope)} == names


def test_the_list_is_the_specifications() -> None:
    """Names, types and order of basic's properties, as pamqp has them; cluster-id is reserved."""
    theirs = [(name, commands.Basic.Properties.amqp_type(name)) for name in commands.Basic.Properties.flags]
    assert [(each.amqp or each.field, each.type) for each in PROPERTIES] == [
        each for each in theirs if each[0] != "cluster_id"
    ]
    assert set(SHORT_STRINGS) == {"exchange", "routing_key"} | {
        each.field for each in PROPERTIES if each.type == "shortstr"
    } - {"expiration"}


@pytest.mark.parametrize("each", PROPERTIES, ids=lambda each: each.field)
def test_both_drivers_send_each_property_and_no_other(each: Any) -> None:
    """What a message says is what an independent decoder reads, and the same from both encoders."""
    value = VALUES.get(each.field, "text")
    message = Message(b"body", routing_key="q", **{each.field: value})
    envelope = Envelope.of(message)
    expected = {each.amqp or each.field: WIRE.get(each.field, value)} | {
        "message_id": message.message_id,
        "delivery_mode": 2,
    }
    by_aiormq = properties_of(envelope, message.message_id, None)
    assert said(by_aiormq) == expected
    assert said(sent_by_native(envelope, message)) == expected


def said(properties: commands.Basic.Properties) -> dict[str, Any]:
    """Return the properties that are there."""
    return {name: value for name, value in properties if value is not None and value not in ({}, "")}


def sent_by_native(envelope: Envelope, message: Message) -> commands.Basic.Properties:
    """Return the properties of the content header that the native driver's channel writes."""
    outgoing = Outgoing()
    publisher = Publisher(1, 1, 131_072, outgoing, ChannelState.READY)
    publisher.publish(envelope, message.message_id, message.body, None)
    data = outgoing.take()
    while data:
        size, _channel, frame = pamqp.frame.unmarshal(data)
        if isinstance(frame, ContentHeader):
            return frame.properties
        data = data[size:]
    raise AssertionError("no content header was written")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.decimals()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.tuples()
)
TABLES = st.dictionaries(
    st.text(max_size=5) | st.integers(),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


@given(TABLES)
def test_a_table_that_passes_the_check_can_be_written_and_read(headers: Any) -> None:
    """The check of a message and the encoder agree; the check alone knows that a naive time has no instant."""
    try:
        checked = checked_table(headers)
    except Unsendable:
        return
    assert set(read_table(table(checked))) == set(headers)
