"""The training loop: examples and a loss in, a changed model out. One loop for every loss.

Departs from common trainers in one point: the loss comes unreduced and its sum is divided by the
number of examples of the *global* batch, so micro-batches and processes do not change the gradient.
The only files are its own checkpoints and the state that one run leaves for the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.config import Optimisation
from pipeline.config.loss.needs import Needs
from pipeline.errors import NonFiniteError, UserError
from pipeline.images.draw_scores import DrawScores
from pipeline.losses import Loss
from pipeline.models.attention.flex import graphs_compiled
from pipeline.training.batches.examples import Example, check_examples
from pipeline.training.batches.micro_batches import tokens_of_a_pass
from pipeline.training.batches.pass_tokens import PassTokens
from pipeline.training.distributed.launch import Placement
from pipeline.training.distributed.process_group import alone
from pipeline.training.step_log import StepReport
from pipeline.training.steps import Steps
from pipeline.training.trainee import Carry, Files, Trainee, pass_on
from pipeline.training.watch.course import Course, Watching
from pipeline.training.watch.result import TrainResult, summarise_steps

__all__ = ["Carry", "Example", "Files", "NonFiniteError", "Placement", "StepReport", "TrainResult", "Trainee", "train"]

OnStep = Callable[[StepReport], None]
OnStart = Callable[[PassTokens, str | None], None]


def train(
    trainee: Trainee,
    examples: Sequence[Example],
    loss: Loss,
    settings: Optimisation,
    *,
    seed: int,
    files: Files | None = None,
    placement: Placement | None = None,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    watching: Watching | None = None,
) -> TrainResult:
    """Train in place; if ``files.checkpoints`` holds a checkpoint of this same run, resume from it.

    Args:
        trainee: the model, and its reference if the loss needs one in training.
        examples: all of one kind; read as needed, so a sequence that creates each on access
            (``example_table``) keeps them out of memory.
        loss: from the family in ``losses``.
        settings: steps, rates, precision, checkpoints.
        seed: of batch order, dropout, random draws and the heads' initial weights.
        files: checkpoints, and state from the previous run and for the next one; None: nothing is read or written.
        placement: of the training processes; each calls this with the same arguments. With FSDP2, only the main
            process's model is trained afterwards, and those of the others are unusable. None: this process alone.
        on_start: called before the first step, on the main process, with the tokens of a pass over the data and why
            rows are padded.
        on_step: called after every optimiser step, on the main process.
        watching: alarms and evaluations on held-out pairs; they may end training early, or change which weights are
            kept: see ``TrainResult.kept_step``. None: neither.

    Raises:
        Paused: an alarm pauses the run; a checkpoint is written.
        UserError: no examples, an example without response tokens or without what the loss needs; no
            reference model where one is needed; carried state that is missing or belongs to another model.
        NonFiniteError: loss or gradient is not finite, and the weights are those before the step; or the weights
            are not finite when they should be kept.
        SelfTestError: the first step's self-test failed.
    """
    if placement is None:
        with alone() as accelerator:
            placement = Placement(accelerator)
            return train(
                trainee,
                examples,
                loss,
                settings,
                seed=seed,
                files=files,
                placement=placement,
                on_start=on_start,
                on_step=on_step,
                watching=watching,
            )
    compiled = graphs_compiled()
    _require_whole(trainee, placement)
    files, survey = files or Files(), check_examples(examples, loss.name, _of_examples(loss, live=trainee.live))
    steps = Steps(trainee, examples, survey, loss, settings, seed, placement)
    passes = tokens_of_a_pass(survey, settings.batch_size, steps.cut, seed)
    if on_start is not None and steps.accelerator.is_main_process:
        on_start(passes, steps.padded_because)
    steps.take_up(files.carried)
    course = Course(steps, loss.composition, watching, files)
    course.resume()
    while not course.ended:
        step = len(course.history)
        try:
            report = steps.take(step, check_start=trainee.starts_at_reference and step == 0)
        except NonFiniteError:
            course.checkpoint()
            raise
        if on_step is not None and steps.accelerator.is_main_process:
            on_step(report)
        course.add(report)
        if course.ended or steps.checkpoint_due(step + 1):
            steps.require_finite_weights(step)
        # The last step again has one only if it was the last of the plan: a run that stops early stops again.
        if steps.checkpoint_due(step + 1) and course.ended_because is None:
            course.checkpoint()
    kept = course.settle()
    if kept:
        steps.keep(files.kept)
    elif steps.accelerator.is_main_process:
        # The state that belongs to the weights which training started from.
        pass_on(files.carried, files.kept)
    steps.release()
    return replace(
        summarise_steps(tuple(course.history)),
        padded_because=steps.padded_because,
        passes=passes,
        compilations=graphs_compiled() - compiled,
        kept_step=kept,
        ended_because=course.ended_because,
        alarms=course.alarms,
        evaluations=tuple(course.evaluations),
    )


def _require_whole(trainee: Trainee, placement: Placement) -> None:
    """Raise ``UserError`` if a diffusion model's weights or state would be sharded."""
    if isinstance(trainee.model, DrawScores) and placement.sharding is not None:
        raise UserError(
            f"accelerate: {type(placement.sharding).__name__} shards a policy, but policies of images are trained "
            "whole in each process; allowed: a config without FSDP and DeepSpeed"
        )


def _of_examples(loss: Loss, *, live: bool) -> Needs:
    """What the examples must hold: of a reference that scores each batch anew, nothing."""
    return replace(loss.needs, fields=loss.needs.fields - {"reference"}) if live else loss.needs
