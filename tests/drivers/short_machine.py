"""Dial with no file descriptor free, then with some again; prints a line for each. Run as a program by test_short_machine.

python -m tests.drivers.short_machine BACKEND DRIVER HOST PORT
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from tests.drivers.recording import RecordingReports
from warrener.drivers.aiormq import AiormqDriver
from warrener.drivers.base import Driver, LinkDown, LinkOptions
from warrener.drivers.native import NativeDriver
from warrener.records import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_descriptor() -> Iterator[None]:
    """Have every free descriptor taken."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


async def main(driver: Driver, endpoint: Endpoint) -> None:
    """Dial twice."""
    with no_descriptor():
        try:
            async with driver.open(endpoint, LinkOptions(), RecordingReports()):
                print("opened, with no descriptor free")
        except LinkDown as down:
            print(f"{down.fault.kind.value}, {'for good' if down.fault.permanent else 'for now'}")
    async with driver.open(endpoint, LinkOptions(close_timeout=0.2), RecordingReports()):
        print("opened")


if __name__ == "__main__":
    _, backend, name, host, port = sys.argv
    made = AiormqDriver() if name == "aiormq" else NativeDriver()
    anyio.run(main, made, Endpoint(host=host, port=int(port)), backend=backend)
