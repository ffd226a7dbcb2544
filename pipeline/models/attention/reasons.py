"""Why a model cannot take packed streams, in terms of its layers; told from its modules alone, without weights."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

# Parts of layers that mix tokens otherwise than by attention, by what their class is called in transformers. They read
# tokens in the order of the stream, so that a response would see its siblings.
_MIXERS = (
    ("mamba|bambamixer|falconh1mixer|state_?space", "keeps a recurrent state (a state-space layer)"),
    ("deltanet|deltaattention|kimidelta|gateddelta", "keeps a recurrent state (linear attention by a delta rule)"),
    ("lightningattention|linearattention|rwkv", "keeps a recurrent state (linear attention)"),
    ("mlstm|xlstm|recurrentblock|rglru", "keeps a recurrent state"),
    ("shortconv", "mixes neighbouring tokens by a convolution"),
    ("indexer|compressor", "selects the tokens that it sees by their place in the pass"),
)
# Kinds of layers in configs whose attention is told by their masks, or which do not mix tokens.
_KNOWN_KINDS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "moe", "mlp", "dense"}


def why_unlike_rows(model: Any) -> str | None:
    """Why packed streams would change the values of a transformers model, or of its decoder; None if nothing tells.

    Reads classes and config alone, so that a model on the device ``meta`` will do.
    """
    name, settings = type(model).__name__, model.config.get_text_config()
    for index, layer in enumerate(_layers(model)):
        for module in layer.modules():
            what = _mixing(type(module).__name__)
            if what is not None:
                return f"{name}: layer {index} {what}: {type(module).__name__}"
    kinds = vars(settings).get("layer_types") or ()
    for index, kind in enumerate(kinds):
        if kind not in _KNOWN_KINDS:
            return f"{name}: layer {index} is of the kind {kind}, for which no exact stream is known"
    if _has_alibi(settings):
        return f"{name}: attention is biased by the distance of places in the pass (ALiBi)"
    if not model._can_set_attn_implementation():
        return f"{name}: its attention is code of its own, not taken from transformers' registry"
    return None


def _layers(model: Any) -> Iterator[nn.Module]:
    """The layers of the deepest stack of a model without its encoders of images and sound."""
    decoder = model.get_decoder() if model.config.get_text_config() is not model.config else model
    stacks = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    yield from max(stacks, key=len, default=())


def _mixing(name: str) -> str | None:
    lowered = name.lower()
    return next((what for pattern, what in _MIXERS if re.search(pattern, lowered)), None)


def _has_alibi(settings: Any) -> bool:
    inner = vars(settings).get("attn_config")
    known = [vars(settings), vars(inner) if hasattr(inner, "__dict__") else (inner or {})]
    return settings.model_type == "bloom" or any(part.get("alibi") for part in known)
