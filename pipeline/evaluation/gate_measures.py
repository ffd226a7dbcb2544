"""The gate's measures on responses to held-out prompts, compared prompt by prompt with another round's. Torch-free.

Holds no rules: every function returns a number with its interval over prompts, or None if there is nothing to measure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from pipeline.evaluation.equal_length import equal_length_wins
from pipeline.evaluation.intervals import Complexes, Floats, Interval, Smooth, rate_interval, smooth_interval
from pipeline.evaluation.metrics import grams, repeats
from pipeline.types import Group, Response

ByPrompt = Mapping[str, float]
HALVES = 50


class Measuring:
    """Measures with intervals: ``resamples`` of the bootstrap, and its ``seed``."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples = resamples
        self.seed = seed

    def rate(self, values: ByPrompt) -> Interval | None:
        """Return the mean over prompts of ``values`` between 0 and 1."""
        return rate_interval([*values.values()]) if values else None

    def difference(self, ours: ByPrompt, theirs: ByPrompt) -> Interval | None:
        """Return the mean of ours minus theirs, both between 0 and 1, over the prompts that both have."""
        mine, other = _aligned(ours, theirs)
        return rate_interval(mine - other, -1.0, 1.0) if len(mine) else None

    def ratio(self, ours: ByPrompt, theirs: ByPrompt) -> Interval | None:
        """Return the mean of ours divided by the mean of theirs, all above 0, on the prompts that both have."""
        return self._factor(_aligned(ours, theirs), lambda means: means[..., 0] / means[..., 1])

    def finished_length_ratio(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the mean tokens of responses that ended by themselves, ours divided by theirs."""
        parts = [
            _aligned(by_prompt(groups, of, total=True), by_prompt(others, of, total=True))
            for of in (lambda r: len(r.shown_ids) * finished(r), finished)
        ]
        (tokens, their_tokens), (ended, their_ended) = parts
        return self._factor(
            (tokens, ended, their_tokens, their_ended),
            lambda means: means[..., 0] / means[..., 1] / (means[..., 2] / means[..., 3]),
        )

    def reward_change(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return mean reward minus that of ``others`` on the same prompts, in the reward's own units."""
        mine, other = _aligned(_rewards(groups), _rewards(others))
        return self._of(lambda means: means[..., 0], mine - other)

    def gain(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return ``reward_change`` in standard deviations of the rewards of ``others``.

        The unit makes labellers of any scale comparable. If their rewards are all equal, it is the standard deviation
        of both sides together.
        """
        mine, other = _aligned(_rewards(groups), _rewards(others))
        if not len(mine):
            return None
        spread = float(np.std(_all_scores(others))) or float(np.std([*_all_scores(others), *_all_scores(groups)]))
        return self._of(lambda means: means[..., 0], (mine - other) / (spread or 1.0))

    def length_slope(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the reward per token: the slope of change in reward over change in length, across prompts."""
        reward, length = _changes(groups, others)
        return self._of(_slope, length, reward, length * reward, length**2) if _varies(length) else None

    def length_share(self, groups: Sequence[Group], others: Sequence[Group]) -> Interval | None:
        """Return the share of the reward gain that goes with length: slope x mean change in length / mean change.

        None unless reward has surely risen: a share of nothing has no meaning.
        """
        reward, length = _changes(groups, others)
        risen = self._of(lambda means: means[..., 0], reward)
        if risen is None or risen.low <= 0 or not _varies(length):
            return None
        return self._of(
            lambda means: _slope(means) * means[..., 0] / means[..., 1], length, reward, length * reward, length**2
        )

    def length_controlled(self, wins: ByPrompt, longer: ByPrompt) -> Interval | None:
        """Return the win rate at equal length, from wins and differences in tokens by prompt."""
        won, delta = _aligned(wins, longer)
        return equal_length_wins(won, delta) if len(won) else None

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

    def _of(self, statistic: Smooth, *columns: Floats) -> Interval | None:
        """The statistic of the columns' means; None without prompts or where it is not a number."""
        if not len(columns[0]):
            return None
        found = smooth_interval(np.column_stack(columns), statistic, self.resamples, self.seed)
        return None if np.isnan(found.mean) else found

    def _factor(self, columns: Sequence[Floats], statistic: Smooth) -> Interval | None:
        """A statistic above 0, whose interval is that of its logarithm; None where a column is 0 throughout."""
        if not all(column.any() for column in columns):
            return None
        found = self._of(lambda means: np.log(statistic(means)), *columns)
        return None if found is None else Interval(*(float(np.exp(end)) for end in (found.mean, found.low, found.high)))


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
    """Return the number of tokens, including the end token, of what labellers see of a response."""
    return float(len(response.shown_ids))


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


def _varies(values: Floats) -> bool:
    return len(values) > 0 and bool(np.ptp(values) > 0)


def _slope(means: Complexes) -> Complexes:
    """The slope of the least-squares line, from means of x, y, xy and x²."""
    x, y, product, square = (means[..., column] for column in range(4))
    slope: Complexes = (product - x * y) / (square - x * x)
    return slope


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
