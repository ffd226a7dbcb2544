"""Self-test of a round's first step: check that the stored reference is the policy that training starts from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.errors import RowsError, RunError
from pipeline.models.policy import dropout_off
from pipeline.models.weights.weight_format import Precision
from pipeline.training.batches.collate import TokenBatch
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.distributed.process_group import over_processes

# Largest difference, in nats per token, between policy and stored reference when they are the same
# model (rounding from other batch shapes): mean over all tokens of a batch, and over those of one
# response. In bfloat16, a response of one or two tokens is too short to average out rounding.
SAME_MODEL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
SAME_MODEL_RESPONSE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 1.0}
# Values may differ by more if they are larger than this on average, such as rewards or scores of images: rounding
# grows with size.
LARGE = 10.0
# Number of shortest examples per process, besides its longest, to compare packed and padded rows on.
SHORTEST = 3
# Number of examples that a failed test names, the worst first.
NAMED = 16


class SelfTestError(RowsError):
    """Values that must be equal differ before anything is trained."""


@torch.no_grad()
def check_policy_is_reference(
    policy: nn.Module, examples: Sequence[Example], cut: Cut, accelerator: Accelerator, dtype: Precision
) -> float:
    """Check for margin 0 at step 0: the policy's log-probabilities must equal those of the (first) stored reference.

    Returns:
        the mean absolute difference over the response tokens of all ``examples``, in nats per token.

    Raises:
        SelfTestError: this mean, or that of one response, is more than rounding explains; the stored
            log-probabilities belong to another model, other tokens or another position.
    """
    # The whole batch: micro-batches are sorted by length, so a single one is not representative.
    responses: list[_Difference] = []
    with dropout_off(policy):
        for batch in micro_batches(examples, cut, accelerator.process_index, accelerator.num_processes):
            responses += _differences(policy, batch.to(accelerator.device))
    totals = [sum(r.nats for r in responses), sum(r.size for r in responses), sum(r.tokens for r in responses)]
    nats, size, tokens = map(float, over_processes(torch.tensor(totals, dtype=torch.float64), accelerator))
    worst = max(responses, key=_Difference.rank, default=_Difference(examples[0].id, 0.0, 0.0, 1))
    mean, largest = nats / tokens, worst.nats / worst.tokens
    scale = max(1.0, size / tokens / LARGE)
    if not (mean <= SAME_MODEL[dtype] * scale and largest <= SAME_MODEL_RESPONSE[dtype] * scale):
        raise SelfTestError(
            "first step: policy and reference are the same model, yet their log-probabilities differ by "
            f"{mean:.3g} nats per token (allowed {SAME_MODEL[dtype] * scale:g}), by {largest:.3g} in a response of "
            f"example {worst.id} (allowed {SAME_MODEL_RESPONSE[dtype] * scale:g}): the stored reference "
            "log-probabilities are not this policy's",
            tuple(dict.fromkeys(r.id for r in sorted(responses, key=_Difference.rank, reverse=True)))[:NAMED],
        )
    return mean


@torch.no_grad()
def check_packing(
    policy: nn.Module, examples: Sequence[Example], cut: Cut, accelerator: Accelerator, dtype: Precision
) -> float:
    """Check that packed and padded rows have the same log-probabilities, or rewards.

    Compares the longest of ``examples``, which windows would cut, and the shortest, which share a stream.

    Returns:
        the mean absolute difference, in nats per token, over this process's response tokens that have a value:
        rewards are only at the last tokens.

    Raises:
        SelfTestError: it is more than rounding explains: this model sees wrong tokens in packed streams.
    """
    world = accelerator.num_processes
    ordered = sorted(examples, key=lambda e: (-e.length, e.id))
    some = [*ordered[:world], *ordered[world:][-SHORTEST * world :]]
    with dropout_off(policy):
        packed, padded = (
            _response_logps(policy, some, replace(cut, packing=packing), accelerator) for packing in (True, False)
        )
    said = max(1, int(((packed != 0) | (padded != 0)).sum()))
    apart = float((packed - padded).abs().sum()) / said
    allowed = SAME_MODEL[dtype] * max(1.0, float(padded.abs().sum()) / said / LARGE)
    if not apart <= allowed:
        raise SelfTestError(
            f"first step: packed and padded rows differ by {apart:.3g} nats per token (allowed {allowed:g}); "
            "set training.packing to false for this model",
            tuple(example.id for example in some),
        )
    return apart


def _response_logps(policy: nn.Module, examples: Sequence[Example], cut: Cut, accelerator: Accelerator) -> Tensor:
    """Return [n], for the response tokens of this process's examples, in an order independent of ``cut``."""
    found: dict[str, Tensor] = {}
    for batch in micro_batches(examples, cut, accelerator.process_index, accelerator.num_processes):
        batch = batch.to(accelerator.device)
        logps = policy(batch.ids, batch.mask, batch.packed).policy
        for index in range(batch.blocks):
            for example, row in zip(batch.examples, range(*batch.block(index).indices(len(logps))), strict=True):
                found[f"{example.id} {index}"] = logps[row][batch.mask[row]]
    return torch.cat([found[key] for key in sorted(found)]) if found else torch.zeros(1)


@dataclass(frozen=True, slots=True)
class _Difference:
    """One response of example ``id``: sums of absolute differences and of absolute values over its tokens, in nats."""

    id: str
    nats: float
    size: float
    tokens: int

    def rank(self) -> float:
        return math.inf if math.isnan(self.nats) else self.nats / self.tokens


def _differences(policy: nn.Module, batch: TokenBatch) -> list[_Difference]:
    if batch.references is None:
        raise RunError("first step: no reference log-probabilities to compare the policy with")
    # Filler rows go through the policy too: all processes must make the same number of passes.
    own = policy(batch.ids, batch.mask, batch.packed).policy
    apart = ((own - batch.references[0]) * batch.mask).abs().sum(1)
    size = (own * batch.mask).abs().sum(1)
    tokens = batch.mask.sum(1)
    found: list[_Difference] = []
    for index in range(batch.blocks):
        rows = batch.block(index)
        values = zip(batch.examples, *(column[rows].tolist() for column in (apart, size, tokens)), strict=True)
        found += [_Difference(example.id, *numbers) for example, *numbers in values]
    return found
