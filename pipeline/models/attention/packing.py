"""Packed token streams: each prompt once, followed by its continuations, many of them in one row without padding.

A continuation attends to its prompt and itself, never to its siblings. Its positions continue from the prompt's end, so
its log-probabilities equal those of the prompt with this continuation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.attention.block_table import Outline

_Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """A stream of N tokens: a sequence of trees, each a prompt with the continuations that share it.

    Attributes:
        ids: [N] tokens.
        positions: [N] as in the sequence of prompt and continuation.
        branch: [N] 0 in a prompt, k in its k-th continuation.
        predictors: [M] for each token that is asked for, row by row, the stream position of the token before it. Rows
            with the same tokens share theirs.
        lengths: [trees] int64, in the order of the stream.
        ends: [rows] stream position of each row's last token.
        outline: the stream, not filled up, in the host's memory; None: not known.
    """

    ids: Tensor
    positions: Tensor
    branch: Tensor
    predictors: Tensor
    lengths: Tensor
    ends: Tensor
    outline: Outline | None = None

    def to(self, device: torch.device) -> "Packed":
        """The same on ``device``."""
        given = {field.name: self.__getattribute__(field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: part.to(device) if isinstance(part, Tensor) else part for n, part in given.items()}
        return Packed(**moved)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        known = self.positions if self.outline is None else self.outline.positions
        return int(known.max()) + 1

    def outlined(self) -> Outline:
        """The stream's outline, which knows its tables of blocks."""
        if self.outline is not None:
            return self.outline
        lengths, branch, positions = (part.cpu().numpy() for part in (self.lengths, self.branch, self.positions))
        return Outline(lengths, branch, positions)

    def rounded(self, multiple: int) -> "Packed":
        """The same, padded to a ``multiple`` of tokens by one more tree that is never read."""
        missing = -len(self.ids) % multiple
        if not missing:
            return self
        nothing = self.ids.new_zeros(missing)
        return replace(
            self,
            ids=torch.cat([self.ids, nothing]),
            positions=torch.cat([self.positions, nothing]),
            branch=torch.cat([self.branch, nothing]),
            lengths=torch.cat([self.lengths, self.lengths.new_tensor([missing])]),
        )


@dataclass(frozen=True, slots=True)
class PaddedTurns:
    """Rows of several turns, padded: what a model reads in place of rows that hold only the trained tokens.

    Attributes:
        ids: [R, T] token ids, padded at the right.
        mask: [R, T] bool, true at trained tokens; row by row they are those of the rows that they stand for.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "PaddedTurns":
        """The same on ``device``."""
        return PaddedTurns(self.ids.to(device), self.mask.to(device))


def pack(rows: Sequence[tuple[_Ids, _Ids]], trained: Sequence[Sequence[bool]] | None = None) -> Packed:
    """Pack ``rows``, each a prompt and its continuation; equal prompts and equal rows are stored once.

    ``trained``: which tokens of each continuation are asked for; None: all.

    Raises:
        ValueError: a prompt without tokens, so that no token would predict the continuation's first one.
    """
    trees: dict[_Ids, dict[_Ids, int]] = {}
    for prompt, ids in rows:
        if not prompt:
            raise ValueError("a row without prompt tokens")
        trees.setdefault(prompt, {}).setdefault(ids, len(trees[prompt]) + 1)
    starts: dict[tuple[_Ids, _Ids], tuple[int, int]] = {}
    pieces: list[_Ids] = []
    positions, branch, lengths = [], [], []
    at = 0
    for prompt, continuations in trees.items():
        begin = at
        pieces.append(prompt)
        positions.append(np.arange(len(prompt)))
        branch.append(np.zeros(len(prompt), dtype=np.int64))
        at += len(prompt)
        for ids, number in continuations.items():
            starts[prompt, ids] = (begin + len(prompt) - 1, at)
            pieces.append(ids)
            positions.append(np.arange(len(prompt), len(prompt) + len(ids)))
            branch.append(np.full(len(ids), number, dtype=np.int64))
            at += len(ids)
        lengths.append(at - begin)
    predictors = [_predictors(*starts[row], len(row[1])) for row in rows]
    if trained is not None:
        predictors = [at[np.asarray(flags, dtype=bool)] for at, flags in zip(predictors, trained, strict=True)]
    ends = [starts[row][1] + len(row[1]) - 1 if row[1] else starts[row][0] for row in rows]
    stream = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64, count=at)
    outline = Outline(np.array(lengths, dtype=np.int64), np.concatenate(branch), np.concatenate(positions))
    return Packed(
        torch.from_numpy(stream),
        torch.from_numpy(outline.positions),
        torch.from_numpy(outline.branch),
        torch.from_numpy(np.concatenate(predictors)),
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(ends, dtype=torch.int64),
        outline,
    )


def _predictors(prompt_end: int, start: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The first token is predicted at the prompt's end, the others at their neighbours."""
    found = np.arange(start - 1, start - 1 + length, dtype=np.int64)
    found[:1] = prompt_end
    return found
