"""Models of any architecture, made so that log-probs are exact: nothing random, all of attention, all weights."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

from pipeline.models.foreign import refused
from pipeline.models.output_head import FINAL_CAP, text_decoder

_RANDOM = re.compile("drop|jitter")
# SparseMixer (arXiv:2310.00811) draws experts at random in training mode, and in both modes leaves out those that are
# below the best by twice this "noise": a threshold, without which the model is another one.
_THRESHOLD = {"phimoe": "router_jitter_noise"}
# The loss of routers reads attention masks, which streams of several rows do not have.
_ROUTERS = "output_router_logits"


def switch_noise_off(settings: Any) -> None:
    """Switch off what makes two passes of a model differ: dropout and noise, also in the configs of its parts."""
    for part in _parts(settings):
        for name, value in vars(part).items():
            if _is_noise(name, value) and name != _THRESHOLD.get(part.model_type):
                setattr(part, name, type(value)())


@contextmanager
def as_written(settings: Any, source: str) -> Iterator[None]:
    """Give ``settings`` the noise back that the config of the folder (or hub name) ``source`` has; off again after."""
    written = type(settings).from_pretrained(source, trust_remote_code=False)
    for ours, theirs in zip(_parts(settings), _parts(written), strict=False):
        for name, value in vars(theirs).items():
            if _is_noise(name, value):
                setattr(ours, name, value)
    try:
        yield
    finally:
        switch_noise_off(settings)


def _parts(settings: Any) -> Iterator[Any]:
    """Yield a config and the configs in it, always in one order."""
    yield settings
    for name in sorted(vars(settings)):
        part = vars(settings)[name]
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def _is_noise(name: str, value: object) -> bool:
    return value is True if name == _ROUTERS else isinstance(value, float) and _RANDOM.search(name) is not None


def _keep_in_evaluation(module: nn.Module, given: tuple[Any, ...]) -> None:
    module.training = False


def auto_class(settings: Any) -> Any:
    """Return the class of transformers that loads a language model with this config, with all of its weights.

    ``AutoModelForCausalLM`` would load the text part of some image-text models alone, and refuses others.
    """
    wrapper = type(settings) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and settings.get_text_config() is not settings
    return AutoModelForImageTextToText if wrapper else AutoModelForCausalLM


def make_exact(model: Any) -> PreTrainedModel:
    """Make the values of a loaded ``model`` exact, and only its language model trainable; in evaluation mode.

    Raises:
        UserError: its config could not be saved after training.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if isinstance(module, PhimoeTopKRouter):
            module.register_forward_pre_hook(_keep_in_evaluation)
    exact_attention(model)
    for module in outside_text(model):
        module.requires_grad_(False)
    with TemporaryDirectory() as folder, refused("its config cannot be saved after training"):
        model.config.save_pretrained(Path(folder))
    prepared: PreTrainedModel = model.train(False)
    return prepared


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold the weights of ``model`` in ``dtype``, as if it had been loaded so; ``Module.to`` would do more.

    What the model computes for itself stays: frequencies of RoPE, which 16 bits would round, and Llama 4's complex
    ones, which would lose their imaginary part. So do weights that transformers holds in float32 in any dtype.
    """
    kept = tuple(model._keep_in_fp32_modules_strict or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)


def exact_attention(model: Any) -> None:
    """Give ``model`` attention that computes a cap on its products, if its layers ask for one: PyTorch's does not."""
    if attention_cap(model.config) and model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")


def attention_cap(settings: Any) -> bool:
    """Whether attention of a model with this config caps its products (Gemma 2, arXiv:2408.00118, section 2)."""
    caps = {name for name, value in settings.get_text_config().to_dict().items() if "softcap" in name and value}
    return bool(caps - {FINAL_CAP})


def outside_text(model: Any) -> list[nn.Module]:
    """Return the outermost modules of an image-text model that take no part in text alone; none of other models."""
    if model.config.get_text_config() is model.config:
        return []
    text = {text_decoder(model), model.get_output_embeddings(), model.get_input_embeddings()}
    return list(_outside(model, {module for part in text if part is not None for module in part.modules()}))


def _outside(module: nn.Module, text: set[nn.Module]) -> Iterator[nn.Module]:
    if module in text:
        return
    if text.isdisjoint(module.modules()):
        yield module
        return
    for child in module.children():
        yield from _outside(child, text)
