"""The networks and schedulers of diffusers that are policies here, and how each one is called."""

from collections.abc import Mapping
from typing import Any, Literal

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.weights.lora import plain_model

# What a network is told besides the noisy input: nothing, a class, or the states of a text encoder.
ConditionKind = Literal["none", "class", "text"]
# [R, ...] each: nothing; classes; states; states and one pooled state.
Conditions = tuple[Tensor, ...]

NETWORKS: Mapping[str, Any] = {
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
    "DiTTransformer2DModel": DiTTransformer2DModel,
    # The name under which folders of DiT were written first.
    "Transformer2DModel": DiTTransformer2DModel,
    "SD3Transformer2DModel": SD3Transformer2DModel,
}
SCHEDULERS: Mapping[str, Any] = {
    "DDIMScheduler": DDIMScheduler,
    "DDPMScheduler": DDPMScheduler,
    "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
    "EulerAncestralDiscreteScheduler": EulerAncestralDiscreteScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
    "PNDMScheduler": PNDMScheduler,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
}


def plain_network(network: Any) -> Any:
    """Return the diffusers model inside an adapter's wrapper, or ``network`` itself."""
    return plain_model(network)


def condition_kind(network: Any) -> ConditionKind:
    """Return what ``network`` is told besides the noisy input.

    Raises ``UserError`` for a network that cannot be a policy.
    """
    plain = plain_network(network)
    settings: Mapping[str, Any] = plain.config
    match plain:
        case UNet2DModel():
            return "none" if settings["num_class_embeds"] is None else "class"
        case DiTTransformer2DModel():
            return "class"
        case UNet2DConditionModel():
            extra = settings["addition_embed_type"]
            if extra is not None:
                raise UserError(f"unet.addition_embed_type: {extra!r}; allowed: none, as in Stable Diffusion 1 and 2")
            return "text"
        case SD3Transformer2DModel():
            return "text"
    raise UserError(f"{type(plain).__name__}: not a network of a policy; allowed: {', '.join(NETWORKS)}")


def input_shape(network: Any) -> tuple[int, int, int]:
    """Return channels, height and width of what ``network`` reads.

    Raises ``UserError`` if its config does not say.
    """
    settings = plain_network(network).config
    size = settings["sample_size"]
    if size is None:
        raise UserError("sample_size: null in the network's config; allowed: the height and width of its input")
    height, width = (size, size) if isinstance(size, int) else size
    return int(settings["in_channels"]), int(height), int(width)


def predict(network: Any, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
    """Return the prediction [R, C, H, W] for ``noisy`` [R, C, H, W] at ``times`` [R].

    A predicted variance, in channels after the first C, is left out.
    """
    match plain_network(network):
        case UNet2DModel():
            found = network(noisy, times, *conditions)
        case DiTTransformer2DModel():
            found = network(noisy, timestep=times, class_labels=conditions[0])
        case UNet2DConditionModel():
            found = network(noisy, times, encoder_hidden_states=conditions[0])
        case _:
            states, pooled = conditions
            found = network(noisy, timestep=times, encoder_hidden_states=states, pooled_projections=pooled)
    prediction: Tensor = found.sample
    return prediction[:, : noisy.shape[1]]
