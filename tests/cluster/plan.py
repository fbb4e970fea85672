"""What happens to the nodes, and when: drawn from a seed alone, so that every client meets the same events."""

from __future__ import annotations

import random
from collections.abc import Iterator

from attrs import frozen

__all__ = ["DEMO", "KINDS", "Step", "plan"]

#: Each event, and how long it holds in seconds.
KINDS = {"kill": (3.0, 8.0), "freeze": (6.0, 14.0), "maintenance": (4.0, 10.0), "restart": (0.0, 0.0)}


@frozen
class Step:
    """One event: of which kind, on the node of the client or on another one, for how long, and the rest behind it."""

    kind: str
    #: 0: the node that the client is connected to; 1, 2: the nodes behind it.
    offset: int
    hold: float
    rest: float


#: A kill, a frozen node and a maintenance, each of the client's own node; then a kill of another one.
DEMO = (
    Step("kill", 0, 4.0, 5.0),
    Step("freeze", 0, 14.0, 5.0),
    Step("maintenance", 0, 6.0, 5.0),
    Step("kill", 1, 4.0, 5.0),
)


def plan(seed: int) -> Iterator[Step]:
    """Yield events without end."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(tuple(KINDS))
        yield Step(kind, rng.choice((0, 0, 0, 0, 1, 2)), rng.uniform(*KINDS[kind]), rng.uniform(3.0, 6.0))
