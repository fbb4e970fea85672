"""The documents hold what the code prints, and the table leaves nothing out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import get_args

import pytest

from warrener._cli import machine as machine_table
from warrener.machine import Record, effects, events, states, transition

DOCS = Path(__file__).parents[2] / "docs"
HOW = "run: python scripts/machine_docs.py"


def test_the_page_is_what_the_code_prints() -> None:
    """docs/state-table.md was printed by this very machine."""
    assert machine_table.markdown() == (DOCS / "state-table.md").read_text(encoding="utf-8"), HOW


def test_the_diagram_is_what_the_code_prints() -> None:
    """docs/state-diagram.dot was printed by this very machine."""
    assert machine_table.dot() == (DOCS / "state-diagram.dot").read_text(encoding="utf-8"), HOW


def test_the_picture_was_drawn_from_the_diagram() -> None:
    """docs/state-diagram.svg shows every state and every edge, whichever Graphviz drew it, and nothing else."""
    groups = ET.parse(DOCS / "state-diagram.svg").getroot().iter("{http://www.w3.org/2000/svg}g")  # noqa: S314
    shown: dict[str, set[str | None]] = {"node": set(), "edge": set()}
    words: dict[str | None, tuple[str, ...]] = {}
    for group in groups:
        title = group.findtext("{http://www.w3.org/2000/svg}title")
        shown.setdefault(group.get("class", ""), set()).add(title)
        words[title] = tuple(text.text or "" for text in group.findall("{http://www.w3.org/2000/svg}text"))

    edges = {f"{before}->{after}": names for (before, after), names in machine_table.edges().items()}
    assert shown["node"] == {state.__name__ for state in get_args(states.State)}, HOW
    assert shown["edge"] == set(edges), HOW
    assert {title: words[title] for title in edges} == edges, HOW


def test_mermaid_has_the_same_edges() -> None:
    """The Mermaid diagram lists each pair of states once, with its events."""
    drawn = [line.strip() for line in machine_table.mermaid().splitlines() if "-->" in line and "[*]" not in line]

    assert drawn == [
        f"{before} --> {after}: {', '.join(names)}" for (before, after), names in machine_table.edges().items()
    ]


def test_every_state_and_every_event_appears() -> None:
    """No state, event or effect is missing from the table: a new one needs a representative."""
    rows = machine_table.rows()

    assert {type(row.record.state) for row in rows} == set(get_args(states.State))
    assert {type(row.event) for row in rows} == set(get_args(events.Event))
    assert {type(effect) for row in rows for effect in row.step.effects} == set(get_args(effects.Effect))


def test_a_reader_of_the_table_finds_every_answer() -> None:
    """Looking a case up in the printed lines gives what the machine does: no line was left out that was needed."""
    listed = {(row.state, row.given, row.occasion): (row.then, row.orders) for row in machine_table.rows()}
    for row in machine_table.every_row():
        found, given = None, row.given
        while found is None:
            names = (row.occasion, row.occasion.partition(",")[0])
            found = next((listed[key] for name in names if (key := (row.state, given, name)) in listed), None)
            if found is None and not given:
                found = ("", "")
            given = given.rpartition(", ")[0]

        assert (row.then, row.orders) == found, (row.state, row.given, row.occasion)


@pytest.mark.parametrize("line", machine_table.lines(), ids=lambda line: line.name)
def test_a_line_says_one_thing(line: machine_table.Line) -> None:
    """The rows that share a line read alike, and are what the function answers."""
    assert len({(row.then, row.orders) for row in line.rows}) == 1
    assert [row.step for row in line.rows] == [transition(row.record, row.event, row.policy) for row in line.rows]


def test_the_breaker_has_its_own_table() -> None:
    """Every state of the breaker is there, and what `admit` answers in it."""
    answers = {row.condition: row.answer for row in machine_table.breaker_rows() if row.occasion == "admit"}

    assert answers == {
        "closed": "permit",
        "one failure below the threshold": "permit",
        "open": "None; retry after 20 s",
        "open, cooldown over": "permit",
        "half open": "permit",
        "half open, probe granted": "None; retry after 1 s",
    }


def test_the_first_row_is_the_start() -> None:
    """The table begins where a producer begins."""
    first = machine_table.rows()[0]

    assert (first.record, first.then, first.orders) == (Record(), "**Dialing**, breaker closed", "Dial, Announce")
