"""`make broker`: a RabbitMQ for somebody who has none."""

from __future__ import annotations

import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

import warrener
from warrener.testing.rabbitmq import PrivateRabbitMQ, RabbitMQFailed, RabbitMQMissing, free_ports, rabbitmq_bin

SCRIPT = Path(__file__).parents[2] / "scripts" / "serve.py"


async def connect(url: str) -> None:
    """Wait until a producer is connected."""
    async with warrener.open_producer(url) as producer:
        await producer.wait_connected(timeout=20)


@contextmanager
def make_broker(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the script; yield its process when it has printed the URL, and the URL."""
    try:
        rabbitmq_bin()
    except RabbitMQMissing as missing:
        pytest.skip(str(missing))
    command = [sys.executable, str(SCRIPT), "--broker-only", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program:
        assert program.stdout is not None
        found = (
            re.fullmatch(r" *export RABBITMQ_URL=(amqp://\S+)\n", line) for line in iter(program.stdout.readline, "")
        )
        yield program, next(match[1] for match in found if match)


@pytest.mark.broker
@pytest.mark.parametrize("end", [lambda program: program.send_signal(signal.SIGINT), lambda program: program.stdin.write("quit\n")])  # fmt: skip
def test_the_broker_runs_until_it_is_told_to_end(end) -> None:
    """Its URL can be pasted; Ctrl-C and quit end it with status 0."""
    with make_broker() as (program, url):
        anyio.run(connect, url, backend="trio")
        end(program)
        rest = program.stdout.read()
        assert program.wait(60) == 0

    assert "Orders to the broker" in rest
    assert "Traceback" not in rest


@pytest.mark.broker
def test_a_given_port_is_kept_through_kill_and_start() -> None:
    """`make broker PORT=…`: the same URL each time, also for the next broker."""
    (port,) = free_ports(1)
    with make_broker(str(port)) as (program, url):
        assert url == f"amqp://guest:guest@127.0.0.1:{port}/"
        program.stdin.write("kill\nstart\nqueues\nquit\n")
        rest = program.stdout.read()
        assert program.wait(60) == 0

    assert "{}" in rest  # the answer to `queues`: the broker was there again


def test_a_port_in_use_is_one_line() -> None:
    """No second broker, and not the first one's answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RabbitMQFailed, match=f"port {port} on 127.0.0.1 is used by another program"):
            PrivateRabbitMQ(port=port, bin_folder=Path("/nowhere")).__enter__()


def test_the_port_is_the_usual_one_if_it_is_free(monkeypatch) -> None:
    """Programs that name no port find the broker at 5672; where another one is there, a port is drawn."""
    script = runpy.run_path(str(SCRIPT))
    chosen = script["chosen_port"]

    for free, port in ((True, 5672), (False, None)):
        monkeypatch.setitem(chosen.__globals__, "port_is_free", lambda _, free=free: free)
        assert chosen() == port
    assert chosen("5673") == 5673
    for wrong in ("0", "65536", "amqp", "-1", ""):
        with pytest.raises(SystemExit, match="PORT must be a number from 1 to 65535"):
            chosen(wrong)
