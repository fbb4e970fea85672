"""The command line. `check`, `demo` and `machine` need the base install only; the rest is imported when it is asked for."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

__all__ = ["main"]

#: 128 + SIGINT, as shells count it.
INTERRUPTED = 130

_DRIVERS = ("native", "aiormq")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``warrener …`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="warrener",
        description="A RabbitMQ producer that survives its broker and tells the truth about each message.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_demo(commands)
    _add_publish(commands)
    _add_machine(commands)
    _add_serve(commands)
    _add_completion(commands, parser)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except BrokenPipeError:
        # Whoever read us, `head` perhaps, has seen enough; keep the interpreter from flushing into the closed pipe.
        sys.stderr.close()
        return 1
    return status


#: argparse has no public name for what `add_subparsers` returns.
_Commands: TypeAlias = Any

# --- check ------------------------------------------------------------------------------------------------------------


def _add_check(commands: _Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="connect, declare, publish, read back; say what fails and what to do",
        description="Check a broker step by step. Exit status 0: all is well; 1: a step failed, and the lines say which.",
        epilog="A password on the command line can be seen by other users of this machine; RABBITMQ_URL cannot.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="amqp://user:password@host/vhost (default: RABBITMQ_URL)")
    parser.add_argument("--watch", action="store_true", help="print changes of state until interrupted, instead")
    parser.add_argument(
        "--driver", choices=_DRIVERS, default="native", help="what speaks to the broker (default: native)"
    )
    parser.set_defaults(run=_check)


def _say_it_ourselves() -> None:
    """Keep the library's log off the terminal: these commands print what it would say."""
    logging.getLogger("warrener").addHandler(logging.NullHandler())


def _check(args: argparse.Namespace) -> int:
    import trio

    from warrener._cli import check

    _say_it_ourselves()
    run = check.watch if args.watch else check.check
    status = INTERRUPTED
    try:
        status = trio.run(lambda: run(args.url, driver=args.driver))
    except* KeyboardInterrupt:
        pass
    return status


# --- demo -------------------------------------------------------------------------------------------------------------


def _add_demo(commands: _Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="publish through a broker that is killed, and account for every message",
        description="Start a private RabbitMQ, publish ML tasks, kill it, bring it back, raise an alarm, shut down under "
        "load, then count what is in the queues. Exit status 0 only if every message is accounted for.",
    )
    parser.add_argument(
        "--driver", choices=_DRIVERS, default="native", help="what speaks to the broker (default: native)"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines even where rich is installed")
    parser.add_argument(
        "--embedded", action="store_true", help="without RabbitMQ: use the broker that comes with warrener"
    )
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from warrener._cli import demo

    _say_it_ourselves()
    status = INTERRUPTED
    try:
        status = demo.main(driver=args.driver, plain=args.plain, embedded=args.embedded)
    except* KeyboardInterrupt:
        pass
    return status


# --- machine ----------------------------------------------------------------------------------------------------------


def _add_machine(commands: _Commands) -> None:
    parser = commands.add_parser(
        "machine",
        help="print the state machine: its table, or its diagram",
        description="Print the connection's state machine as derived by running it.",
    )
    parser.add_argument(
        "--format",
        choices=("markdown", "mermaid", "dot"),
        default="markdown",
        help="default: markdown, the whole table",
    )
    parser.set_defaults(run=_machine)


def _machine(args: argparse.Namespace) -> int:
    from warrener._cli import machine as machine_table

    printers = {"markdown": machine_table.markdown, "mermaid": machine_table.mermaid, "dot": machine_table.dot}
    print(printers[args.format](), end="")
    return 0


# --- publish ----------------------------------------------------------------------------------------------------------


def _add_publish(commands: _Commands) -> None:
    parser = commands.add_parser(
        "publish",
        help="publish lines, JSON or files, each confirmed; keep what was not",
        description="Publish each line (or file) as one message, and wait for the broker's confirm of each. "
        "What is not confirmed is written to a file that can be published again.",
        epilog="""\
formats
  lines      each line is a message; empty lines are skipped
  jsonl      the same, and each line must be JSON; content type application/json
  messages   each line is an object: body (text) or body_base64, routing_key, headers, ...; what --unconfirmed wrote
  files      each file is a message; a folder stands for all files below it

exit status  0 all confirmed, 1 not all, 2 wrong arguments or input, 130 interrupted (what was under way is settled)

examples     warrener publish -k tasks tasks.txt
             journalctl -f -o json | warrener publish -k log --format jsonl
             warrener publish -k tasks --resume tasks.place tasks.txt     # again, to go on where it ended

The broker is RABBITMQ_URL, or --url, which other users of this machine can see.
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    _names_file(
        add("paths", nargs="*", metavar="PATH", default=["-"], help="what to read (default: -, standard input)")
    )
    add("-k", "--routing-key", metavar="KEY", help="where to; with the default exchange, the name of a queue")
    add("-x", "--exchange", metavar="NAME", default="", help="default: the default exchange")
    add("-f", "--format", choices=("lines", "jsonl", "messages", "files"), default="lines", help="default: lines")
    add("--content-type", metavar="TYPE", help="e.g. text/plain; with jsonl, application/json unless given")
    _names_file(add("--resume", metavar="FILE", help="keep the place in FILE, and go on there when FILE exists"))
    _names_file(
        add("--unconfirmed", metavar="FILE", help="for what is not confirmed (default: warrener-unconfirmed-….jsonl)")
    )
    add("--max-unconfirmed", metavar="N", type=int, default=100, help="stop when more are not confirmed (default: 100)")
    add("--timeout", metavar="S", type=float, help="seconds for each message (default: until the attempts are used up)")
    add("--window", metavar="N", type=int, default=1000, help="messages under way at once (default: 1000)")
    add("--url", help="the broker (default: RABBITMQ_URL)")
    add("--driver", choices=_DRIVERS, default="native", help="what speaks to the broker (default: native)")
    add("--plain", action="store_true", help="plain lines even where rich is installed")
    add("--quiet", action="store_true", help="say nothing unless something is not confirmed")
    parser.set_defaults(run=_publish, parser=parser)


def _publish(args: argparse.Namespace) -> int:
    import math
    from pathlib import Path

    import trio

    from warrener._cli.publish import Plan, publish
    from warrener._cli.publish_input import Target

    if args.routing_key is None and args.format != "messages":
        args.parser.error("-k/--routing-key is needed: where are the messages to go?")
    if args.max_unconfirmed < 0 or not 1 <= args.window <= 10_000 or not (args.timeout is None or args.timeout > 0):
        args.parser.error("--max-unconfirmed from 0, --window from 1 to 10000, --timeout above 0")
    content_type = args.content_type or ("application/json" if args.format == "jsonl" else None)
    _say_it_ourselves()
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


# --- completion -------------------------------------------------------------------------------------------------------


def _add_completion(commands: _Commands, whole: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "completion",
        help="print the completions for a shell",
        description="Print what makes a shell complete these commands; needs the extra cli.",
        epilog="bash: warrener completion bash > ~/.local/share/bash-completion/completions/warrener    "
        "zsh: warrener completion zsh > _warrener, in a folder of $fpath",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=_completion, whole=whole)


def _names_file(action: argparse.Action) -> None:
    """Have shells complete it by the names of files; these are shtab's own words for that."""
    vars(action)["complete"] = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        print("warrener completion: shtab is missing: pip install 'warrener[cli]'", file=sys.stderr)
        return 2
    print(shtab.complete(args.whole, args.shell))
    return 0


# --- the service ------------------------------------------------------------------------------------------------------


def _add_serve(commands: _Commands) -> None:
    from warrener.ml.commands import add_parser

    add_parser(commands)


if __name__ == "__main__":
    sys.exit(main())
