"""Turns on a clock and a loop of the test's own: who is next, and how much is done in one pass."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from warrener.ml.turns import FEWEST, LONG, SLICE, TURNS, Turns


@define
class Loop:
    """An event loop that runs its passes when it is told."""

    now: float = 0.0
    soon: list[Callable[[], None]] = field(factory=list)
    #: Calls of connections that have read more bytes.
    reads: list[Callable[[], None]] = field(factory=list)

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def run_pass(self) -> None:
        soon, self.soon = self.soon, []
        reads, self.reads = self.reads, []
        for call in soon + reads:
            call()


@define(eq=False)
class Connection:
    """Asks again as long as it has something to handle."""

    loop: Loop
    name: str
    given: list[str]
    cost: float = 0.0
    left: int = 1
    paid: float = 0.0
    turns: Turns | None = None
    waited: bool = False

    def take_turn(self) -> None:
        self.given.append(self.name)
        self.loop.now += self.cost
        self.left -= 1
        turns = self.turns
        if self.left and turns is not None:
            self.loop.reads.append(lambda: turns.ask(self))

    def wait_turn(self) -> None:
        self.waited = True


def made() -> tuple[Loop, Turns, list[str]]:
    loop = Loop()
    return loop, Turns(lambda: loop.now, loop.call_soon), []


def test_a_connection_that_is_alone_has_its_turn_at_once() -> None:
    """Nothing is put off while there is time; reading goes on."""
    loop, turns, given = made()
    connection = Connection(loop, "a", given)
    turns.ask(connection)
    assert (["a"], False) == (given, connection.waited)


def test_a_newcomer_is_next_however_many_wait() -> None:
    """500 connections, each of which costs more than a pass may take: the newcomer has its turn in the next pass."""
    loop, turns, given = made()
    for _ in range(500):
        turns.ask(Connection(loop, "flood", given, cost=2 * SLICE, left=100, turns=turns))
    loop.run_pass()
    before = len(given)
    newcomer = Connection(loop, "probe", given)
    turns.ask(newcomer)
    loop.run_pass()
    assert newcomer.waited
    assert "probe" in given[before : before + 2]


def test_a_pass_gives_a_bounded_number_of_turns_and_of_seconds() -> None:
    """The rest of the loop's work comes in between."""
    for cost, most in ((0.0, TURNS), (1.5 * SLICE, 1), (0.3 * SLICE, 4)):
        loop, turns, given = made()
        for _ in range(100):
            turns.ask(Connection(loop, "x", given, cost=cost))
        for _ in range(5):
            before = len(given)
            loop.run_pass()
            assert len(given) - before == most


def test_passes_that_take_long_give_fewer_turns_and_short_ones_more_again() -> None:
    """What a turn has begun may cost more than the turn: the pass is measured."""
    loop, turns, given = made()
    for _ in range(1000):
        turns.ask(Connection(loop, "x", given))
    counts = []
    for wait in (2 * LONG, 2 * LONG, 2 * LONG, 2 * LONG, 2 * LONG, 0.0, 0.0):
        loop.now += wait
        before = len(given)
        loop.run_pass()
        counts.append(len(given) - before)
    assert [TURNS // 2, FEWEST, FEWEST, FEWEST, FEWEST, FEWEST + 1, FEWEST + 2] == counts


def test_what_costs_much_waits_for_what_costs_little() -> None:
    """Ten times the cost, and at most a third of the turns."""
    loop, turns, given = made()
    for _ in range(20):
        for name, cost in (("dear", SLICE), ("cheap", SLICE / 10)):
            turns.ask(Connection(loop, name, given, cost=cost, left=1000, turns=turns))
    while len(given) < 2000:
        loop.run_pass()
    assert given.count("cheap") >= 3 * given.count("dear")


def test_silence_saves_nothing_up() -> None:
    """A connection that was silent for long is no more favoured than a new one."""
    loop, turns, given = made()
    silent = Connection(loop, "silent", given, cost=SLICE, left=10, turns=turns)
    busy = Connection(loop, "busy", given, cost=SLICE, left=50, turns=turns)
    turns.ask(busy)
    for _ in range(30):
        loop.run_pass()
    del given[:]
    turns.ask(silent)
    for _ in range(8):
        loop.run_pass()
    assert 3 <= given.count("silent") <= 5


def test_nothing_is_scheduled_when_nobody_waits() -> None:
    """An idle service does not turn its loop."""
    loop, turns, given = made()
    turns.ask(Connection(loop, "a", given))
    loop.run_pass()
    loop.run_pass()
    assert [] == loop.soon
