"""The links' study, small: what it measures is what theory says, so a wrong sign, scale or link shows."""

import math

import pytest

from tests.studies import gpo
from tests.studies.study_report import Claim, draw, markdown, mean_error


def failed(claims: list[Claim]) -> list[str]:
    return [f"{one.said}: {one.measured}, not {one.bar}" for one in claims if not one.held]


def test_slopes_of_the_optima_are_those_of_the_links() -> None:
    world = gpo.random_world(0, prompts=2, answers=4, spread=gpo.CLOSE)
    exact = {link: [gpo.slope(world, gpo.optimum(world, gpo.loss_of(link)))] for link in gpo.LINKS}
    assert failed(gpo.slope_claims(exact)) == []
    # The reward itself for the likelihood of Bradley and Terry: the scale, not only the ratios.
    assert exact["logistic"][0] == pytest.approx(1.0, abs=1e-4)


def test_the_production_trainer_finds_the_same_slope() -> None:
    world = gpo.random_world(3, prompts=1, answers=4, spread=0.3)
    assert gpo.sampled_slope(world, "logistic", seed=0, comparisons=10**6) == pytest.approx(1.0, abs=0.01)
    assert gpo.sampled_slope(world, "exponential", seed=0, comparisons=10**6) == pytest.approx(0.5, abs=0.01)


def test_separable_pairs_stop_or_go_on_as_the_links_say() -> None:
    stops = {link: gpo.stopping(link, [0], (100.0, 1e4, 1e5)) for link in gpo.LINKS if link != "exponential"}
    assert failed(gpo.stop_claims(stops)) == []
    assert float(stops["logistic"][1e5]) == pytest.approx(math.log(1e5), abs=0.05)


def test_at_one_kl_the_smooth_links_win_as_the_tilt_does_and_other_policies_do_not() -> None:
    gaps = gpo.win_gaps([0], 1.0)
    assert failed(gpo.gap_claims({1.0: gaps})) == []
    world = gpo.random_world(0, prompts=1, answers=5)
    away = gpo.World(world.reference, -world.rewards).tilt(1.0)
    assert float(world.wins(away)[0]) < float(world.wins(gpo.tilt_at_kl(world, float(world.kl(away)[0])))[0]) - 0.1


def test_a_report_shows_what_did_not_hold() -> None:
    claim = Claim("it holds", "1 ± 0.1", "1.3 ± 0.0", held=False)
    assert "| 1 ± 0.1 | 1.3 ± 0.0 | **NO** |" in markdown(gpo.Report([claim], {}, []))
    picture = draw([gpo.Panel("a", "x", "y", {"line": gpo.curve([1, 2], [[1, 2], [3, 4]])})])
    assert b"line" in picture and len(picture) < 60_000
    assert mean_error([1.0, 3.0]) == (2.0, 1.0)
