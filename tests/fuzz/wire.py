#!/usr/bin/env python3
"""Fuzz `warrener.wire` by coverage: any bytes from the broker, in any pieces; see tests/wire/replay.py for what must hold.

    python tests/fuzz/wire.py [--seconds 600] [--source FOLDER]

Starts from the recorded sessions in tests/fuzz/corpus, keeps what reaches new edges in build/fuzz, and says at the end how many
executions there were and how many edges were reached. The status is 1 when something did not hold; the bytes that did it
are then in build/fuzz/finds, and `python tests/fuzz/wire.py --replay FILE` shows what they do.

`--source` fuzzes another copy of the package; tests/fuzz/planted.py uses it to see whether a planted defect is found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
WORK = ROOT / "build" / "fuzz"
#: Longer inputs find nothing that these do not; the recorded sessions are longer and are cut.
MAX_LENGTH = 6_000

_STATISTICS = {
    "executions": re.compile(r"stat::number_of_executed_units:\s*(\d+)"),
    "edges": re.compile(r"cov: (\d+)"),
}


def fuzz_here(arguments: list[str]) -> None:
    """Become the fuzzer: libFuzzer's own process, which ends by itself."""
    import atheris

    import warrener

    with atheris.instrument_imports(include=["warrener.wire"]):
        import warrener.wire  # noqa: F401
    from tests.wire.replay import check

    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


def run(seconds: int, source: Path, work: Path) -> int:
    """Fuzz in a process of its own and report."""
    finds = work / "finds"
    for folder in (work / "corpus", finds):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_LENGTH}",
        f"-dict={CORPUS.parent / 'amqp.dict'}",
        f"-artifact_prefix={finds}/",
        # Memory: a process that grows to this size, or asks for so much at once, has found something.
        "-rss_limit_mb=512",
        "-malloc_limit_mb=64",
        "-timeout=5",
        "-print_final_stats=1",
    ]
    command = [sys.executable, __file__, "--here", *options, str(work / "corpus"), str(CORPUS)]
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(source), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    log = done.stdout + done.stderr
    (work / "log").write_text(log)
    figures = {name: max(map(int, found.findall(log)), default=0) for name, found in _STATISTICS.items()}
    minutes = (time.monotonic() - began) / 60
    verdict = "nothing found" if done.returncode == 0 else f"FOUND something; see {finds} and {work / 'log'}"
    print(
        f"fuzz: {minutes:.1f} minutes, {figures['executions']:,} executions, {figures['edges']:,} edges reached,"
        f" {len(list((work / 'corpus').iterdir())):,} inputs kept: {verdict}"
    )
    if done.returncode:
        at = log.find("=== Uncaught Python exception")
        print(log[max(at, 0) :][:3000])
    return int(done.returncode != 0)


def main() -> int:
    """Parse the arguments and run."""
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="how long (default: 600)")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="the folder that holds the package")
    parser.add_argument("--work", type=Path, default=WORK, help="where inputs, finds and the log are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check one input and end")
    options = parser.parse_args()
    if options.replay is not None:
        sys.path[:0] = [str(options.source), str(ROOT)]
        from tests.wire.replay import check

        check(options.replay.read_bytes())
        print("everything holds")
        return 0
    try:
        import atheris  # noqa: F401 - whether it is there is the question
    except ImportError:
        print(
            "fuzz: atheris has no build for this system and Python; the hypothesis tests of tests/wire run everywhere"
        )
        return 0
    return run(options.seconds, options.source.resolve(), options.work.resolve())


if __name__ == "__main__":
    sys.exit(main())
