"""What is measured on responses to held-out prompts: reward, win rate, length, variety, slot errors.

Torch-free; KL needs models and is in ``reference``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.tasks.slots import SlotErrors, parse_mr, slot_error_rate, slot_errors
from pipeline.types import Group, RunError

REPEATED_WORDS = 4
Rows = npt.NDArray[np.intp]
Statistic = Callable[[Rows], float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """Mean of ``values`` (one a prompt) and the 2.5 and 97.5 percentiles of its bootstrap distribution (Efron 1979).

    Raises ``RunError`` for no values.
    """
    data = np.asarray(values, dtype=np.float64)
    return bootstrap_of(lambda rows: float(data[rows].mean()), len(data), resamples, seed)


def bootstrap_of(statistic: Statistic, size: int, resamples: int, seed: int) -> Interval:
    """``statistic`` of all rows, and its 2.5 and 97.5 percentiles over resamples of them.

    Args:
        statistic: a number, or NaN, from the numbers of rows that are drawn; rows may be drawn twice.
        size: how many rows there are, one a prompt.

    Raises ``RunError`` for no rows.
    """
    if not size:
        raise RunError("nothing to average: no prompt has scores")
    rng = np.random.default_rng(seed)
    # A resample at a time keeps memory at the size of the data.
    drawn = np.array([statistic(rng.integers(size, size=size)) for _ in range(resamples)])
    known = drawn[~np.isnan(drawn)]
    whole = statistic(np.arange(size))
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (whole, whole)
    return Interval(whole, float(low), float(high))


def win_rate(groups: Iterable[Group], others: Iterable[Group], resamples: int, seed: int) -> Interval:
    """Share of comparisons with responses of ``others`` to the same prompt that ``groups`` win, ties half.

    Raises:
        RunError: no prompt is left to compare.
    """
    return bootstrap([*wins_by_score(groups, others).values()], resamples, seed)


def wins_by_score(groups: Iterable[Group], others: Iterable[Group]) -> dict[str, float]:
    """Of each prompt, by id, the share of comparisons with ``others`` that ``groups`` win, ties half.

    Every scored response of one side meets every one of the other; a prompt that only one side has, or that lacks
    scores on one side, does not count.
    """
    theirs = {group.prompt.id: _scores(group) for group in others}
    rates = {}
    for group in groups:
        ours, against = _scores(group), theirs.get(group.prompt.id, [])
        points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in against]
        if points:
            rates[group.prompt.id] = sum(points) / len(points)
    return rates


def describe(groups: Iterable[Group]) -> dict[str, float]:
    """Means over all responses of scored or unscored ``groups``.

    ``reward`` (over scored responses; absent where there are none), ``response_length`` (tokens, the
    end token included), ``stop_rate`` (share that ended by themselves), ``distinct_1`` and
    ``distinct_2`` (different word n-grams over all word n-grams, Li et al. 2016, arXiv:1510.03055),
    ``repetition_rate`` (share that say the same four words in a row more than once).
    """
    counted = list(groups)
    responses = [response for group in counted for response in group.responses]
    if not responses:
        raise RunError("nothing to describe: no responses")
    words = [response.text.split() for response in responses]
    metrics = {
        "response_length": sum(len(r.token_ids) for r in responses) / len(responses),
        "stop_rate": sum(r.finish_reason == "stop" for r in responses) / len(responses),
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "repetition_rate": sum(repeats(said) for said in words) / len(responses),
    }
    scores = [score for group in counted for score in _scores(group)]
    if scores:
        metrics["reward"] = sum(scores) / len(scores)
    return metrics


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of ``texts`` (lists of words); 0 where there are none."""
    counts = Counter(gram for words in texts for gram in grams(words, n))
    return len(counts) / counts.total() if counts else 0.0


def slot_errors_of(groups: Iterable[Group]) -> list[SlotErrors]:
    """Slot errors of every response against its prompt's answer, which must be a meaning representation."""
    return [slot_errors(parse_mr(group.prompt.answer or ""), r.text) for group in groups for r in group.responses]


def slot_metrics(greedy: Iterable[Group], sampled: Iterable[Group]) -> dict[str, float]:
    """``slot_error_rate`` (greedy), ``slot_error_rate_sampled``, and both split by kind of error, per slot.

    Raises ``ValueError`` for an answer that is no meaning representation.
    """
    metrics: dict[str, float] = {}
    for suffix, groups in (("", greedy), ("_sampled", sampled)):
        errors = slot_errors_of(groups)
        slots = max(1, sum(e.slots for e in errors))
        metrics[f"slot_error_rate{suffix}"] = slot_error_rate(errors)
        metrics[f"slots_missing{suffix}"] = sum(e.missing for e in errors) / slots
        metrics[f"slots_invented{suffix}"] = sum(e.invented for e in errors) / slots
        metrics[f"slots_contradictory{suffix}"] = sum(e.contradictory for e in errors) / slots
    return metrics


def _scores(group: Group) -> list[float]:
    return [score for score in group.scores if score is not None]


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def repeats(words: Sequence[str]) -> bool:
    """Whether the same four words in a row are said more than once, case and punctuation aside."""
    runs = grams([word.lower().strip(".,;!?") for word in words], REPEATED_WORDS)
    return len(set(runs)) < len(runs)
