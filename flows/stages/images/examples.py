"""A round's pairs of images as the trainer's examples: ids of draws in the place of ids of images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from flows.stages.context import Context
from flows.stages.training.examples import round_examples
from pipeline.config.loss.needs import needs_of
from pipeline.data.pictures.image_rows import IMAGES, image_response, read_images
from pipeline.errors import RunError
from pipeline.images.denoising_scores import DenoisingScores, ImageTable, image_ids, prompt_of_draws
from pipeline.images.image_policy import ImagePolicy
from pipeline.images.prompt_ids import prompt_of_ids
from pipeline.training.batches.examples import Continuation, Example
from pipeline.types import Group, derive_seed

_Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The images of a table and their prompts, by the ids that stored rows have."""

    table: ImageTable
    images: dict[_Ids, int]
    conditions: dict[_Ids, int]

    def renamed(self, examples: Iterable[Example], seed: int, draws: int) -> Iterator[Example]:
        """Give ``examples`` the ids of draws; ``draws``: of each image, in all epochs together."""
        for example in examples:
            prompt = prompt_of_draws(seed, example.id, self.conditions[example.prompt_ids])
            given = [replace(side, ids=self._draws_of(side, example, draws)) for side in example.continuations]
            yield replace(example.with_continuations(given), prompt_ids=prompt)

    def _draws_of(self, side: Continuation, example: Example, draws: int) -> _Ids:
        if side.ids not in self.images:
            raise RunError(f"example {example.id} names an image that the round's samples do not hold")
        return image_ids(self.images[side.ids], draws)


def index_of(folder: Path, prompts: Iterable[_Ids], policy: ImagePolicy) -> ImageIndex:
    """Read the images in ``folder``; encode ``prompts``, the ids of prompts as stored rows have them."""
    images: dict[_Ids, int] = {}
    latents: list[torch.Tensor] = []
    for image in read_images(folder):
        if image_response(image.id).token_ids not in images:
            images[image_response(image.id).token_ids] = len(latents)
            latents.append(torch.from_numpy(image.latents.reshape(image.shape)))
    if not latents:
        raise RunError(f"{folder}: holds no images")
    conditions = {ids: row for row, ids in enumerate(dict.fromkeys(prompts))}
    encoded = policy.encode([prompt_of_ids(ids, policy.condition) for ids in conditions])
    null = policy.encode([None]) if policy.condition == "text" or policy.null_class is not None else None
    return ImageIndex(ImageTable(torch.stack(latents), encoded, null), images, conditions)


def images_of_round(context: Context, round_: int) -> Path:
    """The folder of the images that a round's pairs name."""
    if context.config.mode == "offline":
        return context.run.stage(0, "data").folder / IMAGES
    return context.run.stage(round_, "samples").folder / IMAGES


def round_index(context: Context, round_: int, policy: ImagePolicy) -> ImageIndex:
    """The images and prompts of a round's pairs."""
    prompts = (example.prompt_ids for example in round_examples(context, round_))
    return index_of(images_of_round(context, round_), prompts, policy)


def image_round_examples(context: Context, round_: int, index: ImageIndex) -> Iterator[Example]:
    """The round's examples, without anything of the reference."""
    seed, score = derive_seed(context.config.seed, "draws", round_), context.config.training.score
    return index.renamed(round_examples(context, round_), seed, score.draws * epochs_of(context))


def epochs_of(context: Context) -> int:
    """Epochs of a round's training, the last of which may be cut."""
    return int(np.ceil(context.config.training.epochs))


def as_texts(groups: Sequence[Group]) -> Iterator[Example]:
    """Each image of ``groups`` as an example of its own."""
    for group in groups:
        for number, response in enumerate(group.responses):
            yield Example.text(f"{group.prompt.id}-{number}", group.prompt_ids, response.token_ids)


def scores_of(context: Context, policy: ImagePolicy, index: ImageIndex) -> DenoisingScores:
    """The scores that a round trains with, and that its reference is stored with: the same rows make the same bits."""
    training, config = context.config.training, context.config
    sides = config.sampling.n if needs_of(config.loss).groups else 2
    rows = sides * training.micro_batch_size * training.score.draws
    return DenoisingScores(policy, index.table, training.score, epochs_of(context), rows=rows, dtype=training.dtype)
