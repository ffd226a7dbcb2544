"""Arena-Hard's win rate (arXiv:2406.11939) from verdicts of five grades, also at equal style. Torch-free.

Each question is two games, with the answers in either order. A slight verdict is one battle, a strong one several, and
a tie half a win; the win rate is their mean, which for two models is what a Bradley-Terry fit gives. Intervals are over
questions: the published ones resample battles, which are not independent of each other.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.intervals import Floats, Interval, rate_interval
from pipeline.evaluation.suites.result import Measure, SuiteResult, told_apart

_RESAMPLES = 200
_RIDGE = 1e-6
_CODE = re.compile("```([^`]*)```")
_WORDS = re.compile(r"\w+|[^\w\s]")
_HEADERS = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LISTS = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def measure_battles(
    verdicts: Mapping[str, tuple[float, float]],
    styles: Mapping[str, tuple[str, str]],
    weight: int,
    seed: int,
    categories: Mapping[str, str] = MappingProxyType({}),
) -> SuiteResult:
    """Measure the verdicts.

    Args:
        verdicts: of each question: how much better the policy's answer is than the baseline's, in both orders: 1, 3/4,
            1/2, 1/4 or 0.
        styles: of each question the policy's and the baseline's answer.
        weight: battles that a strong verdict counts for.
        seed: of the intervals.
        categories: of each question, if they have any: the win rate is measured in each too.

    Raises ``UserError`` if no question has both verdicts.
    """
    if not verdicts:
        raise UserError("arena_hard: no question has verdicts in both orders")
    battles = {
        key: [*battles_of(first, weight), *battles_of(second, weight)] for key, (first, second) in verdicts.items()
    }
    metrics: dict[str, Measure] = {"win_rate": _win_rate([*battles.values()])}
    features = np.array([_style(*styles[key]) for key in battles])
    metrics["style_controlled_win_rate"] = _controlled([*battles.values()], features, seed)
    if categories:
        parts = [categories[key] for key in battles]
        metrics |= told_apart("win_rate", parts, [*battles.values()], _win_rate)
    strong = sum(value in (0.0, 1.0) for both in verdicts.values() for value in both)
    return SuiteResult("arena_hard", "win_rate", metrics, facts={"questions": len(verdicts), "strong_verdicts": strong})


def _win_rate(battles: Sequence[Sequence[float]]) -> Interval:
    """Battles won, with an interval over questions, each of which counts by its battles."""
    return rate_interval([sum(of) / len(of) for of in battles], weights=[float(len(of)) for of in battles])


def battles_of(verdict: float, weight: int) -> list[float]:
    """The battles that a verdict counts for: 1 or 0 for each, or one of 1/2 for a tie.

    >>> battles_of(1.0, 3), battles_of(0.75, 3), battles_of(0.5, 3), battles_of(0.0, 3)
    ([1.0, 1.0, 1.0], [1.0], [0.5], [0.0, 0.0, 0.0])
    """
    if verdict == 0.5:
        return [0.5]
    return [float(verdict > 0.5)] * (weight if verdict in (0.0, 1.0) else 1)


def _style(ours: str, theirs: str) -> list[float]:
    """Differences in length, headers, lists and bold, as the published ones.

    Lengths count words and marks; the published ones are tokens of gpt-4o, whose vocabulary is a download.
    """
    (mine, my_marks), (other, other_marks) = _counts(ours), _counts(theirs)
    densities = [(a / mine, b / other) for a, b in zip(my_marks, other_marks, strict=True)]
    return [(mine - other) / (mine + other), *((a - b) / (a + b + 1) for a, b in densities)]


def _counts(text: str) -> tuple[int, tuple[int, int, int]]:
    bare = _CODE.sub("", text)
    marks = (len(_HEADERS.findall(bare)), len(_LISTS.findall(bare)), len(_BOLD.findall(bare)))
    return max(len(_WORDS.findall(text)), 1), marks


def _controlled(battles: Sequence[Sequence[float]], features: Floats, seed: int) -> Interval:
    """σ(a) of a logistic regression of battles on the standardised features, with percentiles over questions."""
    rows = np.repeat(features, [len(found) for found in battles], axis=0)
    spread = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
    varied = spread > 0
    scaled = (features[:, varied] - rows[:, varied].mean(axis=0)) / spread[varied]
    counts = np.array([[sum(found), len(found)] for found in battles], dtype=np.float64)
    mean = _at_equal_style(scaled, counts)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(counts), len(counts)) for _ in range(_RESAMPLES))
    low, high = np.quantile([_at_equal_style(scaled[taken], counts[taken]) for taken in drawn], [0.025, 0.975])
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def _at_equal_style(features: Floats, counts: Floats) -> float:
    """Newton's method; a slight ridge keeps it finite where all battles are won."""
    design = np.column_stack([np.ones(len(features)), features])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        uphill = design.T @ (counts[:, 0] - counts[:, 1] * chance) - _RIDGE * weights
        curvature = (design * (counts[:, 1] * chance * (1 - chance))[:, None]).T @ design + _RIDGE * np.eye(
            len(weights)
        )
        step = np.clip(np.linalg.solve(curvature, uphill), -2.0, 2.0)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-np.clip(weights[0], -30, 30))))
