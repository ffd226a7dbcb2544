"""Shared-prompt attention on CUDA: FlexAttention, which skips blocks of a stream that do not attend to each other."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from pipeline.models.attention.packing import Packed
from pipeline.models.attention.reach import WHOLE_ROW, Reach
from pipeline.models.attention.spans import Part, parts

# Tokens of a block: what FlexAttention's kernels are tuned for.
BLOCK = 128


def block_mask(packed: Packed, reach: Reach = WHOLE_ROW) -> BlockMask:
    """Attention mask of ``packed`` with any number of tokens, built from its parts, never as [N, N].

    ``reach``: of the layer.
    """
    count, device = len(packed.ids), packed.ids.device
    sizes = packed.lengths
    tree = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    branch, position, first = packed.branch, packed.positions, reach.first(packed.positions)

    def sees(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        branches = (branch[key] == 0) | (branch[key] == branch[query])
        return (tree[query] == tree[key]) & branches & (query >= key)

    def sees_near(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(one, head, query, key) & (position[key] >= first[query])

    some, all_ = _occupied(packed, reach)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~all_, device),
        *_ordered(all_, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if reach == WHOLE_ROW else sees_near,
        seq_lengths=(count, count),
    )


def _occupied(packed: Packed, reach: Reach) -> tuple[Tensor, Tensor]:
    """Block pairs where any query token attends to any key token, and where all do; [blocks, blocks] bool, on CPU."""
    blocks = -(-len(packed.ids) // BLOCK)
    some, all_ = torch.zeros((2, blocks, blocks), dtype=torch.bool)
    positions = packed.positions.cpu()
    for part in parts(packed):
        touched, within = zip(*map(_blocks, (part.queries, part.keys)), strict=True)
        near, whole = _near(part, positions, reach)
        inside = whole[_shifted(within, touched)]
        if part.causal:
            some[touched] |= near & torch.ones_like(some[touched]).tril()
            all_[within] |= inside & torch.ones_like(all_[within]).tril(-1)
        else:
            some[touched] |= near
            all_[within] |= inside
    return some, all_


def _near(part: Part, positions: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
    """For the block pairs that ``part`` touches: whether ``reach`` leaves any of its pairs of tokens, and all."""
    (earliest, latest), (lowest, highest) = (_ends(positions, tokens) for tokens in (part.queries, part.keys))
    any_, all_ = (reach.first(query).unsqueeze(1) for query in (earliest, latest))
    return highest >= any_, lowest >= all_


def _ends(positions: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
    """The lowest and the highest position of ``tokens`` in each block that they touch."""
    starts = range(tokens.start // BLOCK * BLOCK, tokens.stop, BLOCK)
    blocks = [positions[max(start, tokens.start) : min(start + BLOCK, tokens.stop)] for start in starts]
    found = torch.tensor([[int(block.min()), int(block.max())] for block in blocks]).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _shifted(inner: tuple[slice, ...], outer: tuple[slice, ...]) -> tuple[slice, ...]:
    """The places of the blocks ``inner`` among the blocks ``outer``."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))


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
def compiled_attention(backend: str = "inductor") -> Any:
    """FlexAttention, compiled once for streams of any length of two blocks or more: sizes are symbols to the compiler.

    Passes without gradient are compiled apart from those with one, and layers of another reach or cap for themselves.
    """
    return torch.compile(flex_attention, dynamic=True, backend=backend)


def graphs_compiled() -> int:
    """Number of graphs that torch has compiled in this process so far."""
    return int(counters["stats"]["unique_graphs"])


@cache
def capped(cap: float, device: torch.device) -> Callable[..., Tensor]:
    """Return the rule that caps scores, one for each cap so that it is compiled once.

    Inductor takes a tensor there, and no number.
    """
    limit = torch.tensor(cap, dtype=torch.float32, device=device)

    def rule(score: Tensor, one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return rule


def attend_flexibly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: BlockMask,
    scaling: float | None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend for a stream's query [1, heads, N, D]; ``key`` and ``value`` may have fewer heads, a divisor.

    ``cap``, ``sinks``: as in ``attend_by_scores``. Returns [1, N, heads, D].
    """
    # Without compilation it allocates [heads, N, N]: fine for a test on CPU, useless on CUDA.
    attention = compiled_attention() if query.device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    rule = None if cap is None else capped(cap, query.device)
    found: Tensor
    if sinks is None:
        found = attention(query, key, value, rule, given, scaling, grouped)
    else:
        found, more = attention(query, key, value, rule, given, scaling, grouped, return_aux=AuxRequest(lse=True))
        found = found * torch.sigmoid(more.lse - sinks.view(1, -1, 1)).unsqueeze(-1).to(found.dtype)
    return found.transpose(1, 2)
