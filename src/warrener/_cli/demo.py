"""``warrener demo``: kill and block a broker while ML tasks are published, then account for every message.

Several Trio tasks publish at a steady rate, each message under its own id. The broker is killed while messages are in
flight, comes back, and raises a memory alarm. In the end the producer is closed while the tasks go on publishing. Then
another client (aiormq, in another process, `demo_witness`) empties the queues, and `demo_account` compares its count with
the outcomes of the publishers. In the second act (`demo_outbox`) the publishing process itself is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from warrener._cli.common import INTERRUPTED, Commands, add_driver, silence_log
from warrener._cli.demo_view import open_view
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker

if TYPE_CHECKING:
    from warrener._cli.demo_broker import DemoBroker

__all__ = ["add_parser", "main"]


def add_parser(commands: Commands) -> None:
    """Add ``demo`` to the commands."""
    parser = commands.add_parser(
        "demo",
        help="publish through a broker that is killed, and count every message",
        description="Start a private RabbitMQ, publish ML tasks, kill it, bring it back, raise an alarm, shut down under "
        "load, then count the messages in the queues. Then kill a process that publishes through an outbox, and start it "
        "again. Exit status 0 only if every message has one outcome, and each confirmed or stored one is in a queue.",
    )
    add_driver(parser)
    parser.add_argument("--plain", action="store_true", help="plain lines even where rich is installed")
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="use the broker that comes with warrener; the default where RabbitMQ is not installed",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    silence_log()
    status = INTERRUPTED
    try:
        status = main(driver=args.driver, plain=args.plain, embedded=args.embedded)
    except* KeyboardInterrupt:
        pass
    return status


def main(*, driver: str = "native", plain: bool = False, embedded: bool = False) -> int:
    """Run the demo; return its exit status."""
    # The tools for tests and the ML producer are imported when the demo runs.
    from warrener._cli.demo_broker import open_broker, rabbitmq_is_missing
    from warrener._cli.demo_story import SHORTENED
    from warrener.testing.rabbitmq import RabbitMQFailed

    if not embedded and rabbitmq_is_missing():
        print("RabbitMQ is not installed here, so the demo uses the embedded broker.", flush=True)
        embedded = True
    shortened = ", ".join(f"{name} {_brief(value)}" for name, value in SHORTENED.items())
    print(textwrap.fill(f"This demo changes these defaults: {shortened}.", 100), flush=True)
    try:
        with open_broker(embedded=embedded) as broker:
            return _tell(broker, driver=driver, plain=plain)
    except RabbitMQFailed as failed:
        print(f"warrener demo: {failed}\nWithout RabbitMQ: warrener demo --embedded", file=sys.stderr)
    return 1


def _brief(value: object) -> str:
    if isinstance(value, Backoff):
        return f"{value.initial:g} s to {value.cap:g} s, no limit of attempts"
    if isinstance(value, Breaker):
        return f"opens after {value.threshold} failures for {value.cooldown:g} s"
    return f"{value:g} s"


def _tell(broker: DemoBroker, *, driver: str, plain: bool) -> int:
    from warrener._cli.demo_outbox import second_act
    from warrener._cli.demo_story import LIMIT, Story
    from warrener.ml.topology import QUEUES

    began = time.monotonic()
    with open_view(plain=plain) as view:
        story = Story(broker, view, driver)

        async def within_the_limit() -> bool:
            with trio.move_on_after(LIMIT - 15) as scope:
                await story.tell()
            return not scope.cancelled_caught

        in_time = trio.run(within_the_limit)
        if in_time:
            view.say("another client empties the queues")
    account = story.account
    if not in_time:
        print(f"FAILED: the demo did not end within {LIMIT:g} s", flush=True)
        return 1
    account.found = Counter({name: count for name, (count, _) in _count_in_queues(broker.url, QUEUES).items()})
    print("\nThe account:", *account.lines(), sep="\n")
    if faults := account.faults():
        print("FAILED: " + "; ".join(faults))
        return 1
    print("All counts agree.\n\nSecond act: the process that publishes is killed.", flush=True)
    with open_view(plain=plain, table=False) as view:
        stored = second_act(broker, view, _count_in_queues)
    took = time.monotonic() - began
    faults = stored.faults() + ([f"the demo took {took:.0f} s, and {LIMIT:g} s are allowed"] if took > LIMIT else [])
    print("\nThe account of the outbox:", *stored.lines(), sep="\n")
    if faults:
        print("FAILED: " + "; ".join(faults))
        return 1
    print(f"All counts of both acts agree. {took:.0f} s since the broker was ready.")
    return 0


def _count_in_queues(url: str, queues: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Have another client, in another process, empty the queues."""
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "warrener._cli.demo_witness", *queues],
        env=os.environ | {"RABBITMQ_URL": url},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return {name: (copies, flagged) for name, (copies, flagged) in json.loads(done.stdout).items()}
