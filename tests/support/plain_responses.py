"""Batches taken apart into single responses, for formulas written out with loops: nothing of pipeline.losses' sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses import GroupBatch, PairBatch, Side, UnpairedBatch


@dataclass(frozen=True)
class Response:
    """The tokens of one response, [n] each: ``p`` log-probs of the policy, ``q`` of the reference, and other facts."""

    p: Tensor
    q: Tensor
    weights: Tensor
    collision: Tensor
    advantage: Tensor
    returns: Tensor
    value: Tensor

    @property
    def n(self) -> int:
        return len(self.p)

    @property
    def logp(self) -> Tensor:
        """Σ_t p_t."""
        return torch.stack(list(self.p)).sum()

    @property
    def mean(self) -> Tensor:
        """Σ_t p_t / |y|."""
        return self.logp / self.n

    @property
    def h(self) -> Tensor:
        """Σ_t (p_t − q_t)."""
        return torch.stack([p - q for p, q in zip(self.p, self.q, strict=True)]).sum()


def responses(side: Side) -> list[Response]:
    assert side.reference is not None and side.weights is not None and side.collision is not None
    assert side.advantage is not None and side.returns is not None and side.token_value is not None
    fields = (side.policy, side.reference, side.weights.detach(), side.collision)
    fields += (side.advantage, side.returns, side.token_value)
    rows = []
    for row in range(len(side.mask)):
        places = [place for place in range(side.mask.shape[1]) if side.mask[row, place]]
        rows.append(Response(*(torch.stack([field[row, place] for place in places]) for field in fields)))
    return rows


def pairs(batch: PairBatch) -> list[tuple[Response, Response]]:
    assert batch.rejected is not None
    return list(zip(responses(batch.chosen), responses(batch.rejected), strict=True))


def groups(batch: GroupBatch) -> list[list[tuple[Response, float]]]:
    """Of each prompt, its responses and their rewards; those that are not there are left out."""
    sides = [responses(side) for side in batch.responses]
    present = torch.ones_like(batch.rewards) if batch.present is None else batch.present
    return [
        [(side[row], float(batch.rewards[row, k])) for k, side in enumerate(sides) if present[row, k]]
        for row in range(len(batch.rewards))
    ]


def singles(batch: UnpairedBatch) -> list[tuple[Response, bool]]:
    return list(zip(responses(batch.responses), batch.desirable.tolist(), strict=True))


def each_pair(formula: Callable[[Response, Response], Tensor], batch: PairBatch) -> Tensor:
    """The formula of every pair, [B]."""
    return torch.stack([formula(w, v) for w, v in pairs(batch)])


def neg_log_sigmoid(z: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-z))


def sigma(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def value(number: Tensor) -> float:
    """A 0-d tensor as a constant."""
    return float(number.detach())
