"""The demo's independent client: it empties the queues and counts how often each message id was in them.

It shares no code with the producer: it uses aiormq on asyncio, in its own process. ``python -m
warrener._cli.demo_witness QUEUE…`` reads ``RABBITMQ_URL`` and prints one JSON object: message id to count.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence

import aiormq
from pamqp.commands import Basic

__all__: list[str] = []


async def _count(url: str, queues: Sequence[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=False)
        for queue in queues:
            while True:
                message = await channel.basic_get(queue, no_ack=True)
                if isinstance(message.delivery, Basic.GetEmpty):
                    break
                counts[message.header.properties.message_id or "(none)"] += 1
    finally:
        await connection.close()
    return counts


if __name__ == "__main__":
    json.dump(asyncio.run(_count(os.environ["RABBITMQ_URL"], sys.argv[1:])), sys.stdout)
