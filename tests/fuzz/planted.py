#!/usr/bin/env python3
"""See whether the fuzzer would find a wrong length: plant one in a copy of the package and fuzz that for five minutes at most.

    python tests/fuzz/planted.py [NAME …]

Each defect is one line that a hurried change might bring: a length that is compared with the wrong bound, or not at all; a
limit that is not set; a count that is not taken back.
Two more are held by tests of their own: a body longer than announced (tests/wire/test_hostile.py, `test_each_trick_is_a_fault`)
and tables of any depth (tests/wire/test_codec.py, `test_nested_to_the_limit`). Prints one line for each; the status is 1 when one was not found.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300

#: Name: (target, file, what it says, what it is made to say).
PLANTED = {
    "a number one byte short": (
        "wire",
        "wire/codec.py",
        "if self.at + layout.size > len(self.data):",
        "if self.at + layout.size > len(self.data) + 1:",
    ),
    "a frame's size unchecked": ("wire", "wire/framing.py", "if size > self.cap - OVERHEAD:", "if size > 1 << 24:"),
    "a frame taken a byte too early": (
        "wire",
        "wire/framing.py",
        "if end - at < size + OVERHEAD:",
        "if end - at < size + OVERHEAD - 1:",
    ),
    "a head without a time limit": (
        "http",
        "ml/http_server.py",
        "self._limit = self.loop.call_later(self.settings.header_timeout, self._head_is_late)",
        "pass",
    ),
    "bytes of a request not given back": ("http", "ml/task_endpoint.py", "                intake.hold(0)\n", ""),
}


def found(name: str) -> bool:
    """Plant one defect and fuzz."""
    target, file, before, after = PLANTED[name]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src" / "warrener", source / "warrener", ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "warrener" / file
        text = path.read_text()
        if text.count(before) != 1:
            raise SystemExit(f"{file} does not say {before!r} once any more; plant something else")
        path.write_text(text.replace(before, after))
        command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(SECONDS)]
        command += ["--source", str(source), "--work", str(Path(folder, "work"))]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        said = done.stdout.splitlines() or [done.stderr]
        print(f"{name}: {'found' if done.returncode == 1 else 'NOT FOUND'} ({said[0]})", flush=True)
        return done.returncode == 1


def main() -> int:
    """Plant them one after the other."""
    verdicts = [found(name) for name in sys.argv[1:] or PLANTED]
    return int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())
