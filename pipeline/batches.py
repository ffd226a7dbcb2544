"""Examples, the order in which a run of training sees them, and their tensors.

The order is a function of the examples and the seed alone, so a run that is taken up again in the
middle of an epoch goes on with the batch that it would have seen.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.losses import Loss, PairBatch, Side
from pipeline.types import UserError, derive_seed

# Examples are sorted by length within windows of this many batches: little padding, and still a
# composition that differs from epoch to epoch.
WINDOW_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Example:
    """A pair as token ids, or a single text (``rejected_ids`` None).

    ``reference_chosen`` and ``reference_rejected`` hold one natural-log probability per response
    token under the reference policy, where the loss needs them.
    """

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...] | None = None
    reference_chosen: tuple[float, ...] | None = None
    reference_rejected: tuple[float, ...] | None = None
    soft_label: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids or ()))

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass over it reads."""
        return sum(len(self.prompt_ids) + len(ids) for ids in (self.chosen_ids, self.rejected_ids) if ids is not None)


def check_examples(examples: Sequence[Example], loss: Loss) -> None:
    """Refuse, before anything runs, examples that the loss cannot be computed for (``UserError``)."""
    if not examples:
        raise UserError("training: no examples")
    if len({e.rejected_ids is None for e in examples}) > 1:
        raise UserError("training: pairs and single texts in one run")
    for e in examples:
        if not e.prompt_ids:
            raise UserError(f"training: example {e.id}: no prompt tokens, so the first response token follows nothing")
        if not e.chosen_ids or e.rejected_ids == ():
            raise UserError(f"training: example {e.id}: a response without tokens")
        if "rejected" in loss.needs and e.rejected_ids is None:
            raise UserError(f"training: example {e.id}: loss {loss.name} needs a rejected response")
        if "reference" in loss.needs:
            sides = ((e.chosen_ids, e.reference_chosen), (e.rejected_ids or (), e.reference_rejected))
            if any(logps is None or len(logps) != len(ids) for ids, logps in sides):
                raise UserError(
                    f"training: example {e.id}: loss {loss.name} needs one reference log-probability a response token"
                )


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Each index once, in batches of similar length, the batches in random order.

    The last batch of an epoch may be smaller than ``batch_size``.
    """
    draw = random.Random(derive_seed(seed, "epoch", epoch))  # noqa: S311
    order = list(range(len(lengths)))
    draw.shuffle(order)
    window = WINDOW_BATCHES * batch_size
    batches: list[tuple[int, ...]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda i: (lengths[i], i))
        batches += [tuple(near[i : i + batch_size]) for i in range(0, len(near), batch_size)]
    draw.shuffle(batches)
    return batches


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one forward pass.

    Attributes:
        ids: [R, T] token ids, padded at the right. Of pairs, all chosen rows first, then all rejected.
        mask: [R, T] bool, true at response tokens.
        reference: [R, T] float32 reference log-probabilities, or None.
        soft_label: [B] float32.
        examples: the B examples; fewer than the rows stand for where the share was filled up.
    """

    ids: Tensor
    mask: Tensor
    reference: Tensor | None
    soft_label: Tensor
    examples: tuple[Example, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        reference = None if self.reference is None else self.reference.to(device)
        return Batch(self.ids.to(device), self.mask.to(device), reference, self.soft_label.to(device), self.examples)

    def pair_batch(self, policy: Tensor) -> PairBatch:
        """What the loss reads: ``policy`` [R, T] cut into the two sides, rows that only fill up left out."""
        pairs = len(self.examples)
        if self.examples[0].rejected_ids is None:
            return PairBatch(chosen=self._side(policy, 0, pairs))
        half = policy.shape[0] // 2
        rejected = self._side(policy, half, half + pairs)
        return PairBatch(chosen=self._side(policy, 0, pairs), rejected=rejected, soft_label=self.soft_label)

    def _side(self, policy: Tensor, start: int, stop: int) -> Side:
        reference = None if self.reference is None else self.reference[start:stop]
        return Side(policy=policy[start:stop], mask=self.mask[start:stop], reference=reference)


def collate(examples: Sequence[Example], rows: int | None = None) -> Batch:
    """Tensors of ``examples``, which are all pairs or all single texts.

    Args:
        examples: at least one.
        rows: fill up to this many by repeating the first, so that all processes do the same number
            of rows; the repeats are left out of ``pair_batch``.
    """
    filled = [*examples, *[examples[0]] * ((rows or len(examples)) - len(examples))]
    sides = [(e.prompt_ids, e.chosen_ids, e.reference_chosen) for e in filled]
    sides += [(e.prompt_ids, e.rejected_ids, e.reference_rejected) for e in filled if e.rejected_ids is not None]
    width = max(2, *(len(prompt) + len(response) for prompt, response, _ in sides))
    ids = np.zeros((len(sides), width), dtype=np.int64)
    mask = np.zeros((len(sides), width), dtype=np.bool_)
    reference = np.zeros((len(sides), width), dtype=np.float32)
    for row, (prompt, response, logps) in enumerate(sides):
        stop = len(prompt) + len(response)
        ids[row, :stop] = prompt + response
        mask[row, len(prompt) : stop] = True
        if logps is not None:
            reference[row, len(prompt) : stop] = logps
    known = all(logps is not None for _, _, logps in sides)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(reference) if known else None,
        torch.tensor([e.soft_label for e in examples], dtype=torch.float32),
        tuple(examples),
    )


def micro_batches(examples: Sequence[Example], size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """This process's share of a global batch, in forward passes of at most ``size`` pairs.

    Every process gets the same number of forward passes with the same number of rows; where there
    is nothing left to do, an example is repeated and its ``examples`` are empty or fewer.
    """
    ordered = sorted(examples, key=lambda e: (e.length, e.id))
    share = -(-len(ordered) // world)
    mine = ordered[rank::world]
    for start in range(0, share, size):
        rows = min(size, share - start)
        part = mine[start : start + rows]
        batch = collate(part or ordered[:1], rows)
        yield batch if part else Batch(batch.ids, batch.mask, batch.reference, batch.soft_label[:0], ())
