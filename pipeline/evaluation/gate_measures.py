"""The gate's measures on responses to held-out prompts, compared prompt by prompt with another round's. Torch-free.

Holds no rules: every function returns a number with its bootstrap interval over prompts, or None if there is
nothing to measure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.intervals import Interval, Rows, bootstrap_of
from pipeline.evaluation.metrics import grams, repeats
from pipeline.types import Group, Response

Floats = npt.NDArray[np.float64]
ByPrompt = Mapping[str, float]
HALVES = 50


class Measuring:
    """Measures with bootstrap intervals: ``resamples`` of the bootstrap, and its ``seed``."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples = resamples
        self.seed = seed

    def mean(self, values: ByPrompt) -> Interval | None:
        """Return the mean over prompts."""
        data = np.array([*values.values()])
        return self._of(lambda rows: float(data[rows].mean()), len(data))

    def difference(self, ours: ByPrompt, theirs: ByPrompt) -> Interval | None:
        """Return the mean of ours minus theirs, over the prompts that both have."""
        shared = [key for key in ours if key in theirs]
        return self.mean({key: ours[key] - theirs[key] for key in shared})

    def ratio(self, ours: ByPrompt, theirs: ByPrompt) -> Interval | None:
        """Return the mean of ours divided by the mean of theirs, on the prompts that both have."""
        mine, other = _aligned(ours, theirs)
        if not len(mine) or not other.sum():
            return None
        return self._of(lambda rows: _divided(mine[rows].sum(), other[rows].sum()), len(mine))

    def finished_length_ratio(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the mean tokens of responses that ended by themselves, ours divided by theirs."""
        parts = [
            _aligned(by_prompt(groups, of, total=True), by_prompt(others, of, total=True))
            for of in (lambda r: len(r.token_ids) * finished(r), finished)
        ]
        (tokens, their_tokens), (ended, their_ended) = parts
        if not ended.sum() or not their_ended.sum():
            return None

        def statistic(rows: Rows) -> float:
            own = _divided(tokens[rows].sum(), ended[rows].sum())
            return _divided(own, _divided(their_tokens[rows].sum(), their_ended[rows].sum()))

        return self._of(statistic, len(tokens))

    def gain(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return mean reward minus that of ``others`` on the same prompts, in standard deviations of their rewards.

        The unit makes labellers of any scale comparable. If their rewards are all equal, it is the standard deviation
        of both sides together.
        """
        mine, other = _aligned(_rewards(groups), _rewards(others))
        if not len(mine):
            return None
        spread = float(np.std(_all_scores(others))) or float(np.std([*_all_scores(others), *_all_scores(groups)]))
        change = (mine - other) / spread if spread else mine - other
        return self._of(lambda rows: float(change[rows].mean()), len(change))

    def length_slope(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the reward per token: the slope of change in reward over change in length, across prompts."""
        reward, length = _changes(groups, others)
        return self._of(lambda rows: _line(length[rows], reward[rows])[0], len(reward)) if _varies(length) else None

    def length_share(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the share of the reward gain that goes with length: slope x mean change in length / mean change.

        None unless reward has surely risen: a share of nothing has no meaning.
        """
        reward, length = _changes(groups, others)
        risen = self._of(lambda rows: float(reward[rows].mean()), len(reward))
        if risen is None or risen.low <= 0 or not _varies(length):
            return None

        def statistic(rows: Rows) -> float:
            slope, _ = _line(length[rows], reward[rows])
            return _divided(slope * float(length[rows].mean()), float(reward[rows].mean()))

        return self._of(statistic, len(reward))

    def length_controlled(self, wins: ByPrompt, longer: ByPrompt) -> Interval | None:
        """Return the win rate at equal length, σ(a) of P(win) = σ(a + b tanh(Δ / sd Δ)); Δ: difference in tokens.

        The regression of AlpacaEval 2 (arXiv:2404.04475) without its term for instruction difficulty. Half a win and
        half a loss at Δ = 0 are added: if all wins are longer, nothing is known about equal length, and the rate is
        1/2.
        """
        won, delta = _aligned(wins, longer)
        if not len(won):
            return None
        scale = float(delta.std()) or 1.0
        return self._of(lambda rows: _at_equal_length(won[rows], np.tanh(delta[rows] / scale)), len(won))

    def distinct_ratio(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return distinct word pairs, ours over theirs, in equally many words, with the interval of random halves.

        More words repeat more, so the longer side is cut. A bootstrap resample repeats prompts; half of the prompts,
        drawn without repeats, does not, and has the same spread (subsampling; Politis and Romano 1994).
        """
        theirs = {group.prompt.id: group for group in others}
        both = [(group, theirs[group.prompt.id]) for group in groups if group.prompt.id in theirs]
        rng = np.random.default_rng(self.seed)
        whole = _distinct_ratio(both)
        if whole is None:
            return None
        halves = [rng.choice(len(both), size=(len(both) + 1) // 2, replace=False) for _ in range(HALVES)]
        found = [_distinct_ratio([both[row] for row in half]) for half in halves]
        low, high = np.percentile([ratio for ratio in found if ratio is not None] or [whole], [2.5, 97.5])
        return Interval(whole, float(low), float(high))

    def _of(self, statistic: Callable[[Rows], float], size: int) -> Interval | None:
        found = bootstrap_of(statistic, size, self.resamples, self.seed) if size else None
        return None if found is None or np.isnan(found.mean) else found


def by_prompt(groups: Iterable[Group], of: Callable[[Response], float], total: bool = False) -> dict[str, float]:
    """Return the mean (or sum) of ``of`` over each prompt's responses."""
    return {
        group.prompt.id: sum(map(of, group.responses)) / (1 if total else len(group.responses))
        for group in groups
        if group.responses
    }


def _rewards(groups: Iterable[Group]) -> dict[str, float]:
    """Return each prompt's mean score; prompts without scores are left out."""
    known = {group.prompt.id: [score for score in group.scores if score is not None] for group in groups}
    return {key: sum(scores) / len(scores) for key, scores in known.items() if scores}


def tokens(response: Response) -> float:
    """Return a response's number of tokens, including the end token."""
    return float(len(response.token_ids))


def finished(response: Response) -> float:
    """Return 1 if the response ended by itself, else 0."""
    return float(response.finish_reason == "stop")


def repeating(response: Response) -> float:
    """Return 1 if the response repeats four words in a row, else 0."""
    return float(repeats(response.text.split()))


def longer(groups: Iterable[Group], others: Iterable[Group]) -> dict[str, float]:
    """Return how many tokens longer each prompt's responses are than those of ``others``, on average."""
    ours, theirs = by_prompt(groups, tokens), by_prompt(others, tokens)
    return {key: ours[key] - theirs[key] for key in ours if key in theirs}


def _aligned(ours: ByPrompt, theirs: ByPrompt) -> tuple[Floats, Floats]:
    shared = [key for key in ours if key in theirs]
    return np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared])


def _changes(groups: Sequence[Group], others: Sequence[Group]) -> tuple[Floats, Floats]:
    """Return each prompt's change in reward and in length."""
    ours, theirs, length = _rewards(groups), _rewards(others), longer(groups, others)
    return _aligned({key: ours[key] - theirs[key] for key in ours if key in theirs}, length)


def _all_scores(groups: Iterable[Group]) -> list[float]:
    return [score for group in groups for score in group.scores if score is not None]


def _divided(value: float, by: float) -> float:
    return float(value) / float(by) if by else float("nan")


def _varies(values: Floats) -> bool:
    return len(values) > 0 and bool(np.ptp(values) > 0)


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line."""
    centred = x - x.mean()
    slope = _divided(float(centred @ y), float(centred @ centred))
    return slope, float(y.mean()) - slope * float(x.mean())


def _at_equal_length(won: Floats, x: Floats) -> float:
    """Return σ(a) of the logistic regression of ``won`` on ``x``, by Newton's method; soft labels count as they are."""
    design = np.column_stack([np.ones(len(x) + 1), np.append(x, 0.0)])
    target = np.append(won, 0.5)
    weights = np.zeros(2)
    # A slight penalty on the slope keeps it finite when length alone separates wins from losses.
    penalty = np.diag([0.0, 1e-2])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (target - chance) - penalty @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + penalty + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, slope), -2.0, 2.0)
        weights = weights + step
        if np.abs(step).max() < 1e-6:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def _distinct_ratio(both: Sequence[tuple[Group, Group]]) -> float | None:
    sides = [[_words(group) for group in side] for side in zip(*both, strict=True)]
    size = min((sum(map(len, side)) for side in sides), default=0)
    counts = [len(set(islice(chain.from_iterable(_evenly(side, size)), size))) for side in sides]
    return counts[0] / counts[1] if len(counts) == 2 and counts[1] else None


def _words(group: Group) -> list[tuple[str, ...]]:
    return [gram for response in group.responses for gram in grams(response.text.split(), 2)]


def _evenly(side: Sequence[list[tuple[str, ...]]], size: int) -> Iterable[list[tuple[str, ...]]]:
    """Yield the same share of each prompt's word pairs, at least ``size`` in total."""
    total = sum(map(len, side))
    share = size / total if total else 0.0
    return (pairs[: int(np.ceil(len(pairs) * share))] for pairs in side)
