"""Activations of a training step, from a step on tensors without data.

The model's own code runs, with its own config, on ``FakeTensorMode``: every tensor has a shape, a dtype and a lifetime,
and none has data. So what a step holds at its peak is counted for a model of any size in seconds, on any machine.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from flows.planning.arithmetic import carried_on
from flows.planning.cards.recipes import PartCounts, Recipe
from flows.planning.probe import DTYPES, with_layers
from pipeline.config import Lora
from pipeline.models.architectures import auto_class
from pipeline.models.output_head import CACHED_ELEMENTS, CHUNK_ELEMENTS, HeadInput, OutputHead, softmaxes, text_decoder
from pipeline.models.weights.lora import add_adapter, plain_model

# Rows of the head that are traced: two chunks, so that it recomputes. The rest is arithmetic.
_ROWS, _CHUNK = 4, 2
_NAME = "prefloop_traced"
# Numbers of layers that are traced: two of them show what a layer adds. Kinds of layers alternate by 2, 3, 4 or 6.
_FEW_LAYERS = (6, 12)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations inside the context have made and that still live; and their peak."""

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        """``before``: tensors that exist already; their memory, which views share, does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {t.untyped_storage()._cdata: 0 for t in before}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it returns."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if size and place not in self._sizes:
            self._sizes[place] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, place)

    def _free(self, place: int) -> None:
        self.now -= self._sizes.pop(place)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now


@dataclass(frozen=True, slots=True)
class PassShape:
    """One forward pass with gradient over ``trees`` examples, all of the same lengths.

    Attributes:
        trees: number of examples, each a prompt of ``prompt`` tokens with ``responses`` of ``response`` tokens.
        packed: whether prompts are computed once for all their responses.
        checkpointing: whether layers are computed again in the backward pass.
    """

    trees: int
    prompt: int
    response: int
    responses: int = 2
    packed: bool = True
    checkpointing: bool = False

    @property
    def predicted(self) -> int:
        """Number of positions that the output head predicts."""
        return self.trees * self.responses * self.response

    @property
    def rows(self) -> tuple[int, int]:
        """Number of rows, and their length: one stream, or a padded row for each response."""
        if self.packed:
            return 1, self.trees * (self.prompt + self.responses * self.response)
        return self.trees * self.responses, self.prompt + self.response - 1

    @property
    def tokens(self) -> int:
        """Number of tokens that are computed."""
        rows, length = self.rows
        return rows * length


def counted_parts(shape: Any, lora: Lora | None, *, trust_remote_code: bool = False) -> PartCounts:
    """Count the parameters of a model with the transformers config ``shape``, without weights."""
    model = _without_weights(shape, lora, torch.float32, trust_remote_code)
    plain, adapter = plain_model(model), [] if lora is None else [p for p in model.parameters() if p.requires_grad]
    head, added = plain.get_output_embeddings(), {id(p) for p in adapter}
    seen: dict[int, nn.Parameter] = {id(p): p for p in model.parameters() if id(p) not in added}
    embedding = plain.get_input_embeddings().weight
    weight = _weight_of(head)
    separate = weight is not None and weight is not embedding
    linear = {
        id(module.weight): module
        for module in plain.modules()
        if isinstance(module, nn.Linear) and module.weight is not weight and id(module.weight) in seen
    }
    total, of_linear = sum(p.numel() for p in seen.values()), sum(m.weight.numel() for m in linear.values())
    of_head = weight.numel() if separate and weight is not None else 0
    blocks = [sum(p.numel() for p in layer.parameters()) for layer in _layers(plain)]
    return PartCounts(
        linear=of_linear,
        head=of_head,
        rest=total - of_linear - of_head,
        adapter=sum(p.numel() for p in adapter),
        largest=max((m.weight.numel() for m in linear.values()), default=0),
        layer=max(blocks, default=0),
        rows=sum(m.weight.shape[0] for m in linear.values()),
        widest=max(p.numel() for p in seen.values()),
    )


def traced_activations(
    shape: Any,
    recipe: Recipe,
    lora: Lora | None,
    pass_: PassShape,
    *,
    blocks: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Bytes that a forward and a backward pass hold at their peak besides weights and gradients.

    The gradients of earlier passes are there. Copies of weights that autocast makes count.

    Args:
        shape: the transformers config.
        recipe: how weights are held. Quantised layers are traced in 16 bits, and one of them dequantised is added.
        lora: the adapter of a recipe that has one.
        pass_: number and lengths of examples.
        blocks: see ``head_bytes``.
        trust_remote_code: run code that ships with the model.
    """
    layers = int(shape.get_text_config().num_hidden_layers)
    few = sorted({min(layers, count) for count in _FEW_LAYERS})
    found = [_peaks(with_layers(shape, count), recipe, lora, pass_, trust_remote_code) for count in few]
    forward, head, backward, embedding = (carried_on(few, column, layers) for column in zip(*found, strict=True))
    item = 4 if recipe.matmul == "float32" and recipe.held == "float32" else 2
    logits = head_bytes(shape.get_text_config().vocab_size, pass_.predicted, item, blocks=blocks)
    # Logits are gone when the backward pass reaches the layers.
    return round(max(forward, head + logits, backward, embedding))


def _peaks(
    shape: Any, recipe: Recipe, lora: Lora | None, pass_: PassShape, trust_remote_code: bool
) -> tuple[int, int, int, int]:
    """Peaks in the forward pass up to the head, in the head, in the layers' backward pass, and in the embedding's.

    Each of these grows by the same with every layer, or not at all; the largest of them need not.
    """
    model = _without_weights(shape, lora if recipe.adapter else None, DTYPES[recipe.held], trust_remote_code)
    plain = plain_model(model)
    if plain._can_set_attn_implementation():
        plain.set_attn_implementation(_NAME)
    with FakeTensorMode():
        fill_without_data(model)
        if pass_.checkpointing:
            plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        for parameter in model.parameters():
            if parameter.requires_grad:
                # As the trainer does for the sum of several passes.
                parameter.grad_dtype = torch.float32
                parameter.grad = torch.empty_like(parameter, dtype=torch.float32)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        live = LiveBytes([*model.parameters(), *model.buffers(), *gradients])
        with live:
            return _step(plain, pass_, live, autocast=recipe.matmul == "bfloat16")


def _step(model: Any, pass_: PassShape, live: LiveBytes, *, autocast: bool) -> tuple[int, int, int, int]:
    peaks: list[int] = []

    def reached(_: Tensor) -> None:
        peaks.append(live.peak)
        live.restart()

    def watch(_: nn.Module, __: Any, made: Tensor) -> None:
        if made.requires_grad:
            made.register_hook(reached)  # type: ignore[no-untyped-call]

    # The trees of a stream see less of it than one row's tokens do, but what is kept for the gradient is the same.
    ids, wanted = torch.zeros(pass_.rows, dtype=torch.int64), torch.zeros(pass_.predicted, dtype=torch.int64)
    head, vocabulary = model.get_output_embeddings(), model.config.get_text_config().vocab_size
    watching = model.get_input_embeddings().register_forward_hook(watch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        asked = states.flatten(0, 1).index_select(0, wanted)
        asked.register_hook(reached)
        forward = live.peak
        live.restart()
        some = HeadInput(OutputHead(head), asked[:_ROWS])
        found = softmaxes(some, wanted[:_ROWS], vocabulary, elements=_CHUNK * vocabulary)
    watching.remove()
    found.logps.sum().backward()  # type: ignore[no-untyped-call]
    # A frozen embedding has no backward pass.
    at_head, at_layers, at_embedding = [*peaks, live.peak, 0][:3]
    return forward, at_head, at_layers, at_embedding


def head_bytes(vocabulary: int, positions: int, item: int, *, blocks: bool) -> int:
    """Bytes of the output head's logits of ``positions`` positions, in chunks, and of their float32 log-softmax.

    Args:
        vocabulary: number of logits of one position.
        positions: that the head predicts.
        item: bytes of a logit: 2 in bfloat16, where the log-softmax needs a float32 copy too.
        blocks: whether the log-softmax is computed in small blocks, as on a CPU.
    """
    logits = min(positions, max(1, CHUNK_ELEMENTS // vocabulary)) * vocabulary
    at_once = min(logits, max(vocabulary, CACHED_ELEMENTS)) if blocks else logits
    return logits * item + at_once * (4 if item == 4 else 8)


def _without_weights(shape: Any, lora: Lora | None, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    make: Callable[..., Any] = auto_class(shape).from_config
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = make(shape, dtype=dtype, trust_remote_code=trust_remote_code)
        return model if lora is None else add_adapter(model, lora, seed=0)


def fill_without_data(model: nn.Module) -> None:
    """Move all of ``model`` from the device ``meta`` to the current mode's CPU; what was shared stays so."""
    made: dict[int, nn.Parameter] = {}
    # Kept until the end: an id must not be given twice.
    old = [*model.parameters()]
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    del old


def _weight_of(head: Any) -> nn.Parameter | None:
    base = head.get_base_layer() if hasattr(head, "get_base_layer") else head
    weight: nn.Parameter | None = getattr(base, "weight", None)
    return weight


def _layers(model: Any) -> Sequence[nn.Module]:
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _no_mask(*_: Any, **__: Any) -> None:
    """Causal attention without a mask, as SDPA computes it for rows that are padded at the right."""


AttentionInterface.register(_NAME, sdpa_attention_forward)
AttentionMaskInterface.register(_NAME, _no_mask)
