"""``warrener serve``: the command line's side of the service. The service is imported when it is to run."""

from __future__ import annotations

import argparse
import sys
import textwrap

from warrener._cli.common import Commands

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add ``serve`` to the commands."""
    parser = commands.add_parser(
        "serve",
        help="run the ML producer service (HTTP, health, metrics, status page)",
        description="Run the ML producer: it takes tasks over HTTP and publishes them, confirmed, to Celery workers "
        "through RabbitMQ. Needs the extra ml.",
        epilog=textwrap.dedent(
            """\
            The broker is RABBITMQ_URL, or --url, or the row url of [warrener.producer] in the settings file.

              SIGTERM, SIGINT   wait for the outcome of accepted tasks, close, exit 0; a second signal aborts
              SIGHUP            dial now, also after the attempts are used up
              exit status       0 stopped, 1 cannot listen, 2 wrong settings or outbox, 75 gave up on the broker

            Try it:  RABBITMQ_URL=amqp://user:password@localhost/ warrener serve
                     curl http://127.0.0.1:3001/v1/ml/analytics/health
            """
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML settings (default: $ML_PRODUCER_CONFIG)")
    parser.add_argument("--url", help="the broker; better in RABBITMQ_URL, where other users cannot see it")
    parser.add_argument("--bind", metavar="HOST:PORT", help="the address to listen on (default 127.0.0.1:3001)")
    parser.add_argument(
        "--outbox", metavar="FILE-OR-DSN", help="store tasks in this outbox, also while the broker cannot be reached"
    )
    parser.add_argument("--log", choices=("human", "json"), help="form of the log on stderr (default human)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        from warrener.ml.service import main
    except ImportError as missing:
        print(f"warrener serve: {missing}", file=sys.stderr)
        return 2
    given = {
        name: value for name in ("bind", "outbox", "log", "log_level") if (value := getattr(args, name)) is not None
    }
    return main(args.config, url=args.url, **given)
