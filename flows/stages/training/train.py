"""policy of rounds 1 and on: one round of preference training; average: the running mean of policies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage
from flows.stages.context import Context, Outcome, keep_rows, policy_chat
from flows.stages.training.examples import examples_with_reference
from pipeline.config import Optimisation
from pipeline.config.loss.needs import needs_of
from pipeline.errors import RowsError
from pipeline.losses import Loss
from pipeline.models.lora import add_adapter
from pipeline.models.policy import average_policies, load_policy, save_policy, save_probe
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.training.batches.example_table import ExampleTable, write_examples
from pipeline.training.batches.examples import Example
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.step_log import STEPS, StepLog, StepReport, TrainResult
from pipeline.training.train import train
from pipeline.training.trainee import Carry, Files, Trainee
from pipeline.types import derive_seed

# In separate folders: engines load every *.safetensors file in a model's folder as its weights.
HEADS = "heads"
_OPTIMISER = "optimiser/state.safetensors"
EXAMPLES = "examples.arrow"
OFFENDING_ROWS = "offending.parquet"


def train_round(context: Context, round_: int, folder: Path) -> Outcome:
    """Train the round's start policy on this round's pairs; write the new policy's model folder."""
    config = context.config
    training = config.training
    origin = context.policy_path(parent(context.run, config, round_))
    model = load_policy(str(origin), trust_remote_code=config.trusts_policy)
    if training.lora is not None:
        model = add_adapter(model, training.lora, derive_seed(config.seed, "adapter", round_))
    at_reference = _starts_at_reference(context, round_)
    try:
        outcome = fit(
            context,
            folder,
            Trainee(
                model,
                _reference_model(context, round_, at_reference),
                starts_at_reference=at_reference and needs_of(config.loss).references > 0,
            ),
            examples_with_reference(context, round_),
            Loss(config.loss.preset, config.loss),
            training,
            derive_seed(config.seed, "train", round_),
            files=_files(context, round_, folder),
        )
    except RowsError as error:
        if context.writes:
            _keep_offending_rows(context, round_, folder, error)
        raise
    if not context.writes:
        return outcome
    save_policy(model, folder, tokenizer_source=str(origin), chat=policy_chat(config, origin))
    return outcome


def fit(
    context: Context,
    folder: Path,
    trainee: Trainee,
    examples: Iterable[Example],
    loss: Loss,
    settings: Optimisation,
    seed: int,
    files: Files | None = None,
) -> Outcome:
    """Train the model in place, with mid-round checkpoints in ``folder`` and one line per step in its steps.jsonl.

    The examples are read once, into a file next to the checkpoints. Steps read that file, so memory does not grow.
    """
    if context.writes:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        write_examples(folder / CHECKPOINTS / EXAMPLES, examples)
    context.wait_for_everyone()
    table = ExampleTable(folder / CHECKPOINTS / EXAMPLES)

    log = StepLog(folder / STEPS)

    def on_step(step: StepReport) -> None:
        log.add(step)
        context.report(step.step, step.steps, f"loss {step.loss:.4f}, {step.tokens_per_second:.0f} tokens/s")

    result = train(
        trainee,
        table,
        loss,
        settings,
        seed=seed,
        files=files or Files(folder / CHECKPOINTS),
        placement=context.placement,
        on_step=on_step,
    )
    if context.writes:
        log.finish(result.history)
    return Outcome(len(table), _metrics(result, loss))


def _starts_at_reference(context: Context, round_: int) -> bool:
    """Whether the round's reference is the policy that its training starts from."""
    stage = reference_stage(context.run, context.config, round_)
    return (stage.name, stage.round) == ("policy", parent(context.run, context.config, round_))


def _reference_model(context: Context, round_: int, at_reference: bool) -> Any | None:
    """The reference policy, if the loss needs more of it than is stored; else None, also for the policy's own base."""
    config = context.config
    if not needs_of(config.loss).live_reference or (at_reference and config.training.lora is not None):
        return None
    path = context.model_path(reference_stage(context.run, config, round_))
    return load_policy(str(path), trust_remote_code=config.trusts_policy)


def _files(context: Context, round_: int, folder: Path) -> Files:
    """Files to carry between rounds: heads if the loss trains any, the optimiser's state if the config asks for it."""
    before = context.run.stage(parent(context.run, context.config, round_), "policy").folder
    carries = context.config.training.optimiser_state == "carried"
    if carries and context.writes:
        (folder / _OPTIMISER).parent.mkdir(exist_ok=True)
    return Files(
        folder / CHECKPOINTS,
        carried=Carry(
            before / _OPTIMISER if carries and (before / _OPTIMISER).is_file() else None,
            before / HEADS if (before / HEADS).is_dir() else None,
        ),
        kept=Carry(folder / _OPTIMISER if carries else None, folder / HEADS),
    )


def average(context: Context, round_: int, folder: Path) -> Outcome:
    """The next round's reference under ``reference: ema``: the weighted mean of the old average and the new policy."""
    stage = reference_stage(context.run, context.config, round_)
    old = context.model_path(stage)
    decay = context.config.training.reference_decay
    average_policies(old, context.policy_path(round_), decay, folder)
    model = load_policy(str(folder), trust_remote_code=context.config.trusts_policy)
    save_probe(model, policy_chat(context.config, folder), folder)
    return Outcome(0, {"old": stage.title, "decay": decay})


def _metrics(result: TrainResult, loss: Loss) -> dict[str, JsonValue]:
    plain: dict[str, JsonValue] = dict(result.metrics)
    said: dict[str, JsonValue] = {"steps": result.steps, "padded_because": result.padded_because}
    return {**said, "loss_composition": loss.composition.identity(), **plain}


def kept_where(folder: Path) -> str:
    """The places where a diverged run left its rows and weights."""
    place = newest_checkpoint(folder / CHECKPOINTS)
    weights = "the previous ones are the stage's inputs" if place is None else f"the last good ones are in {place}"
    return f"the rows are in {folder / OFFENDING_ROWS}; weights: {weights}"


def _keep_offending_rows(context: Context, round_: int, folder: Path, error: RowsError) -> None:
    """Write the rows of the failed step next to the last good checkpoint."""
    keep_rows(context, round_, error.example_ids, folder / OFFENDING_ROWS)
    error.args = (f"{error}\n  {kept_where(folder)}",)
