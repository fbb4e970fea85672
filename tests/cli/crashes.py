"""Kill `warrener publish --resume` before each thing that it does to a file, and in the middle of each write.

    python -m tests.cli.crashes INPUT-SIZE

Each point has a folder of its own, in which the command is killed there and then run to its end. For each point one line of JSON
says what was done there and what is in the folder afterwards. The broker is RABBITMQ_URL, and has the queue `tasks`; every
fifth message goes to a queue that is not there. The process imports everything once, and each run is a fork of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warrener._cli import publish  # noqa: F401 - before the forks
from warrener._cli.main import main
from warrener.drivers import native  # noqa: F401

#: What a run does to files. `os.write` is used for files only.
CHANGES = [(os, "open"), (os, "write"), (os, "pwrite"), (os, "fsync"), (os, "ftruncate"), (os, "unlink"), (os, "rename"),
           (os, "replace"), (fcntl, "flock")]  # fmt: skip


def die_at(point: int, *, half: bool) -> None:
    """Have this process killed at the change of this number; `half`: in the middle of it, if it is a write."""
    changes = 0

    def wrapped(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == point:
                os.pwrite(MARK, name.encode(), 0)
                if half and name == "write":
                    change(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return do

    for module, name in CHANGES:
        setattr(module, name, wrapped(name, getattr(module, name)))


MARK = os.open(tempfile.mkstemp()[1], os.O_RDWR)


def run(point: int, *, half: bool) -> int:
    """Run the command in a fork, which is killed at the point (0: not at all); return its wait status."""
    os.ftruncate(MARK, 0)
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if point:
            die_at(point, half=half)
        status = main(["publish", "--format=messages", "--max-unconfirmed=1000", "--resume=place", "in.jsonl"])
    finally:
        os._exit(status)


def crash_everywhere(size: int) -> None:
    """Kill at one point after the other until a run has none of that number."""
    for half in (False, True):
        point = 0
        killed = True
        while killed:
            point += 1
            name = f"{point}{'-half' if half else ''}"
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                lines = [
                    json.dumps({"body": f"{name} {number}", "routing_key": "nobody" if number % 5 == 4 else "tasks"})
                    for number in range(size)
                ]
                Path("in.jsonl").write_text("".join(f"{line}\n" for line in lines))
                killed = os.WIFSIGNALED(run(point, half=half))
                change = os.pread(MARK, 20, 0).decode()
                if half and killed and change != "write":
                    continue
                status = os.waitstatus_to_exitcode(run(0, half=False))
                files = sorted(path.name for path in Path().iterdir())
                kept = [
                    json.loads(line)["body"]
                    for path in Path().glob("*unconfirmed*")
                    for line in path.read_text().splitlines()
                ]
                print(
                    json.dumps({"point": name, "change": change, "status": status, "kept": kept, "files": files}),
                    flush=True,
                )
                os.chdir("/")


if __name__ == "__main__":
    crash_everywhere(int(sys.argv[1]))
