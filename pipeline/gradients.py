"""Loss and gradient of one global batch, whatever it is cut into."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.batches import Batch, Example, micro_batches
from pipeline.logps import Precision
from pipeline.losses import Loss
from pipeline.types import RunError

# Largest difference, in nats a token, between policy and stored reference when they are the same
# model (what other batch shapes change by rounding): mean over all tokens of a batch, and over those
# of one response. In bfloat16 a response of a token or two has nothing to average its rounding over.
SAME_MODEL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
SAME_MODEL_RESPONSE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 1.0}

METRICS = ("margin", "accuracy", "chosen_logp_per_token", "rejected_logp_per_token")


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What one global batch gave, over all processes.

    Attributes:
        loss: mean over its pairs; may be infinite or NaN.
        metrics: means over its pairs, those of ``METRICS`` that the loss reports.
        tokens, response_tokens, positions: counts, padding only in the last.
        suspects: ids of this process's examples whose loss is not finite.
    """

    loss: float
    metrics: dict[str, float]
    tokens: int
    response_tokens: int
    positions: int
    suspects: tuple[str, ...]


def accumulate_gradient(
    policy: nn.Module, examples: Sequence[Example], loss: Loss, micro_batch_size: int, accelerator: Accelerator
) -> BatchFacts:
    """Add the gradient of (1/B) Σ_i L_i to the parameters of ``policy``, B the pairs of all processes.

    Args:
        policy: a ``TokenLogps``, or what accelerate made of one.
        examples: the global batch; each process works on its share.
        loss: unreduced.
        micro_batch_size: pairs a forward pass.
        accelerator: gives rank, device and the backward pass.
    """
    batches = list(micro_batches(examples, micro_batch_size, accelerator.process_index, accelerator.num_processes))
    # Data-parallel wrappers average gradients over processes, so each contributes its share times their number.
    scale = accelerator.num_processes / len(examples)
    sums = torch.zeros(4 + len(METRICS), dtype=torch.float64)
    reported: frozenset[str] = frozenset()
    suspects: list[str] = []
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        sync: AbstractContextManager[None] = nullcontext() if last else accelerator.no_sync(policy)
        with sync:
            logps = policy(batch.ids.to(accelerator.device), batch.mask.to(accelerator.device))
            if not batch.examples:
                accelerator.backward(logps.sum() * 0)
                continue
            output = loss(batch.to(accelerator.device).pair_batch(logps))
            accelerator.backward(output.per_pair.sum() * scale)
        per_pair = output.per_pair.detach()
        reported = frozenset(output.metrics) & frozenset(METRICS)
        means = [float(output.metrics[name]) if name in reported else 0.0 for name in METRICS]
        sums += torch.tensor(
            [float(per_pair.sum()), *_counts(batch), *(m * len(per_pair) for m in means)], dtype=torch.float64
        )
        suspects += [e.id for e, finite in zip(batch.examples, per_pair.isfinite().tolist(), strict=True) if not finite]
    return _facts(_over_processes(sums, accelerator), len(examples), reported, tuple(suspects))


@torch.no_grad()
def check_policy_is_reference(
    policy: nn.Module, examples: Sequence[Example], micro_batch_size: int, accelerator: Accelerator, dtype: Precision
) -> float:
    """Margin 0 at step 0: the policy's log-probabilities must be the stored reference's.

    Returns:
        the mean absolute difference over the response tokens of all ``examples``, in nats a token.

    Raises:
        RunError: this mean, or that of one response, is above what rounding explains; the stored
            log-probabilities are of another model, other tokens or another position.
    """
    # All of the batch: micro-batches go by length, so the first alone would be the shortest responses.
    responses: list[_Difference] = []
    for batch in micro_batches(examples, micro_batch_size, accelerator.process_index, accelerator.num_processes):
        responses += _differences(policy, batch.to(accelerator.device))
    sums = torch.tensor([sum(r.nats for r in responses), sum(r.tokens for r in responses)], dtype=torch.float64)
    nats, tokens = map(float, _over_processes(sums, accelerator))
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


@dataclass(frozen=True, slots=True)
class _Difference:
    """Of one response of example ``id``: the sum of absolute differences, in nats, over its tokens."""

    id: str
    nats: float
    tokens: int

    def rank(self) -> float:
        return math.inf if math.isnan(self.nats) else self.nats / self.tokens


def _differences(policy: nn.Module, batch: Batch) -> list[_Difference]:
    if batch.reference is None:
        raise RunError("first step: no reference log-probabilities to compare the policy with")
    # Rows that only fill up go through the policy too: all processes must do the same number of passes.
    apart = (policy(batch.ids, batch.mask) - batch.reference).abs().sum(1).tolist()
    tokens = batch.mask.sum(1).tolist()
    if not batch.examples:
        return []
    side = len(apart) if batch.examples[0].rejected_ids is None else len(apart) // 2
    return [
        _Difference(example.id, apart[row], tokens[row])
        for start in range(0, len(apart), side)
        for row, example in enumerate(batch.examples, start)
    ]


def _counts(batch: Batch) -> tuple[int, int, int]:
    tokens = sum(e.tokens for e in batch.examples)
    responses = sum(len(e.chosen_ids) + len(e.rejected_ids or ()) for e in batch.examples)
    return tokens, responses, batch.ids.numel()


def _over_processes(sums: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return sums
    # float64 is not a type of every device; the counts of one batch are exact in float32 up to 16 million.
    reduced: Tensor = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum")
    return reduced.double().cpu()


def _facts(sums: Tensor, pairs: int, reported: frozenset[str], suspects: tuple[str, ...]) -> BatchFacts:
    loss, tokens, responses, positions, *metrics = sums.tolist()
    means = {name: value / pairs for name, value in zip(METRICS, metrics, strict=True) if name in reported}
    return BatchFacts(loss / pairs, means, round(tokens), round(responses), round(positions), suspects)
