"""The margin m: what β d (R_w − R_l) must exceed."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.config import Formula
from pipeline.config.loss.components import ReferencePrior
from pipeline.config.loss.margins import (
    ConstantMargin,
    GapMargin,
    HomeMargin,
    LengthMargin,
    NoMargin,
    RewardMargin,
    SortedMargin,
    WinMargin,
)
from pipeline.losses.batch import PairBatch, Side, UnpairedBatch, constant, masked_mean, masked_sum
from pipeline.losses.links import make_link
from pipeline.losses.prior import reference_of
from pipeline.losses.terms import certainty, reward_gap, win_probabilities_of

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
        case SortedMargin():
            return loss.beta * (partner_of(batch, "reference", statistics) - reference_gap(batch, loss))
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


def sorted_margins(
    batch: PairBatch, loss: Formula, rewards: tuple[Tensor, Tensor], statistics: Statistics
) -> tuple[Tensor, Tensor]:
    """β (chosen response's log-ratio − its partner's), and β (partner's − rejected response's), [B] each.

    The partners are constants from ``statistics``: responses of the same rank anywhere in the global batch. Together,
    the two have the gradient of the difference by both responses.
    """
    partners = [loss.beta * partner_of(batch, name, statistics) for name in ("rejected", "chosen")]
    return rewards[0] - partners[0].to(rewards[0].dtype), partners[1].to(rewards[1].dtype) - rewards[1]


def sorted_terms(reward: Tensor, batch: UnpairedBatch, loss: Formula, statistics: Statistics) -> Tensor:
    """Σ_j B P_ij f(β (h_good − h_bad)) of each single response, [B]; P: the coupling of the two sorted samples.

    Its mean over the global batch is Σ_ij P_ij f, and has the gradient of that by all responses: each response's
    partners are constants, and the loss that is there twice counts half. Without responses of the other kind it is 0.
    """
    names = [int(key) for key in keys_of(batch).tolist()]
    found = [
        [(statistics[f"partner.{name}.{k}"], statistics[f"mass.{name}.{k}"]) for k in range(round(count))]
        for name, count in ((name, statistics[f"partners.{name}"]) for name in names)
    ]
    width = max(1, *map(len, found))
    table = torch.tensor([[*row, *[(0.0, 0.0)] * (width - len(row))] for row in found], dtype=torch.float64)
    partners, masses = (values.to(reward) for values in table.unbind(2))
    gap = reward.unsqueeze(1) - loss.beta * partners
    z = torch.where(batch.desirable.bool().unsqueeze(1), gap, -gap)
    link, p = make_link(loss.link), certainty(loss.label)
    total = (masses * (p * link(z) + (1 - p) * link(-z))).sum(1)
    return total - total.detach() / 2


def partner_of(batch: PairBatch, name: str, statistics: Statistics) -> Tensor:
    """The number that each pair is compared with, [B], float64."""
    found = [statistics[f"{name}.{int(key)}"] for key in keys_of(batch).tolist()]
    return torch.tensor(found, dtype=torch.float64, device=batch.chosen.policy.device)


def keys_of(batch: PairBatch | UnpairedBatch) -> Tensor:
    """A number for each pair or response that tells it from the others of its global batch, [B], float64."""
    first = batch.chosen if isinstance(batch, PairBatch) else batch.responses
    seeds = torch.arange(len(first.policy)) if batch.seeds is None else batch.seeds
    return seeds.double()


def reference_gap(batch: PairBatch, loss: Formula) -> Tensor:
    """log π_ref(chosen) − log π_ref(rejected), aggregated as the scores are, [B], constant."""
    total = masked_mean if loss.aggregate == "mean" else masked_sum
    chosen, rejected = (total(reference_of(side), side.mask) for side in (batch.chosen, _rejected(batch)))
    return chosen - rejected


def _rejected(batch: PairBatch) -> Side:
    if batch.rejected is None:
        raise ValueError("this loss needs rejected responses (PairBatch.rejected)")
    return batch.rejected
