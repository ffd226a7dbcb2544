"""Image pairs, and training of tiny diffusion models on them."""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.config import Optimisation
from pipeline.config.images.scoring import ImageScore
from pipeline.images.denoising_scores import DenoisingScores, ImageTable, image_ids, prompt_of_draws
from pipeline.images.image_policy import ImagePolicy
from pipeline.training.batches.examples import Example
from pipeline.training.reference import reference_logps, with_references

PAIRS = 8


def image_table(policy: ImagePolicy, prompts: Sequence[Any], images: int = 2 * PAIRS, seed: int = 0) -> ImageTable:
    """Bluish images, in which the first half of the rows is bluer than the second."""
    draw = torch.Generator().manual_seed(seed)
    latents = 0.3 * torch.randn(images, *policy.shape, generator=draw)
    latents[: images // 2, -1] += 0.7
    null = policy.encode([None]) if policy.condition == "text" or policy.null_class is not None else None
    return ImageTable(latents, policy.encode(prompts), null)


def image_pairs(
    score: ImageScore, epochs: int = 1, seed: int = 0, count: int = PAIRS, *, swapped: bool = False
) -> list[Example]:
    """Pairs of a row of the first half with one of the second; the conditions are those of rows 0 and 1."""
    draws = score.draws * epochs
    rows = [(row, row + count)[:: -1 if swapped else 1] for row in range(count)]
    return [
        Example.pair(f"p{n}", prompt_of_draws(seed, f"p{n}", n % 2), image_ids(one, draws), image_ids(other, draws))
        for n, (one, other) in enumerate(rows)
    ]


def scores_of(
    policy: ImagePolicy, prompts: Sequence[Any], score: ImageScore, epochs: int = 1, rows: int | None = None
) -> DenoisingScores:
    table = image_table(policy, prompts)
    return DenoisingScores(policy, table, score, epochs, rows=rows)


def with_stored(scores: DenoisingScores, examples: Sequence[Example]) -> list[Example]:
    return with_references(examples, [reference_logps(scores, examples)])


def optimisation(**settings: Any) -> Optimisation:
    told = {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0}
    return Optimisation(**{**told, **settings})
