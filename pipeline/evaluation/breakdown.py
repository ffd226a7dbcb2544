"""Held-out measures by the prompts' source and category, and by the criteria of rubrics. Torch-free."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from pydantic import JsonValue

from pipeline.evaluation.intervals import Interval, mean_interval, rate_interval
from pipeline.evaluation.metrics import kl_interval
from pipeline.types import Group, Prompt
from pipeline.types.rubrics import criteria_of

# Parts that are told at most: those with most rows.
TOLD_PARTS = 50
NO_PART = "–"
# The measures of each part, by its name.
ByPart = dict[str, JsonValue]
T = TypeVar("T")
_Logps = Sequence[tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class PartNames:
    """What rows are told apart by.

    Attributes:
        names: for each kind, such as ``by_source``, the part of each row by the row's id. A kind whose rows are all in
            one part is left out, and so are rows of all but the 50 largest parts.
    """

    names: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, prompts: Mapping[str, Prompt], categories: Mapping[str, str]) -> "PartNames":
        """Return parts by source, and by category if there are any.

        Args:
            prompts: of each row, by the row's id.
            categories: by the prompt's id.
        """
        found = {"by_source": {row: prompt.source or NO_PART for row, prompt in prompts.items()}}
        if categories:
            found["by_category"] = {row: categories.get(prompt.id, NO_PART) for row, prompt in prompts.items()}
        return cls({kind: _largest(of) for kind, of in found.items() if len({*of.values()}) > 1})

    def measured(
        self, rows: Iterable[tuple[str, T]], measure: Callable[[list[T]], Mapping[str, JsonValue]]
    ) -> dict[str, ByPart]:
        """Return ``measure`` of the rows of each part, for each kind.

        ``rows``: each with its id.
        """
        given = list(rows)
        found: dict[str, ByPart] = {}
        for kind, names in self.names.items():
            parts: dict[str, list[T]] = {}
            for name, row in given:
                if name in names:
                    parts.setdefault(names[name], []).append(row)
            found[kind] = _measured(parts, measure)
        return found


def _largest(names: Mapping[str, str]) -> dict[str, str]:
    counted = Counter(names.values())
    told = {*sorted(counted, key=lambda name: (-counted[name], name))[:TOLD_PARTS]}
    return {row: name for row, name in names.items() if name in told}


def parts_together(*found: Mapping[str, ByPart]) -> dict[str, ByPart]:
    """Return the measures of the same parts together."""
    whole: dict[str, ByPart] = {}
    for one in found:
        for kind, parts in one.items():
            of = whole.setdefault(kind, {})
            for name, measures in parts.items():
                before = of.get(name)
                assert isinstance(measures, dict), "the measures of a part"
                of[name] = {**(before if isinstance(before, dict) else {}), **measures}
    return whole


def reward_measures(
    groups: Sequence[Group], wins: Mapping[str, Mapping[str, float]], resamples: int, seed: int
) -> ByPart:
    """Return the number of prompts, and means over them of rewards and win rates that are known.

    Args:
        groups: a part of the round's responses, scored or not.
        wins: win rates by prompt id, over ``start`` and ``previous``; empty without labels.
        resamples, seed: of the interval of the reward.
    """
    found: ByPart = {"prompts": len(groups)}
    rewards = [known for group in groups if (known := [s for s in group.scores if s is not None])]
    if rewards:
        found |= _plain("reward", mean_interval([float(np.mean(scores)) for scores in rewards], resamples, seed))
    for name, rates in wins.items():
        won = [rates[group.prompt.id] for group in groups if group.prompt.id in rates]
        if won:
            found |= _plain(f"win_rate_vs_{name}", rate_interval(won))
    return found


def kl_by_part(
    parts: PartNames, sampled: Sequence[Group], own: _Logps, others: Mapping[str, _Logps], resamples: int, seed: int
) -> dict[str, ByPart]:
    """Return ``kl_to_NAME`` of each part, in nats per token.

    Args:
        parts: of the prompts.
        sampled: the policy's responses.
        own: for each of them, in order, the log-prob of every token under the policy.
        others: the same under other policies, by name.
        resamples, seed: of the intervals.
    """
    scored = zip(own, *others.values(), strict=True)
    rows = [(group.prompt.id, (group, [*islice(scored, len(group.responses))])) for group in sampled]

    def measure(part: list[tuple[Group, list[tuple[tuple[float, ...], ...]]]]) -> ByPart:
        groups, found = [group for group, _ in part], ByPart()
        logps = [*zip(*chain.from_iterable(of for _, of in part), strict=True)]
        for place, name in enumerate(others, 1):
            interval = kl_interval(groups, logps[0], logps[place], resamples, seed) if logps else None
            found |= {} if interval is None else _plain(f"kl_to_{name}", interval)
        return found

    return parts.measured(rows, measure)


def by_criterion(groups: Sequence[Group], resamples: int, seed: int) -> ByPart:
    """Return mean scores by the criteria of rubrics, where a judge scored them."""
    parts: dict[str, list[float]] = {}
    for group in groups:
        for place, (criterion, _) in enumerate(criteria_of(group.prompt) if group.criteria else ()):
            known = [score for of in group.criteria if (score := of[place]) is not None]
            if known:
                parts.setdefault(criterion, []).append(sum(known) / len(known))

    def measured(values: Sequence[float]) -> ByPart:
        return {"prompts": len(values), **_plain("score", mean_interval(values, resamples, seed))}

    return _measured(parts, measured)


def _measured(parts: Mapping[str, list[T]], measure: Callable[[list[T]], Mapping[str, JsonValue]]) -> ByPart:
    return {name: {**measure(part)} for name, part in largest_parts(parts).items()}


def largest_parts(parts: Mapping[str, list[T]]) -> dict[str, list[T]]:
    """Return the 50 parts with most rows, the largest first."""
    return dict(sorted(parts.items(), key=lambda one: (-len(one[1]), one[0]))[:TOLD_PARTS])


def _plain(name: str, interval: Interval) -> ByPart:
    return {name: interval.mean, f"{name}_ci": [interval.low, interval.high]}
