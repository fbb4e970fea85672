"""The checks of the fuzzer hold for what it starts from, on every system, with or without a fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_checked_holds_for_the_seeds(name: str) -> None:
    """Each seed, and each cut off in its middle."""
    target = TARGETS[name]
    check = target.check()
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        check(seed[: target.longest])
        check(seed[: min(len(seed), target.longest) // 2])
