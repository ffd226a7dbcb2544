"""Loss and gradient of one global batch, whatever it is cut into."""

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

# Largest mean difference, in nats a token, between policy and stored reference when they are the
# same model: what other batch shapes change by rounding.
SAME_MODEL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}

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
        the largest mean absolute difference of a response, in nats a token.

    Raises:
        RunError: it is above what rounding explains; the stored log-probabilities are of another
            model, other tokens or another position.
    """
    batch = next(micro_batches(examples, micro_batch_size, accelerator.process_index, accelerator.num_processes))
    batch = batch.to(accelerator.device)
    if batch.reference is None:
        raise RunError("first step: no reference log-probabilities to compare the policy with")
    apart = (policy(batch.ids, batch.mask) - batch.reference).abs().sum(1) / batch.mask.sum(1)
    largest, row = float(apart.max()), int(apart.argmax())
    if not largest <= SAME_MODEL[dtype]:
        example = batch.examples[row % len(batch.examples)] if batch.examples else examples[0]
        raise RunError(
            "first step: policy and reference are the same model, yet their log-probabilities differ by "
            f"{largest:.3g} nats a token (example {example.id}; allowed {SAME_MODEL[dtype]:g}): the stored reference "
            "log-probabilities are not this policy's"
        )
    return largest


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
