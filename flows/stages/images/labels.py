"""labels of images: groups of images -> the same groups with labels, shard by shard, as for text."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.labels.gold import answers_of_people
from flows.stages.labels.labels import outcome_of_labels
from flows.stages.labels.shards import Shard, label_shards, open_accounts
from pipeline.config import PeopleScorer, ScorerSettings
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures
from pipeline.errors import RunError
from pipeline.storage.rows import read_group_file, read_groups, write_groups
from pipeline.types import Group
from reward_models.answers.accounts import Accounts
from reward_models.images.build import build_image_labeller
from reward_models.labeller import Labeller


def image_labels(context: Context, round_: int, folder: Path) -> Outcome:
    """Label every image of the round's samples.

    Raises:
        RunError: fewer images than ``labelling.min_yield`` got a score, or none at all.
    """
    assert context.config.scorer is not None, "the config's validator requires a scorer"
    samples = context.run.stage(round_, "samples")
    if isinstance(context.config.scorer, PeopleScorer):
        return _by_people(context, round_, folder, context.config.scorer)
    with open_accounts(context, round_, "labels") as accounts:
        labeller = labeller_of_images(context.config.scorer, accounts, samples.folder / IMAGES)
        told = {name: str(fact["sha256"]) for name, fact in samples.require().files.items()}
        files = sorted(samples.folder.glob("shard_*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        shards = [Shard(file.name, partial(read_group_file, file), rows, told[file.name]) for file in files]
        facts: dict[str, JsonValue] = label_shards(context, folder, shards, labeller, accounts)
    return outcome_of_labels(folder, facts)


def _by_people(context: Context, round_: int, folder: Path, settings: PeopleScorer) -> Outcome:
    """Have people compare some images of each prompt; a score is the share of votes in an image's comparisons.

    Raises ``Paused`` until every question has an answer.
    """
    samples = context.run.stage(round_, "samples").folder
    groups = [*read_groups(samples)]
    places = [compared_places(group, settings.pairs_per_prompt) for group in groups]
    asked = [group.only(pair) for group, pairs in zip(groups, places, strict=True) for pair in pairs]
    if not asked:
        raise RunError("no prompt of the round has two different images to compare")
    pictures = StoredPictures([samples / IMAGES])
    answered = iter(answers_of_people(context, round_, asked, settings.wait, settings.poll, pictures))
    compared = zip(groups, places, strict=True)
    voted = [with_shares(group, [(pair, next(answered)) for pair in pairs]) for group, pairs in compared]
    write_groups(folder / "shard_00000.parquet", voted)
    return outcome_of_labels(folder, {"comparisons": len(asked)})


def compared_places(group: Group, most: int) -> list[tuple[int, int]]:
    """Return at most ``most`` pairs of places with different images: neighbours first, so that few connect many."""
    count = len(group.responses)
    pairs = [(one, other) for step in range(1, count) for one in range(count) if (other := one + step) < count]
    return [pair for pair in pairs if len({group.responses[place].text for place in pair}) == 2][:most]


def with_shares(group: Group, votes: Sequence[tuple[tuple[int, int], Group]]) -> Group:
    """Return ``group`` with what people said of its comparisons: win probabilities, and their means as scores."""
    places = range(len(group.responses))
    wins: list[list[float | None]] = [[0.5 if one == other else None for other in places] for one in places]
    for (one, other), comparison in votes:
        wins[one][other], wins[other][one] = comparison.scores
    met = [[p for other, p in enumerate(row) if other != one and p is not None] for one, row in enumerate(wins)]
    scores = tuple(sum(row) / len(row) if row else None for row in met)
    return replace(group, scores=scores, wins=tuple(tuple(row) for row in wins))


def labeller_of_images(settings: ScorerSettings, accounts: Accounts, *folders: Path, field: str = "scorer") -> Labeller:
    """The labeller for ``settings``, of images that are in ``folders``."""
    return build_image_labeller(settings, accounts, StoredPictures(folders), field)
