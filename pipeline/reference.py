"""Log-probabilities under a model that is not being trained: the reference, and divergences."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.batches import Example, collate
from pipeline.logps import Precision, TokenLogps

Logps = tuple[float, ...]


@torch.no_grad()
def response_logps(
    model: Any,
    sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: Callable[[int], None] | None = None,
) -> list[Logps]:
    """Natural-log probabilities of response tokens, dropout off.

    Args:
        model: a policy, on whatever device.
        sequences: (prompt ids, response ids); a response may be empty, a prompt may not.
        batch_size: sequences a forward pass.
        dtype: of matrix products.
        on_progress: called with the number of sequences that are done.

    Returns:
        one value a response token, in the order of ``sequences``.
    """
    training = model.training
    model.eval()
    score, device = TokenLogps(model, dtype), model.device
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    found: list[Logps] = [()] * len(sequences)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = collate([Example("", *sequences[i]) for i in rows]).to(device)
        values, mask = score(batch.ids, batch.mask).cpu(), batch.mask.cpu()
        for row, i in enumerate(rows):
            found[i] = tuple(values[row][mask[row]].tolist())
        if on_progress is not None:
            on_progress(start + len(rows))
    model.train(training)
    return found


def reference_logps(
    model: Any,
    examples: Sequence[Example],
    batch_size: int = 64,
    dtype: Precision = "float32",
    on_progress: Callable[[int], None] | None = None,
) -> list[tuple[Logps, Logps | None]]:
    """For each example, log-probabilities of its chosen and its rejected tokens (None for a single text).

    ``on_progress`` is called with the number of responses that are done.
    """
    sequences = [(e.prompt_ids, e.chosen_ids) for e in examples]
    sequences += [(e.prompt_ids, e.rejected_ids) for e in examples if e.rejected_ids is not None]
    values = response_logps(model, sequences, batch_size, dtype, on_progress)
    rejected = iter(values[len(examples) :])
    return [(values[i], None if e.rejected_ids is None else next(rejected)) for i, e in enumerate(examples)]


def with_reference(examples: Sequence[Example], logps: Sequence[tuple[Logps, Logps | None]]) -> list[Example]:
    """The examples with their reference log-probabilities filled in."""
    return [
        replace(e, reference_chosen=chosen, reference_rejected=rejected)
        for e, (chosen, rejected) in zip(examples, logps, strict=True)
    ]


def kl_per_token(ours: Sequence[Logps], theirs: Sequence[Logps]) -> float:
    """Monte-Carlo estimate of KL(policy ‖ other) in nats per token.

    Args:
        ours: for each response, one log-probability a token under the policy that it was sampled from, at
            temperature 1 and without cuts.
        theirs: the same tokens under the other model.

    Returns:
        Σ (log policy − log other) over all response tokens, divided by their number; 0 without any.
        May be slightly negative when the two are close, as any sample mean.
    """
    tokens = sum(map(len, ours))
    return sum(sum(a) - sum(b) for a, b in zip(ours, theirs, strict=True)) / tokens if tokens else 0.0
