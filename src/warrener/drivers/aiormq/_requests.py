"""Declarations, deletions and basic.get, each on a channel of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel
from pamqp import commands

from warrener.drivers import _faults
from warrener.drivers._faults import DialPhase
from warrener.drivers.aiormq._channels import GONE, Channels
from warrener.drivers.aiormq._encoding import table
from warrener.drivers.base import LinkDown
from warrener.errors import Fault
from warrener.topology import Binding, Declaration, Exchange, Queue

__all__ = ["Requests"]

T = TypeVar("T")


class Requests:
    """What `Link` offers besides publishing; every method raises `LinkDown`."""

    def __init__(self, channels: Channels, timeout: float, fault: Callable[[], Fault | None]) -> None:
        self._channels = channels
        self._timeout = timeout
        #: Why the link is over, if it is.
        self._fault = fault

    async def declare(self, declarations: Iterable[Declaration]) -> None:
        """Declare in the given order."""
        # The name of the queue that the broker has named: bindings of it follow.
        server_named = ""
        for declaration in declarations:
            name = await self._on_own_channel(partial(_declare, declaration, server_named), str(declaration))
            server_named = name or server_named

    async def get(self, queue: str, limit: int) -> list[bytes]:
        """Take up to `limit` bodies from the queue."""

        async def take(channel: AbstractChannel) -> list[bytes]:
            bodies: list[bytes] = []
            while len(bodies) < limit:
                message = await channel.basic_get(queue, no_ack=True)
                if isinstance(message.delivery, commands.Basic.GetEmpty):
                    break
                bodies.append(message.body)
            return bodies

        return await self._on_own_channel(take, str(Queue(queue)))

    async def delete_queue(self, queue: str) -> None:
        """Delete the queue."""

        async def delete(channel: AbstractChannel) -> None:
            await channel.queue_delete(queue)

        await self._on_own_channel(delete, str(Queue(queue)))

    async def _on_own_channel(self, use: Callable[[AbstractChannel], Coroutine[Any, Any, T]], entity: str) -> T:
        number = 0
        try:
            async with asyncio.timeout(self._timeout):
                number = self._channels.free_number()
                channel = await self._channels.new_channel(number)
                answer = await use(channel)
                await channel.close()
                return answer
        except TimeoutError:
            raise LinkDown(self._fault() or _faults.timed_out(DialPhase.PREPARING, self._timeout)) from None
        except (TypeError, ValueError) as error:
            raise LinkDown(_faults.not_encodable(entity, error)) from None
        except GONE as error:
            refusal = self._channels.refusal(number)
            if refusal is not None:
                raise LinkDown(_faults.declaration_refused(*refusal, entity)) from None
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # The caller was cancelled; aiormq cancels by itself when a channel goes away.
            raise LinkDown(self._fault() or _faults.fault_of(error, DialPhase.UP)) from None


async def _declare(declaration: Declaration, server_named: str, channel: AbstractChannel) -> str | None:
    """Declare; return the name of a queue that the broker has named. `server_named` is the last such name."""
    arguments = table(declaration.arguments)
    match declaration:
        case Exchange():
            await channel.exchange_declare(
                declaration.name,
                exchange_type=declaration.type,
                passive=declaration.passive,
                durable=declaration.durable,
                auto_delete=declaration.auto_delete,
                internal=declaration.internal,
                arguments=arguments,
            )
        case Queue():
            declared = await channel.queue_declare(
                declaration.name,
                passive=declaration.passive,
                durable=declaration.durable,
                exclusive=declaration.exclusive,
                auto_delete=declaration.auto_delete,
                arguments=arguments,
            )
            if declaration.is_server_named:
                return declared.queue
        case Binding(destination=Exchange(name=name)):
            await channel.exchange_bind(
                name, declaration.source, routing_key=declaration.routing_key, arguments=arguments
            )
        case Binding(destination=queue):
            await channel.queue_bind(
                queue.name or server_named, declaration.source, declaration.routing_key, arguments=arguments
            )
    return None
