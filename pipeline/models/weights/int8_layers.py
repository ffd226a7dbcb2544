"""Linear layers with weights of 8 bits and inputs of 16, in place of bitsandbytes' own passes.

Those quantise the inputs too, by the outliers of all rows of a batch, in evaluation and on CUDA: a row's log-probs
would depend on its neighbours, and differ between training and scoring.
"""

from typing import Any

import torch
from bitsandbytes.nn import modules
from torch import Tensor, nn

_UNTYPED: Any = modules
_LINEAR: Any = _UNTYPED.Linear8bitLt


class Int8Linear(_LINEAR):  # type: ignore[misc]
    """W = int8 · scale / 127 for each row, dequantised for each product, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] from [..., in], in the dtype of ``x``, or that of autocast."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        product: Any = _Product
        found: Tensor = product.apply(x.to(dtype), self.weight, self.state.SCB)
        return found if self.bias is None else found + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x W', with the 8-bit weights kept for the backward pass, not their 16-bit values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(x, _dequantised(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ _dequantised(weight, scale, gradient.dtype), None, None


def _dequantised(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * (scale / 127).to(dtype)[:, None]


def weights_only(module: nn.Module) -> None:
    """Turn a quantised ``Linear8bitLt`` into an ``Int8Linear``; leave any other module."""
    if type(module) is not _LINEAR:
        return
    layer: Any = module
    if layer.weight.CB is not None:
        layer.init_8bit_state()
        layer.weight.data = layer.state.CB
    layer.__class__ = Int8Linear
