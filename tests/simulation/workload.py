"""The callers of a run: they publish, cancel, hurry and hint as the plan says, and write down what they were told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import trio

from tests.simulation.network import Network
from tests.simulation.schedule import ADDRESSES, FRAME_MAX, Call, Item
from tests.simulation.trace import Publish, Trace
from warrener import Message, Producer, PublishError, Receipt, Retry
from warrener._publishing.handles import PublishHandle

__all__ = ["Workload", "body_of"]


def body_of(item: Item) -> bytes:
    """Return the body of a message: its number and padding, so that no two are equal."""
    if item.size < 8:
        return bytes([item.number % 256]) * item.size
    head = b"%08d" % item.number
    return head + bytes([33 + item.number % 90]) * (item.size - 8)


class Workload:
    """Makes the calls of a plan."""

    def __init__(
        self, producer: Producer, trace: Trace, network: Network, seed: int, short_bodies: dict[bytes, int]
    ) -> None:
        self._producer = producer
        self._trace = trace
        self._network = network
        self._seed = seed
        self._short_bodies = short_bodies
        #: One call in three brings the producer's own policy, with the same budget.
        self._own = producer.settings.retry
        self._order = 0
        #: Calls whose task has not returned.
        self.open_calls = 0
        self.all_called = trio.Event()
        #: When a hint was heeded.
        self.hints: list[float] = []
        #: Errors that no publish may raise.
        self.wrong: list[str] = []

    async def run(self, calls: tuple[Call, ...], tasks: trio.Nursery) -> None:
        """Start each call at its instant."""
        for call in calls:
            await trio.sleep_until(call.at)
            tasks.start_soon(self.make, call, tasks)
        self.all_called.set()

    async def make(self, call: Call, tasks: trio.Nursery) -> None:
        """Make one call and wait for what it says."""
        self.open_calls += 1
        try:
            match call.how:
                case "publish" | "to":
                    await self._publish(call, tasks)
                case "run":
                    await self._run(call, tasks)
                case "many":
                    await self._many(call, tasks)
                case "nowait":
                    await self._nowait(call, tasks)
                case "hint":
                    heeded = self._producer.reconnect()
                    self._trace.note(f"reconnect(): {heeded}")
                    if heeded:
                        self.hints.append(trio.current_time())
        except Exception as error:  # noqa: BLE001 - any error is a finding
            self.wrong.append(f"{call.how} raised {error!r}")
        finally:
            self.open_calls -= 1

    # --- ways to call -------------------------------------------------------------------------------------------------

    async def _publish(self, call: Call, tasks: trio.Nursery) -> None:
        publish = self._begin(call.messages[0], call)
        with trio.CancelScope() as scope:
            self._arrange_cancel(call, scope, tasks)
            fields = _fields(publish.item)
            try:
                retry = self._retry(call)
                if call.how == "to":
                    receipt = await self._producer.to(**fields).publish(
                        publish.body, key=call.key, timeout=call.timeout
                    )
                else:
                    receipt = await self._producer.publish(
                        publish.body, key=call.key, timeout=call.timeout, retry=retry, **fields
                    )
                self._end(publish, receipt)
            except PublishError as error:
                self._end(publish, error)
        if publish.result is None:
            self._cancelled([publish])

    async def _many(self, call: Call, tasks: trio.Nursery) -> None:
        begun: list[Publish] = []
        called = trio.current_time()

        def messages() -> Iterator[Message]:
            for item in call.messages:
                publish = self._begin(item, call)
                publish.called_at = called
                begun.append(publish)
                fields = _fields(item)
                fields.setdefault("message_id", f"many-{self._seed}-{item.number}")
                publish.message_id = fields["message_id"]
                yield Message(publish.body, **fields)

        with trio.CancelScope() as scope:
            self._arrange_cancel(call, scope, tasks)
            results = await self._producer.publish_many(
                messages(), key=call.key, timeout=call.timeout, retry=self._retry(call)
            )
            for publish, result in zip(begun, results, strict=True):
                self._end(publish, result)
            return
        self._cancelled(begun)

    async def _run(self, call: Call, tasks: trio.Nursery) -> None:
        begun = [self._begin(item, call) for item in call.messages]
        with trio.CancelScope() as scope:
            self._arrange_cancel(call, scope, tasks)
            results = await self._producer.publish_many(
                [publish.body for publish in begun], key=call.key, timeout=call.timeout, **_fields(call.messages[0])
            )
            for publish, result in zip(begun, results, strict=True):
                self._end(publish, result)
            return
        self._cancelled(begun)

    async def _nowait(self, call: Call, tasks: trio.Nursery) -> None:
        async with trio.open_nursery() as waits:
            for item in call.messages:
                publish = self._begin(item, call)
                try:
                    handle = self._producer.publish_nowait(
                        publish.body, key=call.key, timeout=call.timeout, retry=self._retry(call), **_fields(item)
                    )
                except PublishError as error:
                    self._end(publish, error)
                else:
                    publish.message_id = handle.message_id
                    waits.start_soon(self._wait, handle, publish, call, tasks)

    async def _wait(self, handle: PublishHandle, publish: Publish, call: Call, tasks: trio.Nursery) -> None:
        # Cancelling the wait is nothing to the message; the second wait must still get the outcome.
        with trio.CancelScope() as scope:
            self._arrange_cancel(call, scope, tasks)
            await self._wait_out(handle, publish)
        if publish.result is None:
            await self._wait_out(handle, publish)

    async def _wait_out(self, handle: PublishHandle, publish: Publish) -> None:
        try:
            self._end(publish, await handle.wait())
        except PublishError as error:
            self._end(publish, error)

    def _retry(self, call: Call) -> Retry | None:
        return self._own if call.messages[0].number % 3 == 0 else None

    # --- book-keeping -------------------------------------------------------------------------------------------------

    def _begin(self, item: Item, call: Call) -> Publish:
        self._order += 1
        body = body_of(item)
        if len(body) < 8:
            self._short_bodies[body] = item.number
        publish = Publish(item, call, body, trio.current_time(), self._order)
        publish.message_id = item.message_id
        self._trace.publishes[item.number] = publish
        return publish

    def _end(self, publish: Publish, result: Receipt | PublishError) -> None:
        if publish.result is not None:
            self.wrong.append(f"message {publish.item.number} has two outcomes")
        if publish.attempts and result.message_id != publish.message_id:
            self.wrong.append(
                f"message {publish.item.number} was sent as {publish.message_id}, told as {result.message_id}"
            )
        publish.result = result
        publish.ended_at = trio.current_time()
        publish.message_id = result.message_id
        self._trace.note(f"message {publish.item.number}: {describe(result)}")

    def _cancelled(self, publishes: list[Publish]) -> None:
        for publish in publishes:
            publish.cancelled = True
            publish.ended_at = trio.current_time()
            self._trace.note(f"message {publish.item.number}: cancelled")
            if self._network.sending and any(attempt.answer is None for attempt in publish.attempts[-1:]):
                self._trace.see("cancel inside the last write")

    def _arrange_cancel(self, call: Call, scope: trio.CancelScope, tasks: trio.Nursery) -> None:
        if call.cancel_ticks is not None:
            if call.cancel_ticks == 0:
                scope.cancel()
            else:
                tasks.start_soon(_cancel_after_ticks, scope, call.cancel_ticks)
        elif call.cancel_after is not None:
            scope.deadline = trio.current_time() + call.cancel_after


async def _cancel_after_ticks(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


def _fields(item: Item) -> Any:
    exchange, key = ADDRESSES[item.address]
    fields: dict[str, Any] = {"exchange": exchange, "routing_key": key}
    if item.message_id is not None:
        fields["message_id"] = item.message_id
    if not item.mandatory:
        fields["mandatory"] = False
    if not item.persistent:
        fields["persistent"] = False
    if item.poison:
        fields["user_id"] = "nobody" * (40 if item.nameless else 1)
    if item.delay_ms:
        fields["headers"] = {"x-delay": item.delay_ms}
    if item.invalid:
        fields["headers"] = {"long": "x" * FRAME_MAX}
    return fields


def describe(result: Receipt | PublishError) -> str:
    """Return a short word for an outcome."""
    if isinstance(result, Receipt):
        again = ", possible duplicate" if result.possible_duplicate else ""
        return f"confirmed on link {result.link} after {result.attempts} attempts{again}"
    return f"{type(result).__name__}: {result.reason}"
