"""Bytes of weights, gradients and optimiser state of a training, from counts of parameters. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.planning.arithmetic import STATE_BYTES
from pipeline.config import Optimisation, RunConfig
from pipeline.config.training import OptimiserKind
from pipeline.models.weights.weight_format import WeightDtype, frozen_format
from pipeline.training.distributed.launch import STEP_SLICE

_ITEM: Mapping[WeightDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# bitsandbytes: blocks of 64 weights share a float32 scale; with double quantisation a scale has 8 bits, and 256 scales
# share one of float32 (QLoRA, arXiv:2305.14314, section 3). In 8 bits each output row has one (arXiv:2208.07339).
_BLOCK, _SCALES = 64, 256
# Bytes a weight of a step that rounds at random.
_ROUNDING = 19


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Parameters of a policy by what may happen to them.

    Attributes:
        linear: weights of linear layers other than the output head: those that are quantised.
        head: the output head's, 0 if it is the embedding's.
        rest: embeddings, norms, biases and whatever else there is.
        adapter: of the adapter that is trained instead, if any.
        largest: the largest linear layer's.
        layer: the largest decoder layer's, with its adapter: what FSDP2 gathers at a time.
        rows: output rows of all linear layers.
        widest: the largest single tensor's, which is stepped at once.
    """

    linear: int
    head: int
    rest: int
    adapter: int = 0
    largest: int = 0
    layer: int = 0
    rows: int = 0
    widest: int = 0

    @property
    def base(self) -> int:
        """Parameters without the adapter."""
        return self.linear + self.head + self.rest


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a policy's weights are held and stepped.

    Attributes:
        name: for tables.
        held: dtype of the weights that are not quantised.
        bits: of quantised linear layers; None: not quantised.
        double: whether scales of 4 bits are quantised too.
        adapter: whether an adapter is trained instead of the weights.
        optimiser: see ``training.optimiser``.
        matmul: dtype of matrix products, ``training.dtype``.
    """

    name: str
    held: WeightDtype
    adapter: bool = False
    bits: Literal[4, 8] | None = None
    double: bool = True
    optimiser: OptimiserKind = "adamw"
    matmul: Literal["float32", "bfloat16"] = "bfloat16"

    def linear_bytes(self, counts: PartCounts) -> float:
        """Bytes of the linear layers as they are held."""
        match self.bits:
            case None:
                return counts.linear * _ITEM[self.held]
            case 8:
                return counts.linear + 4 * counts.rows
            case 4:
                scales = 1 / _BLOCK + 4 / (_BLOCK * _SCALES) if self.double else 4 / _BLOCK
                return counts.linear * (0.5 + scales)

    def weight_bytes(self, counts: PartCounts) -> int:
        """Bytes of all weights, with the adapter, which is float32."""
        others = (counts.head + counts.rest) * _ITEM[self.held]
        return round(self.linear_bytes(counts) + others + counts.adapter * 4)

    def trained(self, counts: PartCounts) -> int:
        """Number of parameters that are stepped."""
        return counts.adapter if self.adapter else counts.base

    @property
    def step_item(self) -> int:
        """Bytes of a stepped weight."""
        return 4 if self.adapter else _ITEM[self.held]

    def gradient_bytes(self, counts: PartCounts) -> int:
        """Bytes of the gradients: sums over several passes are float32, whatever the weights are."""
        return self.trained(counts) * 4

    def optimiser_bytes(self, counts: PartCounts) -> int:
        """Bytes of AdamW's two moments, float32 or 8 bits."""
        return self.trained(counts) * STATE_BYTES[self.optimiser]

    def step_bytes(self, counts: PartCounts) -> int:
        """Bytes of the step itself: 16-bit weights are stepped a slice at a time, in float32, and rounded at random.

        That makes the slice in float32, random bits, their sum, what is finite of it, and its rounding.
        """
        return 0 if self.step_item == 4 else min(counts.widest, STEP_SLICE) * _ROUNDING

    def cast_bytes(self, counts: PartCounts) -> int:
        """Bytes of the 16-bit copies of trained float32 weights that autocast keeps through a forward pass."""
        if self.matmul == "float32" or self.step_item < 4:
            return 0
        return (counts.adapter if self.adapter else counts.linear + counts.head) * 2

    def dequantised_bytes(self, counts: PartCounts) -> int:
        """Bytes of the one quantised layer that is turned into 16 bits for its product."""
        return 0 if self.bits is None else counts.largest * 2


# What a policy on a card may be trained with; the first three lines are the usual ones.
RECIPES = (
    Recipe("QLoRA, 4 bits", "bfloat16", adapter=True, bits=4),
    Recipe("LoRA, 8 bits", "bfloat16", adapter=True, bits=8),
    Recipe("LoRA, 16 bits", "bfloat16", adapter=True),
    Recipe("full, bfloat16, 8-bit state", "bfloat16", optimiser="adamw_8bit"),
    Recipe("full, bfloat16", "bfloat16"),
    Recipe("full, float32, 8-bit state", "float32", optimiser="adamw_8bit"),
    Recipe("full, float32", "float32"),
)


def recipe_of(config: RunConfig, settings: Optimisation, path: str | Path, name: str = "this config") -> Recipe:
    """The recipe of a config's preference training, or of its warm start, which trains all weights.

    ``path``: of the start policy.
    """
    if settings is config.training and config.training.lora is not None:
        form = frozen_format(config, path)
        bits, double = (None, True) if form.quantisation is None else (form.quantisation.bits, form.quantisation.double)
        return Recipe(name, form.dtype, True, bits, double, settings.optimiser, form.passes(settings.dtype))
    held: WeightDtype = config.training.weights if settings is config.training else "float32"
    return Recipe(name, held, optimiser=settings.optimiser, matmul=settings.dtype)
