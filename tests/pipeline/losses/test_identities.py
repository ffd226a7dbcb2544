"""Losses that are the same loss for some setting: both presets on the same batch, value and gradient, in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.losses import PairBatch, Side, load_preset
from tests.support.loss_batches import assert_same, random_pairs

Given = dict[str, Any]
Change = Callable[[PairBatch], PairBatch]


def sides(batch: PairBatch, change: Callable[[Side], Side]) -> PairBatch:
    assert batch.rejected is not None
    return replace(batch, chosen=change(batch.chosen), rejected=change(batch.rejected))


def masks(ratio: float, kl: float) -> Change:
    def constant(side: Side) -> Side:
        ones = torch.ones_like(side.policy.detach())
        return replace(side, weights=ratio * ones, kl_weights=kl * ones)

    return lambda batch: sides(batch, constant)


def all_references(count: int) -> Change:
    """``count`` references that agree."""

    def repeated(side: Side) -> Side:
        assert side.reference is not None
        return replace(side, reference=side.reference.expand(count, -1, -1))

    return lambda batch: sides(batch, repeated)


def added(prior: float) -> Change:
    return lambda batch: sides(batch, lambda side: replace(side, prior=torch.full_like(side.policy.detach(), prior)))


def priors_of_the_reference(batch: PairBatch) -> PairBatch:
    return sides(batch, lambda side: replace(side, prior=side.reference))


def nothing_edited(batch: PairBatch) -> PairBatch:
    return sides(batch, lambda side: replace(side, edited=torch.zeros_like(side.mask)))


def as_likely_as_samples(batch: PairBatch) -> PairBatch:
    return sides(batch, lambda side: replace(side, collision=side.policy.detach().exp()))


def agreement(d: float) -> Change:
    return lambda batch: replace(batch, dispersion=torch.full((len(batch.chosen.mask),), d, dtype=torch.float64))


def uniform_reference(batch: PairBatch) -> PairBatch:
    return sides(batch, lambda side: replace(side, reference=torch.full_like(side.policy.detach(), -2.0)))


def above_the_reference(batch: PairBatch) -> PairBatch:
    """Every log-ratio is positive."""
    return sides(batch, lambda side: replace(side, reference=side.policy.detach() - 0.3))


def equal_lengths(batch: PairBatch) -> PairBatch:
    return random_pairs(0, chosen=(3, 1, 5), rejected=(3, 1, 5))


def certain_rewards(batch: PairBatch) -> PairBatch:
    ones = torch.ones(len(batch.chosen.mask), dtype=torch.float64)
    return replace(batch, reward_chosen=500 * ones, reward_rejected=-500 * ones)


def unchanged(batch: PairBatch) -> PairBatch:
    return batch


def rewards(gap: float) -> Change:
    def change(batch: PairBatch) -> PairBatch:
        zeros = torch.zeros(len(batch.chosen.mask), dtype=torch.float64)
        return replace(batch, reward_chosen=zeros + gap, reward_rejected=zeros)

    return change


def soft_label(p: float) -> Change:
    return lambda batch: replace(batch, soft_label=torch.full((len(batch.chosen.mask),), p, dtype=torch.float64))


def sure_wins(batch: PairBatch) -> PairBatch:
    ones = torch.ones(len(batch.chosen.mask), dtype=torch.float64)
    return replace(batch, win_probability=ones, win_probability_rejected=0 * ones)


def sure_wins_twice_measured(batch: PairBatch) -> PairBatch:
    return all_references(2)(sure_wins(batch))


L1_OFF = {"l1_ratio": 0.0, "l1_kl": 0.0}
EPSILON = 0.2
SAME: tuple[tuple[str, Given, str, Given, Change], ...] = (
    ("tdpo2", {"kl": 0.0}, "dpo", {}, unchanged),
    ("tdpo1", {"kl": 0.0}, "dpo", {}, unchanged),
    ("sparsepo", L1_OFF, "tdpo1", {}, masks(1, 1)),
    ("sparsepo", {"masks": "independent", **L1_OFF}, "tdpo1", {}, masks(1, 1)),
    ("sparsepo", {"masks": "independent", **L1_OFF}, "dpo", {}, masks(1, 0)),
    ("mapo", {}, "tdpo1", {}, masks(1, 1)),
    ("d2po_decay", {"weights.gamma": 1.0}, "dpo", {}, unchanged),
    ("d2po_decay", {"first": 1, "beta": 0.5}, "d2po_decay", {"first": 0, "beta": 0.5 * 0.98}, unchanged),
    ("sampo", {}, "dpo", {}, equal_lengths),
    ("ld_dpo", {"alpha": 1.0}, "dpo", {}, unchanged),
    ("ld_dpo", {}, "dpo", {}, equal_lengths),
    ("mrpo", {}, "dpo", {}, all_references(2)),
    ("mrpo", {"prior": {"kind": "harmonic", "weights": [0.2, 0.5, 0.3]}}, "dpo", {}, all_references(3)),
    ("mrpo", {"prior": {"kind": "harmonic", "weights": [1.0]}}, "dpo", {}, unchanged),
    ("apo_accelerated", {}, "dpo", {}, all_references(2)),
    ("mi_dpo", {"prior": "reference"}, "dpo", {}, unchanged),
    ("mi_dpo", {"prior": "none", "beta": 0.4}, "cpo", {"beta": 0.4, "nll": 0.0}, unchanged),
    ("mi_dpo", {"prior": {"kind": "length", "alpha": 0.3}}, "r_dpo", {"alpha": 0.03}, unchanged),
    ("mi_dpo", {"prior": {"kind": "mixture", "mean": "arithmetic"}}, "dpo", {}, all_references(2)),
    ("mi_dpo", {"prior": {"kind": "mixture", "mean": "geometric"}}, "dpo", {}, all_references(2)),
    ("mi_dpo", {"prior": "given"}, "dpo", {}, priors_of_the_reference),
    ("mi_dpo", {}, "dpo", {}, added(0.0)),
    ("mallows_theta", {"beta": 0.3}, "dpo", {"beta": 0.3}, agreement(1.0)),
    ("mallows_theta", {"beta": 0.3}, "dpo", {"beta": 0.6}, agreement(2.0)),
    ("rainbowpo", {"prior.weight": 1.0}, "dpo", {"aggregate": "mean", "beta": 10.0}, agreement(1.0)),
    ("dpo_norm", {"beta": 2.0}, "dpo", {"aggregate": "mean", "beta": 2.0}, unchanged),
    ("dpo_norm", {"beta": 2.0}, "simpo", {"beta": 2.0, "gamma": 0.0}, uniform_reference),
    ("rainbowpo", {"prior.weight": 0.0}, "simpo", {"beta": 10.0, "gamma": 1.0}, agreement(1.0)),
    ("focalpo", {"gamma": 0.0}, "dpo", {}, unchanged),
    ("cdpo", {"epsilon": 0.0}, "dpo", {}, unchanged),
    ("cdpo", {"epsilon": EPSILON}, "dpo", {}, soft_label(1 - EPSILON)),
    ("robust_dpo", {"epsilon": 0.0}, "dpo", {}, unchanged),
    ("robust_dpo", {"epsilon": EPSILON}, "dpo", {}, soft_label((1 - EPSILON) / (1 - 2 * EPSILON))),
    ("rpo_bwd", {"beta": 0.1}, "dpo", {}, certain_rewards),
    ("exo", {"epsilon": EPSILON, "beta": 0.2}, "rpo_fwd", {"eta": 2.0}, rewards(math.log(1 / EPSILON - 1) / 2)),
    ("dpo", {"link": "ipo"}, "ipo", {"unscale": 0}, unchanged),
    ("ipo", {"beta": 0.3}, "rpo_sq", {"beta": 0.3, "weight": 1 / 0.3**2}, rewards(0.5)),
    ("ipo", {"beta": 0.3}, "dpo", {"link": "square", "beta": 0.6, "weight": 1 / (4 * 0.3**2)}, unchanged),
    ("inpo", {"beta": 0.3}, "ipo", {"beta": 0.3}, all_references(2)),
    ("egpo", {"beta": 0.3}, "inpo", {"beta": 0.3}, sure_wins_twice_measured),
    ("ipo_soft", {"beta": 0.3}, "ipo", {"beta": 0.3}, sure_wins),
    ("rpo_sqloo", {}, "rpo_sq", {}, unchanged),
    ("rpo_list_fwd", {}, "rpo_fwd", {}, unchanged),
    ("infonca", {"beta": 0.1}, "dpo", {}, certain_rewards),
    ("rpo_list_bwd", {"beta": 0.1}, "dpo", {}, certain_rewards),
    ("rpo_list_bwd", {"beta": 0.4, "eta": 1.7}, "infonca", {"beta": 0.4, "eta": 1.7}, unchanged),
    ("nca_list", {"beta": 0.3}, "nca", {"beta": 0.3}, certain_rewards),
    ("alphapo", {"alpha": 0.0, "gamma": 1.0}, "simpo", {"gamma": 1.0}, unchanged),
    ("alpha_dpo", {"alpha": 0.0, "gamma": 0.4}, "simpo", {"gamma": 0.4 * 2.5}, unchanged),
    ("f_dpo", {"divergence": "reverse_kl"}, "dpo", {}, unchanged),
    ("minordpo", {}, "dpo", {}, above_the_reference),
    ("dpop", {}, "dpo", {}, above_the_reference),
    ("dpop", {"penalty": 0.0}, "dpo", {}, unchanged),
    ("vpo_online", {"alpha": 0.0}, "dpo", {}, unchanged),
    ("vpo_offline", {"alpha": 0.0}, "dpo", {}, unchanged),
    ("xpo", {"alpha": 0.0}, "dpo", {}, unchanged),
    ("xpo", {"alpha": 0.3, "ratio": True}, "vpo_online", {"alpha": 3.0}, unchanged),
    ("r_dpo", {"alpha": 0.0}, "dpo", {}, unchanged),
    ("wpo", {}, "dpo", {"beta": 0.01}, as_likely_as_samples),
    ("tis_dpo", {}, "dpo", {}, masks(1, 1)),
    ("bmc", {}, "dpo", {"beta": 0.01}, nothing_edited),
    ("bmc", {"delta": 0.0}, "dpo", {"beta": 0.01}, unchanged),
    ("beta_dpo", {"alpha": 0.0, "drop": 0.0}, "dpo", {}, unchanged),
    ("d2po_discriminator", {}, "dpo", {"beta": 0.05}, unchanged),
    ("ganpo", {"adversary.weight": 0.0}, "dpo", {}, unchanged),
    ("hpo", {"advantage.weight": 0.0, "value_weight": 0.0}, "kto", {}, unchanged),
    ("dpo_sft", {"nll": 0.0}, "dpo", {}, unchanged),
    ("cpo", {"nll": 0.0}, "dpo", {"reference_free": True}, unchanged),
    (
        "slic",
        {"delta": 2.0, "nll": 0.0},
        "rso_hinge",
        {"reference_free": True, "beta": 0.5, "weight": 2.0},
        unchanged,
    ),
    ("gpo_exponential", {}, "dpo", {"link": "exponential"}, unchanged),
    ("gpo_truncated_quadratic", {}, "dpo", {"link": "truncated_quadratic"}, unchanged),
    ("gpo_savage", {}, "dpo", {"link": "savage"}, unchanged),
)


@pytest.mark.parametrize(
    ("name", "given", "other", "other_given", "change"),
    SAME,
    ids=[f"{name} {given} = {other} {others}" for name, given, other, others, _ in SAME],
)
def test_is_the_same_loss(name: str, given: Given, other: str, other_given: Given, change: Change) -> None:
    batch = change(random_pairs(1))
    ours, theirs = load_preset(name, **given), load_preset(other, **other_given)
    assert_same(ours(batch).per_pair, theirs(batch).per_pair, batch, rtol=1e-9)


# Without the condition under which they are the same, these are not: a guard against a setting that does nothing.
DIFFERENT = [(name, given, other, others) for name, given, other, others, change in SAME if change is not unchanged]


@pytest.mark.parametrize(
    ("name", "given", "other", "other_given"),
    DIFFERENT,
    ids=[f"{name} {given} ≠ {other} {others}" for name, given, other, others in DIFFERENT],
)
def test_is_another_loss_otherwise(name: str, given: Given, other: str, other_given: Given) -> None:
    ours, theirs = load_preset(name, **given), load_preset(other, **other_given)
    batch = random_pairs(1, references=max(1, ours.needs.references))
    assert not torch.allclose(ours(batch).per_pair, theirs(batch).per_pair, rtol=1e-6)
