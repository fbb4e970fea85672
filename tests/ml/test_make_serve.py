"""`make serve`: a broker and the service in one command, as the README shows it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from warrener.testing.rabbitmq import RabbitMQMissing, rabbitmq_bin

pytestmark = [pytest.mark.broker, pytest.mark.full]


@pytest.fixture
def rabbitmq_programs() -> None:
    """Skip where RabbitMQ is not installed: the script starts one of its own."""
    try:
        rabbitmq_bin()
    except RabbitMQMissing as missing:
        pytest.skip(str(missing))


HEALTH = "/v1/ml/analytics/health"


def test_the_service_can_be_tried_out_through_an_outage(rabbitmq_programs) -> None:
    """Health is 200 with the broker, 503 once it is killed, and 200 again; quit ends both with status 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    script = Path(__file__).parents[2] / "scripts" / "serve.py"
    with (
        subprocess.Popen(
            [sys.executable, str(script), "--bind", bind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program,
        httpx.Client(base_url=f"http://{bind}", transport=httpx.HTTPTransport(retries=8)) as http,
    ):
        assert program.stdin is not None
        assert program.stdout is not None

        def order(text: str) -> None:
            assert program.stdin is not None
            print(text, file=program.stdin, flush=True)

        try:
            while f"curl -i http://{bind}{HEALTH}" not in program.stdout.readline():
                pass
            wait_for(http, 200)
            order("kill")
            wait_for(http, 503)
            order("start")
            wait_for(http, 200)
            order("quit")
            assert 0 == program.wait(60)
        finally:
            program.terminate()


def wait_for(http: httpx.Client, status: int) -> None:
    """Ask until health has this status; another program changes it."""
    deadline = time.monotonic() + 60
    while (answer := http.get(HEALTH)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    assert answer.json()["healthy"] is (status == 200)
