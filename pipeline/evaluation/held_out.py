"""What a round learned of preferences: its ranking of held-out pairs, against the start's and simple baselines.

Torch-free. Intervals are over prompts, and differences are paired: both sides rank the same pairs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Formula
from pipeline.config.loss.needs import needs_of
from pipeline.evaluation.intervals import Interval, mean_interval, rate_interval
from pipeline.evaluation.metrics import pair_accuracy

BASELINE_NAMES = {
    "longer": "the longer response wins",
    "shorter": "the shorter response wins",
    "start_logp": "the response that the start finds likelier wins",
}


# The loss's scores of a pair's chosen and rejected response.
PairScores = tuple[float, float]


def pair_scores(logps: tuple[float, float], tokens: tuple[int, int], loss: Formula) -> PairScores:
    """Return the scores Σ log π / length^p of chosen and rejected, p as in the loss, before token weights and shape.

    ``logps``: of the whole responses, nats; ``tokens``: their lengths. Likelihood alone is compared per token, since
    longer responses are less likely.
    """
    of_first = loss.inputs
    power = {"sum": 0.0, "mean": 1.0, "power": of_first.length_power}[of_first.aggregate]
    if needs_of(loss).only_chosen:
        power = 1.0
    return logps[0] / tokens[0] ** power, logps[1] / tokens[1] ** power


def pair_margins(scores: Sequence[PairScores], start: Sequence[PairScores], loss: Formula) -> tuple[float, ...]:
    """Return for each pair β times the difference of the loss's scores, before its margin.

    If the loss uses a reference, this is the implicit reward log π − log π_start (DPO, arXiv:2305.18290, eq. 5), so
    that rounds, and steps of a round, can be compared; ``start``: the scores of the same pairs there. Without a
    reference it is log π alone.
    """
    base = start if needs_of(loss).references > 0 else [(0.0, 0.0)] * len(scores)
    return tuple(
        loss.inputs.beta * ((own[0] - old[0]) - (own[1] - old[1])) for own, old in zip(scores, base, strict=True)
    )


def margin_loss(margin: float) -> float:
    """Return −log σ(margin), nats: ln 2 at 0."""
    return max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


@dataclass(frozen=True, slots=True)
class RankedPair:
    """One held-out pair.

    Attributes:
        prompt: what tells its prompt from others.
        margin, start_margin: see ``pair_margins``; under the round's policy and the start's.
        chosen_tokens, rejected_tokens: their lengths; 0 for images.
        start_logp_gap: log-prob of the chosen response minus that of the rejected one under the start, nats.
    """

    prompt: object
    margin: float
    start_margin: float
    chosen_tokens: int
    rejected_tokens: int
    start_logp_gap: float


def pair_measures(
    pairs: Sequence[RankedPair], resamples: int, seed: int, baselines: Sequence[str] = tuple(BASELINE_NAMES)
) -> dict[str, Interval]:
    """Return the measures of one round, each with its interval over prompts.

    ``accuracy`` is the share of pairs ranked as labelled (ties half), ``margin`` the mean margin, ``log_loss`` the mean
    of −log σ(margin); NAME``_vs_start`` is the change from the start. ``accuracy_of_BASELINE`` ranks by length or by
    the start's log-prob, and ``accuracy_vs_best_baseline`` is the lead over the best of these.

    ``baselines``: those that mean something for these pairs.
    """
    ranked = {"": [pair.margin for pair in pairs], "_start": [pair.start_margin for pair in pairs]}
    right = {name: pair_accuracy(margins) for name, margins in ranked.items()}
    gaps: dict[str, Callable[[RankedPair], float]] = {
        "longer": lambda pair: pair.chosen_tokens - pair.rejected_tokens,
        "shorter": lambda pair: pair.rejected_tokens - pair.chosen_tokens,
        "start_logp": lambda pair: pair.start_logp_gap,
    }
    simple = {name: pair_accuracy(map(gaps[name], pairs)) for name in baselines}
    losses = {name: [margin_loss(margin) for margin in margins] for name, margins in ranked.items()}
    prompts = [pair.prompt for pair in pairs]

    def rate(values: Sequence[float], least: float = 0.0) -> Interval:
        return rate_interval(_by_prompt(prompts, values), least)

    def mean(values: Sequence[float]) -> Interval:
        return mean_interval(_by_prompt(prompts, values), resamples, seed)

    ranked_by = {name: rate(values) for name, values in simple.items()}
    # By the numbers that are shown, so that the lead is over the baseline that ``baseline_line`` names.
    best = best_baseline({name: interval.mean for name, interval in ranked_by.items()})
    return {
        "accuracy": rate(right[""]),
        "accuracy_vs_start": rate(_less(right[""], right["_start"]), -1.0),
        "margin": mean(ranked[""]),
        "margin_vs_start": mean(_less(ranked[""], ranked["_start"])),
        "log_loss": mean(losses[""]),
        "log_loss_vs_start": mean(_less(losses[""], losses["_start"])),
        **{f"accuracy_of_{name}": interval for name, interval in ranked_by.items()},
        "accuracy_vs_best_baseline": rate(_less(right[""], simple[best]), -1.0),
    }


def best_baseline(accuracies: Mapping[str, float]) -> str:
    """Return the name of the baseline with the highest accuracy, the first of equal ones."""
    return max((name for name in BASELINE_NAMES if name in accuracies), key=lambda name: accuracies[name])


def _less(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine - other for mine, other in zip(ours, theirs, strict=True)]


def _by_prompt(prompts: Sequence[object], values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the mean over each prompt's pairs."""
    found: dict[object, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        found.setdefault(prompt, []).append(value)
    return np.array([sum(of_prompt) / len(of_prompt) for of_prompt in found.values()])


def baseline_line(metrics: Mapping[str, Any]) -> str | None:
    """Whether held-out pairs are ranked better than by the best baseline, in words; None without such pairs."""
    lead, bounds = (
        metrics.get("held_out_accuracy_vs_best_baseline"),
        metrics.get("held_out_accuracy_vs_best_baseline_ci"),
    )
    if lead is None or bounds is None or metrics.get("round") == 0:
        return None
    named = {name: metrics.get(f"held_out_accuracy_of_{name}") for name in BASELINE_NAMES}
    best = best_baseline({name: accuracy for name, accuracy in named.items() if accuracy is not None})
    how = "surely above" if bounds[0] > 0 else "surely below" if bounds[1] < 0 else "not surely above"
    accuracy, theirs = metrics["held_out_accuracy"], metrics[f"held_out_accuracy_of_{best}"]
    return (
        f"{accuracy:.1%} of {metrics['held_out_pairs']} held-out pairs ranked as labelled, {how} the best baseline: "
        f"{BASELINE_NAMES[best]}, {theirs:.1%} ({lead:+.1%} [{bounds[0]:+.1%}, {bounds[1]:+.1%}])"
    )
