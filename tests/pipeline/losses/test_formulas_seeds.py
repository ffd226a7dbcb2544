"""The seeds' links, rewards and regularisers: each loss of a pair written out, against its preset, in float64.

A function below is one formula; its defaults are those the preset has to have.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import load_preset
from tests.support.loss_batches import Pair, assert_same, pairs_of, random_pairs, response, value_and_gradient

Formula = Callable[..., Tensor]


def log_sigmoid(z: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-z))


def dpo(x: Pair, beta: float = 0.1) -> Tensor:
    return -log_sigmoid(beta * x.d)


def d2po_discriminator(x: Pair, beta: float = 0.05) -> Tensor:
    return dpo(x, beta)


def sft(x: Pair, nll: float = 1.0) -> Tensor:
    return -nll * x.w.p.sum() / x.w.n


def ipo(x: Pair, beta: float = 0.1) -> Tensor:
    return (x.d - 1 / (2 * beta)) ** 2


def ipo_per_token(x: Pair, beta: float, aggregate: str) -> Tensor:
    assert aggregate == "mean"
    return (x.w.h / x.w.n - x.v.h / x.v.n - 1 / (2 * beta)) ** 2


def slic(x: Pair, delta: float = 1.0, nll: float = 0.1) -> Tensor:
    return torch.relu(delta - x.w.p.sum() + x.v.p.sum()) - nll * x.w.p.sum()


def rso_hinge(x: Pair, beta: float = 0.1) -> Tensor:
    return torch.relu(1 - beta * x.d)


def gpo_exponential(x: Pair, beta: float = 0.1) -> Tensor:
    return torch.exp(-beta * x.d)


def gpo_truncated_quadratic(x: Pair, beta: float = 0.1) -> Tensor:
    return torch.relu(1 - beta * x.d) ** 2


def gpo_savage(x: Pair, beta: float = 0.1) -> Tensor:
    return 1 / (1 + torch.exp(beta * x.d)) ** 2


def focalpo(x: Pair, beta: float = 0.1, gamma: float = 0.05) -> Tensor:
    likelihood = 1 / (1 + torch.exp(-beta * x.d))
    return -(likelihood**gamma) * likelihood.log()


def minordpo(x: Pair, beta: float = 0.1) -> Tensor:
    return -log_sigmoid(beta * x.w.h - beta * torch.relu(x.v.h))


def simper(x: Pair) -> Tensor:
    return -torch.exp(x.w.p.sum() / x.w.n) + torch.exp(x.v.p.sum() / x.v.n)


def simpo(x: Pair, beta: float = 2.5, gamma: float = 1.375) -> Tensor:
    return -log_sigmoid(beta * x.w.p.sum() / x.w.n - beta * x.v.p.sum() / x.v.n - gamma)


def rpo_sq(x: Pair, beta: float = 0.2, eta: float = 1.0) -> Tensor:
    return (beta * x.d - eta * (x.of("reward_chosen") - x.of("reward_rejected"))) ** 2


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    return p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))


def rpo_bwd(x: Pair, beta: float = 0.2, eta: float = 1.0) -> Tensor:
    wanted = torch.sigmoid(eta * (x.of("reward_chosen") - x.of("reward_rejected")))
    return bernoulli_kl(wanted, torch.sigmoid(beta * x.d))


def rpo_fwd(x: Pair, beta: float = 0.2, eta: float = 1.0) -> Tensor:
    wanted = torch.sigmoid(eta * (x.of("reward_chosen") - x.of("reward_rejected")))
    return bernoulli_kl(torch.sigmoid(beta * x.d), wanted)


def vpo_online(x: Pair, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    return dpo(x, beta) + alpha * beta * response(x.batch.calibration, x.row).h


def vpo_offline(x: Pair, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    return dpo(x, beta) - alpha * beta * x.w.h


def ganpo(x: Pair, beta: float = 0.1, weight: float = 1.0) -> Tensor:
    return dpo(x, beta) - weight / 2 * (log_sigmoid(x.of("critic_chosen")) + log_sigmoid(x.of("critic_rejected")))


# Preset, what it is written out as, and a setting that is not the default.
CASES: list[tuple[str, Formula, dict[str, Any]]] = [
    ("dpo", dpo, {"beta": 0.7}),
    ("d2po_discriminator", d2po_discriminator, {"beta": 0.4}),
    ("sft", sft, {"nll": 2.5}),
    ("ipo", ipo, {"beta": 0.4}),
    ("slic", slic, {"delta": 2.5, "nll": 0.3}),
    ("rso_hinge", rso_hinge, {"beta": 3.0}),
    ("gpo_exponential", gpo_exponential, {"beta": 0.6}),
    ("gpo_truncated_quadratic", gpo_truncated_quadratic, {"beta": 3.0}),
    ("gpo_savage", gpo_savage, {"beta": 0.6}),
    ("focalpo", focalpo, {"beta": 0.6, "gamma": 0.8}),
    ("minordpo", minordpo, {"beta": 0.6}),
    ("simper", simper, {}),
    ("simpo", simpo, {"beta": 10.0, "gamma": 0.3}),
    ("rpo_sq", rpo_sq, {"beta": 0.6, "eta": 0.5}),
    ("rpo_bwd", rpo_bwd, {"beta": 0.6, "eta": 0.5}),
    ("rpo_fwd", rpo_fwd, {"beta": 0.6, "eta": 0.5}),
    ("vpo_online", vpo_online, {"beta": 0.6, "alpha": 0.5}),
    ("vpo_offline", vpo_offline, {"beta": 0.6, "alpha": 0.5}),
    ("ganpo", ganpo, {"beta": 0.6, "adversary.weight": 0.3}),
]
NAMES = [name for name, _, _ in CASES]


def check(preset: str, formula: Formula, settings: dict[str, Any], seed: int) -> None:
    batch = random_pairs(seed)
    arguments = {path.rpartition(".")[2]: value for path, value in settings.items()}
    expected = torch.stack([formula(pair, **arguments) for pair in pairs_of(batch)])
    assert_same(load_preset(preset, **settings)(batch).per_pair, expected, batch)


@pytest.mark.parametrize(("preset", "formula", "settings"), CASES, ids=NAMES)
def test_value_and_gradient_are_the_formula(preset: str, formula: Formula, settings: dict[str, Any]) -> None:
    check(preset, formula, {}, seed=1)
    check(preset, formula, settings, seed=7)


def test_ipo_per_token_is_the_mean_convention() -> None:
    check("ipo", ipo_per_token, {"beta": 0.3, "aggregate": "mean"}, seed=3)


@pytest.mark.parametrize(
    ("preset", "value"),
    [
        ("dpo", math.log(2)),
        ("d2po_discriminator", math.log(2)),
        ("ipo", 1 / (4 * 0.1**2)),
        ("rso_hinge", 1.0),
        ("gpo_exponential", 1.0),
        ("gpo_truncated_quadratic", 1.0),
        ("gpo_savage", 0.25),
        ("focalpo", 0.5**0.05 * math.log(2)),
        ("minordpo", math.log(2)),
        ("vpo_online", math.log(2)),
        ("vpo_offline", math.log(2)),
    ],
)
def test_value_where_policy_and_reference_agree(preset: str, value: float) -> None:
    batch = random_pairs(4, at_reference=True)
    torch.testing.assert_close(load_preset(preset)(batch).per_pair, torch.full((6,), value, dtype=torch.float64))


def test_pairs_beyond_the_target_have_no_loss_where_the_link_ends() -> None:
    batch = random_pairs(7)
    beyond = torch.tensor([3.0 * x.d.item() > 1 for x in pairs_of(batch)])
    assert 0 < beyond.sum() < len(beyond)
    for preset in ("rso_hinge", "gpo_truncated_quadratic"):
        assert torch.equal(load_preset(preset, beta=3.0)(batch).per_pair == 0, beyond)


def test_minordpo_moves_the_rejected_response_in_the_first_step() -> None:
    """At log-ratio 0 the kink takes the slope 1: 0 would leave the rejected response without a gradient."""
    batch = random_pairs(4, at_reference=True)
    assert batch.rejected is not None
    slopes = value_and_gradient(load_preset("minordpo", beta=0.4)(batch).per_pair, batch)[1]["rejected.policy"]
    cotangent = 1 + torch.arange(6, dtype=torch.float64) / 2
    expected = (0.4 / 2 * cotangent).unsqueeze(1).expand_as(slopes)
    torch.testing.assert_close(slopes[batch.rejected.mask], expected[batch.rejected.mask])


def test_labels_of_the_data_mix_both_orders() -> None:
    batch = random_pairs(5, soft_labels=True)
    labels = batch.soft_label
    assert labels is not None
    for preset, formula in (("dpo", dpo), ("gpo_savage", gpo_savage)):
        sides = [
            torch.stack([formula(x, beta) for x in pairs_of(batch)])
            for beta in (0.1, -0.1)  # −β turns the pair round
        ]
        assert_same(load_preset(preset)(batch).per_pair, labels * sides[0] + (1 - labels) * sides[1], batch)
