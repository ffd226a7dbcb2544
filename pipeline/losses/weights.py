"""Weights of the tokens in a score. Policy and prior get the same weight."""

import torch
from torch import Tensor

from pipeline.config.loss.components import (
    ActivationWeights,
    DecayWeights,
    EditWeights,
    EqualWeights,
    GivenWeights,
    LearnedWeights,
    SubsetWeights,
    TailWeights,
)
from pipeline.config.loss.components import Weights as WeightSettings
from pipeline.losses.batch import Side, at_least_float32, constant, masked_mean


def token_weights(side: Side, other: Side | None, weights: WeightSettings, seeds: Tensor | None) -> Tensor | None:
    """w of each token, [B, T]; None where all are 1.

    Args:
        side: the responses whose tokens are weighted.
        other: the other response of each pair, for weights that compare lengths.
        weights: kind and settings.
        seeds: [B] seeds of the random draws; None: 0 … B − 1.

    Raises:
        ValueError: the side lacks the inputs of the weights.
    """
    match weights:
        case EqualWeights():
            return None
        case DecayWeights():
            exponent = _places(side) + weights.first
            return torch.pow(weights.gamma, exponent.to(at_least_float32(side.policy).dtype))
        case EditWeights():
            if side.edited is None:
                raise ValueError("this loss needs to know which tokens are edited (Side.edited)")
            # 1/π is capped before it can overflow: δ is far below e^30.
            rarity = torch.exp((-constant(side.policy)).clamp(max=30.0)).clamp(max=weights.delta)
            return 1 + side.edited.to(rarity.dtype) * rarity
        case SubsetWeights():
            return _subset(side, _required(other), weights.keep_end, seeds)
        case TailWeights():
            shorter = torch.minimum(side.mask.sum(-1), _required(other).mask.sum(-1))
            ones = torch.ones_like(at_least_float32(side.policy))
            return torch.where(_places(side) >= shorter.unsqueeze(-1), weights.alpha * ones, ones)
        case GivenWeights():
            return constant(_weights(side))
        case LearnedWeights() | ActivationWeights():
            return at_least_float32(_weights(side))


def kl_weights(side: Side, weights: WeightSettings) -> Tensor | None:
    """Weight of each token's KL, [B, T]; None where all are 1."""
    if not isinstance(weights, LearnedWeights | ActivationWeights):
        return None
    if isinstance(weights, ActivationWeights) or weights.masks == "common":
        return at_least_float32(_weights(side))
    if side.kl_weights is None:
        raise ValueError("this loss needs a weight for each token's KL (Side.kl_weights)")
    return at_least_float32(side.kl_weights)


def _places(side: Side) -> Tensor:
    """Number of response tokens before each token, [B, T]."""
    return side.mask.long().cumsum(-1) - side.mask.long()


def _weights(side: Side) -> Tensor:
    if side.weights is None:
        raise ValueError("this loss needs a weight for each token (Side.weights)")
    return side.weights


def _required(other: Side | None) -> Side:
    if other is None:
        raise ValueError("these token weights compare the two responses of a pair")
    return other


def _subset(side: Side, other: Side, keep_end: bool, seeds: Tensor | None) -> Tensor:
    """1 for the tokens with the lowest random draws, as many as the shorter side has; 0 for the rest."""
    mask = side.mask.bool()
    if seeds is None:
        seeds = torch.arange(len(mask), device=mask.device)
    place = _places(side)
    lots = _lots(seeds.unsqueeze(-1), place)
    if keep_end:
        lots = torch.where(place == mask.sum(-1, keepdim=True) - 1, torch.full_like(lots, -1), lots)
    lots = torch.where(mask, lots, torch.full_like(lots, torch.iinfo(lots.dtype).max))
    rank: Tensor = lots.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    kept = torch.minimum(mask.sum(-1), other.mask.bool().sum(-1)).unsqueeze(-1)
    counts: Tensor = (rank < kept).to(at_least_float32(side.policy).dtype)
    return counts


def _lots(seeds: Tensor, place: Tensor) -> Tensor:
    """A hash of (seed, place) in [0, 2^62): the same on every device and in any batch (splitmix64's last steps)."""
    x = seeds * 0x1E3779B97F4A7C15 + (place + 1) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ (x >> 31 & 0x1FFFFFFFF)) & 0x3FFFFFFFFFFFFFFF


def uniform(seeds: Tensor) -> Tensor:
    """[B] numbers in (0, 1), one a seed, float64."""
    return (_lots(seeds, torch.zeros_like(seeds)).double() + 0.5) / float(2**62)


def likeliness(side: Side) -> Tensor:
    """Mean of log π(y_t) − log Σ_v π(v)², [B], constant (WPO, arXiv:2406.11827). Raises ValueError without Σ π²."""
    if side.collision is None:
        raise ValueError("this loss needs Σ p² of each position (Side.collision)")
    return masked_mean(constant(side.policy) - constant(side.collision).log(), side.mask)
