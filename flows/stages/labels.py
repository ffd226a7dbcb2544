"""labels: groups of responses -> the same groups with scores, shard by shard."""

import time
from dataclasses import replace
from pathlib import Path

from flows.build import build_scorer
from flows.stages import Context, Outcome
from flows.stages.silver import silver_labels
from pipeline.config import ClassifierScorer
from pipeline.label import label
from pipeline.rows import read_group_file, read_groups, write_groups
from pipeline.types import RunError


def labels(context: Context, round_: int, folder: Path) -> Outcome:
    """Score every response of the round's samples."""
    if context.config.discriminator is not None:
        return silver_labels(context, round_, folder, context.config.discriminator)
    assert context.config.scorer is not None, "the config's validator asks for a scorer"
    scorer = build_scorer(context.config.scorer)
    shards = sorted(context.run.stage(round_, "samples").folder.glob("shard_*.parquet"))
    started, scored = time.monotonic(), 0
    for index, shard in enumerate(shards):
        file = folder / shard.name
        if not file.exists():
            groups = label(list(read_group_file(shard)), scorer)
            write_groups(file, groups)
            scored += sum(len(group.responses) for group in groups)
        context.report(index + 1, len(shards), f"{scored / max(time.monotonic() - started, 1e-9):.0f} responses/s")
    outcome = _outcome(folder)
    if isinstance(context.config.scorer, ClassifierScorer):
        from reward_models.classifier import ClassifierReward

        assert isinstance(scorer, ClassifierReward)
        return replace(outcome, metrics={**outcome.metrics, **scorer.facts})
    return outcome


def _outcome(folder: Path) -> Outcome:
    rows = missing = 0
    scores: list[float] = []
    for group in read_groups(folder):
        rows += 1
        missing += sum(score is None for score in group.scores)
        scores += [score for score in group.scores if score is not None]
    if not scores:
        raise RunError("the labeller gave no score to any response")
    mean = sum(scores) / len(scores)
    return Outcome(rows, {"reward": mean, "labels": len(scores), "missing_labels": missing})
