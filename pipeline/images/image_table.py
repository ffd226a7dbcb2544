"""The images that examples of training name by number, with the conditions of their prompts."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.images.networks import Conditions


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Latents and conditions that token ids stand for.

    Attributes:
        latents: [N, C, H, W], of any float type.
        conditions: [P, ...] each, of the P prompts; empty for an unconditional model.
        null: [1, ...] each: the condition of an emptied prompt; None: prompts are never emptied.
    """

    latents: Tensor
    conditions: Conditions
    null: Conditions | None = None
