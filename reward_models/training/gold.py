"""Choose comparisons for the gold labeller, hold some out, and measure a model on them.

A comparison is a group of two responses; once scored, it is gold.
"""

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pipeline.config.labellers.reward_model import AccuracyGate
from pipeline.types import Group, Response, derive_seed
from pipeline.types.counts import number_of

Selection = Literal["random", "uncertain", "disagreement"]


def comparison_of(group: Group, seed: int, round_: int) -> Group | None:
    """Draw two responses of ``group`` that differ in text and tokens, without scores; None if there are no such two.

    The draw depends only on ``seed``, ``round_`` and the prompt.
    """
    distinct: list[Response] = []
    for response in group.responses:
        alike = any(response.text == other.text or response.token_ids == other.token_ids for other in distinct)
        if response.text.strip() and not alike:
            distinct.append(response)
    if len(distinct) < 2:
        return None
    lots = random.Random(derive_seed("gold", seed, round_, group.prompt.id))  # noqa: S311 - sampling, not secrets
    return replace(group, responses=tuple(lots.sample(distinct, 2)), scores=())


def choose_comparisons(
    comparisons: Sequence[Group],
    budget: int,
    rule: Selection,
    margins: Sequence[Sequence[float]],
    seed: int,
    round_: int,
) -> list[Group]:
    """Choose at most ``budget`` of ``comparisons``; keep their order.

    ``uncertain`` takes those with the smallest absolute mean margin, ``disagreement`` those with the largest standard
    deviation. ``margins`` holds, for each comparison, the score difference under each member of the discriminator.
    Ties are broken at random.
    """
    lots = random.Random(derive_seed("gold budget", seed, round_))  # noqa: S311 - sampling, not secrets
    order = lots.sample(range(len(comparisons)), len(comparisons))
    match rule:
        case "uncertain":
            order.sort(key=lambda index: abs(statistics.fmean(margins[index])))
        case "disagreement":
            order.sort(key=lambda index: -statistics.pstdev(margins[index]))
        case "random":
            pass
    return [comparisons[index] for index in sorted(order[:budget])]


def held_out(gold: Group, share: float, seed: int) -> bool:
    """True if a comparison is kept out of every refit. Set by prompt: no round trains on another's held-out data."""
    return derive_seed("held-out gold", seed, gold.prompt.id) < share * 2**31


def gold_accuracy(gold: Iterable[Group], margins: Iterable[float]) -> tuple[float | None, int]:
    """Return the share of comparisons that ``margins`` rank as gold does, and the number compared.

    A margin is the first response's score minus the second's; a margin of 0 is half right. Gold ties and missing gold
    labels are left out; the share is None if nothing is left.
    """
    right = []
    for group, margin in zip(gold, margins, strict=True):
        first, second = group.scores
        if first is not None and second is not None and first != second:
            right.append(0.5 if margin == 0 else float((margin > 0) == (first > second)))
    return (sum(right) / len(right) if right else None), len(right)


def passes(accuracy: float | None, compared: int, gate: AccuracyGate, round_: int) -> str | None:
    """Return the reason that the version of ``round_`` may not label; None if it may.

    Tests the hypothesis that it ranks like a coin, for which the order of the two responses was drawn at random.
    The shares of ``gate.error`` that the rounds may spend add up to all of it, so it bounds a whole run, however long.
    """
    if compared < gate.comparisons or accuracy is None:
        return f"{number_of(compared, 'held-out comparison')} cannot tell; at least {gate.comparisons}"
    ranked = f"ranks {accuracy:.1%} of {number_of(compared, 'held-out comparison')} rightly"
    if accuracy < gate.accuracy:
        return f"{ranked}; at least {gate.accuracy:.0%}"
    chance, allowed = by_chance(accuracy * compared, compared), gate.error / (round_ * (round_ + 1))
    if gate.error < 1 and chance > allowed:
        return f"{ranked}, as chance does in {chance:.1%} of cases; in round {round_} at most {allowed:.2%}"
    return None


def by_chance(right: float, compared: int) -> float:
    """Return the probability that a coin ranks at least ``right`` of ``compared`` comparisons rightly.

    >>> round(by_chance(10, 16), 3)
    0.227
    """
    # Halves, for margins of 0, are rounded down, which errs on the side of chance.
    least = math.floor(right + 1e-9)
    return float(sum(math.comb(compared, count) for count in range(least, compared + 1)) / 2**compared)
