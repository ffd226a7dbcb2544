"""Prompts as an image policy is told them, and as token ids on their way to its engine. Torch-free.

A class is its number, a text the bytes of its UTF-8; a policy that is told nothing gets a 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from pipeline.errors import UserError
from pipeline.models.foreign import model_settings
from pipeline.models.weights.adapter_folder import base_of
from pipeline.types import Prompt

Told = Literal["none", "class", "text"]
_NOTHING = (0,)
_OF_CLASSES = ("DiTTransformer2DModel",)


def network_settings(folder: str | Path) -> Mapping[str, JsonValue]:
    """Return the config of the network of the policy in ``folder`` (or under the adapter there); empty without one."""
    base = Path(base_of(folder))
    found = [base / name / "config.json" for name in ("unet", "transformer")]
    return next((model_settings(file) for file in found if file.is_file()), {})


def told_in(folder: str | Path) -> Told:
    """What the policy in ``folder`` (or under the adapter there) is told, by its network's config."""
    settings = network_settings(folder)
    kind = settings.get("_class_name")
    if kind is None:
        raise UserError(
            f"{base_of(folder)}: no network; allowed: a folder in diffusers' layout, with unet or transformer"
        )
    if kind == "UNet2DModel":
        return "none" if settings.get("num_class_embeds") is None else "class"
    return "class" if kind in _OF_CLASSES else "text"


def condition_told(prompt: Prompt, told: Told) -> str | int | None:
    """What of ``prompt`` a policy is told. Raises ``UserError`` if it names no class where there must be one."""
    said = prompt.messages[-1].content
    if told == "none":
        return None
    if told == "text":
        return said
    named = said if prompt.answer is None else prompt.answer
    if not named.strip().isdecimal():
        raise UserError(
            f"prompts: {said!r} names no class; allowed for a class-conditional policy: its number, as the prompt or "
            "in columns.answer"
        )
    return int(named)


def ids_of_prompt(prompt: str | int | None, told: Told) -> tuple[int, ...]:
    """Return what a policy is told as ids."""
    if told == "none" or prompt is None:
        return _NOTHING
    return (int(prompt),) if told == "class" else tuple(str(prompt).encode()) or _NOTHING


def prompt_of_ids(ids: Sequence[int], told: Told) -> str | int | None:
    """Return what ``ids_of_prompt`` made ids of."""
    if told == "none":
        return None
    if told == "class":
        return ids[0]
    return "" if tuple(ids) == _NOTHING else bytes(ids).decode()
