"""labels of a round with a discriminator: gold where it was bought, and of the rest what the discriminator says."""

from collections.abc import Sequence
from pathlib import Path

from flows.run_folder.ancestry import parent
from flows.stages.context import Context, Outcome
from pipeline.config import ClassifierScorer
from pipeline.config.discriminator import Discriminator
from pipeline.storage.rows import read_group_file, read_groups, write_groups
from pipeline.storage.seals import Seals
from pipeline.types import Group
from reward_models.answers.labellers import Uncached
from reward_models.labeller import Scorer, label


class Members:
    """The discriminators of one version; the score of a response is the mean of theirs."""

    def __init__(self, folders: Sequence[Path]) -> None:
        from reward_models.local.classifier import ClassifierReward

        self._members = [ClassifierReward(ClassifierScorer(path=str(folder))) for folder in folders]

    def score(self, groups: Sequence[Group]) -> list[tuple[float | None, ...]]:
        """The mean over the members."""
        of_members = [member.score(groups) for member in self._members]
        return [
            tuple(_mean(scores) for scores in zip(*of_group, strict=True)) for of_group in zip(*of_members, strict=True)
        ]

    def margins(self, comparisons: Sequence[Group]) -> list[tuple[float, ...]]:
        """Of each comparison, the first response's score less the second's under each member."""
        of_members = [member.score(comparisons) for member in self._members]
        return [
            tuple((first or 0.0) - (second or 0.0) for first, second in of_comparison)
            for of_comparison in zip(*of_members, strict=True)
        ]


def _mean(scores: Sequence[float | None]) -> float:
    # A classifier leaves no response without a score.
    return sum(score or 0.0 for score in scores) / len(scores)


def accepted(context: Context, round_: int) -> list[Path] | None:
    """The member folders of the newest version that may label after ``round_``; None if none has passed yet."""
    if round_ < 1:
        return None
    stage = context.run.stage(round_, "discriminator")
    name = stage.require().metrics["labels_with"]
    if name is None:
        return None
    folder = context.run.root / str(name)
    return sorted(folder.glob("member_*"))


def member_margins(context: Context, round_: int, comparisons: Sequence[Group]) -> list[tuple[float, ...]] | None:
    """Margins under each member of the version that ``round_`` left; None if there is none."""
    folders = accepted(context, round_)
    return None if folders is None else Members(folders).margins(comparisons)


def silver_labels(context: Context, round_: int, folder: Path, settings: Discriminator) -> Outcome:
    """Score what the round samples, shard by shard; prompts with gold keep the two responses that were compared.

    Where nobody may label (``silver: none``, or no version has passed its gate), gold is all there is.
    """
    gold = {group.prompt.id: group for group in _gold(context, round_, settings)}
    scorer = _scorer(context, round_, settings)
    shards = sorted(context.run.stage(round_, "samples").folder.glob("shard_*.parquet"))
    seals = Seals(folder)
    silver = rows = 0
    for index, shard in enumerate(shards):
        file = folder / shard.name
        if not seals.hold(file.name):
            groups = list(read_group_file(shard))
            rest = [group for group in groups if group.prompt.id not in gold]
            bought = [gold[group.prompt.id] for group in groups if group.prompt.id in gold]
            made = [*bought, *([] if scorer is None else label(rest, Uncached(scorer)))]
            write_groups(file, made, seals.of(file.name))
        context.report(index + 1, len(shards), "silver")
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


def _gold(context: Context, round_: int, settings: Discriminator) -> list[Group]:
    if settings.silver == "static" and round_ > 1:
        return []
    return list(read_groups(context.run.stage(round_, "gold").folder))


def _scorer(context: Context, round_: int, settings: Discriminator) -> Scorer | None:
    match settings.silver:
        case "none":
            return None
        case "self":
            return _implicit(context, round_)
        case "online" | "static":
            folders = accepted(context, 1 if settings.silver == "static" else round_)
            return None if folders is None else Members(folders)


def _implicit(context: Context, round_: int) -> Scorer:
    from reward_models.silver import ImplicitReward

    config = context.config
    policy, start = (str(context.policy_path(number)) for number in (parent(context.run, config, round_), 0))
    return ImplicitReward(policy, start, config.loss.beta, config.training.dtype, config.trusts_policy)
