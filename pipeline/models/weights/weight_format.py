"""How weights that are not trained are held: in which precision, or in how few bits. Torch-free."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from pipeline.config import PretrainedPolicy, Quantisation, RunConfig
from pipeline.errors import UserError
from pipeline.models.foreign import model_settings
from pipeline.models.weights.adapter_folder import base_of

WeightDtype = Literal["float32", "bfloat16", "float16"]
# Of matrix products.
Precision = Literal["float32", "bfloat16"]
_STORED: dict[str, WeightDtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How frozen weights are held.

    Attributes:
        dtype: of all weights that ``quantisation`` leaves alone.
        quantisation: of linear layers; None: none.
    """

    dtype: WeightDtype = "float32"
    quantisation: Quantisation | None = None

    def passes(self, wanted: Precision) -> Precision:
        """Return the precision of matrix products if ``wanted`` is asked for: bfloat16 with weights of fewer bits."""
        held = self.quantisation
        fewer = held is not None and held.bits == 4 and held.compute_dtype != "float32"
        return "bfloat16" if fewer or self.dtype != "float32" else wanted

    @property
    def title(self) -> str:
        """A name for keys and people, such as ``bfloat16`` or ``nf4 in bfloat16``."""
        held = self.quantisation
        if held is None:
            return self.dtype
        name = "int8" if held.bits == 8 else f"{held.type}{' double' * held.double} by {held.compute_dtype}"
        return f"{name} in {self.dtype}"


FLOAT32 = WeightFormat()


def frozen_format(config: RunConfig, path: str | Path) -> WeightFormat:
    """Return how the run holds weights of its policies that it does not train; ``path``: of its start policy."""
    policy = config.policy
    if not isinstance(policy, PretrainedPolicy):
        return FLOAT32
    if policy.dtype != "auto":
        return WeightFormat(policy.dtype, policy.quantisation)
    if not held_as_stored(config):
        return FLOAT32
    return WeightFormat(stored_dtype(base_of(path)), policy.quantisation)


def held_as_stored(config: RunConfig) -> bool:
    """Whether the start policy's files say how frozen weights are held."""
    policy, training = config.policy, config.training
    # A reference must be as exact as the passes that start at it.
    exact = training.lora is None and training.dtype == "float32" and training.weights == "float32"
    return isinstance(policy, PretrainedPolicy) and policy.dtype == "auto" and not exact


def stored_dtype(path: str | Path) -> WeightDtype:
    """Return the precision that the model folder's files hold; what is not one of three counts as float32."""
    settings = model_settings(Path(path) / "config.json")
    text = settings.get("text_config")
    for given in (settings, text if isinstance(text, dict) else {}):
        match given.get("dtype") or given.get("torch_dtype"):
            case "bfloat16":
                return "bfloat16"
            case "float16":
                return "float16"
            case "float32":
                return "float32"
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    return _STORED.get(tensors.get_slice(name).get_dtype(), "float32")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: not readable weights: {error}") from None
    return "float32"


def require_quantiser(field: str = "policy.quantisation") -> None:
    """Raise ``UserError`` if the library that quantises is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{field}: needs bitsandbytes, which is not installed; pip install 'prefloop[low-bit]', or set it to null"
        )


# Settings of transformers that load such files in 16 bits.
_UNPACKED = {
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(dequantize=True)",
}


def require_unquantised(path: str | Path, field: str = "policy.path") -> None:
    """Raise ``UserError`` if the model folder's files hold quantised weights."""
    found = model_settings(Path(path) / "config.json").get("quantization_config")
    if found:
        method = str(found.get("quant_method") if isinstance(found, dict) else found)[:40]
        raise UserError(
            f"{field}: {path}: its files hold quantised weights ({method}), which can be neither trained nor merged "
            "into; allowed are the model's own weights in 16 or 32 bits, with policy.quantisation to hold them in 4 or "
            f"8 bits; {_way_to_16_bits(method)}"
        )


def _way_to_16_bits(method: str) -> str:
    if method in _UNPACKED:
        settings = _UNPACKED[method]
        return (
            "transformers writes a copy in 16 bits: AutoModelForCausalLM.from_pretrained(..., dtype=torch.bfloat16, "
            f"quantization_config={settings}).save_pretrained(FOLDER), and the tokenizer's save_pretrained(FOLDER)"
        )
    if method == "bitsandbytes":
        return "name the model that this one was made from (or save what its dequantize() of transformers gives)"
    return "name the model that this one was made from, which the hub's page of this one tells"
