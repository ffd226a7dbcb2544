"""Loss, gradient and weights that are not finite: what to say, and which examples to name."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.errors import NonFiniteError
from pipeline.training.batches.examples import Example
from pipeline.training.distributed.process_group import over_processes
from pipeline.training.gradients import BatchFacts


def diverged(step: int, steps: int, facts: BatchFacts, norm: float, batch: Sequence[Example]) -> NonFiniteError:
    """Return the error of step ``step`` (from 0) of ``steps``; every process calls this."""
    suspects = tuple(dict.fromkeys(gather_object(list(facts.suspects)))) or tuple(e.id for e in batch)
    shown = ", ".join(suspects[:5]) + (f" and {len(suspects) - 5} more" if len(suspects) > 5 else "")
    return NonFiniteError(
        f"step {step + 1} of {steps}: loss {facts.loss:g}, gradient norm {norm:g}; examples {shown}", step + 1, suspects
    )


def all_finite(tensors: Iterable[Tensor], accelerator: Accelerator) -> bool:
    """Return whether all ``tensors`` are finite; each process checks the part that it holds, and calls this."""
    wrong = sum(int(not torch.isfinite(tensor).all()) for tensor in tensors)
    return float(over_processes(torch.tensor([float(wrong)], dtype=torch.float64), accelerator)) == 0


def weights_diverged(step: int, steps: int, rate: float, batch: Sequence[Example]) -> NonFiniteError:
    """Return the error of weights that are not finite after step ``step`` (from 0) of ``steps``."""
    return NonFiniteError(
        f"step {step + 1} of {steps}: loss and gradient were finite, but the weights after it are not "
        f"(learning rate {rate:g}); none of them is kept",
        step + 1,
        tuple(example.id for example in batch),
    )
