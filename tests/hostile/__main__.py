"""Every kind of hostile broker against each driver on each event loop: how many inputs, what they got, what they cost.

    python -m tests.hostile [--seconds 3] [--seed N] [--only WORDS] [--driver native] [--backend trio]

For each attack a process with one producer (tests/hostile/victim.py) first works with a good broker, then meets the hostile
one for some seconds, and then a good one again. What must hold: the process lives and confirms again by itself, with its account
balanced; its memory grows by at most 32 MiB; its event loop is never held for a second; the log is bounded; the password
is in no text. The status is 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import define, field

from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.wire import Conn, Ended

ROOT = Path(__file__).resolve().parents[2]
SECRET = "pa/ss w0rd+Zeppelin"
DRIVERS, BACKENDS = ("native", "aiormq"), ("trio", "asyncio")

#: MiB; seconds; lines of the log for each dial or link, and beyond that.
GROWTH, HELD, LINES_PER_LINK, LINES = 32.0, 1.0, 6, 120


@define
class Broker:
    """Takes connections, one after the other; how it behaves is changed from outside."""

    seed: int
    attack: Attack | None = None
    inputs: int = 0
    connections: int = 0
    crash: BaseException | None = None
    _listener: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _open: set[Conn] = field(factory=set)
    _over: bool = False

    def __attrs_post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://ann:{quote(SECRET, safe='')}@127.0.0.1:{self._listener.getsockname()[1]}/"

    def become(self, attack: Attack | None) -> None:
        """Attack, or be a good broker; the connections of before end."""
        self.attack = attack
        for conn in list(self._open):
            conn.cut()

    def _accept(self) -> None:
        while not self._over:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(sock,), daemon=True).start()

    def _handle(self, sock: socket.socket) -> None:
        conn = Conn(sock, time.monotonic() + 3600, SECRET)
        self._open.add(conn)
        self.connections += 1
        attack, rng = self.attack, random.Random(self.seed * 100_000 + self.connections)
        try:
            if attack is None:
                conn.serve()
            else:
                attack.run(conn, rng)
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            self.crash = error
        finally:
            if attack is not None:
                self.inputs += conn.inputs
            self._open.discard(conn)
            conn.close()

    def close(self) -> None:
        """End."""
        self._over = True
        self._listener.close()
        for conn in list(self._open):
            conn.cut()


def memory(pid: int, key: str) -> float:
    """Return a figure of the process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(key)


def tried(attack: Attack, driver: str, backend: str, seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Let one producer meet one attack; return the figures and what was wrong."""
    broker = Broker(seed)
    log = ROOT / "build" / "hostile" / f"{attack.run.__name__}-{driver}-{backend}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.victim", broker.url, driver, backend],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    said = process.stdout

    def order(text: str) -> dict[str, Any]:
        print(text, file=process.stdin, flush=True)
        line = said.readline()
        return json.loads(line) if line else {"ended": True}

    wrong: list[str] = []
    figures: dict[str, Any] = {}
    watchdog = threading.Timer(seconds + 120, process.kill)
    watchdog.start()
    try:
        figures = order("watch")
        before = memory(process.pid, "VmRSS")
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM counts from here
        broker.become(attack)
        time.sleep(seconds)
        grown = memory(process.pid, "VmHWM") - before
        broker.become(None)
        figures = order("recover")
        grown = max(grown, memory(process.pid, "VmRSS") - before)
        figures |= {"grown": grown, "inputs": broker.inputs, "links": broker.connections}
        order("end")
        account = json.loads(said.readline() or "{}")
    except (OSError, LookupError):
        account = {}
    finally:
        status = process.wait()
        watchdog.cancel()
        said.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        broker.close()
    if broker.crash is not None:
        wrong.append(f"the attack itself failed: {broker.crash!r}")
    if status or "held" not in figures:
        return figures, [*wrong, f"the process ended with status {status}; see {log}"]
    if figures["grown"] > GROWTH:
        wrong.append(f"memory grew by {figures['grown']:.0f} MiB")
    if figures["held"] > HELD:
        wrong.append(f"the event loop was held for {figures['held']:.1f} s")
    if figures["lines"] > LINES + LINES_PER_LINK * figures["links"]:
        wrong.append(f"{figures['lines']} lines of log for {figures['links']} links")
    if figures["leaks"]:
        wrong.append(f"the password was in {figures['leaks']} texts")
    if not figures["recovered"]:
        wrong.append("it did not confirm again within 30 s")
    if account.get("accepted") != account.get("settled"):
        wrong.append(f"the account: {account}")
    return figures, wrong


def main() -> int:
    """Parse the arguments, attack, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="attacks whose name or function has this in it")
    parser.add_argument("--driver", choices=DRIVERS)
    parser.add_argument("--backend", choices=BACKENDS)
    options = parser.parse_args()
    failed = total = links = 0
    for attack in ATTACKS:
        if options.only not in f"{attack.name} {attack.run.__name__}":
            continue
        print(attack.name, flush=True)
        for driver in (options.driver,) if options.driver else DRIVERS:
            for backend in (options.backend,) if options.backend else BACKENDS:
                figures, wrong = tried(attack, driver, backend, options.seconds, options.seed)
                failed += bool(wrong)
                total += figures.get("inputs", 0)
                links += figures.get("links", 0)
                print(f"  {driver:6} {backend:7} {line(figures)}", flush=True)
                for each in wrong:
                    print(f"    WRONG: {each}", flush=True)
    print(f"{total:,} inputs on {links:,} links; {failed or 'no'} pairs of attack and client with something wrong")
    return int(bool(failed))


def line(figures: dict[str, Any]) -> str:
    """Show the figures of one attack."""
    if "held" not in figures:
        return "-"
    faults = ", ".join(f"{count} {kind}" for kind, count in figures["faults"].items()) or "no fault"
    return (
        f"{figures['inputs']:>9,} inputs {figures['links']:>4} links  +{figures['grown']:.1f} MiB"
        f"  held {1000 * figures['held']:.0f} ms  log {figures['lines']} lines  {faults}"
    )


if __name__ == "__main__":
    sys.exit(main())
