"""The loss: one formula, whose components are chosen by a ``Composition``.

::

    score     s_j = Agg_t[ log π(y_t) − log ζ(y_t) ]            ζ: the prior      (arXiv:2501.01544)
    margin    z_i = β (s_w − s_l) − m
    link      L_i = p_i f(z_i) + (1 − p_i) f(−z_i)              f: the link       (arXiv:2402.05749)
    total     L_i + λ NLL_i

Knows no trainer and no model. Nothing is reduced over the batch: whoever sums decides what to
divide by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses.batch import PairBatch, Side
from pipeline.losses.composition import Composition
from pipeline.losses.links import LINKS
from pipeline.losses.masked import at_least_float32, masked_mean, masked_sum
from pipeline.losses.regularisers import nll
from pipeline.losses.scores import score
from pipeline.losses.terms import preference_term


@dataclass(frozen=True, slots=True)
class LossOutput:
    """``per_pair`` [B] carries the gradient; ``metrics`` are detached means over the batch, 0-d."""

    per_pair: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name. Call it with a ``PairBatch``."""

    name: str
    composition: Composition

    @property
    def needs(self) -> frozenset[str]:
        """Which optional parts of the batch it reads: ``rejected``, ``reference``."""
        if self.composition.link == "none":
            return frozenset()
        return frozenset({"rejected"} | ({"reference"} if self.composition.prior == "reference" else set()))

    def __call__(self, batch: PairBatch) -> LossOutput:
        """The loss of each pair, in float32, or float64 where the batch is.

        Raises:
            ValueError: a response without tokens, or a part that the loss needs is missing.
        """
        _refuse_empty(batch)
        metrics = _likelihoods(batch)
        per_pair = torch.zeros_like(at_least_float32(batch.chosen.policy[:, 0]))
        if self.composition.link != "none":
            z, rewards = self._margin(batch)
            per_pair = preference_term(z, LINKS[self.composition.link], batch.soft_label)
            metrics |= rewards
        if self.composition.nll > 0:
            likelihood = nll(batch.chosen)
            per_pair = per_pair + self.composition.nll * likelihood
            metrics["nll"] = likelihood.detach().mean()
        return LossOutput(per_pair, metrics)

    def _margin(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """z = β (s_w − s_l) − m, and what is worth watching of it."""
        if batch.rejected is None:
            raise ValueError(f"{self.name}: this loss needs rejected responses (PairBatch.rejected)")
        parts = self.composition
        s_w, s_l = (score(side, parts.prior, parts.aggregate) for side in (batch.chosen, batch.rejected))
        reward_w, reward_l = parts.beta * s_w, parts.beta * s_l
        gap = reward_w - reward_l
        return gap - parts.margin, {
            "reward_chosen": reward_w.detach().mean(),
            "reward_rejected": reward_l.detach().mean(),
            "margin": gap.detach().mean(),
            "accuracy": (gap.detach() > 0).to(gap.dtype).mean(),
        }


def _likelihoods(batch: PairBatch) -> dict[str, Tensor]:
    sides: dict[str, Side | None] = {"chosen": batch.chosen, "rejected": batch.rejected}
    return {
        f"{name}_logp_per_token": masked_mean(at_least_float32(side.policy.detach()), side.mask).mean()
        for name, side in sides.items()
        if side is not None
    }


def _refuse_empty(batch: PairBatch) -> None:
    for name, side in (("chosen", batch.chosen), ("rejected", batch.rejected)):
        if side is None:
            continue
        empty = (masked_sum(torch.ones_like(side.policy), side.mask) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{name}: no response tokens in row {', '.join(map(str, empty[:5]))} of the batch")
