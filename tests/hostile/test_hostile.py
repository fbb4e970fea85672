"""A hostile broker costs a producer neither its life, nor its memory, nor its event loop, nor its secrets."""

from __future__ import annotations

import pytest

from tests.hostile.__main__ import BACKENDS, DRIVERS, tried
from tests.hostile.attacks import ATTACKS, Attack

#: One on the thread's bridge and one without; a flood that once filled the memory.
_PAIRS = {("native", "trio"), ("aiormq", "trio")}
_KEPT = {"deliveries"}


def _cases() -> list[object]:
    return [
        pytest.param(
            attack,
            driver,
            backend,
            marks=pytest.mark.slow
            if attack.run.__name__ in _KEPT and (driver, backend) in _PAIRS
            else pytest.mark.full,
            id=f"{attack.run.__name__}-{driver}-{backend}",
        )
        for attack in ATTACKS
        for driver in DRIVERS
        for backend in BACKENDS
    ]


@pytest.mark.parametrize(("attack", "driver", "backend"), _cases())
def test_an_attack_is_borne(attack: Attack, driver: str, backend: str) -> None:
    """The process lives, its account balances, it confirms again by itself, and what the attack cost it is bounded."""
    _, wrong = tried(attack, driver, backend, 1.0, seed=1)
    assert not wrong
