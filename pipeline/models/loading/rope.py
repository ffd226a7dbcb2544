"""RoPE whose factors depend on the length of a pass, so that a row's values depend on its neighbours. Torch-free.

LongRoPE (arXiv:2402.13753) has two lists of factors and takes the second in passes beyond the length of pre-training;
dynamic NTK scaling changes the base in passes beyond the model's context. transformers looks at the longest row of
each pass, vLLM at its context (LongRoPE).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.models.foreign import model_settings

# "su" is the name of LongRoPE in the first folders of Phi-3.
_LONG, _DYNAMIC = ("longrope", "su"), ("dynamic",)


def steady_length(text: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return up to how many tokens a pass has the same factors as a shorter one, and the kind of RoPE.

    ``text``: the config of the language model, as in config.json. None if the factors never change.
    """
    context = text.get("max_position_embeddings")
    found: list[tuple[int, str]] = []
    for part in _ropes(text):
        kind = part.get("rope_type", part.get("type"))
        limit = context
        if kind in _LONG:
            limit = part.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
        elif kind not in _DYNAMIC:
            continue
        if isinstance(limit, int) and (kind in _DYNAMIC or not isinstance(context, int) or limit < context):
            found.append((limit, "longrope" if kind in _LONG else str(kind)))
    return min(found, default=None)


def text_settings(folder: Path) -> dict[str, Any]:
    """Return the config of the language model in a model folder. Raises ``UserError`` if it cannot be read."""
    plain = model_settings(folder / "config.json")
    text = plain.get("text_config")
    return text if isinstance(text, dict) else plain


def require_steady_rope(where: str, text: Mapping[str, Any], longest: int, allowed: str) -> None:
    """Raise ``UserError`` if passes of ``longest`` tokens have other factors than short ones.

    ``where``: begins the message. ``allowed``: the settings that may have the limit at most.
    """
    found = steady_length(text)
    if found is not None and found[0] < longest:
        limit, kind = found
        raise UserError(
            f"{where}: its positions are scaled otherwise in passes of more than {limit} tokens (RoPE {kind!r}), so "
            f"that a row's values would depend on its neighbours, but rows may have {longest}; allowed are {limit} at "
            f"most for {allowed}"
        )


def rope_note(folder: Path) -> str:
    """Say, for an engine whose values are not the trainer's, how RoPE may be the cause; empty if it cannot."""
    found = steady_length(text_settings(folder))
    if found is None:
        return ""
    return (
        f". This model's positions are scaled otherwise beyond {found[0]} tokens (RoPE {found[1]!r}): the trainer "
        "computes with the factors of short rows, and an engine whose context is longer may compute with the others; "
        f"start it with a context of {found[0]} tokens at most (sampler.context; vllm serve --max-model-len)"
    )


def _ropes(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the RoPE settings of a language model: one for all layers, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name)
        if isinstance(rope, dict):
            yield rope
            yield from (part for part in rope.values() if isinstance(part, dict))
