"""The embedded broker answers random legal requests as RabbitMQ does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testing.differential import Player, requests
from tests.testing.test_against_rabbitmq import in_the_words_of_3_10
from warrener.testing import EmbeddedBroker, PrivateRabbitMQ, Tuning

pytestmark = pytest.mark.broker

#: Requests in one sequence.
LENGTH = 40


@pytest.fixture(scope="module")
def players(private_rabbitmq: PrivateRabbitMQ) -> Iterator[tuple[Player, Player]]:
    """One for RabbitMQ, one for the embedded broker."""
    with EmbeddedBroker.in_thread(strict=False, tuning=Tuning(silent_close_delay=0.1)) as broker:
        players = Player(private_rabbitmq.url), Player(broker.url)
        yield players
        for player in players:
            player.close()


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(8, 120))])
def test_answers_as_rabbitmq_does(seed: int, players: tuple[Player, Player]) -> None:
    """Methods, codes, texts, deliveries, and the depth of each queue after each step."""
    real, embedded = players
    real.sweep()
    embedded.sweep()
    for place, request in enumerate(requests(seed, LENGTH)):
        what = request[0] if isinstance(request, list) else getattr(request, "request", request)
        expected = in_the_words_of_3_10(real.step(request))
        where = f"step {place} of seed {seed}: {what.name} {dict(what)}"
        assert expected == embedded.step(request), where
        assert _settled_alike(real, embedded), f"{where}: {real.state()} {embedded.state()}"


def _settled_alike(real: Player, embedded: Player) -> bool:
    """Ask for the depths until they agree, 500 times at most."""
    return any(real.state() == embedded.state() for _ in range(500))
