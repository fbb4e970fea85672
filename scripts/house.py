"""Write docs/house.dot and docs/house.svg: the rooms of the package, and which room imports which.

    python scripts/house.py

Reads the imports of every file below src/warrener, also those inside functions. An arrow that follows from two others is
left out: if A imports B, and B imports C, there is no arrow from A to C. Needs Graphviz's `dot` for the picture.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
DOCS = ROOT / "docs"

#: The room of a module is that of the longest prefix here, without "warrener.". The order is that of the picture.
ROOMS = {
    "_cli": "_cli",
    "__main__": "_cli",
    "ml": "ml",
    "http": "http, metrics, tracing",
    "metrics": "http, metrics, tracing",
    "tracing": "http, metrics, tracing",
    "outbox": "outbox",
    "testing": "testing",
    "_publishing": "_publishing",
    "_publishing.ledger": "_publishing/ledger",
    "_supervision": "_supervision",
    "_settings": "_settings",
    "_backend": "_backend",
    "_on_trio": "_backend",
    "_on_asyncio": "_backend",
    "drivers.native": "drivers/native",
    "drivers.aiormq": "drivers/aiormq",
    "drivers": "drivers",
    "retry": "retry",
    "machine": "machine",
    "wire": "wire",
    "errors": "values",
    "records": "values",
    "topology": "values",
    "_ids": "values",
    "_ticket": "values",
    "_properties": "values",
    "_retry_rules": "values",
    "_histogram": "values",
    "_log_limit": "values",
    "_sources": "values",
}
#: Rooms without input and output, clock or randomness, and rooms that a user's program may import.
PURE = frozenset({"retry", "machine", "wire", "_publishing/ledger", "values"})
PUBLIC = frozenset(
    {"machine", "wire", "drivers", "http, metrics, tracing", "ml", "outbox", "retry", "testing", "values"}
)


def room_of(module: str) -> str | None:
    """Return the room of a module of the package; None for the package itself, which only lists the public names."""
    parts = module.removeprefix("warrener").removeprefix(".").split(".")
    for length in range(len(parts), 0, -1):
        room = ROOMS.get(".".join(parts[:length]))
        if room is not None:
            return room
    if module == "warrener":
        return None
    raise LookupError(f"{module} is in no room: name its room in {Path(__file__).name}")


def modules() -> dict[str, Path]:
    """Return every module of the package with its file."""
    found: dict[str, Path] = {}
    for path in sorted((SOURCE / "warrener").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imported(path: Path, known: frozenset[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def arrows() -> dict[str, set[str]]:
    """Return, for each room, the rooms that its files import."""
    files = modules()
    found: dict[str, set[str]] = {room: set() for module in files if (room := room_of(module)) is not None}
    for module, path in files.items():
        room = room_of(module)
        if room is not None:
            found[room].update(
                other
                for imported in _imported(path, frozenset(files))
                if (other := room_of(imported)) is not None and other != room
            )
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out each arrow that follows from others. Raises ValueError if rooms import each other in a circle."""

    def below(room: str, path: tuple[str, ...]) -> set[str]:
        if room in path:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*path, room))}")
        return {each for other in graph[room] for each in (other, *below(other, (*path, room)))}

    return {
        room: {other for other in others if not any(other in below(each, (room,)) for each in others - {other})}
        for room, others in graph.items()
    }


def dot() -> str:
    """Return the picture in the language of Graphviz."""
    graph = arrows()
    text = [
        "digraph house {",
        '    graph [rankdir=TB, nodesep=0.4, ranksep=0.45, fontname="Helvetica", bgcolor=white, labelloc=b, fontsize=12,',
        '           label="An arrow: imports. Green: pure. Double border: public."];',
        '    node [shape=box, style="rounded,filled", fillcolor="#f3f1ec", fontname="Helvetica", fontsize=13];',
        '    edge [color="#505050"];',
    ]
    for room in dict.fromkeys(ROOMS.values()):
        if room in graph:
            marks = ', fillcolor="#cfe8cf"' if room in PURE else ""
            marks += ", peripheries=2" if room in PUBLIC else ""
            text.append(f'    "{room}" [label="{room}"{marks}];')
    for room, others in reduced(graph).items():
        text.extend(f'    "{room}" -> "{other}";' for other in sorted(others))
    return "\n".join([*text, "}", ""])


def main() -> None:
    """Write both files."""
    source = DOCS / "house.dot"
    source.write_text(dot(), encoding="utf-8")
    subprocess.run(["dot", "-Tsvg", str(source), "-o", str(DOCS / "house.svg")], check=True)


if __name__ == "__main__":
    main()
