"""policy of round 0 for images: the user's model, or a small one made here, trained on the task's own pictures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.images.data import PICTURES
from flows.stages.training.train import fit
from pipeline.config import ConditionData, DiffusionPolicy, DotsData, ScratchDiffusion
from pipeline.config.images.scoring import ImageScore
from pipeline.data.pictures.image_rows import read_images
from pipeline.data.tasks.dots import DOT_CONDITIONS
from pipeline.errors import UserError
from pipeline.images.denoising_scores import DenoisingScores, ImageTable, image_ids, prompt_of_draws
from pipeline.images.image_folder import load_image_policy, save_image_policy
from pipeline.images.image_handshake import save_image_probe
from pipeline.images.scratch_network import make_image_policy
from pipeline.losses import load_preset
from pipeline.storage.integrity import POINTED_FILES, POINTER, model_tree
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.training.batches.examples import Example
from pipeline.training.trainee import Trainee
from pipeline.types import derive_seed

_BASE = "base"
# Its mean squared error of the noise, as in papers on diffusion models, and not nats: rates are then the usual ones.
WARM_SCORE = ImageScore(score_scale="mean_error")


def image_start(context: Context, folder: Path) -> Outcome:
    """The policy that round 1 samples from."""
    config = context.config
    match config.policy:
        case DiffusionPolicy():
            origin = Path(config.policy.path).resolve()
        case ScratchDiffusion():
            origin = _from_scratch(context, config.policy, folder)
        case _:
            raise UserError(f"policy.kind: {config.policy.kind}, but modality: image; allowed: diffusion")
    policy = load_image_policy(origin, encoders="text")
    parameters: dict[str, JsonValue] = {"parameters": sum(p.numel() for p in policy.network.parameters())}
    if config.warm_start is None:
        save_image_probe(policy, folder)
        return Outcome(0, {POINTER: str(origin), POINTED_FILES: model_tree(origin), **parameters})
    epochs = max(1, -(-config.warm_start.epochs // 1))
    scores = DenoisingScores(policy, _table(context), WARM_SCORE, int(epochs))
    trainee, seed = Trainee(scores), derive_seed(config.seed, "warm start")
    examples = _examples(context, int(epochs))
    outcome = fit(context, folder, trainee, examples, load_preset("sft"), config.warm_start, seed)
    if context.writes:
        save_image_policy(policy, folder)
        save_image_probe(policy, folder)
    return Outcome(outcome.rows, {**outcome.metrics, **parameters})


def _from_scratch(context: Context, settings: ScratchDiffusion, folder: Path) -> Path:
    """Make random weights next to the checkpoints in ``folder``, completely or not at all."""
    base, scratch = folder / CHECKPOINTS / _BASE, folder / CHECKPOINTS / f"{_BASE}.tmp"
    if context.writes and not base.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
        size = next(read_images(_pictures(context))).shape[1]
        make_image_policy(settings, size, _classes(context), derive_seed(context.config.seed, "init"), scratch)
        scratch.rename(base)
    context.wait_for_everyone()
    return base


def _classes(context: Context) -> int:
    """Classes of the model that is made: those of the task, or none if all prompts ask for the same."""
    prompts = context.config.prompts
    if isinstance(prompts, ConditionData) and len(prompts.of) > 1:
        raise UserError(
            f"prompts.of: {len(prompts.of)} names, but policy.kind: scratch_diffusion learns from the pictures of the "
            "task dots; allowed: prompts.kind: dots, or one name for a model without conditions"
        )
    return len(DOT_CONDITIONS) if isinstance(prompts, DotsData) else 0


def _pictures(context: Context) -> Path:
    return context.run.stage(0, "data").folder / PICTURES


def _table(context: Context) -> ImageTable:
    """The pictures of the warm start; conditions are all classes in order."""
    latents = [image.latents.reshape(image.shape) for image in read_images(_pictures(context))]
    classes = _classes(context)
    return ImageTable(torch.from_numpy(np.stack(latents)), (torch.arange(classes),) if classes else ())


def _examples(context: Context, epochs: int) -> Iterator[Example]:
    seed = derive_seed(context.config.seed, "warm start draws")
    unconditional = _classes(context) == 0
    for row, image in enumerate(read_images(_pictures(context))):
        condition = 0 if unconditional else int(image.prompt_id)
        ids = prompt_of_draws(seed, str(row), condition)
        yield Example.text(f"picture {row}", ids, image_ids(row, WARM_SCORE.draws * epochs))
