"""Presets against the fused losses of Liger Kernel, which share no code with TRL's trainers: same logits, float32.

Its losses take hidden states and the weight of the head; here the hidden states are the logits.
"""

from collections.abc import Mapping

import pytest
import torch
from liger_kernel.chunked_loss import (
    LigerFusedLinearCPOLoss,
    LigerFusedLinearDPOLoss,
    LigerFusedLinearKTOLoss,
    LigerFusedLinearORPOLoss,
    LigerFusedLinearSimPOLoss,
)
from torch import Tensor, nn

from pipeline.losses import PairBatch, Side, UnpairedBatch, load_preset
from tests.support.loss_batches import assert_same, random_pairs, random_unpaired
from tests.support.trl_inputs import Settings, certain, in_float32, logits_of, rows_of, sides_of, stacked

HEAD = torch.eye(2)
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}
SMOOTHED = {"kind": "smoothed", "epsilon": 0.1}


def policy_logits(sides: tuple[Side, ...]) -> Tensor:
    return logits_of(stacked(sides, lambda side: side.policy, filler=-1.0))[:, :-1]


def reference_logits(sides: tuple[Side, ...]) -> Tensor:
    return logits_of(stacked(sides, lambda side: side.reference, filler=-1.0))[:, :-1]


def targets(sides: tuple[Side, ...]) -> Tensor:
    """Token 0 at response tokens, nothing elsewhere."""
    return -100 * (1 - stacked(sides, lambda side: side.mask.long()))


def with_reference(batch: PairBatch, **settings: object) -> Tensor:
    sides = sides_of(batch)
    loss = LigerFusedLinearDPOLoss(compiled=False, **settings)
    found: Tensor = loss(
        HEAD, policy_logits(sides), targets(sides), ref_input=reference_logits(sides), ref_weight=HEAD
    )[0]
    return found


def without_reference(kind: type[nn.Module], batch: PairBatch, **settings: object) -> Tensor:
    sides = sides_of(batch)
    found: Tensor = kind(compiled=False, **settings)(HEAD, policy_logits(sides), targets(sides))[0]
    return found


DPO: Mapping[str, tuple[Settings, str, Settings]] = {
    "sigmoid": ({}, "dpo", {}),
    "sigmoid, mean": ({"average_log_prob": True, "beta": 2.0}, "dpo", {"aggregate": "mean", "beta": 2.0}),
    "hinge": ({"loss_type": "hinge"}, "rso_hinge", {}),
    "exo_pair": ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, "exo", {}),
    "nca_pair": ({"loss_type": "nca_pair", "beta": 0.01}, "nca", {}),
    "robust": ({"loss_type": "robust", "label_smoothing": 0.1}, "robust_dpo", {}),
    "sppo_hard": ({"loss_type": "sppo_hard", "beta": 0.1}, "sppo", {"beta": 0.1}),
    "apo_zero": ({"loss_type": "apo_zero"}, "apo_zero", {}),
    "apo_down": ({"loss_type": "apo_down"}, "apo_down", {}),
    "discopop": ({"loss_type": "discopop", "beta": 0.05}, "discopop", {}),
    "likelihood": ({"compute_nll_loss": True, "alpha": 0.7}, "dpo_sft", {"nll": 0.7}),
}


@pytest.mark.parametrize("case", DPO)
def test_losses_with_a_reference(case: str) -> None:
    settings, preset, overrides = DPO[case]
    batch = in_float32(random_pairs(seed=31))
    theirs = torch.stack([with_reference(row, **settings) for row in rows_of(batch)])
    ours = load_preset(preset, **overrides)(certain(batch)).per_pair
    assert_same(ours, theirs, batch, **FLOAT32)


def test_bco_without_a_running_mean() -> None:
    batch = in_float32(random_pairs(seed=31))
    theirs = torch.stack([with_reference(row, loss_type="bco_pair", beta=0.01) for row in rows_of(batch)])
    assert_same(load_preset("bco")(batch, {"running_mean": 0.0}).per_pair, theirs, batch, **FLOAT32)


WITHOUT: Mapping[str, tuple[type[nn.Module], Settings, str, Settings]] = {
    "cpo": (LigerFusedLinearCPOLoss, {}, "cpo", {}),
    "cpo, smoothed": (LigerFusedLinearCPOLoss, {"label_smoothing": 0.1}, "cpo", {"label": SMOOTHED}),
    "simpo": (LigerFusedLinearSimPOLoss, {"beta": 2.5, "gamma": 1.375, "compute_nll_loss": False}, "simpo", {}),
    # What its module does by default.
    "simpo with likelihood": (LigerFusedLinearSimPOLoss, {"beta": 2.5, "gamma": 1.375}, "simpo", {"nll": 1.0}),
    "orpo": (LigerFusedLinearORPOLoss, {}, "orpo", {}),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_losses_without_a_reference(case: str) -> None:
    kind, settings, preset, overrides = WITHOUT[case]
    batch = in_float32(random_pairs(seed=32))
    theirs = torch.stack([without_reference(kind, row, **settings) for row in rows_of(batch)])
    assert_same(load_preset(preset, **overrides)(batch).per_pair, theirs, batch, **FLOAT32)


def test_kto() -> None:
    drawn = random_unpaired(seed=2)
    responses, mismatched = (
        Side(policy=s.policy.detach().float().requires_grad_(), mask=s.mask, reference=s.reference.float())
        for s in (drawn.responses, drawn.mismatched)
        if s is not None and s.reference is not None
    )
    batch = UnpairedBatch(responses=responses, desirable=drawn.desirable, mismatched=mismatched)
    kto = load_preset("kto")
    baseline = kto.summarise(kto.observe(batch), {})[0]["baseline_chosen"]
    assert baseline > 0.1
    liger = LigerFusedLinearKTOLoss(compiled=False, use_ref_model=True)
    theirs = liger(
        policy_logits((responses,)),
        HEAD,
        targets((responses,)),
        preference_labels=batch.desirable,
        ref_input=reference_logits((responses,)),
        ref_weight=HEAD,
        kl=torch.tensor(baseline),
    )[0]
    assert_same(kto(batch).per_pair.mean()[None], theirs[None], batch, **FLOAT32)


def test_every_loss_of_its_dpo_is_here() -> None:
    named = {settings.get("loss_type", "sigmoid") for settings, _, _ in DPO.values()} | {"bco_pair"}
    assert named == LigerFusedLinearDPOLoss._SUPPORTED_LOSS_TYPES
