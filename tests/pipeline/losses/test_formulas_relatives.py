"""Relatives of DPO on pairs against their formulas, written out pair by pair in float64."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import load_preset
from tests.support.loss_batches import assert_same, random_pairs
from tests.support.plain_responses import Response, each_pair, neg_log_sigmoid, sigma, value

Formula = Callable[[Response, Response], Tensor]


def gap(w: Response, v: Response) -> Tensor:
    return w.h - v.h


def cdpo(beta: float, epsilon: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        z = beta * gap(w, v)
        return (1 - epsilon) * neg_log_sigmoid(z) + epsilon * neg_log_sigmoid(-z)

    return formula


def robust_dpo(beta: float, epsilon: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        z = beta * gap(w, v)
        return ((1 - epsilon) * neg_log_sigmoid(z) - epsilon * neg_log_sigmoid(-z)) / (1 - 2 * epsilon)

    return formula


def orpo(lambda_: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        odds_w, odds_v = (torch.exp(y.mean) / (1 - torch.exp(y.mean)) for y in (w, v))
        return -w.mean + lambda_ * neg_log_sigmoid(torch.log(odds_w / odds_v))

    return formula


def cpo(beta: float, nll: float) -> Formula:
    return lambda w, v: neg_log_sigmoid(beta * (w.logp - v.logp)) - nll * w.mean


def exo(beta: float, epsilon: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        share = sigma(beta * gap(w, v))
        return share * torch.log(share / (1 - epsilon)) + (1 - share) * torch.log((1 - share) / epsilon)

    return formula


def r_dpo(beta: float, alpha: float) -> Formula:
    return lambda w, v: neg_log_sigmoid(beta * gap(w, v) + alpha * (w.n - v.n))


def ld_dpo(beta: float, alpha: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        shorter = min(w.n, v.n)
        h_w, h_v = (
            sum((1.0 if t < shorter else alpha) * (y.p[t] - y.q[t]) for t in range(y.n)) + torch.zeros(())
            for y in (w, v)
        )
        return neg_log_sigmoid(beta * (h_w - h_v))

    return formula


def tis_dpo(beta: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        h_w, h_v = (torch.stack([y.weights[t] * (y.p[t] - y.q[t]) for t in range(y.n)]).sum() for y in (w, v))
        return neg_log_sigmoid(beta * (h_w - h_v))

    return formula


def alphapo(beta: float, alpha: float, gamma: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        r_w, r_v = ((1 - torch.exp(-alpha * y.mean)) / alpha for y in (w, v))
        return neg_log_sigmoid(beta * (r_w - r_v) - gamma)

    return formula


def f_dpo(beta: float, slope: Callable[[Tensor], Tensor]) -> Formula:
    """``slope`` is f′ of the ratio u."""
    return lambda w, v: neg_log_sigmoid(beta * (slope(torch.exp(w.h)) - slope(torch.exp(v.h))))


def dpop(beta: float, lambda_: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        fall = -w.h if w.h < 0 else torch.zeros(())
        return neg_log_sigmoid(beta * (gap(w, v) - lambda_ * fall))

    return formula


def wpo(beta: float, cap: float | None) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        weight = 1.0
        for y in (w, v):
            weight *= math.exp(sum(value(y.p[t]) - math.log(value(y.collision[t])) for t in range(y.n)) / y.n)
        return (weight if cap is None else min(cap, weight)) * neg_log_sigmoid(beta * gap(w, v))

    return formula


def discopop(beta: float, tau: float) -> Formula:
    def formula(w: Response, v: Response) -> Tensor:
        z = beta * gap(w, v)
        return (1 - sigma(z / tau)) * neg_log_sigmoid(z) + sigma(z / tau) * torch.exp(-z)

    return formula


def dpo_norm(beta: float) -> Formula:
    return lambda w, v: neg_log_sigmoid(beta * (w.h / w.n - v.h / v.n))


def mpo(weights: tuple[float, float, float], beta: float) -> Formula:
    """Without the running mean δ of the middle part, which a batch of one pair starts at its own mean reward."""

    def formula(w: Response, v: Response) -> Tensor:
        binary = neg_log_sigmoid(beta * w.h) + neg_log_sigmoid(-beta * v.h)
        return weights[0] * neg_log_sigmoid(beta * gap(w, v)) + weights[1] * binary - weights[2] * w.mean

    return formula


def dpo_sft(beta: float, eta: float) -> Formula:
    return lambda w, v: neg_log_sigmoid(beta * gap(w, v)) - eta * w.mean


def reverse_kl(u: Tensor) -> Tensor:
    return torch.log(u) + 1


def forward_kl(u: Tensor) -> Tensor:
    return -1 / u


def js(u: Tensor) -> Tensor:
    return torch.log(2 * u / (1 + u))


def alpha_divergence(alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda u: (1 - u**-alpha) / alpha


CERTAIN = [{"chosen": 1.0, "link": "logistic"}, {"rejected": -1.0, "link": "logistic"}]
CASES: tuple[tuple[str, Mapping[str, Any], Formula], ...] = (
    ("cdpo", {}, cdpo(0.1, 0.1)),
    ("cdpo", {"beta": 0.7, "epsilon": 0.25}, cdpo(0.7, 0.25)),
    ("robust_dpo", {}, robust_dpo(0.1, 0.1)),
    ("robust_dpo", {"beta": 0.7, "epsilon": 0.4}, robust_dpo(0.7, 0.4)),
    ("orpo", {}, orpo(0.1)),
    ("orpo", {"weight": 0.8}, orpo(0.8)),
    ("cpo", {}, cpo(0.1, 1.0)),
    ("cpo", {"beta": 0.6, "nll": 0.3}, cpo(0.6, 0.3)),
    ("exo", {}, exo(0.1, 0.001)),
    ("exo", {"beta": 0.9, "epsilon": 0.2}, exo(0.9, 0.2)),
    ("r_dpo", {}, r_dpo(0.1, 0.01)),
    ("r_dpo", {"beta": 0.4, "alpha": 0.5}, r_dpo(0.4, 0.5)),
    ("ld_dpo", {}, ld_dpo(0.1, 0.5)),
    ("ld_dpo", {"beta": 0.4, "alpha": 0.1}, ld_dpo(0.4, 0.1)),
    ("tis_dpo", {}, tis_dpo(0.1)),
    ("tis_dpo", {"beta": 0.8}, tis_dpo(0.8)),
    ("alphapo", {}, alphapo(2.5, 0.25, 0.1)),
    ("alphapo", {"beta": 1.5, "shape.alpha": -0.4, "gamma": 0.7}, alphapo(1.5, -0.4, 0.7)),
    ("f_dpo", {}, f_dpo(0.1, js)),
    ("f_dpo", {"beta": 0.6, "divergence": "js"}, f_dpo(0.6, js)),
    ("f_dpo", {"beta": 0.6, "divergence": "reverse_kl"}, f_dpo(0.6, reverse_kl)),
    ("f_dpo", {"beta": 0.2, "divergence": "forward_kl"}, f_dpo(0.2, forward_kl)),
    ("f_dpo", {"beta": 0.6, "divergence": "alpha"}, f_dpo(0.6, alpha_divergence(0.5))),
    ("f_dpo", {"beta": 0.6, "divergence": "alpha", "alpha": 0.8}, f_dpo(0.6, alpha_divergence(0.8))),
    ("dpop", {}, dpop(0.1, 50.0)),
    ("dpop", {"beta": 0.3, "penalty": 5.0}, dpop(0.3, 5.0)),
    ("wpo", {}, wpo(0.01, 1.0)),
    ("wpo", {"beta": 0.5, "pair_weight_cap": 0.1}, wpo(0.5, 0.1)),
    ("wpo", {"beta": 0.5, "pair_weight_cap": None}, wpo(0.5, None)),
    ("discopop", {}, discopop(0.05, 0.05)),
    ("discopop", {"beta": 0.6, "tau": 0.7}, discopop(0.6, 0.7)),
    ("dpo_norm", {}, dpo_norm(5.0)),
    ("dpo_norm", {"beta": 0.3}, dpo_norm(0.3)),
    ("mpo", {"sum.1.terms": CERTAIN}, mpo((0.8, 0.2, 1.0), 0.1)),
    (
        "mpo",
        {"sum": {0: {"weight": 0.3, "beta": 0.6}, 1: {"weight": 2.0, "beta": 0.6, "terms": CERTAIN}}},
        mpo((0.3, 2.0, 1.0), 0.6),
    ),
    ("dpo_sft", {}, dpo_sft(0.1, 1.0)),
    ("dpo_sft", {"beta": 0.4, "nll": 0.005}, dpo_sft(0.4, 0.005)),
)


@pytest.mark.parametrize(("name", "overrides", "formula"), CASES, ids=[f"{name} {given}" for name, given, _ in CASES])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_the_published_formula(
    name: str, overrides: Mapping[str, Any], formula: Formula, seed: int
) -> None:
    batch = random_pairs(seed)
    assert_same(load_preset(name, **overrides)(batch).per_pair, each_pair(formula, batch), batch)
