#!/usr/bin/env python3
"""Run all tests in the two parts that suit them, and end with one line that counts both.

    scripts/run_tests.py [--full] [ARGUMENTS OF PYTEST]

What needs no broker runs on two processors at once; what needs one runs alone, one test after another, against one
private RabbitMQ. (pytest-xdist's `--dist loadgroup` would do it in one run, but has no effect under pytest 9.2.)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

NO_TESTS_COLLECTED = 5


def counted(report: Path) -> Counter[str]:
    """How many tests of a JUnit report passed, failed and so on."""
    counts: Counter[str] = Counter()
    if not report.exists():  # pytest itself failed
        return Counter(errors=1)
    for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314 - pytest has just written it
        total, failures, errors, skipped = (
            int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
        )
        counts += Counter(passed=total - failures - errors - skipped, failed=failures, errors=errors, skipped=skipped)
    return counts


def main() -> int:
    """Run both parts, whatever becomes of the first; the status is that of the worse."""
    arguments = sys.argv[1:]
    full = "--full" in arguments
    if full:
        arguments.remove("--full")
    depth = "" if full else " and not full"
    parts = (["-n", "2", "-m", f"not broker{depth}"], ["-m", f"broker{depth}"])
    began = time.monotonic()
    counts: Counter[str] = Counter()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            report = Path(folder, f"{number}.xml")
            command = [sys.executable, "-m", "pytest", "-q", *part, f"--junit-xml={report}", *arguments]
            status = subprocess.run(command, check=False).returncode
            failed = failed or status not in (0, NO_TESTS_COLLECTED)
            counts += counted(report)
    line = f"{counts['passed']} passed, {counts['failed']} failed"
    line += "".join(f", {counts[kind]} {kind}" for kind in ("errors", "skipped") if counts[kind])
    print(f"==== {line} in {time.monotonic() - began:.0f}s ====")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
