"""Losses with several parts, on one pair of one-token responses, against values worked out with a pocket calculator."""

import pytest
import torch
from torch import Tensor

from pipeline.losses import PairBatch, Side, load_preset


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def token(policy: float, *references: float) -> Side:
    known = numbers(*references).view(-1, 1, 1)
    return Side(policy=numbers(policy).view(1, 1), mask=torch.ones(1, 1, dtype=torch.bool), reference=known)


def test_mrpo_weighs_each_reference_by_its_own_confidence_within_the_trust_region() -> None:
    batch = PairBatch(chosen=token(-1.0, -2.0, -2.1), rejected=token(-2.0, -3.0, -4.0))
    # Confidences |-2 + 3| = 1 and |-2.1 + 4| = 1.9: weights 0.344828 and 0.655172.
    # Mean log-probs -2.05 and -3.5 divide the clip of 0.1 into 0.036937 and 0.063063, so the second reference may go
    # down to -2.073874 and -3.189189, where it is put.
    # log ζ_w = -log(0.344828 e^2 + 0.655172 e^2.073874) = -2.049012, log ζ_l = -log(... e^3, e^3.189189) = -3.127911.
    # z = 0.1 (1 - 1.078899) = -0.0078899, log(1 + e^0.0078899) = 0.697100.
    assert load_preset("mrpo")(batch).per_pair.item() == pytest.approx(0.697100, abs=2e-6)
    # The authors' code swaps the weights: log ζ -2.026095 and -3.069355, z = -0.004326, and 0.695312.
    swapped = load_preset("mrpo", prior={"kind": "harmonic", "weights": [0.655172, 0.344828], "clip": 0.1})
    assert swapped(batch).per_pair.item() == pytest.approx(0.695312, abs=2e-6)


def test_hpo_adds_the_weighted_likelihood_and_the_values_fit_to_kto() -> None:
    batch = PairBatch(
        chosen=token(-1.0, -1.5),
        rejected=token(-2.0, -1.7),
        reward_chosen=numbers(1.0),
        reward_rejected=numbers(-1.0),
        value=numbers(0.2),
    )
    # KTO: h = 0.5 and -0.3, z0 = max(0, -0.3) = 0 and 0.5: (1 - σ(0.05)) + (1 - σ(0.08)) = 0.487503 + 0.480011.
    # Likelihood: advantages 0.8 and -1.2, weights 2.225541 and 0.301194: 0.1 · ½ (2.225541 + 0.301194 · 2) = 0.141396.
    # Fit of the value: ½ · ½ (0.64 + 1.44) = 0.52.
    assert load_preset("hpo")(batch).per_pair.item() == pytest.approx(1.628910, abs=2e-6)


def test_running_moments_of_alpha_dpo_start_at_the_first_batchs_own() -> None:
    loss = load_preset("alpha_dpo")
    first, second = {"gap": numbers(0.0, 2.0)}, {"gap": numbers(3.0, 3.0)}
    statistics, state = loss.summarise(first, {})
    # The authors' code has 0.1 and 0.141 here: moving averages from 0 of means and unbiased deviations.
    assert (statistics["gap_mean"], statistics["gap_std"]) == (pytest.approx(1.0), pytest.approx(1.0))
    statistics, _ = loss.summarise(second, state)
    # Weights 0.09 and 0.1: mean (0.09 · 1 + 0.1 · 3) / 0.19, mean square (0.09 · 2 + 0.1 · 9) / 0.19.
    assert statistics["gap_mean"] == pytest.approx(2.052632, abs=1e-6)
    assert statistics["gap_std"] == pytest.approx((5.684211 - 2.052632**2) ** 0.5, abs=1e-6)
