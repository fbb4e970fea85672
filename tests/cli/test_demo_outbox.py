"""The account of the demo's second act: it balances only when nothing is wrong with it, and says what is."""

from __future__ import annotations

import pytest
from attrs import evolve

from warrener._cli.demo_outbox import OutboxAccount

GOOD = OutboxAccount(stored={"a", "b"}, kills=2, waiting=1, found={"a": (1, 0), "b": (2, 1), "unreported": (1, 1)})


def test_a_balanced_account_has_no_faults() -> None:
    """A copy with the header, and a message that was stored in the moment of a kill, are in order."""
    assert GOOD.faults() == []
    assert (GOOD.lost, GOOD.copies, GOOD.unflagged, GOOD.unreported) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"found": {"a": (1, 0)}}, "1 stored messages lost"),
        ({"found": {"a": (1, 0), "b": (3, 1)}}, "1 copies that are not flagged as possible duplicates"),
        ({"waiting": 0}, "no message waited in the outbox at the first kill"),
    ],
)
def test_each_fault_is_told(change: dict[str, object], fault: str) -> None:
    """A lost message, a copy without the header, and an act that has shown nothing."""
    assert evolve(GOOD, **change).faults() == [fault]


def test_the_lines_name_each_number() -> None:
    """One line for each claim."""
    assert [line.split()[0] for line in GOOD.lines()] == ["stored", "kills", "in", "lost", "copies"]
