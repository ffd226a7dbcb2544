"""How far back a layer's tokens see: over all of their row, a sliding window of it, or a chunk.

Each layer is told by the mask that its model asks transformers for, so no config is read, and layers of several kinds
may stand in one model. Distances are counted in positions within a row, never in places of a packed stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "prefloop_shared"


@dataclass(frozen=True, slots=True)
class Reach:
    """Which of the tokens before it in its row a token sees.

    Attributes:
        kind: all of them; those less than ``size`` positions away; those whose position has the same quotient by
            ``size`` (Llama 4).
        size: 0 if all.
    """

    kind: Literal["all", "window", "chunk"] = "all"
    size: int = 0

    def first(self, positions: Tensor) -> Tensor:
        """The first position that tokens at ``positions`` see; may be below 0."""
        match self.kind:
            case "all":
                return torch.zeros_like(positions)
            case "window":
                return positions - self.size + 1
            case "chunk":
                return positions // self.size * self.size

    def within(self, length: int) -> "Reach":
        """The same for rows of at most ``length`` tokens: over all of them if it restricts none."""
        return WHOLE_ROW if self.size >= length else self


WHOLE_ROW = Reach()


class StreamMask(Tensor):
    """The attention mask of a call with a packed stream: [1, N] ones, and ``stream``, which layers will need.

    What a model makes of it in the same shape, such as a copy elsewhere, has the stream too.
    """

    stream: Any = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, as for any tensor."""
        made = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        origin = args[0] if args else None
        if isinstance(made, StreamMask) and isinstance(origin, StreamMask) and made.shape == origin.shape:
            made.stream = origin.stream
        return made


class LayerMask(Tensor):
    """What layers get as their mask in a call with a packed stream: no values, only the stream and their reach.

    Not every model passes other arguments on to its attention, but all pass the mask. Both are None in a mask that the
    model has changed.
    """

    stream: Any = None
    reach: Reach | None = None


def stream_mask(stream: Any, count: int, device: torch.device) -> Tensor:
    """The mask argument for a ``stream`` of ``count`` tokens."""
    found = torch.ones((1, count), dtype=torch.bool, device=device).as_subclass(StreamMask)
    found.stream = stream
    return found


def _mask(**given: Any) -> Tensor | None:
    """Make masks in the form of transformers' mask functions: those of SDPA, but for a stream only the reach."""
    whole = given.get("attention_mask")
    if not isinstance(whole, StreamMask):
        return sdpa_mask(**given)
    if given.get("use_vmap"):
        raise ValueError("its attention has a mask of its own")
    found = torch.zeros((1, 1, 1, 1), dtype=torch.bool).as_subclass(LayerMask)
    found.stream = whole.stream
    found.reach = reach_of(given["mask_function"], given.get("local_size"), given["device"])
    return found


def reach_of(sees: Callable[..., Tensor], size: int | None, device: torch.device | str = "cpu") -> Reach:
    """Tell the reach of a mask function of transformers from what it says of some pairs of positions.

    Args:
        sees: from (batch, head, query, key) to whether the query sees the key.
        size: of its window or chunk; None: it has none.
        device: where to evaluate it.

    Raises:
        ValueError: it is neither causal, nor a causal window or chunk of that size.
    """
    candidates = (WHOLE_ROW,) if size is None else (Reach("window", size), Reach("chunk", size))
    unit = size or 4
    nothing = torch.zeros((1, 1), dtype=torch.int64, device=device)
    queries = torch.tensor([0, 1, unit - 1, unit, unit + 1, 2 * unit - 1, 2 * unit, 2 * unit + 1], device=device)
    query, key = queries.unsqueeze(1), torch.arange(2 * unit + 2, device=device).unsqueeze(0)
    found = sees(nothing, nothing, query, key)
    for one in candidates:
        if torch.equal(found, (key <= query) & (key >= one.first(query))):
            return one
    raise ValueError("its attention mask is neither causal, nor a causal window or chunk")


AttentionMaskInterface.register(IMPLEMENTATION, _mask)
