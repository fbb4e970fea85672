#!/usr/bin/env python3
"""Plant small bugs in the pure core, one at a time, and see whether its tests notice: mutmut on a copy of the tree.

    scripts/mutation.py [--one-in N] [--processes N] [--minutes N] [--keep FOLDER] [PATTERN ...]

The core is `warrener.machine` and `warrener._publishing.ledger`; `[tool.mutmut]` in `pyproject.toml` says what is
mutated, and with which tests. A mutant is *killed* when a test fails, or when it makes the tests run far longer than usual (a
loop that no longer ends). The run fails when fewer than 95 % are killed, when a survivor is not among those that
docs/mutation.md gives a reason for, or when the bounded time is over before half of the mutants were tried; the number
of the others is then printed. A survivor is known by its room, its function and the lines that it changes: neither an edit
elsewhere, nor a move to another file or class of the room, disturbs its explanation.

`--one-in 5` tries every fifth mutant; a PATTERN (`*retry_delay*`) tries the mutants whose names match. `--keep FOLDER`
keeps the copy in that folder and, the next time, tests only what has changed since: for work on the tests themselves.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: All that the tests of the core read.
COPIED = (
    "pyproject.toml",
    "src",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/machine",
    "tests/ledger",
    "docs/state-table.md",
    "docs/state-diagram.dot",
    "docs/state-diagram.svg",
)
EXPLAINED = ROOT / "docs" / "mutation.md"
ENOUGH = 0.95

#: What mutmut keeps for each mutant: the status of the run of pytest; absent means not tried.
_SURVIVED = {0}
_KILLED = {1, 3}
_TOO_LONG = {36, -24, 24, 152, 255}
_UNREACHED = {5, 33}


def copy_tree(folder: Path) -> None:
    """Copy what is needed, newer files only, so that a kept folder keeps its results."""
    for name in COPIED:
        source = ROOT / name
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        for path in files:
            if "__pycache__" in path.parts:
                continue
            target = folder / path.relative_to(ROOT)
            if not target.exists() or target.read_bytes() != path.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def results(folder: Path) -> dict[str, int | None]:
    """Return the status of every mutant that exists; None where it was not tried."""
    found: dict[str, int | None] = {}
    for meta in sorted((folder / "mutants").rglob("*.meta")):
        found.update(json.loads(meta.read_text())["exit_code_by_key"])
    return found


def place_of(name: str) -> str:
    """Return the function that a mutant is in, by its room and without its file.

    `ledger.Ledger.next` for `warrener._publishing.ledger.outcomes.xǁLedgerǁnext__mutmut_3`: a function that moves to
    another file of the room keeps its explanation.
    """
    module, _, function = name.rpartition(".")
    room = module.split(".")[-2]
    function = function.rpartition("__mutmut_")[0]
    return f"{room}.{'.'.join(function.split('ǁ')[1:]) if 'ǁ' in function else function.removeprefix('x_')}"


def key_of(change: str) -> str:
    """Return what a change is known by: its room, the function's own name, and the lines; a class may be renamed."""
    place, _, lines = change.removeprefix("@@ ").partition("\n")
    return "\n".join([f"{place.partition('.')[0]}.{place.rpartition('.')[2]}", lines])


def changes(folder: Path, names: list[str]) -> dict[str, str]:
    """Return what each of the mutants changes, as docs/mutation.md writes it."""
    bodies: dict[str, list[str]] = {}
    for path in sorted((folder / "mutants" / "src").rglob("*.py")):
        if path.with_name(path.name + ".meta").exists():
            text = path.read_text()
            lines = text.splitlines()
            module = ".".join(path.relative_to(folder / "mutants" / "src").with_suffix("").parts)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
                    bodies[f"{module}.{node.name}"] = lines[node.lineno - 1 : node.end_lineno]
    found: dict[str, str] = {}
    for name in names:
        original = bodies[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
        # The first line of either is that of the generated `def`; its defaults are what may differ.
        before, after = ([re.sub(r"__mutmut_\w+", "", line) for line in body] for body in (original, bodies[name]))
        lines = [
            line[0] + line[1:].strip()
            for line in difflib.unified_diff(before, after, n=0, lineterm="")
            if line.startswith(("-", "+")) and not line.startswith(("---", "+++"))
        ]
        found[name] = "\n".join([f"@@ {place_of(name)}", *lines])
    return found


def explained() -> dict[str, str]:
    """Return the changes that docs/mutation.md gives a reason for, by what they are known by."""
    found: dict[str, str] = {}
    for block in re.findall(r"```diff\n(.*?)```", EXPLAINED.read_text(), re.DOTALL):
        changes = ["@@ " + part.strip() for part in block.split("@@ ") if part.strip()]
        found.update({key_of(change): change for change in changes})
    return found


@contextlib.contextmanager
def _working_folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        yield Path(folder)


def run_mutmut(folder: Path, names: list[str], processes: int, seconds: float) -> bool:
    """Run mutmut on these mutants (all, where none is named); False: the time was over first."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutation", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)  # the mutated copy comes first, and only it
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", "--max-children", str(processes)]
    process = subprocess.Popen([*command, *names], cwd=folder, env=environment, start_new_session=True)
    try:
        if process.wait(seconds) != 0:
            raise SystemExit(f"mutmut failed with status {process.returncode}")
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def main() -> int:
    """Copy, mutate, test, report; 0 where enough were killed and every survivor has its reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--one-in", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()

    began = time.monotonic()
    with _working_folder(arguments.keep) as folder:
        copy_tree(folder)
        names = list(arguments.patterns)
        if arguments.one_in > 1:
            # The first run only makes the mutants and times the tests: it is given one of them to try.
            run_mutmut(folder, ["*retry_delay__mutmut_1"], 1, 600)
            made = [name for name in results(folder) if not names or any(fnmatch.fnmatch(name, each) for each in names)]
            names = made[:: arguments.one_in]
        left = arguments.minutes * 60 - (time.monotonic() - began)
        complete = run_mutmut(folder, names, arguments.processes, left)
        found = results(folder)
        return report(folder, found, names, complete, time.monotonic() - began)


def report(folder: Path, found: dict[str, int | None], names: list[str], complete: bool, seconds: float) -> int:
    """Print the rate and every survivor without a reason, as docs/mutation.md would have it."""
    chosen = [name for name in found if not names or any(fnmatch.fnmatch(name, each) for each in names)]
    tried = {name: found[name] for name in chosen if found[name] is not None}
    killed = Counter(name.split(".x", maxsplit=1)[0] for name, status in tried.items() if status in _KILLED | _TOO_LONG)
    total = Counter(name.split(".x", maxsplit=1)[0] for name in tried)
    for module in sorted(total):
        print(f"  {module:42} {killed[module]:5} of {total[module]:5} killed  {killed[module] / total[module]:7.1%}")
    rate = killed.total() / total.total() if tried else 0.0
    survivors = sorted(name for name, status in tried.items() if status not in _KILLED | _TOO_LONG)
    known = explained()
    changed = changes(folder, survivors)
    unknown = [name for name in survivors if key_of(changed[name]) not in known]
    print(f"{killed.total()} of {len(tried)} mutants killed ({rate:.1%}) in {seconds / 60:.1f} min; {len(found)} exist")
    print(f"{len(survivors)} survived, {len(survivors) - len(unknown)} of them with a reason in docs/mutation.md")
    for name in unknown:
        print(f"  without a reason, {'no test reaches it' if tried[name] in _UNREACHED else 'survived'}: {name}")
        print(changed[name])
    if complete and not names:
        for key in sorted(known.keys() - set(map(key_of, changed.values()))):
            print(f"no longer among the survivors, though docs/mutation.md has it:\n{known[key]}")
    if not complete:
        print(f"the time was over: {len(chosen) - len(tried)} of {len(chosen)} were not tried")
    return int(rate < ENOUGH or bool(unknown) or len(tried) * 2 < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
