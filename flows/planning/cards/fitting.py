"""Which cards a training fits on: bytes of one card by part. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flows.planning.cards.recipes import PartCounts, Recipe
from pipeline.errors import UserError
from pipeline.training.distributed.launch import WHOLE_SUMS

GB = 1000**3
# Estimates: a process's CUDA context with its libraries' workspaces, and the share of temporary memory that a caching
# allocator loses between blocks.
CONTEXT_BYTES, LOST_SHARE = 800 * 1000**2, 0.05
# FSDP2 gathers one layer while the one before is computed.
_GATHERED = 2


@dataclass(frozen=True, slots=True)
class Card:
    """``count`` accelerators of ``size`` bytes each."""

    size: int
    count: int = 1

    def __str__(self) -> str:
        """As the user writes it: 24 GB, 8 x 80 GB."""
        one = f"{self.size / GB:g} GB"
        return one if self.count == 1 else f"{self.count} x {one}"


def parse_cards(text: str) -> tuple[Card, ...]:
    """Read cards such as ``24,80,8x80``, in GB of 10⁹ bytes. Raises ``UserError`` for anything else."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,4})\s*[x×])?\s*(\d{1,5}(?:\.\d+)?)\s*(?:GB)?\s*", part, re.IGNORECASE)
        count, size = (1, 0.0) if match is None else (int(match[1] or 1), float(match[2]))
        if count < 1 or size <= 0:
            raise UserError(
                f"--cards: {part.strip() or '(nothing)'}: must be GB, such as 24, or COUNTxGB, such as 8x80"
            )
        found.append(Card(round(size * GB), count))
    return tuple(found)


def training_parts(recipe: Recipe, counts: PartCounts, activations: int, card: Card) -> dict[str, int]:
    """Bytes that one card of ``card`` holds while training, by part.

    With several cards the weights that no 4 or 8 bits hold, gradients and optimiser state are sharded (FSDP2), and
    layers are gathered in 16 bits; quantised weights stand whole on each card.

    Args:
        recipe: how weights are held and stepped.
        counts: of the policy.
        activations: see ``traced_activations``; on several cards those of bfloat16 weights, since nothing is cast.
        card: the accelerator or accelerators.
    """
    sharded = card.count > 1 and recipe.bits is None
    cut = card.count if sharded else 1
    casts = 0 if sharded else min(activations, recipe.cast_bytes(counts))
    gathered = (_GATHERED * counts.layer + counts.head + counts.rest) * 2 if sharded else 0
    # Of several passes, the gradients are summed whole where they are reduced once.
    gradients = recipe.gradient_bytes(counts)
    summed = gradients // cut + (gradients if sharded and gradients <= WHOLE_SUMS * card.size else 0)
    temporary = max(activations, recipe.step_bytes(counts) // cut) + gathered + recipe.dequantised_bytes(counts)
    parts = {
        "weights": recipe.weight_bytes(counts) // cut,
        "gradients": summed,
        "optimiser": recipe.optimiser_bytes(counts) // cut,
        "16-bit copies": casts + gathered + recipe.dequantised_bytes(counts),
        # A step comes when the passes are over.
        "activations": max(activations, recipe.step_bytes(counts) // cut) - casts,
        "context": CONTEXT_BYTES + round(LOST_SHARE * temporary),
    }
    return {name: size for name, size in parts.items() if size}


def least_parts(recipe: Recipe, counts: PartCounts, card: Card) -> dict[str, int]:
    """What is sure to be held, whatever the lengths: weights, gradients and optimiser state, and the context."""
    found = training_parts(recipe, counts, 0, card)
    return {name: found[name] for name in ("weights", "gradients", "optimiser") if name in found} | {
        "context": CONTEXT_BYTES
    }


def advice(recipe: Recipe) -> str:
    """What to change if a training does not fit."""
    if not recipe.adapter:
        return "add a section training.lora, or set training.optimiser: adamw_8bit, or use more or larger cards"
    if recipe.bits is None:
        return "set policy.quantisation: {bits: 4}, or use more or larger cards"
    return (
        "shorten chat.max_prompt_tokens and sampling.max_tokens, lower training.micro_batch_size, or use a larger card"
    )


def whole_of(parts: Mapping[str, int]) -> int:
    """Bytes of all parts."""
    return sum(parts.values())
