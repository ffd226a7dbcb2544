"""AdamW for weights of 16 bits: each is stepped in float32, one parameter at a time, and rounded at random.

A step of 5e-7 is far below half the distance between neighbouring bfloat16 numbers near 0.1 (2e-4), so that rounding to
the nearest would undo it each time. Rounded up with the probability of the part that is cut off, it counts on average
(arXiv:1502.02551; for training in bfloat16, arXiv:2010.06192). No float32 copy of the weights is kept: 2 bytes a weight
instead of 6.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.distributed.offloaded_adamw import MOMENTS, STEP, OffloadedAdamW, step_alone


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
        here = {name: value.to(parameter.device) for name, value in kept.items()}
        wide = parameter.float()
        step_alone(wide, parameter.grad.float(), here, group)
        if parameter.dtype == torch.bfloat16:
            parameter.copy_(rounded_at_random(wide))
        for name, value in here.items():
            kept[name].copy_(value)


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
            p.grad = None
            p.data, p.grad_dtype = narrow.float(), torch.float32
            p.grad = gradient.float()
            super().update_step(group, p, gindex, pindex)
            wide, p.grad = p.data, None
            p.data = narrow
            p.data.copy_(rounded_at_random(wide))

    made: torch.optim.Optimizer = _Rounded(groups, **settings)
    return made
