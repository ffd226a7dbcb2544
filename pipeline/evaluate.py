"""What is measured on responses to held-out prompts: reward, win rate, length, variety, slot errors.

Torch-free; KL needs models and is in ``reference``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.slots import SlotErrors, parse_mr, slot_error_rate, slot_errors
from pipeline.types import Group, RunError

REPEATED_WORDS = 4


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
    if not values:
        raise RunError("nothing to average: no prompt has scores")
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # A resample at a time keeps memory at the size of the data.
    means = np.array([data[rng.integers(len(data), size=len(data))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


def win_rate(groups: Iterable[Group], others: Iterable[Group], resamples: int, seed: int) -> Interval:
    """Share of comparisons with responses of ``others`` to the same prompt that ``groups`` win, ties half.

    Every scored response of one side meets every one of the other; prompts count alike, and a prompt
    that only one side has, or that lacks scores on one side, does not count.

    Raises:
        RunError: no prompt is left to compare.
    """
    theirs = {group.prompt.id: _scores(group) for group in others}
    rates = []
    for group in groups:
        ours, against = _scores(group), theirs.get(group.prompt.id, [])
        points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in against]
        if points:
            rates.append(sum(points) / len(points))
    return bootstrap(rates, resamples, seed)


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
        "repetition_rate": sum(_repeats(said) for said in words) / len(responses),
    }
    scores = [score for group in counted for score in _scores(group)]
    if scores:
        metrics["reward"] = sum(scores) / len(scores)
    return metrics


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of ``texts`` (lists of words); 0 where there are none."""
    counts = Counter(gram for words in texts for gram in _grams(words, n))
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


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _repeats(words: Sequence[str]) -> bool:
    grams = _grams([word.lower().strip(".,;!?") for word in words], REPEATED_WORDS)
    return len(set(grams)) < len(grams)
