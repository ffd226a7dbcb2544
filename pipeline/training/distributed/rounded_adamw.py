"""AdamW for weights of 16 bits: each is stepped in float32, a slice of a parameter at a time, and rounded at random.

A step of 5e-7 is far below half the distance between neighbouring bfloat16 numbers near 0.1 (2e-4), so that rounding to
the nearest would undo it each time. Rounded up with the probability of the part that is cut off, it counts on average
(arXiv:1502.02551; for training in bfloat16, arXiv:2010.06192). No float32 copy of the weights is kept: 2 bytes a weight
instead of 6.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.distributed.launch import STEP_SLICE
from pipeline.training.distributed.offloaded_adamw import MOMENTS, STEP, OffloadedAdamW, step_alone

# Of bitsandbytes' state: moments, and their scales, one for a block of so many.
_OF_8_BITS, _SCALES, _BLOCK = ("state1", "state2"), ("absmax1", "absmax2"), 256


def rounded_at_random(wide: Tensor) -> Tensor:
    """Round float32 numbers to one of the two nearest bfloat16 ones, with their value as the mean.

    Draws from torch's own random state, which the trainer sets at each step.

    >>> rounded_at_random(torch.full((4000,), 1 + 2**-9)).float().mean().item()  # doctest: +SKIP
    1.00195...
    """
    bits = wide.view(torch.int32)
    noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=wide.device)
    # Of both signs, the low half is added to the magnitude.
    moved = (bits + noise).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(wide.isfinite(), moved, wide).to(torch.bfloat16)


def sum_in_float32(policy: nn.Module, *, several: bool) -> None:
    """Let gradients of 16-bit weights be as wide as these, or float32 if those of ``several`` passes are added up."""
    for parameter in policy.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize == 2 and parameter.grad is None:
            parameter.grad_dtype = torch.float32 if several else parameter.dtype


class RoundedAdamW(OffloadedAdamW):
    """AdamW (1711.05101) of bfloat16 parameters, with float32 moments, in CPU memory or with the parameters."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], *, offload: bool
    ) -> None:
        """``groups``: as for any optimiser, each with a ``weight_decay``. ``offload``: state to CPU memory."""
        super().__init__(groups, lr, betas)
        self._offload = offload

    def new_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of ``parameter`` before its first step: float32."""
        device = torch.device("cpu") if self._offload else parameter.device
        zeros = {name: torch.zeros(parameter.shape, dtype=torch.float32, device=device) for name in MOMENTS}
        return {STEP: torch.zeros((), device=device), **zeros}

    def _step(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None, "checked before"
        kept = self.state[parameter]
        if not kept:
            kept |= self.new_state(parameter)
        whole = {"weights": parameter.detach(), "gradient": parameter.grad, **{name: kept[name] for name in MOMENTS}}
        step = kept[STEP].to(parameter.device)
        for part in _slices(whole):
            here = {name: part[name].to(parameter.device) for name in MOMENTS} | {STEP: step.clone()}
            wide = part["weights"].float()
            step_alone(wide, part["gradient"].float(), here, group)
            if parameter.dtype == torch.bfloat16:
                part["weights"].copy_(rounded_at_random(wide))
            for name in MOMENTS:
                part[name].copy_(here[name])
        kept[STEP].copy_(step + 1)


def _slices(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield views of the same part of each of the tensors of one shape, with at most ``STEP_SLICE`` numbers."""
    size = next(iter(tensors.values())).numel()
    if size <= STEP_SLICE or not all(tensor.is_contiguous() for tensor in tensors.values()):
        yield dict(tensors)
        return
    for begin in range(0, size, STEP_SLICE):
        yield {name: tensor.view(-1)[begin : begin + STEP_SLICE] for name, tensor in tensors.items()}


def _like_paged(part: Tensor, whole: Any) -> Tensor:
    """Mark a view of a tensor that bitsandbytes pages as one too."""
    for name in ("is_paged", "page_deviceid"):
        if hasattr(whole, name):
            setattr(part, name, getattr(whole, name))
    return part


def rounded_8bit(groups: list[dict[str, object]], **settings: Any) -> torch.optim.Optimizer:
    """Create bitsandbytes' AdamW (arXiv:2110.02861) of bfloat16 parameters; ``settings`` are its own."""
    from bitsandbytes.optim import adamw as of_bitsandbytes

    base: Any = of_bitsandbytes.AdamW

    class _Rounded(base):  # type: ignore[misc]
        def update_step(self, group: Any, p: nn.Parameter, gindex: int, pindex: int) -> None:
            narrow, gradient = p.data, p.grad
            if narrow.dtype != torch.bfloat16 or gradient is None:
                super().update_step(group, p, gindex, pindex)
                return
            p.grad, kept = None, self.state[p]
            moments = {name: kept[name] for name in _OF_8_BITS}
            step = kept["step"]
            for number, part in enumerate(_slices({"weights": narrow, "gradient": gradient, **moments})):
                piece = nn.Parameter(part["weights"].float())
                piece.grad = part["gradient"].float()
                blocks = slice(number * STEP_SLICE // _BLOCK, (number + 1) * STEP_SLICE // _BLOCK)
                # Moments of small tensors have 32 bits, and no scales.
                scales = {name: kept[name][blocks] for name in _SCALES if name in kept}
                sliced = {name: _like_paged(part[name], kept[name]) for name in _OF_8_BITS}
                self.state[piece] = {**kept, **sliced, **scales, "step": step}
                super().update_step(group, piece, gindex, pindex)
                kept["step"] = self.state.pop(piece)["step"]
                part["weights"].copy_(rounded_at_random(piece.data))

    made: torch.optim.Optimizer = _Rounded(groups, **settings)
    return made
