"""Intervals against values of the literature, and how often they miss at small samples (tests/studies/coverage.py)."""

import math

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.evaluation.equal_length import equal_length_rate, equal_length_wins
from pipeline.evaluation.intervals import mean_interval, rate_interval, smooth_interval, student_t
from tests.studies.coverage import CASES, Case, missed

# Wilson's intervals of x wins in n, 95 %.
WILSON = [(1, 10, 0.0179, 0.4042), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)]


@pytest.mark.parametrize(("wins", "size", "low", "high"), WILSON)
def test_a_rate_of_yes_and_no_has_wilsons_interval(wins: int, size: int, low: float, high: float) -> None:
    found = rate_interval([1.0] * wins + [0.0] * (size - wins))
    assert found.mean == wins / size
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_what_never_happened_may_happen_and_ties_are_not_certain() -> None:
    never, ties = rate_interval([0.0] * 16), rate_interval([0.5] * 16)
    assert (never.low, never.high) == (0.0, pytest.approx(0.194, abs=1e-3))
    assert ties.low < 0.45 and ties.high > 0.55
    # Ties vary less than yes and no, so their interval is shorter.
    half = rate_interval([0.0, 1.0] * 8)
    assert ties.high - ties.low < 0.5 * (half.high - half.low)
    change = rate_interval([0.0] * 16, -1.0, 1.0)
    assert change.mean == 0 and change.low == pytest.approx(-change.high) and change.high > 0.08
    with pytest.raises(RunError, match="no prompt has scores"):
        rate_interval([])


def test_prompts_that_count_more_leave_fewer_to_go_by() -> None:
    rates = [1.0, 0.0] * 10
    plain, alike = rate_interval(rates), rate_interval(rates, weights=[7.0] * 20)
    assert (plain.mean, plain.low, plain.high) == pytest.approx((alike.mean, alike.low, alike.high))
    heavy = rate_interval(rates, weights=[9.0, 9.0, 1.0, 1.0] * 5)
    assert heavy.mean == 0.5 and heavy.high - heavy.low > 1.1 * (plain.high - plain.low)


def test_a_mean_of_many_has_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    found = mean_interval(values, 2000, 0)
    assert found.mean == pytest.approx(values.mean())
    for end, sign in ((found.low, -1), (found.high, 1)):
        assert end == pytest.approx(values.mean() + sign * 1.96 * values.std() / math.sqrt(1000), abs=0.012)
    assert mean_interval(values, 2000, 0) == found


def test_a_few_prompts_that_differ_from_the_rest_settle_nothing() -> None:
    # Two of 32 prompts lose a point, and one of 30 gains one: once surely a fall, and once certainly no more than that.
    two, one = mean_interval([-1.0] * 2 + [0.0] * 30, 300, 0), mean_interval([1.0] + [0.0] * 29, 300, 0)
    error = math.sqrt(2 / 32 * 30 / 32 / 31)
    assert two.high >= -2 / 32 + 2.039 * error > 0.025
    assert one.low <= (1 - 2.045) / 30 and one.high >= (1 + 2.045) / 30
    # Resamples of equal values have no spread, so that they say nothing: not even by rounding.
    for changed in range(1, 16):
        values = [-1.0] * changed + [0.0] * (30 - changed)
        found = mean_interval(values, 300, 0)
        assert -2 <= found.low <= found.mean <= found.high <= 1
    # Six of 32 do settle it.
    assert mean_interval([-1.0] * 6 + [0.0] * 26, 300, 0).high < -0.04


def test_rewards_that_cancel_are_no_change() -> None:
    rest = 0.1 + 0.2 - 0.3
    assert rest > 0
    for sign in (-1, 1):
        found = mean_interval([sign * rest] * 20, 100, 0)
        assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_few_values_have_students_interval_and_one_has_none() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 6.0], 100, 0)
    # Mean 3, standard error sqrt(14/3)/2, t of 3 degrees of freedom 3.182.
    assert (found.low, found.high) == (pytest.approx(-0.437, abs=0.01), pytest.approx(6.437, abs=0.01))
    assert student_t(0.975, 30) == pytest.approx(2.0423, abs=1e-4)
    one = mean_interval([0.25], 100, 0)
    assert (one.low, one.high) == (0.25, 0.25)
    with pytest.raises(RunError, match="no prompt has scores"):
        mean_interval([], 100, 0)


def test_a_ratio_has_the_standard_error_of_the_delta_method() -> None:
    draw = np.random.default_rng(1)
    below = draw.uniform(5, 15, size=400)
    above = 2 * below + draw.normal(0, 3, size=400)
    found = smooth_interval(np.column_stack([above, below]), lambda means: means[..., 0] / means[..., 1], 2000, 0)
    ratio = above.sum() / below.sum()
    error = (above - ratio * below).std(ddof=1) / below.mean() / 20
    assert found.mean == pytest.approx(ratio)
    assert found.high - found.low == pytest.approx(2 * 1.97 * error, rel=0.06)


def test_equal_length_wins_have_the_likelihoods_interval() -> None:
    # Without any difference in length: the interval of 8.5 wins in 11, where 2 (l(max) - l) = 3.84.
    found = equal_length_wins(np.array([1.0] * 8 + [0.0] * 2), np.zeros(10))
    assert found.mean == pytest.approx(8.5 / 11, abs=1e-5)
    assert equal_length_rate(np.array([1.0] * 8 + [0.0] * 2), np.zeros(10)) == found.mean
    for end in (found.low, found.high):
        fall = 8.5 * math.log(8.5 / 11 / end) + 2.5 * math.log(2.5 / 11 / (1 - end))
        assert 2 * fall == pytest.approx(3.8415, abs=1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_intervals_miss_about_as_often_as_they_say(case: Case) -> None:
    found = missed(case, 300, seed=0)
    # 2.5 % a side is meant; 300 draws have a standard error of 0.9 %, and two of 16 prompts are a jump of 6 %.
    assert found.below <= 0.08 and found.above <= 0.08, found
