"""Win probabilities of responses from their scores."""

import math
from collections.abc import Sequence
from typing import Literal

# Whom a win probability is against: the average of the policy's answers, or the other response of the pair.
Opponent = Literal["average", "other"]


def win_probability(reward: float, rewards: Sequence[float]) -> float:
    """P(a response of ``reward`` beats the policy's average answer), from the ``rewards`` of the K that were drawn.

    The mean over the K of σ(r − r_j), the response itself among them (SPPO, arXiv:2405.00675, section 4; there a
    pairwise model gives each probability, here it is Bradley and Terry's of the scorer's values).
    """
    return sum(sigmoid(reward - other) for other in rewards) / len(rewards)


def sigmoid(value: float) -> float:
    """1 / (1 + e^-value)."""
    # e^-|value| cannot overflow.
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)


def win_probabilities(chosen: float, rejected: float, rewards: Sequence[float] | None) -> tuple[float, float]:
    """Of two rewards, each against the average of ``rewards``, or against the other (None)."""
    if rewards is None:
        wins = sigmoid(chosen - rejected)
        return wins, 1 - wins
    return win_probability(chosen, rewards), win_probability(rejected, rewards)
