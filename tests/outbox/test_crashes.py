"""The producing process is killed at random points; an independent consumer settles the account.

`make outbox-kills` does the same a thousand times, with RabbitMQ, which is killed as well.
"""

from __future__ import annotations

import random

import pytest

from tests.outbox.crashes import Account, relay_in_order, run
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """Where the outbox is: the path of a file, or a connection string."""
    return request.getfixturevalue("outbox_dsn") if request.param == "postgres" else str(tmp_path / "crash.db")


def test_killed_processes_lose_nothing(place):
    """Everything reported as stored is in the queue, in the order of its key, and each copy is accounted for."""
    with EmbeddedBroker.in_thread() as broker:
        account = run(place, broker.url, 4, random.Random(1))

    assert account.stored
    assert (account.lost, account.unflagged, account.inversions) == (set(), set(), 0)


@pytest.mark.full
def test_relays_that_are_killed_keep_the_order(place):
    """Three relays at once, one of them killed again and again."""
    with EmbeddedBroker.in_thread() as broker:
        account = relay_in_order(place, broker.url, random.Random(1), keys=50, rows=6, kills=3)

    assert (account.lost, account.unflagged, account.inversions) == (set(), set(), 0)


def test_the_account_sees_what_is_wrong():
    """A lost row, a copy without a flag and an inversion are counted."""
    account = Account(
        stored={"0-1": ("a", 1), "0-2": ("a", 2), "0-3": ("a", 3)},
        found=[("0-2", "a", False), ("0-1", "a", False), ("0-2", "a", False), ("0-1", "a", True)],
    )

    assert (account.lost, account.unflagged, account.inversions, account.copies) == ({"0-3"}, {"0-2"}, 1, 2)
