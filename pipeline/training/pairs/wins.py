"""Win probabilities of responses, from their scores or from a labeller that compares."""

import math
from collections.abc import Sequence
from typing import Literal

from pipeline.types import Group, Response

# The opponent of a win probability: the average of the policy's answers, or the other response of the pair.
Opponent = Literal["average", "other"]


def win_probability(reward: float, rewards: Sequence[float]) -> float:
    """P(a response of ``reward`` beats the policy's average answer), from the ``rewards`` of K drawn responses.

    The mean over the K of σ(r − r_j), including the response itself (SPPO, arXiv:2405.00675, section 4; there a
    pairwise model gives each probability, here Bradley-Terry on the scorer's values).
    """
    return sum(_sigmoid(reward - other) for other in rewards) / len(rewards)


def _sigmoid(value: float) -> float:
    """1 / (1 + e^-value)."""
    # e^-|value| cannot overflow.
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)


def win_probabilities(chosen: float, rejected: float, rewards: Sequence[float] | None) -> tuple[float, float]:
    """Return the win probabilities of two rewards against the average of ``rewards``, or each other (None)."""
    if rewards is None:
        wins = _sigmoid(chosen - rejected)
        return wins, 1 - wins
    return win_probability(chosen, rewards), win_probability(rejected, rewards)


def group_wins(group: Group, chosen: Response, rejected: Response, against: Opponent) -> tuple[float, float]:
    """Return win probabilities of two responses of a scored ``group``: the labeller's own, if it compares.

    Against the average: the mean over the group, including the response itself. Against each other, if the labeller
    did not compare the two: 1/2 plus half the difference of their win rates.
    """
    places = [group.responses.index(response) for response in (chosen, rejected)]
    first, second = (group.scores[place] for place in places)
    assert first is not None and second is not None, "a pair never holds a response without a score"
    if not group.wins:
        others = [score for score in group.scores if score is not None]
        return win_probabilities(first, second, others if against == "average" else None)
    if against == "average":
        rows = [[wins for wins in group.wins[place] if wins is not None] for place in places]
        return sum(rows[0]) / len(rows[0]), sum(rows[1]) / len(rows[1])
    wins = group.wins[places[0]][places[1]]
    better = 0.5 + (first - second) / 2 if wins is None else wins
    return better, 1 - better
