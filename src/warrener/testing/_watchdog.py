"""The watchdog of one private broker: a program that runs epmd and cleans up when its owner has ended.

Started by `warrener.testing.rabbitmq`, never imported. Its standard input is a pipe of which the owner holds the only
other end, so "the owner closed it" and "the owner died, by SIGKILL too" are the same event: end of file. Then everything
in epmd's process group, which the broker has joined, is killed, and the broker's folder is removed.

It needs nothing but the standard library, ignores the signals of a terminal, and starts in 20 ms (`python -I -S`).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(folder: str, *epmd: str) -> None:
    """Run epmd (a command line), print its process group, wait for the end of input, kill the group, remove the folder."""
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    daemon = subprocess.Popen(
        epmd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    sys.stdout.write(f"{daemon.pid}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    # epmd is unreaped until here, so its number cannot have passed to another group.
    os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()
    # A killed broker may still write a file after the removal has begun, so up to 50 removals are tried.
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            break
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
