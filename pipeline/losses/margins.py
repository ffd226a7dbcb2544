"""The margin m: what β d (R_w − R_l) must exceed."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from pipeline.config import Formula
from pipeline.config.loss.components import (
    ConstantMargin,
    GapMargin,
    HomeMargin,
    LengthMargin,
    NoMargin,
    ReferencePrior,
    RewardMargin,
    WinMargin,
)
from pipeline.losses.batch import PairBatch, Side, constant, masked_mean
from pipeline.losses.prior import reference_of
from pipeline.losses.terms import reward_gap, win_probabilities_of

Statistics: TypeAlias = Mapping[str, float]

# A smaller deviation is meaningless: all pairs are alike, as at step 0.
SMALLEST_DEVIATION = 1e-3


def margin_of(batch: PairBatch, loss: Formula, scale: Tensor | float, statistics: Statistics) -> Tensor | float:
    """m of each pair, [B] or one number, constant.

    Args:
        batch: has the fields that the margin reads.
        loss: its margin, prior and β are read.
        scale: β d of each pair.
        statistics: from ``statistics.summarise``, for ``gap``.
    """
    match loss.margin:
        case NoMargin():
            return 0.0
        case ConstantMargin():
            return loss.margin.gamma
        case LengthMargin():
            longer = batch.chosen.mask.sum(-1) - _rejected(batch).mask.sum(-1)
            return -loss.margin.alpha * longer.to(constant(batch.chosen.policy).dtype)
        case RewardMargin():
            return loss.margin.eta * reward_gap(batch)
        case WinMargin(against="other"):
            return win_probabilities_of(batch)[0] - 0.5
        case WinMargin():
            chosen, rejected = win_probabilities_of(batch)
            return chosen - rejected
        case HomeMargin():
            assert isinstance(loss.prior, ReferencePrior), "required by the composition's validator"
            return scale * (1 - loss.prior.weight) * loss.margin.home
        case GapMargin():
            spread = max(statistics["gap_std"], SMALLEST_DEVIATION)
            normalised = (log_ratio_gap(batch) - statistics["gap_mean"]) / spread
            return loss.beta * (loss.margin.gamma + loss.margin.alpha * normalised)


def log_ratio_gap(batch: PairBatch) -> Tensor:
    """Difference of the two sides' mean log-ratios to the reference, [B], constant, nats per token."""
    means = [
        masked_mean(constant(side.policy) - reference_of(side), side.mask) for side in (batch.chosen, _rejected(batch))
    ]
    return means[0] - means[1]


def _rejected(batch: PairBatch) -> Side:
    if batch.rejected is None:
        raise ValueError("this loss needs rejected responses (PairBatch.rejected)")
    return batch.rejected
