"""evaluation of images: a round's images for held-out prompts, scored and compared with the start and the parent."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.evaluation import refuse_leak
from flows.stages.images.examples import as_texts
from flows.stages.images.frozen import frozen_scores
from flows.stages.images.held_out import image_held_out
from flows.stages.images.labels import labeller_of_images
from flows.stages.labels.shards import open_accounts
from flows.stages.measures.parts import (
    WinsByPrompt,
    compared_rounds,
    held_out_names,
    parts_of_prompts,
    win_rates,
    wins_of,
)
from pipeline.config import DotsScorer, PeopleScorer, compares
from pipeline.config.images.scoring import ImageScore
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures, read_images
from pipeline.data.pictures.picture import decoded_picture
from pipeline.data.tasks.dots import DotMarks
from pipeline.evaluation.breakdown import ByPart, PartNames, reward_measures
from pipeline.evaluation.image_measures import distance_within, mean_of_groups
from pipeline.storage.atomic import write_json
from pipeline.storage.rows import read_groups, write_groups
from pipeline.types import Group
from reward_models.answers.accounts import label_summary
from reward_models.images.dots import marks_of
from reward_models.labeller import label

_Metrics = dict[str, JsonValue]
_Latents = dict[str, NDArray[np.float32]]
# Draws of (level, noise) for each image, the same in all rounds, for the surrogate of KL.
_DRAWS = 4


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Mean h of each of the round's images under its policy minus that under another, in nats, by the other's name.

    ``size``: the dimensions of an image.
    """

    by_name: dict[str, list[float]]
    size: int


def image_evaluation(context: Context, round_: int, folder: Path) -> Outcome:
    """Write metrics.json and the scored images."""
    refuse_leak(context, round_)
    sampled, wins, metrics = _labelled(context, round_, folder)
    parts = parts_of_prompts(context, round_, sampled, folder)
    metrics |= _shapes(_latents(context, round_), sampled)
    ratios = _ratios(context, round_, sampled)
    metrics |= _kl(ratios)
    metrics |= image_held_out(context, round_, folder, held_out_names(context, round_, folder))
    metrics |= _by_part(context, round_, parts, sampled, wins, ratios)
    write_json(folder / "metrics.json", metrics)
    return Outcome(len(sampled), metrics)


def _drawn(context: Context, round_: int) -> Path:
    return context.run.stage(round_, "evaluation_samples").folder / "sampled"


def _labelled(context: Context, round_: int, folder: Path) -> tuple[list[Group], WinsByPrompt, _Metrics]:
    """Return the round's images with labels, their win rates, and what these say; write the groups."""
    config = context.config
    # People label what rounds train on alone.
    settings = None if isinstance(config.scorer, PeopleScorer) else config.scorer
    groups, wins = list(read_groups(_drawn(context, round_))), WinsByPrompt()
    others = compared_rounds(context, round_)
    metrics: _Metrics = {"round": round_, "reward": None, "images": sum(len(group.responses) for group in groups)}
    with open_accounts(context, round_, "evaluation") as accounts:
        if settings is not None:
            places = [_drawn(context, number) / IMAGES for number in sorted({round_, *others.values()})]
            labeller = labeller_of_images(settings, accounts, *places)
            if not compares(settings):
                groups = label(groups, labeller)
                metrics["reward"] = mean_of_groups(groups)
        (folder / "sampled").mkdir(exist_ok=True)
        write_groups(folder / "sampled" / "rows.parquet", groups)
        if settings is not None:
            for name, number in others.items():
                theirs = groups if number == round_ else list(read_groups(_scored(context, number)))
                wins[name] = wins_of(groups, theirs, labeller, compares=compares(settings))
        labelling = label_summary([accounts.take()], accounts)
    metrics |= win_rates(wins)
    if isinstance(config.scorer, DotsScorer):
        metrics |= dot_shares(context, round_)
    return groups, wins, {**metrics, **({"labelling": labelling} if labelling else {})}


def _scored(context: Context, round_: int) -> Path:
    return context.run.stage(round_, "evaluation").folder / "sampled"


def dot_shares(context: Context, round_: int) -> dict[str, float]:
    """Shares of a round's images of the task dots whose colour, half, shape or all of them are right."""
    return _shares([*chain.from_iterable(_marks(context, round_).values())])


def _marks(context: Context, round_: int) -> dict[str, list[DotMarks]]:
    """What is right about the images for each prompt, by its id."""
    pictures = StoredPictures([_drawn(context, round_) / IMAGES])
    return {
        group.prompt.id: [
            marks_of(group.prompt, np.asarray(decoded_picture(pictures[response.text]))) for response in group.responses
        ]
        for group in read_groups(_drawn(context, round_))
    }


def _shares(marks: Sequence[DotMarks]) -> dict[str, float]:
    named = {"right": "all_right", "colour_right": "colour", "half_right": "half", "clean": "clean"}
    return {name: sum(getattr(mark, field) for mark in marks) / len(marks) for name, field in named.items()}


def _by_part(
    context: Context, round_: int, parts: PartNames, groups: Sequence[Group], wins: WinsByPrompt, ratios: _Ratios
) -> dict[str, ByPart]:
    """The measures of labels, of shapes and of KL for each part of the prompts."""
    if not parts.names:
        return {}
    settings = context.config.evaluation
    numbers = iter(range(sum(len(group.responses) for group in groups)))
    rows = [(group.prompt.id, (group, [next(numbers) for _ in group.responses])) for group in groups]
    marks = _marks(context, round_) if isinstance(context.config.scorer, DotsScorer) else {}
    latents = _latents(context, round_)

    def measure(part: list[tuple[Group, list[int]]]) -> _Metrics:
        own = [group for group, _ in part]
        found: _Metrics = {**reward_measures(own, wins, settings.bootstrap, settings.seed)}
        found |= _shares([mark for group in own for mark in marks[group.prompt.id]]) if marks else {}
        return found | _shapes(latents, own) | _kl(ratios, [place for _, places in part for place in places])

    return parts.measured(rows, measure)


def _latents(context: Context, round_: int) -> _Latents:
    return {image.id: image.latents for image in read_images(_drawn(context, round_) / IMAGES)}


def _shapes(latents: _Latents, groups: Sequence[Group]) -> _Metrics:
    """How far images for one condition are apart: what falls when a policy draws the same image again and again."""
    asked = [(group.prompt_ids, latents[response.text]) for group in groups for response in group.responses]
    return {"distance_within": distance_within(asked)}


def _ratios(context: Context, round_: int, groups: Sequence[Group]) -> _Ratios:
    others = compared_rounds(context, round_)
    found = {number: _scores(context, number, round_, groups) for number in sorted({round_, *others.values()})}
    return _Ratios(
        {
            name: [own - other for own, other in zip(found[round_][0], found[number][0], strict=True)]
            for name, number in others.items()
        },
        found[round_][1],
    )


def _kl(ratios: _Ratios, places: Sequence[int] | None = None) -> _Metrics:
    """The surrogate of KL on the round's own images: mean h under the policy, against start and parent.

    In nats per dimension of an image, which stands for a token; ``image_kl_to`` has those of whole images.
    ``places``: of the images that count; None: all.
    """
    metrics: _Metrics = {}
    for name, every in ratios.by_name.items():
        counted = every if places is None else [every[place] for place in places]
        mean = sum(counted) / max(1, len(counted))
        metrics |= {f"kl_to_{name}": mean / ratios.size, f"image_kl_to_{name}": mean}
    return metrics


def _scores(context: Context, number: int, round_: int, groups: Sequence[Group]) -> tuple[list[float], int]:
    """The score of each image of ``groups`` under the policy of round ``number``, in nats; and their dimensions."""
    # The bound on log-probabilities is over the whole schedule, whatever part of it is trained on.
    score = ImageScore(draws=_DRAWS, timesteps=context.config.training.score.timesteps)
    found, size = frozen_scores(context, number, _drawn(context, round_) / IMAGES, list(as_texts(groups)), score)
    return [sum(sides[0]) for sides in found], size
