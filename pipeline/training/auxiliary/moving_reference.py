"""A reference that moves towards the policy within a round (TR-DPO, arXiv:2404.09656).

Until its first move, the stored log-probabilities of the round's reference serve, unless it is live; after it, every
batch is scored anew before its step. Each process scores the whole batch, so that all hold the same numbers.
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
from pipeline.images.draw_scores import DrawScores
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


class LiveReference(StandingReference):
    """A reference that scores each batch before its step."""

    def __init__(self, policy: Any, reference: Any | None, needs: Needs) -> None:
        """Prepare the reference.

        Args:
            policy: on its device. With an adapter, the reference is what ``reference_on`` makes of it.
            reference: another model; read only without an adapter.
            needs: of the loss.

        Raises:
            UserError: no reference besides the policy, or a loss that reads other references than one stored.
        """
        if needs.unmovable is not None:
            raise UserError(f"{self._field}: this loss {needs.unmovable}")
        self._needs, self._policy = needs, policy
        self._adapter = plain_model(policy) is not policy
        if not self._adapter and (reference is None or reference is policy):
            raise UserError(f"{self._field}: needs the reference model, besides the policy")
        self._reference: Any = policy if self._adapter else reference
        if not self._adapter and reference is not None:
            reference.to(policy.device).requires_grad_(False).eval()

    _field = "training.score.reference_errors: live"

    def score_with(self, policy_facts: nn.Module, dtype: Precision, packing: bool) -> None:
        """Score with the policy's own module, or one around the reference."""
        self._facts: Any = policy_facts
        if self._adapter:
            return
        if isinstance(policy_facts, DrawScores):
            self._facts = policy_facts.with_network(self._reference)
        else:
            self._facts = TokenLogps(self._reference, dtype, share_prompts=packing)

    @torch.no_grad()
    def scored(self, examples: Sequence[Example], cut: Cut, step: int) -> Sequence[Example]:
        """Score the batch anew."""
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


class MovingReference(LiveReference):
    """A reference that moves every few steps."""

    _field = "training.reference_sync"

    def __init__(
        self, policy: Any, reference: Any | None, settings: ReferenceSync, needs: Needs, *, live: bool = False
    ) -> None:
        """Prepare the reference; see the base.

        With an adapter, a copy of the adapter is the reference. ``settings``: when and how far it moves. ``live``: it
        scores before its first move too.
        """
        super().__init__(policy, reference, needs)
        self._settings, self._stored_until = settings, 0 if live else settings.every
        if self._adapter:
            self._pairs = add_copied_reference(policy)
        else:
            own = dict(policy.named_parameters())
            self._pairs = {name: (p, own[name]) for name, p in self._reference.named_parameters()}

    def named(self) -> dict[str, Tensor]:
        """Return the reference's weights; see the base."""
        return {_PREFIX + name: theirs.data for name, (theirs, _) in self._pairs.items()}

    def release(self) -> None:
        """Remove the copied adapter."""
        if self._adapter:
            drop_reference(self._policy)

    def scored(self, examples: Sequence[Example], cut: Cut, step: int) -> Sequence[Example]:
        """Score the batch anew, from the first move on at the latest."""
        return examples if step < self._stored_until else super().scored(examples, cut, step)

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Move, if ``done`` is a multiple of ``every``."""
        if done % self._settings.every == 0:
            for theirs, ours in self._pairs.values():
                theirs.lerp_(ours.to(theirs.dtype), self._settings.mix)


def reference_in_training(trainee: Trainee, needs: Needs) -> StandingReference:
    """Return the reference of a run; raises what ``LiveReference`` does."""
    policy = trainee.model.model if isinstance(trainee.model, DrawScores) else trainee.model
    if trainee.reference_sync is not None:
        return MovingReference(policy, trainee.reference, trainee.reference_sync, needs, live=trainee.live)
    return LiveReference(policy, trainee.reference, needs) if trainee.live else StandingReference()
