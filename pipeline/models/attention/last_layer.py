"""The last decoder layer, computed only at the requested positions.

After its keys and values, nothing reads any other position. So its queries, its output projection and its feed-forward
network are computed only where hidden states are read: at positions that predict a response token, or end a row. In
the last layer, a prompt's tokens cost only their keys and values.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.attention.packing import pack
from pipeline.models.attention.shared_prompts import TOLERANCE, stream_arguments, trial

# Submodules of a layer and of its attention, by their names in nearly all of transformers' decoders.
FEED_FORWARD, ATTENTION = "mlp", "self_attn"
PROJECTIONS = ("q_proj", "o_proj")


@torch.no_grad()
def position_wise(decoder: Any) -> tuple[nn.Module, ...]:
    """Return the modules of the last layer that may skip positions, for a headless decoder that shares prompts.

    A trial decides: the result is empty if skipping changes the decoder's hidden states at the requested positions.
    """
    found = _candidates(decoder)
    prompt, continuations = trial(decoder)
    packed = pack([(prompt, ids) for ids in continuations]).to(decoder.device)
    asked, training = places(packed.predictors, len(packed.ids)), decoder.training
    decoder.eval()
    try:
        whole = decoder(**stream_arguments(packed), use_cache=False).last_hidden_state[0, asked]
        with only_at(found, asked, len(packed.ids)):
            narrow = decoder(**stream_arguments(packed), use_cache=False).last_hidden_state[0, asked]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return ()
    finally:
        decoder.train(training)
    apart = float((narrow - whole).abs().max() / whole.std())
    return found if apart <= TOLERANCE[decoder.dtype] else ()


def places(wanted: Tensor, total: int, multiple: int = 1) -> Tensor:
    """[K] int64: the distinct positions among ``wanted`` [M], ascending.

    Args:
        wanted: positions in a stream of ``total`` tokens, in any order; duplicates are allowed.
        multiple: K is padded to a multiple of this with other positions; ``total`` must be a multiple too.
    """
    asked = torch.zeros(total, dtype=torch.bool, device=wanted.device).index_fill(0, wanted, True)
    count = int(asked.sum())
    return torch.argsort(asked, descending=True, stable=True)[: count + -count % multiple].sort().values


@contextmanager
def only_at(modules: tuple[nn.Module, ...], asked: Tensor, total: int) -> Iterator[None]:
    """Make ``modules`` compute only the positions ``asked`` [K] of [1, total, ...] and return 0 elsewhere."""

    def narrow(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].index_select(1, asked), *given[1:])

    def widen(_: nn.Module, __: tuple[Any, ...], made: Tensor) -> Tensor:
        return made.new_zeros((1, total, *made.shape[2:])).index_copy(1, asked, made)

    hooks = [module.register_forward_pre_hook(narrow) for module in modules]
    hooks += [module.register_forward_hook(widen) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def no_more_than(
    asked: Tensor, total: int, model: PreTrainedModel, modules: tuple[nn.Module, ...]
) -> AbstractContextManager[None]:
    """``only_at`` for ``modules`` of ``model``; no effect with gradient checkpointing.

    The backward pass would recompute layers after the context has ended, and shapes would differ.
    """
    return nullcontext() if model.is_gradient_checkpointing else only_at(modules, asked, total)


def _candidates(decoder: Any) -> tuple[nn.Module, ...]:
    stacks = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child)]
    if not stacks:
        return ()
    layer = dict(max(stacks, key=len)[-1].named_children())
    attention = dict(layer[ATTENTION].named_children()) if ATTENTION in layer else {}
    found = (layer.get(FEED_FORWARD), *(attention.get(name) for name in PROJECTIONS))
    return tuple(module for module in found if module is not None)
