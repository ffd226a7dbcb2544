"""Inputs of a training run besides examples, loss and settings. Torch-free."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from pipeline.config.training import ReferenceSync
from pipeline.storage.shards import copy_shards


@dataclass(frozen=True)
class Trainee:
    """The model to train, and its reference.

    Attributes:
        model: from ``load_policy``, possibly with an adapter; parameters that require gradients change. Or a
            ``RowScores`` around a classifier or a ``DrawScores`` around a diffusion model, whose rewards or scores the
            loss then reads in place of log-probabilities.
        reference: used if the loss needs more of the reference than its stored log-probabilities
            (``Needs.token_facts``); moved to the model's device. None: the model with its adapter off.
        starts_at_reference: the reference is the model at step 0; the first step then checks that the stored
            reference log-probabilities agree.
        end_ids: tokens that end a response; empty: unknown.
        router_aux_loss_coef: of the loss that balances the experts of a mixture; None: that of the model's config, 0 if
            it has none.
        reference_sync: moves the reference within the run; without an adapter, ``reference`` must be given then.
        live: the reference scores each batch before its step, in place of what is stored; likewise.
    """

    model: Any
    reference: Any | None = None
    starts_at_reference: bool = False
    end_ids: frozenset[int] = frozenset()
    router_aux_loss_coef: float | None = None
    reference_sync: ReferenceSync | None = None
    live: bool = False

    @property
    def key(self) -> list[JsonValue]:
        """What the run's key holds of a moving reference; empty if it stays."""
        return [] if self.reference_sync is None else [self.reference_sync.identity()]


@dataclass(frozen=True)
class Carry:
    """State that one training run leaves for the next.

    Attributes:
        optimiser: file of AdamW's state, or of its shards: see ``shards_of``.
        heads: folder of heads and critics; not read or made if the loss trains none.
    """

    optimiser: Path | None = None
    heads: Path | None = None


def pass_on(carried: Carry, kept: Carry) -> None:
    """Copy the state that a run started from to where it would leave its own: none of its steps is kept."""
    if carried.optimiser is not None and kept.optimiser is not None:
        copy_shards(carried.optimiser, kept.optimiser)
    if carried.heads is not None and kept.heads is not None and carried.heads.is_dir():
        shutil.copytree(carried.heads, kept.heads, dirs_exist_ok=True)


@dataclass(frozen=True)
class Files:
    """Files that a training run reads and writes.

    Attributes:
        checkpoints: folder of checkpoints (every ``checkpoint_every`` steps and after the last one), and of the
            weights before a step that failed. The caller removes them.
        carried: state to start from.
        kept: where to write the state at the end.
    """

    checkpoints: Path | None = None
    carried: Carry = field(default_factory=Carry)
    kept: Carry = field(default_factory=Carry)
