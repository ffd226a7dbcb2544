"""Frozen weights in memory: loaded in the precision, or in the few bits, of a ``WeightFormat``, with no wider copy."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from pipeline.config import Quantisation
from pipeline.errors import UserError
from pipeline.models.architectures import auto_class
from pipeline.models.foreign import refused
from pipeline.models.weights.weight_format import WeightFormat, require_quantiser

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# bitsandbytes' parameters.
_FEWER_BITS = ("Params4bit", "Int8Params")


def loading_options(held: WeightFormat) -> dict[str, Any]:
    """Return arguments of ``from_pretrained`` that load weights as ``held`` says.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"dtype": TORCH_DTYPES[held.dtype]}
    if held.quantisation is None:
        return options
    require_quantiser()
    # It says on every start that it has no faster kernels for CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return {**options, "quantization_config": _bitsandbytes(held.quantisation)}


def _bitsandbytes(settings: Quantisation) -> Any:
    from transformers import BitsAndBytesConfig

    untyped: Any = BitsAndBytesConfig
    if settings.bits == 8:
        return untyped(load_in_8bit=True)
    return untyped(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type,
        bnb_4bit_use_double_quant=settings.double,
        bnb_4bit_compute_dtype=TORCH_DTYPES[settings.compute_dtype],
    )


def require_linear_layers(path: str, field: str = "policy.quantisation", *, trust_remote_code: bool = False) -> None:
    """Raise ``UserError`` if the model of the folder's config.json has no linear layer but its output head."""
    with refused(f"{path}: transformers cannot make the model of its config.json"):
        settings = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            make: Any = auto_class(settings).from_config
            model = make(settings, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    if not any(isinstance(module, nn.Linear | Conv1D) and module is not head for module in model.modules()):
        raise UserError(
            f"{field}: {path}: its model ({settings.model_type}) has no linear layers to quantise but its output head; "
            "allowed: null"
        )


def make_steady(model: nn.Module, held: WeightFormat) -> None:
    """Make quantised layers of ``model`` compute the same in training, in scoring and beside any other rows."""
    if held.quantisation is None:
        return
    if held.quantisation.bits == 8:
        from pipeline.models.weights.int8_layers import weights_only

        for module in model.modules():
            weights_only(module)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights for some CPUs at their first pass in evaluation: they then give other
        # values, and no gradient.
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def holds_fewer_bits(model: nn.Module) -> bool:
    """Return whether products with ``model``'s frozen weights are of 16 bits, whatever passes are asked for."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                continue
            kind = type(parameter).__name__
            if kind not in _FEWER_BITS:
                if parameter.is_floating_point() and parameter.dtype.itemsize == 2:
                    return True
            elif kind == "Params4bit" and vars(module).get("compute_dtype") != torch.float32:
                return True
    return False


def passes_as_held(model: nn.Module) -> torch.autocast:
    """Compute passes of a transformers model in 16 bits if it ``holds_fewer_bits``, whatever float32 is among them.

    An adapter's weights are float32, and so are modules that are trained whole, also before a layer of 16 bits.
    """
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=holds_fewer_bits(model))


def held_bits(model: nn.Module) -> int | None:
    """Return the bits of ``model``'s quantised layers; None without any."""
    kinds = {type(parameter).__name__ for parameter in model.parameters()}
    return 4 if "Params4bit" in kinds else 8 if "Int8Params" in kinds else None


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of ``model``'s parameters and buffers in memory; storage that several share counts once.

    Scales of quantised weights are counted too.
    """
    storages: dict[int, int] = {}
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for part in (*own, *(scale for tensor in own for scale in _scales(tensor)), *_int8_state(module)):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _scales(tensor: torch.Tensor) -> list[torch.Tensor]:
    state: Any = vars(tensor).get("quant_state")
    if state is None:
        return []
    inner = (state.offset, state.state2.absmax, state.state2.code) if state.nested else ()
    return [state.absmax, state.code, *inner]


def _int8_state(module: nn.Module) -> list[torch.Tensor]:
    state: Any = vars(module).get("state")
    parts = [] if state is None or type(state).__name__ != "MatmulLtState" else [state.CB, state.SCB]
    return [part for part in parts if part is not None]
