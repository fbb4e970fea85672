#!/usr/bin/env python3
"""Run a private RabbitMQ and the ML producer service in front of it, to be tried out with curl.

    scripts/serve.py [--bind HOST:PORT] [ARGUMENTS OF `warrener serve`]
    scripts/serve.py --broker-only [PORT]      # the RabbitMQ alone; default: 5672 if it is free, otherwise another port

Lines on standard input are orders to the broker: kill, start, block, unblock, queues; quit (or Ctrl-C) ends everything.
Both end with this program; the broker also when it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQFailed, RabbitMQMissing, port_is_free

#: What the producer waits for between dials: long outages are tried out by people who do not want to wait for a minute.
DEFAULTS = {"WARRENER_BACKOFF_CAP": "5", "WARRENER_BACKOFF_ATTEMPTS": "forever"}

HINTS = """
Try, in another terminal:

  curl -i {url}/v1/ml/analytics/health
  curl -i {url}/v1/ml/tasks/summarize -H 'Content-Type: application/json' \\
       -d '{{"share_id": "42", "content": {{"text": "A long article ..."}}, "options": {{"style": "bullets"}}}}'
  curl -i {url}/v1/ml/tasks/transcribe -H 'Content-Type: application/json' \\
       -d '{{"share_id": "42", "content": {{"media_url": "https://example.org/talk.mp3"}}}}'
  curl -i {url}/v1/ml/tasks/embed -H 'Content-Type: application/json' \\
       -d '{{"share_id": "42", "content": {{"text": "A long article ...", "type": "article"}}}}'
  curl -i {url}/v1/ml/tasks/embed-batch -H 'Content-Type: application/json' \\
       -d '{{"tasks": [{{"share_id": "42", "content": {{"text": "one"}}}}, {{"share_id": "43", "content": {{"text": "two"}}}}]}}'
  curl {url}/livez {url}/readyz
  curl {url}/metrics

The status page: {url}/

The broker: {broker}

Orders to the broker, here: kill, start, block, unblock, queues, quit
"""

ALONE = """
A private RabbitMQ listens. Its data is deleted when this program ends (Ctrl-C, or quit). In another terminal:

  export RABBITMQ_URL={broker}

Orders to the broker, here: kill, start, block, unblock, queues, quit
After `kill`, `start` starts the same broker with the same data and URL. `quit` and Ctrl-C delete the data.
"""

#: The port of AMQP: programs that name no port find the broker there.
AMQP_PORT = 5672


def obey(broker: PrivateRabbitMQ, end: Callable[[], object]) -> None:
    """Carry out the orders on standard input, to its end."""
    # What is done, and what is said then.
    orders: dict[str, tuple[Callable[[], object], str]] = {
        "kill": (broker.kill, "the broker is dead; `start` starts it again"),
        "start": (broker.start, "the broker listens"),
        "block": (lambda: broker.memory_alarm(True), "the broker blocks publishers; `unblock` ends this"),
        "unblock": (lambda: broker.memory_alarm(False), "the broker takes messages again"),
        "queues": (lambda: print(broker.queues(), flush=True), ""),
        "quit": (end, ""),
    }
    for line in sys.stdin:
        name = line.strip()
        try:
            if name in orders:
                order, done = orders[name]
                order()
                if done:
                    print(done, flush=True)
            elif name:
                print(f"orders: {', '.join(orders)}", flush=True)
        except RabbitMQFailed as failed:
            print(str(failed).partition(";")[0], flush=True)


def chosen_port(text: str | None = None) -> int | None:
    """Return the broker's port: the given one, 5672 if it is free, otherwise None: a free port is drawn."""
    if text is None:
        return AMQP_PORT if port_is_free(AMQP_PORT) else None
    if not (text.isdecimal() and 0 < int(text) < 65536):
        sys.exit(f"serve: PORT must be a number from 1 to 65535, not {text!r}")
    return int(text)


def run_broker(port: int | None) -> int:
    """Run the broker alone until a signal, or until it is told to quit."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with PrivateRabbitMQ(port=port) as broker:
        print(ALONE.format(broker=broker.url), flush=True)
        threading.Thread(target=obey, args=(broker, ended.set), daemon=True).start()
        ended.wait()
    return 0


def main() -> int:
    """Serve until a signal; the exit status is the service's."""
    arguments = sys.argv[1:]
    print("Starting a private RabbitMQ ...", flush=True)
    if arguments[:1] == ["--broker-only"]:
        return run_broker(chosen_port(*arguments[1:]))
    with PrivateRabbitMQ() as broker:
        program = [str(Path(sys.executable).with_name("warrener")), "serve", *arguments]
        # Its own URL only: what the surroundings say of brokers is not for this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        service = subprocess.Popen(program, env=DEFAULTS | inherited | {"RABBITMQ_URL": broker.url})
        # A terminal's Ctrl-C reaches the service by itself; what reaches only this program is passed on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: service.terminate())
        bind = arguments[arguments.index("--bind") + 1] if "--bind" in arguments[:-1] else "127.0.0.1:3001"
        print(HINTS.format(url=f"http://{bind}", broker=broker.url), flush=True)
        threading.Thread(target=obey, args=(broker, service.terminate), daemon=True).start()
        return service.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RabbitMQMissing, RabbitMQFailed) as error:
        print(f"serve: {error}", file=sys.stderr)
        sys.exit(1)
