"""Reductions over response tokens. Lengths come from the mask, never from the values."""

import torch
from torch import Tensor

# e^30 is 1e13: far outside what training meets, and its square is still a float32.
LARGEST_EXPONENT = 30.0


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens where ``mask`` is true: [B, T] -> [B]. Other positions may hold anything, NaN included."""
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where ``mask`` is true: [B, T] -> [B]."""
    return masked_sum(values, mask) / mask.sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


def constant(values: Tensor) -> Tensor:
    """``values`` in float32 or better, without their gradient."""
    return at_least_float32(values.detach())


def bounded_exp(x: Tensor) -> Tensor:
    """e^x, going on as its tangent from x = 30, so that value and gradient stay finite for any finite x.

    >>> bounded_exp(torch.tensor([0.0, 1e4])).isfinite().all()
    tensor(True)
    """
    low = x.clamp(max=LARGEST_EXPONENT)
    return low.exp() * (1 + (x - LARGEST_EXPONENT).clamp(min=0))
