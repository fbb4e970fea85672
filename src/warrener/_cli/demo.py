"""``warrener demo``: publish ML tasks through a broker that is killed, blocked and left, then account for every message.

The broker is a private RabbitMQ, or, with nothing but this package installed, the embedded one, which dies by a power cut
in place of a SIGKILL. Several Trio tasks publish at a steady rate, each message under an id of its own; in the
thick of it the broker is killed with SIGKILL, comes back, raises a memory alarm, and in the end the producer is closed
while the tasks go on publishing. Then another client (aiormq, in another process, see `demo_account`) empties the queues,
and what it found is held against what the publishers were told.

The account balances only if every call has exactly one outcome, everything confirmed is in a queue, everything in a queue
was published, nothing reported as not sent is there, and whatever is there twice was flagged as a possible duplicate. The
demo fails too if it has shown nothing: nothing re-sent, nothing failed fast, or no alarm seen.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any, Protocol

import trio
from attrs import define, field, frozen

from warrener._cli.check import named_driver
from warrener._publishing.producer import Producer
from warrener._settings.settings import Settings
from warrener.errors import CircuitOpen, PublishError
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.ml import MLProducer, MLSettings
from warrener.ml.topology import QUEUES, topology
from warrener.records import ClosingReport, ConnectionState, Receipt, Status
from warrener.testing.broker import EmbeddedBroker
from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQFailed, RabbitMQMissing

__all__ = ["Account", "main"]

#: Publishers, and how many tasks each submits in a second.
PUBLISHERS = 6
RATE = 20.0
#: So many messages must be in flight when the broker is killed.
ENOUGH_IN_FLIGHT = 200
#: Seconds from "broker ready" within which the whole story must be told.
LIMIT = 120.0

#: Shorter than the defaults, so that the story fits into two minutes; the first screen says so.
SHORTENED: Mapping[str, Any] = {
    "backoff": Backoff(initial=0.5, cap=3.0, attempts=None),
    "breaker": Breaker(threshold=3, cooldown=4.0),
    "publish_timeout": 90.0,
    "drain_timeout": 20.0,
    "heartbeat": 10.0,
}


# --- the account ------------------------------------------------------------------------------------------------------


@define
class Account:
    """What the publishers were told, message by message, and what was found in the queues."""

    outcomes: dict[str, Receipt | PublishError] = field(factory=dict[str, Receipt | PublishError])
    #: The ids under which the publishers called; each must have an outcome in the end.
    called: set[str] = field(factory=set[str])
    #: The producer's own counters, for comparison.
    counters: Mapping[str, int] = field(factory=dict[str, int])
    found: Counter[str] = field(factory=Counter[str])
    alarm_seen: bool = False

    @property
    def confirmed(self) -> dict[str, Receipt]:
        """What the broker confirmed."""
        return {one: outcome for one, outcome in self.outcomes.items() if isinstance(outcome, Receipt)}

    @property
    def otherwise(self) -> dict[str, PublishError]:
        """What the publishers were told of the rest."""
        return {one: outcome for one, outcome in self.outcomes.items() if isinstance(outcome, PublishError)}

    @property
    def accepted(self) -> int:
        """How many messages the producer took on; the rest was turned away at the call."""
        return self.counters["accepted"]

    @property
    def reported_otherwise(self) -> int:
        """How many of the accepted messages ended otherwise than confirmed."""
        return sum(self.counters[name] for name in ("rejected", "nacked", "unknown"))

    @property
    def failed_fast(self) -> int:
        """How many calls the open breaker turned away."""
        return sum(isinstance(outcome, CircuitOpen) for outcome in self.outcomes.values())

    @property
    def resent(self) -> int:
        """How many messages were put on the wire more than once."""
        return sum(receipt.attempts > 1 for receipt in self.confirmed.values())

    @property
    def duplicates(self) -> dict[str, int]:
        """What is in the queues more than once."""
        return {one: count for one, count in self.found.items() if count > 1}

    def _flagged(self, message_id: str) -> bool:
        outcome = self.outcomes.get(message_id)
        if isinstance(outcome, Receipt):
            return outcome.possible_duplicate
        return outcome is not None and outcome.may_have_been_delivered

    def faults(self) -> list[str]:
        """What is wrong with the account, in words; nothing when it balances and the demo has shown what it should."""
        lost = [one for one in self.confirmed if not self.found[one]]
        unflagged = [one for one in self.duplicates if not self._flagged(one)]
        ghosts = [one for one, error in self.otherwise.items() if not error.may_have_been_delivered and self.found[one]]
        strangers = [one for one in self.found if one not in self.called]
        claims = [
            (len(self.called - self.outcomes.keys()), "messages without an outcome"),
            (abs(self.counters["confirmed"] - len(self.confirmed)), "confirms between the producer's count and ours"),
            (abs(self.accepted - len(self.confirmed) - self.reported_otherwise), "accepted messages unaccounted for"),
            (len(lost), "confirmed messages lost"),
            (len(unflagged), "duplicates that nobody was told of"),
            (len(ghosts), "messages in a queue that were reported as not delivered"),
            (len(strangers), "messages in a queue that nobody published"),
        ]
        wrong = [f"{count} {what}" for count, what in claims if count]
        shown = [
            (self.resent > 0, "nothing was re-sent"),
            (self.failed_fast > 0, "nothing failed fast"),
            (self.alarm_seen, "the alarm was not seen"),
        ]
        return wrong + [what for holds, what in shown if not holds]

    def lines(self) -> list[str]:
        """The account as it is printed."""
        kinds = Counter(type(error).__name__ for error in self.otherwise.values())
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "nothing"
        turned_away = len(self.called) - self.accepted
        lost = sum(not self.found[one] for one in self.confirmed)
        flagged = sum(self._flagged(one) for one in self.duplicates)
        extra = sum(self.found[one] > 0 for one in self.otherwise)
        rows = [
            ("calls", len(self.called), f"= {self.accepted} accepted + {turned_away} turned away at once"),
            (
                "accepted",
                self.accepted,
                f"= {len(self.confirmed)} confirmed + {self.reported_otherwise} reported otherwise",
            ),
            ("confirmed", len(self.confirmed), f"of which {self.resent} were sent more than once"),
            ("otherwise", len(self.otherwise), f"turned away or not confirmed, told: {told}"),
            ("in queues", self.found.total(), f"{len(self.found)} different messages, {extra} of them unconfirmed"),
            ("lost", lost, "confirmed, but in no queue"),
            ("duplicates", len(self.duplicates), f"{flagged} of them flagged as possible duplicates"),
        ]
        return [f"  {name:<11}{number:>7}  {text}" for name, number, text in rows]


# --- the view ---------------------------------------------------------------------------------------------------------


@frozen
class _Figures:
    status: Status
    confirmed: int
    resent: int
    failed_fast: int

    def rows(self) -> list[tuple[str, str]]:
        status = self.status
        state = status.connection_state.value + (" (blocked)" if status.blocked else "")
        return [
            ("state", state),
            ("breaker", status.circuit_breaker.replace("_", "-")),
            ("attempts", str(status.reconnect_attempts)),
            ("in flight", str(status.in_flight)),
            ("waiting", str(status.buffered)),
            ("confirmed", str(self.confirmed)),
            ("re-sent", str(self.resent)),
            ("failed fast", str(self.failed_fast)),
        ]


#: What a person should notice at a glance, where there are colours.
_COLOURS = {
    "CONNECTED": "green",
    "CONNECTED (blocked)": "yellow",
    "CONNECTING": "yellow",
    "DISCONNECTED": "red",
    "closed": "green",
    "half-open": "yellow",
    "open": "red",
}


class _View(Protocol):
    def say(self, text: str) -> None: ...
    def show(self, figures: _Figures) -> None: ...


class _Lines:
    """Plain lines: one a second, and one for each event."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = -1

    def say(self, text: str) -> None:
        print(f"{self._elapsed():6.1f} s  -- {text}", flush=True)

    def show(self, figures: _Figures) -> None:
        if int(self._elapsed()) == self._shown:
            return
        self._shown = int(self._elapsed())
        (_, state), (_, breaker), *counts = figures.rows()
        told = "  ".join(f"{name} {value:>4}" for name, value in counts)
        print(f"{self._elapsed():6.1f} s  {state:<19}  breaker {breaker:<9}  {told}", flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _open_view(*, plain: bool) -> AbstractContextManager[_View]:
    if plain or not sys.stdout.isatty():
        return nullcontext(_Lines())
    try:
        return _rich_view()
    except ImportError:
        return nullcontext(_Lines())


def _rich_view() -> AbstractContextManager[_View]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console()
    began = time.monotonic()

    @contextmanager
    def opened() -> Any:
        with Live(console=console, auto_refresh=False) as live:

            class Rich:
                def say(self, text: str) -> None:
                    console.print(f"[bold]{time.monotonic() - began:6.1f} s[/bold]  {text}", highlight=False)

                def show(self, figures: _Figures) -> None:
                    table = Table(title="warrener demo", show_header=False)
                    table.add_column(width=11)
                    table.add_column(width=19, justify="right")
                    for name, value in figures.rows():
                        table.add_row(name, value, style=_COLOURS.get(value))
                    live.update(table, refresh=True)

            yield Rich()

    opener: Callable[[], AbstractContextManager[_View]] = opened
    return opener()


# --- the brokers ------------------------------------------------------------------------------------------------------


class _Broker(Protocol):
    """What the story does to a broker; the calls block."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def memory_alarm(self, on: bool) -> None: ...


class _Embedded:
    """The embedded broker in a thread of its own."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.url = broker.url

    def kill(self) -> None:
        self._broker.crash()

    def start(self) -> None:
        self._broker.restart()

    def memory_alarm(self, on: bool) -> None:
        self._broker.alarm(on)


@contextmanager
def _open_broker(*, embedded: bool) -> Iterator[_Broker]:
    if embedded:
        # Confirms wait for a sync now and then, as a disk makes them: something has to be in flight when it dies.
        with EmbeddedBroker.in_thread(rng=random.Random(), sync_interval=0.2) as broker:
            yield _Embedded(broker)
    else:
        with PrivateRabbitMQ() as broker:
            yield broker


# --- the story --------------------------------------------------------------------------------------------------------


class _Story:
    def __init__(self, broker: _Broker, view: _View, driver: str) -> None:
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
                await self._kill_in_the_thick_of_it(publishers)
                await trio.sleep(4)
                await self._raise_alarm()
                await trio.sleep(3)
                for _ in range(300):
                    publishers.start_soon(self._submit, "last minute")
                await trio.sleep(0.002)
                in_hand = producer.status().in_flight + producer.status().buffered
                view.say(f"closing gracefully with {in_hand} messages in hand, while the tasks go on publishing")
                self.report = await producer.aclose()
                view.say(
                    f"closed: {self.report.confirmed} confirmed while closing, {len(self.report.unconfirmed)} unconfirmed, "
                    f"{len(self.report.not_sent)} not sent"
                )
                self.publishing = False
            self.account.counters = dict(producer.counters)
            self._show()
            nursery.cancel_scope.cancel()

    async def _kill_in_the_thick_of_it(self, publishers: trio.Nursery) -> None:
        view, producer = self._view, self.producer
        view.say(f"publishing faster, until {ENOUGH_IN_FLIGHT} messages are in flight")
        burst = 0
        while producer.status().in_flight < ENOUGH_IN_FLIGHT:
            burst += 50  # however fast the broker is, some burst is more than it confirms in between
            for _ in range(burst):
                publishers.start_soon(self._submit, "burst")
            # Long enough for the broker to have some in hand, too short for it to have confirmed them all.
            await trio.sleep(0.002)
        in_flight = producer.status().in_flight
        self._broker.kill()
        view.say(f"KILLED the broker with {in_flight} messages in flight")
        if await self._until(lambda status: status.circuit_breaker == "open", 30):
            view.say("the breaker is open: new calls fail fast, accepted messages wait")
        await trio.sleep(2)
        view.say("starting the broker again")
        await trio.to_thread.run_sync(self._broker.start)
        view.say("the broker is back; the producer finds out by itself")
        if await self._until(lambda status: status.connection_state is ConnectionState.CONNECTED, 60) and (
            await self._until(lambda status: status.buffered == 0, 60)
        ):
            view.say("connected again; what was unconfirmed has been sent again")

    async def _raise_alarm(self) -> None:
        view = self._view
        await trio.to_thread.run_sync(self._broker.memory_alarm, True)
        self.account.alarm_seen = await self._until(lambda status: status.blocked, 20)
        if self.account.alarm_seen:
            view.say("the broker raised a memory ALARM and blocks publishers; messages wait")
        await trio.sleep(2)
        await trio.to_thread.run_sync(self._broker.memory_alarm, False)
        if await self._until(lambda status: not status.blocked, 30):
            view.say("the alarm is over")

    async def _until(self, holds: Callable[[Status], bool], seconds: float) -> bool:
        """Wait for a status; False where it does not come within so many seconds."""
        with trio.move_on_after(seconds):
            while not holds(self.producer.status()):  # noqa: ASYNC110 - figures, too, and they announce no change
                await trio.sleep(0.02)
        return holds(self.producer.status())

    async def _watch(self) -> None:
        while True:
            self._show()
            await trio.sleep(0.25)

    def _show(self) -> None:
        self._view.show(
            _Figures(
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


def _count_in_queues(url: str, queues: Sequence[str]) -> Counter[str]:
    """Have another client, in another process, empty the queues."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "warrener._cli.demo_account", *queues],
        env=os.environ | {"RABBITMQ_URL": url},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return Counter(json.loads(done.stdout))


def main(*, driver: str = "native", plain: bool = False, embedded: bool = False) -> int:
    """Run the demo; return its exit status."""
    shortened = ", ".join(f"{name} {_brief(value)}" for name, value in SHORTENED.items())
    kind = "the embedded broker" if embedded else "a private RabbitMQ"
    print(
        textwrap.fill(f"For this demo, other than by default: {shortened}.", 100),
        f"Starting {kind} …",
        sep="\n",
        flush=True,
    )
    try:
        with _open_broker(embedded=embedded) as broker:
            return _tell(broker, driver=driver, plain=plain)
    except RabbitMQMissing as missing:
        print(f"warrener demo: {missing}\nWithout RabbitMQ: warrener demo --embedded", file=sys.stderr)
    except RabbitMQFailed as failed:
        print(f"warrener demo: {failed}", file=sys.stderr)
    return 1


def _brief(value: object) -> str:
    if isinstance(value, Backoff):
        return f"{value.initial:g} s to {value.cap:g} s for ever"
    if isinstance(value, Breaker):
        return f"after {value.threshold} failures for {value.cooldown:g} s"
    return f"{value:g} s"


def _tell(broker: _Broker, *, driver: str, plain: bool) -> int:
    began = time.monotonic()
    with _open_view(plain=plain) as view:
        story = _Story(broker, view, driver)

        async def within_the_limit() -> bool:
            with trio.move_on_after(LIMIT - 15) as scope:
                await story.tell()
            return not scope.cancelled_caught

        in_time = trio.run(within_the_limit)
        if in_time:
            view.say("another client empties the queues")
    account = story.account
    if not in_time:
        print(f"FAILED: the story was not told within {LIMIT:g} s", flush=True)
        return 1
    account.found = _count_in_queues(broker.url, QUEUES)
    took = time.monotonic() - began
    faults = account.faults() + ([f"it took {took:.0f} s"] if took > LIMIT else [])
    print("\nThe account:", *account.lines(), sep="\n")
    if faults:
        print("FAILED: " + "; ".join(faults))
        return 1
    print(f"It balances. {took:.0f} s from “broker ready”.")
    return 0
