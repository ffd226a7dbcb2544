"""What losses and their gradients are where the policy is the reference, as it is at the first step of every round."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses import PairBatch, Side, load_preset
from tests.support.loss_batches import random_groups, random_pairs, random_unpaired

LN2 = math.log(2)
GAMMA = 0.05
# Name, settings, value, and slope by a log-probability of a chosen and of a rejected token, both in units of β.
KNOWN: tuple[tuple[str, dict[str, Any], float, float, float], ...] = (
    ("dpo", {}, LN2, -1 / 2, 1 / 2),
    ("d2po_discriminator", {}, LN2, -1 / 2, 1 / 2),
    ("mi_dpo", {"prior": "reference"}, LN2, -1 / 2, 1 / 2),
    ("cdpo", {"epsilon": 0.2}, LN2, -0.3, 0.3),
    ("robust_dpo", {"epsilon": 0.2}, LN2, -1 / 1.2, 1 / 1.2),
    ("rso_hinge", {}, 1, -1, 1),
    ("gpo_exponential", {}, 1, -1, 1),
    ("gpo_truncated_quadratic", {}, 1, -2, 2),
    ("gpo_savage", {}, 1 / 4, -1 / 4, 1 / 4),
    ("dpo", {"link": "square"}, 1, -2, 2),
    ("ipo", {"beta": 0.3}, 1 / (4 * 0.3**2), -1 / 0.3**2, 1 / 0.3**2),
    (
        "focalpo",
        {},
        0.5**GAMMA * LN2,
        -(0.5 ** (GAMMA + 1)) * (1 - GAMMA * LN2),
        0.5 ** (GAMMA + 1) * (1 - GAMMA * LN2),
    ),
    ("discopop", {"tau": 2.0}, (LN2 + 1) / 2, (1 - LN2) / 8 - 3 / 4, 3 / 4 - (1 - LN2) / 8),
    ("exo", {"epsilon": 0.2}, -math.log(4 * 0.2 * 0.8) / 2, -math.log(4) / 4, math.log(4) / 4),
    ("tdpo1", {}, LN2, -1 / 2, 1 / 2),
    ("tdpo2", {}, LN2, -1 / 2, 1 / 2),
    ("minordpo", {}, LN2, -1 / 2, 1 / 2),
    ("dpop", {}, LN2, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "reverse_kl"}, LN2, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "forward_kl"}, LN2, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "alpha"}, LN2, -1 / 2, 1 / 2),
    ("f_dpo", {"divergence": "js"}, LN2, -1 / 4, 1 / 4),
    ("apo_accelerated", {}, LN2, -1 / 2, 1 / 2),
    ("mrpo", {}, LN2, -1 / 2, 1 / 2),
    ("beta_dpo", {"drop": 0.0}, LN2, -1 / 2, 1 / 2),
    ("xpo", {"ratio": True}, LN2, -1 / 2, 1 / 2),
    ("vpo_online", {}, LN2, -1 / 2, 1 / 2),
    ("vpo_offline", {"alpha": 0.2}, LN2, -1 / 2 - 0.2, 1 / 2),
    ("kto", {}, 1, -1 / 4, 1 / 4),
    ("apo_zero", {}, 1, -1 / 4, 1 / 4),
    ("apo_down", {}, 1, 0, 1 / 4),
    ("bco", {}, 2 * LN2, -1 / 2, 1 / 2),
    ("nca", {}, 2 * LN2, -1 / 4, 1 / 4),
    ("cal_dpo", {}, LN2 + 250000, -1 / 2 - 500, 1 / 2 + 500),
)


def slopes(per_pair: Tensor, side: Side) -> Tensor:
    return torch.autograd.grad(per_pair.sum(), side.policy, retain_graph=True)[0]


@pytest.mark.parametrize(
    ("name", "given", "value", "chosen", "rejected"), KNOWN, ids=[f"{name} {given}" for name, given, *_ in KNOWN]
)
def test_value_and_slopes_are_known(
    name: str, given: dict[str, Any], value: float, chosen: float, rejected: float
) -> None:
    loss = load_preset(name, **given)
    batch = random_pairs(0, references=max(1, loss.needs.references), at_reference=True)
    assert batch.rejected is not None
    per_pair = loss(batch).per_pair
    assert per_pair.tolist() == pytest.approx([value] * len(per_pair), rel=1e-12)
    for side, slope in ((batch.chosen, chosen), (batch.rejected, rejected)):
        expected = loss.composition.beta * slope * side.mask.double()
        torch.testing.assert_close(slopes(per_pair, side), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["d2po_decay", "ld_dpo", "tis_dpo", "bmc", "sampo", "mapo", "mallows_theta", "mallows_phi"]
)
def test_weights_and_dispersion_leave_ln_2(name: str) -> None:
    per_pair = load_preset(name)(random_pairs(1, at_reference=True)).per_pair
    assert per_pair.tolist() == pytest.approx([LN2] * len(per_pair), rel=1e-12)


@pytest.mark.parametrize("name", ["d2po_decay", "mallows_theta", "wpo", "bmc", "mapo", "tis_dpo", "dpo_sft"])
def test_the_first_step_raises_chosen_tokens_and_lowers_rejected_ones(name: str) -> None:
    batch = random_pairs(2, at_reference=True)
    per_pair = load_preset(name)(batch).per_pair
    assert batch.rejected is not None
    assert (slopes(per_pair, batch.chosen)[batch.chosen.mask] < 0).all()
    assert (slopes(per_pair, batch.rejected)[batch.rejected.mask] > 0).all()


def test_kto_and_bco_of_marked_responses() -> None:
    batch = random_unpaired(3, at_reference=True)
    sign = torch.where(batch.desirable, -1.0, 1.0).double().unsqueeze(1) * batch.responses.mask
    for name, value, slope in (("kto", 1 / 2, 1 / 4), ("bco", LN2, 1 / 2)):
        loss = load_preset(name)
        per_pair = loss(batch).per_pair
        assert per_pair.tolist() == pytest.approx([value] * len(per_pair), rel=1e-12)
        torch.testing.assert_close(slopes(per_pair, batch.responses), loss.composition.beta * slope * sign)


def test_lists_begin_with_equal_shares() -> None:
    batch = random_groups(4, responses=4, at_reference=True)
    wanted = torch.softmax(batch.rewards, dim=1)
    cross_entropy = torch.full((len(wanted),), math.log(4), dtype=torch.float64)
    divergence = (torch.log(torch.tensor(0.25)) - wanted.log()).mean(1)
    known = {
        "infonca": cross_entropy,
        "rpo_list_bwd": cross_entropy,
        "rpo_list_fwd": divergence,
        "nca_list": 2 * LN2 + 0 * divergence,
    }
    for name, expected in known.items():
        torch.testing.assert_close(load_preset(name)(batch).per_pair, expected, rtol=1e-7, atol=1e-9)


def test_r_dpo_begins_with_a_bonus_for_the_shorter_response() -> None:
    batch = random_pairs(5, at_reference=True)
    assert batch.rejected is not None
    longer = (batch.chosen.mask.sum(1) - batch.rejected.mask.sum(1)).double()
    expected = torch.log(1 + torch.exp(-0.3 * longer))
    torch.testing.assert_close(load_preset("r_dpo", alpha=0.3)(batch).per_pair, expected)


def test_sppo_begins_with_the_wins_alone() -> None:
    batch: PairBatch = replace(random_pairs(6, at_reference=True), win_probability_rejected=None)
    assert batch.win_probability is not None
    expected = 2 * ((batch.win_probability - 0.5) / 0.001) ** 2
    torch.testing.assert_close(load_preset("sppo")(batch).per_pair, expected)


def test_alpha_dpo_begins_as_simpo() -> None:
    batch = random_pairs(7, at_reference=True)
    ours, theirs = load_preset("alpha_dpo", gamma=0.4)(batch), load_preset("simpo", gamma=1.0)(batch)
    torch.testing.assert_close(ours.per_pair, theirs.per_pair)
