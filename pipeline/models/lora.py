"""LoRA adapters: added fresh at the start of a round, merged when the policy is saved."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.models.architectures import outside_text

# Kernels of Mamba layers read the weights of these modules themselves, without an adapter; peft refuses most.
_FUSED = dict.fromkeys(
    ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "mamba", "mamba2", "nemotron_h", "zamba2"),
    ("out_proj", "conv1d", "dt_proj"),
) | {"jamba": ("dt_proj",)}
# Layers of transformers' own classes that give no more than their products.
_PLAIN = frozenset({"FalconLinear"})


def add_adapter(model: PreTrainedModel, settings: Lora, seed: int) -> Any:
    """Add a new low-rank adapter to ``model``; only the adapter is trainable (LoRA, arXiv:2106.09685).

    B starts at 0, so the policy starts as ``model``. Returns a peft model.

    Raises:
        UserError: no module of ``model`` has one of the names in ``target_modules``.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft scales by it and takes any number
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=_left_out(model, every=targets == "all-linear") or None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # Of transposed layers, which peft handles, and of experts' layers, for which peft itself adds the keys.
            warnings.filterwarnings("ignore", ".*(fan_in_fan_out|(rank|alpha)_pattern keys)")
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"training.lora.target_modules: {error}") from error


def _left_out(model: Any, *, every: bool) -> list[str]:
    """Names of modules that get no adapter: those that text does not pass; of ``every``, those that cannot have one."""
    beside = {module for part in outside_text(model) for module in part.modules()}
    fused = _FUSED.get(model.config.get_text_config().model_type, ()) if every else ()

    def is_out(name: str, module: nn.Module) -> bool:
        router = every and isinstance(module, nn.Linear) and _gives_more(type(module))
        return router or module in beside or name.rpartition(".")[2] in fused

    return [name for name, module in model.named_modules() if is_out(name, module)]


def _gives_more(kind: type[nn.Linear]) -> bool:
    """Whether a linear layer is one of transformers' routers, which give more than their products."""
    return kind.__module__.startswith("transformers.models.") and kind.__name__ not in _PLAIN


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Switch the adapter of the peft model ``model`` off within the context, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        model.train(training)


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merge the adapter into the weights and return the plain model; ``model`` itself if it has no adapter."""
    if isinstance(model, PreTrainedModel):
        return model
    merged: PreTrainedModel = model.merge_and_unload()
    return merged
