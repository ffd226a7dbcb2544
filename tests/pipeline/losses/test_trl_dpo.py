"""Presets against TRL's DPO trainer: its own loss code on the same log-probabilities, pair by pair, in float64."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from pipeline.config.loss.terms import SmoothLabel
from pipeline.losses import PairBatch, load_preset
from tests.support.loss_batches import assert_same, random_pairs
from tests.support.places import CONFIGS
from tests.support.trl_inputs import (
    Settings,
    bare_trainer,
    certain,
    in_float32,
    loss_types_of,
    reference_outputs,
    rows_of,
    sides_of,
    token_inputs,
    token_outputs,
)

PRESETS = CONFIGS / "loss"


def trl_mean(batch: PairBatch, **settings: Any) -> Tensor:
    """What the trainer makes of the whole batch, 0-d."""
    sides = sides_of(batch)
    types = settings.pop("loss_types", ["sigmoid"])
    weights = settings.pop("loss_weights", [1.0] * len(types))
    model = token_outputs(sides)
    trainer = bare_trainer(
        DPOTrainer,
        DPOConfig,
        model=model,
        ref_model=reference_outputs(sides),
        loss_types=types,
        loss_weights=weights,
        **settings,
    )
    loss: Tensor = trainer._compute_loss(model, token_inputs(sides), False)
    return loss


def trl_per_pair(batch: PairBatch, **settings: object) -> Tensor:
    """[B]: each pair as a batch of its own, since the trainer returns a mean only."""
    return torch.stack([trl_mean(row, **settings) for row in rows_of(batch)])


def of_type(*names: str, **settings: object) -> Settings:
    return {"loss_types": list(names), **settings}


TERMS_OF_BCO = [
    {"chosen": 1.0, "target": 0.0, "link": "logistic"},
    {"rejected": -1.0, "target": 0.0, "link": "logistic"},
]
# id: (TRL's settings, preset, its overrides)
SAME: Mapping[str, tuple[Settings, str, Settings]] = {
    "sigmoid": (of_type("sigmoid"), "dpo", {}),
    "hinge": (of_type("hinge"), "rso_hinge", {}),
    "ipo": (of_type("ipo"), "ipo", {"aggregate": "mean"}),
    "sigmoid_norm": (of_type("sigmoid_norm", beta=2.0), "dpo_norm", {"beta": 2.0}),
    "nca_pair": (of_type("nca_pair", beta=0.01), "nca", {}),
    "robust": (of_type("robust", label_smoothing=0.1), "robust_dpo", {}),
    "bco_pair": (of_type("bco_pair", beta=0.01), "bco", {"terms": TERMS_OF_BCO}),
    "sppo_hard": (of_type("sppo_hard", beta=0.001), "sppo", {}),
    "apo_zero": (of_type("apo_zero"), "apo_zero", {}),
    "apo_down": (of_type("apo_down"), "apo_down", {}),
    "discopop": (of_type("discopop", beta=0.05), "discopop", {}),
    "sft": (of_type("sft"), "sft", {}),
    "sigmoid + sft": (of_type("sigmoid", "sft", loss_weights=[1.0, 0.7]), "dpo_sft", {"nll": 0.7}),
    # The mixture of InternVL's training: preference, quality and generation at once.
    "sigmoid + bco_pair + sft": (
        of_type("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 1.0]),
        "mpo",
        {"sum.1.terms": TERMS_OF_BCO},
    ),
    "ld_alpha": (of_type("sigmoid", ld_alpha=0.5), "ld_dpo", {}),
    "ld_alpha 0": (of_type("sigmoid", ld_alpha=0.0), "ld_dpo", {"alpha": 0.0}),
    "use_weighting": (of_type("sigmoid", use_weighting=True, beta=0.01), "wpo", {"pair_weight_cap": None}),
    "reverse_kl": (of_type("sigmoid", f_divergence_type="reverse_kl"), "f_dpo", {"divergence": "reverse_kl"}),
    "forward_kl": (of_type("sigmoid", f_divergence_type="forward_kl"), "f_dpo", {"divergence": "forward_kl"}),
    "js_divergence": (of_type("sigmoid", f_divergence_type="js_divergence"), "f_dpo", {}),
    "js_divergence, hinge": (of_type("hinge", f_divergence_type="js_divergence"), "f_dpo", {"link": "hinge"}),
}


@pytest.mark.parametrize("case", SAME)
def test_trl_computes_the_same(case: str) -> None:
    settings, preset, overrides = SAME[case]
    batch = certain(random_pairs(seed=3))
    ours = load_preset(preset, **overrides)(batch).per_pair
    assert_same(ours, trl_per_pair(batch, **settings), batch)


def test_exo_is_the_same_to_the_digits_of_trl_s_epsilon() -> None:
    # TRL's ε is float32.
    batch = random_pairs(seed=4)
    theirs = trl_per_pair(batch, loss_types=["exo_pair"], label_smoothing=1e-3)
    assert_same(load_preset("exo")(batch).per_pair, theirs, batch, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_trl_s_coefficient_of_the_alpha_divergence_is_one_minus_ours(alpha: float) -> None:
    # TRL's branch knows no float64.
    batch = in_float32(random_pairs(seed=5))
    theirs = trl_per_pair(batch, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - alpha)
    ours = load_preset("f_dpo", divergence="alpha", alpha=alpha)(batch).per_pair
    assert_same(ours, theirs, batch, rtol=1e-5, atol=1e-6)


def test_the_alpha_divergence_of_both_defaults_is_the_same() -> None:
    batch = in_float32(random_pairs(seed=5))
    theirs = trl_per_pair(batch, f_divergence_type="alpha_divergence")
    assert_same(load_preset("f_dpo", divergence="alpha")(batch).per_pair, theirs, batch, rtol=1e-5, atol=1e-6)


def test_the_mean_over_a_batch_is_trl_s() -> None:
    # Stateless losses: what TRL returns is the mean of the pairs' own losses.
    batch = random_pairs(seed=6)
    theirs = trl_mean(batch, loss_types=["apo_down"])
    assert_same(load_preset("apo_down")(batch).per_pair.mean()[None], theirs[None], batch)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_trl_sorts_a_batch_as_we_do(name: str, epsilon: float) -> None:
    batch = random_pairs(seed=6)
    label = {"kind": "smoothed", "epsilon": epsilon}
    theirs = trl_mean(batch, loss_types=[name], label_smoothing=epsilon, beta=0.3)
    ours = load_preset(name, beta=0.3, label=label)(batch).per_pair.mean()
    assert_same(ours[None], theirs[None], batch)
    assert (ours - load_preset("cdpo", beta=0.3, epsilon=epsilon)(batch).per_pair.mean()).abs() > 1e-3


def test_every_loss_of_the_trainer_is_here() -> None:
    settings = [found for found, _, _ in SAME.values()]
    types = {name for found in settings for name in found["loss_types"]}  # type: ignore[attr-defined]
    assert types | {"exo_pair", "aot", "aot_unpaired"} == loss_types_of(DPOTrainer._compute_loss)
    divergences = {found.get("f_divergence_type") for found in settings} - {None}
    assert divergences | {"alpha_divergence"} == loss_types_of(DPOTrainer._compute_loss, "f_divergence_type")


# ---------------------------------------------------------------- differing by definition


def comment_of(preset: str) -> str:
    return (PRESETS / f"{preset}.yaml").read_text()


def test_trl_s_ipo_is_a_mean_over_tokens() -> None:
    batch = random_pairs(seed=7)
    theirs = trl_per_pair(batch, loss_types=["ipo"])
    assert (load_preset("ipo")(batch).per_pair - theirs).abs().max() > 1
    assert "TRL" in comment_of("ipo")


def test_trl_s_wpo_has_no_cap() -> None:
    batch = random_pairs(seed=7)
    likely = [
        replace(side, policy=(0.05 * side.policy.detach()).requires_grad_(), reference=side.policy.detach())
        for side in sides_of(batch)
    ]
    batch = replace(batch, chosen=likely[0], rejected=likely[1])
    theirs = trl_per_pair(batch, use_weighting=True, beta=0.01)
    capped = load_preset("wpo")(batch).per_pair
    assert (theirs > 1.5 * capped).any()
    assert_same(capped, load_preset("dpo", beta=0.01)(batch).per_pair, batch)
    assert_same(load_preset("wpo", pair_weight_cap=None)(batch).per_pair, theirs, batch)
    assert "TRL" in comment_of("wpo")


def test_trl_s_bco_has_no_running_mean() -> None:
    batch = random_pairs(seed=7)
    theirs = trl_per_pair(batch, loss_types=["bco_pair"], beta=0.01)
    bco = load_preset("bco")
    assert_same(bco(batch, {"running_mean": 0.0}).per_pair, theirs, batch)
    assert (bco(batch, {"running_mean": 0.5}).per_pair - theirs).abs().min() > 0.01
    assert "TRL" in comment_of("bco")


@pytest.mark.parametrize("preset", ["sft", "dpo_sft"])
def test_trl_s_likelihood_is_a_mean_over_all_tokens_of_a_batch(preset: str) -> None:
    batch = random_pairs(seed=8)
    types = ["sft"] if preset == "sft" else ["sigmoid", "sft"]
    theirs = trl_mean(batch, loss_types=types)
    ours = load_preset(preset)(batch).per_pair
    assert (ours.mean() - theirs).abs() > 1e-3
    # Counting each response by its length, ours is TRL's.
    share = batch.chosen.mask.sum(1) / batch.chosen.mask.sum()
    likelihood = (share * load_preset("sft")(batch).per_pair).sum()
    rest = 0.0 if preset == "sft" else load_preset("dpo")(batch).per_pair.mean()
    assert_same((likelihood + rest)[None], theirs[None], batch)
    assert "TRL" in comment_of(preset)


def test_trl_s_sigmoid_smooths_no_labels() -> None:
    batch = random_pairs(seed=9)
    theirs = trl_per_pair(batch, label_smoothing=0.1)
    assert_same(load_preset("dpo")(batch).per_pair, theirs, batch)
    assert (load_preset("cdpo")(batch).per_pair - theirs).abs().max() > 1e-3
    assert "TRL" in comment_of("cdpo")


def test_trl_has_no_epsilon_of_its_own_for_exo() -> None:
    assert DPOConfig.__dataclass_fields__["label_smoothing"].default == 0.0
    assert trl_per_pair(random_pairs(seed=4), loss_types=["exo_pair"]).isinf().all()
    assert load_preset("exo").composition.label == SmoothLabel(kind="smoothed", epsilon=1e-3)
    assert "TRL" in comment_of("exo")
