"""A message's properties in pamqp's types, and what pamqp cannot carry."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import pamqp.frame
from pamqp import commands
from pamqp.header import ContentHeader

from warrener.drivers.aiormq._frames import UNREADABLE
from warrener.records import Envelope, FieldValue
from warrener.wire.codec import TOKEN_HEADER

__all__ = ["OVERHEAD", "header_size", "properties_of", "table"]

#: Bytes of a message in the backlog besides its body: an estimate for method, header and frames.
OVERHEAD = 256


def properties_of(envelope: Envelope, message_id: str, token: str | None) -> commands.Basic.Properties:
    """Return the AMQP properties of a message; raises TypeError or ValueError for values that pamqp cannot carry."""
    headers = None if envelope.headers is None and token is None else table(envelope.headers or {})
    if headers is not None and token is not None:
        headers[TOKEN_HEADER] = token
    return commands.Basic.Properties(
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        headers=headers,
        delivery_mode=envelope.delivery_mode,
        priority=envelope.priority,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        expiration=envelope.expiration,
        message_id=message_id,
        timestamp=envelope.timestamp,
        message_type=envelope.type,
        user_id=envelope.user_id,
        app_id=envelope.app_id,
    )


def header_size(envelope: Envelope) -> int | str:
    """Return the size of the envelope's header frame with an empty id; or the reason why pamqp cannot encode it.

    Everything that aiormq will encode for a message of this envelope is encoded here once, so that what it refuses is
    refused before a tag is given out.
    """
    try:
        method = commands.Basic.Publish(
            exchange=envelope.exchange, routing_key=envelope.routing_key, mandatory=envelope.mandatory
        )
        pamqp.frame.marshal(method, 1)
        header = pamqp.frame.marshal(ContentHeader(properties=properties_of(envelope, "", None)), 1)
    except (*UNREADABLE, AttributeError) as error:
        return f"aiormq's codec cannot encode it: {error} (the native driver may be able to)"
    return len(header) + (4 if envelope.headers is None else 0)


def table(fields: Mapping[str, FieldValue]) -> dict[str, Any]:
    """Return the table in pamqp's types; pamqp would cut long names silently, so they are refused here."""
    for name in fields:
        if len(name.encode()) > 128:
            raise ValueError("a header's name has at most 128 bytes")
    return {name: _value(value) for name, value in fields.items()}


def _value(value: FieldValue) -> Any:
    match value:
        case bytes():
            return bytearray(value)
        case Mapping():
            return table(value)
        case list():
            return [_value(item) for item in value]
        case float() if not math.isfinite(value):
            raise ValueError("a header holds a float that is not finite")
        case float() if struct.unpack(">f", struct.pack(">f", value))[0] != value:
            raise ValueError("a header holds a float that aiormq's codec would round to 32 bits; send it as text")
        case _:
            return value
