"""The demo's independent client: it empties the queues and counts the copies of each message.

It shares no code with the producer: it uses aiormq on asyncio, in its own process. ``python -m
warrener._cli.demo_witness QUEUE…`` reads ``RABBITMQ_URL`` and prints one JSON object: for each
message id the number of its copies, and the number of copies with the header of a possible duplicate.
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


async def _count(url: str, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
    counts: Counter[str] = Counter()
    flagged: Counter[str] = Counter()
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=False)
        for queue in queues:
            while True:
                message = await channel.basic_get(queue, no_ack=True)
                if isinstance(message.delivery, Basic.GetEmpty):
                    break
                properties = message.header.properties
                name = properties.message_id or "(none)"
                counts[name] += 1
                flagged[name] += bool((properties.headers or {}).get("x-warrener-possible-duplicate"))
    finally:
        await connection.close()
    return {name: (count, flagged[name]) for name, count in counts.items()}


if __name__ == "__main__":
    json.dump(asyncio.run(_count(os.environ["RABBITMQ_URL"], sys.argv[1:])), sys.stdout)
