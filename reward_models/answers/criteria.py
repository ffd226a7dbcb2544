"""Labels by rubric: each criterion is labelled by itself, and their weighted mean is the label. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.types import Group
from pipeline.types.rubrics import criteria_of
from reward_models.answers.labellers import labels_of_wins
from reward_models.labeller import Labeller, Labels, Scores


class ByCriterion:
    """Ask a labeller about each criterion of a prompt's rubric; prompts without one are labelled as a whole.

    A label is missing where that of one criterion is: the others alone would be another rubric.
    """

    def __init__(self, labeller: Labeller) -> None:
        """``labeller``: reads ``Prompt.criterion``."""
        self._labeller = labeller

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return labels with ``criteria``, where a prompt has a rubric."""
        asked = [
            replace(group, prompt=replace(group.prompt, criterion=criterion))
            for group in groups
            for criterion, _ in criteria_of(group.prompt) or (("", 1.0),)
        ]
        given = iter(self._labeller.label(asked))
        found = []
        for group in groups:
            weights = [weight for _, weight in criteria_of(group.prompt)]
            parts = [next(given) for _ in weights or (1.0,)]
            found.append(_together(parts, weights) if weights else parts[0])
        return found


def _together(parts: Sequence[Labels], weights: Sequence[float]) -> Labels:
    criteria = tuple(zip(*(part.scores for part in parts), strict=True))
    if not parts[0].wins:
        return Labels(tuple(_mean(scores, weights) for scores in criteria), criteria=criteria)
    rows = zip(*(part.wins for part in parts), strict=True)
    wins = [[_mean(cells, weights) for cells in zip(*row, strict=True)] for row in rows]
    return replace(labels_of_wins(wins), criteria=criteria)


def _mean(values: Scores, weights: Sequence[float]) -> float | None:
    known = [value * weight for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(known) / sum(weights) if len(known) == len(values) else None
