"""labels: groups of responses -> the same groups with labels, shard by shard."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.labels.shards import Shard, label_shards, open_accounts
from flows.stages.labels.silver import silver_labels
from pipeline.storage.rows import read_group_file, read_groups
from pipeline.types import RunError
from reward_models.build import build_labeller


def labels(context: Context, round_: int, folder: Path) -> Outcome:
    """Label every response of the round's samples.

    Raises:
        RunError: fewer responses than ``labelling.min_yield`` got a score, or none did.
    """
    if context.config.discriminator is not None:
        return silver_labels(context, round_, folder, context.config.discriminator)
    assert context.config.scorer is not None, "the config's validator asks for a scorer"
    with open_accounts(context, round_, "labels") as accounts:
        labeller = build_labeller(context.config.scorer, accounts)
        facts = label_shards(context, folder, _shards(context, round_), labeller, accounts)
    return _outcome(folder, facts)


def _shards(context: Context, round_: int) -> list[Shard]:
    """The round's samples, read when it is their turn."""
    files = sorted(context.run.stage(round_, "samples").folder.glob("shard_*.parquet"))
    return [Shard(file.name, pq.read_metadata(file).num_rows, partial(read_group_file, file)) for file in files]


def _outcome(folder: Path, facts: dict[str, JsonValue]) -> Outcome:
    rows = missing = 0
    scores: list[float] = []
    spreads: list[float] = []
    for group in read_groups(folder):
        rows += 1
        missing += sum(score is None for score in group.scores)
        scores += [score for score in group.scores if score is not None]
        spreads += [spread for spread in group.disagreement if spread is not None]
    if not scores:
        raise RunError("the labeller gave no score to any response")
    metrics: dict[str, JsonValue] = {"reward": sum(scores) / len(scores), "labels": len(scores)}
    if spreads:
        metrics["disagreement"] = sum(spreads) / len(spreads)
    return Outcome(rows, {**metrics, "missing_labels": missing, **facts})
