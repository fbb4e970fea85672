#!/usr/bin/env python3
"""Print one line that counts the tests of several runs of pytest, and end with the status that these had together.

    scripts/count_tests.py STATUS FOLDER

STATUS is that of the `make` that ran them; FOLDER holds their JUnit reports.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET


def counted(reports: list[Path]) -> Counter[str]:
    """How many tests passed, failed and so on."""
    counts: Counter[str] = Counter()
    for report in reports:
        for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314 - pytest has just written it
            total, failures, errors, skipped = (
                int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
            )
            passed = total - failures - errors - skipped
            counts += Counter(passed=passed, failed=failures, errors=errors, skipped=skipped)
    return counts


def main() -> int:
    """Count and print; a run that failed without a failed test (lint, types, fuzzing) is named by its own output."""
    status, folder = int(sys.argv[1]), Path(sys.argv[2])
    counts = counted(sorted(folder.glob("*.xml")))
    line = f"{counts['passed']} passed, {counts['failed']} failed"
    print(line + "".join(f", {counts[kind]} {kind}" for kind in ("errors", "skipped") if counts[kind]))
    if status and not counts["failed"] + counts["errors"]:
        print("A step beside the tests failed; its output is above.")
    return int(status != 0 or not counts["passed"])


if __name__ == "__main__":
    sys.exit(main())
