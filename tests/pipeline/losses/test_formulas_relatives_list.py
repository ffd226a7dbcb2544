"""Relatives over K responses against their formulas, written out response by response in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import GroupBatch, PairBatch, load_preset
from tests.support.loss_batches import assert_same, random_groups, random_pairs
from tests.support.plain_responses import Response, groups, neg_log_sigmoid, pairs

APA_VALUES = ("leave_one_out", "mean", "soft")
Group = list[tuple[Response, float]]


def shares(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def infonca(beta: float, eta: float) -> Callable[[Group], Tensor]:
    def formula(group: Group) -> Tensor:
        wanted = shares([eta * r for _, r in group])
        powers = torch.stack([torch.exp(beta * y.h) for y, _ in group])
        return -torch.stack(
            [share * torch.log(power / powers.sum()) for share, power in zip(wanted, powers, strict=True)]
        ).sum()

    return formula


def nca_list(beta: float, eta: float) -> Callable[[Group], Tensor]:
    def formula(group: Group) -> Tensor:
        wanted = shares([eta * r for _, r in group])
        pulls = [share * neg_log_sigmoid(beta * y.h) for share, (y, _) in zip(wanted, group, strict=True)]
        return torch.stack(pulls).sum() + torch.stack([neg_log_sigmoid(-beta * y.h) for y, _ in group]).mean()

    return formula


def rrhf(weight: float, nll: float) -> Callable[[Group], Tensor]:
    def formula(group: Group) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for worse, r_i in group:
            for better, r_j in group:
                if r_i < r_j and worse.mean > better.mean:
                    total = total + weight * (worse.mean - better.mean)
        best, _ = max(group, key=lambda scored: scored[1])
        return total - nll * best.mean

    return formula


def apa(beta: float, eta: float, value: str) -> Callable[[Group], Tensor]:
    def formula(group: Group) -> Tensor:
        rewards = [r for _, r in group]
        total = torch.zeros((), dtype=torch.float64)
        for k, (y, r) in enumerate(group):
            others = [rewards[j] for j in range(len(group)) if j != k]
            v = {
                "leave_one_out": sum(others) / len(others),
                "mean": sum(rewards) / len(rewards),
                "soft": beta / eta * math.log(sum(math.exp(eta * s / beta) for s in rewards) / len(rewards)),
            }[value]
            total = total + (beta * y.h - eta * (r - v)) ** 2
        return total / len(group)

    return formula


def apa_token(
    beta: float, eta: float, value_weight: float = 1.0, form: str = "square", mean: bool = True
) -> Callable[[Group], Tensor]:
    def formula(group: Group) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for y, _ in group:
            a, g, v = y.advantage, y.returns, y.value
            for t in range(y.n):
                h_t = y.p[t] - y.q[t]
                squared = (beta * h_t - eta * a[t]) ** 2 if form == "square" else -torch.exp(eta * a[t]) * beta * h_t
                total = total + (squared + value_weight * (v[t] - g[t]) ** 2 / 2) / (y.n if mean else 1)
        return total / len(group)

    return formula


CASES: tuple[tuple[str, dict[str, Any], Callable[[Group], Tensor]], ...] = (
    ("infonca", {}, infonca(0.01, 1.0)),
    ("infonca", {"beta": 0.8, "eta": 2.5}, infonca(0.8, 2.5)),
    ("nca_list", {}, nca_list(0.01, 1.0)),
    ("nca_list", {"beta": 0.8, "eta": 2.5}, nca_list(0.8, 2.5)),
    ("apa", {}, apa(1.0, 1.0, "leave_one_out")),
    *(("apa", {"beta": 0.4, "eta": 1.7, "value": value}, apa(0.4, 1.7, value)) for value in APA_VALUES),
    ("apa_token", {}, apa_token(1.0, 10.0)),
    ("apa_token", {"beta": 0.4, "eta": 1.7, "value_weight": 0.3}, apa_token(0.4, 1.7, 0.3)),
    ("apa_token", {"aggregate": "sum", "eta": 1.0}, apa_token(1.0, 1.0, mean=False)),
    ("apa_token", {"head.form": "exponential", "eta": 0.5, "beta": 0.7}, apa_token(0.7, 0.5, form="exponential")),
    ("rrhf", {}, rrhf(100.0, 1.0)),
    ("rrhf", {"weight": 1.0, "nll": 0.3}, rrhf(1.0, 0.3)),
)


def written_out(batch: GroupBatch, formula: Callable[[Group], Tensor]) -> Tensor:
    return torch.stack([formula(group) for group in groups(batch)])


@pytest.mark.parametrize(("name", "overrides", "formula"), CASES, ids=[f"{name} {given}" for name, given, _ in CASES])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups(
    name: str, overrides: dict[str, Any], formula: Callable[[Group], Tensor], gaps: bool, seed: int
) -> None:
    batch = random_groups(seed, gaps=gaps)
    assert_same(load_preset(name, **overrides)(batch).per_pair, written_out(batch, formula), batch)


@pytest.mark.parametrize(("name", "overrides", "formula"), CASES, ids=[f"{name} {given}" for name, given, _ in CASES])
def test_pairs_with_rewards_are_groups_of_two(
    name: str, overrides: dict[str, Any], formula: Callable[[Group], Tensor]
) -> None:
    batch: PairBatch = random_pairs(2)
    assert batch.reward_chosen is not None and batch.reward_rejected is not None
    scored = zip(pairs(batch), batch.reward_chosen.tolist(), batch.reward_rejected.tolist(), strict=True)
    expected = torch.stack([formula([(w, r_w), (v, r_v)]) for (w, v), r_w, r_v in scored])
    assert_same(load_preset(name, **overrides)(batch).per_pair, expected, batch)


def test_rrhf_leaves_ties_alone() -> None:
    batch = random_groups(3)
    tied = GroupBatch(responses=batch.responses, rewards=torch.zeros_like(batch.rewards))
    first = torch.stack([-group[0][0].mean for group in groups(tied)])
    assert_same(load_preset("rrhf")(tied).per_pair, first, tied)
