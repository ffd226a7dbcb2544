"""Adapter folders as peft writes them, whoever did: read with care, and compared with their base. Torch-free."""

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
from pipeline.models.weights.adapter_base import require_same_model
from pipeline.models.weights.adapter_settings import BASE_NAMED, checked_settings, told_value

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file() and not (Path(path) / "config.json").is_file()


def base_of(path: str | Path) -> str:
    """Return the model folder (or hub name) under the adapter in ``path``; ``path`` itself if it is no adapter.

    A base that begins with a dot is relative to the adapter's folder, so that a run folder can be moved.
    """
    if not is_adapter(path):
        return str(path)
    file = Path(path) / ADAPTER_CONFIG
    named = model_settings(file).get(BASE_NAMED)
    # No part of a path is longer.
    if not isinstance(named, str) or not named or "\0" in named or max(map(len, named.split("/"))) > 255:
        raise UserError(f"{file}: {BASE_NAMED}: {told_value(named)}; must name the model under the adapter")
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
    return checked_settings(model_settings(file), where)


def adapter_rank(settings: Mapping[str, Any]) -> int:
    """Return the largest rank of an adapter with these settings."""
    patterns: dict[str, int] = settings.get("rank_pattern") or {}
    return max([int(settings["r"]), *patterns.values()])


def write_base(folder: Path, base: str) -> None:
    """Name ``base`` as the model under the adapter in ``folder``."""
    file = folder / ADAPTER_CONFIG
    settings = {**model_settings(file), BASE_NAMED: base}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True, default=sorted), encoding="utf-8")


def copy_adapter(source: str, folder: Path, base: str) -> None:
    """Copy the adapter in ``source`` into ``folder``, with only the settings that it is computed with, and ``base``."""
    plain = {**adapter_settings(source), "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain), encoding="utf-8")
    shutil.copyfile(Path(source) / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    write_base(folder, base)


def require_base(path: str, base: str, field: str = "policy.adapter") -> None:
    """Raise ``UserError`` if the adapter in ``path`` is not one of the model ``base``, by its name and its shapes.

    See ``require_same_model``. Shapes are compared if ``base`` is a folder.
    """
    adapter_settings(path, field)
    require_same_model(path, base_of(path), base, f"{field}: {path}")
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
        "dropout": (lora.dropout, settings.get("lora_dropout", 0.0)),
        "modules_to_save": ({*lora.modules_to_save}, {*(settings.get("modules_to_save") or ())}),
    }
    for name, (wanted, there) in asked.items():
        if name in lora.changed and wanted != there:
            kept = sorted(there) if isinstance(there, set) else there
            raise UserError(
                f"training.lora.{name}: {sorted(wanted) if isinstance(wanted, set) else wanted}, but the adapter in "
                f"{adapter}, which is trained on, has {kept}; allowed: {kept}, or nothing"
            )
    if "target_modules" in lora.changed and not _targets(adapter, settings, lora.target_modules):
        wanted = lora.target_modules if isinstance(lora.target_modules, str) else sorted(lora.target_modules)
        there = settings.get("target_modules")
        own = there if isinstance(there, str) else sorted({layer.rpartition(".")[2] for layer in _layers(adapter)})
        raise UserError(
            f"training.lora.target_modules: {wanted}, but the adapter in {adapter}, which is trained on, has {own}; "
            f"allowed: {own}, or nothing"
        )


def _layers(adapter: str | Path) -> set[str]:
    """Return the names of the layers that an adapter's weights are for."""
    names = shapes_in(Path(adapter) / ADAPTER_WEIGHTS)
    return {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names if ".lora_" in name}


def _targets(adapter: str | Path, settings: Mapping[str, Any], asked: tuple[str, ...] | str) -> bool:
    """Whether the layers of an adapter are those ``asked`` for: the same words, or names of the same layers."""
    there = settings.get("target_modules")
    if isinstance(asked, str) or isinstance(there, str):
        return asked == there
    layers = {f".{layer}" for layer in _layers(adapter)}
    ends = {f".{name}" for name in asked}
    return {*asked} == {*(there or ())} or (
        all(layer.endswith(tuple(ends)) for layer in layers)
        and all(any(layer.endswith(end) for layer in layers) for end in ends)
    )
