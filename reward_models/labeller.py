"""Labels for groups of responses. Knows only that a labeller, or a scorer, has one method."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.errors import RunError
from pipeline.types import Group

Scores = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """What a labeller says of one group of K responses; ``None`` wherever no label could be had.

    ``scores``: K numbers, higher for better responses. ``wins``: of a labeller that compares, K rows of K
    probabilities that the response of the row is better than that of the column, 1/2 with itself; else empty.
    ``disagreement``: of an ensemble, the standard deviation of its members' scores of each response; else empty.
    """

    scores: Scores
    wins: tuple[Scores, ...] = ()
    disagreement: Scores = ()

    def preference(self, one: int, other: int) -> float | None:
        """P(response ``one`` is better than ``other``): the labeller's own, or 1, 1/2 or 0 by the scores."""
        if self.wins:
            return self.wins[one][other]
        first, second = self.scores[one], self.scores[other]
        if first is None or second is None:
            return None
        return 0.5 if first == second else float(first > second)


class Scorer(Protocol):
    """Anything that turns each response into a number, higher for better ones."""

    def score(self, groups: Sequence[Group]) -> list[Scores]:
        """One tuple a group with one score a response; ``None`` where no label could be had."""
        ...


class Labeller(Protocol):
    """Anything that labels groups: scores, and wins or disagreement where it knows them."""

    def label(self, groups: Sequence[Group]) -> list[Labels]:
        """One ``Labels`` a group."""
        ...


def label(groups: Sequence[Group], labeller: Labeller) -> list[Group]:
    """``groups`` with the labels that ``labeller`` gives them.

    Raises:
        RunError: a labeller that returns another number of labels than it was asked for, a number that is not finite,
            or a win probability outside 0 to 1.
    """
    given = labeller.label(groups)
    name = f"labeller {type(labeller).__name__}"
    if len(given) != len(groups):
        raise RunError(f"{name}: {len(given)} results for {len(groups)} prompts")
    for group, labels in zip(groups, given, strict=True):
        fault = _fault(labels, len(group.responses))
        if fault is not None:
            raise RunError(f"{name}: {fault}, prompt {group.prompt.id}")
    return [
        replace(group, scores=labels.scores, wins=labels.wins, disagreement=labels.disagreement)
        for group, labels in zip(groups, given, strict=True)
    ]


def _fault(labels: Labels, count: int) -> str | None:
    if len(labels.scores) != count:
        return f"{len(labels.scores)} scores for {count} responses"
    unusable = [score for score in labels.scores if score is not None and not math.isfinite(score)]
    if unusable:
        return f"score {unusable[0]}; must be finite"
    if labels.wins and (len(labels.wins) != count or {len(row) for row in labels.wins} != {count}):
        return f"wins for other than {count} x {count} responses"
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
    """Of each prompt, by id, the mean probability that its n-th response beats the n-th of ``others``, as labelled.

    Prompts that only one side has, or for which no label could be had, do not count.
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
