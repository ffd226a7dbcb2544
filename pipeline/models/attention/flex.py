"""Shared-prompt attention on CUDA: FlexAttention, which skips blocks of a stream that do not attend to each other."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from pipeline.models.attention.block_table import BLOCK, Indices
from pipeline.models.attention.context import OwnTokens
from pipeline.models.attention.packing import Packed
from pipeline.models.attention.reach import WHOLE_ROW, Reach


def block_mask(packed: Packed, reach: Reach = WHOLE_ROW, own: OwnTokens | None = None) -> BlockMask:
    """Attention mask of ``packed`` with any number of tokens, from its table of blocks, never as [N, N].

    ``reach``: of the layer. ``own``: the tokens whose queries there are, in ranges of whole blocks; None: all.
    """
    count, device = len(packed.ids), packed.ids.device
    sizes = packed.lengths
    # Without the size of its result, it would wait for the card.
    tree = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes, output_size=count)
    branch, position, first = packed.branch, packed.positions, reach.first(packed.positions)

    def sees(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        branches = (branch[key] == 0) | (branch[key] == branch[query])
        return (tree[query] == tree[key]) & branches & (query >= key)

    def sees_near(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(one, head, query, key) & (position[key] >= first[query])

    table, rule, queries = packed.outlined().table(reach, count), sees if reach == WHOLE_ROW else sees_near, count
    rows: slice | list[int] = slice(None)
    if own is not None:
        queries, rule = own.count, _of_own(rule, own.index(device))
        rows = [block for part in own.ranges for block in range(part.start // BLOCK, part.stop // BLOCK)]
    return BlockMask.from_kv_blocks(
        *_placed(table.some, rows, device),
        *_placed(table.all_, rows, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=rule,
        seq_lengths=(queries, count),
    )


def _placed(numbers: tuple[Indices, Indices], rows: slice | list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts as [1, 1, rows] and indices as [1, 1, rows, blocks], of ``rows`` of blocks, on ``device``."""
    counts, indices = (torch.from_numpy(part[rows])[None, None].to(device, non_blocking=True) for part in numbers)
    return counts, indices


def _of_own(rule: Callable[..., Tensor], index: Tensor) -> Callable[..., Tensor]:
    """Return the ``rule`` for queries that are at ``index`` in the stream."""

    def sees_from(one: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(one, head, index[query], key)

    return sees_from


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
