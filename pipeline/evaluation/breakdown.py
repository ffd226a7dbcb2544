"""Measures of held-out responses by the prompts' source and category, and by the criteria of rubrics. Torch-free."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from pydantic import JsonValue

from pipeline.evaluation.intervals import Interval, mean_interval, rate_interval
from pipeline.evaluation.metrics import describe_responses
from pipeline.types import Group
from pipeline.types.rubrics import criteria_of

# Parts that are told at most: those with most prompts.
TOLD_PARTS = 50
_Parts = dict[str, JsonValue]
T = TypeVar("T")


def by_source(groups: Sequence[Group], wins: Mapping[str, float], resamples: int, seed: int) -> _Parts:
    """Return measures by the file that prompts are from; empty if all are from one.

    Args:
        groups: the round's responses, scored or not.
        wins: win rates over the start by prompt id; empty without labels.
        resamples, seed: of the intervals of rewards.
    """
    return _by({group.prompt.id: group.prompt.source or "–" for group in groups}, groups, wins, resamples, seed)


def by_category(
    groups: Sequence[Group], categories: Mapping[str, str], wins: Mapping[str, float], resamples: int, seed: int
) -> _Parts:
    """Return measures by what ``categories`` says of prompts, by their ids; empty if all say the same."""
    return _by(categories, groups, wins, resamples, seed)


def _by(
    names: Mapping[str, str], groups: Sequence[Group], wins: Mapping[str, float], resamples: int, seed: int
) -> _Parts:
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(names.get(group.prompt.id, "–"), []).append(group)
    return _measured(parts, lambda part: _of_groups(part, wins, resamples, seed)) if len(parts) > 1 else {}


def by_criterion(groups: Sequence[Group], resamples: int, seed: int) -> _Parts:
    """Return mean scores by the criteria of rubrics, where a judge scored them."""
    parts: dict[str, list[float]] = {}
    for group in groups:
        for place, (criterion, _) in enumerate(criteria_of(group.prompt) if group.criteria else ()):
            known = [score for of in group.criteria if (score := of[place]) is not None]
            if known:
                parts.setdefault(criterion, []).append(sum(known) / len(known))

    def measured(values: Sequence[float]) -> _Parts:
        return {"prompts": len(values), **_plain("score", mean_interval(values, resamples, seed))}

    return _measured(parts, measured)


def _measured(parts: Mapping[str, list[T]], measure: Callable[[list[T]], _Parts]) -> _Parts:
    often = sorted(parts.items(), key=lambda one: (-len(one[1]), one[0]))[:TOLD_PARTS]
    return {name: measure(part) for name, part in often}


def _of_groups(groups: Sequence[Group], wins: Mapping[str, float], resamples: int, seed: int) -> _Parts:
    said = describe_responses(groups)
    found: _Parts = {"prompts": len(groups), "response_length": said["response_length"], "stop_rate": said["stop_rate"]}
    rewards = [known for group in groups if (known := [s for s in group.scores if s is not None])]
    if rewards:
        found |= _plain("reward", mean_interval([float(np.mean(scores)) for scores in rewards], resamples, seed))
    won = [wins[group.prompt.id] for group in groups if group.prompt.id in wins]
    if won:
        found |= _plain("win_rate_vs_start", rate_interval(won))
    return found


def _plain(name: str, interval: Interval) -> _Parts:
    return {name: interval.mean, f"{name}_ci": [interval.low, interval.high]}
