"""An adapter of the tiny model, saved as a stage saves it: with its probe."""

from pathlib import Path
from typing import Any

import torch

from pipeline.config import ChatSettings, Lora
from pipeline.models.chat import load_chat
from pipeline.models.policy import load_policy, save_probe
from pipeline.models.weights.lora import add_adapter, save_adapter
from pipeline.models.weights.weight_format import FLOAT32, WeightFormat


def moved_adapter(base: Path, lora: Lora, seed: int = 0, held: WeightFormat = FLOAT32) -> Any:
    """A peft model whose adapter is as far from nothing as ``seed`` makes it."""
    model = add_adapter(load_policy(str(base), held=held), lora, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_A", "modules_to_save")):
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model


def save_tiny_adapter(
    folder: Path, base: Path, lora: Lora, seed: int = 0, held: WeightFormat = FLOAT32, named: str | None = None
) -> Path:
    """An adapter on the model folder ``base``, and its probe; ``named``: as what it names the base."""
    model = moved_adapter(base, lora, seed, held)
    save_adapter(model, folder, named or str(base))
    save_probe(model, load_chat(str(base), ChatSettings()), folder)
    return folder
