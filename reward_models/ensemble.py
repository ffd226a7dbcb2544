"""Several labellers combined into one; their disagreement on a response is kept with its score. Torch-free."""

import math
from collections.abc import Sequence

from pipeline.config import EnsembleScorer
from pipeline.types import Group
from reward_models.labeller import Labeller, Labels

Matrix = Sequence[Sequence[float | None]]


class Ensemble:
    """Weighted mean, minimum, or penalised mean of the members' scores (arXiv:2310.02743: mean, worst case and
    uncertainty-weighted, but with the variance instead of the standard deviation)."""

    def __init__(self, settings: EnsembleScorer, members: Sequence[Labeller]) -> None:
        """``members``: in the order of the settings."""
        self._settings = settings
        self._members = members
        self._quorum = settings.quorum or len(members)

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return scores and disagreement, and the weighted mean of win matrices if all members compare.

        Disagreement is the weighted standard deviation of the members' scores on their common scale; None if fewer
        than two members gave a score.
        """
        given = [member.label(groups) for member in self._members]
        return [self._merge([labels[number] for labels in given]) for number in range(len(groups))]

    def _merge(self, labels: Sequence[Labels]) -> Labels:
        columns = zip(*[self._scaled(index, one) for index, one in enumerate(labels)], strict=True)
        merged = [self._combine(column) for column in columns]
        return Labels(
            tuple(score for score, _ in merged),
            self._wins([one.wins for one in labels]) if all(one.wins for one in labels) else (),
            tuple(spread for _, spread in merged),
        )

    def _scaled(self, index: int, labels: Labels) -> list[float | None]:
        member = self._settings.members[index]
        return [None if score is None else (score - member.offset) / member.scale for score in labels.scores]

    def _combine(self, scores: Sequence[float | None]) -> tuple[float | None, float | None]:
        """Score and disagreement of one response."""
        there, weights = self._there(scores)
        if not there:
            return None, None
        mean = _mean(there, weights)
        spread = math.sqrt(_mean([(score - mean) ** 2 for score in there], weights)) if len(there) > 1 else None
        if len(there) < self._quorum:
            return None, spread
        match self._settings.combine:
            case "mean":
                return mean, spread
            case "min":
                return min(there), spread
            case "penalised":
                return mean - self._settings.penalty * (spread or 0.0), spread

    def _wins(self, matrices: Sequence[Matrix]) -> tuple[tuple[float | None, ...], ...]:
        size = range(len(matrices[0]))
        return tuple(tuple(self._win([matrix[i][j] for matrix in matrices]) for j in size) for i in size)

    def _win(self, given: Sequence[float | None]) -> float | None:
        there, weights = self._there(given)
        return _mean(there, weights) if len(there) >= self._quorum else None

    def _there(self, values: Sequence[float | None]) -> tuple[list[float], list[float]]:
        """Return the values that are not missing, and their members' weights."""
        pairs = [
            (value, member.weight)
            for value, member in zip(values, self._settings.members, strict=True)
            if value is not None
        ]
        return [value for value, _ in pairs], [weight for _, weight in pairs]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
