"""`make broker`: a RabbitMQ for somebody who has none."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import warrener
from warrener.testing.rabbitmq import RabbitMQMissing, rabbitmq_bin

SCRIPT = Path(__file__).parents[2] / "scripts" / "serve.py"


@pytest.mark.broker
@pytest.mark.parametrize("end", [lambda program: program.send_signal(signal.SIGINT), lambda program: program.stdin.write("quit\n")])  # fmt: skip
def test_the_broker_runs_until_it_is_told_to_end(end) -> None:
    """Its URL can be pasted; Ctrl-C and quit end it with status 0."""
    try:
        rabbitmq_bin()
    except RabbitMQMissing as missing:
        pytest.skip(str(missing))

    async def connect(url: str) -> None:
        async with warrener.open_producer(url) as producer:
            await producer.wait_connected(timeout=20)

    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--broker-only"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:  # fmt: skip
        assert program.stdout is not None
        lines = iter(program.stdout)
        url = next(found[1] for line in lines if (found := re.fullmatch(r" *export RABBITMQ_URL=(amqp://\S+)\n", line)))
        anyio.run(connect, url, backend="trio")
        end(program)
        rest = "".join(lines)
        assert program.wait(60) == 0

    assert "Orders to the broker" in rest
    assert "Traceback" not in rest
