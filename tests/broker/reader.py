"""An independent reader: pika, which shares no code with this library, empties a queue."""

from __future__ import annotations

import pika


def message_ids(url: str, queue: str) -> list[str]:
    """Take everything that the queue holds; return the message ids in order."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        found = []
        while True:
            method, properties, _body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append(properties.message_id)
    finally:
        connection.close()
