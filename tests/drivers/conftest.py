"""Prints the conformance matrix after the tests: one row per claim, one column per driver and event loop."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_CASE = re.compile(r"test_conformance\.py::test_(?P<claim>\w+)\[(?P<case>[^\]]+)\]")
_MARKS = {"passed": "yes", "failed": "FAILED", "error": "ERROR", "skipped": "-", "xfailed": "cannot", "xpassed": "can?"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each driver keeps; a claim with several cases shows its worst."""
    rows: dict[str, dict[str, str]] = {}
    columns: set[str] = set()
    for outcome in ("passed", "skipped", "xpassed", "xfailed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            found = _CASE.search(report.nodeid)
            if found is None:
                continue
            parts = found["case"].split("-")
            driver = next((part for part in parts if part in ("aiormq", "native")), "?")
            loop = next((part for part in parts if part in ("trio", "asyncio", "uvloop")), "?")
            column = f"{driver}/{loop}"
            columns.add(column)
            rows.setdefault(found["claim"], {})[column] = _MARKS[outcome]
    if rows:
        order = sorted(columns)
        terminalreporter.section("drivers: conformance")
        terminalreporter.write_line(" " * 52 + "".join(f"{column:>16}" for column in order))
        for claim, cells in rows.items():
            cells_text = "".join(f"{cells.get(column, ''):>16}" for column in order)
            terminalreporter.write_line(f"{claim.replace('_', ' '):52}{cells_text}")
