"""A machine that is short of something costs a producer time, and nothing else: it comes back by itself, its account balanced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.shortages.child import CONFIRMS
from warrener.testing import EmbeddedBroker

_ROOT = Path(__file__).parents[2]
#: Guards against hanging.
_PATIENCE = 120.0
_PAIRS = [("native", "trio"), ("native", "asyncio"), ("aiormq", "trio"), ("aiormq", "asyncio")]
#: The errors of the machine are met by both drivers; each kind is kept once for each in `make test`.
_KEPT = [("native", "trio"), ("aiormq", "trio")]


def borne(kind: str, driver: str, backend: str, folder: Path) -> dict[str, Any]:
    """Run the child through the shortage; return its account."""
    with EmbeddedBroker.in_thread() as broker:
        broker.declare_queue("q")
        url = broker.url.replace("127.0.0.1", "localhost")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.shortages.child", kind, driver, backend, url, str(folder)],
            cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{_ROOT / 'src'}{os.pathsep}{_ROOT}"},
        )  # fmt: skip
        watchdog = threading.Timer(_PATIENCE, process.kill)
        watchdog.start()
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said = line
            if line == "cut\n":
                broker.drop_connections()
        _, errors = process.communicate()
        watchdog.cancel()
    assert process.returncode == 0, errors
    account: dict[str, Any] = json.loads(said)
    assert account["accepted"] == account["settled"]
    assert account["outcomes"]["Receipt"] >= 2 * CONFIRMS
    return account


def _cases(kind: str) -> list[object]:
    return [
        pytest.param(
            kind, *pair, marks=pytest.mark.slow if pair in _KEPT else pytest.mark.full, id="-".join((kind, *pair))
        )
        for pair in _PAIRS
    ]


@pytest.mark.parametrize(
    ("kind", "driver", "backend"),
    [case for kind in ("descriptors", "memory", "resolver", "disk", "wall_clock") for case in _cases(kind)],
)
def test_a_shortage_is_borne(kind: str, driver: str, backend: str, tmp_path: Path) -> None:
    """Without descriptors, memory, names or disk, and with a clock that jumps, dials fail and are backed off."""
    account = borne(kind, driver, backend, tmp_path)
    if kind == "resolver":
        assert account["outcomes"]["threads of the resolver"] <= 1  # none, where no dial began meanwhile
    if kind in ("wall_clock", "disk"):
        assert not {"silent", "stalled", "confirm_overdue"} & set(account["faults"])


@pytest.mark.full
@pytest.mark.parametrize(("driver", "backend"), _PAIRS)
def test_a_loop_that_is_held_for_five_seconds(driver: str, backend: str, tmp_path: Path) -> None:
    """The broker may have ended the link meanwhile; the producer takes in what has arrived, and goes on."""
    borne("held", driver, backend, tmp_path)
