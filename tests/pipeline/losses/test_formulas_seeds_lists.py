"""The seeds' list heads, several references and an auxiliary reward: written out against their presets, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import GroupBatch, PairBatch, load_preset
from tests.support.loss_batches import Pair, assert_same, pairs_of, random_groups, random_pairs, response

# ------------------------------------------------------------------------------------- K responses (RPO)


def rpo_sqloo(a: list[Tensor], b: list[Tensor]) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), len(a)
    for k in range(count):
        others_a = sum(a[j] for j in range(count) if j != k) / (count - 1)
        others_b = sum(b[j] for j in range(count) if j != k) / (count - 1)
        total = total + 0.5 * ((a[k] - others_a) - (b[k] - others_b)) ** 2
    return total


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(value) for value in values)
    return [torch.exp(value) / total for value in values]


def rpo_list_bwd(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return -sum((p * torch.log(q) for p, q in zip(softmax(b), softmax(a), strict=True)), torch.zeros(()))


def rpo_list_fwd(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum((q * torch.log(q / p) for p, q in zip(softmax(b), softmax(a), strict=True)), torch.zeros(()))


HEADS = [("rpo_sqloo", rpo_sqloo), ("rpo_list_bwd", rpo_list_bwd), ("rpo_list_fwd", rpo_list_fwd)]


@pytest.mark.parametrize(("beta", "eta"), [(0.2, 1.0), (0.7, 0.4)])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("preset", "head"), HEADS, ids=[name for name, _ in HEADS])
def test_list_heads_are_the_formula(
    preset: str, head: Callable[..., Tensor], gaps: bool, beta: float, eta: float
) -> None:
    batch = random_groups(1, gaps=gaps)
    there = torch.ones_like(batch.rewards, dtype=torch.bool) if batch.present is None else batch.present
    rows = []
    for row in range(len(batch.rewards)):
        who = [k for k in range(len(batch.responses)) if there[row, k]]
        rows.append(
            head(
                [beta * response(batch.responses[k], row).h for k in who],
                [eta * batch.rewards[row, k] for k in who],
            )
        )
    settings = {} if (beta, eta) == (0.2, 1.0) else {"beta": beta, "eta": eta}
    assert_same(load_preset(preset, **settings)(batch).per_pair, torch.stack(rows), batch)


@pytest.mark.parametrize(("listed", "paired"), [("rpo_sqloo", "rpo_sq"), ("rpo_list_fwd", "rpo_fwd")])
def test_two_responses_give_the_loss_of_a_pair_back(listed: str, paired: str) -> None:
    batch = random_pairs(2)
    ours = load_preset(listed, beta=0.5, eta=0.7)(batch).per_pair
    assert_same(ours, load_preset(paired, beta=0.5, eta=0.7)(batch).per_pair, batch)


def test_the_list_that_is_a_cross_entropy_differs_from_the_pair_by_the_entropy_of_its_label() -> None:
    batch = random_pairs(2)
    cross_entropy = load_preset("rpo_bwd", entropy=False)(batch).per_pair
    assert_same(load_preset("rpo_list_bwd")(batch).per_pair, cross_entropy, batch)


def test_one_certain_winner_of_two_is_dpo() -> None:
    batch = replace(random_pairs(2), reward_chosen=None, reward_rejected=None)
    assert_same(
        load_preset("rpo_list_bwd", beta=0.4)(batch).per_pair, load_preset("dpo", beta=0.4)(batch).per_pair, batch
    )


# ------------------------------------------------------------------------------------- several references (MRPO)


def harmonic(logps: list[float], weights: list[float]) -> float:
    return -math.log(sum(a / math.exp(p) for a, p in zip(weights, logps, strict=True)))


def mrpo(x: Pair, beta: float, weights: list[float] | None, clip: float | None) -> Tensor:
    """−log σ(β [D_π − D_ζ]) with ζ the weighted harmonic mean of references clipped towards the first."""
    w, v = ([float(ref.sum()) for ref in y.refs] for y in (x.w, x.v))
    if weights is None:
        gaps = [abs(a - b) for a, b in zip(w, v, strict=True)]
        weights = [gap / sum(gaps) for gap in gaps]
    if clip is not None:
        sizes = [abs(sum(side) / len(side)) for side in (w, v)]
        e_w, e_l = (clip * size / sum(sizes) for size in sizes)
        w = [w[0]] + [min(max(p, (1 + e_w) * w[0]), (1 - e_w) * w[0]) for p in w[1:]]
        v = [v[0]] + [min(max(p, (1 + e_l) * v[0]), (1 - e_l) * v[0]) for p in v[1:]]
    z = beta * (x.w.p.sum() - harmonic(w, weights) - x.v.p.sum() + harmonic(v, weights))
    return torch.log(1 + torch.exp(-z))


@pytest.mark.parametrize(
    ("settings", "references"),
    [
        ({}, 2),
        ({"beta": 0.6, "clip": 0.4}, 2),
        ({"beta": 0.6, "clip": None}, 2),
        ({"beta": 0.6, "clip": 0.4, "prior.weights": [0.2, 0.5, 0.3]}, 3),
    ],
)
def test_mrpo_is_the_formula(settings: dict[str, Any], references: int) -> None:
    batch = random_pairs(3, references=references)
    weights, clip, beta = settings.get("prior.weights"), settings.get("clip", 0.1), settings.get("beta", 0.1)
    expected = torch.stack([mrpo(x, beta, weights, clip) for x in pairs_of(batch)])
    loss = load_preset("mrpo", **settings)
    assert loss.needs.references == references
    assert_same(loss(batch).per_pair, expected, batch)


def test_mrpo_of_equal_references_is_dpo() -> None:
    batch = random_pairs(4)
    sides = []
    for side in (batch.chosen, batch.rejected):
        assert side is not None and side.reference is not None
        sides.append(replace(side, reference=side.reference.expand(2, *side.reference.shape)))
    ours = load_preset("mrpo")(replace(batch, chosen=sides[0], rejected=sides[1])).per_pair
    assert_same(ours, load_preset("dpo")(batch).per_pair, batch)


# ------------------------------------------------------------------------------------- an auxiliary reward (HPO)


def hpo(
    batch: PairBatch, weight: float, tau: float, expectile: float, clip: float, value_weight: float, beta: float
) -> Tensor:
    pairs = pairs_of(batch)
    # The reference point of each side is the mean log-ratio of the other one, over the batch and not below 0.
    z_w = max(0.0, sum(x.v.h.item() for x in pairs) / len(pairs))
    z_l = max(0.0, sum(x.w.h.item() for x in pairs) / len(pairs))
    rows = []
    for x in pairs:
        kto = (1 - torch.sigmoid(beta * (x.w.h - z_w))) + (1 - torch.sigmoid(beta * (z_l - x.v.h)))
        likelihood, fit = [], []
        for y, reward in ((x.w, x.of("reward_chosen")), (x.v, x.of("reward_rejected"))):
            advantage = reward.item() - x.of("value").item()
            likelihood.append(min(math.exp(advantage / tau), clip) * y.p.sum())
            fit.append((expectile if advantage > 0 else 1 - expectile) * (reward - x.of("value")) ** 2)
        rows.append(kto - weight * sum(likelihood) / 2 + value_weight * sum(fit) / 2)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.6, "advantage.weight": 0.7, "tau": 0.5, "expectile": 0.8, "clip": 2.0, "value_weight": 0.3},
    ],
)
def test_hpo_is_kto_with_weighted_likelihood_and_the_fit_of_the_value(settings: dict[str, Any]) -> None:
    defaults = {"beta": 0.1, "weight": 0.1, "tau": 1.0, "expectile": 0.5, "clip": 20.0, "value_weight": 1.0}
    arguments = defaults | {path.rpartition(".")[2]: value for path, value in settings.items()}
    for seed in (5, 6):
        batch = random_pairs(seed)
        assert_same(load_preset("hpo", **settings)(batch).per_pair, hpo(batch, **arguments), batch)


def test_hpo_without_its_likelihood_is_kto_on_pairs() -> None:
    batch = random_pairs(7)
    ours = load_preset("hpo", **{"advantage.weight": 0.0, "value_weight": 0.0})(batch).per_pair
    assert_same(ours, load_preset("kto")(batch).per_pair, batch)


def test_absent_responses_are_not_read() -> None:
    batch = random_groups(9, gaps=True)
    sides = list(batch.responses)
    policy = sides[-1].policy.detach().clone()
    policy[::2] = math.nan
    spoiled = GroupBatch(
        responses=(*sides[:-1], replace(sides[-1], policy=policy.requires_grad_())),
        rewards=batch.rewards.masked_fill(~batch.present, math.nan) if batch.present is not None else batch.rewards,
        present=batch.present,
    )
    for preset, _ in HEADS:
        loss = load_preset(preset)
        torch.testing.assert_close(loss(spoiled).per_pair, loss(batch).per_pair)
        (slope,) = torch.autograd.grad(loss(spoiled).per_pair.sum(), policy)
        assert slope.isfinite().all()
