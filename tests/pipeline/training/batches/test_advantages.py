"""Advantages of tokens: their formula written out as a double sum, and what whitening makes of a round's."""

import random
import statistics

import pytest

from pipeline.training.batches.advantages import Moments, estimates


def written_out(values: list[float], reward: float, gamma: float, lam: float) -> list[float]:
    """A_t = Σ_n (γλ)^n δ_(t+n), δ_t = r_t + γ V_(t+1) − V_t."""
    length = len(values)
    rewards = [0.0] * (length - 1) + [reward]
    deltas = [rewards[t] + (gamma * values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((gamma * lam) ** n * deltas[t + n] for n in range(length - t)) for t in range(length)]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_they_are_the_generalised_estimates(gamma: float, lam: float, length: int) -> None:
    draw = random.Random(length)
    values, reward = [draw.gauss(0, 1) for _ in range(length)], draw.gauss(0, 2)
    advantages, returns = estimates(values, reward, gamma, lam)
    expected = written_out(values, reward, gamma, lam)
    assert advantages == pytest.approx(expected, abs=1e-12)
    assert returns == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-12)


def test_at_lambda_1_they_are_the_return_minus_the_value_and_at_0_one_step() -> None:
    values = [0.3, -0.2, 0.7]
    assert estimates(values, 2.0, 1.0, 1.0)[0] == pytest.approx([2 - v for v in values])
    assert estimates(values, 2.0, 1.0, 0.0)[0] == pytest.approx([-0.5, 0.9, 1.3])


def test_without_a_value_the_reward_fades_towards_the_first_token() -> None:
    assert estimates([0.0] * 3, 2.0, 1.0, 0.5)[0] == [0.5, 1.0, 2.0]


def test_whitening_is_over_all_numbers_whatever_their_order_and_parts() -> None:
    draw = random.Random(0)
    numbers = [5 + 3 * draw.random() for _ in range(200)]
    whole, parts = Moments(), Moments()
    whole.add(numbers)
    for start in range(0, 200, 7):
        parts.add(numbers[start : start + 7])
    assert whole.whitened(numbers) == parts.whitened(numbers)
    mean, deviation = statistics.fmean(numbers), statistics.pstdev(numbers)
    assert whole.whitened(numbers[:3]) == pytest.approx([(n - mean) / deviation for n in numbers[:3]], rel=1e-6)


def test_equal_numbers_become_0() -> None:
    moments = Moments()
    moments.add([2.5, 2.5])
    assert moments.whitened([2.5]) == (0.0,)
