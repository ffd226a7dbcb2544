"""The output head of a language model, in chunks: quantities of full-vocabulary softmaxes, never all logits at once.

The backward pass computes the logits of a chunk again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits of one model held at once: 2**25 float32 values, 128 MiB.
CHUNK_ELEMENTS = 2**25

# Logits processed at once on CPU: 1 MiB, which stays in cache.
CACHED_ELEMENTS = 2**18

FINAL_CAP = "final_logit_softcapping"

_Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class OutputHead:
    """Logits of a decoder's last hidden states: x = factor · linear, or cap · tanh(x / cap) if there is a cap."""

    linear: nn.Linear
    factor: float = 1.0
    cap: float | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """[N, V] from [N, H]."""
        logits: Tensor = self.linear(states)
        if self.factor != 1:
            logits = _at_least_float32(logits) * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(_at_least_float32(logits) / self.cap)


@torch.no_grad()
def output_head(model: Any) -> OutputHead | None:
    """Find how the transformers model ``model`` turns its decoder's last hidden states into logits; None if unknown.

    A trial decides: of the candidates that the configuration allows, the one that reproduces the model's logits.
    """
    linear = model.get_output_embeddings()
    plain = linear if isinstance(linear, nn.Linear) else under_adapter(linear)
    settings = model.config.get_text_config().to_dict()
    # A cap does not show in small logits, so a trial cannot reveal an unknown one.
    caps = {name for name, value in settings.items() if "softcap" in name and value}
    if not isinstance(plain, nn.Linear) or caps - {FINAL_CAP, "attn_logit_softcapping"}:
        return None
    scales = [settings[name] for name in ("logits_scaling", "logit_scale") if settings.get(name)]
    factors = [1.0, *scales, *(1 / scale for scale in scales)]
    ids = torch.arange(8, device=plain.weight.device).unsqueeze(0) % plain.out_features
    training = model.training
    model.eval()
    try:
        hidden = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        model.train(training)
    heads = (OutputHead(linear, factor, settings.get(FINAL_CAP) or None) for factor in factors)
    return next((head for head in heads if _alike(head(hidden), logits)), None)


def text_decoder(model: Any) -> Any:
    """The part of the transformers model ``model`` that turns ids of text into last hidden states."""
    decoder = model.get_decoder()
    if isinstance(decoder, nn.Linear):
        # ModernBERT calls its head so.
        decoder = model.base_model
    # Llama 4's decoder is a language model with its head.
    return decoder.model if hasattr(decoder, "lm_head") and hasattr(decoder, "model") else decoder


def under_adapter(layer: Any) -> Any:
    """The layer that an adapter, or a copy that is trained whole, has replaced; else ``layer`` itself."""
    # Imported here: the import takes seconds, which a run without adapters can save.
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        return layer.original_module
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether both are equal up to rounding in the model's dtype."""
    rounding = 1e-3 if theirs.dtype.itemsize >= 4 else 1e-2
    return ours.shape == theirs.shape and torch.allclose(ours.float(), theirs.float(), rtol=rounding, atol=1e-5)


@dataclass(frozen=True, slots=True)
class HeadInput:
    """N softmaxes not computed yet: ``head`` of a slice of ``states`` [N, H] gives that slice's logits."""

    head: _Head
    states: Tensor


@dataclass(frozen=True, slots=True)
class Softmaxes:
    """Quantities of N softmaxes over the vocabulary, [N] float32 each; None if not requested.

    Attributes:
        logps: natural-log probability of the target.
        kl: KL(reference ‖ model) in nats, with gradient.
        collision: Σ_v π(v)², constant.
        entropy: −Σ_v π(v) log π(v) in nats, constant.
    """

    logps: Tensor
    kl: Tensor | None = None
    collision: Tensor | None = None
    entropy: Tensor | None = None


def softmaxes(
    model: HeadInput,
    targets: Tensor,
    vocabulary: int,
    *,
    reference: HeadInput | None = None,
    collision: bool = False,
    entropy: bool = False,
    elements: int = CHUNK_ELEMENTS,
) -> Softmaxes:
    """Log-probabilities of ``targets`` [N] and full-vocabulary statistics; log-softmax in float32 or better.

    Args:
        model: gradients flow into its head and states.
        targets: [N] token ids.
        vocabulary: number of logits of one softmax.
        reference: no gradient flows into it; with it, ``kl`` is computed.
        collision, entropy: whether to compute them.
        elements: logits of one model held at once if N needs more than one chunk.
    """

    chunk = _Chunk(model.head, None if reference is None else reference.head, collision, entropy)
    rows = max(1, elements // vocabulary)
    theirs = None if reference is None else reference.states
    if len(targets) <= rows:
        parts = [chunk(model.states, targets, theirs)]
    else:
        cuts = zip(
            torch.split(model.states, rows), torch.split(targets, rows), _split(theirs, rows, len(targets)), strict=True
        )
        parts = [checkpoint(chunk, *cut, use_reentrant=False) for cut in cuts]
    logps, kl, moments = (_joined(column) for column in zip(*parts, strict=True))
    assert logps is not None, "every chunk has log-probabilities"
    squares, entropies = (None, None) if moments is None else moments.unbind(1)
    return Softmaxes(logps, kl, squares if collision else None, entropies if entropy else None)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Computation on n softmaxes held at once."""

    head: _Head
    reference_head: _Head | None
    collision: bool
    entropy: bool

    def __call__(
        self, states: Tensor, targets: Tensor, theirs: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(log-probabilities [n], KL [n], Σ p² and entropy [n, 2]) of the states of the model and the reference."""
        logits = self.head(states)
        if theirs is None and not self.collision and not self.entropy:
            return _picked(logits, targets), None, None
        ours = _at_least_float32(logits).log_softmax(-1)
        divergence = None
        if theirs is not None and self.reference_head is not None:
            divergence = _divergence(ours, self.reference_head, theirs)
        # Last, so that the backward pass skips it: it stops recomputing once it has what it needs.
        moments = _moments(ours, self.collision, self.entropy)
        return ours.gather(1, targets.unsqueeze(1)).squeeze(1), divergence, moments


class _PickedLogps(torch.autograd.Function):
    """Cross-entropy in blocks of rows that stay in the processor's cache. It allocates nothing as large as the logits,
    not even their gradient, which overwrites them.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        found = logits.new_empty(len(logits), dtype=dtype)
        for rows in _blocks(logits):
            logps = logits[rows].log_softmax(-1, dtype=dtype)
            found[rows] = logps.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
        ctx.save_for_backward(logits, targets, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, found = ctx.saved_tensors
        # In place: nothing else keeps the logits, and a second backward pass finds them changed and fails.
        for rows in _blocks(logits):
            # In float32 if logits have 16 bits, so that the difference is exact.
            wide, of_row = _at_least_float32(logits[rows]), gradients[0][rows].unsqueeze(1)
            target = targets[rows].unsqueeze(1)
            normaliser = wide.gather(1, target) - found[rows].unsqueeze(1)
            logits[rows] = (wide - normaliser).exp_().mul_(-of_row).scatter_add_(1, target, of_row)
        return logits, None


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [n] of ``targets``, float32 or better, from ``logits`` [n, V]."""
    found: Tensor = _PickedLogps.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


def _blocks(logits: Tensor) -> Iterator[slice]:
    elements = CACHED_ELEMENTS if logits.device.type == "cpu" else CHUNK_ELEMENTS
    rows = max(1, elements // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def _divergence(ours: Tensor, head: _Head, states: Tensor) -> Tensor:
    """KL(reference ‖ model), [n], from the model's log-softmax ``ours`` [n, V] and the reference's head and states."""
    with torch.no_grad():
        theirs = _at_least_float32(head(states)).log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


@torch.no_grad()
def _moments(logps: Tensor, collision: bool, entropy: bool) -> Tensor | None:
    """Σ p² and −Σ p log p of log-softmaxes [n, V], [n, 2]; zeros for those not requested."""
    if not collision and not entropy:
        return None
    p = logps.exp()
    none = logps.new_zeros(len(logps))
    return torch.stack(
        [p.square().sum(-1) if collision else none, torch.special.entr(p).sum(-1) if entropy else none], dim=1
    )


def _split(states: Tensor | None, rows: int, count: int) -> Sequence[Tensor | None]:
    return [None] * -(-count // rows) if states is None else torch.split(states, rows)


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits


def placed_at(values: Tensor, at: Tensor, shape: torch.Size) -> Tensor:
    """Put the first of ``values`` [N] at the places ``at``, counted from position 1, of [R, T]; 0 elsewhere."""
    rows, width = shape
    whole = values.new_zeros(rows * (width - 1)).index_copy(0, at, values[: len(at)]).view(rows, width - 1)
    return torch.cat([whole.new_zeros((rows, 1)), whole], dim=1)


def states_of_responses(layers: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, ...] | None:
    """For each layer, put the first of its [N, H] at ``response_places`` of [R, W, H], else 0; None without layers."""
    if not layers:
        return None
    inside = response_places(mask[:, 1:])
    at = inside.flatten().nonzero().squeeze(1)
    shape = (inside.numel(), layers[0].shape[-1])
    return tuple(layer.new_zeros(shape).index_copy(0, at, layer[: len(at)]).view(*inside.shape, -1) for layer in layers)


def response_places(mask: Tensor) -> Tensor:
    """[R, W] bool, true at the first n places of a row with n tokens in ``mask`` [R, T]; W is the largest n."""
    counts = mask.sum(1)
    return torch.arange(int(counts.max()), device=mask.device) < counts[:, None]


def at_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Move ``values`` [R, W] from their ``response_places`` to the tokens of ``mask`` [R, T]; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values[response_places(mask)])
