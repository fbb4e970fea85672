"""`warrener rehearse`: the fleet, the model of the broker, and what the command prints."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from attrs import evolve

from warrener._cli.main import main
from warrener._cli.rehearsal import Fleet, rehearse
from warrener._cli.rehearse_plot import sparkline
from warrener.machine import Backoff, Policy


def fleet(jitter: float = 0.5, producers: int = 200, **changes: object) -> Fleet:
    policy = Policy(backoff=Backoff(initial=1, cap=15, jitter=jitter), breaker=None)
    return evolve(Fleet(producers, 30.0, 50.0, policy), **changes)  # type: ignore[arg-type]


def test_every_producer_comes_back_once() -> None:
    """The account balances: each producer recovers, none before the broker, at most `accept_rate` a second."""
    result = rehearse(fleet())

    assert len(result.recovered) == 200
    assert list(result.recovered) == sorted(result.recovered)
    assert result.recovered[0] > 30.0
    for at in range(30, 60):
        assert sum(at <= instant < at + 1 for instant in result.recovered) <= 51
    assert result.back(0.5) == result.recovered[99] - 30.0
    assert result.back(1.0) == result.recovered[-1] - 30.0


def test_without_jitter_the_whole_fleet_dials_at_once() -> None:
    """Every producer has the same delays, so one second has all dials; jitter spreads them."""
    together, spread = rehearse(fleet(0.0)), rehearse(fleet(0.5))

    assert together.peak == 200
    assert together.peak_multiple == 4.0
    assert spread.peak < 200 / 4


def test_equal_seeds_give_equal_rehearsals() -> None:
    """Nothing but the seed decides."""
    assert rehearse(fleet(seed=7)) == rehearse(fleet(seed=7))
    assert rehearse(fleet(seed=7)).recovered != rehearse(fleet(seed=8)).recovered


def test_a_dial_that_waits_too_long_fails_and_leaves_the_queue() -> None:
    """A broker of 5 connections a second serves 50 of 200 within the timeout; the others try again later."""
    result = rehearse(fleet(0.0, accept_rate=5.0))

    assert result.crowded_out >= 150
    assert len(result.recovered) == 200


def test_a_silent_outage_costs_fewer_dials() -> None:
    """A dial that times out occupies its producer, so there are fewer of them than of refused ones."""
    assert sum(rehearse(fleet(silent=True)).dials) < sum(rehearse(fleet()).dials)


def test_a_producer_that_gives_up_never_comes_back() -> None:
    """With a limit of attempts, a long outage leaves producers behind, and the rehearsal says so."""
    limited = Policy(backoff=Backoff(initial=1, cap=2, attempts=3, jitter=0), breaker=None)

    result = rehearse(fleet(policy=limited))

    assert (result.recovered, result.back(1.0), result.back(0.01)) == ((), None, None)


def test_the_command_prints_both_rehearsals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With and without jitter by default: the figures, a line of blocks for each, and a picture on request."""
    picture = tmp_path / "fleet.svg"
    assert main(["rehearse", "--producers", "50", "--outage", "20", "--plot", str(picture)]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("50 producers, an outage of 20 s, then 100 connections a second")
    assert [line.split()[0] for line in printed[3:5]] == ["0.5", "0"]
    assert len(ET.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}polyline")) == 2  # noqa: S314 - our own


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object for each rehearsal, with the dials of every second."""
    assert main(["rehearse", "--producers", "10", "--jitter", "0", "--json"]) == 0

    (figures,) = json.loads(capsys.readouterr().out)
    assert figures["producers"] == 10
    assert figures["dials"] == sum(figures["dials_per_second"])
    assert figures["peak_dials_per_second"] == 10


@pytest.mark.parametrize("wrong", [["--producers", "0"], ["--outage", "0"], ["--accept-rate", "-1"], ["--jitter", "2"]])
def test_values_that_make_no_sense_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, with one line that names the value."""
    assert main(["rehearse", *wrong]) == 2

    assert capsys.readouterr().err.startswith("warrener rehearse: ")


def test_a_line_of_blocks_shows_the_largest_value_of_each_part() -> None:
    """No peak is lost when seconds share a block."""
    assert sparkline([0, 1, 8], 3) == " ▁█"
    assert sparkline([0, 9, 0, 0, 0, 0], 3) == "█  "
    assert sparkline([], 3) == ""
    assert sparkline([0, 0], 3) == "  "
