"""Metrics of rewards on held-out comparisons. Torch-free.

Accuracies leave out ties. Two equal rewards, or responses of equal length, are half right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import JsonValue

from pipeline.evaluation.intervals import rate_interval

# Bins of the reliability plot, of equal width over [½, 1].
BINS = 10
# Bin edges for the chosen response's length divided by the other's.
RATIOS = (0.0, 0.5, 0.8, 1.25, 2.0, math.inf)


@dataclass(frozen=True, slots=True)
class Judged:
    """A held-out comparison.

    Attributes:
        margin: reward of chosen minus that of rejected.
        label: probability that chosen is better; ½ is a tie.
        chosen_length, rejected_length: in characters.
        prompt: its id; comparisons of one prompt resemble each other. Empty: a prompt of its own.
    """

    margin: float
    label: float
    chosen_length: int
    rejected_length: int
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Bin:
    """Comparisons whose confidence, the probability of the predicted winner, falls in one bin.

    ``confidence`` and ``accuracy`` are means over ``count`` comparisons.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def probability(margin: float, eta: float = 0.0) -> float:
    """P(chosen wins | no tie) under Bradley-Terry, or under Rao-Kupper if ``eta`` is above 0.

    >>> probability(0.0, 0.5), round(probability(1.0), 4)
    (0.5, 0.7311)
    """
    return math.exp(-_softplus(_softplus(eta - margin) - _softplus(eta + margin)))


def tie_eta(share: float) -> float:
    """η at which responses of equal reward tie with probability ``share``: (θ − 1)/(θ + 1) = ``share``, η = log θ.

    >>> round(tie_eta(0.5), 4)  # θ = 3
    1.0986
    """
    return math.log((1 + share) / (1 - share))


def reliability(judged: Sequence[Judged], eta: float = 0.0) -> list[Bin]:
    """Return the non-empty bins of all comparisons but ties; soft labels count as fractions."""
    found: list[Bin] = []
    scored = [_confidence(one, eta) for one in judged if one.label != 0.5]
    for index in range(BINS):
        low, high = (0.5 + 0.5 * (index + step) / BINS for step in (0, 1))
        inside = [(sure, right) for sure, right in scored if low <= sure < high or (index == BINS - 1 and sure == 1)]
        if inside:
            sure, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            found.append(Bin(low, high, len(inside), sure, right))
    return found


def reward_summary(judged: Sequence[Judged], eta: float | None = None) -> dict[str, JsonValue]:
    """Accuracy next to 'the longer answer wins', calibration, accuracy by length; with ``eta``, also tie prediction.

    ``accuracy_error`` is the standard error of independent comparisons; ``accuracy_ci`` the 95 % interval.

    ``ece`` is the expected calibration error over the bins of ``reliability`` (Guo et al. 2017, arXiv:1706.04599,
    equation 3). ``loss`` is the mean negative log-likelihood, including ties if they are modelled.
    """
    decided = [one for one in judged if one.label != 0.5]
    bins = reliability(judged, eta or 0.0)
    accuracy = _mean([_right(one.margin, one.label) for one in decided])
    longer = _mean([_right(one.chosen_length - one.rejected_length, one.label) for one in decided])
    found: dict[str, JsonValue] = {
        "pairs": len(decided),
        "ties": len(judged) - len(decided),
        "accuracy": accuracy,
        "accuracy_error": None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / len(decided)),
        "accuracy_ci": _accuracy_interval(decided),
        "longer_wins": longer,
        "above_longer_wins": None if accuracy is None or longer is None else accuracy - longer,
        "loss": _mean([_loss(one, eta) for one in (decided if eta is None else judged)]),
        "ece": _mean_by_count([(one.count, abs(one.accuracy - one.confidence)) for one in bins]),
        "by_length": _by_length(decided),
    }
    return found if eta is None else found | _of_ties(judged, eta)


def percent(value: JsonValue) -> str:
    """Format a share for readers; a dash for None.

    >>> percent(0.6721), percent(None)
    ('67.2 %', '—')
    """
    return f"{100 * value:.1f} %" if isinstance(value, float | int) else "—"


def _of_ties(judged: Sequence[Judged], eta: float) -> dict[str, JsonValue]:
    tied = [_tie_probability(one.margin, eta) for one in judged]
    share = sum(one.label == 0.5 for one in judged) / len(judged) if judged else 0.0
    return {"eta": eta, "tie_share": share, "tie_probability": _mean(tied)}


def _accuracy_interval(decided: Sequence[Judged]) -> JsonValue:
    """The ends of the accuracy's 95 % interval: Wilson's, over prompts if some have several comparisons."""
    if not decided:
        return None
    by_prompt: dict[str, list[float]] = {}
    for number, one in enumerate(decided):
        by_prompt.setdefault(one.prompt or f"{number}", []).append(_right(one.margin, one.label))
    counts = [len(values) for values in by_prompt.values()]
    found = rate_interval([_mean(values) or 0.0 for values in by_prompt.values()], weights=counts)
    return [found.low, found.high]


def _by_length(decided: Sequence[Judged]) -> JsonValue:
    """Accuracy by the length of the better answer over the other's."""
    rows: list[JsonValue] = []
    for low, high in pairwise(RATIOS):
        inside = [one for one in decided if low <= _ratio(one) < high]
        name = f"under {high:g}" if low == 0 else f"{low:g} and over" if high == math.inf else f"{low:g} to {high:g}"
        accuracy = _mean([_right(one.margin, one.label) for one in inside])
        rows.append({"better_over_other": name, "pairs": len(inside), "accuracy": accuracy})
    return rows


def _ratio(one: Judged) -> float:
    lengths = (one.chosen_length, one.rejected_length)
    better, other = lengths if one.label > 0.5 else lengths[::-1]
    return better / max(other, 1)


def _right(difference: float, label: float) -> float:
    """1 if ``difference`` prefers the response that most people prefer, ½ if it is 0, else 0."""
    return 0.5 if difference == 0 else float((difference > 0) == (label > 0.5))


def _confidence(one: Judged, eta: float) -> tuple[float, float]:
    p = probability(one.margin, eta)
    return (p, one.label) if p >= 0.5 else (1 - p, 1 - one.label)


def _loss(one: Judged, eta: float | None) -> float:
    if eta is None:
        return one.label * _softplus(-one.margin) + (1 - one.label) * _softplus(one.margin)
    if one.label == 0.5:
        return -math.log(_tie_probability(one.margin, eta))
    return one.label * _softplus(eta - one.margin) + (1 - one.label) * _softplus(eta + one.margin)


def _tie_probability(margin: float, eta: float) -> float:
    logarithm = math.log(math.expm1(2 * eta)) - _softplus(eta - margin) - _softplus(eta + margin)
    return math.exp(max(logarithm, -700))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_by_count(rows: Sequence[tuple[int, float]]) -> float | None:
    total = sum(count for count, _ in rows)
    return sum(count * value for count, value in rows) / total if total else None
