"""Presets without a reference against TRL's CPO, ORPO and TPO trainers: their own code on the same logits, float64."""

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from trl.import_utils import TRLExperimentalWarning

from pipeline.losses import PairBatch, Side, load_preset
from tests.support.loss_batches import assert_same, random_pairs
from tests.support.places import CONFIGS
from tests.support.trl_inputs import (
    PROMPT_LOGP,
    GivenModel,
    Settings,
    bare_trainer,
    loss_types_of,
    policy_logits,
    rows_of,
    sides_of,
    stacked,
)

with warnings.catch_warnings():
    # These trainers have been moved there; that they may go from there is what the pin is for.
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.experimental.tpo import TPOConfig, TPOTrainer

PRESETS = CONFIGS / "loss"


def rows_in_order(sides: tuple[Side, ...]) -> dict[str, Tensor]:
    """A prompt token, then the token 0 at every column of a side; what its mask leaves out counts as prompt too."""
    mask = nn.functional.pad(stacked(sides, lambda side: side.mask.long()).long(), (1, 0))
    return {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def old_style(sides: tuple[Side, Side]) -> dict[str, Tensor]:
    """The columns of the CPO and ORPO trainers."""
    rows = rows_in_order(sides)
    labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
    names = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"], "labels": labels}
    return {
        f"{side}_{name}": half
        for name, values in names.items()
        for side, half in zip(("chosen", "rejected"), values.chunk(2), strict=True)
    }


def cpo_mean(batch: PairBatch, **settings: object) -> Tensor:
    trainer = bare_trainer(CPOTrainer, CPOConfig, pad_token_id=0, **settings)
    loss: Tensor = trainer.get_batch_loss_metrics(
        GivenModel(logits=policy_logits(sides_of(batch))), old_style(sides_of(batch))
    )[0]
    return loss


def orpo_mean(batch: PairBatch, **settings: object) -> Tensor:
    trainer = bare_trainer(ORPOTrainer, ORPOConfig, padding_value=0, **settings)
    loss: Tensor = trainer.get_batch_loss_metrics(
        GivenModel(logits=policy_logits(sides_of(batch))), old_style(sides_of(batch))
    )[0]
    return loss


def tpo_mean(batch: PairBatch, **settings: object) -> Tensor:
    """With the chosen response as the gold one too."""
    chosen, rejected = sides_of(batch)
    sides = (chosen, rejected) if settings.get("tpo_alpha") == 0.0 else (chosen, rejected, chosen)
    model = GivenModel(logits=policy_logits(sides))
    trainer = bare_trainer(TPOTrainer, TPOConfig, model=model, **settings)
    loss: Tensor = trainer._compute_loss(model, rows_in_order(sides), False)
    return loss


def dense(seed: int) -> PairBatch:
    """Without gaps before a response: TPO sums what its mask leaves out as well, and ORPO counts it as prompt."""
    lengths = (4, 4, 4)
    batch = random_pairs(seed=seed, chosen=lengths, rejected=lengths)

    def cut(side: Side) -> Side:
        start = side.mask.int().argmax(1)
        columns = start[:, None] + torch.arange(4)
        return Side(
            policy=side.policy.detach().gather(1, columns).requires_grad_(),
            mask=torch.ones(3, 4, dtype=torch.bool),
        )

    chosen, rejected = sides_of(batch)
    return PairBatch(chosen=cut(chosen), rejected=cut(rejected))


SMOOTHED = {"kind": "smoothed", "epsilon": 0.1}
CPO: Mapping[str, tuple[Settings, str, Settings]] = {
    "sigmoid": ({}, "cpo", {}),
    "alpha 0": ({"cpo_alpha": 0.0}, "dpo", {"prior": "none"}),
    "label smoothing": ({"cpo_alpha": 0.0, "label_smoothing": 0.1}, "cdpo", {"prior": "none"}),
    "hinge": ({"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.1}, "slic", {"nll_aggregate": "mean"}),
    "ipo": ({"loss_type": "ipo", "cpo_alpha": 0.0}, "ipo", {"prior": "none", "aggregate": "mean"}),
    "simpo": (
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0.0},
        "simpo",
        {},
    ),
    "simpo, smoothed": (
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0.0, "label_smoothing": 0.1},
        "simpo",
        {"label": SMOOTHED},
    ),
    "cpo-simpo": (
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375, "cpo_alpha": 0.4},
        "simpo",
        {"nll": 0.4},
    ),
    "alphapo": (
        {"loss_type": "simpo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.1, "cpo_alpha": 0.0},
        "alphapo",
        {},
    ),
    "alphapo, alpha < 0": (
        {"loss_type": "simpo", "alpha": -0.5, "beta": 2.5, "simpo_gamma": 0.1, "cpo_alpha": 0.0},
        "alphapo",
        {"shape": {"kind": "alpha", "alpha": -0.5}},
    ),
}


@pytest.mark.parametrize("case", CPO)
def test_trl_s_cpo_trainer_computes_the_same(case: str) -> None:
    settings, preset, overrides = CPO[case]
    batch = random_pairs(seed=11)
    theirs = torch.stack([cpo_mean(row, **settings) for row in rows_of(batch)])
    assert_same(load_preset(preset, **overrides)(batch).per_pair, theirs, batch)


def test_trl_s_cpo_trainer_averages_the_likelihood_over_all_tokens() -> None:
    batch = random_pairs(seed=12)
    theirs = cpo_mean(batch)
    assert (load_preset("cpo")(batch).per_pair.mean() - theirs).abs() > 1e-3
    share = batch.chosen.mask.sum(1) / batch.chosen.mask.sum()
    likelihood = (share * load_preset("sft")(batch).per_pair).sum()
    assert_same((load_preset("cpo", nll=0.0)(batch).per_pair.mean() + likelihood)[None], theirs[None], batch)
    assert "TRL" in (PRESETS / "cpo.yaml").read_text()


# TRL's odds are computed in float32.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


def test_trl_s_odds_ratio_is_ours() -> None:
    batch = random_pairs(seed=13)
    sides = sides_of(batch)
    means = [torch.where(s.mask, s.policy, 0).sum(1) / s.mask.sum(1) for s in sides]
    trainer = bare_trainer(ORPOTrainer, ORPOConfig)
    theirs = -trainer.odds_ratio_loss(*means)[0]
    ours = load_preset("orpo", nll=0.0)(batch).per_pair
    assert_same(ours, theirs.double(), batch, **FLOAT32)


def test_trl_s_orpo_trainer_counts_the_prompt_as_likelihood() -> None:
    batch = dense(seed=13)
    theirs = torch.stack([orpo_mean(row) for row in rows_of(batch)])
    ours = load_preset("orpo")(batch).per_pair
    assert_same(ours, theirs, batch, **FLOAT32)

    # Their first token turned into a prompt token of PROMPT_LOGP.
    chosen, rejected = sides_of(batch)
    longer = PairBatch(chosen=prompted(chosen), rejected=prompted(rejected))
    theirs = torch.stack([orpo_mean(row) for row in rows_of(longer)])
    assert (load_preset("orpo")(longer).per_pair - theirs).abs().max() > 0.01
    of_both = (3 * load_preset("sft")(longer).per_pair - PROMPT_LOGP) / 4
    assert_same(load_preset("orpo", nll=0.0)(longer).per_pair + of_both, theirs, longer, **FLOAT32)
    assert "TRL" in (PRESETS / "orpo.yaml").read_text()


def prompted(side: Side) -> Side:
    mask = side.mask.clone()
    mask[:, 0] = False
    return Side(policy=side.policy, mask=mask)


TPO: Mapping[str, tuple[Settings, str, Settings]] = {
    "sigmoid": ({"loss_type": "sigmoid", "tpo_alpha": 0.5, "beta": 0.1}, "cpo", {"nll": 0.5}),
    "hinge": ({"loss_type": "hinge", "tpo_alpha": 0.1, "beta": 1.0}, "slic", {"nll_aggregate": "mean"}),
    "ipo": ({"loss_type": "ipo", "tpo_alpha": 0.0, "beta": 0.1}, "ipo", {"prior": "none", "aggregate": "mean"}),
    "tpo-l": (
        {"loss_type": "tpo-l", "tpo_alpha": 0.0, "beta": 2.5, "tpo_l_gamma": 1.375},
        "simpo",
        {},
    ),
}


@pytest.mark.parametrize("case", TPO)
def test_trl_s_tpo_trainer_computes_the_same(case: str) -> None:
    settings, preset, overrides = TPO[case]
    batch = dense(seed=14)
    theirs = torch.stack([tpo_mean(row, **settings) for row in rows_of(batch)])
    assert_same(load_preset(preset, **overrides)(batch).per_pair, theirs, batch)


def test_every_loss_of_the_trainers_is_here() -> None:
    for cases, method in ((CPO, CPOTrainer.cpo_loss), (TPO, TPOTrainer._compute_loss)):
        assert {settings.get("loss_type", "sigmoid") for settings, _, _ in cases.values()} == loss_types_of(method)
