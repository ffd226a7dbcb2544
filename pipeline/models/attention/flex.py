"""Shared-prompt attention on CUDA: FlexAttention, which skips blocks of a stream that do not attend to each other."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pipeline.models.attention.packing import Packed
from pipeline.models.attention.spans import parts

# Tokens of a block: what FlexAttention's kernels are tuned for.
BLOCK = 128


def block_mask(packed: Packed) -> BlockMask:
    """Attention mask of ``packed`` with any number of tokens, built from its parts, never as [N, N]."""
    count, device = len(packed.ids), packed.ids.device
    sizes = packed.lengths
    tree = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    branch = packed.branch

    def sees(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        branches = (branch[key] == 0) | (branch[key] == branch[query])
        return (tree[query] == tree[key]) & branches & (query >= key)

    some, all_ = _occupied(packed)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~all_, device),
        *_ordered(all_, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(count, count),
    )


def _occupied(packed: Packed) -> tuple[Tensor, Tensor]:
    """Block pairs where any query token attends to any key token, and where all do; [blocks, blocks] bool, on CPU."""
    blocks = -(-len(packed.ids) // BLOCK)
    some, all_ = torch.zeros((2, blocks, blocks), dtype=torch.bool)
    for part in parts(packed):
        touched, within = zip(*map(_blocks, (part.queries, part.keys)), strict=True)
        if part.causal:
            some[touched] |= torch.ones_like(some[touched]).tril()
            all_[within] |= torch.ones_like(all_[within]).tril(-1)
        else:
            some[touched] = True
            all_[within] = True
    return some, all_


def _blocks(tokens: slice) -> tuple[slice, slice]:
    """The blocks that contain some of ``tokens``, and the blocks that contain only them."""
    first = -(-tokens.start // BLOCK)
    return slice(tokens.start // BLOCK, -(-tokens.stop // BLOCK)), slice(first, max(first, tokens.stop // BLOCK))


def _ordered(occupied: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of key blocks of each query block, [1, 1, blocks], and key block indices with these first."""
    counts = occupied.sum(-1, dtype=torch.int32)
    indices = occupied.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts[None, None].to(device), indices[None, None].contiguous().to(device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def attend_flexibly(query: Tensor, key: Tensor, value: Tensor, given: BlockMask, scaling: float | None) -> Tensor:
    """Attend for a stream's query [1, heads, N, D]; ``key`` and ``value`` may have fewer heads, a divisor.

    Returns [1, N, heads, D].
    """
    # Without compilation it allocates [heads, N, N]: fine for a test on CPU, useless on CUDA.
    attention = _compiled() if query.device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    found: Tensor = attention(query, key, value, block_mask=given, scale=scaling, enable_gqa=grouped)
    return found.transpose(1, 2)
