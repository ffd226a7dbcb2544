"""Shared-prompt attention with masks: any device, any dropout, heads of any size, caps on scores and sinks.

Trees of similar length form a block [G, L]; only attention sees its padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipeline.models.attention.packing import Packed
from pipeline.models.attention.reach import WHOLE_ROW, Reach
from pipeline.models.attention.scores import attend_by_scores

# A tree joins a block if padding it to the block's length wastes at most this share of it.
LARGEST_WASTE = 0.125
# Entries of one block's mask: 2**25 bool values, 32 MiB.
MASK_ELEMENTS = 2**25


@dataclass(frozen=True, slots=True)
class Block:
    """G trees of up to L tokens.

    Attributes:
        index: [G, L] positions of their tokens in the stream; padding repeats the first.
        mask: [G, 1, L, L] bool, true where a query attends to a key.
        valid: [M] the positions in the flattened block that are not padding.
    """

    index: Tensor
    mask: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Blocks that together hold each token of the stream once; ``order`` [N] puts their outputs back in order."""

    blocks: tuple[Block, ...]
    order: Tensor


def layout(packed: Packed, reach: Reach = WHOLE_ROW) -> Layout:
    """The blocks of ``packed``, longest first; ``reach``: of the layer."""
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
        blocks.append(_block(packed, [(ends[i] - lengths[i], lengths[i]) for i in order[at:stop]], reach))
        at = stop
    where = torch.cat([block.index.flatten()[block.valid] for block in blocks])
    back = torch.empty_like(where)
    back[where] = torch.arange(len(where), device=where.device)
    return Layout(tuple(blocks), back)


def _block(packed: Packed, spans: list[tuple[int, int]], reach: Reach) -> Block:
    device, longest = packed.ids.device, max(length for _, length in spans)
    place = torch.arange(longest, device=device)
    starts, lengths = (torch.tensor(column, device=device).unsqueeze(1) for column in zip(*spans, strict=True))
    valid = place < lengths
    index = torch.where(valid, starts + place, starts)
    branch = torch.where(valid, packed.branch[index], 0)
    sees = (branch.unsqueeze(1) == 0) | (branch.unsqueeze(1) == branch.unsqueeze(2))
    causal = place.unsqueeze(1) >= place.unsqueeze(0)
    if reach != WHOLE_ROW:
        position = torch.where(valid, packed.positions[index], 0)
        sees &= position.unsqueeze(1) >= reach.first(position).unsqueeze(2)
    return Block(index, (sees & causal).unsqueeze(1), valid.flatten().nonzero().squeeze(1))


def seen_tokens(packed: Packed, queries: Tensor, reach: Reach) -> Tensor:
    """[1, 1, n, N] bool: which tokens of the stream those at ``queries`` [n] see."""
    tree = torch.repeat_interleave(torch.arange(len(packed.lengths), device=queries.device), packed.lengths)
    keys = torch.arange(len(tree), device=queries.device)
    asked = queries.unsqueeze(1)
    sees = (tree[asked] == tree) & ((packed.branch == 0) | (packed.branch[asked] == packed.branch)) & (asked >= keys)
    if reach != WHOLE_ROW:
        sees &= packed.positions >= reach.first(packed.positions[asked])
    return sees[None, None]


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Layout,
    scaling: float | None,
    dropout: float,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend for a stream's query [1, heads, N, D]; ``key`` and ``value`` may have fewer heads, a divisor.

    ``cap``, ``sinks``: as in ``attend_by_scores``. Returns [1, N, heads, D].
    """
    grouped = query.shape[1] != key.shape[1]
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    outputs = []
    for block in given.blocks:
        ours, theirs, values = (_gathered(part, block.index) for part in (q, k, v))
        if cap is None and sinks is None:
            found = scaled_dot_product_attention(
                ours, theirs, values, attn_mask=block.mask, dropout_p=dropout, scale=scaling, enable_gqa=grouped
            )
        else:
            found = attend_by_scores(ours, theirs, values, block.mask, scaling, dropout, cap, sinks)
        outputs.append(found.transpose(1, 2).flatten(0, 1)[block.valid])
    return torch.cat(outputs)[given.order].unsqueeze(0)


def _gathered(stream: Tensor, index: Tensor) -> Tensor:
    """Gather [G, heads, L, D] from a stream [N, heads, D]."""
    # The backward pass of index_select adds whole rows; that of indexing with a tensor writes them one by one.
    rows = stream.index_select(0, index.flatten())
    return rows.view(*index.shape, *stream.shape[1:]).transpose(1, 2)
