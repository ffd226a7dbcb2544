"""LoRA adapters of diffusion models (arXiv:2106.09685); loading and saving are those of text models."""

from typing import Any

import torch
from torch import nn

from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.images.networks import plain_network
from pipeline.models.weights.lora import TRAINED_ADAPTER, adapter_arguments, with_adapter


def add_image_adapter(network: Any, settings: Lora, seed: int) -> Any:
    """Add a new adapter to ``network``; only the adapter is trainable, and it starts as no change.

    Returns a peft model.

    Raises:
        UserError: no module of ``network`` has one of the names in ``target_modules`` or ``modules_to_save``.
    """
    every = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets: Any = every if settings.target_modules == "all-linear" else settings.target_modules
    arguments = adapter_arguments(network, settings)
    arguments["target_modules"] = targets if isinstance(targets, str) else [*targets]
    torch.manual_seed(seed)
    try:
        return with_adapter(network.requires_grad_(False), arguments, TRAINED_ADAPTER)
    except ValueError as error:
        raise UserError(f"training.lora.target_modules: {error}") from error


def merged_network(network: Any) -> Any:
    """Return the network with its adapter merged in, in the dtype of its weights; ``network`` itself without one."""
    plain = plain_network(network)
    if plain is network:
        return network
    dtype = plain.dtype
    return network.merge_and_unload().to(dtype)
