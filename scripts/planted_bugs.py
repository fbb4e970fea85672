#!/usr/bin/env python3
"""Plant known bugs in copies of the library, one at a time, and see that the simulation catches each.

    scripts/planted_bugs.py [--seeds N] [--processes N] [NAME ...]

The bugs are those that other clients have, or that are easy to write; each is a patch in tests/simulation/mutants. A
mutant has to pass a smoke test first (100 publishes, no fault: it is no obvious wreck) and then has to fail a check of the
simulation, or raise, within as many seeds as CI runs. The script stops when a patch no longer applies.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "tests" / "simulation" / "mutants"
#: Seconds of real time for one mutant: one that never comes to an end is not caught by a check.
PATIENCE = 600.0

SMOKE = """
import json, sys
from tests.simulation.corpus import smoke

if __name__ == "__main__":
    print(json.dumps([str(finding) for finding in smoke().findings]))
"""
HUNT = """
import json, sys
from tests.simulation.corpus import first_failure

if __name__ == "__main__":
    try:
        caught = first_failure(range(int(sys.argv[1])), int(sys.argv[2]))
        found = caught and [caught[0], caught[1].check, caught[1].text]
    except Exception as error:
        # The library itself has seen that something is wrong. Programs get this error, too.
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        found = ["-", "an exception of the library", repr(error)]
    print(json.dumps(found))
"""


def hunks(patch: str) -> Iterator[tuple[str, str]]:
    """Yield what each hunk of a patch replaces, and by what; its file and its line numbers are for readers only."""
    for file in re.split(r"^diff --git .*\n", patch, flags=re.MULTILINE)[1:]:
        for hunk in re.split(r"^@@.*\n", file, flags=re.MULTILINE)[1:]:
            lines = [line or " " for line in hunk.splitlines()]
            yield tuple("\n".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))  # type: ignore[misc]


def plant(patch: Path, source: Path) -> None:
    """Apply the patch to the one file that has its lines, wherever that file is now; exits where there is not one."""
    for before, after in hunks(patch.read_text()):
        places = [path for path in sorted(source.rglob("*.py")) for _ in range(path.read_text().count(before))]
        if len(places) != 1:
            where = ", ".join(str(path.relative_to(source)) for path in places) or "nowhere"
            raise SystemExit(f"{patch.name} no longer applies; write it anew. These lines are in {where}:\n{before}")
        places[0].write_text(places[0].read_text().replace(before, after))


def planted(patch: Path, folder: Path) -> Path:
    """Copy the library, apply the patch, and return the folder to import it from; exits where it does not apply."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    plant(patch, folder / "src")
    return folder / "src"


def ask(program: str, source: Path, *arguments: str) -> object:
    """Run a program against the copy, and return the JSON that it prints last; text, where it fails."""
    script = source.parent / "ask.py"
    script.write_text(program)
    # The planted copy of the library; the simulation itself from here.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(source), str(ROOT))), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        asked = subprocess.run(
            [sys.executable, script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {PATIENCE:.0f} s"
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else asked.stderr[-2000:]


def main() -> int:
    """Plant, smoke, hunt; 0 where every mutant was caught by a check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()

    patches = [
        patch for patch in sorted(MUTANTS.glob("*.patch")) if not arguments.names or patch.stem in arguments.names
    ]
    escaped = 0
    print(f"{'mutant':<26} {'caught by':<30} {'seed':>5} {'s':>5}")
    for patch in patches:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="planted-") as folder:
            source = planted(patch, Path(folder))
            smoked = ask(SMOKE, source)
            if smoked != []:
                raise SystemExit(f"{patch.stem} does not pass the smoke test, so that it proves nothing: {smoked}")
            caught = ask(HUNT, source, str(arguments.seeds), str(arguments.processes))
        took = time.monotonic() - began
        match caught:
            case [seed, check, text]:
                print(f"{patch.stem:<26} {check:<30} {seed:>5} {took:>5.0f}   {text[:100]}", flush=True)
            case _:
                escaped += 1
                print(f"{patch.stem:<26} NOT CAUGHT: {caught or f'{arguments.seeds} seeds found nothing'}", flush=True)
    print(f"{len(patches) - escaped} of {len(patches)} planted bugs were caught")
    return int(escaped > 0 or not patches)


if __name__ == "__main__":
    sys.exit(main())
