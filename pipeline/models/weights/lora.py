"""LoRA adapters: made, loaded, switched, saved and merged; the weights under them are never changed in place."""

import copy
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from pipeline.config import Lora
from pipeline.errors import UserError, first_lines
from pipeline.models.architectures import auto_class, outside_text, round_weights
from pipeline.models.foreign import refused
from pipeline.models.output_head import under_adapter
from pipeline.models.weights.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_settings,
    shapes_in,
    write_base,
)

# Kernels of Mamba layers read the weights of these modules themselves, without an adapter; peft refuses most.
_FUSED = dict.fromkeys(
    ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "mamba", "mamba2", "nemotron_h", "zamba2"),
    ("out_proj", "conv1d", "dt_proj"),
) | {"jamba": ("dt_proj",)}
# Layers of transformers' own classes that give no more than their products.
_PLAIN = frozenset({"FalconLinear"})
# peft's names of the adapter that is trained, and of a frozen one that serves as the reference.
TRAINED_ADAPTER, REFERENCE_ADAPTER = "default", "reference"


def plain_model(model: Any) -> Any:
    """The model inside an adapter wrapper, or ``model`` itself."""
    bare = isinstance(model, PreTrainedModel) or not hasattr(model, "get_base_model")
    return model if bare else model.get_base_model()


def switch_recomputation(model: Any, *, on: bool) -> None:
    """Switch gradient checkpointing of a transformers or diffusers ``model``, perhaps with an adapter, on or off."""
    plain: Any = plain_model(model)
    if not isinstance(plain, PreTrainedModel):
        (plain.enable_gradient_checkpointing if on else plain.disable_gradient_checkpointing)()
        return
    switch: Any = plain
    if on:
        switch.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        switch.gradient_checkpointing_disable()


def adapter_arguments(model: nn.Module, settings: Lora) -> dict[str, Any]:
    """Return peft's arguments for an adapter of ``model``, without the modules that it targets.

    Raises:
        UserError: no module of ``model`` has one of the names in ``modules_to_save``.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in settings.modules_to_save:
        if name not in names:
            raise UserError(f"training.lora.modules_to_save: {name!r}: the model has no module of that name")
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "modules_to_save": list(settings.modules_to_save) or None,
    }


def add_adapter(model: PreTrainedModel, settings: Lora, seed: int) -> Any:
    """Add a new low-rank adapter to ``model``; only the adapter is trainable (LoRA, arXiv:2106.09685).

    B starts at 0, so the policy starts as ``model``. Its weights are float32. Returns a peft model.

    Raises:
        UserError: no module of ``model`` has one of the names in ``target_modules`` or ``modules_to_save``.
    """
    pattern = isinstance(settings.target_modules, str)
    targets = settings.target_modules if pattern else list(settings.target_modules)
    arguments = adapter_arguments(model, settings) | {
        "target_modules": targets,
        "exclude_modules": _left_out(model, every=targets == "all-linear") or None,
    }
    torch.manual_seed(seed)
    try:
        return with_adapter(model, arguments, TRAINED_ADAPTER)
    except ValueError as error:
        raise UserError(f"training.lora.target_modules: {error}") from error


def load_adapter(model: Any, folder: str | Path, *, trained: bool, name: str = TRAINED_ADAPTER) -> Any:
    """Add the adapter in ``folder`` to ``model``, under ``name``; its weights are float32, frozen unless ``trained``.

    Raises:
        UserError: it cannot be read, or is not one of this model.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    adapted = _made_for(model, folder, name)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable weights: {error}") from None
    own = _tensors(adapted, name)
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)
    if not trained:
        for parameter in _parameters(adapted, name):
            parameter.requires_grad_(False)
    return adapted


def _made_for(model: Any, folder: str | Path, name: str, field: str = "") -> Any:
    """Add an adapter as the one in ``folder`` to ``model``, without its weights.

    Raises:
        UserError: beginning with ``field``: the file there holds other tensors than the model has for it.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    settings, where = adapter_settings(folder, field), f"{field}: {file}" if field else str(file)
    shapes = shapes_in(file)
    try:
        adapted = with_adapter(model, settings, name)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError, re.error) as error:
        raise UserError(f"{where}: not an adapter of this model: {error}") from None
    own = {key: tuple(tensor.shape) for key, tensor in _tensors(adapted, name).items()}
    differing = sorted(key for key in {*own} | {*shapes} if own.get(key) != shapes.get(key))
    if differing:
        raise UserError(
            f"{where}: not an adapter of this model; {len(differing)} tensors are missing, unknown or of another "
            f"shape (allowed are those that its {ADAPTER_CONFIG} gives this model):\n{first_lines(differing)}"
        )
    return adapted


def require_fitting(adapter: str, base: str, field: str = "policy.adapter", *, trust_remote_code: bool = False) -> None:
    """Raise ``UserError`` if the adapter in a folder is not one of the model in the folder ``base``; loads no weights.

    peft makes it on a model without weights, and the names and shapes of all tensors are compared.
    """
    with refused(f"{base}: transformers cannot make the model of its config.json"):
        settings = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        make: Any = auto_class(settings).from_config
        with torch.device("meta"):
            model = make(settings, trust_remote_code=trust_remote_code)
    with torch.device("meta"), refused(f"{field}: {adapter}: peft cannot make this adapter on {base}"):
        _made_for(model, adapter, TRAINED_ADAPTER, field)


def add_reference(model: Any, folder: str | Path) -> None:
    """Add the adapter in ``folder`` to the peft model ``model``, frozen, as its reference; see ``reference_on``."""
    load_adapter(model, folder, trained=False, name=REFERENCE_ADAPTER)
    model.set_adapter(TRAINED_ADAPTER)


def add_copied_reference(model: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Add a frozen copy of the trained adapter of ``model`` as its reference; return (copy, trained) by name."""
    model.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[TRAINED_ADAPTER]))
    model.set_adapter(TRAINED_ADAPTER)
    pairs = {}
    trained = dict(model.named_parameters())
    for name, own in trained.items():
        parts = name.split(".")
        if REFERENCE_ADAPTER in parts:
            source = trained[".".join(TRAINED_ADAPTER if part == REFERENCE_ADAPTER else part for part in parts)]
            own.data = source.detach().clone()
            pairs[name] = (own.requires_grad_(False), source)
    return pairs


def drop_reference(model: Any) -> None:
    """Remove the adapter of ``add_copied_reference``."""
    model.delete_adapter(REFERENCE_ADAPTER)


def with_adapter(model: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """Add an adapter with peft's ``arguments`` under ``name``; its weights are float32. Returns a peft model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**arguments, task_type="CAUSAL_LM" if isinstance(plain_model(model), PreTrainedModel) else None)
    with warnings.catch_warnings():
        # Of transposed layers, which peft handles; of experts' layers, for which peft itself adds the keys; of tied
        # embeddings, of which each is then trained, and merged, alone.
        warnings.filterwarnings("ignore", ".*(fan_in_fan_out|(rank|alpha)_pattern keys|tie_word_embeddings)")
        if plain_model(model) is model:
            adapted = get_peft_model(model, config, adapter_name=name)
        else:
            adapted = model
            adapted.add_adapter(name, config)
    for parameter in _parameters(adapted, name):
        # Of 16-bit models, modules that are trained whole are copied as they were.
        parameter.data = parameter.data.float()
    return adapted


def _parameters(model: Any, name: str) -> list[nn.Parameter]:
    return [parameter for place, parameter in model.named_parameters() if name in place.split(".")]


def _tensors(model: Any, name: str) -> dict[str, Tensor]:
    """Return the adapter's own tensors under the names that peft saves them by."""
    from peft import get_peft_model_state_dict

    # Embeddings are saved with the adapter only if they are trained.
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return found


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Write the trained adapter of ``model`` as peft does, in float32; ``base``: the model under it (``base_of``)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().float().contiguous().cpu() for name, tensor in _tensors(model, TRAINED_ADAPTER).items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings = model.peft_config[TRAINED_ADAPTER]
    training, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = training
    write_base(folder, base)


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
def reference_on(model: Any) -> Iterator[None]:
    """Make the peft model ``model`` its own reference within the context, in evaluation mode.

    That is the adapter of ``add_reference`` if it has one, else the weights under its adapter.
    """
    training = model.training
    model.eval()
    try:
        if REFERENCE_ADAPTER in model.peft_config:
            model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        if REFERENCE_ADAPTER in model.peft_config:
            model.set_adapter(TRAINED_ADAPTER)
        model.train(training)


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merge the adapter into the weights and return the plain model, in the dtype that its weights are held in.

    Returns ``model`` itself if it has no adapter. Never merges into quantised weights, which would round it away.
    """
    if isinstance(model, PreTrainedModel):
        return model
    base = model.get_base_model()
    if "is_quantized" in vars(base):
        raise UserError(
            "policy.path: nothing is merged into quantised weights; allowed are the model's own in 16 or 32 bits"
        )
    dtype = base.get_input_embeddings().weight.dtype
    _untie(base)
    merged: PreTrainedModel = model.merge_and_unload()
    # Modules that were trained whole are float32.
    round_weights(merged, dtype)
    return merged


def _untie(base: Any) -> None:
    """Give the output head weights of its own, if it shares the embeddings' and an adapter changes one of the two."""
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    plain = [under_adapter(end) for end in ends]
    if plain[0].weight.data_ptr() != plain[1].weight.data_ptr() or all(map(operator.is_, ends, plain)):
        return
    plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
    for settings in (base.config, base.config.get_text_config()):
        settings.tie_word_embeddings = False
