"""Attention over packed streams: exact, tree by tree, for models that take theirs from transformers' registry.

Trees of similar length form a block [G, L], padded inside attention alone; everything else in the model runs on the N
tokens as they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.packing import Packed, pack

NAME = "prefloop_shared"
# A tree joins a block if padding it to the block's length wastes at most this share of it.
LARGEST_WASTE = 0.125
# Entries of one block's mask: 2**25 bool values, 32 MiB.
MASK_ELEMENTS = 2**25
# Of the trial's logits, in their standard deviations.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclass(frozen=True, slots=True)
class Block:
    """G trees of up to L tokens.

    Attributes:
        index: [G, L] where in the stream their tokens stand; padding repeats the first.
        mask: [G, 1, L, L] bool, who sees whom.
        valid: [G · L] the places that are no padding.
    """

    index: Tensor
    mask: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks that together hold each token of the stream once; ``order`` [N] puts their outputs back in order."""

    blocks: tuple[Block, ...]
    order: Tensor


def layout(packed: Packed) -> Layout:
    """The blocks of ``packed``, longest first."""
    lengths = packed.lengths.tolist()
    ends = packed.lengths.cumsum(0).tolist()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    blocks: list[Block] = []
    at = 0
    while at < len(order):
        longest = lengths[order[at]]
        room = max(1, MASK_ELEMENTS // longest**2)
        stop = at
        while stop < len(order) and stop - at < room and lengths[order[stop]] >= (1 - LARGEST_WASTE) * longest:
            stop += 1
        blocks.append(_block(packed, [(ends[i] - lengths[i], lengths[i]) for i in order[at:stop]]))
        at = stop
    where = torch.cat([block.index.flatten()[block.valid] for block in blocks])
    back = torch.empty_like(where)
    back[where] = torch.arange(len(where), device=where.device)
    return Layout(tuple(blocks), back)


def _block(packed: Packed, spans: list[tuple[int, int]]) -> Block:
    device, longest = packed.ids.device, max(length for _, length in spans)
    place = torch.arange(longest, device=device)
    starts, lengths = (torch.tensor(column, device=device).unsqueeze(1) for column in zip(*spans, strict=True))
    valid = place < lengths
    index = torch.where(valid, starts + place, starts)
    branch = torch.where(valid, packed.branch[index], 0)
    sees = (branch.unsqueeze(1) == 0) | (branch.unsqueeze(1) == branch.unsqueeze(2))
    causal = place.unsqueeze(1) >= place.unsqueeze(0)
    return Block(index, (sees & causal).unsqueeze(1), valid.flatten().nonzero().squeeze(1))


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in the form of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [B, heads, T, D]; ``key`` and ``value`` may have fewer heads, a divisor.
        attention_mask: as transformers makes it; not read of a stream, where who sees whom is in ``shared``.
        scaling: of the products.
        dropout: probability.
        shared: of ``layout``, for one packed stream, B = 1; None: plain rows.
        others: what other attention functions read.

    Returns:
        ([B, T, heads, D], None).
    """
    if shared is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    grouped = query.shape[1] != key.shape[1]
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    outputs = []
    for block in shared.blocks:
        ours, theirs, values = (_gathered(part, block.index) for part in (q, k, v))
        found = scaled_dot_product_attention(
            ours, theirs, values, attn_mask=block.mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
        outputs.append(found.transpose(1, 2).flatten(0, 1)[block.valid])
    return torch.cat(outputs)[shared.order].unsqueeze(0), None


def _gathered(stream: Tensor, index: Tensor) -> Tensor:
    """[G, heads, L, D] of a stream [N, heads, D]."""
    # The backward pass of index_select adds rows; that of indexing by a tensor puts them one by one.
    rows = stream.index_select(0, index.flatten())
    return rows.view(*index.shape, *stream.shape[1:]).transpose(1, 2)


def share(model: Any) -> None:
    """Make ``model`` attend through ``attend``, which without a layout is what it was before: the usual SDPA."""
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)


@torch.no_grad()
def why_not_shared(model: Any) -> str | None:
    """Why a transformers model, or a decoder without head, cannot take packed streams exactly; None if it can.

    Its config is asked for windows, which a short trial would not meet; then the model itself, whether two
    continuations of a shared prompt come out as they do alone.
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


def _trial(model: Any) -> tuple[list[int], list[list[int]]]:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * i + 3) % rows for i in range(15)]
    return ids[:6], [ids[6:9], ids[9:15]]


def _trial_alone(model: Any) -> Tensor:
    prompt, continuations = _trial(model)
    found = []
    for ids in continuations:
        values = _first_output(model, {"input_ids": torch.tensor([prompt + ids], device=model.device)})
        found.append(values[len(prompt) - 1 :])
    return torch.cat(found)


def _trial_shared(model: Any) -> Tensor:
    prompt, continuations = _trial(model)
    packed = pack([(tuple(prompt), tuple(ids)) for ids in continuations]).to(model.device)
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
    """What a model that shares prompts is called with."""
    # A mask of four dimensions is handed through as it is, so that none is made of N × N.
    nothing = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=packed.ids.device)
    return {
        "input_ids": packed.ids.unsqueeze(0),
        "position_ids": packed.positions.unsqueeze(0),
        "attention_mask": nothing,
        "shared": layout(packed),
    }


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
