"""Context parallel: a group of processes computes one stream, each some of its tokens.

Only attention looks beyond a token. There, keys and values are gathered from the group and queries stay where they are,
as in Llama 3's training (arXiv:2407.21783, section 3.3.2): any mask is exact, and a layer holds all keys and values of
the stream while it computes, and until its backward pass unless activations are computed again. The rest of a layer's
memory and work is divided by the size of the group.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.models.attention.packing import Packed


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """This process's place among those that compute one stream.

    Attributes:
        group: torch's process group.
        index: from 0.
        size: number of processes.
    """

    group: Any
    index: int
    size: int

    @property
    def chunks(self) -> int:
        """Number of equal chunks of a stream; each process has one from each end, since late tokens see more keys."""
        return 2 * self.size

    def own(self, tokens: int) -> "OwnTokens":
        """Return this process's tokens of a stream of ``tokens``, a multiple of ``chunks``."""
        length = tokens // self.chunks
        starts = (self.index * length, (self.chunks - 1 - self.index) * length)
        return OwnTokens(self, tokens, (slice(starts[0], starts[0] + length), slice(starts[1], starts[1] + length)))

    def summed(self, values: Tensor) -> Tensor:
        """Add up ``values`` of the same shape over the group.

        All processes go on to compute the same from the sum, so the gradient of each is that of its own part.
        """
        found: Tensor = _Summed.apply(values, self.group)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """The tokens of a stream that this process computes.

    Attributes:
        of: the group.
        total: tokens of the stream.
        ranges: theirs in the stream; together they are this process's tokens, in order.
    """

    of: ContextGroup
    total: int
    ranges: tuple[slice, slice]

    @property
    def count(self) -> int:
        """Number of own tokens."""
        return self.total // self.of.size

    def index(self, device: torch.device) -> Tensor:
        """[n] their places in the stream."""
        return torch.cat([torch.arange(part.start, part.stop, device=device) for part in self.ranges])

    def gathered(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the whole stream from own ones, [1, heads, n, D] each; every process calls this."""
        width = key.shape[-1]
        joined = torch.cat([key, value], dim=-1)[0].transpose(0, 1)
        found: Tensor = _Gathered.apply(joined, self.of)  # type: ignore[no-untyped-call]
        every = found.transpose(0, 1).unsqueeze(0)
        return every[..., :width], every[..., width:]


@dataclass(frozen=True, slots=True)
class OwnPart:
    """What one process computes of the values that are asked of a stream.

    Attributes:
        tokens: its own, None where a stream is not divided.
        stream: all of it, in a length that can be divided.
        wanted: [n] places among own tokens that predict asked tokens; more at the end are padding.
        here: [m ≤ n] which of the M asked tokens these are.
        asked: M.
    """

    tokens: OwnTokens
    stream: Packed
    wanted: Tensor
    here: Tensor
    asked: int

    def whole(self, values: Tensor) -> Tensor:
        """Return the values [M, ...] of all asked tokens from those of own ones [n, ...]; every process calls this."""
        empty = values.new_zeros((self.asked, *values.shape[1:]))
        return self.tokens.of.summed(empty.index_copy(0, self.here, values[: len(self.here)]))


def own_part(group: ContextGroup, packed: Packed, multiple: int) -> OwnPart:
    """Divide a stream; chunks and wanted places are padded to a ``multiple``."""
    stream = packed.rounded(multiple * group.chunks)
    tokens = group.own(len(stream.ids))
    index = tokens.index(stream.ids.device)
    places = torch.full_like(stream.ids, -1).index_copy(0, index, torch.arange(len(index), device=index.device))
    at = places[packed.predictors]
    here = (at >= 0).nonzero().squeeze(1)
    wanted = torch.nn.functional.pad(at[here], (0, -len(here) % multiple))
    return OwnPart(tokens, stream, wanted, here, len(packed.predictors))


def rows_as_stream(read: Tensor, asked: Tensor) -> Packed:
    """Lay padded rows [R, T] end to end, each a tree of its own, padding included.

    ``asked``: [R, T] bool, true where a position predicts an asked token.
    """
    rows, width = read.shape
    return Packed(
        ids=read.flatten(),
        positions=torch.arange(width, device=read.device).repeat(rows),
        branch=torch.zeros_like(read).flatten(),
        predictors=asked.flatten().nonzero().squeeze(1),
        lengths=torch.full((rows,), width, device=read.device),
        ends=torch.arange(1, rows + 1, device=read.device) * width - 1,
    )


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gathered(torch.autograd.Function):
    """[n, ...] of each process to [N, ...] in the stream's order; gradients are summed over the group, in float32."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, of: ContextGroup) -> Tensor:
        ctx.of, ctx.dtype = of, own.dtype
        every = own.new_empty((len(own) * of.size, *own.shape[1:]))
        torch.distributed.all_gather_single(every, own.contiguous(), group=of.group)
        return _reordered(every, _places(of))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        of: ContextGroup = ctx.of
        places = _places(of)
        back = sorted(range(of.chunks), key=places.__getitem__)
        wide = _reordered(gradients[0].to(torch.promote_types(ctx.dtype, torch.float32)), back)
        mine = wide.new_empty((len(wide) // of.size, *wide.shape[1:]))
        torch.distributed.reduce_scatter_single(mine, wide, group=of.group)
        return mine.to(ctx.dtype), None


def _places(of: ContextGroup) -> list[int]:
    """For each chunk of the stream, its place among the chunks in the processes' order."""
    late = range(of.size - 1, -1, -1)
    return [2 * rank for rank in range(of.size)] + [2 * rank + 1 for rank in late]


def _reordered(values: Tensor, places: list[int]) -> Tensor:
    chunks = values.view(len(places), -1, *values.shape[1:])
    return chunks[places].flatten(0, 1)
