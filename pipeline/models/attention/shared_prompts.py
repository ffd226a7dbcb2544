"""Attention over packed streams: exact, tree by tree, for models that take attention from transformers' registry.

Only attention knows about trees; the rest of the model runs on the stream's N tokens as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.models.attention.blocks import Layout, attend_in_blocks, layout, seen_tokens
from pipeline.models.attention.context import OwnTokens
from pipeline.models.attention.flex import attend_flexibly, block_mask
from pipeline.models.attention.packing import Packed, pack
from pipeline.models.attention.reach import IMPLEMENTATION, LayerMask, Reach, stream_mask
from pipeline.models.attention.reasons import why_unlike_rows
from pipeline.models.attention.scores import attend_by_scores
from pipeline.models.attention.spans import Parts, attend_in_spans, own_parts, parts
from pipeline.models.weights.weight_format import Precision

# Arguments with which layers ask for what is not computed here, and which SDPA ignores.
_NOT_COMPUTED = ("position_bias", "indices", "block_indices")
# Largest difference of the trial's logits, in their standard deviations.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
# Streams are padded to these multiples of tokens. oneDNN, which multiplies in bfloat16 on CPU, keeps a kernel and its
# memory for every shape that it has met: hundreds of MiB after a few dozen passes. On CUDA, FlexAttention is compiled
# for shapes, and its blocks have 128 tokens.
_ON_CUDA: tuple[tuple[str, Precision], ...] = ("cuda", "float32"), ("cuda", "bfloat16")
ROUNDING: Mapping[tuple[str, Precision], int] = {("cpu", "bfloat16"): 64, **dict.fromkeys(_ON_CUDA, 128)}
# What a model's own code may raise over arguments that it does not expect.
_NOT_TAKEN = (
    TypeError,
    ValueError,
    RuntimeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NameError,
)


@dataclass
class Shared:
    """A packed stream's layouts for attention, in the form that each device needs; made once for layers of one reach.

    Attributes:
        packed: the stream.
        asked: reaches that layers have asked for on CUDA, of this stream and earlier ones.
        own: the tokens of this process, if a group of them computes the stream.
        longest: tokens of its longest row.
    """

    packed: Packed
    asked: set[Reach] = field(default_factory=set)
    own: OwnTokens | None = None
    longest: int = 0
    _parts: dict[Reach, Parts] = field(default_factory=dict)
    _masks: dict[Reach, BlockMask] = field(default_factory=dict)
    _layouts: dict[Reach, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.longest = self.packed.longest

    @property
    def positions(self) -> Tensor:
        """[n] of the tokens that this process computes."""
        of = self.packed.positions
        return of if self.own is None else of[self.own.index(of.device)]

    def parts(self, reach: Reach) -> Parts:
        """For CPU."""
        if reach not in self._parts:
            every = parts(self.packed, reach)
            self._parts[reach] = every if self.own is None else own_parts(every, self.own.ranges)
        return self._parts[reach]

    def block_mask(self, reach: Reach) -> BlockMask:
        """For CUDA."""
        if reach not in self._masks:
            self._masks[reach] = block_mask(self.packed, reach, self.own)
        return self._masks[reach]

    def layout(self, reach: Reach) -> Layout:
        """For any device."""
        if reach not in self._layouts:
            self._layouts[reach] = layout(self.packed, reach)
        return self._layouts[reach]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in the form of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [B, heads, T, D]; ``key`` and ``value`` may have fewer heads, a divisor.
        attention_mask: for one packed stream, B = 1, a ``LayerMask``; for plain rows, as transformers makes it.
        scaling: of the products.
        dropout: probability.
        softcap, s_aux: the cap on scores and the sinks of ``attend_by_scores``.
        others: arguments of other attention functions.

    Returns:
        ([B, T, heads, D], None).

    Raises:
        ValueError: a layer asks for more, or has masks of its own.
    """
    unknown = sorted(name for name in _NOT_COMPUTED if others.get(name) is not None)
    if unknown:
        raise ValueError(f"its attention has {', '.join(unknown)}")
    if not isinstance(attention_mask, LayerMask):
        if softcap is not None or s_aux is not None:
            found = attend_by_scores(query, key, value, attention_mask, scaling, dropout, softcap, s_aux)
            return found.transpose(1, 2), None
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    shared, reach = attention_mask.stream, attention_mask.reach
    if not isinstance(shared, Shared) or reach is None:
        raise ValueError("its attention has masks of its own")
    wanted, reach = reach, reach.within(shared.longest)
    query = _tempered(module, query, shared.positions)
    if shared.own is not None:
        key, value = shared.own.gathered(key, value)
    device, dropped = query.device.type, dropout > 0
    if device == "cuda" and not dropped:
        shared.asked.add(wanted)
        return attend_flexibly(query, key, value, shared.block_mask(reach), scaling, softcap, s_aux), None
    if device == "cpu" and not dropped and softcap is None and query.shape[-1] == value.shape[-1]:
        return attend_in_spans(query, key, value, shared.parts(reach), scaling, s_aux), None
    if shared.own is not None:
        seen = seen_tokens(shared.packed, shared.own.index(query.device), reach)
        found = attend_by_scores(query, key, value, seen, scaling, dropout, softcap, s_aux)
        return found.transpose(1, 2), None
    return attend_in_blocks(query, key, value, shared.layout(reach), scaling, dropout, softcap, s_aux), None


def _tempered(module: Any, query: Tensor, positions: Tensor) -> Tensor:
    """Give ``query`` the temperature of its positions where a layer has that of its places in the stream (Llama 4)."""
    settings = vars(module)
    if not settings.get("attn_temperature_tuning") or settings.get("use_rope", True):
        return query
    if len(positions) < settings["floor_scale"]:
        return query
    places = torch.arange(len(positions), device=positions.device)
    wanted, given = (
        torch.log1p(torch.floor((at.float() + 1) / settings["floor_scale"])) * settings["attn_scale"] + 1
        for at in (positions, places)
    )
    tempered: Tensor = (query * (wanted / given).unsqueeze(1)).to(query.dtype)
    return tempered


def share(model: Any) -> None:
    """Make ``model`` attend through ``attend``, which without a layout is the usual SDPA."""
    if model.config._attn_implementation != IMPLEMENTATION:
        model.set_attn_implementation(IMPLEMENTATION)


def trial(model: Any) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """A prompt of 6 ids that ``model`` knows, and continuations of 3 and 6, to test its attention."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = tuple((7 * i + 3) % rows for i in range(15))
    return ids[:6], [ids[6:9], ids[9:]]


@torch.no_grad()
def why_not_shared(model: Any) -> str | None:
    """Why a transformers model, or a decoder without head, cannot take packed streams exactly; None if it can.

    First its layers are looked at. Then a trial checks that two continuations of a shared prompt give the same values
    as they do alone. Windows longer than the trial are exact by the masks that layers ask for.
    """
    told = why_unlike_rows(model)
    if told is not None:
        return told
    before, training = model.config._attn_implementation, model.training
    model.eval()
    try:
        expected = _trial_alone(model)
        share(model)
        apart = float((_trial_shared(model) - expected).abs().max() / expected.std())
    except _NOT_TAKEN as error:
        model.set_attn_implementation(before)
        told = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{type(model).__name__} does not take packed streams: {told}"
    finally:
        model.train(training)
    if not apart <= TOLERANCE[model.dtype]:
        model.set_attn_implementation(before)
        return f"{type(model).__name__} computes other values for shared prompts, {apart:.2g} deviations off"
    return None


def _trial_alone(model: Any) -> Tensor:
    prompt, continuations = trial(model)
    found = []
    for ids in continuations:
        values = _first_output(model, {"input_ids": torch.tensor([prompt + ids], device=model.device)})
        found.append(values[len(prompt) - 1 :])
    return torch.cat(found)


def _trial_shared(model: Any) -> Tensor:
    prompt, continuations = trial(model)
    packed = pack([(prompt, ids) for ids in continuations]).to(model.device)
    values = _first_output(model, stream_arguments(packed))
    # Each continuation alone has its last token's values too.
    ends = [len(prompt) + 2, len(prompt) + 8]
    wanted = [*packed.predictors[:3].tolist(), ends[0], *packed.predictors[3:].tolist(), ends[1]]
    return values[wanted]


def _first_output(model: Any, arguments: dict[str, Any]) -> Tensor:
    """[N, ...] logits of a language model, hidden states of a decoder without head."""
    found: Tensor = model(**arguments, use_cache=False)[0][0].float()
    return found


def stream_arguments(packed: Packed, asked: set[Reach] | None = None, own: OwnTokens | None = None) -> dict[str, Any]:
    """Arguments of the call of a model that shares prompts; ``asked``, ``own``: see ``Shared``."""
    shared = Shared(packed, set() if asked is None else asked, own)
    ids = packed.ids if own is None else packed.ids[own.index(packed.ids.device)]
    return {
        "input_ids": ids.unsqueeze(0),
        "position_ids": shared.positions.unsqueeze(0),
        "attention_mask": stream_mask(shared, len(ids), ids.device),
    }


def prepare_stream(packed: Packed, device: str, dtype: Precision, asked: set[Reach]) -> None:
    """Make on the host what ``Shared.block_mask`` will need on ``device``, for the reaches ``asked`` before.

    May run in a thread beside the passes of earlier streams.
    """
    multiple, outline = ROUNDING.get((device, dtype), 1), packed.outlined()
    count = -(-len(packed.ids) // multiple) * multiple
    for reach in [*asked]:
        outline.table(reach.within(packed.longest), count)


AttentionInterface.register(IMPLEMENTATION, attend)
