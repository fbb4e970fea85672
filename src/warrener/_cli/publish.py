"""``warrener publish``: publish lines, JSON or files, each confirmed, and keep the messages that were not confirmed.

One task reads and publishes, one takes the outcomes in the order of the input (`publish_run`). Between them are at most
`window` messages and `MAX_HELD` bytes, so memory is bounded whatever the input. The breaker is off: a program that
publishes a file waits through an outage. The run ends when the attempts of the backoff are used up.

With ``--resume FILE`` the run keeps its place in FILE (`publish_files`): how many messages have their outcome, and a
digest of the input so far. The same command goes on there, also after a crash of this program. Message ids are made from
the id of the run and the number of the message, so a message that a crash publishes twice has the same id both times.

Exit status: 0 everything was confirmed; 1 something was not; 2 wrong arguments, settings or input; 128 + n signal n.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import anyio
import trio

from warrener._cli.common import Commands, add_driver, silence_log
from warrener._cli.completion import names_file
from warrener._cli.publish_files import Lock, Place, PlaceFile, reason
from warrener._cli.publish_input import FORMATS, Target
from warrener._cli.publish_plan import Plan, Refused
from warrener._cli.publish_run import Run
from warrener._cli.publish_view import LOOK_EVERY, Pace, View, condition, open_view, summary
from warrener._publishing.producer import Producer, running
from warrener._settings.settings import Settings
from warrener._settings.sources import defaults
from warrener.errors import ConnectError, GaveUp, ProducerClosed, SettingsError

__all__ = ["Plan", "add_parser", "publish"]


def add_parser(commands: Commands) -> None:
    """Add ``publish`` to the commands."""
    parser = commands.add_parser(
        "publish",
        help="publish lines, JSON or files; save the messages that are not confirmed",
        description="Publish each line (or file) as one message, and wait for the broker's confirm of each. "
        "Messages that are not confirmed are written to a file, which can be published again.",
        epilog="""\
formats
  lines      each line is a message; empty lines are skipped
  jsonl      the same, and each line must be JSON; content type application/json
  messages   each line is an object: body (text) or body_base64, routing_key, headers, ...; --unconfirmed writes such lines
  files      each file is a message; a folder stands for all files below it

exit status  0 all confirmed, 1 not all, 2 wrong arguments or input, 130 interrupted (begun messages have an outcome)

examples     warrener publish -k tasks tasks.txt
             journalctl -f -o json | warrener publish -k log --format jsonl
             warrener publish -k tasks --resume tasks.place tasks.txt     # again, to go on where it ended

The broker is RABBITMQ_URL, or --url, which other users of this machine can see.
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names_file(add("paths", nargs="*", metavar="PATH", default=["-"], help="what to read (default: -, standard input)"))
    add("-k", "--routing-key", metavar="KEY", help="the routing key; with the default exchange, the name of a queue")
    add("-x", "--exchange", metavar="NAME", default="", help="default: the default exchange")
    add("-f", "--format", choices=FORMATS, default="lines", help="default: lines")
    add("--content-type", metavar="TYPE", help="e.g. text/plain; with jsonl, application/json unless given")
    names_file(
        add("--resume", metavar="FILE", help="save the position in FILE; if FILE exists, continue from its position")
    )
    names_file(
        add(
            "--unconfirmed",
            metavar="FILE",
            help="the file for messages that are not confirmed (default: warrener-unconfirmed-….jsonl)",
        )
    )
    add(
        "--max-unconfirmed",
        metavar="N",
        type=int,
        default=100,
        help="stop when more than N messages are not confirmed (default: 100)",
    )
    add("--timeout", metavar="S", type=float, help="seconds for each message (default: until the attempts are used up)")
    add("--window", metavar="N", type=int, default=1000, help="messages under way at once (default: 1000)")
    add("--url", help="the broker (default: RABBITMQ_URL)")
    add_driver(parser)
    add("--plain", action="store_true", help="plain lines even where rich is installed")
    add("--quiet", action="store_true", help="print only if a message is not confirmed, or the run ends early")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    if args.routing_key is None and args.format != "messages":
        args.parser.error("-k/--routing-key is needed; with the default exchange, it is the name of a queue")
    if args.max_unconfirmed < 0 or not 1 <= args.window <= 10_000 or not (args.timeout is None or args.timeout > 0):
        args.parser.error("--max-unconfirmed must be 0 or more, --window 1 to 10000, and --timeout more than 0")
    content_type = args.content_type or ("application/json" if args.format == "jsonl" else None)
    silence_log()
    plan = Plan(
        paths=args.paths,
        form=args.format,
        target=Target(args.exchange, args.routing_key, content_type),
        url=args.url,
        driver=args.driver,
        timeout=math.inf if args.timeout is None else args.timeout,
        window=args.window,
        tolerated=args.max_unconfirmed,
        unconfirmed=args.unconfirmed and Path(args.unconfirmed),
        resume=args.resume and Path(args.resume),
        plain=args.plain,
        quiet=args.quiet,
    )
    return trio.run(publish, plan)


async def publish(plan: Plan) -> int:
    """Publish what the plan says; return the exit status. Everything that is said goes to standard error."""
    try:
        # A command ends when the broker stays away: eleven dials in a row, unless the user says otherwise.
        patience = defaults(backoff_cap="60", backoff_attempts="10")
        settings = Settings.resolve(plan.url, below=patience, breaker=None, when_exhausted="stay", topology=())
        with _held(plan):
            return await _publish(plan, settings)
    except (SettingsError, Refused) as error:
        print(f"warrener publish: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"warrener publish: {error.filename or plan.resume or plan.unconfirmed}: {reason(error)}", file=sys.stderr
        )
    return 2


def _held(plan: Plan) -> AbstractContextManager[object]:
    """Return the lock of the ``--resume`` file; without ``--resume``, a context manager that locks nothing."""
    if plan.resume is None:
        return nullcontext()
    _check_folder(plan.resume, "--resume")
    return Lock(plan.resume.absolute())


async def _publish(plan: Plan, settings: Settings) -> int:
    place_file = None if plan.resume is None else PlaceFile(plan.resume.absolute(), plan)
    place = Place() if place_file is None else place_file.load()
    _check_files(plan, place)
    file = plan.unconfirmed or Path(f"warrener-unconfirmed-{place.run[:8]}.jsonl")
    place.file = place.file or str(file.absolute())
    run = Run(plan, Producer(settings, driver=plan.driver), place, place_file)
    run.open_files(named=plan.unconfirmed is not None)
    try:
        return await _tell(run, plan)
    finally:
        run.close_files()


async def _tell(run: Run, plan: Plan) -> int:
    began = anyio.current_time()
    caught: list[int] = []
    async with running(run.producer) as producer, anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, run, caught)
        with open_view(plan) as view:
            tasks.start_soon(_look, run, view)
            try:
                await producer.wait_connected()
            except (ConnectError, GaveUp, ProducerClosed) as error:
                run.stop_reading(str(error))
            else:
                async with anyio.create_task_group() as both:
                    both.start_soon(run.read)
                    both.start_soon(run.settle)
            tasks.cancel_scope.cancel()
    took = anyio.current_time() - began
    if not plan.quiet or run.failed:
        print(*summary(run, took), sep="\n", file=sys.stderr)
    if run.bad_input is not None:
        return 2
    return 128 + caught[0] if caught else int(run.failed)


def _check_files(plan: Plan, place: Place) -> None:
    """Check the paths before anything is published, so that a wrong path does not end the run in the middle."""
    for path in plan.paths:
        if path != "-" and not Path(path).exists():
            raise Refused(f"{path} is not there")
        if plan.form != "files" and Path(path).is_dir():
            raise Refused(f"{path} is a folder; folders are for --format files")
    if (
        plan.unconfirmed is not None
        and os.path.lexists(plan.unconfirmed)
        and str(plan.unconfirmed.absolute()) != place.file
    ):
        raise Refused(f"{plan.unconfirmed} exists; remove it, or name another for --unconfirmed")
    _check_folder(plan.unconfirmed or Path(place.file or "here"), "--unconfirmed")


def _check_folder(file: Path, option: str) -> None:
    if not os.access(file.absolute().parent, os.W_OK):
        raise Refused(f"{file.absolute().parent} cannot be written to; name a file elsewhere with {option}")


async def _obey_signals(run: Run, caught: list[int]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as closing:
            async for number in signals:
                if caught:
                    run.producer.abort()
                    continue
                caught.append(number)
                run.stop_reading(f"{signal.Signals(number).name}; every message that was published has its outcome")
                closing.start_soon(run.producer.aclose)


async def _look(run: Run, view: View) -> None:
    pace = Pace()
    while True:
        view.show(pace.text(run.progress) + condition(run.producer.status()), run.progress)
        await anyio.sleep(LOOK_EVERY)
