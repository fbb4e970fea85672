"""A chain of misfortunes, and at the end an account: what the queue holds against what the publishers were told."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import warrener
from tests.broker.test_survives import Load, account, anyio_backend, driver, opened, settle_account, told, until
from warrener.testing.rabbitmq import PrivateRabbitMQ

__all__ = ["anyio_backend", "driver", "opened"]  # fixtures

pytestmark = [pytest.mark.anyio, pytest.mark.broker, pytest.mark.full]

ROUNDS = 8


async def kill(rabbitmq: PrivateRabbitMQ) -> None:
    """SIGKILL, and back."""
    await told(rabbitmq, rabbitmq.kill)
    await told(rabbitmq, rabbitmq.start)


async def freeze(rabbitmq: PrivateRabbitMQ) -> None:
    """Longer than two heartbeats."""
    await told(rabbitmq, rabbitmq.freeze)
    await anyio.sleep(3)
    await told(rabbitmq, rabbitmq.thaw)


async def alarm(rabbitmq: PrivateRabbitMQ) -> None:
    """Blocked for a while."""
    await told(rabbitmq, rabbitmq.memory_alarm, True)
    await anyio.sleep(1)
    await told(rabbitmq, rabbitmq.memory_alarm, False)


async def restart(rabbitmq: PrivateRabbitMQ) -> None:
    """As an operator does it."""
    await told(rabbitmq, rabbitmq.restart)


async def close_all(rabbitmq: PrivateRabbitMQ) -> None:
    """320 for everybody."""
    await told(rabbitmq, rabbitmq.close_all_connections)


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_message_is_accounted_for(
    seed: int, rabbitmq: PrivateRabbitMQ, opened: Callable[..., Any], queue_name: str
) -> None:
    """Killed, frozen, blocked, restarted, closed, in any order, with impatient publishers: nothing lost, nothing unflagged."""
    rng = random.Random(seed)
    kinds = [kill, freeze, alarm, restart, close_all]
    misfortunes = [kill, *rng.choices(kinds, k=ROUNDS - 1)]
    async with opened(heartbeat=1) as producer:
        load = Load(producer, queue_name, publishers=40)

        async def impatient() -> None:
            """Publishers that give up soon: their messages may be anywhere."""
            while not load.stopped:
                try:
                    receipt = await producer.publish(
                        b"y" * 5_000, routing_key=queue_name, timeout=rng.uniform(0.001, 2)
                    )
                    load.told[receipt.message_id] = receipt
                except warrener.PublishError as error:
                    load.told[error.message_id] = error
                await anyio.sleep(0.01)

        await told(rabbitmq, rabbitmq.sync)
        async with load.running(), anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(impatient)
            for misfortune in misfortunes:
                so_far = len(load.confirmed)
                await until(partial(lambda so_far: len(load.confirmed) > so_far + 300, so_far))
                await misfortune(rabbitmq)
            so_far = len(load.confirmed)
            await until(lambda: len(load.confirmed) > so_far + 300)
            load.stopped = True
    held = await told(rabbitmq, account, rabbitmq, queue_name)
    counters = producer.counters
    kinds_told = {type(outcome).__name__ for outcome in load.told.values()}
    print(
        f"{[one.__name__ for one in misfortunes]}: told {len(load.told)}, confirmed {len(load.confirmed)}, "
        f"re-sent {counters['resent']}, twice in the queue {sum(count > 1 for count in held.values())}, {kinds_told}"
    )
    settle_account(load, held)
    assert counters["resent"] > 0
    assert counters["accepted"] == sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
