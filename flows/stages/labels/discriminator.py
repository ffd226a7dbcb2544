"""discriminator: refitted on all gold so far, measured on held-out gold, and rolled back if not good enough."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import JsonValue

from flows.stages.context import Context, Outcome, policy_rendering
from flows.workers.pool.label_engine import label_engines
from pipeline.config import FileData, PretrainedModel, RewardModelConfig
from pipeline.config.labellers.reward_model import Discriminator
from pipeline.config.policy import TemplateSettings
from pipeline.errors import RunError
from pipeline.models.foreign import load_tokenizer
from pipeline.models.weights.adapter_folder import base_of
from pipeline.storage.atomic import discard
from pipeline.storage.rows import read_groups
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.storage.seals import Seals
from pipeline.training.step_log import StepReport
from pipeline.types import Group, TextPair, derive_seed
from reward_models.local.silver import Members
from reward_models.training.gold import gold_accuracy, held_out, passes
from reward_models.training.train import train_on


def discriminator(context: Context, round_: int, folder: Path) -> Outcome:
    """Write the members' folders; metrics give their accuracy, and the version that labels from here on."""
    settings = context.config.discriminator
    assert settings is not None, "the stage runs only if a discriminator is configured"
    rounds = [list(read_groups(context.run.stage(number, "gold").folder)) for number in range(1, round_ + 1)]
    share, seed = settings.gate.held_out, context.config.seed
    everything = [group for gold in rounds for group in gold]
    kept = [group for group in everything if held_out(group, share, seed)]
    learnt = [group for group in everything if not held_out(group, share, seed)]
    before = accepted(context, round_ - 1)
    _refit(context, round_, folder, settings, before, learnt)
    accuracy, compared = _accuracy(context, sorted(folder.glob("member_*")), kept)
    why_not = passes(accuracy, compared, settings.gate, round_)
    here = str((context.run.stage(round_, "discriminator").folder).relative_to(context.run.root))
    earlier = None if before is None else str(before[0].parent.relative_to(context.run.root))
    metrics: dict[str, JsonValue] = {
        "bought": len(everything),
        "held_out": len(kept),
        "accuracy": accuracy,
        "previous_accuracy": None if before is None else _accuracy(context, before, kept)[0],
        # The previous version on gold that it has not seen: from this round's policy, before learning from it.
        "fresh_accuracy": None if before is None else _accuracy(context, before, rounds[-1])[0],
        "why_not": why_not,
        "labels_with": earlier if why_not is not None else here,
    }
    return Outcome(len(learnt), metrics)


def comparisons(gold: Iterable[Group], settings: Discriminator) -> list[TextPair]:
    """Gold as pairs to train on; people's votes become soft labels."""
    found = []
    for group in gold:
        first, second = group.scores
        if first is None or second is None:
            continue
        (better, high), (worse, low) = sorted(
            zip(group.responses, (first, second), strict=True), key=lambda scored: -scored[1]
        )
        certain = high if settings.gold == "people" else float(high > low)
        label = 0.5 if high == low else certain
        found.append(TextPair(group.prompt, better.text, worse.text, high, low, soft_label=label))
    return found


def _refit(
    context: Context,
    round_: int,
    folder: Path,
    settings: Discriminator,
    before: Sequence[Path] | None,
    gold: Sequence[Group],
) -> None:
    """Train each member from its last accepted version on all gold that is not held out."""
    pairs = comparisons(gold, settings)
    if not pairs:
        raise RunError("no gold comparison is left to train on")
    seals = Seals(folder)
    for number in range(settings.members):
        place = folder / f"member_{number}"
        config = _member_config(context, round_, settings, None if before is None else before[number], number)

        def on_step(step: StepReport, number: int = number) -> None:
            total = step.steps * settings.members
            context.report(number * step.steps + step.step, total, f"loss {step.loss:.4f}")

        if not seals.hold_all(place.name):
            place.mkdir(exist_ok=True)
            train_on(config, pairs, place, on_step)
            made = sorted(file for file in place.rglob("*") if file.is_file())
            seals.files(file for file in made if CHECKPOINTS not in file.relative_to(place).parts)
        discard(place / CHECKPOINTS)


def _member_config(
    context: Context, round_: int, settings: Discriminator, before: Path | None, number: int
) -> RewardModelConfig:
    start = str(before) if before is not None else settings.start or base_of(context.policy_path(0))
    rendering, trusted = policy_rendering(context.config), context.trusts(start)
    shares = rendering is not None and rendering.fits(load_tokenizer(start, trust_remote_code=trusted))
    chat = context.config.chat
    return RewardModelConfig(
        name=f"member-{number}",
        seed=derive_seed(context.config.seed, "discriminator", round_, number),
        model=PretrainedModel(path=start, trust_remote_code=trusted),
        pairs=FileData(path=str(context.run.stage(round_, "gold").folder)),
        chat=TemplateSettings(template_kwargs=chat.template_kwargs, template_file=chat.template_file)
        if shares
        else TemplateSettings(),
        max_tokens=settings.max_tokens,
        training=settings.training,
    )


def _accuracy(context: Context, members: Sequence[Path], gold: Sequence[Group]) -> tuple[float | None, int]:
    """Accuracy of the members' mean margin, and the number of comparisons."""
    if not gold:
        return None, 0
    return gold_accuracy(gold, [sum(margins) for margins in _margins(context, members, gold)])


def accepted(context: Context, round_: int) -> list[Path] | None:
    """Member folders of the newest version that may label after ``round_``; None if none has passed yet."""
    if round_ < 1:
        return None
    stage = context.run.stage(round_, "discriminator")
    name = stage.require().metrics["labels_with"]
    if name is None:
        return None
    folder = context.run.root / str(name)
    return sorted(folder.glob("member_*"))


def member_margins(context: Context, round_: int, comparisons: Sequence[Group]) -> list[tuple[float, ...]] | None:
    """Margins by each member of the version left by ``round_``; None if there is no version."""
    folders = accepted(context, round_)
    return None if folders is None else _margins(context, folders, comparisons)


def _margins(context: Context, members: Sequence[Path], comparisons: Sequence[Group]) -> list[tuple[float, ...]]:
    with label_engines(context.config, context.run.root) as engines:
        return Members(members, policy_rendering(context.config), engines).margins(comparisons)
