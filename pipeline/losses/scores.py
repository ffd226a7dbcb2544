"""The score of a response: s = Agg_t[ w_t (a log π(y_t) − log ζ(y_t)) ] + κ Σ_t m_t KL_t."""

import torch
from torch import Tensor

from pipeline.config import Composition
from pipeline.losses.batch import Side
from pipeline.losses.masked import at_least_float32, masked_mean, masked_sum
from pipeline.losses.prior import log_priors
from pipeline.losses.weights import kl_weights, token_weights


def scores(sides: tuple[Side, ...], loss: Composition, seeds: Tensor | None = None) -> tuple[Tensor, ...]:
    """s of each response of each side, [B] each, in nats (nats a token where the aggregate is a mean).

    Args:
        sides: chosen and rejected, the K responses of a group, or one.
        loss: reads prior, weights, exponent, aggregate and kl.
        seeds: [B] of lots.
    """
    priors = log_priors(sides, loss.prior)
    found = []
    for index, (side, log_prior) in enumerate(zip(sides, priors, strict=True)):
        other = sides[1 - index] if len(sides) == 2 else None
        ratio = loss.exponent * at_least_float32(side.policy) - log_prior
        weights = token_weights(side, other, loss.weights, seeds)
        score = _aggregated(ratio if weights is None else _product(weights, ratio, side), side.mask, loss)
        if loss.kl > 0:
            score = score + loss.kl * _divergence(side, loss, stop=loss.kl_stop_chosen and index == 0)
        found.append(score)
    return tuple(found)


def _aggregated(values: Tensor, mask: Tensor, loss: Composition) -> Tensor:
    match loss.aggregate:
        case "sum":
            return masked_sum(values, mask)
        case "mean":
            return masked_mean(values, mask)
        case "power":
            return masked_sum(values, mask) / mask.sum(-1).to(values.dtype).pow(loss.length_power)


def _divergence(side: Side, loss: Composition, stop: bool) -> Tensor:
    if side.kl is None:
        raise ValueError("this loss needs the full-vocabulary KL of each position (Side.kl)")
    weights = kl_weights(side, loss.weights)
    values = at_least_float32(side.kl)
    total = masked_sum(values if weights is None else _product(weights, values, side), side.mask)
    return total.detach() if stop else total


def _product(weights: Tensor, values: Tensor, side: Side) -> Tensor:
    """weights · values at response tokens, 0 elsewhere: what stands there may be NaN, and so would the gradient be."""
    mask, zero = side.mask.bool(), torch.zeros_like(values)
    return torch.where(mask, weights, zero) * torch.where(mask, values, zero)
