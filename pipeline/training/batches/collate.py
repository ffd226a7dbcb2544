"""The order of examples in a training run, and their tensors.

The order depends only on the examples and the seed, so a run that resumes in the middle of an
epoch continues with the batch that it would have seen.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.loss.needs import ExampleKind, Needs
from pipeline.losses import GroupBatch, PairBatch, Side, UnpairedBatch
from pipeline.models.attention.packing import Packed, PaddedTurns, pack
from pipeline.models.token_logps import TokenFacts
from pipeline.training.batches.edits import Flags, edits
from pipeline.training.batches.examples import Continuation, Example
from pipeline.training.batches.padding import PaddedRows
from pipeline.types import derive_seed


def plan_epoch(
    lengths: Sequence[int], tokens: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[Sequence[int]]:
    """Return each index once, in random batches, so that every gradient samples the whole data; 4 bytes per index.

    Sizes matter only for the first batches of a run: first the batch of the example with the most ``tokens``, the
    largest packed pass, then, if it is another, the batch of the longest row, the largest padded pass. The order is the
    same for packed and padded rows, so a run may resume with either. The last batch may be smaller than ``batch_size``.
    """
    draw = random.Random(derive_seed(seed, "epoch", epoch))  # noqa: S311
    order = array("i", range(len(lengths)))
    draw.shuffle(order)
    batches: list[Sequence[int]] = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if epoch == 0:
        # The batches that need the most memory come first.
        for sizes in (lengths, tokens):
            largest = max(sizes)
            batches.sort(key=lambda batch: all(sizes[i] < largest for i in batch))
    return batches


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tensors of one forward pass: ``blocks`` blocks with the same number of rows, one row per example.

    Blocks of pairs: chosen, rejected and, if the loss reads it, calibration; of unpaired responses: these and
    mismatched; of groups: the K responses; of texts: one. Tensors without values from any example are None.

    Attributes:
        kind: of the examples.
        examples: the B examples; fewer than the rows of a block if the share was filled up.
        blocks: number of blocks.
        ids: [R, T] token ids, padded at the right.
        mask: [R, T] bool, true at response tokens.
        references: [K, R, T] float32 log-probabilities under K reference models.
        weights: [R, T] float32, the weight of each token.
        prior: [R, T] float32, the response's log ζ spread evenly over its tokens.
        estimates: advantages and returns, [R, T] float32 each.
        edited: [R, T] bool, true at tokens that a pair's other response does not share.
        soft_label: [B] float32.
        rewards: [B, K] float32, of the responses.
        present: [B, K] bool, false where a group has fewer than K responses and the row is a filler.
        win_probability: [B, K] float32, of the responses.
        dispersion: [B] float32.
        desirable: [B] bool.
        seeds: [B] int64, for random draws of an example: functions of seed, example and epoch, not of the batch.
        packed: what the model reads in place of ``ids``: the rows as one stream, or padded rows of several turns; None:
            ``ids``.
    """

    kind: ExampleKind
    examples: tuple[Example, ...]
    blocks: int
    ids: Tensor
    mask: Tensor
    references: Tensor | None
    weights: Tensor | None
    prior: Tensor | None
    estimates: tuple[Tensor, Tensor] | None
    edited: Tensor | None
    soft_label: Tensor
    rewards: Tensor | None
    present: Tensor
    win_probability: Tensor | None
    dispersion: Tensor | None
    desirable: Tensor | None
    seeds: Tensor
    packed: Packed | PaddedTurns | None = None

    @property
    def computed(self) -> int:
        """Positions that a forward pass computes."""
        return self.ids.numel() if self.packed is None else self.packed.ids.numel()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tokens, response tokens, and the positions of a forward pass, which include padding."""
        # Packed tokens are computed once, however many rows contain them.
        tokens = self.computed if isinstance(self.packed, Packed) else sum(e.tokens for e in self.examples)
        return tokens, sum(e.response_tokens for e in self.examples), self.computed

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the same batch on ``device``."""
        values = {field.name: self.__getattribute__(field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: v.to(device) if isinstance(v, Tensor | Packed | PaddedTurns) else v for name, v in values.items()
        }
        if self.estimates is not None:
            moved["estimates"] = tuple(values.to(device) for values in self.estimates)
        return TokenBatch(**moved)

    def block(self, index: int) -> slice:
        """Return the rows of block ``index`` that hold examples, without fillers."""
        start = index * (len(self.ids) // self.blocks)
        return slice(start, start + len(self.examples))

    def loss_batch(self, facts: TokenFacts) -> PairBatch | UnpairedBatch | GroupBatch:
        """Return the loss's input: rows of ``facts`` split into sides, without fillers.

        Weights and priors from trained heads in ``facts`` replace the examples' own.
        """
        sides = tuple(self._side(facts, index) for index in range(self.blocks))
        match self.kind:
            case "text":
                return PairBatch(chosen=sides[0], seeds=self.seeds)
            case "pair":
                return self._pairs(sides)
            case "unpaired":
                assert self.desirable is not None, "every unpaired example is marked"
                return UnpairedBatch(
                    responses=sides[0],
                    desirable=self.desirable,
                    mismatched=sides[1] if self.blocks > 1 else None,
                    seeds=self.seeds,
                )
            case "group":
                if self.rewards is None:
                    raise ValueError("groups need a reward for each response")
                return GroupBatch(responses=sides, rewards=self.rewards, present=self.present)

    def _pairs(self, sides: tuple[Side, ...]) -> PairBatch:
        rewards = (None, None) if self.rewards is None else self.rewards.unbind(1)
        wins = (None, None) if self.win_probability is None else self.win_probability.unbind(1)
        return PairBatch(
            chosen=sides[0],
            rejected=sides[1],
            soft_label=self.soft_label,
            reward_chosen=rewards[0],
            reward_rejected=rewards[1],
            win_probability=wins[0],
            win_probability_rejected=wins[1],
            dispersion=self.dispersion,
            calibration=sides[2] if len(sides) > 2 else None,
            seeds=self.seeds,
        )

    def _side(self, facts: TokenFacts, index: int) -> Side:
        rows = self.block(index)
        advantages, returns = self.estimates or (None, None)

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return Side(
            policy=facts.policy[rows],
            mask=self.mask[rows],
            reference=None if self.references is None else self.references[:, rows],
            kl=cut(facts.kl),
            collision=cut(facts.collision),
            weights=cut(self.weights if facts.weights is None else facts.weights),
            kl_weights=cut(facts.kl_weights),
            edited=cut(self.edited),
            prior=cut(self.prior if facts.prior is None else facts.prior),
            advantage=cut(advantages),
            returns=cut(returns),
            token_value=cut(facts.token_value),
        )


def collate(
    examples: Sequence[Example],
    rows: int | None = None,
    *,
    needs: Needs | None = None,
    seed: int = 0,
    epoch: int = 0,
    filler: Example | None = None,
    responses: int | None = None,
    packing: bool = False,
) -> TokenBatch:
    """Build the tensors of ``examples``, which are all of one kind.

    Args:
        examples: at least one, or none and a ``filler``.
        rows: fill every block up to this many by repeating ``filler``, so that all processes compute the same
            number of rows; ``loss_batch`` leaves the repeats out.
        needs: of the loss; adds what it reads besides the responses. None: nothing.
        seed, epoch: for random draws.
        filler: None: the first example.
        responses: fill groups up to this many; None: the most in any of ``examples``.
        packing: also lay the rows out as one stream.
    """
    first = filler or examples[0]
    filled = [*examples, *[first] * ((rows or len(examples)) - len(examples))]
    count = max(responses or 0, *(len(e.responses) for e in filled))
    blocks = [[e.responses[k] if k < len(e.responses) else e.responses[0] for e in filled] for k in range(count)]
    blocks += _beside(filled, needs)
    prompts, continuations = [e.prompt_ids for _ in blocks for e in filled], [c for block in blocks for c in block]
    padded = PaddedRows(prompts, continuations)
    edited = first.kind == "pair" and needs is not None and "edited" in needs
    return TokenBatch(
        kind=first.kind,
        examples=tuple(examples),
        blocks=len(blocks),
        ids=padded.ids(),
        mask=padded.mask(),
        references=padded.references(),
        weights=padded.weights(),
        prior=padded.priors(),
        estimates=padded.estimates(),
        edited=padded.laid(_edited_rows(filled, len(blocks)), np.bool_) if edited else None,
        soft_label=torch.tensor([e.soft_label for e in examples], dtype=torch.float32),
        rewards=_of_responses([[c.reward for c in e.responses] for e in examples], count),
        present=torch.tensor([k < len(e.responses) for e in examples for k in range(count)]).bool().view(-1, count),
        win_probability=_of_responses([_wins(e) for e in examples], count),
        dispersion=_of_examples([e.dispersion for e in examples], torch.float32),
        desirable=_of_examples([e.desirable for e in examples], torch.bool),
        seeds=torch.tensor([derive_seed(seed, e.id, epoch) for e in examples], dtype=torch.int64),
        packed=_read(prompts, continuations, packing=packing),
    )


def _read(
    prompts: Sequence[tuple[int, ...]], continuations: Sequence[Continuation], *, packing: bool
) -> Packed | PaddedTurns | None:
    """Return what the model reads, if not the rows of trained tokens alone."""
    several = any(c.rows for c in continuations)
    if not packing and not several:
        return None
    rows = [row for prompt, c in zip(prompts, continuations, strict=True) for row in c.read(prompt)]
    if packing:
        return pack([(row.prompt_ids, row.ids) for row in rows], [row.trained for row in rows] if several else None)
    padded = PaddedRows([row.prompt_ids for row in rows], [Continuation(row.ids) for row in rows])
    return PaddedTurns(padded.ids(), padded.laid([row.trained for row in rows], np.bool_))


def _beside(examples: Sequence[Example], needs: Needs | None) -> list[list[Continuation]]:
    """Return the blocks that the loss reads besides the responses."""
    if needs is None:
        return []
    wanted = []
    if "calibration" in needs:
        wanted.append([e.calibration for e in examples])
    if needs.mismatched(examples[0].kind):
        wanted.append([e.mismatched for e in examples])
    blocks = [[c for c in block if c is not None] for block in wanted]
    if any(len(block) != len(examples) for block in blocks):
        raise ValueError("an example lacks a calibration or mismatched response that the loss reads")
    return blocks


def _edited_rows(examples: Sequence[Example], blocks: int) -> list[Flags]:
    """Return the edits of the rows of all blocks; rows other than the two responses have none."""
    sides = [edits(e.responses[0].ids, e.responses[1].ids) for e in examples]
    beside: list[Flags] = [()] * (len(examples) * (blocks - 2))
    return [chosen for chosen, _ in sides] + [rejected for _, rejected in sides] + beside


def _wins(example: Example) -> list[float | None]:
    """Return win probabilities of chosen and rejected; 1 minus chosen's if rejected's is unknown."""
    found = [c.win_probability for c in example.responses]
    if len(found) == 2 and found[0] is not None and found[1] is None:
        return [found[0], 1 - found[0]]
    return found


def _of_responses(values: Sequence[Sequence[float | None]], count: int) -> Tensor | None:
    """Return [B, K], 0 for a missing response; None unless all values are known."""
    if any(value is None for of_example in values for value in of_example):
        return None
    padded = [value for of_example in values for value in (*of_example, *[0.0] * (count - len(of_example)))]
    return torch.tensor(padded, dtype=torch.float32).view(-1, count)


def _of_examples(values: Sequence[float | None], dtype: torch.dtype) -> Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=dtype)
