"""labels: groups of responses -> the same groups with labels, shard by shard."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import JsonValue

from flows.run_folder.ancestry import parent
from flows.stages.context import Context, Outcome, policy_rendering
from flows.stages.labels.discriminator import accepted
from flows.stages.labels.shards import LabelCounts, Shard, label_shards, open_accounts
from flows.workers.messages import NextShard
from flows.workers.pool.label_engine import label_engines
from flows.workers.pool.overlap import streams_reference
from pipeline.config.labellers.reward_model import Discriminator
from pipeline.storage.digests import file_sha256
from pipeline.storage.integrity import require_intact
from pipeline.storage.manifest import DamagedError
from pipeline.storage.rows import read_group_file, read_groups, write_groups
from pipeline.storage.run_folder import Stage
from pipeline.storage.seals import Seals
from pipeline.types import Group
from reward_models.answers.accounts import Accounts
from reward_models.answers.labellers import Uncached
from reward_models.answers.parts import OpenPool
from reward_models.build import build_labeller
from reward_models.labeller import Scorer, label
from reward_models.local.silver import ImplicitReward, ImplicitSettings, Members


def silver_labels(context: Context, round_: int, folder: Path, settings: Discriminator) -> Outcome:
    """Score the round's samples, shard by shard; prompts with gold keep the two responses that were compared.

    If nothing may label (``silver: none``, or no version has passed its gate), only gold is used.
    """
    gold = {group.prompt.id: group for group in _gold(context, round_, settings)}
    with label_engines(context.config, context.run.root) as engines:
        scorer = _scorer(context, round_, settings, engines)
        _label_rest(context, round_, folder, gold, scorer)
    silver = rows = 0
    rewards = []
    for group in read_groups(folder):
        rows += 1
        if group.prompt.id not in gold:
            silver += 1
            rewards += [score for score in group.scores if score is not None]
    return Outcome(
        rows,
        {
            "gold": rows - silver,
            "silver": silver,
            "silver_by": None if scorer is None else settings.silver,
            "reward": sum(rewards) / len(rewards) if rewards else None,
        },
    )


def _label_rest(context: Context, round_: int, folder: Path, gold: Mapping[str, Group], scorer: Scorer | None) -> None:
    """Write the shards: gold where there is some, the labels of ``scorer`` for the other prompts."""
    shards = sorted(context.run.stage(round_, "samples").folder.glob("shard_*.parquet"))
    seals = Seals(folder)
    for index, shard in enumerate(shards):
        file = folder / shard.name
        if not seals.hold(file.name):
            groups = list(read_group_file(shard))
            rest = [group for group in groups if group.prompt.id not in gold]
            bought = [gold[group.prompt.id] for group in groups if group.prompt.id in gold]
            made = [*bought, *([] if scorer is None else label(rest, Uncached(scorer)))]
            write_groups(file, made, seals.of(file.name))
        context.report(index + 1, len(shards), "silver")


def _gold(context: Context, round_: int, settings: Discriminator) -> list[Group]:
    if settings.silver == "static" and round_ > 1:
        return []
    return list(read_groups(context.run.stage(round_, "gold").folder))


def _scorer(context: Context, round_: int, settings: Discriminator, engines: OpenPool | None) -> Scorer | None:
    match settings.silver:
        case "none":
            return None
        case "self":
            return _implicit(context, round_, engines)
        case "online" | "static":
            folders = accepted(context, 1 if settings.silver == "static" else round_)
            return None if folders is None else Members(folders, policy_rendering(context.config), engines)


def _implicit(context: Context, round_: int, engines: OpenPool | None) -> Scorer:
    config = context.config
    policy, start = (str(context.policy_path(number)) for number in (parent(context.run, config, round_), 0))
    beta, dtype = config.loss.inputs.beta, context.precision
    return ImplicitReward(ImplicitSettings(policy, start, beta, dtype, config.trusts_policy, context.held), engines)


def labels(context: Context, round_: int, folder: Path) -> Outcome:
    """Label every response of the round's samples.

    Raises:
        RunError: fewer responses than ``labelling.min_yield`` got a score, or none at all.
    """
    if context.config.discriminator is not None:
        return silver_labels(context, round_, folder, context.config.discriminator)
    assert context.config.scorer is not None, "the config's validator requires a scorer"
    with open_accounts(context, round_, "labels") as accounts:
        labeller = build_labeller(context.config.scorer, accounts, rendering=policy_rendering(context.config))
        counts = LabelCounts()
        with _pass_ahead(context, round_, accounts) as sealed:
            facts = label_shards(context, folder, _shards(context, round_), labeller, accounts, counts, sealed)
    return counts.outcome(facts)


@contextmanager
def _pass_ahead(context: Context, round_: int, accounts: Accounts) -> Iterator[Callable[[Path], None]]:
    """Yield what takes finished shards of labels: while others are sampled, the reference pass follows."""
    if context.shards is None or not streams_reference(context.config):
        yield lambda file: None
        return
    # Only such runs load its model beside the labels.
    from flows.stages.training.ahead import PassAhead

    with PassAhead(context, round_, lambda: accounts.changed()) as ahead:
        yield ahead.labelled


def _shards(context: Context, round_: int) -> Iterator[Shard]:
    """The round's samples, each shard read only when it is labelled.

    Raises:
        DamagedError: the samples as completed are not those that were labelled.
    """
    samples = context.run.stage(round_, "samples")
    if context.shards is None:
        told = {name: str(facts["sha256"]) for name, facts in samples.require().files.items()}
        files = sorted(samples.folder.glob("shard_*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        yield from (Shard(file.name, partial(read_group_file, file), rows, told[file.name]) for file in files)
        return
    read: dict[str, str] = {}
    for one in context.shards:
        read[str(one.name)] = one.sha256
        yield Shard(str(one.name), partial(_finished, samples, one), one.rows, one.sha256)
    whole = require_intact(samples).files.items()
    found = {name: str(facts["sha256"]) for name, facts in whole if name.endswith(".parquet")}
    if read != found:
        wrong = sorted(name for name in {*read, *found} if read.get(name) != found.get(name))
        raise DamagedError(f"{samples.folder / wrong[0]}: has changed since it was labelled; {samples.redo}")


def _finished(samples: Stage, shard: NextShard) -> list[Group]:
    """Read a shard, wherever it is: once all are finished, their folder gets another name."""
    for place in (samples.partial, samples.folder):
        file = place / str(shard.name)
        try:
            if file_sha256(file) == shard.sha256:
                return list(read_group_file(file))
        except FileNotFoundError:
            continue
    raise DamagedError(f"{samples.partial / str(shard.name)}: has changed since it was written (SHA-256)")


def outcome_of_labels(folder: Path, facts: dict[str, JsonValue]) -> Outcome:
    """Rows and metrics of the labelled groups in ``folder``, and ``facts``. Raises ``RunError`` without a score."""
    counts = LabelCounts()
    for group in read_groups(folder):
        counts.add(group)
    return counts.outcome(facts)
