"""policy of rounds 1 and on: one round of preference training; average: the running mean of policies."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from flows.run_folder.ancestry import parent, reference_stage
from flows.stages.context import Context, Outcome, keep_rows, policy_chat
from flows.stages.measures.held_out import held_out_examples
from flows.stages.training.examples import examples_with_reference
from flows.stages.training.policies import (
    policy_to_train,
    reference_model,
    require_carried_state,
    require_masters,
    save_round,
)
from pipeline.config import Optimisation
from pipeline.config.loss.needs import needs_of
from pipeline.config.training import router_coefficient
from pipeline.errors import RowsError
from pipeline.losses import Loss
from pipeline.models.policy import load_policy, save_probe
from pipeline.models.weights.average import average_policies
from pipeline.storage.run_folder import CHECKPOINTS
from pipeline.storage.shards import shards_of
from pipeline.training.batches.example_table import ExampleTable, write_examples
from pipeline.training.batches.examples import Example
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.distributed.checkpoint import newest_checkpoint
from pipeline.training.step_log import STEPS, StepLog, StepReport
from pipeline.training.train import train
from pipeline.training.trainee import Carry, Files, Trainee
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import Alarm, write_alarms
from pipeline.training.watch.course import Watching
from pipeline.training.watch.held_out import HeldOutReport, write_held_out
from pipeline.training.watch.result import TrainResult
from pipeline.types import derive_seed

logger = logging.getLogger(__name__)
# In separate folders: engines load every *.safetensors file in a model's folder as its weights.
HEADS = "heads"
_OPTIMISER = "optimiser/state.safetensors"
EXAMPLES = "examples.arrow"
OFFENDING_ROWS = "offending.parquet"
# Facts of training that mean nothing for images, whose draws stand for tokens.
_OF_TOKENS = frozenset(("tokens", "response_tokens", "tokens_per_second", "padding"))


class WatchNotes:
    """What the log and the progress say of a round's alarms and evaluations while it is trained."""

    def __init__(self, folder: Path, preset: str) -> None:
        """``folder``: where the alarms so far are written; ``preset``: the loss."""
        self._folder, self._preset = folder, preset
        self._alarms: list[Alarm] = []
        self._evaluated = ""

    @property
    def note(self) -> str:
        """The newest evaluation and the names of the alarms, to follow a step's progress."""
        raised = f", ALARM: {', '.join(alarm.rule for alarm in self._alarms)}" if self._alarms else ""
        return self._evaluated + raised

    def alarm(self, alarm: Alarm) -> None:
        """Take up a new alarm."""
        self._alarms.append(alarm)
        write_alarms(self._folder, self._alarms, alarm.step)
        logger.warning("WARNING %s", alarm_line(alarm, self._preset))

    def resume(self, alarms: Sequence[Alarm], reports: Sequence[HeldOutReport]) -> None:
        """Take up what the log has told of before the run was ended."""
        self._alarms = [*alarms]
        for report in reports[-1:]:
            self.evaluation(report)

    def evaluation(self, report: HeldOutReport) -> None:
        """Take up an evaluation on held-out pairs."""
        self._evaluated = f", held out {report.accuracy:.0%}"


def train_round(context: Context, round_: int, folder: Path) -> Outcome:
    """Train the round's start policy on this round's pairs; write the new policy's model folder."""
    config = context.config
    training = config.training
    notes = WatchNotes(folder, config.loss.preset)
    files = carried_files(context, round_, folder)
    require_carried_state(context, round_, files.carried.optimiser)
    model = policy_to_train(context, round_)
    at_reference = starts_at_reference(context, round_)
    chat = policy_chat(config, context.policy_path(parent(context.run, config, round_)))
    try:
        outcome = fit(
            context,
            folder,
            Trainee(
                model,
                reference_model(context, round_, model, at_reference=at_reference),
                starts_at_reference=at_reference and needs_of(config.loss).references > 0,
                end_ids=chat.end_ids,
                router_aux_loss_coef=router_coefficient(training.router_aux_loss_coef),
                reference_sync=training.reference_sync,
            ),
            examples_with_reference(context, round_),
            Loss(config.loss.preset, config.loss),
            training,
            derive_seed(config.seed, "train", round_),
            files=files,
            watching=_watching(context, notes),
            notes=notes,
        )
    except RowsError as error:
        if context.writes:
            keep_offending_rows(context, round_, folder, error)
        raise
    if not context.writes:
        return outcome
    if outcome.metrics["kept_step"] == 0:
        model = policy_to_train(context, round_)
    facts = save_round(context, round_, model, folder, chat)
    return Outcome(outcome.rows, {**outcome.metrics, **facts})


def fit(
    context: Context,
    folder: Path,
    trainee: Trainee,
    examples: Iterable[Example],
    loss: Loss,
    settings: Optimisation,
    seed: int,
    files: Files | None = None,
    watching: Watching | None = None,
    notes: WatchNotes | None = None,
) -> Outcome:
    """Train the model in place, with mid-round checkpoints in ``folder`` and one line per step in its steps.jsonl.

    If the metric ``kept_step`` is 0, the weights to keep are those that it started with, not the model's.

    The examples are read once, into a file next to the checkpoints. Steps read that file, so memory does not grow.
    """
    if context.writes:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        write_examples(folder / CHECKPOINTS / EXAMPLES, examples)
    context.wait_for_everyone()
    table = ExampleTable(folder / CHECKPOINTS / EXAMPLES)

    log = StepLog(folder / STEPS)

    images = context.config.modality == "image"

    def on_start(passes: PassTokens, why: str | None) -> None:
        if images:
            # Draws have no prompt to share, and no lengths to fill up.
            return
        line = passes.line(why)
        logger.log(logging.INFO if why is None or not settings.packing else logging.WARNING, "%s", line)
        context.report(0, 0, line)

    def on_step(step: StepReport) -> None:
        log.add(step)
        # Images have no tokens; steps a second are told anyway.
        rate = "" if images else f", {step.tokens_per_second:.0f} tokens/s"
        note = f"loss {step.loss:.4f}{rate}"
        context.report(step.step, step.steps, note if notes is None else note + notes.note)

    result = train(
        trainee,
        table,
        loss,
        settings,
        seed=seed,
        files=files or Files(folder / CHECKPOINTS),
        placement=context.placement,
        on_start=on_start,
        on_step=on_step,
        watching=watching,
    )
    if context.writes:
        log.finish(result.history)
        write_alarms(folder, result.alarms, result.kept_step)
        if result.evaluations:
            write_held_out(folder, result.evaluations)
    told = _metrics(result, loss)
    return Outcome(len(table), {name: told[name] for name in told if not (images and name in _OF_TOKENS)})


def _watching(context: Context, notes: WatchNotes) -> Watching:
    """Alarms and mid-round evaluations; ``notes`` takes up what the log and the progress say of them."""
    config, training = context.config, context.config.training
    pairs = held_out_examples(context, policy_chat(config, context.policy_path(0))) if training.evaluate_every else []
    return Watching(
        training.alarms,
        pairs,
        training.evaluate_every,
        training.keep,
        training.early_stop,
        notes.alarm,
        notes.evaluation,
        notes.resume,
    )


def starts_at_reference(context: Context, round_: int) -> bool:
    """Whether the round's reference is the policy that its training starts from."""
    stage = reference_stage(context.run, context.config, round_)
    return (stage.name, stage.round) == ("policy", parent(context.run, context.config, round_))


def carried_files(context: Context, round_: int, folder: Path) -> Files:
    """Files to carry between rounds: heads if the loss trains any, the optimiser's state if the config asks for it."""
    before = context.run.stage(parent(context.run, context.config, round_), "policy").folder
    carries = context.config.training.optimiser_state == "carried"
    if carries and context.writes:
        (folder / _OPTIMISER).parent.mkdir(exist_ok=True)
    return Files(
        folder / CHECKPOINTS,
        carried=Carry(
            before / _OPTIMISER if carries and shards_of(before / _OPTIMISER) else None,
            before / HEADS if (before / HEADS).is_dir() else None,
        ),
        kept=Carry(folder / _OPTIMISER if carries else None, folder / HEADS),
    )


def average(context: Context, round_: int, folder: Path) -> Outcome:
    """The next round's reference under ``reference: ema``: the weighted mean of the old average and the new policy."""
    stage = reference_stage(context.run, context.config, round_)
    old = context.model_path(stage)
    decay = context.config.training.reference_decay
    for read in (stage, context.run.stage(round_, "policy")):
        require_masters(read)
    average_policies(old, context.policy_path(round_), decay, folder)
    model = load_policy(str(folder), trust_remote_code=context.config.trusts_policy, held=context.held)
    save_probe(model, policy_chat(context.config, folder), folder)
    return Outcome(0, {"old": stage.title, "decay": decay})


def _metrics(result: TrainResult, loss: Loss) -> dict[str, JsonValue]:
    plain: dict[str, JsonValue] = dict(result.metrics)
    said: dict[str, JsonValue] = {"steps": result.steps, "padded_because": result.padded_because}
    said["compilations"] = result.compilations
    said |= {"kept_step": result.kept_step, "ended_because": result.ended_because}
    if result.passes is not None:
        kind = result.passes.kind(result.padded_because)
        said["passes"] = {"kind": kind, **asdict(result.passes)}
    shares = result.history[-1].expert_shares
    if shares is not None:
        said["expert_shares"] = [*shares]
    return {**said, "loss_composition": loss.composition.identity(), **plain}


def kept_where(folder: Path) -> str:
    """The places where a diverged run left its rows and weights."""
    place = newest_checkpoint(folder / CHECKPOINTS)
    weights = "the previous ones are the stage's inputs" if place is None else f"the last good ones are in {place}"
    return f"the rows are in {folder / OFFENDING_ROWS}; weights: {weights}"


def keep_offending_rows(context: Context, round_: int, folder: Path, error: RowsError) -> None:
    """Write the rows of the failed step next to the last good checkpoint."""
    keep_rows(context, round_, error.example_ids, folder / OFFENDING_ROWS)
    error.args = (f"{error}\n  {kept_where(folder)}",)
