"""Rao and Kupper's likelihood of wins and ties, written out from worths π as in their paper."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.config import Composition
from pipeline.losses import Loss, PairBatch, Side
from pipeline.losses.links import logistic, rao_kupper

ETA = 0.4


def published(better: float, other: float) -> dict[str, float]:
    """Probabilities of the outcomes for worths π = e^reward and threshold θ = e^η (J. Am. Stat. Assoc. 62, 1967)."""
    one, two, theta = math.exp(better), math.exp(other), math.exp(ETA)
    tie = (theta**2 - 1) * one * two / ((one + theta * two) * (theta * one + two))
    return {"win": one / (one + theta * two), "loss": two / (theta * one + two), "tie": tie}


@pytest.mark.parametrize(("better", "other"), [(0.3, -0.5), (-2.0, 1.0), (0.0, 0.0), (9.0, -9.0)])
def test_the_three_outcomes_have_their_published_probabilities(better: float, other: float) -> None:
    z = torch.full((3,), better - other, dtype=torch.float64)
    losses = rao_kupper(z, torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), ETA)
    expected = published(better, other)
    assert (-losses).exp().tolist() == pytest.approx([expected[name] for name in ("win", "loss", "tie")])
    assert sum(expected.values()) == pytest.approx(1)


def test_a_soft_label_is_cross_entropy() -> None:
    z = torch.tensor([0.7], dtype=torch.float64)
    won, lost = (rao_kupper(z, torch.tensor([p], dtype=torch.float64), ETA) for p in (1.0, 0.0))
    assert rao_kupper(z, torch.tensor([0.8], dtype=torch.float64), ETA) == pytest.approx(float(0.8 * won + 0.2 * lost))


def test_without_a_threshold_wins_are_bradley_terrys() -> None:
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(rao_kupper(z, torch.ones_like(z), 1e-12), logistic(z), atol=1e-9)


def side(rewards: Tensor) -> Side:
    """Responses of two tokens whose scores are ``rewards``, which all stand at the second."""
    policy = torch.stack([torch.zeros_like(rewards), rewards], dim=1)
    return Side(policy=policy, mask=torch.ones(policy.shape, dtype=torch.bool))


def test_a_tie_pulls_rewards_together_and_a_win_apart() -> None:
    chosen = torch.tensor([0.9, 0.9], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.2, 0.2], dtype=torch.float64)
    loss = Loss("rao_kupper", Composition.model_validate({"link": {"kind": "rao_kupper", "eta": ETA}}))
    label = torch.tensor([1.0, 0.5], dtype=torch.float64)
    output = loss(PairBatch(chosen=side(chosen), rejected=side(rejected), soft_label=label))
    expected = published(0.9, 0.2)
    assert output.per_pair.tolist() == pytest.approx([-math.log(expected["win"]), -math.log(expected["tie"])])
    output.per_pair.sum().backward()
    assert chosen.grad is not None
    # −∂ log P(win)/∂Δ = −σ(η − Δ); of a tie it is σ(η + Δ) − σ(η − Δ).
    low, high = (1 / (1 + math.exp(-(ETA + sign * 0.7))) for sign in (-1, 1))
    assert chosen.grad.tolist() == pytest.approx([-low, high - low])
