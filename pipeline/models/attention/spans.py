"""Shared-prompt attention on CPU: no gathering, padding or masking, and only visible pairs are computed.

A tree's prompt and first continuation are one causal sequence. Each other continuation attends to the prompt, and
causally to itself; the two are merged by their log-sum-exp, as flash attention merges blocks of keys (arXiv:2205.14135,
section 3.1). The backward pass needs no more than the merged log-sum-exp: the gradient of each part is that of its keys
alone. A sink is one more key whose value is 0: it only adds to the log-sum-exp. Where a layer's reach is shorter than
rows, queries are taken in tiles, each with the few keys that any of them sees and a mask over these. Arithmetic is
float32 or better: PyTorch's CPU kernels are slower in bfloat16.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.models.attention.packing import Packed
from pipeline.models.attention.reach import WHOLE_ROW, Reach

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
# Queries of a tile: as many as a window has tokens, within these bounds.
SMALLEST_TILE, LARGEST_TILE = 64, 512


@dataclass(frozen=True, slots=True)
class Part:
    """Attention from some tokens of a stream to others.

    Attributes:
        queries, keys: of the stream; of ``own_parts``, queries are places among own tokens.
        causal: whether keys are the queries, with causal attention; else every query attends to all keys.
        joins: whether the queries have attended to other keys before.
        mask: [queries, keys] float32, 0 where a query sees a key, else -inf; each query sees one. None: see ``causal``.
    """

    queries: slice
    keys: slice
    causal: bool
    joins: bool = False
    mask: Tensor | None = None


Parts = tuple[Part, ...]


def parts(packed: Packed, reach: Reach = WHOLE_ROW) -> Parts:
    """Split the attention of ``packed`` into parts, tree by tree; each visible pair of tokens is in one part.

    ``reach``: of the layer.
    """
    found: list[Part] = []
    tiles = None if reach == WHOLE_ROW else _Tiles(reach)
    for start, prompt_end, ends in _trees(packed):
        prompt, first = slice(start, prompt_end), slice(start, ends[0])
        if tiles is None:
            found.append(Part(first, first, causal=True))
            if len(ends) > 1:
                found.append(Part(slice(ends[0], ends[-1]), prompt, causal=False))
            found += [Part(slice(*own), slice(*own), causal=True, joins=True) for own in pairwise(ends)]
        else:
            found += tiles.causal(first, 0)
            for begin, end in pairwise(ends):
                found += tiles.causal(slice(begin, end), prompt_end - start)
                found += tiles.of_prompt(slice(begin, end), prompt)
    return tuple(found)


def own_parts(given: Parts, ranges: tuple[slice, ...]) -> Parts:
    """Restrict parts to the queries of ``ranges`` of a stream, whose own places count on from range to range."""
    found: list[Part] = []
    for part in given:
        at = 0
        for own in ranges:
            begin, end = max(part.queries.start, own.start), min(part.queries.stop, own.stop)
            if begin < end:
                here = slice(at + begin - own.start, at + end - own.start)
                found += _of_queries(part, begin, end, here)
            at += own.stop - own.start
    return tuple(found)


def _of_queries(part: Part, begin: int, end: int, here: slice) -> Iterator[Part]:
    """Yield ``part`` for its queries from ``begin`` to ``end``, which are at the places ``here``."""
    if not part.causal:
        first = part.queries.start
        mask = None if part.mask is None else part.mask[begin - first : end - first]
        yield Part(here, part.keys, causal=False, joins=part.joins, mask=mask)
        return
    before = slice(part.keys.start, begin)
    if before.start < before.stop:
        yield Part(here, before, causal=False, joins=part.joins)
    yield Part(here, slice(begin, end), causal=True, joins=part.joins or before.start < before.stop)


def _trees(packed: Packed) -> Iterator[tuple[int, int, list[int]]]:
    """Yield each tree's start, the end of its prompt, and the ends of its continuations, or of the prompt alone."""
    branch = packed.branch.tolist()
    start = 0
    for length in packed.lengths.tolist():
        stop = start + length
        cuts = [at for at in range(start + 1, stop) if branch[at] != branch[at - 1]]
        yield start, (cuts[0] if cuts else stop), [*cuts[1:], stop]
        start = stop


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Parts with masks for a layer of a short ``reach``; parts of the same shape share theirs."""

    reach: Reach
    masks: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)

    def causal(self, tokens: slice, position: int) -> Iterator[Part]:
        """Attention of neighbouring ``tokens``, of which the first has ``position``, among themselves."""
        for queries in self._tiles(tokens):
            at = position + queries.start - tokens.start
            begin = max(tokens.start, tokens.start + self._first(at) - position)
            yield self._part(queries, slice(begin, queries.stop), at, position + begin - tokens.start, joins=False)

    def of_prompt(self, tokens: slice, prompt: slice) -> Iterator[Part]:
        """Attention of a continuation to its ``prompt``, as far as any of its tokens sees it."""
        length = prompt.stop - prompt.start
        own = torch.arange(length, length + tokens.stop - tokens.start)
        seeing = int((self.reach.first(own) < length).sum())
        for queries in self._tiles(slice(tokens.start, tokens.start + seeing)):
            at = length + queries.start - tokens.start
            first = max(0, self._first(at))
            yield self._part(queries, slice(prompt.start + first, prompt.stop), at, first, joins=True)

    def _first(self, position: int) -> int:
        return int(self.reach.first(torch.tensor(position)))

    def _tiles(self, tokens: slice) -> Iterator[slice]:
        size = min(max(self.reach.size, SMALLEST_TILE), LARGEST_TILE)
        for start in range(tokens.start, tokens.stop, size):
            yield slice(start, min(start + size, tokens.stop))

    def _part(self, queries: slice, keys: slice, query: int, key: int, *, joins: bool) -> Part:
        """A part of which the first query and the first key have these positions."""
        # A chunk's mask depends on where it begins, a window's on the distance alone.
        phase = query % self.reach.size if self.reach.kind == "chunk" else 0
        shape = (query - key, phase, queries.stop - queries.start, keys.stop - keys.start)
        if shape not in self.masks:
            asked, known = query + torch.arange(shape[2]).unsqueeze(1), key + torch.arange(shape[3])
            hidden = (known > asked) | (known < self.reach.first(asked))
            self.masks[shape] = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return Part(queries, keys, causal=False, joins=joins, mask=self.masks[shape])


def attend_in_spans(
    query: Tensor, key: Tensor, value: Tensor, given: Parts, scaling: float | None, sinks: Tensor | None = None
) -> Tensor:
    """Attend for a stream's query [1, heads, N, D]; ``key`` and ``value`` may have fewer heads, a divisor.

    With ``own_parts``, queries are fewer than keys. ``sinks``: [heads], as in ``attend_by_scores``. Returns
    [1, N, heads, D].
    """
    found: Tensor = _Spans.apply(query, key, value, sinks, given, scaling)  # type: ignore[no-untyped-call]
    return found


class _Spans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, given: Parts, scaling: float | None
    ) -> Tensor:
        heads = key.shape[1]
        q, k, v = _operands(query, key, value)
        whole = _like_stream(q, query)
        out, normaliser = _grouped(whole, heads), q.new_empty(q.shape[:3])
        for part in given:
            ours, theirs = part.queries, part.keys
            slices = (q[:, :, ours], k[:, :, theirs], v[:, :, theirs])
            some, sums = _forward(*slices, 0.0, part.causal, attn_mask=_mask(part, q), scale=scaling)
            if part.joins:
                before, both = normaliser[:, :, ours], torch.logaddexp(normaliser[:, :, ours], sums)
                some = (before - both).exp().unsqueeze(-1) * out[:, :, ours] + (sums - both).exp().unsqueeze(-1) * some
                sums = both
            out[:, :, ours] = some
            normaliser[:, :, ours] = sums
        if sinks is not None:
            with_sink = torch.logaddexp(normaliser, _per_head(sinks, heads, q.dtype))
            out *= (normaliser - with_sink).exp().unsqueeze(-1)
            normaliser = with_sink
        found = whole.transpose(1, 2).to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, found, normaliser)
        ctx.given, ctx.scaling = given, scaling
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, found, normaliser = ctx.saved_tensors
        heads = key.shape[1]
        q, k, v = _operands(query, key, value)
        out, upstream = (_grouped(_float(part.transpose(1, 2)), heads) for part in (found, gradients[0]))
        of_query, of_key, of_value = (_like_stream(q, part) for part in (query, key, value))
        # Of causal parts, each token's comes before the parts in which other tokens attend to it; tiles have no such
        # order, and not all keys have a query of their own if queries are fewer.
        tiled = any(part.mask is not None for part in ctx.given) or query.shape[2] != key.shape[2]
        if tiled:
            of_key.zero_()
            of_value.zero_()
        for part in ctx.given:
            ours, theirs = part.queries, part.keys
            slices = (upstream[:, :, ours], q[:, :, ours], k[:, :, theirs], v[:, :, theirs], out[:, :, ours])
            sums, mask = normaliser[:, :, ours], _mask(part, q)
            made = _backward(*slices, sums, 0.0, part.causal, attn_mask=mask, scale=ctx.scaling)
            _put(_grouped(of_query, heads)[:, :, ours], made[0], add=part.joins)
            _put(of_key[:, :, theirs], _summed(made[1]), add=tiled or not part.causal)
            _put(of_value[:, :, theirs], _summed(made[2]), add=tiled or not part.causal)
        of_sinks = None
        if sinks is not None:
            shares = (_per_head(sinks, heads, q.dtype) - normaliser).exp()
            per_head = -(shares * (upstream * out).sum(-1)).sum(-1)
            of_sinks = per_head.transpose(0, 1).reshape(-1).to(sinks.dtype)
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), of_sinks, None, None


def _mask(part: Part, operand: Tensor) -> Tensor | None:
    return None if part.mask is None else part.mask.to(operand.dtype)


def _per_head(sinks: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[G, heads, 1] from [heads · G]."""
    return sinks.detach().to(dtype).view(heads, -1, 1).transpose(0, 1)


def _operands(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as [G, heads, N, D], where G query heads share each of ``heads`` key heads."""
    q, k, v = (_grouped(_float(part), key.shape[1]) for part in (query, key, value))
    return q, k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1)


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
