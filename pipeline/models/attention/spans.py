"""Shared-prompt attention on CPU: no gathering, padding or masking, and only visible pairs are computed.

A tree's prompt and first continuation are one causal sequence. Each other continuation attends to the prompt, and
causally to itself; the two are merged by their log-sum-exp, as flash attention merges blocks of keys (arXiv:2205.14135,
section 3.1). The backward pass needs no more than the merged log-sum-exp: the gradient of each part is that of its keys
alone. Arithmetic is float32 or better: PyTorch's CPU kernels are slower in bfloat16.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.models.attention.packing import Packed

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True)
class Part:
    """Attention from some tokens of a stream to others.

    Attributes:
        queries, keys: of the stream.
        causal: whether keys are the queries, with causal attention; else every query attends to all keys.
        joins: whether the queries have attended to other keys before.
    """

    queries: slice
    keys: slice
    causal: bool
    joins: bool = False


Parts = tuple[Part, ...]


def parts(packed: Packed) -> Parts:
    """Split the attention of ``packed`` into parts, tree by tree; each visible pair of tokens is in one part."""
    found: list[Part] = []
    branch = packed.branch.tolist()
    start = 0
    for length in packed.lengths.tolist():
        stop = start + length
        cuts = [at for at in range(start + 1, stop) if branch[at] != branch[at - 1]]
        prompt, ends = (slice(start, cuts[0]), [*cuts[1:], stop]) if cuts else (slice(start, stop), [stop])
        first = slice(start, ends[0])
        found.append(Part(first, first, causal=True))
        if len(ends) > 1:
            found.append(Part(slice(ends[0], stop), prompt, causal=False))
        for begin, end in pairwise(ends):
            found.append(Part(slice(begin, end), slice(begin, end), causal=True, joins=True))
        start = stop
    return tuple(found)


def attend_in_spans(query: Tensor, key: Tensor, value: Tensor, given: Parts, scaling: float | None) -> Tensor:
    """Attend for a stream's query [1, heads, N, D]; ``key`` and ``value`` may have fewer heads, a divisor.

    Returns [1, N, heads, D].
    """
    found: Tensor = _Spans.apply(query, key, value, given, scaling)  # type: ignore[no-untyped-call]
    return found


class _Spans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, given: Parts, scaling: float | None) -> Tensor:
        heads = key.shape[1]
        q, k, v = _operands(query, key, value)
        whole = _like_stream(q, query)
        out, normaliser = _grouped(whole, heads), q.new_empty(q.shape[:3])
        for part in given:
            ours, theirs = part.queries, part.keys
            some, sums = _forward(q[:, :, ours], k[:, :, theirs], v[:, :, theirs], 0.0, part.causal, scale=scaling)
            if part.joins:
                before, both = normaliser[:, :, ours], torch.logaddexp(normaliser[:, :, ours], sums)
                some = (before - both).exp().unsqueeze(-1) * out[:, :, ours] + (sums - both).exp().unsqueeze(-1) * some
                sums = both
            out[:, :, ours] = some
            normaliser[:, :, ours] = sums
        found = whole.transpose(1, 2).to(query.dtype)
        ctx.save_for_backward(query, key, value, found, normaliser)
        ctx.given, ctx.scaling = given, scaling
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, found, normaliser = ctx.saved_tensors
        heads = key.shape[1]
        q, k, v = _operands(query, key, value)
        out, upstream = (_grouped(_float(part.transpose(1, 2)), heads) for part in (found, gradients[0]))
        of_query, of_key, of_value = (_like_stream(q, part) for part in (query, key, value))
        for part in ctx.given:
            ours, theirs = part.queries, part.keys
            slices = (upstream[:, :, ours], q[:, :, ours], k[:, :, theirs], v[:, :, theirs], out[:, :, ours])
            made = _backward(*slices, normaliser[:, :, ours], 0.0, part.causal, scale=ctx.scaling)
            _put(_grouped(of_query, heads)[:, :, ours], made[0], add=part.joins)
            # A token's causal part comes before the parts in which other tokens attend to it.
            _put(of_key[:, :, theirs], _summed(made[1]), add=not part.causal)
            _put(of_value[:, :, theirs], _summed(made[2]), add=not part.causal)
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _operands(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [G, heads, N, D], where G query heads share each of ``heads`` key heads."""
    q, k, v = (_grouped(_float(part), key.shape[1]) for part in (query, key, value))
    return q, k.expand_as(q), v.expand_as(q)


def _grouped(values: Tensor, heads: int) -> Tensor:
    """View [1, heads · G, N, D], where neighbouring heads share a key, as [G, heads, N, D]."""
    return values[0].view(heads, -1, *values.shape[2:]).transpose(0, 1)


def _float(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _like_stream(operand: Tensor, part: Tensor) -> Tensor:
    """Allocate [1, heads, N, D] in the operands' dtype, laid out token by token, as linear layers read it."""
    one, heads, count, size = part.shape
    return operand.new_empty((one, count, heads, size)).transpose(1, 2)


def _put(place: Tensor, values: Tensor, *, add: bool) -> None:
    if add:
        place += values
    else:
        place.copy_(values)


def _summed(values: Tensor) -> Tensor:
    """Sum the gradients [G, heads, n, D] of keys that G queries share: [1, heads, n, D]."""
    return values if len(values) == 1 else values.sum(0, keepdim=True)
