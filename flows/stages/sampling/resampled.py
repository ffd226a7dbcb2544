"""Responses of a mixture with another model, for engines that hold one model: drawn from the policy and resampled.

First all responses are drawn from the policy, ``proposals`` for each one that is kept; then the engine takes up the
other model and scores them, and each shard keeps those that are drawn again. A kill loses at most a shard of either.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome
from flows.stages.sampling.shards import SampledFrom, mixture_facts, response_metrics, sample_stage
from flows.workers.local import Workers
from flows.workers.messages import NextShard
from flows.workers.pool.sampler_pool import load_facts
from pipeline.errors import UserError
from pipeline.sampling.resampling import LEAST_EFFECTIVE, effective_share, kept_places, log_weights, overall_share
from pipeline.storage.atomic import write_text
from pipeline.storage.rows import read_group_file, write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import Group, Prompt, derive_seed

PROPOSALS = "proposals"
# Responses that are scored in one call: what the engine may be silent for.
_SCORED = 256
# Prompts after which the share is known well enough to stop before labels are paid for.
_TOLD_EARLY = 64


def resampled(
    context: Context,
    round_: int,
    folder: Path,
    workers: Workers,
    prompts: Sequence[Prompt],
    policy: Stage,
    other: Stage,
) -> Outcome:
    """Sample from the mixture of ``policy`` and ``other`` by resampling.

    Raises:
        UserError: too few of the responses count, so that what is kept would not be the mixture.
    """
    settings = context.config.sampling
    mixture = settings.mixture
    assert mixture is not None, "asked for a mixture alone"
    drawn = settings.model_copy(update={"n": settings.n * mixture.proposals, "mixture": None})
    proposals = folder / PROPOSALS
    proposals.mkdir(exist_ok=True)
    # Labellers read what is kept.
    quiet = replace(context, on_shard=lambda shard: None)
    made = sample_stage(quiet, round_, proposals, workers, prompts, drawn, "samples", SampledFrom(policy))
    shares = _keep(context, round_, folder, workers, other, made.rows)
    scored = workers.swaps.get(str(context.model_path(other)))
    facts: dict[str, JsonValue] = {
        **mixture_facts(settings, other),
        "proposals": mixture.proposals,
        "effective_share": overall_share(shares),
        "lowest_effective_share": min(shares),
        "weight_handshake": load_facts(scored),
    }
    shutil.rmtree(proposals)
    dropped = {cause: made.metrics[f"dropped_{cause}_prompts"] for cause in ("over_long", "refused")}
    counts = {cause: count for cause, count in dropped.items() if isinstance(count, int)}
    swap = workers.swaps.get(str(context.model_path(policy)))
    told = response_metrics(folder, counts, swap, thinks="thought_rate" in made.metrics)
    return Outcome(made.rows, told | {"mixture": facts})


def _keep(context: Context, round_: int, folder: Path, workers: Workers, other: Stage, prompts: int) -> list[float]:
    """Write each shard's kept responses; return each prompt's effective share."""
    seals, shares = Seals(folder), list[float]()
    for file in sorted((folder / PROPOSALS).glob("shard_*.parquet")):
        told = folder / f"{file.stem}.shares.json"
        if not (seals.hold(file.name) and seals.hold(told.name)):
            groups = list(read_group_file(file))
            logs = _log_weights(context, workers, other, groups)
            text = json.dumps([effective_share(of_group) for of_group in logs])
            seals.text(told.name, text)
            write_text(told, text)
            write_groups(folder / file.name, _kept(context, round_, groups, logs), seals.of(file.name))
        shares += json.loads(told.read_text(encoding="utf-8"))
        if len(shares) >= _TOLD_EARLY or len(shares) == prompts:
            _require_effective(context, round_, shares)
        context.on_shard(NextShard(file.name, seals.sha256(file.name), prompts))
        context.report(len(shares), prompts, "scored by the mixture's other model")
    return shares


def _log_weights(context: Context, workers: Workers, other: Stage, groups: Sequence[Group]) -> list[list[float]]:
    mixture = context.config.sampling.mixture
    assert mixture is not None, "asked for a mixture alone"
    sequences = [(*group.prompt_ids, *r.token_ids) for group in groups for r in group.responses]
    scored: list[list[float]] = []
    for start in range(0, len(sequences), _SCORED):
        part = sequences[start : start + _SCORED]
        scored += workers.score(context.model_path(other), other.folder, part)
    rows = iter(scored)
    found = []
    for group in groups:
        # A row begins with the log-probability of the prompt's second token.
        theirs = [sum(next(rows)[len(group.prompt_ids) - 1 :]) for _ in group.responses]
        found.append(log_weights([sum(r.logprobs) for r in group.responses], theirs, mixture.weight))
    return found


def _kept(context: Context, round_: int, groups: Sequence[Group], logs: Sequence[Sequence[float]]) -> list[Group]:
    n, found = context.config.sampling.n, []
    for group, of_group in zip(groups, logs, strict=True):
        seed = derive_seed(context.config.seed, "mixture", round_, group.prompt.id)
        found.append(group.only(kept_places(of_group, n, seed)))
    return found


def _require_effective(context: Context, round_: int, shares: Sequence[float]) -> None:
    """Raise ``UserError`` if too few responses count."""
    mixture, overall = context.config.sampling.mixture, overall_share(shares)
    assert mixture is not None, "asked for a mixture alone"
    if overall < LEAST_EFFECTIVE:
        raise UserError(
            f"sampling.mixture.weight: {mixture.weight:g}: in round {round_} {overall:.0%} of the responses count as "
            f"samples of the mixture with {mixture.reference} (effective sample size; at least {LEAST_EFFECTIVE:.0%}), "
            "since the two models differ too much; allowed: a smaller weight, a nearer reference, or "
            "sampler.kind: transformers, which samples the mixture exactly"
        )
