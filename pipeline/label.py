"""Scores for groups of responses. Knows only that a scorer has one method."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.types import Group, RunError


class Scorer(Protocol):
    """Anything that turns groups into numbers, higher for better responses."""

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """One tuple a group with one score a response; ``None`` where no label could be had."""
        ...


def label(groups: Sequence[Group], scorer: Scorer) -> list[Group]:
    """``groups`` with the scores that ``scorer`` gives them.

    Raises:
        RunError: a scorer that returns another number of scores than it was asked for, or a score that is not finite.
    """
    scores = scorer.score(groups)
    name = f"scorer {type(scorer).__name__}"
    if len(scores) != len(groups):
        raise RunError(f"{name}: {len(scores)} results for {len(groups)} prompts")
    for group, given in zip(groups, scores, strict=True):
        if len(given) != len(group.responses):
            raise RunError(
                f"{name}: {len(given)} scores for {len(group.responses)} responses to prompt {group.prompt.id}"
            )
        unusable = [score for score in given if score is not None and not math.isfinite(score)]
        if unusable:
            raise RunError(f"{name}: score {unusable[0]} for a response to prompt {group.prompt.id}; must be finite")
    return [replace(group, scores=given) for group, given in zip(groups, scores, strict=True)]
