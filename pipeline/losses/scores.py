"""The score of a response: s = Agg_t[ w_t (a log π(y_t) − log ζ(y_t)) ] + κ Σ_t m_t KL_t."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.config import Formula
from pipeline.config.loss.components import AlphaShape, DivergenceShape, IdentityShape, PenaltyShape, PlainShape
from pipeline.config.loss.components import Shape as ShapeSettings
from pipeline.losses.batch import Side, at_least_float32, bounded_exp, masked_mean, masked_sum
from pipeline.losses.prior import log_priors
from pipeline.losses.weights import kl_weights, token_weights


def scores(sides: tuple[Side, ...], loss: Formula, seeds: Tensor | None = None) -> tuple[Tensor, ...]:
    """s of each response of each side, [B] each, in nats (nats per token where the aggregate is a mean).

    Args:
        sides: chosen and rejected, the K responses of a group, or one.
        loss: its prior, weights, exponent, aggregate and kl are read.
        seeds: [B] seeds of the random draws.
    """
    found = []
    for index, (side, ratio) in enumerate(zip(sides, token_ratios(sides, loss), strict=True)):
        other = sides[1 - index] if len(sides) == 2 else None
        weights = token_weights(side, other, loss.weights, seeds)
        score = aggregated(ratio if weights is None else _product(weights, ratio, side), side.mask, loss)
        if loss.kl > 0:
            score = score + loss.kl * _summed_kl(side, loss, stop=loss.kl_stop_chosen and index == 0)
        found.append(score)
    return tuple(found)


def token_ratios(sides: tuple[Side, ...], loss: Formula) -> list[Tensor]:
    """a log π(y_t) − log ζ(y_t) of each token of each side, [B, T] each, in nats; anything outside the mask."""
    priors = log_priors(sides, loss.prior)
    return [loss.exponent * at_least_float32(s.policy) - prior for s, prior in zip(sides, priors, strict=True)]


def aggregated(values: Tensor, mask: Tensor, loss: Formula) -> Tensor:
    """Agg_t of [B, T] at response tokens, [B]."""
    match loss.aggregate:
        case "sum":
            return masked_sum(values, mask)
        case "mean":
            return masked_mean(values, mask)
        case "power":
            return masked_sum(values, mask) / mask.sum(-1).to(values.dtype).pow(loss.length_power)


def _summed_kl(side: Side, loss: Formula, stop: bool) -> Tensor:
    if side.kl is None:
        raise ValueError("this loss needs the full-vocabulary KL of each position (Side.kl)")
    weights = kl_weights(side, loss.weights)
    values = at_least_float32(side.kl)
    total = masked_sum(values if weights is None else _product(weights, values, side), side.mask)
    return total.detach() if stop else total


def _product(weights: Tensor, values: Tensor, side: Side) -> Tensor:
    """weights · values at response tokens, 0 elsewhere, where values, and so the gradient, may be NaN."""
    mask, zero = side.mask.bool(), torch.zeros_like(values)
    return torch.where(mask, weights, zero) * torch.where(mask, values, zero)


# Largest mean log-probability; nearer to 0, the odds of the likelihood overflow.
LIKELIEST = -1e-6


def shaped(s: Tensor, shape: ShapeSettings, chosen: bool) -> Tensor:
    """T(s) of chosen or rejected responses, [B]. Finite for any finite s (exponentials continue as tangents)."""
    match shape:
        case IdentityShape():
            return s
        case DivergenceShape():
            return _divergence(s, shape)
        case AlphaShape():
            return s if shape.alpha == 0 else (1 - bounded_exp(-shape.alpha * s)) / shape.alpha
        case PenaltyShape():
            return s - shape.penalty * torch.relu(-s) if chosen else s
        case PlainShape(kind="log_odds"):
            return _log_odds(s)
        case PlainShape(kind="exp"):
            return bounded_exp(s)
        case PlainShape(kind="bernoulli"):
            return _bernoulli(-s)
        case PlainShape(kind="relu_rejected"):
            # At s = 0, where every run starts, the gradient must pass: clamp would block it on the rejected side.
            return s if chosen else torch.where(s >= 0, s, torch.zeros_like(s))
        case _:
            raise ValueError(f"shape: {shape.kind} is not known")


def _divergence(s: Tensor, shape: DivergenceShape) -> Tensor:
    """f′(e^s), constants dropped (f-DPO, arXiv:2309.16240, table 1)."""
    match shape.divergence:
        case "reverse_kl":
            return s
        case "forward_kl":
            return -bounded_exp(-s)
        case "js":
            # log(2u/(1 + u)), whose log 2 cancels in differences but belongs to the score.
            return torch.log(torch.full_like(s, 2.0)) - softplus(-s)
        case "alpha":
            return (1 - bounded_exp(-shape.alpha * s)) / shape.alpha


# From here on n/(e^n − 1) is below 1e-33; and e^n stays finite in float32.
_LARGEST_BERNOULLI = 80.0


def _bernoulli(n: Tensor) -> Tensor:
    """n/(e^n − 1), by its series near 0, where the quotient loses its digits."""
    n = n.clamp(max=_LARGEST_BERNOULLI)
    small = n.abs() < 1e-2
    apart = torch.where(small, torch.ones_like(n), n)
    return torch.where(small, 1 - n / 2 + n.square() / 12, apart / torch.expm1(apart))


def _log_odds(s: Tensor) -> Tensor:
    """log p/(1 − p) of the likelihood p = e^s."""
    below = s.clamp(max=LIKELIEST)
    return below - torch.log(-torch.expm1(below))
