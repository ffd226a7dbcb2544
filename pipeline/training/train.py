"""The training loop: examples and a loss in, a changed model out. One loop for every loss.

Departs from common trainers in one point: the loss comes unreduced and its sum is divided by the
number of examples of the *global* batch, so micro-batches and processes do not change the gradient.
Knows no files but its own checkpoints and what one run leaves for the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from pipeline.config import Optimisation
from pipeline.losses import Loss
from pipeline.models.classifier_scores import RowScores
from pipeline.training.batches.examples import Example, check_examples
from pipeline.training.distributed.launch import Sharding, Zero
from pipeline.training.optimiser import load_optimiser, optimiser_state
from pipeline.training.step_log import StepReport, TrainResult, summarise
from pipeline.training.steps import NonFiniteError, Steps

__all__ = ["Example", "NonFiniteError", "StepReport", "TrainResult", "train"]

OnStep = Callable[[StepReport], None]


def train(
    model: Any,
    examples: Sequence[Example],
    loss: Loss,
    settings: Optimisation,
    *,
    seed: int,
    reference_model: Any | None = None,
    module: RowScores | None = None,
    checkpoint_dir: Path | None = None,
    carried_optimiser: Path | None = None,
    save_optimiser_to: Path | None = None,
    carried_heads: Path | None = None,
    save_heads_to: Path | None = None,
    starts_at_reference: bool = False,
    accelerator: Accelerator | None = None,
    sharding: Sharding | Zero | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train ``model`` in place; if ``checkpoint_dir`` holds a checkpoint of this very run, go on from it.

    Args:
        model: from ``load_policy``, possibly with an adapter; parameters that require gradients change.
        examples: all of one kind; read as they are needed, so a sequence that makes each when asked
            (``example_table``) keeps them out of memory.
        loss: of the family in ``losses``.
        settings: steps, rates, precision, checkpoints.
        seed: of batch order, dropout, lots and the first weights of heads.
        reference_model: read where the loss needs more of the reference than its stored log-probabilities
            (``batches.facts_of``); brought to the policy's device. None: the policy with its adapter off.
        module: what is asked about rows in place of the log-probabilities of ``model``: its rewards, of a classifier.
        checkpoint_dir: of checkpoints (every ``settings.checkpoint_every`` steps and after the last one),
            and of the weights before a step that failed. They are left to the caller to remove.
        carried_optimiser: AdamW state to start from.
        save_optimiser_to: file for the AdamW state at the end.
        carried_heads: folder of the heads and critics to start from; not read if the loss trains none.
        save_heads_to: folder for them at the end; not made if the loss trains none.
        starts_at_reference: the reference is the policy at step 0; the first step then checks that the
            stored reference log-probabilities say so.
        accelerator: of the processes that train; each calls this with the same arguments.
        sharding: cut weights and optimiser state over them (FSDP2), or the optimiser's alone (ZeRO). With FSDP2
            ``model`` is trained in the main process alone, and worth nothing in the others.
        on_step: called after every optimiser step, on the main process.

    Raises:
        UserError: no examples, an example without response tokens or without what the loss needs; no
            reference model where one is needed; carried state that is missing or of another model.
        NonFiniteError: loss or gradient is not finite, and weights are those before the step; or the weights are not
            when they are to be kept.
        SelfTestError: the first step's self-test failed.
    """
    survey = check_examples(examples, loss)
    made = accelerator or Accelerator()
    steps = Steps(model, examples, survey, loss, settings, seed, reference_model, made, module, sharding)
    if carried_heads is not None:
        steps.companions.load(carried_heads)
    if carried_optimiser is not None:
        load_optimiser(steps.trained.optimiser, steps.trained.parameters, carried_optimiser)
    history = list(steps.resume(checkpoint_dir))
    for step in range(len(history), steps.count):
        try:
            report = steps.take(step, check_start=starts_at_reference and step == 0)
        except NonFiniteError:
            steps.checkpoint(checkpoint_dir, history)
            raise
        history.append(report)
        if on_step is not None and steps.accelerator.is_main_process:
            on_step(report)
        if step + 1 == steps.count or steps.checkpoint_due(step + 1):
            steps.require_finite_weights(step)
        if steps.checkpoint_due(step + 1):
            steps.checkpoint(checkpoint_dir, history)
    if save_optimiser_to is not None:
        state = optimiser_state(steps.trained.optimiser, steps.trained.parameters, steps.accelerator)
        if steps.accelerator.is_main_process:
            save_file(state, save_optimiser_to)
    if save_heads_to is not None and steps.accelerator.is_main_process:
        steps.companions.save(save_heads_to)
    steps.release()
    return replace(summarise(tuple(history)), padded_because=steps.padded_because)
