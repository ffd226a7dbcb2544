"""labels of images: groups of images -> the same groups with labels, shard by shard, as for text."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.labels.labels import outcome_of_labels
from flows.stages.labels.shards import Shard, label_shards, open_accounts
from pipeline.config import ScorerSettings
from pipeline.data.pictures.image_rows import IMAGES, StoredPictures
from pipeline.storage.rows import read_group_file
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
    with open_accounts(context, round_, "labels") as accounts:
        labeller = labeller_of_images(context.config.scorer, accounts, samples.folder / IMAGES)
        told = {name: str(fact["sha256"]) for name, fact in samples.require().files.items()}
        files = sorted(samples.folder.glob("shard_*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        shards = [Shard(file.name, partial(read_group_file, file), rows, told[file.name]) for file in files]
        facts: dict[str, JsonValue] = label_shards(context, folder, shards, labeller, accounts)
    return outcome_of_labels(folder, facts)


def labeller_of_images(settings: ScorerSettings, accounts: Accounts, *folders: Path, field: str = "scorer") -> Labeller:
    """The labeller for ``settings``, of images that are in ``folders``."""
    return build_image_labeller(settings, accounts, StoredPictures(folders), field)
