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


def require_unquantised(path: str | Path, field: str = "policy.path") -> None:
    """Raise ``UserError`` if the model folder's files hold quantised weights."""
    found = model_settings(Path(path) / "config.json").get("quantization_config")
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise UserError(
            f"{field}: {path}: its files hold quantised weights ({str(method)[:40]}), which can be neither trained nor "
            "merged into; allowed are the model's own weights in 16 or 32 bits, with policy.quantisation to hold them "
            "in 4 or 8 bits"
        )
