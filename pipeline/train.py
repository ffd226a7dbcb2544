"""The training loop: examples and a loss in, a changed model out. One loop for every loss.

Departs from common trainers in one point: the loss comes unreduced and its sum is divided by the
number of pairs of the *global* batch, so micro-batches and processes do not change the gradient.
Knows no files but its own checkpoints.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from pipeline.batches import Example, check_examples, plan_epoch
from pipeline.checkpoint import Progress, load_checkpoint, newest_checkpoint, save_checkpoint
from pipeline.config import Optimisation
from pipeline.gradients import BatchFacts, accumulate_gradient, check_policy_is_reference
from pipeline.logps import TokenLogps, plain_model
from pipeline.losses import Loss
from pipeline.optimiser import load_optimiser, make_adamw, save_optimiser, trainable
from pipeline.progress import StepReport, TrainResult, summarise
from pipeline.schedule import rate_factor, steps_of
from pipeline.types import RunError, UserError, content_hash, derive_seed

__all__ = ["Example", "NonFiniteError", "StepReport", "TrainResult", "train"]

OnStep = Callable[[StepReport], None]
# Those where every process holds all parameters under their own names.
REPLICATED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


class NonFiniteError(RunError):
    """Loss or gradient became infinite or NaN. ``step`` counts from 1."""

    def __init__(self, message: str, step: int, example_ids: tuple[str, ...]) -> None:
        """``example_ids``: those whose loss is not finite, or the whole batch if only the gradient is not."""
        super().__init__(message)
        self.step = step
        self.example_ids = example_ids


def train(
    model: Any,
    examples: Sequence[Example],
    loss: Loss,
    settings: Optimisation,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    carried_optimiser: Path | None = None,
    save_optimiser_to: Path | None = None,
    starts_at_reference: bool = False,
    accelerator: Accelerator | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train ``model`` in place; if ``checkpoint_dir`` holds a checkpoint of this very run, go on from it.

    Args:
        model: from ``load_policy``, possibly with an adapter; parameters that require gradients change.
        examples: all pairs, or all single texts.
        loss: of the family in ``losses``.
        settings: steps, rates, precision, checkpoints.
        seed: of batch order and dropout.
        checkpoint_dir: of checkpoints (every ``settings.checkpoint_every`` steps and after the last one),
            and of the weights before a step that failed. They are left to the caller to remove.
        carried_optimiser: AdamW state to start from.
        save_optimiser_to: file for the AdamW state at the end.
        starts_at_reference: the reference is the policy at step 0; the first step then checks that the
            stored reference log-probabilities say so.
        on_step: called after every optimiser step, on the main process.

    Raises:
        UserError: no examples, an example without response tokens or without what the loss needs.
        NonFiniteError: loss or gradient is not finite; weights are those before the step.
        RunError: the first step's self-test failed.
    """
    check_examples(examples, loss)
    run = _Run(model, examples, loss, settings, seed, accelerator or Accelerator())
    if carried_optimiser is not None:
        load_optimiser(run.optimiser, run.parameters, carried_optimiser)
    history = list(run.resume(checkpoint_dir))
    for step in range(len(history), run.steps):
        try:
            report = run.step(step, check_start=starts_at_reference and step == 0)
        except NonFiniteError:
            run.checkpoint(checkpoint_dir, history)
            raise
        history.append(report)
        if on_step is not None and run.accelerator.is_main_process:
            on_step(report)
        if run.checkpoint_due(step + 1):
            run.checkpoint(checkpoint_dir, history)
    if save_optimiser_to is not None and run.accelerator.is_main_process:
        save_optimiser(run.optimiser, run.parameters, save_optimiser_to)
    run.release()
    return summarise(tuple(history))


class _Run:
    """Model, optimiser and batch order of one call of ``train``."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        loss: Loss,
        settings: Optimisation,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.examples, self.loss, self.settings, self.seed = examples, loss, settings, seed
        self.accelerator = accelerator
        if accelerator.distributed_type not in REPLICATED:
            kind = accelerator.distributed_type.value
            raise UserError(f"training: {kind} is not supported; one process, or data parallel (DDP)")
        self.model = model
        self.steps = steps_of(len(examples), settings)
        self._lengths = [e.length for e in examples]
        self._plan: tuple[int, list[tuple[int, ...]]] = (-1, [])
        self.parameters = trainable(model)
        if settings.gradient_checkpointing:
            plain_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        module = TokenLogps(model, settings.dtype)
        self.policy, self.optimiser = accelerator.prepare(module, make_adamw(self.parameters, settings))

    @property
    def key(self) -> str:
        """What a checkpoint must agree on to be one of this run."""
        parts = [self.settings.identity(), self.loss.composition.model_dump(mode="json"), self.seed]
        return content_hash([*parts, [[e.id, e.length] for e in self.examples]])

    def resume(self, folder: Path | None) -> tuple[StepReport, ...]:
        """Go back to the newest checkpoint in ``folder``; the reports of the steps up to it."""
        place = None if folder is None else newest_checkpoint(folder)
        if place is None:
            return ()
        return load_checkpoint(place, self.key, self.parameters, self.optimiser).history

    def checkpoint_due(self, done: int) -> bool:
        """Whether one is written after ``done`` steps: the last too, so a kill before the caller saves costs none."""
        every = self.settings.checkpoint_every
        return every > 0 and (done % every == 0 or done == self.steps)

    def checkpoint(self, folder: Path | None, history: Sequence[StepReport]) -> None:
        """Write weights, optimiser state and ``history`` to ``folder``, if there is one."""
        if folder is not None and self.accelerator.is_main_process:
            save_checkpoint(folder, Progress(self.key, len(history), tuple(history)), self.parameters, self.optimiser)
        self.accelerator.wait_for_everyone()

    def release(self) -> None:
        """Leave the model as a caller expects it: evaluation mode, no recomputation."""
        if self.settings.gradient_checkpointing:
            plain_model(self.model).gradient_checkpointing_disable()
        self.model.eval()

    def step(self, step: int, check_start: bool) -> StepReport:
        """Optimiser step number ``step`` from 0."""
        started = time.perf_counter()
        # Dropout depends on the step alone, so there is no random state to save.
        torch.manual_seed(derive_seed(self.seed, "step", step, self.accelerator.process_index))
        rate = self.settings.learning_rate * rate_factor(step, self.steps, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch, size = self._global_batch(step), self.settings.micro_batch_size
        if check_start:
            check_policy_is_reference(self.policy, batch, size, self.accelerator, self.settings.dtype)
        facts = accumulate_gradient(self.policy, batch, self.loss, size, self.accelerator)
        norm = float(self.accelerator.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm))
        self._require_finite(step, facts, norm, batch)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return self._report(step, facts, rate, norm, time.perf_counter() - started)

    def _global_batch(self, step: int) -> list[Example]:
        epoch, index = divmod(step, math.ceil(len(self.examples) / self.settings.batch_size))
        if self._plan[0] != epoch:
            self._plan = (epoch, plan_epoch(self._lengths, self.settings.batch_size, self.seed, epoch))
        return [self.examples[i] for i in self._plan[1][index]]

    def _require_finite(self, step: int, facts: BatchFacts, norm: float, batch: Sequence[Example]) -> None:
        if math.isfinite(facts.loss) and math.isfinite(norm):
            return
        self.optimiser.zero_grad(set_to_none=True)
        suspects = tuple(gather_object(list(facts.suspects))) or tuple(e.id for e in batch)
        shown = ", ".join(suspects[:5]) + (f" and {len(suspects) - 5} more" if len(suspects) > 5 else "")
        raise NonFiniteError(
            f"step {step + 1} of {self.steps}: loss {facts.loss:g}, gradient norm {norm:g}; examples {shown}",
            step + 1,
            suspects,
        )

    def _report(self, step: int, facts: BatchFacts, rate: float, norm: float, seconds: float) -> StepReport:
        return StepReport(
            step=step + 1,
            steps=self.steps,
            loss=facts.loss,
            learning_rate=rate,
            grad_norm=norm,
            margin=facts.metrics.get("margin"),
            accuracy=facts.metrics.get("accuracy"),
            chosen_logp_per_token=facts.metrics["chosen_logp_per_token"],
            rejected_logp_per_token=facts.metrics.get("rejected_logp_per_token"),
            tokens=facts.tokens,
            response_tokens=facts.response_tokens,
            padding=1 - facts.tokens / facts.positions,
            seconds=seconds,
            tokens_per_second=facts.tokens / seconds,
        )
