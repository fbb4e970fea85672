"""What happens in the demo: publishers at a steady rate, a kill, a restart, an alarm, and a close under load."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

import trio

from warrener._cli.check import named_driver
from warrener._cli.demo_account import Account
from warrener._cli.demo_broker import DemoBroker
from warrener._cli.demo_view import Snapshot, View
from warrener._publishing.producer import Producer
from warrener._settings.settings import Settings
from warrener.errors import PublishError
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.ml import MLProducer, MLSettings
from warrener.ml.topology import topology
from warrener.records import ClosingReport, ConnectionState, Receipt, Status

__all__ = ["LIMIT", "SHORTENED", "Story"]

#: Number of publishers, and tasks that each submits in a second.
PUBLISHERS = 6
RATE = 20.0
#: The broker is killed when this number of messages is in flight.
ENOUGH_IN_FLIGHT = 200
#: Seconds from the start of the broker to the end of the demo.
LIMIT = 120.0

#: Shorter than the defaults, so that the demo ends within two minutes; the first screen lists them.
SHORTENED: Mapping[str, Any] = {
    "backoff": Backoff(initial=0.5, cap=3.0, attempts=None),
    "breaker": Breaker(threshold=3, cooldown=4.0),
    "publish_timeout": 90.0,
    "drain_timeout": 20.0,
    "heartbeat": 10.0,
}


class Story:
    """Runs the producer and its publishers, and kills, restarts and blocks the broker."""

    def __init__(self, broker: DemoBroker, view: View, driver: str) -> None:
        settings = Settings.resolve(broker.url, environ={}, topology=topology(), name="warrener demo", **SHORTENED)
        self._broker = broker
        self._view = view
        self.account = Account()
        self.producer = Producer(settings, driver=named_driver(driver))
        self._ml = MLProducer(MLSettings(), producer=self.producer)
        self._numbers = count()
        self.publishing = True
        self.report = ClosingReport()

    async def tell(self) -> None:
        """Run the demo from the first connection to the closed producer."""
        view, producer = self._view, self.producer
        async with trio.open_nursery() as nursery:
            await nursery.start(producer.run)
            await producer.wait_connected(30)
            view.say(
                f"connected: {producer.status().endpoint}; {PUBLISHERS} tasks publish, {PUBLISHERS * RATE:g} a second"
            )
            nursery.start_soon(self._watch)
            async with trio.open_nursery() as publishers:
                for number in range(PUBLISHERS):
                    publishers.start_soon(self._publish_steadily, number, publishers)
                await trio.sleep(4)
                await self._kill_while_in_flight(publishers)
                await trio.sleep(4)
                await self._raise_alarm()
                await trio.sleep(3)
                for _ in range(300):
                    publishers.start_soon(self._submit, "last minute")
                await trio.sleep(0.002)
                in_hand = producer.status().in_flight + producer.status().buffered
                view.say(f"closing with {in_hand} messages without an outcome, while the tasks go on publishing")
                self.report = await producer.aclose()
                view.say(
                    f"closed: {self.report.confirmed} confirmed, {len(self.report.unconfirmed)} unconfirmed, "
                    f"{len(self.report.not_sent)} not sent"
                )
                self.publishing = False
            self.account.counters = dict(producer.counters)
            self._show()
            nursery.cancel_scope.cancel()

    async def _kill_while_in_flight(self, publishers: trio.Nursery) -> None:
        view, producer = self._view, self.producer
        view.say(f"publishing faster, until {ENOUGH_IN_FLIGHT} messages are in flight")
        burst = 0
        while producer.status().in_flight < ENOUGH_IN_FLIGHT:
            burst += 50  # in the end a burst is larger than the number that a fast broker confirms in the meantime
            for _ in range(burst):
                publishers.start_soon(self._submit, "burst")
            # Long enough for the broker to receive some, too short for it to confirm all.
            await trio.sleep(0.002)
        in_flight = producer.status().in_flight
        self._broker.kill()
        view.say(f"KILLED the broker with {in_flight} messages in flight")
        if await self._wait_until(lambda status: status.circuit_breaker == "open", 30):
            view.say("the breaker is open: new calls fail fast, accepted messages wait")
        await trio.sleep(2)
        view.say("starting the broker again")
        await trio.to_thread.run_sync(self._broker.start)
        view.say("the broker runs again; the producer has to notice it by itself")
        if await self._wait_until(lambda status: status.connection_state is ConnectionState.CONNECTED, 60) and (
            await self._wait_until(lambda status: status.buffered == 0, 60)
        ):
            view.say("connected again; the unconfirmed messages have been sent again")

    async def _raise_alarm(self) -> None:
        view = self._view
        await trio.to_thread.run_sync(self._broker.memory_alarm, True)
        self.account.alarm_seen = await self._wait_until(lambda status: status.blocked, 20)
        if self.account.alarm_seen:
            view.say("the broker raised a memory ALARM and blocks publishers; messages wait")
        await trio.sleep(2)
        await trio.to_thread.run_sync(self._broker.memory_alarm, False)
        if await self._wait_until(lambda status: not status.blocked, 30):
            view.say("the alarm is over")

    async def _wait_until(self, holds: Callable[[Status], bool], seconds: float) -> bool:
        """Wait for a status; return False when it does not come within `seconds`."""
        with trio.move_on_after(seconds):
            while not holds(self.producer.status()):  # noqa: ASYNC110 - the numbers of a status change without an event
                await trio.sleep(0.02)
        return holds(self.producer.status())

    async def _watch(self) -> None:
        while True:
            self._show()
            await trio.sleep(0.25)

    def _show(self) -> None:
        self._view.show(
            Snapshot(
                status=self.producer.status(),
                confirmed=len(self.account.confirmed),
                resent=self.producer.counters["resent"],
                failed_fast=self.account.failed_fast,
            )
        )

    async def _publish_steadily(self, number: int, publishers: trio.Nursery) -> None:
        share = f"demo-{number}"
        due = trio.current_time() + number / (PUBLISHERS * RATE)
        while self.publishing:
            await trio.sleep_until(due)
            due += 1 / RATE
            publishers.start_soon(self._submit, share)

    async def _submit(self, share: str) -> None:
        task_id = str(uuid.uuid4())
        self.account.called.add(task_id)
        try:
            self.account.outcomes[task_id] = await self._one_of_many(share, task_id)
        except PublishError as error:
            self.account.outcomes[task_id] = error

    def _one_of_many(self, share: str, task_id: str) -> Awaitable[Receipt]:
        ml = self._ml
        match next(self._numbers) % 3:
            case 0:
                text = "A rabbit keeps its burrow in order, and knows where every tunnel ends. " * 8
                return ml.summarize(share_id=share, text=text, style="brief", task_id=task_id)
            case 1:
                return ml.transcribe(share_id=share, media_url=f"s3://recordings/{task_id}.ogg", task_id=task_id)
            case _:
                return ml.embed(share_id=share, text="warren, burrow, tunnel, rabbit", task_id=task_id)
