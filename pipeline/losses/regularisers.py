"""Terms of a loss besides the preference terms."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.config import Formula
from pipeline.config.loss.components import LearnedPrior, LearnedWeights
from pipeline.config.loss.terms import Advantage, Calibration
from pipeline.losses.batch import PairBatch, Side, at_least_float32, constant, masked_mean, masked_sum
from pipeline.losses.prior import reference_of
from pipeline.losses.weights import kl_weights


def nll(side: Side, aggregate: str = "mean") -> Tensor:
    """Negative log-likelihood of each response, [B]: nats per token, or nats (``sum``).

    The anchor of DPO+SFT (arXiv:2404.19733, equation 1) and, alone, supervised training.
    """
    values = at_least_float32(side.policy)
    return -(masked_mean(values, side.mask) if aggregate == "mean" else masked_sum(values, side.mask))


def regularisers(batch: PairBatch, loss: Formula) -> Tensor | None:
    """Sum of the loss's regularisers besides the likelihood term, [B]; None if it has no regulariser."""
    parts: list[Tensor] = []
    if loss.calibration is not None:
        parts.append(_calibration(batch, loss.calibration, loss.beta))
    if loss.advantage is not None:
        parts.append(advantage(batch, loss.advantage))
    if loss.adversary is not None:
        parts.append(loss.adversary.weight * adversary(batch))
    sides = [side for side in (batch.chosen, batch.rejected) if side is not None]
    if isinstance(loss.weights, LearnedWeights):
        parts += [mask_size(side, loss.weights) for side in sides]
    if isinstance(loss.prior, LearnedPrior) and loss.prior.penalty > 0:
        parts += [loss.prior.penalty * prior_size(side) for side in sides]
    return torch.stack(parts).sum(0) if parts else None


def _calibration(batch: PairBatch, settings: Calibration, beta: float) -> Tensor:
    """sign · α β · log π(y)/π_ref(y), [B] (VPO, arXiv:2405.19320, equation 8; XPO, arXiv:2405.21046, algorithm 1).

    y is the calibration response, or the chosen one. Raises ValueError if the batch has none.
    """
    side = batch.chosen if settings.source == "chosen" else batch.calibration
    if side is None:
        raise ValueError("this loss needs calibration responses (PairBatch.calibration)")
    values = at_least_float32(side.policy)
    if settings.ratio:
        values = values - reference_of(side)
    weight = settings.sign * settings.alpha * (beta if settings.beta_scaled else 1.0)
    return weight * masked_sum(values, side.mask)


def advantage(batch: PairBatch, settings: Advantage) -> Tensor:
    """λ · mean over the two responses of −e^((r − V)/τ) log π(y), plus the fit of V, [B] (HPO, arXiv:2405.17956).

    The weight is capped and constant; V learns only from the fit. Raises ValueError without rewards and values.
    """
    if batch.value is None or batch.reward_chosen is None or batch.reward_rejected is None or batch.rejected is None:
        raise ValueError("this loss needs rewards and values (PairBatch.reward_chosen, reward_rejected, value)")
    value = at_least_float32(batch.value)
    total = torch.zeros_like(value)
    for side, reward in ((batch.chosen, batch.reward_chosen), (batch.rejected, batch.reward_rejected)):
        error = constant(reward) - value
        # Capped before the exponential, so that no reward overflows it.
        capped = (error.detach() / settings.tau).clamp(max=math.log(settings.clip))
        likelihood = masked_sum(at_least_float32(side.policy), side.mask)
        above = (error.detach() >= 0).to(value.dtype)
        fit = (above * settings.expectile + (1 - above) * (1 - settings.expectile)) * error.square()
        total = total + 0.5 * (settings.value_weight * fit - settings.weight * capped.exp() * likelihood)
    return total


def adversary(batch: PairBatch) -> Tensor:
    """½ [log(1 + e^−(C_w − μ_w)) + log(1 + e^−(C_l − μ_l))], [B] (GANPO, arXiv:2601.22083).

    Raises ValueError without critic scores.
    """
    if batch.critic_chosen is None or batch.critic_rejected is None:
        raise ValueError("this loss needs critic scores (PairBatch.critic_chosen, critic_rejected)")
    return 0.5 * (softplus(-at_least_float32(batch.critic_chosen)) + softplus(-at_least_float32(batch.critic_rejected)))


def mask_size(side: Side, settings: LearnedWeights) -> Tensor:
    """The L1 terms of learned masks, means over the response's tokens, [B] (SparsePO, arXiv:2410.05102, equation 9).

    A mask that serves both purposes counts half for each, as in the published code.
    """
    if side.weights is None:
        raise ValueError("this loss needs a mask for each token (Side.weights)")
    ratio = masked_mean(at_least_float32(side.weights), side.mask)
    if settings.masks == "common":
        return 0.5 * (settings.l1_ratio + settings.l1_kl) * ratio
    for_kl = kl_weights(side, settings)
    assert for_kl is not None, "learned weights have one for the KL"
    return settings.l1_ratio * ratio + settings.l1_kl * masked_mean(for_kl, side.mask)


def prior_size(side: Side) -> Tensor:
    """Mean square, over the response's tokens, of what a learned prior adds to the reference, [B]."""
    if side.prior is None:
        raise ValueError("this loss needs the log-prior of each token (Side.prior)")
    return masked_mean(torch.where(side.mask.bool(), at_least_float32(side.prior), 0).square(), side.mask)
