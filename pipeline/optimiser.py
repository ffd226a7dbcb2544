"""AdamW, and its state as a safetensors file keyed by parameter name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import Optimisation
from pipeline.types import UserError

Parameters = Mapping[str, nn.Parameter]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters of one weight decay, whose learning rate is ``rate`` times that of the run."""

    parameters: Parameters
    weight_decay: float
    rate: float = 1.0


def make_adamw(groups: Sequence[Group], settings: Optimisation) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, never on norms and biases."""
    made: list[dict[str, object]] = []
    for group in groups:
        matrices = [p for p in group.parameters.values() if p.ndim >= 2]
        vectors = [p for p in group.parameters.values() if p.ndim < 2]
        for members, decay in ((matrices, group.weight_decay), (vectors, 0.0)):
            if members:
                made.append({"params": members, "weight_decay": decay, "rate": group.rate})
    return torch.optim.AdamW(
        made, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=True
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Make ``rate`` the learning rate of the run."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]


def save_optimiser(optimiser: torch.optim.Optimizer, parameters: Parameters, file: Path) -> None:
    """Write the moments and step counts of every parameter that has been stepped."""
    tensors = {
        f"{name}.{moment}": optimiser.state[parameter][moment].detach().contiguous().cpu()
        for name, parameter in parameters.items()
        if parameter in optimiser.state
        for moment in MOMENTS
    }
    save_file(tensors, file)


def load_optimiser(optimiser: torch.optim.Optimizer, parameters: Parameters, file: Path) -> None:
    """Put the state in ``file`` into ``optimiser``.

    Raises:
        UserError: the file is missing or unreadable, or belongs to other parameters.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot read this optimiser state: {error}") from None
    for name, parameter in parameters.items():
        parts = {moment: tensors.get(f"{name}.{moment}") for moment in MOMENTS}
        state = _state(parameter, parts)
        if state is None:
            raise UserError(
                f"{file}: optimiser state of another model: {name} is missing or is not {tuple(parameter.shape)}"
            )
        optimiser.state[parameter] = state


def _state(parameter: nn.Parameter, parts: Mapping[str, Tensor | None]) -> dict[str, Tensor] | None:
    state: dict[str, Tensor] = {}
    for moment, tensor in parts.items():
        if tensor is None or (moment != "step" and tensor.shape != parameter.shape):
            return None
        # Fused AdamW keeps its step count beside the parameter.
        state[moment] = tensor.to(parameter.device)
    return state
