"""Draws of (level of noise, noise): what stands for the tokens of an image.

Each comes from the seed of its pair and its own number alone, on the CPU, so that both sides of a pair, the policy and
the reference, and every machine have the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.images.scoring import ImageScore
from pipeline.types import derive_seed


@dataclass(frozen=True, slots=True)
class Draws:
    """D distinct draws, and which of them each of R rows has.

    Attributes:
        of_row: [R] int64.
        level: [D] int64, from 0, the least noisy.
        noise: [D, C, H, W] float32.
        emptied: [D] bool, whether the prompt is left out.
    """

    of_row: Tensor
    level: Tensor
    noise: Tensor
    emptied: Tensor


def draw_rows(keys: Sequence[tuple[int, int]], shape: Sequence[int], levels: int, settings: ImageScore) -> Draws:
    """Return the draws of R rows; rows with equal keys share one.

    Args:
        keys: seed and number of each row's draw.
        shape: of one noise.
        levels: of the schedule.
        settings: how levels are drawn, and how often prompts are emptied.
    """
    place: dict[tuple[int, int], int] = {}
    of_row = torch.tensor([place.setdefault(key, len(place)) for key in keys], dtype=torch.int64)
    level, emptied = torch.empty(len(place), dtype=torch.int64), torch.empty(len(place), dtype=torch.bool)
    noise = torch.empty(len(place), *shape)
    generator = torch.Generator()
    for (seed, number), row in place.items():
        generator.manual_seed(derive_seed(seed, number))
        level[row] = _level(generator, levels, settings)
        emptied[row] = bool(torch.rand((), generator=generator) < settings.empty_prompts)
        torch.randn(shape, generator=generator, out=noise[row])
    return Draws(of_row, level, noise, emptied)


def _level(generator: torch.Generator, levels: int, settings: ImageScore) -> int:
    low, high = int(settings.levels[0] * levels), math.ceil(settings.levels[1] * levels)
    if settings.timesteps == "uniform":
        return low + int(torch.randint(high - low, (), generator=generator))
    share = torch.randn((), generator=generator, dtype=torch.float64).sigmoid()
    return min(low + int(share * (high - low)), high - 1)
