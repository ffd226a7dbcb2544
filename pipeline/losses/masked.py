"""Reductions over response tokens. Lengths come from the mask, never from the values."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens where ``mask`` is true: [B, T] -> [B]. Other positions may hold anything, NaN included."""
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where ``mask`` is true: [B, T] -> [B]."""
    return masked_sum(values, mask) / mask.sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay as they are."""
    return values.float() if values.dtype.itemsize < 4 else values
