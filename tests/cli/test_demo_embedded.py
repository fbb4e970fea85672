"""The whole demo, without RabbitMQ."""

from __future__ import annotations

import subprocess
import sys

import pytest

from warrener._cli import demo

#: All that the extras bring; `import` finds none of it in the program below.
EXTRAS = (
    "click", "hypercorn", "hypothesis", "opentelemetry", "prometheus_client", "psycopg", "pytest",
    "pytest_trio", "rich", "starlette", "uvloop",
)  # fmt: skip


def test_the_demo_needs_the_base_install_only() -> None:
    """Without any extra its modules load, the embedded broker starts, and a terminal gets plain lines."""
    program = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
from warrener._cli import check, demo, demo_outbox, demo_victim, demo_witness, machine, publish
from warrener._cli.demo_broker import open_broker
from warrener._cli.demo_view import open_view
import warrener._cli.demo_story
sys.stdout.isatty = lambda: True
with open_broker(embedded=True) as broker, open_view(plain=False) as view:
    view.say("up")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" s  -- up\n")


@pytest.mark.full
def test_the_demo_balances_on_the_embedded_broker(capsys: pytest.CaptureFixture[str]) -> None:
    """With nothing but the package: broker and process killed, revived, blocked, and every message accounted for."""
    status = demo.main(plain=True, embedded=True)

    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "All counts of both acts agree" in shown
