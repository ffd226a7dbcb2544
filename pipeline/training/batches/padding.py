"""Rows of a prompt and its continuation, padded at the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from pipeline.training.batches.examples import Continuation


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """R rows of at most T tokens; places values of response tokens at those tokens."""

    prompts: Sequence[tuple[int, ...]]
    continuations: Sequence[Continuation]

    def ids(self) -> Tensor:
        """Return ids [R, T] int64, 0 after the end of a row."""
        found = np.zeros((len(self.prompts), self._width()), dtype=np.int64)
        for row, (prompt, continuation) in enumerate(zip(self.prompts, self.continuations, strict=True)):
            found[row, : len(prompt) + len(continuation.ids)] = prompt + continuation.ids
        return torch.from_numpy(found)

    def mask(self) -> Tensor:
        """Return the mask [R, T] bool, true at response tokens."""
        return self.laid([(True,) * len(c.ids) for c in self.continuations], np.bool_)

    def laid(self, values: Sequence[Sequence[float]], dtype: DTypeLike = np.float32) -> Tensor:
        """Return [R, T] with ``values`` of each row's response tokens, 0 elsewhere; a row may lack values."""
        found = np.zeros((len(self.prompts), self._width()), dtype=dtype)
        for row, (prompt, of_row) in enumerate(zip(self.prompts, values, strict=True)):
            found[row, len(prompt) : len(prompt) + len(of_row)] = of_row
        return torch.from_numpy(found)

    def references(self) -> Tensor | None:
        """Return [K, R, T] for the K reference models that every row has values of; None if K is 0."""
        count = min(len(c.references) for c in self.continuations)
        found = [self.laid([c.references[k] for c in self.continuations]) for k in range(count)]
        return torch.stack(found) if found else None

    def weights(self) -> Tensor | None:
        """Return token weights [R, T], 1 in rows without weights; None if no row has any."""
        if all(c.weights is None for c in self.continuations):
            return None
        return self.laid([(1.0,) * len(c.ids) if c.weights is None else c.weights for c in self.continuations])

    def priors(self) -> Tensor | None:
        """Return [R, T], each response's log ζ spread evenly over its tokens, 0 without one; None if no row has one."""
        if all(c.prior is None for c in self.continuations):
            return None
        return self.laid([((c.prior or 0.0) / max(len(c.ids), 1),) * len(c.ids) for c in self.continuations])

    def estimates(self) -> tuple[Tensor, Tensor] | None:
        """Return advantages and returns, [R, T] each; None if a row lacks them."""
        advantages = [c.advantages for c in self.continuations if c.advantages is not None]
        returns = [c.returns for c in self.continuations if c.returns is not None]
        if min(len(advantages), len(returns)) < len(self.continuations):
            return None
        return self.laid(advantages), self.laid(returns)

    def _width(self) -> int:
        # At least one token to predict from and one to predict, so that shapes hold without any response token too.
        return max(2, *(len(p) + len(c.ids) for p, c in zip(self.prompts, self.continuations, strict=True)))
