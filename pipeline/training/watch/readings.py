"""One pass over held-out pairs in the middle of a training run, in all of its processes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pipeline.models.policy import dropout_off
from pipeline.models.token_logps import TokenFacts, TokenLogps
from pipeline.training.batches.collate import TokenBatch
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, micro_batches
from pipeline.training.watch.held_out import PairReading


@torch.no_grad()
def read_pairs(
    policy: nn.Module,
    facts: TokenLogps,
    pairs: Sequence[Example],
    cut: Cut,
    accelerator: Accelerator,
    end_ids: frozenset[int] = frozenset(),
) -> list[PairReading]:
    """Return the policy's values for each of ``pairs``, in their order; every process gets all of them.

    Nothing is drawn and nothing changes, so a run with evaluations has the same weights as one without.

    Args:
        policy: ``facts``, perhaps wrapped for several processes.
        facts: of the policy that is trained.
        pairs: with distinct ids.
        cut: into forward passes, as in training.
        accelerator: gives rank and device.
        end_ids: tokens that end a response.
    """
    found: dict[str, PairReading] = {}
    # Processes of one context take the same.
    rank, processes = accelerator.process_index // cut.context, accelerator.num_processes // cut.context
    first: TokenBatch | None = None
    number = 0
    wanted, facts.wants = facts.wants, frozenset({"entropy"})
    try:
        with dropout_off(facts.model):
            # Each process takes whole batches, so that they do not depend on how many processes there are.
            for number, batch in enumerate(micro_batches(pairs, cut), 1):
                first = first or batch
                if (number - 1) % processes == rank:
                    moved = batch.to(accelerator.device)
                    found |= _of_batch(moved, policy(moved.ids, moved.mask, moved.packed), end_ids)
            if first is not None and 0 < number % processes <= rank:
                # Wrappers of several processes exchange something in each forward pass.
                moved = first.to(accelerator.device)
                policy(moved.ids, moved.mask, moved.packed)
    finally:
        facts.wants = wanted
    if accelerator.num_processes > 1:
        for part in gather_object([found]):
            found |= part
    return [found[pair.id] for pair in pairs]


def _of_batch(batch: TokenBatch, facts: TokenFacts, end_ids: frozenset[int]) -> dict[str, PairReading]:
    if not batch.examples:
        return {}
    assert facts.entropy is not None, "asked for above"
    chosen, rejected = batch.block(0), batch.block(1)
    sums, counts = facts.policy.double().sum(1), batch.mask.sum(1)
    columns = (
        sums[chosen],
        sums[rejected],
        counts[chosen],
        counts[rejected],
        last_logps(facts.policy[chosen], batch.mask[chosen]),
        facts.entropy[chosen].double().sum(1) / counts[chosen],
    )
    found: dict[str, PairReading] = {}
    for example, row in zip(batch.examples, zip(*(column.tolist() for column in columns), strict=True), strict=True):
        reading = PairReading(*row)
        ended = example.responses[0].ids[-1] in end_ids
        found[example.id] = reading if ended else replace(reading, ending=None)
    return found


def last_logps(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the value of each row's last token of ``mask`` [R, T], constant: [R]."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True)
    return logps.detach().gather(1, last).squeeze(1)


def ending_logps(facts: TokenFacts, batch: TokenBatch, end_ids: frozenset[int]) -> torch.Tensor:
    """Return the end token's log-prob, [n], of the n chosen responses that end with one; of a group, none."""
    ended = [
        row
        for row, example in enumerate(batch.examples)
        if batch.kind != "group" and example.desirable is not False and example.responses[0].ids[-1] in end_ids
    ]
    rows = torch.tensor(ended, dtype=torch.int64, device=batch.mask.device)
    return last_logps(facts.policy[rows], batch.mask[rows]) if ended else torch.zeros(0)
