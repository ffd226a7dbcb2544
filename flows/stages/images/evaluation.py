"""evaluation of images: a round's images for held-out prompts, scored and compared with the start and the parent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from flows.run_folder.ancestry import parent
from flows.stages.context import Context, Outcome
from flows.stages.evaluation import refuse_leak
from flows.stages.images.examples import as_texts
from flows.stages.images.frozen import frozen_scores
from flows.stages.images.held_out import image_held_out
from flows.stages.images.labels import labeller_of_images
from flows.stages.labels.shards import open_accounts
from pipeline.config import DotsScorer, PeopleScorer, compares
from pipeline.config.images.scoring import ImageScore
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures, read_images
from pipeline.data.pictures.picture import decoded_picture
from pipeline.evaluation.image_measures import distance_within, mean_of_groups
from pipeline.evaluation.intervals import rate_interval
from pipeline.evaluation.metrics import win_rate
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups, write_groups
from pipeline.types import Group
from reward_models.answers.accounts import label_summary
from reward_models.images.dots import marks_of
from reward_models.labeller import Labeller, label, wins_by_comparison

_Metrics = dict[str, JsonValue]
# Draws of (level, noise) for each image, the same in all rounds, for the surrogate of KL.
_DRAWS = 4


def image_evaluation(context: Context, round_: int, folder: Path) -> Outcome:
    """Write metrics.json and the scored images."""
    refuse_leak(context, round_)
    sampled, metrics = _labelled(context, round_, folder)
    metrics |= _shapes(context, round_, sampled) | _kl(context, round_, sampled)
    metrics |= image_held_out(context, round_, folder)
    write_json(folder / "metrics.json", metrics)
    return Outcome(len(sampled), metrics)


def _drawn(context: Context, round_: int) -> Path:
    return context.run.stage(round_, "evaluation_samples").folder / "sampled"


def _labelled(context: Context, round_: int, folder: Path) -> tuple[list[Group], _Metrics]:
    """Return the round's images with labels, and what these say; write the groups."""
    config = context.config
    # People label what rounds train on alone.
    settings = None if isinstance(config.scorer, PeopleScorer) else config.scorer
    groups = list(read_groups(_drawn(context, round_)))
    others = {name: _compared(context, round_, name) for name in ("start", "previous")}
    folders = {round_, *others.values()}
    metrics: _Metrics = {"round": round_, "reward": None, "images": sum(len(group.responses) for group in groups)}
    with open_accounts(context, round_, "evaluation") as accounts:
        labeller: Labeller | None = None
        if settings is not None:
            places = [_drawn(context, number) / IMAGES for number in sorted(folders)]
            labeller = labeller_of_images(settings, accounts, *places)
            if not compares(settings):
                groups = label(groups, labeller)
                metrics["reward"] = mean_of_groups(groups)
        (folder / "sampled").mkdir(exist_ok=True)
        write_groups(folder / "sampled" / "rows.parquet", groups)
        for name, number in others.items():
            interval = None
            if labeller is not None and settings is not None:
                theirs = groups if number == round_ else list(read_groups(_scored(context, number)))
                if compares(settings):
                    interval = rate_interval([*wins_by_comparison(groups, theirs, labeller).values()])
                else:
                    interval = win_rate(groups, theirs)
            metrics[f"win_rate_vs_{name}"] = None if interval is None else interval.mean
            metrics[f"win_rate_vs_{name}_ci"] = None if interval is None else [interval.low, interval.high]
        labelling = label_summary([accounts.take()], accounts)
    if isinstance(config.scorer, DotsScorer):
        metrics |= dot_shares(context, round_)
    return groups, {**metrics, **({"labelling": labelling} if labelling else {})}


def _compared(context: Context, round_: int, name: str) -> int:
    return 0 if name == "start" else parent(context.run, context.config, round_)


def _scored(context: Context, round_: int) -> Path:
    return context.run.stage(round_, "evaluation").folder / "sampled"


def dot_shares(context: Context, round_: int) -> dict[str, float]:
    """Shares of a round's images of the task dots whose colour, half, shape or all of them are right."""
    groups = list(read_groups(_drawn(context, round_)))
    pictures = StoredPictures([_drawn(context, round_) / IMAGES])
    shown = ((group.prompt, pictures[response.text]) for group in groups for response in group.responses)
    marks = [marks_of(prompt, np.asarray(decoded_picture(png))) for prompt, png in shown]
    named = {"right": "all_right", "colour_right": "colour", "half_right": "half", "clean": "clean"}
    return {name: sum(getattr(mark, field) for mark in marks) / len(marks) for name, field in named.items()}


def _shapes(context: Context, round_: int, groups: Sequence[Group]) -> _Metrics:
    """How far images for one condition are apart: what falls when a policy draws the same image again and again."""
    latents = {image.id: image.latents for image in read_images(_drawn(context, round_) / IMAGES)}
    asked = [(group.prompt_ids, latents[response.text]) for group in groups for response in group.responses]
    return {"distance_within": distance_within(asked)}


def _kl(context: Context, round_: int, groups: Sequence[Group]) -> _Metrics:
    """The surrogate of KL on the round's own images: mean h under the policy, against start and parent.

    In nats per dimension of an image, which stands for a token; ``image_kl_to`` has those of whole images.
    """
    others = {name: _compared(context, round_, name) for name in ("start", "previous")}
    found = {number: _scores(context, number, round_, groups) for number in sorted({round_, *others.values()})}
    metrics: _Metrics = {}
    for name, number in others.items():
        ratios = [own - other for own, other in zip(found[round_][0], found[number][0], strict=True)]
        mean = sum(ratios) / max(1, len(ratios))
        metrics |= {f"kl_to_{name}": mean / found[round_][1], f"image_kl_to_{name}": mean}
    return metrics


def _scores(context: Context, number: int, round_: int, groups: Sequence[Group]) -> tuple[list[float], int]:
    """The score of each image of ``groups`` under the policy of round ``number``, in nats; and their dimensions."""
    # The bound on log-probabilities is over the whole schedule, whatever part of it is trained on.
    score = ImageScore(draws=_DRAWS, timesteps=context.config.training.score.timesteps)
    found, size = frozen_scores(context, number, _drawn(context, round_) / IMAGES, list(as_texts(groups)), score)
    return [sum(sides[0]) for sides in found], size
