"""Adapter folders as peft writes them, whoever did: read with care, and compared with their base. Torch-free.

peft itself would import what some settings of adapter_config.json name; only the settings here reach it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.models.foreign import model_settings
from pipeline.models.loading.weight_files import tensor_shapes

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "base_model_name_or_path"
# Settings of peft's LoraConfig that decide what the adapter computes.
_USED = frozenset(
    {
        "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "use_dora",
        "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
        "target_parameters", "ensure_weight_tying",
    }
)  # fmt: skip
# Of how the adapter came about, and of what is only read with other settings.
_WITHOUT_EFFECT = frozenset(
    {
        _BASE, "peft_type", "peft_version", "task_type", "revision", "inference_mode", "auto_mapping", "runtime_config",
        "qalora_group_size", "megatron_core", "init_lora_weights", "bias",
    }
)  # fmt: skip
# Initial weights that leave the base as it is; others (pissa, olora, corda, loftq, ...) subtract from it.
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file() and not (Path(path) / "config.json").is_file()


def base_of(path: str | Path) -> str:
    """Return the model folder (or hub name) under the adapter in ``path``; ``path`` itself if it is no adapter.

    A base that begins with a dot is relative to the adapter's folder, so that a run folder can be moved.
    """
    if not is_adapter(path):
        return str(path)
    named = model_settings(Path(path) / ADAPTER_CONFIG).get(_BASE)
    if not isinstance(named, str) or not named:
        raise UserError(f"{Path(path) / ADAPTER_CONFIG}: {_BASE}: {named!r}; must name the model under the adapter")
    return os.path.normpath(Path(path) / named) if named.startswith(".") else named


def adapter_settings(path: str | Path, field: str = "") -> dict[str, Any]:
    """Return what the adapter in ``path`` computes, as arguments of peft's ``LoraConfig``.

    Raises:
        UserError: no adapter there, or one that computes more than LoRA, rsLoRA or DoRA; begins with ``field``.
    """
    file = Path(path) / ADAPTER_CONFIG
    where = f"{field}: {file}" if field else str(file)
    if not file.is_file() or not (Path(path) / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{where}: no adapter here; a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} is allowed")
    given = model_settings(file)
    fixed: dict[str, tuple[object, ...]] = {
        "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": _INITIAL, "inference_mode": (True, False),
    }  # fmt: skip
    for name, allowed in fixed.items():
        if given.get(name, allowed[0]) not in allowed:
            shown = ", ".join(map(str, allowed))
            raise UserError(f"{where}: {name}: {str(given[name])[:60]!r}; allowed: {shown}")
    unknown = [name for name, value in given.items() if value and name not in _USED | _WITHOUT_EFFECT]
    if unknown:
        raise UserError(f"{where}: {unknown[0]}: not computed here; allowed are LoRA, rsLoRA and DoRA adapters")
    rank = given.get("r")
    if type(rank) is not int or rank < 1:
        raise UserError(f"{where}: r: {rank!r}; must be a whole number from 1")
    return {name: value for name, value in given.items() if name in _USED and value is not None}


def adapter_rank(settings: Mapping[str, Any]) -> int:
    """Return the largest rank of an adapter with these settings."""
    patterns: dict[str, int] = settings.get("rank_pattern") or {}
    return max([int(settings["r"]), *patterns.values()])


def write_base(folder: Path, base: str) -> None:
    """Name ``base`` as the model under the adapter in ``folder``."""
    file = folder / ADAPTER_CONFIG
    settings = {**model_settings(file), _BASE: base}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True, default=sorted), encoding="utf-8")


def copy_adapter(source: str, folder: Path, base: str) -> None:
    """Copy the adapter in ``source`` into ``folder``, with only the settings that it is computed with, and ``base``."""
    plain = {**adapter_settings(source), "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain), encoding="utf-8")
    shutil.copyfile(Path(source) / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    write_base(folder, base)


def require_base(path: str, base: str, field: str = "policy.adapter") -> None:
    """Raise ``UserError`` if the adapter in ``path`` is not one of the model ``base``, by its name and its shapes.

    Names are the same if they are, or if they end alike: people keep a hub model under its own name. A snapshot in the
    hub's cache has the name of its model. Shapes are compared if ``base`` is a folder.
    """
    adapter_settings(path, field)
    named = base_of(path)
    if not (_same_folder(named, base) or _names(named) & _names(base)):
        raise UserError(
            f"{field}: {path}: an adapter of {named[:200]!r}, but policy.path is {base!r}; allowed are adapters of "
            f"that model (if it is the same under another name, write it as {_BASE} into its {ADAPTER_CONFIG})"
        )
    if not Path(base).is_dir():
        return
    weights, whole = shapes_in(Path(path) / ADAPTER_WEIGHTS), tensor_shapes(Path(base), "policy.path: ")
    for name, shape in weights.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        own = whole.get(f"{module}.weight")
        if own is None or len(own) != 2 or len(shape) != 2 or part not in ("A.weight", "B.weight"):
            continue
        # Transposed layers hold [in, out].
        wide = shape[1] if part == "A.weight" else shape[0]
        if wide not in own:
            raise UserError(
                f"{field}: {path}: {name} is {shape[0]} x {shape[1]}, but {module} of policy.path ({base}) is "
                f"{own[0]} x {own[1]}; allowed are adapters of that model"
            )


def _same_folder(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _names(path: str) -> set[str]:
    """Return the last part of a path or hub name, and the name of the model whose snapshot a hub cache keeps there."""
    parts = Path(path).parts
    cached = {part.rpartition("--")[2] for part in parts if part.startswith("models--")}
    return {name.lower() for name in {*parts[-1:], *cached}}


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, by name, from its header alone.

    Raises ``UserError`` if it cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not readable weights: {error}") from None


def require_shape_asked(adapter: str | Path, lora: Lora) -> None:
    """Raise ``UserError`` if ``lora`` asks for another adapter than is trained on; what it leaves open is as there."""
    settings = adapter_settings(adapter)
    asked = {
        "rank": (lora.rank, settings["r"]),
        "alpha": (lora.alpha, settings.get("lora_alpha")),
        "rslora": (lora.rslora, bool(settings.get("use_rslora"))),
        "dora": (lora.dora, bool(settings.get("use_dora"))),
        "modules_to_save": ({*lora.modules_to_save}, {*(settings.get("modules_to_save") or ())}),
    }
    for name, (wanted, there) in asked.items():
        if name in lora.changed and wanted != there:
            shown = sorted(there) if isinstance(there, set) else there
            raise UserError(
                f"training.lora.{name}: {sorted(wanted) if isinstance(wanted, set) else wanted}, but the adapter in "
                f"{adapter}, which is trained on, has {shown}; allowed: {shown}, or nothing"
            )
