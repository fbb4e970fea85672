"""``warrener publish`` through a RabbitMQ that is killed and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kombu
import pytest

from warrener.testing.rabbitmq import PrivateRabbitMQ

pytestmark = [pytest.mark.broker, pytest.mark.full]

LINES = 30_000


def test_every_line_is_in_the_queue_after_an_outage(rabbitmq: PrivateRabbitMQ, queue_name: str, tmp_path: Path) -> None:
    """Killed in the middle of a file: exit 0, every line there, and what is there twice has one id and was announced."""
    path = tmp_path / "lines"
    path.write_text("".join(f"line {number}\n" for number in range(LINES)))
    url = rabbitmq.url.replace("amqp://", "pyamqp://")
    with kombu.Connection(url) as connection, connection.channel() as channel:
        channel.queue_declare(queue_name, durable=True, auto_delete=False)
    command = [sys.executable, "-m", "warrener._cli.main", "publish", "-k", queue_name, str(path)]
    environ = os.environ | {"RABBITMQ_URL": rabbitmq.url, "WARRENER_BACKOFF_CAP": "1"}
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as program:
        while rabbitmq.queue_depth(queue_name) < LINES // 10:
            assert program.poll() is None
        rabbitmq.kill()
        rabbitmq.start()
        assert program.stderr is not None
        said = program.stderr.read()
    assert program.returncode == 0, said
    ids: dict[str, set[str]] = {}
    found = 0
    with kombu.Connection(url) as connection, connection.channel() as channel:
        while (message := channel.basic_get(queue_name, no_ack=True)) is not None:
            found += 1
            ids.setdefault(message.body.decode(), set()).add(message.properties["message_id"])
        channel.queue_delete(queue_name)
    print(said, f"{found} messages in the queue")
    assert ids.keys() == {f"line {number}" for number in range(LINES)}
    assert {len(names) for names in ids.values()} == {1}
    assert found == LINES or "may be twice" in said
