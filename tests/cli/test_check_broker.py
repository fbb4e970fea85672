"""``warrener check`` against a real RabbitMQ: every step, and every refusal that it explains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest

from warrener._cli.main import main
from warrener.testing.rabbitmq import PrivateRabbitMQ

pytestmark = pytest.mark.broker

DRIVERS = pytest.mark.parametrize("driver", ["native", "aiormq"])


def _check(capsys: pytest.CaptureFixture[str], url: str, driver: str) -> tuple[int, list[str], str]:
    status = main(["check", url, f"--driver={driver}"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    lines = out.splitlines()
    return status, [" ".join(line[:16].split()) for line in lines if line[:1] != " "], out


@DRIVERS
def test_all_steps_pass(rabbitmq: PrivateRabbitMQ, capsys: pytest.CaptureFixture[str], driver: str) -> None:
    """A sound broker passes each step, the negotiated parameters are printed, and no queue is left."""
    before = rabbitmq.queues()
    status, steps, out = _check(capsys, rabbitmq.url, driver)
    assert (status, steps) == (
        0,
        ["ok connect", "ok declare", "ok publish", "ok unroutable", "ok read back", "ok clean up"],
    )
    for part in ("RabbitMQ 3.", "heartbeat 60 s", "frame_max 131072", "TLS none", f"driver {driver}"):
        assert part in out
    assert rabbitmq.queues() == before


def _wrong_password(broker: PrivateRabbitMQ) -> str:
    return broker.url_for(password="wrong-passw0rd")


def _missing_vhost(broker: PrivateRabbitMQ) -> str:
    return broker.url_for(vhost="nowhere")


def _tls_to_plain(broker: PrivateRabbitMQ) -> str:
    return broker.url.replace("amqp://", "amqps://")


def _may_not_declare(broker: PrivateRabbitMQ) -> str:
    reader = f"reader-{uuid.uuid4().hex}"
    broker.add_user(reader, "reader", vhost=None)
    broker.set_permissions(reader, configure="^$")
    return broker.url_for(reader, "reader")


@DRIVERS
@pytest.mark.parametrize(
    ("url", "last_step", "words"),
    [
        (_wrong_password, "FAIL connect", ["refused the login", "check user and password"]),
        (_missing_vhost, "FAIL connect", ["refused the virtual host", "rabbitmqctl list_vhosts"]),
        (_tls_to_plain, "FAIL connect", ["does not speak TLS", "5671"]),
        (_may_not_declare, "FAIL declare", ["could not be declared", "permissions"]),
    ],
)
def test_a_refusal_names_step_reason_and_remedy(
    rabbitmq: PrivateRabbitMQ,
    capsys: pytest.CaptureFixture[str],
    driver: str,
    url: Callable[[PrivateRabbitMQ], str],
    last_step: str,
    words: list[str],
) -> None:
    """Status 1; the last line but one names the step and why, the last one what to do; no password."""
    status, steps, out = _check(capsys, url(rabbitmq), driver)
    assert (status, steps[-1]) == (1, last_step)
    assert [word for word in words if word not in out] == []
    assert "wrong-passw0rd" not in out


@pytest.mark.parametrize("driver", ["native", pytest.param("aiormq", marks=pytest.mark.full)])
def test_watching_sees_the_broker_go_and_come_back(rabbitmq: PrivateRabbitMQ, driver: str) -> None:
    """``--watch`` prints the loss and the reconnection, and ends with status 0 on SIGINT."""
    command = [sys.executable, "-m", "warrener._cli.main", "check", "--watch", f"--driver={driver}"]
    environ = os.environ | {"RABBITMQ_URL": rabbitmq.url, "WARRENER_BACKOFF_CAP": "1"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        try:
            assert "watching amqp://127.0.0.1" in watcher.stdout.readline()
            assert _next_state(watcher, "CONNECTED").startswith("CONNECTED")
            rabbitmq.kill()
            assert "next attempt in" in _next_state(watcher, "DISCONNECTED")
            rabbitmq.start()
            assert "link" in _next_state(watcher, "CONNECTED")
            watcher.send_signal(signal.SIGINT)
            assert watcher.wait(30) == 0
        finally:
            watcher.kill()


def _next_state(watcher: subprocess.Popen[str], state: str) -> str:
    """Read on until a line shows the state; an end of the output fails."""
    assert watcher.stdout is not None
    for line in watcher.stdout:
        words = line.split(None, 1)[1]
        if words.startswith(state):
            return words
    raise AssertionError(f"the watcher ended before {state}")
