"""Prints the conformance matrix after the tests: one row per claim, one column per broker, driver and event loop."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.conftest import HERE, VERSIONS

if TYPE_CHECKING:
    import pytest

_CASE = re.compile(r"test_(?P<module>conformance|drivers_on_embedded)\.py::test_(?P<claim>\w+)\[(?P<case>[^\]]+)\]")
_MARKS = {"passed": "yes", "failed": "FAIL", "error": "ERR", "skipped": "-", "xfailed": "no", "xpassed": "can?"}
#: From the best to the worst: a claim with several cases shows its worst.
_OUTCOMES = ("passed", "skipped", "xpassed", "xfailed", "failed", "error")
_DRIVERS = ("native", "aiormq")
_LOOPS = {"trio": "trio", "asyncio": "aio", "uvloop": "uv"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each driver keeps, on each broker that it was tried on."""
    rows: dict[str, dict[tuple[str, str, str], str]] = {}
    brokers: list[str] = []
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            found = _CASE.search(report.nodeid)
            if found is None:
                continue
            parts = found["case"].split("-")
            driver = next((part for part in parts if part in _DRIVERS), "?")
            loop = next((part for part in parts if part in _LOOPS), "?")
            for broker in _brokers(terminalreporter.config, found["module"], parts):
                if broker not in brokers:
                    brokers.append(broker)
                rows.setdefault(found["claim"], {})[broker, driver, loop] = _MARKS[outcome]
    if rows:
        terminalreporter.section("drivers: conformance")
        for line in _matrix(rows, brokers):
            terminalreporter.write_line(line)


def _brokers(config: pytest.Config, module: str, parts: list[str]) -> list[str]:
    """The columns of a test; one with a scripted peer in place of a broker holds for each RabbitMQ."""
    if module == "drivers_on_embedded":
        return ["embedded"]
    versions = config.stash.get(VERSIONS, {})
    names = [part for part in parts if part in versions] or list(versions) or [HERE]
    return [f"RabbitMQ {versions.get(name, '')}".rstrip() for name in names]


def _matrix(rows: dict[str, dict[tuple[str, str, str], str]], brokers: list[str]) -> list[str]:
    used = {key[1:] for cells in rows.values() for key in cells}
    pairs = [(driver, loop) for driver in _DRIVERS for loop in _LOOPS if (driver, loop) in used]
    loops = len(pairs) // len({driver for driver, _ in pairs})
    name = max(map(len, rows)) + 2
    cell = 5
    drivers = dict.fromkeys(driver for driver, _ in pairs)
    lines = [
        " " * name + " ".join(f"{broker:<{cell * len(pairs)}}" for broker in brokers),
        " " * name + " ".join("".join(f"{driver:<{cell * loops}}" for driver in drivers) for _ in brokers),
        " " * name + " ".join("".join(f"{_LOOPS[loop]:<{cell}}" for _, loop in pairs) for _ in brokers),
    ]
    for claim, cells in rows.items():
        marks = ("".join(f"{cells.get((broker, *pair), ''):<{cell}}" for pair in pairs) for broker in brokers)
        lines.append(f"{claim.replace('_', ' '):{name}}{' '.join(marks)}")
    return [line.rstrip() for line in lines]
