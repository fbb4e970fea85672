"""Fuzz by coverage what takes bytes from outside; see `tests.fuzz.targets` for the targets and what must hold in each.

    python -m tests.fuzz [--seconds 600] [--source FOLDER] [TARGET …]

Each target runs in a process of its own for its share of the seconds. It starts from its seeds, keeps what reaches new edges in
build/fuzz, and says at the end how many executions there were and how many edges were reached. The status is 1 if something
did not hold; the bytes that did it are then in build/fuzz/TARGET/finds, and `python -m tests.fuzz TARGET --replay FILE` shows
what they do.

`--source` fuzzes another copy of the package; tests/fuzz/planted.py uses it to see whether a planted defect is found.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "fuzz"

_STATISTICS = {
    "executions": re.compile(r"stat::number_of_executed_units:\s*(\d+)"),
    "edges": re.compile(r"cov: (\d+)"),
}


def fuzz_here(name: str, arguments: list[str]) -> None:
    """Become the fuzzer: libFuzzer's own process, which ends by itself."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.instrumented)):
        for module in target.instrumented:
            importlib.import_module(module)
    atheris.Setup([sys.argv[0], *arguments], target.check())
    atheris.Fuzz()


def run(name: str, seconds: int, source: Path, work: Path) -> int:
    """Fuzz one target in a process of its own and report."""
    target = TARGETS[name]
    finds, corpus = work / "finds", work / "corpus"
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.longest}",
        f"-artifact_prefix={finds}/",
        # Memory: a process that grows to this size, or asks for so much at once, has found something.
        "-rss_limit_mb=512",
        "-malloc_limit_mb=64",
        # A guard against an endless loop; a busy machine makes every execution several times as long.
        "-timeout=60",
        "-print_final_stats=1",
    ]
    if target.dictionary is not None:
        options.append(f"-dict={target.dictionary}")
    command = [sys.executable, "-m", "tests.fuzz", "--here", name, *options, str(corpus)]
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(source), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    log = done.stdout + done.stderr
    (work / "log").write_text(log)
    counts = {key: max(map(int, found.findall(log)), default=0) for key, found in _STATISTICS.items()}
    verdict = "nothing found" if done.returncode == 0 else f"FOUND something; see {finds} and {work / 'log'}"
    print(
        f"fuzz {name}: {time.monotonic() - began:.0f} s, {counts['executions']:,} executions, {counts['edges']:,} edges "
        f"reached, {len(list(corpus.iterdir())):,} inputs kept: {verdict}"
    )
    if done.returncode:
        at = log.find("=== Uncaught Python exception")
        print(log[max(at, 0) :][:3000])
    return int(done.returncode != 0)


def main() -> int:
    """Parse the arguments and run."""
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=600, help="how long altogether (default: 600)")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="the folder that holds the package")
    parser.add_argument("--work", type=Path, default=WORK, help="where inputs, finds and the logs are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check one input of the one target and end")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    if options.replay is not None:
        TARGETS[names[0]].check()(options.replay.read_bytes())
        print("everything holds")
        return 0
    try:
        import atheris  # noqa: F401 - whether it is there is the question
    except ImportError:
        print(
            "fuzz: atheris has no build for this system and Python; the hypothesis tests of tests/wire run everywhere"
        )
        return 0
    share = max(1, options.seconds // len(names))
    return max(run(name, share, options.source.resolve(), options.work.resolve() / name) for name in names)


if __name__ == "__main__":
    sys.exit(main())
