"""Labels for groups of responses. A labeller, or a scorer, is anything with one method."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.errors import RunError
from pipeline.types import Group
from pipeline.types.counts import number_of

Scores = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """A labeller's labels for one group of K responses; ``None`` where a label is missing.

    ``scores``: K numbers, higher for better responses. ``wins``: from a labeller that compares, K rows of K
    probabilities that the row's response is better than the column's, 1/2 on the diagonal; else empty.
    ``disagreement``: from an ensemble, the standard deviation of its members' scores for each response; else empty.
    ``criteria``: from a judge of rubrics, each response's scores by criterion; else empty.
    """

    scores: Scores
    wins: tuple[Scores, ...] = ()
    disagreement: Scores = ()
    criteria: tuple[Scores, ...] = ()

    def preference(self, one: int, other: int) -> float | None:
        """P(response ``one`` is better than ``other``): from the labeller, or 1, 1/2 or 0 by the scores."""
        if self.wins:
            return self.wins[one][other]
        first, second = self.scores[one], self.scores[other]
        if first is None or second is None:
            return None
        return 0.5 if first == second else float(first > second)


class Scorer(Protocol):
    """Anything that turns each response into a number, higher for better ones."""

    def score(self, groups: Sequence[Group]) -> list[Scores]:
        """Return one tuple per group with one score per response; ``None`` where a label is missing."""
        ...


class Labeller(Protocol):
    """Anything that labels groups: with scores, and with wins or disagreement if it has them."""

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """Return one ``Labels`` per group."""
        ...


def label(groups: Sequence[Group], labeller: Labeller) -> list[Group]:
    """Return ``groups`` with labels from ``labeller``.

    Raises:
        RunError: the labeller returns the wrong number of labels, a number that is not finite, or a win probability
            outside 0 to 1.
    """
    given = labeller.label(groups)
    name = f"labeller {type(labeller).__name__}"
    if len(given) != len(groups):
        raise RunError(f"{name}: {number_of(len(given), 'result')} for {number_of(len(groups), 'prompt')}")
    for group, labels in zip(groups, given, strict=True):
        fault = _fault(labels, len(group.responses))
        if fault is not None:
            raise RunError(f"{name}: {fault}, prompt {group.prompt.id}")
    return [
        replace(
            group, scores=labels.scores, wins=labels.wins, disagreement=labels.disagreement, criteria=labels.criteria
        )
        for group, labels in zip(groups, given, strict=True)
    ]


def _fault(labels: Labels, count: int) -> str | None:
    if len(labels.scores) != count:
        return f"{number_of(len(labels.scores), 'score')} for {number_of(count, 'response')}"
    unusable = [score for score in labels.scores if score is not None and not math.isfinite(score)]
    if unusable:
        return f"score {unusable[0]}; must be finite"
    if labels.wins and (len(labels.wins) != count or {len(row) for row in labels.wins} != {count}):
        return f"wins are not a matrix of {count} x {count} responses"
    outside = [p for p in _numbers(labels.wins) if not 0 <= p <= 1]
    if outside:
        return f"win probability {outside[0]}; must be from 0 to 1"
    if labels.disagreement and len(labels.disagreement) != count:
        return f"disagreement on {len(labels.disagreement)} of {count} responses"
    beyond = [d for d in _numbers([labels.disagreement]) if not (math.isfinite(d) and d >= 0)]
    return f"disagreement {beyond[0]}; must be finite, 0 or more" if beyond else None


def _numbers(rows: Iterable[Scores]) -> list[float]:
    return [value for row in rows for value in row if value is not None]


def wins_by_comparison(groups: Sequence[Group], others: Iterable[Group], labeller: Labeller) -> dict[str, float]:
    """Map each prompt's id to the mean probability that its n-th response beats the n-th of ``others``.

    Prompts that only one side has, or that get no label, are left out.
    """
    theirs = {group.prompt.id: group for group in others}
    duels = [
        Group(group.prompt, group.prompt_ids, both)
        for group in groups
        if group.prompt.id in theirs
        for both in zip(group.responses, theirs[group.prompt.id].responses, strict=False)
    ]
    found: dict[str, list[float]] = {}
    for duel, labels in zip(duels, labeller.label(duels), strict=True):
        better = labels.preference(0, 1)
        if better is not None:
            found.setdefault(duel.prompt.id, []).append(better)
    return {key: sum(rates) / len(rates) for key, rates in found.items()}
