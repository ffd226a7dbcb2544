"""AdamW in several forms, and its state as tensors by parameter name, whole and on the CPU."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.config import Optimisation
from pipeline.errors import UserError
from pipeline.models.weights.shard_files import opened_shards
from pipeline.training.distributed.fsdp import placed_like, save_gathered, single
from pipeline.training.distributed.offloaded_adamw import MOMENTS, STEP, OffloadedAdamW
from pipeline.training.distributed.requirements import require_optimiser
from pipeline.training.distributed.rounded_adamw import RoundedAdamW, rounded_8bit
from pipeline.training.distributed.zero import ZeroEngine

NamedParameters = Mapping[str, nn.Parameter]
Optimiser = torch.optim.Optimizer | ZeroEngine
# bitsandbytes tables, 256 numbers each, the same for every parameter and run.
CODES = ("qmap1", "qmap2")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters with one weight decay and a learning rate of ``rate`` times the run's."""

    parameters: NamedParameters
    weight_decay: float
    rate: float = 1.0


def make_optimiser(groups: Sequence[ParameterGroup], settings: Optimisation) -> torch.optim.Optimizer:
    """Create the AdamW that ``settings.optimiser`` names; weight decay on matrices only, never on norms and biases.

    bfloat16 parameters are rounded at random (``rounded_adamw``).

    Raises:
        UserError: bitsandbytes is not installed, or the optimiser needs an accelerator and there is none.
    """
    made: list[dict[str, object]] = []
    for group in groups:
        matrices = [p for p in group.parameters.values() if p.ndim >= 2]
        vectors = [p for p in group.parameters.values() if p.ndim < 2]
        for members, decay in ((matrices, group.weight_decay), (vectors, 0.0)):
            if members:
                made.append({"params": members, "weight_decay": decay, "rate": group.rate})
    rate, betas = settings.learning_rate, (settings.adam_beta1, settings.adam_beta2)
    require_optimiser(settings, "training", on_accelerator=torch.cuda.is_available())
    narrow = any(p.dtype == torch.bfloat16 for group in groups for p in group.parameters.values())
    match settings.optimiser:
        case "adamw" | "adamw_offload" if narrow:
            return RoundedAdamW(made, rate, betas, offload=settings.optimiser == "adamw_offload")
        case "adamw":
            return torch.optim.AdamW(made, lr=rate, betas=betas, fused=True)
        case "adamw_offload":
            return OffloadedAdamW(made, rate, betas)
        case kind:
            from bitsandbytes.optim import adamw

            # bitsandbytes itself keeps tensors with fewer than 4,096 weights in 32 bits.
            bits, paged = 8 if "8bit" in kind else 32, kind.endswith("paged")
            untyped: Any = adamw
            make = rounded_8bit if narrow else untyped.AdamW
            made_by_it: torch.optim.Optimizer = make(made, lr=rate, betas=betas, optim_bits=bits, is_paged=paged)
            return made_by_it


def set_rate(optimiser: Optimiser, rate: float) -> None:
    """Set the run's learning rate to ``rate``."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]


def save_optimiser(optimiser: Optimiser, parameters: NamedParameters, file: Path, accelerator: Accelerator) -> None:
    """Write moments and step counts of every stepped parameter, as ``NAME.MOMENT``, into ``file`` or its shards.

    Every process must call this; the main one writes.
    """
    if isinstance(optimiser, ZeroEngine):
        state = ((f"{n}.{part}", v) for n, p in parameters.items() for part, v in optimiser.state_of(p).items())
        kept = {name: value.cpu() for name, value in state if accelerator.is_main_process}
        save_gathered(file, kept, accelerator)
        return
    found = {
        f"{name}.{part}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for name, parameter in parameters.items()
        for part, value in optimiser.state.get(parameter, {}).items()
        if part not in CODES
    }
    save_gathered(file, found, accelerator)


def load_optimiser(optimiser: Optimiser, parameters: NamedParameters, file: Path) -> None:
    """Load the state in ``file``, or its shards, into ``optimiser``.

    Raises:
        UserError: the file is missing or unreadable, or belongs to other parameters or another optimiser.
    """
    places = {
        id(p): (group, g, i) for g, group in enumerate(optimiser.param_groups) for i, p in enumerate(group["params"])
    }
    try:
        with opened_shards(file) as tensors:
            for name, parameter in parameters.items():
                if isinstance(optimiser, ZeroEngine):
                    state = _adamw_state(parameter)
                else:
                    state = _new_state(optimiser, parameter, *places[id(parameter)])
                    optimiser.state[parameter] = state
                for part, value in state.items():
                    if part in CODES:
                        continue
                    kept = tensors.get(f"{name}.{part}")
                    state[part] = _filled(value, kept)
                    if state[part] is None:
                        raise UserError(
                            f"{file}: optimiser state of another model or another training.optimiser: {name} is "
                            f"missing or is not {tuple(parameter.shape)}"
                        )
                if isinstance(optimiser, ZeroEngine):
                    optimiser.load_state(parameter, state)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot read this optimiser state: {error}") from None


def _new_state(
    optimiser: torch.optim.Optimizer, parameter: nn.Parameter, group: dict[str, Any], group_index: int, index: int
) -> dict[str, Any]:
    """Return the state of ``parameter`` before its first step."""
    if isinstance(optimiser, AcceleratedOptimizer):
        return _new_state(optimiser.optimizer, parameter, group, group_index, index)
    if isinstance(optimiser, OffloadedAdamW):
        return optimiser.new_state(parameter)
    if isinstance(optimiser, torch.optim.AdamW):
        return _adamw_state(parameter)
    # bitsandbytes: its buffers may be paged, and its tables belong to the optimiser.
    any_optimiser: Any = optimiser
    any_optimiser.init_state(group, parameter, group_index, index)
    state: dict[str, Any] = any_optimiser.state[parameter]
    return state


def _adamw_state(parameter: nn.Parameter) -> dict[str, Any]:
    # Fused AdamW keeps its step count on the parameter's device.
    moments = {name: torch.zeros_like(parameter.detach()) for name in MOMENTS}
    return {STEP: torch.zeros((), device=parameter.device), **moments}


def _filled(value: Tensor | int, kept: Tensor | None) -> Tensor | int | None:
    """Return ``value``, a part of a state, filled from ``kept``; None if that does not fit."""
    if kept is None or isinstance(value, int):
        return None if kept is None else int(kept)
    if kept.shape != value.shape or kept.dtype != value.dtype:
        return None
    value.copy_(placed_like(kept, value))
    return value


def rate_factor(step: int, steps: int, settings: Optimisation) -> float:
    """Return the factor in (0, 1] of the learning rate at step ``step`` (from 0) of ``steps``.

    It rises linearly over the first ``warmup`` share of the steps, then stays, or falls linearly or
    along half a cosine towards 0, which it would reach one step after the last.

    >>> settings = Optimisation(schedule="linear", warmup=0.5)
    >>> [rate_factor(step, 4, settings) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, steps - warm)
    return 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def steps_of(examples: int, settings: Optimisation) -> int:
    """Return the optimiser steps of a run over ``examples`` pairs (or texts), at least 1."""
    steps = max(1, round(settings.epochs * math.ceil(examples / settings.batch_size)))
    return min(steps, settings.max_steps or steps)


def clipped_norm(
    policy: Sequence[nn.Parameter], beside: Sequence[nn.Parameter], limit: float, accelerator: Accelerator
) -> float:
    """Clip; return the policy's gradient norm before that, NaN if the one of heads or critics is not finite.

    Large gradients of auxiliary modules must not shorten the policy's step.
    """
    norm = single(accelerator.clip_grad_norm_(policy, limit))
    if beside and not math.isfinite(single(accelerator.clip_grad_norm_(beside, limit))):
        return math.nan
    return norm
