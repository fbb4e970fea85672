"""The planted bugs: their patches apply, and the script catches one; `make planted-bugs` tries all."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "planted_bugs.py"
planted_bugs = runpy.run_path(str(SCRIPT))
MUTANTS = sorted((ROOT / "tests" / "simulation" / "mutants").glob("*.patch"))


@pytest.mark.parametrize("patch", MUTANTS, ids=lambda patch: patch.stem)
def test_a_patch_applies(patch: Path, tmp_path: Path) -> None:
    """A patch that no longer applies would plant nothing."""
    source = planted_bugs["planted"](patch, tmp_path)

    assert [] != [
        path
        for path in source.rglob("*.py")
        if path.read_text() != (ROOT / "src" / path.relative_to(source)).read_text()
    ]


def test_the_bugs_are_thirty_two() -> None:
    """Those that docs/testing.md lists."""
    assert 32 == len(MUTANTS)


@pytest.mark.slow
def test_a_planted_bug_is_caught() -> None:
    """The script plants one bug in a copy, and names check and seed."""
    ran = subprocess.run(
        [sys.executable, SCRIPT, "pending-nacked-on-close", "--seeds", "40", "--processes", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (0, "") == (ran.returncode, ran.stderr)
    assert "S5 outcomes match" in ran.stdout
    assert "1 of 1 planted bugs were caught" in ran.stdout
