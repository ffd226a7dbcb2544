"""policy of rounds 1 and on: one round of preference training; average: the running mean of policies."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from flows.keys import reference_round, reference_stage
from flows.stages import Context, Outcome
from flows.stages.examples import examples_with_reference
from flows.stages.samples import policy_chat
from pipeline.adapter import add_adapter
from pipeline.config import LossSettings, Optimisation
from pipeline.losses import Loss, load_preset
from pipeline.policy import average_policies, load_policy, save_policy
from pipeline.rows import PAIRS, read_rows, write_table
from pipeline.store import write_json
from pipeline.train import Example, NonFiniteError, StepReport, TrainResult, train
from pipeline.types import derive_seed

# In a folder of its own: engines load every *.safetensors beside a model as its weights.
OPTIMISER = "optimiser/state.safetensors"
CHECKPOINTS = "checkpoints"
OFFENDING = "offending.parquet"


def train_round(context: Context, round_: int, folder: Path) -> Outcome:
    """The previous round's policy, trained on this round's pairs; writes the new policy's model folder."""
    config = context.config
    training = config.training
    origin = context.policy_path(round_ - 1)
    model = load_policy(str(origin), trust_remote_code=context.config.trusts_policy)
    if training.lora is not None:
        model = add_adapter(model, training.lora, derive_seed(config.seed, "adapter", round_))
    carried = context.run.stage(round_ - 1, "policy").folder / OPTIMISER
    carries = training.optimiser_state == "carried"
    try:
        outcome = fit(
            context,
            folder,
            model,
            examples_with_reference(context, round_),
            build_loss(config.loss),
            training,
            derive_seed(config.seed, "train", round_),
            carried=carried if carries and carried.is_file() else None,
            save_optimiser=carries,
            starts_at_reference=reference_round(config, round_) == round_ - 1 and _plain_reference(context, round_),
        )
    except NonFiniteError as error:
        _keep_offending_rows(context, round_, folder, error)
        raise
    save_policy(model, folder, tokenizer_source=str(origin), chat=policy_chat(config, origin))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return outcome


def fit(
    context: Context,
    folder: Path,
    model: Any,
    examples: list[Example],
    loss: Loss,
    settings: Optimisation,
    seed: int,
    carried: Path | None = None,
    save_optimiser: bool = False,
    starts_at_reference: bool = False,
) -> Outcome:
    """Train ``model`` in place, with mid-round checkpoints in ``folder``; the steps go to history.json there."""

    def on_step(step: StepReport) -> None:
        context.report(step.step, step.steps, f"loss {step.loss:.4f}, {step.tokens_per_second:.0f} tokens/s")

    if save_optimiser:
        (folder / OPTIMISER).parent.mkdir(exist_ok=True)
    result = train(
        model,
        examples,
        loss,
        settings,
        seed=seed,
        checkpoint_dir=folder / CHECKPOINTS,
        carried_optimiser=carried,
        save_optimiser_to=folder / OPTIMISER if save_optimiser else None,
        starts_at_reference=starts_at_reference,
        on_step=on_step,
    )
    write_json(folder / "history.json", [asdict(step) for step in result.history])
    return Outcome(len(examples), _metrics(result, loss))


def average(context: Context, round_: int, folder: Path) -> Outcome:
    """The reference of the next round under ``reference: ema``: old average and new policy, weighted."""
    stage = reference_stage(context.run, context.config, round_)
    old = context.policy_path(stage.round) if stage.name == "policy" else stage.folder
    decay = context.config.training.reference_decay
    average_policies(old, context.policy_path(round_), decay, folder)
    return Outcome(0, {"old": stage.title, "decay": decay})


def build_loss(settings: LossSettings) -> Loss:
    """The preset with the settings that the config gives."""
    given = settings.model_dump(exclude={"preset"}, exclude_none=True)
    return load_preset(settings.preset, **given)


def _plain_reference(context: Context, round_: int) -> bool:
    return reference_stage(context.run, context.config, round_).name == "policy"


def _metrics(result: TrainResult, loss: Loss) -> dict[str, JsonValue]:
    plain: dict[str, JsonValue] = dict(result.metrics)
    return {"steps": result.steps, "loss_composition": loss.composition.model_dump(mode="json"), **plain}


def kept_where(folder: Path) -> str:
    """Where a run that diverged left what one needs to look at."""
    return f"the rows are in {folder / OFFENDING}, the weights before the step in {folder / CHECKPOINTS}"


def _keep_offending_rows(context: Context, round_: int, folder: Path, error: NonFiniteError) -> None:
    """The pairs of the failed step, beside the last good checkpoint."""
    suspects = set(error.example_ids)
    rows = [row for row in read_rows(context.run.stage(round_, "pairs").folder) if row["id"] in suspects]
    write_table(folder / OFFENDING, PAIRS, rows)
    error.args = (f"{error}\n  {kept_where(folder)}",)
