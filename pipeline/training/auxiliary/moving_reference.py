"""A reference that moves towards the policy within a round (TR-DPO, arXiv:2404.09656).

Until its first move, the stored log-probabilities of the round's reference serve; after it, every batch is scored anew
before its step. Each process scores the whole batch, so that all hold the same numbers.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.loss.needs import Needs
from pipeline.config.training import ReferenceSync
from pipeline.errors import UserError
from pipeline.models.policy import dropout_off
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_copied_reference, drop_reference, plain_model, reference_on
from pipeline.models.weights.weight_format import Precision
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.reference import with_reference
from pipeline.training.trainee import Trainee

# Prefix of its weights among the tensors that a run changes.
_PREFIX = "moving_reference."


class StandingReference:
    """The reference of a training run in which it stays: the examples hold all that is read of it."""

    def named(self) -> dict[str, Tensor]:
        """Return weights that change, under names that no policy has."""
        return {}

    def score_with(self, policy_facts: nn.Module, dtype: Precision, packing: bool) -> None:
        """Set how it scores: with an adapter, through the policy's own ``TokenLogps``."""

    def scored(self, examples: Sequence[Example], cut: Cut, step: int) -> Sequence[Example]:
        """Return the batch of ``step``, from 0, with log-probabilities under the reference as it is now."""
        return examples

    def after_step(self, done: int) -> None:
        """Move if ``done`` steps ask for it."""

    def release(self) -> None:
        """Leave the policy as it was given."""


class MovingReference(StandingReference):
    """A reference that moves every few steps."""

    def __init__(self, policy: Any, reference: Any | None, settings: ReferenceSync, needs: Needs) -> None:
        """Prepare the reference.

        Args:
            policy: on its device. With an adapter, a copy of the adapter becomes the reference at the first move.
            reference: another model with the weights to move; read only without an adapter.
            settings: when and how far.
            needs: of the loss.

        Raises:
            UserError: no reference that could move, or a loss that reads other references than one stored.
        """
        if needs.unmovable is not None:
            raise UserError(f"training.reference_sync: this loss {needs.unmovable}")
        self._settings, self._needs, self._policy = settings, needs, policy
        self._adapter = plain_model(policy) is not policy
        if not self._adapter and (reference is None or reference is policy):
            raise UserError("training.reference_sync: needs the reference model, besides the policy")
        self._reference: Any = policy if self._adapter else reference
        if self._adapter:
            self._pairs = add_copied_reference(policy)
        else:
            assert reference is not None, "checked above"
            reference.to(policy.device).requires_grad_(False).eval()
            own = dict(policy.named_parameters())
            self._pairs = {name: (p, own[name]) for name, p in reference.named_parameters()}

    def named(self) -> dict[str, Tensor]:
        """Return the reference's weights; see the base."""
        return {_PREFIX + name: theirs.data for name, (theirs, _) in self._pairs.items()}

    def score_with(self, policy_facts: nn.Module, dtype: Precision, packing: bool) -> None:
        """Score with the policy's own module, or one around the reference."""
        self._facts: Any = policy_facts if self._adapter else TokenLogps(self._reference, dtype, share_prompts=packing)

    def release(self) -> None:
        """Remove the copied adapter."""
        if self._adapter:
            drop_reference(self._policy)

    @torch.no_grad()
    def scored(self, examples: Sequence[Example], cut: Cut, step: int) -> Sequence[Example]:
        """Score the batch anew, from the first move on."""
        if step < self._settings.every:
            return examples
        if not self._adapter:
            cut = replace(cut, packing=cut.packing and self._facts.padded_because is None)
        found: dict[tuple[str, int], tuple[float, ...]] = {}
        with reference_on(self._reference) if self._adapter else nullcontext(), dropout_off(self._reference):
            for batch in micro_batches(examples, cut, needs=self._needs):
                batch = batch.to(self._policy.device)
                logps = self._facts(batch.ids, batch.mask, batch.packed).policy
                for block in range(batch.blocks):
                    rows = range(*batch.block(block).indices(len(logps)))
                    for example, row in zip(batch.examples, rows, strict=True):
                        found[example.id, block] = tuple(logps[row][batch.mask[row]].tolist())
        # Of a continuation that the loss does not read, what was stored stays.
        values = (
            [found.get((e.id, place), (*c.references, ())[0]) for place, c in enumerate(e.continuations)]
            for e in examples
        )
        return [with_reference(e, [tuple(logps)]) for e, logps in zip(examples, values, strict=True)]

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Move, if ``done`` is a multiple of ``every``."""
        if done % self._settings.every == 0:
            for theirs, ours in self._pairs.values():
                theirs.lerp_(ours.to(theirs.dtype), self._settings.mix)


def reference_in_training(trainee: Trainee, needs: Needs) -> StandingReference:
    """Return the reference of a run; raises what ``MovingReference`` does."""
    settings, policy = trainee.reference_sync, trainee.model
    return StandingReference() if settings is None else MovingReference(policy, trainee.reference, settings, needs)
