"""The parser of ``warrener`` and the way from its arguments to a command.

Each command stands in the file of its name, which adds its parser and runs it. `check`, `demo`, `machine`, `publish` and `rehearse`
need the base install only. The other commands say in one line which extra they need.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from warrener._cli import check, completion, demo, machine, outbox, publish, rehearse, serve

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``warrener …`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="warrener",
        description="A RabbitMQ producer that reconnects by itself and reports the outcome of each message.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (check, demo, publish, outbox, machine, rehearse, serve):
        command.add_parser(commands)
    completion.add_parser(commands, parser)
    for each in commands.choices.values():
        each.set_defaults(parser=each)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # The usage of the command, and not that of `warrener`.
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = args.run(args)
    except BrokenPipeError:
        # The reader of our output, `head` perhaps, has left. The interpreter must not flush into the closed pipe.
        sys.stderr.close()
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
