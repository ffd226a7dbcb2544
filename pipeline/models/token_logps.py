"""Log-probabilities of the tokens of given sequences under causal language models, and other quantities for losses.

Knows no loss. Values at index t belong to the prediction of token t, so its hidden states are those of position t − 1.
The output head runs on response positions only, in chunks.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.config.loss.needs import OF_REFERENCE, Fact
from pipeline.errors import RunError, UserError
from pipeline.models.attention.context import ContextGroup, OwnPart, own_part, rows_as_stream
from pipeline.models.attention.last_layer import no_more_than, places, position_wise
from pipeline.models.attention.packing import Packed, PaddedTurns
from pipeline.models.attention.reach import Reach
from pipeline.models.attention.shared_prompts import ROUNDING, share, stream_arguments, why_not_shared
from pipeline.models.output_head import (
    CHUNK_ELEMENTS,
    HeadInput,
    OutputHead,
    Softmaxes,
    output_head,
    placed_at,
    softmaxes,
    states_of_responses,
    text_decoder,
)
from pipeline.models.weights.held_weights import holds_fewer_bits, passes_as_held
from pipeline.models.weights.lora import plain_model, reference_on
from pipeline.models.weights.weight_format import Precision


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Quantities of each token of R rows; None if not requested.

    All are 0 where the mask is false; hidden states are 0 after the end of a response.

    Attributes:
        policy: [R, T] float32 natural-log probabilities, with gradient.
        kl: [R, T] KL(π_ref ‖ π) over the whole vocabulary, nats, with gradient.
        collision: [R, T] Σ_v π(v)², constant.
        entropy: [R, T] of the policy's softmax, nats, constant.
        hidden: [R, W, H] the policy's last hidden states, with gradient: those that predict the tokens of a row's
            response, in order, without the prompt's; the longest response has W tokens.
        reference_hidden: [R, W, H] for each layer of the reference without embeddings, or for the last layer alone;
            constant.
        weights, kl_weights, prior: [R, T] outputs of trained heads on the reference's hidden states; the caller that
            runs the heads fills them in.
        token_value: [R, T] the same of a head on the policy's.
    """

    policy: Tensor
    kl: Tensor | None = None
    collision: Tensor | None = None
    entropy: Tensor | None = None
    hidden: Tensor | None = None
    reference_hidden: tuple[Tensor, ...] | None = None
    weights: Tensor | None = None
    kl_weights: Tensor | None = None
    prior: Tensor | None = None
    token_value: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Arguments of a model, and ``wanted``, the flattened positions that predict requested tokens, row by row.

    Further positions at the end of ``wanted`` are only padding. ``asked``: for a stream, its distinct positions.
    """

    arguments: dict[str, Any]
    wanted: Tensor
    asked: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """One forward pass: the input of the head, and hidden states, both at the wanted positions."""

    source: HeadInput
    vocabulary: int
    layers: tuple[Tensor, ...]


class TokenLogps(nn.Module):
    """A policy as a module from token ids to quantities of those tokens.

    It is a separate module, so that wrappers for several processes see one ``forward``. The reference model is held,
    not owned: it is not part of the parameters, of the state dict or of what a wrapper synchronises.
    """

    def __init__(
        self,
        model: Any,
        dtype: Precision = "float32",
        wants: frozenset[Fact] = frozenset(),
        reference_model: Any | None = None,
        chunk_elements: int = CHUNK_ELEMENTS,
        share_prompts: bool = False,
        whole_rows: bool = False,
        context: ContextGroup | None = None,
    ) -> None:
        """See the class.

        Args:
            model: a policy.
            dtype: of matrix products (autocast), bfloat16 if ``holds_fewer_bits``; log-softmax is always float32.
            wants: quantities besides log-probabilities.
            reference_model: for ``kl`` and hidden states of the reference; on the policy's device, put in evaluation
                mode. If it is ``model`` itself: with its reference adapter, or without any (``reference_on``).
            chunk_elements: logits held at once.
            share_prompts: take packed streams if both models can; ``padded_because`` gives the reason if not.
            whole_rows: every layer computes every token of a row, also those whose values nothing reads: for routers.
            context: compute the rows together with these processes; each gets the values of all tokens, and gradients
                for its own part of them.

        Raises:
            UserError: ``context`` with a model whose layers cannot be divided.
            ValueError: ``wants`` needs a reference model that is missing, or the reference model is the policy.
        """
        super().__init__()
        if wants & OF_REFERENCE and reference_model is None:
            raise ValueError(f"{', '.join(sorted(wants & OF_REFERENCE))}: no reference model")
        if reference_model is model and plain_model(model) is model:
            raise ValueError("the reference model is the policy itself, which has no adapter to switch off")
        self.model = model
        self.dtype: Precision = "bfloat16" if holds_fewer_bits(plain_model(model)) else dtype
        self.wants = wants
        self.chunk_elements = chunk_elements
        self._head = self._reference_head = _head_of(model)
        # A tuple keeps it out of the module's children.
        self._reference: tuple[Any, ...] = () if reference_model is None else (reference_model,)
        self._around: tuple[Callable[[Callable[[], Any]], Any], ...] = ()
        if reference_model is not None and reference_model is not model:
            self._reference_head = _head_of(reference_model)
            reference_model.eval()
        self._whole_rows = whole_rows
        # Of its layers on CUDA: see ``prepare_stream``.
        self.asked: set[Reach] = set()
        self.padded_because: str | None = "packing is off"
        # Modules of the policy and of the reference that compute only the requested positions.
        self._narrow: tuple[tuple[nn.Module, ...], ...] = ((), ())
        self._context = context
        told = _why_padded(model, reference_model) if share_prompts or context is not None else None
        if context is not None and told is not None:
            raise UserError(f"training.context_parallel: {context.size}, but {told}; allowed for this model: 1")
        if share_prompts:
            self.padded_because = told
            if told is None and not whole_rows and context is None:
                self._narrow = tuple(() if m is None else _narrow(m) for m in (model, reference_model))

    def forward(self, ids: Tensor, mask: Tensor, packed: Packed | PaddedTurns | None = None) -> TokenFacts:
        """Facts of ids[:, t] given ids[:, :t] where ``mask`` is true.

        Args:
            ids: [R, T], padded at the right. Causal attention needs no mask for that: padding comes
                after every token whose log-probability is requested.
            mask: [R, T] bool; position 0 has nothing before it and is never requested.
            packed: what the models read instead: the same rows as one stream, or padded rows of several turns.

        Raises:
            RunError: policy and reference have vocabularies of different sizes.
        """
        rows = mask[:, 1:].reshape(-1).nonzero().squeeze(1)
        targets = ids[:, 1:].reshape(-1)[rows]
        read, asked = (packed.ids, packed.mask) if isinstance(packed, PaddedTurns) else (ids, mask)
        # The last token of a row predicts nothing.
        asked = pad(asked[:, 1:], (0, int(self._whole_rows)))
        read = read if self._whole_rows else read[:, :-1]
        inputs = _Inputs({"input_ids": read}, asked.reshape(-1).nonzero().squeeze(1))
        part: OwnPart | None = None
        if self._context is not None:
            stream = packed if isinstance(packed, Packed) else rows_as_stream(read, asked)
            part = own_part(self._context, stream, ROUNDING.get((ids.device.type, self.dtype), 1))
            targets = pad(targets[part.here], (0, len(part.wanted) - len(part.here)))
            inputs = _Inputs(stream_arguments(part.stream, own=part.tokens), part.wanted)
        elif isinstance(packed, Packed):
            multiple = ROUNDING.get((ids.device.type, self.dtype), 1)
            filling = (0, -len(targets) % multiple)
            targets = pad(targets, filling)
            stream, wanted = packed.rounded(multiple), pad(packed.predictors, filling)
            inputs = _Inputs(stream_arguments(stream, self.asked), wanted, places(wanted, len(stream.ids), multiple))
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            # First, since the policy's adapter must not be switched off and on between its passes.
            theirs = self._reference_run(inputs)
            with _no_more_than_asked(self.model, self._narrow[0], inputs):
                ours = _run(self.model, self._head, inputs, all_layers=False, last="hidden" in self.wants)
            found = self._softmaxes(ours, theirs, targets)

        def placed(values: Tensor | None) -> Tensor | None:
            return None if values is None else placed_at(whole(values), rows, ids.shape)

        def whole(values: Tensor) -> Tensor:
            return values if part is None else part.whole(values)

        hidden = states_of_responses(tuple(map(whole, ours.layers)), mask)
        return TokenFacts(
            policy=placed_at(whole(found.logps), rows, ids.shape),
            kl=placed(found.kl),
            collision=placed(found.collision),
            entropy=placed(found.entropy),
            hidden=None if hidden is None else hidden[-1],
            reference_hidden=None if theirs is None else states_of_responses(tuple(map(whole, theirs.layers)), mask),
        )

    def _softmaxes(self, ours: _Run, theirs: _Run | None, targets: Tensor) -> Softmaxes:
        reference = None
        if theirs is not None and "kl" in self.wants:
            if theirs.vocabulary != ours.vocabulary:
                raise RunError(f"the policy has {ours.vocabulary} tokens, the reference {theirs.vocabulary}")
            reference = theirs.source
        return softmaxes(
            ours.source,
            targets,
            ours.vocabulary,
            reference=reference,
            collision="collision" in self.wants,
            entropy="entropy" in self.wants,
            elements=self.chunk_elements,
        )

    @torch.no_grad()
    def _reference_run(self, inputs: _Inputs) -> _Run | None:
        if not self.wants & OF_REFERENCE:
            return None
        (reference,) = self._reference
        every, last = "reference_hidden" in self.wants, "reference_last_hidden" in self.wants
        with (
            reference_on(reference) if reference is self.model else nullcontext(),
            _no_more_than_asked(reference, self._narrow[1], inputs),
        ):
            pass_: Callable[[], _Run] = partial(
                _run, reference, self._reference_head, inputs, all_layers=every, last=last
            )
            return self._around[0](pass_) if self._around else pass_()

    def run_reference_in(self, around: Callable[[Callable[[], Any]], Any]) -> None:
        """Let ``around`` call each pass of the reference: what shards its weights gathers them then."""
        # A tuple keeps a module out of the children.
        self._around = (around,)


def _why_padded(model: Any, reference_model: Any | None) -> str | None:
    """Why prompts cannot be shared; if they can, switch both models to shared attention and return None."""
    models = [plain_model(m) for m in (model, reference_model) if m is not None]
    for one in models:
        with passes_as_held(one):
            reason = why_not_shared(one)
        if reason is not None:
            return reason
    for one in models:
        share(one)
    return None


def _narrow(model: Any) -> tuple[nn.Module, ...]:
    with passes_as_held(plain := plain_model(model)):
        return position_wise(text_decoder(plain))


def _head_of(model: Any) -> OutputHead | None:
    with passes_as_held(plain := plain_model(model)):
        return output_head(plain)


def _no_more_than_asked(model: Any, modules: tuple[nn.Module, ...], inputs: _Inputs) -> AbstractContextManager[None]:
    if inputs.asked is None:
        return nullcontext()
    return no_more_than(inputs.asked, inputs.arguments["input_ids"].shape[1], plain_model(model), modules)


def _run(model: Any, head: OutputHead | None, inputs: _Inputs, *, all_layers: bool, last: bool) -> _Run:
    """Run the decoder once; if its way from states to logits is unknown, run the whole model with all its logits."""
    if head is not None:
        output = text_decoder(plain_model(model))(**inputs.arguments, use_cache=False, output_hidden_states=all_layers)
        states = final = output.last_hidden_state
        vocabulary = head.linear.out_features
    else:
        output = model(**inputs.arguments, use_cache=False, output_hidden_states=all_layers or last)
        states, final = output.logits, output.hidden_states[-1] if last else None
        vocabulary = output.logits.shape[-1]

    def wanted(values: Tensor) -> Tensor:
        return values.flatten(0, 1).index_select(0, inputs.wanted)

    layers = output.hidden_states[1:] if all_layers else ((final,) if last else ())
    at_head = wanted(states)
    return _Run(
        HeadInput(head or nn.Identity(), at_head),
        vocabulary,
        tuple(at_head if layer is states else wanted(layer) for layer in layers),
    )
