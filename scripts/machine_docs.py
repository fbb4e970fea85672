"""Write docs/state-table.md, docs/state-diagram.dot and docs/state-diagram.svg anew, from the machine itself.

    python scripts/machine_docs.py

Needs the package on the path and, for the picture, Graphviz's `dot`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from warrener._cli import machine as machine_table

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Write the three files."""
    (DOCS / "state-table.md").write_text(machine_table.markdown(), encoding="utf-8")
    source = DOCS / "state-diagram.dot"
    source.write_text(machine_table.dot(), encoding="utf-8")
    subprocess.run(["dot", "-Tsvg", str(source), "-o", str(DOCS / "state-diagram.svg")], check=True)


if __name__ == "__main__":
    main()
