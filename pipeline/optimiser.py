"""AdamW, and its state as a safetensors file keyed by parameter name."""

from collections.abc import Mapping
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


def make_adamw(parameters: Parameters, settings: Optimisation) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, never on norms and biases."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    decays = ((matrices, settings.weight_decay), (vectors, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in decays if members]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), fused=True
    )


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
