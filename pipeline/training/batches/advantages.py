"""Advantages and returns of a response's tokens from their values, whitened over a round (APA, 2306.02231). Torch-free.

The reward of a response is that of its last token. Advantages are generalised estimates (GAE, arXiv:1506.02438).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Added to the variance, as in the published code, so that equal advantages become 0.
EPSILON = 1e-8


def estimates(
    values: Sequence[float], reward: float, gamma: float, gae_lambda: float
) -> tuple[list[float], list[float]]:
    """Return advantages and returns of one response's tokens, not whitened.

    Args:
        values: V_t before each token, in units of the reward.
        reward: of the whole response.
        gamma, gae_lambda: with δ_t = r_t + γ V_(t+1) − V_t and V = 0 after the end, A_t = Σ_n (γλ)^n δ_(t+n); the
            return is A_t + V_t.

    >>> estimates([0.0, 0.5], 1.0, 1.0, 1.0)
    ([1.0, 0.5], [1.0, 1.0])
    """
    advantages = [0.0] * len(values)
    after, ahead, of_token = 0.0, 0.0, reward
    for t in range(len(values) - 1, -1, -1):
        ahead = of_token + gamma * after - values[t] + gamma * gae_lambda * ahead
        advantages[t], after, of_token = ahead, values[t], 0.0
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@dataclass(slots=True)
class Moments:
    """Mean and deviation of numbers, one after the other, in double precision."""

    count: int = 0
    mean: float = 0.0
    _square: float = field(default=0.0)

    def add(self, numbers: Iterable[float]) -> None:
        """Take up ``numbers``."""
        for number in numbers:
            self.count += 1
            step = number - self.mean
            self.mean += step / self.count
            self._square += step * (number - self.mean)

    @property
    def variance(self) -> float:
        """Mean square of the distance from the mean; 0 of nothing."""
        return self._square / self.count if self.count else 0.0

    def whitened(self, numbers: Iterable[float]) -> tuple[float, ...]:
        """Return ``numbers`` minus the mean, over the deviation."""
        scale = 1 / math.sqrt(self.variance + EPSILON)
        return tuple((number - self.mean) * scale for number in numbers)
