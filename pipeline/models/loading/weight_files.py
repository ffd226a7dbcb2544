"""Names and shapes of a model folder's tensors, from the headers of its safetensors files. Torch-free.

Reads no weights, so that a folder of many gigabytes is checked in a moment: files that an index names but that are not
there, files cut short, tensors that they lack.
"""

import json
import math
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError, first_lines
from pipeline.models.foreign import model_settings, refused

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]


def parameters_of(model: Path) -> int:
    """Number of parameters in the safetensors files that transformers reads of a model folder, from their headers."""
    total = 0
    for file in _read_files(model):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        total += sum(math.prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__")
    return total


def require_no_adapter_beside(folder: Path, where: str = "") -> None:
    """Raise ``UserError`` for a model folder that holds an adapter too: transformers would load both, vLLM one."""
    if (folder / "adapter_config.json").is_file() and (folder / "config.json").is_file():
        raise UserError(
            f"{where}{folder}: adapter_config.json beside config.json: a whole model and an adapter in one folder; "
            "remove adapter_config.json (and adapter_model.safetensors) if the adapter is merged into the weights, "
            "otherwise move both into a folder of their own for policy.adapter"
        )


def _read_files(folder: Path) -> list[Path]:
    """The files of weights that count: others may hold the same ones once more (``consolidated.safetensors``)."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        named = {folder / name for name in _index(folder / INDEX, "").values()}
        return sorted(file for file in named if file.is_file())
    return sorted(folder.glob("*.safetensors"))


def tensor_shapes(folder: Path, where: str = "") -> Shapes:
    """Return the shape of each tensor that transformers would read from ``folder``.

    Raises:
        UserError: beginning with ``where``: no weights, an index of files or tensors that are not there, or a file
            that is no safetensors file or is cut short.
    """
    if (folder / WHOLE).is_file():
        return _shapes(folder / WHOLE, where)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{where}{folder}: no {WHOLE} and no {INDEX} in this model folder (other formats and names are not read)"
        )
    named = _index(folder / INDEX, where)
    files = sorted(set(named.values()))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{where}{folder}: {len(absent)} of the {len(files)} files that {INDEX} names are not there:\n"
            f"{first_lines(absent)}"
        )
    found: Shapes = {}
    for name in files:
        found |= _shapes(folder / name, where)
    lost = [f"{tensor} in {file}" for tensor, file in sorted(named.items()) if tensor not in found]
    if lost:
        raise UserError(f"{where}{folder}: {INDEX} names {len(lost)} tensors that are not there:\n{first_lines(lost)}")
    return found


def _index(file: Path, where: str) -> dict[str, str]:
    """Read the file of each tensor."""
    named = model_settings(file).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(value, str) for value in named.values()):
        raise UserError(f"{where}{file}: weight_map must map names of tensors to names of files")
    outside = [value for value in named.values() if Path(value).name != value]
    if outside:
        raise UserError(f"{where}{file}: weight_map: {outside[0]!r} is not the name of a file in this folder")
    return named


def _shapes(file: Path, where: str) -> Shapes:
    with refused(f"{where}{file}: cannot be read as safetensors, or is cut short"):
        try:
            with safe_open(file, framework="numpy") as weights:
                return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(str(error)) from None
