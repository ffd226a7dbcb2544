"""What a run of training is given besides examples, loss and settings. Torch-free."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trainee:
    """The model to train, and the one that it is measured against.

    Attributes:
        model: from ``load_policy``, possibly with an adapter; parameters that require gradients change. Or a
            ``RowScores`` around a classifier, whose rewards the loss then reads in place of log-probabilities.
        reference: read where the loss needs more of the reference than its stored log-probabilities
            (``Needs.token_facts``); moved to the model's device. None: the model with its adapter off.
        starts_at_reference: the reference is the model at step 0; the first step then checks that the stored
            reference log-probabilities agree.
    """

    model: Any
    reference: Any | None = None
    starts_at_reference: bool = False


@dataclass(frozen=True)
class Carry:
    """State that one run of training leaves for the next.

    Attributes:
        optimiser: file of AdamW's state.
        heads: folder of heads and critics; not read or made if the loss trains none.
    """

    optimiser: Path | None = None
    heads: Path | None = None


@dataclass(frozen=True)
class Files:
    """Where a run of training reads and writes.

    Attributes:
        checkpoints: folder of checkpoints (every ``checkpoint_every`` steps and after the last one), and of the
            weights before a step that failed. The caller removes them.
        carried: state to start from.
        kept: where the state at the end goes.
    """

    checkpoints: Path | None = None
    carried: Carry = field(default_factory=Carry)
    kept: Carry = field(default_factory=Carry)
