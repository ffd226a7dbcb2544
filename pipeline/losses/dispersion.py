"""The dispersion d = −log φ(x): how much people agree on which response is better (MallowsPO, arXiv:2405.14953)."""

import math

import torch
from torch import Tensor

from pipeline.config.loss.terms import EntropyDispersion
from pipeline.losses.batch import PairBatch, Side, constant, masked_mean

# The published code's mean of −log Hn; used for "mean" where only one batch is known.
PUBLISHED_MEAN = 0.29
# Smallest normalised entropy: if every token of a response is certain, the logarithm would be infinite.
_SMALLEST_ENTROPY = 1e-6


def dispersion_of(batch: PairBatch, settings: EntropyDispersion) -> Tensor:
    """d of each pair, [B], constant: as given, or from both sides' entropies. Raises ValueError without either."""
    if batch.dispersion is not None:
        return constant(batch.dispersion)
    if batch.chosen.ref_entropy is None or batch.rejected is None or batch.rejected.ref_entropy is None:
        raise ValueError("this loss needs the dispersion of each pair (PairBatch.dispersion, or Side.ref_entropy)")
    size = 1.0 if settings.vocab_size is None else math.log(settings.vocab_size)
    entropies = torch.stack([_mean_entropy(side) for side in (batch.chosen, batch.rejected)]).mean(0) / size
    if bool((entropies > 1 + 1e-6).any()):
        raise ValueError(
            f"Side.ref_entropy: {float(entropies.max()):.3g} times the largest possible entropy; entropies in nats "
            "need dispersion.vocab_size, the size of the vocabulary"
        )
    return scaled(entropies, 1 / PUBLISHED_MEAN if settings.scale == "mean" else settings.scale)


def scaled(entropy: Tensor, scale: float) -> Tensor:
    """d = −φ* log Hn of normalised entropies Hn in [0, 1]; 0 where the reference is as unsure as possible."""
    return -scale * entropy.clamp(_SMALLEST_ENTROPY, 1.0).log()


def _mean_entropy(side: Side) -> Tensor:
    assert side.ref_entropy is not None, "checked by the caller"
    return masked_mean(constant(side.ref_entropy), side.mask)
