"""The demo's second act: the process that publishes is killed by SIGKILL, twice, and started again; an outbox keeps its tasks.

The tasks are in a SQLite file. First the broker blocks publishers, so that tasks wait in the file when the process is killed.
The second kill comes while the next process publishes them. At the end another client empties the queue.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from warrener._cli.demo_broker import DemoBroker
from warrener._cli.demo_victim import QUEUE
from warrener._cli.demo_view import View
from warrener.outbox import SQLiteOutbox

__all__ = ["OutboxAccount", "second_act"]

#: Seconds that a process may take to begin, and to empty its outbox.
PATIENCE = 60.0


@define
class OutboxAccount:
    """The ids that the killed processes had reported as stored, and what was found in the queue."""

    stored: set[str] = field(factory=set[str])
    kills: int = 0
    #: Tasks in the file at the first kill.
    waiting: int = 0
    #: message id → (copies, copies with the header of a possible duplicate).
    found: Mapping[str, tuple[int, int]] = field(factory=dict[str, tuple[int, int]])

    @property
    def lost(self) -> int:
        """Number of messages that were reported as stored and are in no queue."""
        return len(self.stored - self.found.keys())

    @property
    def copies(self) -> int:
        """Number of further copies."""
        return sum(count - 1 for count, _ in self.found.values())

    @property
    def unflagged(self) -> int:
        """Number of further copies without the header."""
        return sum(max(0, count - 1 - flagged) for count, flagged in self.found.values())

    @property
    def unreported(self) -> int:
        """Number of messages that were stored just before a kill, which came before their ids were printed."""
        return len(self.found.keys() - self.stored)

    def faults(self) -> list[str]:
        """Return the errors of the account; it is an error too if no message waited at the first kill."""
        claims = [
            (self.lost, "stored messages lost"),
            (self.unflagged, "copies that are not flagged as possible duplicates"),
        ]
        wrong = [f"{count} {text}" for count, text in claims if count]
        return wrong if self.waiting else [*wrong, "no message waited in the outbox at the first kill"]

    def lines(self) -> list[str]:
        """Return the lines of the account."""
        rows = [
            ("stored", len(self.stored), "reported by the processes, of which the last one was not killed"),
            ("kills", self.kills, f"by SIGKILL; {self.waiting} messages waited in the outbox at the first kill"),
            ("in queue", len(self.found), f"different messages, {self.unreported} of them stored in the moment of a kill"),
            ("lost", self.lost, "stored, and not in the queue"),
            ("copies", self.copies, f"{self.copies - self.unflagged} of them flagged as possible duplicates"),
        ]  # fmt: skip
        return [f"  {name:<11}{number:>7}  {text}" for name, number, text in rows]


class _Victim:
    """One process, and the ids that it has printed."""

    def __init__(self, url: str, path: Path, stored: set[str]) -> None:
        self._stored = stored
        self._begun = threading.Event()
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "warrener._cli.demo_victim", path],
            env=os.environ | {"RABBITMQ_URL": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # a kill may have cut it
                    self._stored.add(line.strip())
                    self._begun.set()

    def wait_begun(self) -> None:
        """Return when it has stored a task."""
        if not self._begun.wait(PATIENCE):
            raise RuntimeError(f"the process that publishes did not begin within {PATIENCE:g} s")

    def kill(self) -> int:
        """SIGKILL; return its process id."""
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._reading.join()
        return self._process.pid

    def finish(self) -> int:
        """Let it empty its outbox and end; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait(PATIENCE + 10)
        self._reading.join()
        return status


@contextmanager
def _victim(url: str, path: Path, stored: set[str]) -> Iterator[_Victim]:
    victim = _Victim(url, path, stored)
    try:
        victim.wait_begun()
        yield victim
    finally:
        victim.kill()


def second_act(
    broker: DemoBroker, view: View, count: Callable[[str, list[str]], Mapping[str, tuple[int, int]]]
) -> OutboxAccount:
    """Kill two publishing processes, one by one; return the account. `count` empties queues with another client."""
    account = OutboxAccount()
    with tempfile.TemporaryDirectory(prefix="warrener-demo-") as folder:
        path = Path(folder, "tasks.db")
        outbox = SQLiteOutbox(path)
        view.say("a process stores tasks in an outbox, the file tasks.db, and publishes them")
        with _victim(broker.url, path, account.stored) as victim:
            time.sleep(1.5)
            broker.memory_alarm(True)
            view.say("the broker raised a memory ALARM; the process goes on storing")
            time.sleep(1.5)
            pid = victim.kill()
            account.waiting = outbox.status().backlog
            view.say(f"KILLED the process {pid} with SIGKILL; {account.waiting} tasks wait in tasks.db")
        broker.memory_alarm(False)
        view.say("the alarm is over; starting the process again")
        with _victim(broker.url, path, account.stored) as victim:
            time.sleep(0.2)
            pid = victim.kill()
            view.say(f"KILLED the process {pid} as well; {outbox.status().backlog} tasks wait in tasks.db")
        account.kills = 2
        with _victim(broker.url, path, account.stored) as victim:
            view.say("a third process goes on with tasks.db")
            time.sleep(1.0)
            status = victim.finish()
            view.say(f"it ended with status {status}; {outbox.status().backlog} tasks wait in tasks.db")
        view.say("another client empties the queue")
        account.found = count(broker.url, [QUEUE])
    return account
