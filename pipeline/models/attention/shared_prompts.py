"""Attention over packed streams: exact, tree by tree, for models that take attention from transformers' registry.

Only attention knows about trees; the rest of the model runs on the stream's N tokens as they are.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.models.attention.blocks import Layout, attend_in_blocks, layout
from pipeline.models.attention.flex import attend_flexibly, block_mask
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.spans import Parts, attend_in_spans, parts

_NAME = "prefloop_shared"
# Arguments with which layers ask for what is not computed here, and which SDPA ignores.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")
# Largest difference of the trial's logits, in their standard deviations.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclass(frozen=True)
class Shared:
    """A packed stream's layout for attention, in the form that each device needs; computed once for all layers."""

    packed: Packed

    @cached_property
    def parts(self) -> Parts:
        """For CPU."""
        return parts(self.packed)

    @cached_property
    def block_mask(self) -> BlockMask:
        """For CUDA."""
        return block_mask(self.packed)

    @cached_property
    def layout(self) -> Layout:
        """For any device."""
        return layout(self.packed)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: Shared | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in the form of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [B, heads, T, D]; ``key`` and ``value`` may have fewer heads, a divisor.
        attention_mask: as transformers makes it; not read for a stream, whose mask is in ``shared``.
        scaling: of the products.
        dropout: probability.
        shared: one packed stream, B = 1; None: plain rows.
        others: arguments of other attention functions.

    Returns:
        ([B, T, heads, D], None).

    Raises:
        ValueError: a layer asks for more than its products: a cap on them, sinks, or biases.
    """
    unknown = sorted(name for name in _NOT_COMPUTED if others.get(name) is not None)
    if unknown:
        raise ValueError(f"its attention has {', '.join(unknown)}")
    if shared is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    device, dropped = query.device.type, dropout > 0
    if device == "cuda" and not dropped:
        return attend_flexibly(query, key, value, shared.block_mask, scaling), None
    if device == "cpu" and not dropped and query.shape[-1] == value.shape[-1]:
        return attend_in_spans(query, key, value, shared.parts, scaling), None
    return attend_in_blocks(query, key, value, shared.layout, scaling, dropout), None


def share(model: Any) -> None:
    """Make ``model`` attend through ``attend``, which without a layout is the usual SDPA."""
    if model.config._attn_implementation != _NAME:
        model.set_attn_implementation(_NAME)


def trial(model: Any) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """A prompt of 6 ids that ``model`` knows, and continuations of 3 and 6, to test its attention."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = tuple((7 * i + 3) % rows for i in range(15))
    return ids[:6], [ids[6:9], ids[9:]]


@torch.no_grad()
def why_not_shared(model: Any) -> str | None:
    """Why a transformers model, or a decoder without head, cannot take packed streams exactly; None if it can.

    First the config is checked for attention windows, which a short trial would not reach. Then a trial checks that two
    continuations of a shared prompt give the same values as they do alone.
    """
    settings = model.config.get_text_config()
    kinds = set(settings.layer_types or ()) if hasattr(settings, "layer_types") else set()
    window = not kinds and hasattr(settings, "sliding_window") and settings.sliding_window is not None
    if kinds - {"full_attention"} or window:
        return f"{type(model).__name__} attends within windows, or not to tokens at all"
    if not model._can_set_attn_implementation():
        return f"{type(model).__name__} does not take its attention from transformers' registry"
    before, training = model.config._attn_implementation, model.training
    model.eval()
    try:
        expected = _trial_alone(model)
        share(model)
        apart = float((_trial_shared(model) - expected).abs().max() / expected.std())
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        model.set_attn_implementation(before)
        return f"{type(model).__name__} does not take packed streams: {str(error).splitlines()[0]}"
    finally:
        model.train(training)
    if not apart <= TOLERANCE[model.dtype]:
        model.set_attn_implementation(before)
        return f"{type(model).__name__} computes other values for shared prompts, {apart:.2g} deviations off"
    return None


def _trial_alone(model: Any) -> Tensor:
    prompt, continuations = trial(model)
    found = []
    for ids in continuations:
        values = _first_output(model, {"input_ids": torch.tensor([prompt + ids], device=model.device)})
        found.append(values[len(prompt) - 1 :])
    return torch.cat(found)


def _trial_shared(model: Any) -> Tensor:
    prompt, continuations = trial(model)
    packed = pack([(prompt, ids) for ids in continuations]).to(model.device)
    values = _first_output(model, stream_arguments(packed))
    # Each continuation alone has its last token's values too.
    ends = [len(prompt) + 2, len(prompt) + 8]
    wanted = [*packed.predictors[:3].tolist(), ends[0], *packed.predictors[3:].tolist(), ends[1]]
    return values[wanted]


def _first_output(model: Any, arguments: dict[str, Any]) -> Tensor:
    """[N, ...] logits of a language model, hidden states of a decoder without head."""
    found: Tensor = model(**arguments, use_cache=False)[0][0].float()
    return found


def stream_arguments(packed: Packed) -> dict[str, Any]:
    """Arguments of the call of a model that shares prompts."""
    # A mask of four dimensions is passed through as it is, so that no N × N mask is made.
    nothing = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=packed.ids.device)
    return {
        "input_ids": packed.ids.unsqueeze(0),
        "position_ids": packed.positions.unsqueeze(0),
        "attention_mask": nothing,
        "shared": Shared(packed),
    }


AttentionInterface.register(_NAME, attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
