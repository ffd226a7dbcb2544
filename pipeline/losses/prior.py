"""The prior ζ, the baseline of a response's log-probability (MI-DPO, arXiv:2501.01544).

DPO's prior is the reference policy; a loss without a reference has ζ = 1. A prior of whole responses (mixtures) is
spread evenly over the response's tokens, so that every aggregation gives the response its own value.
"""

import torch
from torch import Tensor

from pipeline.config.loss.components import (
    ExtrapolatedPrior,
    GivenPrior,
    HarmonicPrior,
    LearnedPrior,
    LengthPrior,
    MixturePrior,
    NoPrior,
    ReferencePrior,
)
from pipeline.config.loss.components import Prior as PriorSettings
from pipeline.losses.batch import Side, at_least_float32, constant, masked_sum


def log_priors(sides: tuple[Side, ...], prior: PriorSettings) -> tuple[Tensor, ...]:
    """log ζ of each token of each side, [B, T] each.

    Raises:
        ValueError: a side lacks the references, or the ``prior``, that it needs.
    """
    if isinstance(prior, HarmonicPrior):
        return _harmonic(sides, prior)
    return tuple(_log_prior(side, prior) for side in sides)


def reference_of(side: Side, index: int = 0) -> Tensor:
    """Log-probabilities under reference number ``index``, [B, T]. Raises ValueError if it is missing."""
    if side.reference is None:
        raise ValueError("this loss needs reference log-probabilities (Side.reference)")
    if side.reference.ndim == 2:
        if index > 0:
            raise ValueError(f"this loss needs {index + 1} references: Side.reference [K, B, T], not [B, T]")
        return constant(side.reference)
    if index >= side.reference.shape[0]:
        raise ValueError(f"this loss needs {index + 1} references, and Side.reference has {side.reference.shape[0]}")
    return constant(side.reference[index])


def _log_prior(side: Side, prior: PriorSettings) -> Tensor:
    match prior:
        case NoPrior():
            return torch.zeros_like(at_least_float32(side.policy))
        case ReferencePrior():
            return prior.weight * reference_of(side)
        case LengthPrior():
            return reference_of(side) - prior.alpha
        case ExtrapolatedPrior():
            return (1 + prior.alpha) * reference_of(side, 0) - prior.alpha * reference_of(side, 1)
        case LearnedPrior():
            return reference_of(side) + at_least_float32(_given(side))
        case GivenPrior():
            return constant(_given(side))
        case MixturePrior(mean="geometric"):
            parts = [weight * reference_of(side, k) for k, weight in enumerate(prior.weights)]
            return torch.stack(parts).sum(0)
        case MixturePrior():
            whole = _whole(side, len(prior.weights))
            weights = torch.tensor(prior.weights, dtype=whole.dtype, device=whole.device)
            return _spread(torch.logsumexp(weights.log().unsqueeze(1) + whole, dim=0), side)
        case HarmonicPrior():
            raise ValueError("harmonic: this prior needs both sides together")


def _given(side: Side) -> Tensor:
    if side.prior is None:
        raise ValueError("this loss needs the log-prior of each token (Side.prior)")
    return side.prior


def _whole(side: Side, count: int) -> Tensor:
    """log π_k(y) of whole responses, [K, B]."""
    return torch.stack([masked_sum(reference_of(side, k), side.mask) for k in range(count)])


def _spread(whole: Tensor, side: Side) -> Tensor:
    return (whole / side.mask.sum(-1)).unsqueeze(-1).expand_as(side.policy)


def _harmonic(sides: tuple[Side, ...], prior: HarmonicPrior) -> tuple[Tensor, ...]:
    """log ζ = −logsumexp_k(log a_k − log π_k) (MRPO, arXiv:2405.16388), with references clipped towards the first.

    The trust region is [(1 + e) log π_1, (1 − e) log π_1], where e is the ``clip`` divided between the two sides in
    proportion to the size of the references' mean log-probability. Adaptive weights grow with the distance that a
    reference puts between the two responses, its own confidence; the published code uses the other reference's.
    """
    count = 2 if prior.weights == "adaptive" else len(prior.weights)
    whole = [_whole(side, count) for side in sides]
    if prior.weights == "adaptive":
        gaps = (whole[0] - whole[-1]).abs()
        sure = gaps.sum(0, keepdim=True)
        weights = torch.where(sure > 0, gaps / sure, torch.full_like(gaps, 1 / count))
    else:
        given = torch.tensor(prior.weights, dtype=whole[0].dtype, device=whole[0].device)
        weights = (given / given.sum()).unsqueeze(1).expand_as(whole[0])
    clipped = whole if prior.clip is None else _clipped(whole, prior.clip)
    return tuple(
        _spread(-torch.logsumexp(weights.log() - part, dim=0), side) for part, side in zip(clipped, sides, strict=True)
    )


def _clipped(whole: list[Tensor], clip: float) -> list[Tensor]:
    sizes = [part.mean(0).abs() for part in whole]
    total = torch.stack(sizes).sum(0).clamp(min=torch.finfo(sizes[0].dtype).tiny)
    clipped = []
    for part, size in zip(whole, sizes, strict=True):
        radius = clip * size / total
        first = part[0]
        others = torch.maximum(torch.minimum(part[1:], (1 - radius) * first), (1 + radius) * first)
        clipped.append(torch.cat([part[:1], others]))
    return clipped
