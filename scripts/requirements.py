#!/usr/bin/env python3
"""Print what groups of pyproject.toml need, as a requirements file: the packages of the groups, and this one with extras.

    scripts/requirements.py GROUP...

The exact versions are those of requirements-dev.lock, which pip is given as constraints.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: The extras of this package that the work of a group needs; a group that is not named needs all.
EXTRAS = {"run": "cli", "serve": "ml"}


def packages(groups: dict[str, list[Any]], name: str) -> list[str]:
    """Return the requirements of one group, those of the groups that it includes among them."""
    found: list[str] = []
    for entry in groups[name]:
        found += [entry] if isinstance(entry, str) else packages(groups, entry["include-group"])
    return found


def main() -> None:
    """Print the lines."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    names = sys.argv[1:]
    if names != ["build"]:  # the build backend comes first: the package itself is built with it
        extras = sorted({EXTRAS.get(name, "all") for name in names})
        print(f"--editable {ROOT}[{','.join(extras)}]")
    print(*sorted({package for name in names for package in packages(groups, name)}), sep="\n")


if __name__ == "__main__":
    main()
