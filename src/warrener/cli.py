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
    _add_machine(commands)
    _add_serve(commands)
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

    from warrener import check

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
    from warrener import demo

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
    from warrener.machine import table

    printers = {"markdown": table.markdown, "mermaid": table.mermaid, "dot": table.dot}
    print(printers[args.format](), end="")
    return 0


# --- the service ------------------------------------------------------------------------------------------------------


def _add_serve(commands: _Commands) -> None:
    from warrener.ml.commands import add_parser

    add_parser(commands)


if __name__ == "__main__":
    sys.exit(main())
