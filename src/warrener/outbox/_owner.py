"""Which process holds a lease, and whether that process has certainly ended: then its rows need not wait for the lease."""

from __future__ import annotations

import json
import os
import socket
from functools import cache
from pathlib import Path

__all__ = ["has_ended", "this_process"]


def this_process() -> str:
    """Return this process as text: its machine, boot, namespace of process ids, id and start."""
    return _named(os.getpid())


@cache
def _named(pid: int) -> str:
    return json.dumps({"host": socket.gethostname(), **_place(), "pid": pid, "started": _started(pid)})


def has_ended(owner: str) -> bool:
    """Return whether the process that `this_process` named has certainly ended. False where that is not known."""
    try:
        fields = json.loads(owner)
        pid, started = fields["pid"], fields["started"]
        seen_from_here = fields["boot"] is not None and {"boot": fields["boot"], "pids": fields["pids"]} == _place()
    except (ValueError, KeyError, TypeError):
        return False
    return seen_from_here and isinstance(pid, int) and started is not None and _started(pid) != started


def _place() -> dict[str, str | None]:
    """Where a process id means the same process: one boot of one kernel, and one namespace in it."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "pids": os.readlink("/proc/self/ns/pid"),  # noqa: PTH115 - it names no path
        }
    except OSError:
        return {"boot": None, "pids": None}


def _started(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since boot (proc(5)); None where there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
