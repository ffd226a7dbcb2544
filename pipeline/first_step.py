"""The self-test of a round's first step: is the stored reference the policy that training starts from?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.batches import Batch
from pipeline.examples import Example
from pipeline.gradients import over_processes
from pipeline.logps import Precision
from pipeline.micro_batches import Cut, micro_batches
from pipeline.types import RunError

# Largest difference, in nats a token, between policy and stored reference when they are the same
# model (what other batch shapes change by rounding): mean over all tokens of a batch, and over those
# of one response. In bfloat16 a response of a token or two has nothing to average its rounding over.
SAME_MODEL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
SAME_MODEL_RESPONSE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 1.0}


@torch.no_grad()
def check_policy_is_reference(
    policy: nn.Module, examples: Sequence[Example], cut: Cut, accelerator: Accelerator, dtype: Precision
) -> float:
    """Margin 0 at step 0: the policy's log-probabilities must be the stored reference's, of several the first's.

    Returns:
        the mean absolute difference over the response tokens of all ``examples``, in nats a token.

    Raises:
        RunError: this mean, or that of one response, is above what rounding explains; the stored
            log-probabilities are of another model, other tokens or another position.
    """
    # All of the batch: micro-batches go by length, so the first alone would be the shortest responses.
    responses: list[_Difference] = []
    training = policy.training
    # Dropout would make them differ.
    policy.eval()
    for batch in micro_batches(examples, cut, accelerator.process_index, accelerator.num_processes):
        responses += _differences(policy, batch.to(accelerator.device))
    policy.train(training)
    sums = torch.tensor([sum(r.nats for r in responses), sum(r.tokens for r in responses)], dtype=torch.float64)
    nats, tokens = map(float, over_processes(sums, accelerator))
    worst = max(responses, key=_Difference.rank, default=_Difference(examples[0].id, 0.0, 1))
    mean, largest = nats / tokens, worst.nats / worst.tokens
    if not (mean <= SAME_MODEL[dtype] and largest <= SAME_MODEL_RESPONSE[dtype]):
        raise RunError(
            "first step: policy and reference are the same model, yet their log-probabilities differ by "
            f"{mean:.3g} nats a token (allowed {SAME_MODEL[dtype]:g}), by {largest:.3g} in a response of example "
            f"{worst.id} (allowed {SAME_MODEL_RESPONSE[dtype]:g}): the stored reference log-probabilities are not "
            "this policy's"
        )
    return mean


@torch.no_grad()
def check_packing(
    policy: nn.Module, examples: Sequence[Example], cut: Cut, accelerator: Accelerator, dtype: Precision
) -> float:
    """Packed and padded rows must have the same log-probabilities; the largest forward pass is compared.

    Returns:
        the mean absolute difference over its response tokens, in nats a token.

    Raises:
        RunError: it is above what rounding explains: this model sees other tokens than it should in packed streams.
    """
    training = policy.training
    policy.eval()
    batch = next(micro_batches(examples, cut, accelerator.process_index, accelerator.num_processes))
    batch = batch.to(accelerator.device)
    packed, padded = (policy(batch.ids, batch.mask, given).policy for given in (batch.packed, None))
    policy.train(training)
    apart = float((packed - padded).abs().sum() / batch.mask.sum())
    if not apart <= SAME_MODEL[dtype]:
        raise RunError(
            f"first step: packed and padded rows differ by {apart:.3g} nats a token (allowed {SAME_MODEL[dtype]:g}); "
            "set training.packing to false for this model"
        )
    return apart


@dataclass(frozen=True, slots=True)
class _Difference:
    """Of one response of example ``id``: the sum of absolute differences, in nats, over its tokens."""

    id: str
    nats: float
    tokens: int

    def rank(self) -> float:
        return math.inf if math.isnan(self.nats) else self.nats / self.tokens


def _differences(policy: nn.Module, batch: Batch) -> list[_Difference]:
    if batch.references is None:
        raise RunError("first step: no reference log-probabilities to compare the policy with")
    # Rows that only fill up go through the policy too: all processes must do the same number of passes.
    apart = ((policy(batch.ids, batch.mask, batch.packed).policy - batch.references[0]) * batch.mask).abs().sum(1)
    tokens = batch.mask.sum(1)
    found: list[_Difference] = []
    for index in range(batch.blocks):
        rows = batch.block(index)
        values = zip(batch.examples, apart[rows].tolist(), tokens[rows].tolist(), strict=True)
        found += [_Difference(example.id, nats, count) for example, nats, count in values]
    return found
