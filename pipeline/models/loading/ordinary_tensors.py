"""The tensors of the commonest architectures, so that a sound folder is found to be whole without torch. Torch-free.

A folder that has others may be sound too: transformers knows old names, tied weights and buffers, and is asked.
"""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.models.loading.weight_files import Shapes

# A buffer that old folders hold and transformers computes itself.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
_NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "qwen2": ("input_layernorm", "post_attention_layernorm"),
    "qwen3": ("input_layernorm", "post_attention_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


def has_ordinary_tensors(settings: Mapping[str, Any], shapes: Shapes) -> bool:
    """Return whether ``shapes`` are surely all tensors of the model with this sound config.json, and no others."""
    wanted = ordinary_tensors(settings)
    if wanted is None:
        return False
    found = {name: shape for name, shape in shapes.items() if _COMPUTED.search(name) is None}
    tied = settings.get("tie_word_embeddings", False)
    if tied and "lm_head.weight" not in found:
        wanted.pop("lm_head.weight")
    return found == wanted


def ordinary_tensors(settings: Mapping[str, Any]) -> Shapes | None:
    """Return the tensors of Llama, Qwen 2, Qwen 3 and OLMo 2 by their config.json; None if it does not settle them."""
    kind, hidden, heads = (settings.get(name) for name in ("model_type", "hidden_size", "num_attention_heads"))
    vocabulary, layers, inner = (settings.get(n) for n in ("vocab_size", "num_hidden_layers", "intermediate_size"))
    groups, head = settings.get("num_key_value_heads"), settings.get("head_dim")
    if kind not in _NORMS or not (hidden and heads and vocabulary and layers and inner and groups):
        return None
    if head is None:
        # Qwen 3's heads have a size of their own.
        if kind == "qwen3":
            return None
        head = hidden // heads
    asks = head * heads
    keys = head * groups
    biased = bool(settings.get("attention_bias", False))
    found: Shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    sizes = {"self_attn.q_proj": (asks, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden)}
    sizes |= {"self_attn.o_proj": (hidden, asks), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    sizes |= {"mlp.down_proj": (hidden, inner)}
    of_heads = {"qwen3": {"q": (head,), "k": (head,)}, "olmo2": {"q": (asks,), "k": (keys,)}}.get(str(kind), {})
    for at in range(layers):
        layer = f"model.layers.{at}."
        for name, shape in sizes.items():
            found[f"{layer}{name}.weight"] = shape
            if _has_bias(str(kind), name, biased, bool(settings.get("mlp_bias", False))):
                found[f"{layer}{name}.bias"] = shape[:1]
        found |= {f"{layer}self_attn.{which}_norm.weight": shape for which, shape in of_heads.items()}
        found |= {f"{layer}{name}.weight": (hidden,) for name in _NORMS[str(kind)]}
    return found


def _has_bias(kind: str, name: str, of_attention: bool, of_mlp: bool) -> bool:
    if name.startswith("mlp."):
        return kind == "llama" and of_mlp
    return not name.endswith("o_proj") if kind == "qwen2" else of_attention
