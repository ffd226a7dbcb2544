"""The optimiser steps of a training run: model, heads, optimiser and batch order."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Optimisation
from pipeline.errors import UserError
from pipeline.images.draw_scores import DrawScores, FactsModule, score_key
from pipeline.losses import Loss
from pipeline.models.classifier_scores import RowScores
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import switch_recomputation
from pipeline.training.auxiliary.loser_guard import guard_of
from pipeline.training.auxiliary.modules import live_reference, modules_for
from pipeline.training.auxiliary.moving_reference import reference_in_training
from pipeline.training.auxiliary.routers import Routers
from pipeline.training.batches.ahead import Ahead
from pipeline.training.batches.collate import plan_epoch
from pipeline.training.batches.examples import Example, Survey
from pipeline.training.batches.image_epochs import of_epoch
from pipeline.training.batches.micro_batches import Lots, cut_for
from pipeline.training.distributed.checkpoint import (
    CheckpointProgress,
    Trained,
    keep_weights,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    take_up_kept,
)
from pipeline.training.distributed.fsdp import mesh_of, reduces_once, shard, shard_reference, write_back
from pipeline.training.distributed.launch import Placement, Sharding, Zero, context_parallel
from pipeline.training.distributed.process_group import context_group, require_supported
from pipeline.training.distributed.zero import ZeroEngine
from pipeline.training.gradients import BatchFacts, Objective, accumulate_gradient
from pipeline.training.optimiser import (
    ParameterGroup,
    clipped_norm,
    load_optimiser,
    make_optimiser,
    rate_factor,
    save_optimiser,
    set_rate,
    steps_of,
    trainable,
)
from pipeline.training.step_log import METRICS, StepReport
from pipeline.training.trainee import Carry, Trainee
from pipeline.training.watch.finite import all_finite, diverged, weights_diverged
from pipeline.training.watch.held_out import HeldOutReport, PairReading
from pipeline.training.watch.readings import read_pairs
from pipeline.training.watch.self_test import check_packing, check_policy_is_reference
from pipeline.types import content_hash, derive_seed


class Steps:
    """The steps of one training run; see ``train`` for the arguments.

    Attributes:
        count: number of steps.
        modules: modules that the loss trains together with the policy.
        trained: everything that the steps change, except the loss's running statistics.
        cut: of global batches into forward passes.
        padded_because: why rows are padded; None: prompts are shared and nothing is padded.
    """

    def __init__(
        self,
        trainee: Trainee,
        examples: Sequence[Example],
        survey: Survey,
        loss: Loss,
        settings: Optimisation,
        seed: int,
        placement: Placement,
    ) -> None:
        """Put the model into training mode and on the accelerator's device; with FSDP2, a sharded copy of it."""
        self.accelerator = placement.accelerator
        require_supported(self.accelerator)
        scores = trainee.model if isinstance(trainee.model, RowScores | DrawScores) else None
        self._draws = scores.draws if isinstance(scores, DrawScores) else None
        model = trainee.model if scores is None else scores.model
        self._whole = model if isinstance(placement.sharding, Sharding) else None
        if self._whole is not None and self.accelerator.is_main_process:
            # The other processes' models are not used after training.
            model = copy.deepcopy(model)
        self.model, self.examples, self._survey = model, examples, survey
        self.settings, self.seed = settings, seed
        self.count, self.scores_images = steps_of(len(examples), settings), self._draws is not None
        # A checkpoint of this run has the same key.
        known = settings.identity(), loss.composition.identity(), seed, survey.digest, *trainee.key, *score_key(scores)
        self._key = content_hash(known)
        self._plan: tuple[int, list[Sequence[int]]] = (-1, [])
        self._running: Mapping[str, float] = {}
        self._packing_checked = False
        self._prepare_model(placement)
        self._moving = reference_in_training(trainee, loss.needs)
        reference = live_reference(model, trainee.reference, loss)
        if reference is not None and not isinstance(placement.sharding, Sharding):
            reference.to(self.accelerator.device)
        self.modules = modules_for(model, reference, loss.composition, derive_seed(seed, "heads"))
        self.modules.to(self.accelerator.device)
        routers = None if scores else Routers(model, trainee.router_aux_loss_coef)
        context = context_group(self.accelerator, context_parallel(settings))
        if context is not None and routers:
            raise UserError(f"training.context_parallel: {context.size}, but the policy has experts; allowed: 1")
        facts = scores or TokenLogps(
            model,
            settings.dtype,
            loss.needs.token_facts,
            reference,
            share_prompts=settings.packing,
            whole_rows=bool(routers),
            context=context,
        )
        self.padded_because = facts.padded_because
        self._facts = facts
        self._moving.score_with(facts, settings.dtype, settings.packing)
        self.cut = cut_for(settings, self.accelerator.device.type, packing=self.padded_because is None)
        self._reference = shard_reference(facts, reference, placement.sharding, self.accelerator)
        wrapped, self.trained = self._placed(facts, placement)
        sums = self._whole is not None and reduces_once(facts, settings, self.accelerator)
        given = wrapped, loss, self.modules, self.accelerator, trainee.end_ids, routers, sums
        self._objective = Objective(*given, Ahead.of(facts, self.accelerator.device), guard_of(facts, self.accelerator))

    def _prepare_model(self, placement: Placement) -> None:
        if self.settings.gradient_checkpointing:
            switch_recomputation(self.model, on=True)
        self.model.train()
        if placement.sharding is None:
            # Its attention is tested on the device where it will run.
            self.model.to(self.accelerator.device)

    def _placed(self, facts: FactsModule, placement: Placement) -> tuple[Any, Trained]:
        """Return ``facts`` as the processes call it, and what the steps change."""
        sharding = placement.sharding
        if isinstance(sharding, Sharding):
            shard(facts, sharding, self.accelerator)
            self.modules.shard(mesh_of(self.accelerator))
        policy = trainable(self.model)
        groups = [ParameterGroup(policy, self.settings.weight_decay), *self.modules.groups(self.settings)]
        wrapped: Any = facts
        optimiser: Any = make_optimiser(groups, self.settings)
        if sharding is None:
            wrapped, optimiser = self.accelerator.prepare(wrapped, optimiser)
        elif isinstance(sharding, Zero):
            engine = ZeroEngine(facts, optimiser, sharding, self.settings.max_grad_norm, self.accelerator)
            wrapped = optimiser = engine
        parameters = {**policy, **self.modules.named()}
        return wrapped, Trained(parameters, self.modules.named_constants() | self._moving.named(), optimiser)

    def take_up(self, carried: Carry) -> None:
        """Start from the state that another run left."""
        if carried.heads is not None:
            self.modules.load(carried.heads)
        if carried.optimiser is not None:
            load_optimiser(self.trained.optimiser, self.trained.parameters, carried.optimiser)

    def keep(self, kept: Carry) -> None:
        """Write the state that the next run may start from, in the main process; all processes call this."""
        if kept.optimiser is not None:
            save_optimiser(self.trained.optimiser, self.trained.parameters, kept.optimiser, self.accelerator)
        if kept.heads is not None:
            self.modules.save(kept.heads, writes=self.accelerator.is_main_process)

    def resume(self, folder: Path | None) -> CheckpointProgress | None:
        """Go back to the newest checkpoint in ``folder``; return the progress up to it, None without one."""
        # No process writes before all have read.
        self.accelerator.wait_for_everyone()
        place = None if folder is None else newest_checkpoint(folder)
        if place is None:
            return None
        progress = load_checkpoint(place, self._key, self.trained)
        if isinstance(self.trained.optimiser, ZeroEngine):
            self.trained.optimiser.take_up_weights()
        self._running = progress.running
        return progress

    def checkpoint_due(self, done: int) -> bool:
        """Return whether to write one after ``done`` steps; the last too: a kill may come before the caller saves."""
        every = self.settings.checkpoint_every
        return every > 0 and (done % every == 0 or done == self.count)

    def checkpoint(
        self, folder: Path, history: Sequence[StepReport], evaluations: Sequence[HeldOutReport], kept: int | None
    ) -> None:
        """Write trained tensors, the optimiser's state and both histories; ``kept``: see ``CheckpointProgress``."""
        known = tuple(history), self._running, tuple(evaluations), kept
        save_checkpoint(folder, CheckpointProgress(self._key, len(history), *known), self.trained, self.accelerator)

    def keep_weights(self, folder: Path, step: int, *, state: bool, needed: int | None) -> None:
        """Write the trained tensors to ``folder``, for ``go_back``; see ``checkpoint.keep_weights``."""
        keep_weights(folder, step, self.trained, self.accelerator, state=state, needed=needed)

    def go_back(self, folder: Path, step: int, *, state: bool) -> None:
        """Restore what ``keep_weights`` or a checkpoint wrote after ``step`` steps; ``state``: the optimiser's too."""
        self.accelerator.wait_for_everyone()
        take_up_kept(folder, step, self.trained, state=state)
        if isinstance(self.trained.optimiser, ZeroEngine):
            self.trained.optimiser.take_up_weights()

    def read(self, pairs: Sequence[Example]) -> list[PairReading]:
        """Return the policy's values for held-out ``pairs``; all processes call this."""
        assert isinstance(self._facts, TokenLogps), "others have no log-probabilities"
        of = self._objective
        return read_pairs(of.policy, self._facts, pairs, self.cut, self.accelerator, of.end_ids)

    def release(self) -> None:
        """Restore the model for the caller: whole (in the main process), in evaluation mode, no recomputation."""
        if self._whole is not None:
            write_back(trainable(self.model), self._whole, self.accelerator)
            self._whole.eval()
        if isinstance(self.trained.optimiser, ZeroEngine):
            self.trained.optimiser.release()
        if self.settings.gradient_checkpointing:
            switch_recomputation(self.model, on=False)
        self.model.eval()
        self._moving.release()

    def take(self, step: int, check_start: bool) -> StepReport:
        """Take optimiser step ``step``, from 0; ``check_start``: whether policy and reference must be the same.

        Raises ``NonFiniteError`` before anything has changed.
        """
        # Dropout depends only on the step, so there is no random state to save.
        torch.manual_seed(derive_seed(self.seed, "step", step, self.accelerator.process_index))
        rate = self.settings.learning_rate * rate_factor(step, self.count, self.settings)
        optimiser = self.trained.optimiser
        set_rate(optimiser, rate)
        epoch, index = divmod(step, math.ceil(len(self.examples) / self.settings.batch_size))
        batch = self._moving.scored(self._global_batch(epoch, index), self.cut, step)
        if self.cut.packing and not self._packing_checked:
            check_packing(self._objective.policy, batch, self.cut, self.accelerator, self._facts.dtype)
            self._packing_checked = True
        if check_start:
            check_policy_is_reference(self._objective.policy, batch, self.cut, self.accelerator, self._facts.dtype)
        # A step's time does not include the self-tests of a run's first step.
        started = time.perf_counter()
        facts = accumulate_gradient(self._objective, batch, self.cut, Lots(self.seed, epoch), self._running)
        if self._reference is not None:
            self._reference.release()
        norm = self._clip()
        self._require_finite(step, facts, norm, batch)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self._running = facts.running
        self.modules.after_step(facts.module_means)
        self._moving.after_step(step + 1)
        return self._report(step, facts, rate, norm, time.perf_counter() - started)

    def _global_batch(self, epoch: int, index: int) -> Sequence[Example]:
        if self._plan[0] != epoch:
            sizes = self._survey.lengths, self._survey.tokens
            self._plan = (epoch, plan_epoch(*sizes, self.settings.batch_size, self.seed, epoch))
        return [of_epoch(self.examples[i], epoch, self._draws) for i in self._plan[1][index]]

    def _clip(self) -> float:
        if isinstance(self.trained.optimiser, ZeroEngine):
            # It clips in its step, and trains only the policy.
            return self.trained.optimiser.gradient_norm()
        beside = self.modules.named()
        policy = [p for name, p in self.trained.parameters.items() if name not in beside]
        return clipped_norm(policy, [*beside.values()], self.settings.max_grad_norm, self.accelerator)

    def _require_finite(self, step: int, facts: BatchFacts, norm: float, batch: Sequence[Example]) -> None:
        if not math.isfinite(facts.loss) or not math.isfinite(norm):
            self.trained.optimiser.zero_grad(set_to_none=True)
            raise diverged(step, self.count, facts, norm, batch)

    def require_finite_weights(self, step: int) -> None:
        """Raise ``NonFiniteError`` if the weights after step ``step`` (from 0) are not finite."""
        if all_finite(self.trained.tensors.values(), self.accelerator):
            return
        epoch, index = divmod(step, math.ceil(len(self.examples) / self.settings.batch_size))
        raise weights_diverged(step, self.count, self.settings.learning_rate, self._global_batch(epoch, index))

    def _report(self, step: int, facts: BatchFacts, rate: float, norm: float, seconds: float) -> StepReport:
        known: dict[str, Any] = {name: facts.metrics.get(name) for name in METRICS}
        return StepReport(
            step=step + 1,
            steps=self.count,
            loss=facts.loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=facts.tokens,
            response_tokens=facts.response_tokens,
            padding=1 - facts.tokens / facts.positions,
            seconds=seconds,
            tokens_per_second=facts.tokens / seconds,
            parts=facts.parts or None,
            **known,
            **({} if facts.experts is None else asdict(facts.experts)),
        )
