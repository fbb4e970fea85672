"""The pages say what the code says."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import pkgutil
import re
import runpy
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import warrener
from warrener import Settings

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = (DOCS / "reference.md").read_text()


def test_the_reference_names_every_public_name() -> None:
    """Nothing public is missing from the page."""
    named = set(re.findall(r"`(\w+)", REFERENCE)) | set(re.findall(r"↳ `(\w+)`", REFERENCE))
    assert set(warrener.__all__) - named == set()


#: What the modules behind `warrener` itself define for each other has no place on the page.
BEHIND = {"drivers", "errors", "records", "topology"}


def public() -> set[str]:
    """Every public name: those of the package, and those of its public modules that are not the package's too."""
    names = {f"warrener.{name}" for name in warrener.__all__}
    for module in pkgutil.iter_modules(warrener.__path__):
        if not module.name.startswith("_") and module.name not in BEHIND:
            exported = importlib.import_module(f"warrener.{module.name}").__all__
            names |= {f"warrener.{module.name}.{name}" for name in exported if name not in warrener.__all__}
    return names


def test_the_api_page_has_every_public_name_and_no_other() -> None:
    """Each by itself or with its whole module, and each thing that the page names exists."""
    page = (DOCS / "api.md").read_text()
    single = set(re.findall(r"^\.\. auto(?:class|function|exception|data):: (\S+)", page, re.MULTILINE))
    whole = set(re.findall(r"^\.\. automodule:: (\S+)", page, re.MULTILINE))

    assert {name for name in public() - single - whole if name.rpartition(".")[0] not in whole} == set()
    assert single - public() == set()
    assert [name for name in whole if importlib.util.find_spec(name) is None] == []


def rows() -> dict[str, str]:
    """The table of settings: name and default."""
    return dict(
        re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", REFERENCE.split("## Settings")[1].split("## Errors")[0], re.MULTILINE)
    )


def test_the_table_of_settings_is_complete() -> None:
    """Every row that text can set, and no other."""
    from warrener._settings.settings import RULES

    assert set(rows()) == set(RULES)


def test_the_defaults_of_the_table_are_the_defaults() -> None:
    """Given in the environment, the table's defaults make the settings that nothing makes."""
    given = {
        f"WARRENER_{name.upper()}": default
        for name, default in rows().items()
        if name not in ("name", "server_hostname")
    }
    # Its default follows publish_timeout, so a record in which it was given is another record.
    confirm_timeout = float(given.pop("WARRENER_CONFIRM_TIMEOUT"))
    url = "amqp://localhost/"
    defaults = Settings.resolve(url, environ={}, name="x")

    assert Settings.resolve(url, environ=given, name="x") == defaults
    assert confirm_timeout == defaults.confirm_timeout


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    """No page points at a page or a heading's file that is not there."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def programs() -> list[Any]:
    """The complete programs of README, index and tutorial: those that end by running themselves."""
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in (DOCS.parent / "README.md", DOCS / "index.md", DOCS / "tutorial.md")
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
        if ".run(" in block
    ]


@pytest.mark.broker
@pytest.mark.parametrize("program", programs())
def test_the_programs_of_the_pages_run(
    program: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pasted and run against a broker, each prints something and raises nothing."""
    monkeypatch.setenv("RABBITMQ_URL", rabbitmq_url)
    program = program.replace("amqp://guest:guest@localhost/", rabbitmq_url).replace("anyio.sleep(1)", "anyio.sleep(0)")

    exec(compile(program, "<page>", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own pages

    assert capsys.readouterr().out


def test_the_first_program_shows_that_no_broker_is_there() -> None:
    """README says what a program without logging configuration prints, and that is what it prints."""
    page = (DOCS.parent / "README.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (shown,) = re.findall(r"^warrener:.*", page, re.MULTILINE)
    with socket.socket() as closed:  # bound, and it does not listen
        closed.bind(("127.0.0.1", 0))
        url = f"amqp://guest:guest@127.0.0.1:{closed.getsockname()[1]}/"
        program = program.replace("amqp://guest:guest@localhost/", url).replace(
            '="tasks")  #', '="tasks", timeout=0.1)  #'
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    def neutral(line: str) -> str:
        return re.sub(r"[\d.]+|warrener:[^:]*:", "*", line)

    assert neutral(done.stderr.splitlines()[0]) == neutral(shown)
    assert done.stderr.splitlines()[-1].startswith("warrener.errors.DeadlineExceeded: ")


@pytest.mark.full
def test_the_pages_become_html(tmp_path: Path) -> None:
    """Every page is reachable, every reference leads somewhere: warnings are errors."""
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "tutorial.html").exists()


# --- docs/design.md ------------------------------------------------------------------------------------------------------

DESIGN = (DOCS / "design.md").read_text()
#: Names on the page that belong to others.
ELSEWHERE = {"warrener", "pamqp", "aiormq", "channel.close", "basic.get", "Task.cancel", "ParkingLot"}
SOURCE = DOCS.parent / "src" / "warrener"
HOUSE = runpy.run_path(str(DOCS.parent / "scripts" / "house.py"))
HOW = "run: python scripts/house.py"
WALK_HEAD = ("| step | file | function |", "|---|---|---|")


@cache
def defined_in(path: Path) -> frozenset[str]:
    """Every function, class and method of a file, methods as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            )
            found.update(
                f"{node.name}.{inner.target.id}"
                for inner in node.body
                if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
            )
    return frozenset(found)


@cache
def names_in_the_code() -> frozenset[str]:
    """Everything that the package defines or uses by name: for words that stand alone on the page."""
    found: set[str] = set(dir(builtins))
    for path in SOURCE.rglob("*.py"):
        found.update(defined_in(path))
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str() as name):
                    found.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
    return frozenset(found)


def test_the_design_page_says_what_every_file_decides() -> None:
    """Each file of the package has one row, and each row has its file."""
    rows = re.findall(r"^\| `([\w/.]+\.py)` \| (?!`)\S", DESIGN, re.MULTILINE)
    files = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")]

    assert sorted(rows) == sorted(files)


def test_each_step_of_the_walks_exists() -> None:
    """A walk names a file and functions of that file, and no step has vanished from the code."""
    walks = DESIGN.split("## Walk one")[1].split("## Reasons")[0]
    rows = [row for row in walks.splitlines() if row.startswith("|") and row not in WALK_HEAD]
    steps = [step for row in rows for step in re.findall(r"^\|[^|]*\| `([\w/.]+\.py)` \| (`[^|]*`) \|$", row)]

    assert len(steps) == len(rows) > 25
    for file, functions in steps:
        for function in re.findall(r"`([\w.]+)`", functions):
            assert function in defined_in(SOURCE / file), f"{function} is not in {file}"


def test_each_code_name_of_the_design_page_exists() -> None:
    """Every word in code letters is a file or folder, or a name that the package defines or uses."""
    everything = names_in_the_code()
    unknown: list[str] = []
    for span in re.findall(r"`([^`\n]+)`", DESIGN):
        word = re.sub(r"\(.*\)$", "", span)
        if re.fullmatch(r"[\w/.-]+", word) and ("/" in word or word.endswith(".py")):
            known = (SOURCE / word).exists() or (DOCS.parent / word).exists()
        elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", word):
            known = word in everything or word in ELSEWHERE
        else:
            known = word in {"async with", "import-linter", "make test", "python -m warrener", "warrener_*"} or (
                word.startswith(("warrener ", "ml_producer_"))
            )
        if not known:
            unknown.append(span)

    assert unknown == []


@pytest.mark.slow
def test_the_picture_of_the_house_is_what_the_imports_say() -> None:
    """docs/house.dot was made from the imports of today, and docs/house.svg was drawn from it."""
    assert HOUSE["dot"]() == (DOCS / "house.dot").read_text(encoding="utf-8"), HOW

    shown: dict[str, set[str | None]] = {"node": set(), "edge": set()}
    for group in ET.parse(DOCS / "house.svg").getroot().iter("{http://www.w3.org/2000/svg}g"):  # noqa: S314 - our own
        shown.setdefault(group.get("class", ""), set()).add(group.findtext("{http://www.w3.org/2000/svg}title"))
    graph = HOUSE["reduced"](HOUSE["arrows"]())
    assert shown["node"] == set(graph), HOW
    assert shown["edge"] == {f"{room}->{other}" for room, others in graph.items() for other in others}, HOW
