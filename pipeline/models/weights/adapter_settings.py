"""What an adapter_config.json says, whoever wrote it: each setting of its type, and nothing that is not computed here.

Torch-free. peft itself would import what some settings name; only the settings here reach it.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UserError

BASE_NAMED = "base_model_name_or_path"
# Of how the adapter came about, and of what is only read with other settings.
_WITHOUT_EFFECT = frozenset(
    {
        BASE_NAMED, "peft_type", "peft_version", "task_type", "revision", "inference_mode", "auto_mapping",
        "runtime_config", "qalora_group_size", "megatron_core", "init_lora_weights", "bias", "eva_config",
        "loftq_config", "corda_config", "lora_ga_config",
    }
)  # fmt: skip
# Initial weights that leave the base as it is; others (pissa, olora, corda, loftq, ...) subtract from it.
_INITIAL = (True, False, "gaussian", "eva", "orthogonal")
_FIXED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": _INITIAL, "inference_mode": (True, False),
}  # fmt: skip
# Characters of an expression.
_LONGEST = 1000
_CHANGED_BASE = (
    "; others leave a changed base behind: peft's save_pretrained(..., path_initial_model_for_weight_conversion=...) "
    "writes an adapter of the model itself"
)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_place(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_scale(value: object) -> bool:
    return type(value) in (int, float) and 0 < float(str(value)) < math.inf


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(str(value)) < 1


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _is_pattern(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _by_pattern(inner: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(_is_pattern(k) and inner(v) for k, v in value.items())


_NAMES = f"a list of names, or a regular expression of at most {_LONGEST:,} characters"
# Settings of peft's LoraConfig that decide what the adapter computes: what they must be, and how that is said.
_USED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "r": (_is_count, "a whole number from 1"),
    "lora_alpha": (_is_scale, "a number above 0"),
    "lora_dropout": (_is_share, "a number from 0 to below 1"),
    "target_modules": (lambda value: _is_pattern(value) or _are_names(value), _NAMES),
    "exclude_modules": (lambda value: _is_pattern(value) or _are_names(value), _NAMES),
    "use_rslora": (_is_truth, "true or false"),
    "use_dora": (_is_truth, "true or false"),
    "fan_in_fan_out": (_is_truth, "true or false"),
    "ensure_weight_tying": (_is_truth, "true or false"),
    "modules_to_save": (_are_names, "a list of names"),
    "target_parameters": (_are_names, "a list of names"),
    "rank_pattern": (_by_pattern(_is_count), "whole numbers from 1, by regular expressions"),
    "alpha_pattern": (_by_pattern(_is_scale), "numbers above 0, by regular expressions"),
    "layers_to_transform": (
        lambda value: _is_place(value) or (isinstance(value, list) and all(map(_is_place, value))),
        "a whole number from 0, or a list of such",
    ),
    "layers_pattern": (lambda value: _is_pattern(value) or _are_names(value), _NAMES),
}
_REQUIRED = ("r", "lora_alpha")


def checked_settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what an adapter with the settings ``given`` computes, as arguments of peft's ``LoraConfig``.

    Raises:
        UserError: beginning with ``where``: a setting of another type, or one that computes more than LoRA, rsLoRA or
            DoRA.
    """
    for name, allowed in _FIXED.items():
        value = given.get(name, allowed[0])
        # 1 is no truth, though equal to one.
        if not any(type(value) is type(one) and value == one for one in allowed):
            further = _CHANGED_BASE if name == "init_lora_weights" else ""
            raise UserError(f"{where}: {name}: {told_value(value)}; allowed: {', '.join(map(str, allowed))}{further}")
    unknown = next((name for name, value in given.items() if value and name not in {*_USED} | _WITHOUT_EFFECT), None)
    if unknown is not None:
        raise UserError(
            f"{where}: {unknown[:60]}: {told_value(given[unknown])}: not computed here; allowed are LoRA, rsLoRA and "
            "DoRA adapters, without this setting"
        )
    for name, (allowed_type, told) in _USED.items():
        value = given.get(name)
        if (value is None and name in _REQUIRED) or (value is not None and not allowed_type(value)):
            there = told_value(value) if name in given else "missing"
            raise UserError(f"{where}: {name}: {there}; must be {told}")
    found = {name: given[name] for name in _USED if given.get(name) is not None}
    if isinstance(found.get("target_modules"), str) and {"layers_to_transform", "layers_pattern"} & {*found}:
        raise UserError(
            f"{where}: target_modules: {told_value(found['target_modules'])}: a regular expression; allowed with "
            "layers_to_transform or layers_pattern: a list of names"
        )
    if found.get("layers_pattern") and "layers_to_transform" not in found:
        raise UserError(
            f"{where}: layers_pattern: {told_value(found['layers_pattern'])}; allowed with layers_to_transform"
        )
    return found


def told_value(value: object) -> str:
    """Return ``value`` for a message: its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
