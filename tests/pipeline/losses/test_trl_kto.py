"""Presets of single responses against TRL's KTO trainer: its own code on the same log-probabilities, in float64."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn
from trl import KTOConfig, KTOTrainer

from pipeline.losses import Side, UnpairedBatch, load_preset
from tests.support.loss_batches import assert_same, random_unpaired
from tests.support.trl_inputs import Settings, bare_trainer, loss_types_of, stacked, token_inputs, token_outputs


class TwoPasses(nn.Module):
    """What a model says of the mismatched responses, and of the others."""

    is_gradient_checkpointing = False

    def __init__(self, mismatched: SimpleNamespace, responses: SimpleNamespace, mismatched_ids: Tensor) -> None:
        super().__init__()
        self.mismatched, self.responses, self.mismatched_ids = mismatched, responses, mismatched_ids

    def forward(self, *, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return self.mismatched if input_ids is self.mismatched_ids else self.responses


def trl_mean(batch: UnpairedBatch, **settings: object) -> Tensor:
    """What the trainer makes of the whole batch, 0-d."""
    assert batch.mismatched is not None
    sides, others = (batch.responses,), (batch.mismatched,)
    inputs = token_inputs(sides) | {f"KL_{name}": values for name, values in token_inputs(others).items()}
    inputs["label"] = batch.desirable
    ids = inputs["KL_input_ids"]

    def under_reference(side: tuple[Side, ...]) -> SimpleNamespace:
        return SimpleNamespace(log_probs=stacked(side, lambda s: s.reference))

    policy = TwoPasses(token_outputs(others).outputs, token_outputs(sides).outputs, ids)
    reference = TwoPasses(under_reference(others), under_reference(sides), ids)
    settings = {"loss_type": "kto", "calculate_KL": True} | settings
    trainer = bare_trainer(KTOTrainer, KTOConfig, model=policy, ref_model=reference, **settings)
    loss: Tensor = trainer._compute_loss(policy, inputs, False)
    return loss


def weighted(desirable: float, undesirable: float) -> Settings:
    return {
        "terms": [
            {"coefficient": desirable, "chosen": 1.0, "target": "baseline", "link": "sigmoid"},
            {"coefficient": undesirable, "rejected": -1.0, "target": "baseline", "link": "sigmoid"},
        ]
    }


CASES: Mapping[str, tuple[Settings, str, Settings]] = {
    "kto": ({}, "kto", {}),
    "weights": ({"desirable_weight": 1.33, "undesirable_weight": 0.8}, "kto", weighted(1.33, 0.8)),
    "apo_zero_unpaired": ({"loss_type": "apo_zero_unpaired", "calculate_KL": False}, "apo_zero", {}),
}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_trl_computes_the_same(case: str, seed: int) -> None:
    settings, preset, overrides = CASES[case]
    batch = random_unpaired(seed=seed)
    ours = load_preset(preset, **overrides)(batch).per_pair
    assert_same(ours.mean()[None], trl_mean(batch, **settings)[None], batch)


def test_the_baseline_of_the_batches_is_0_and_above() -> None:
    baselines = []
    for seed in (0, 1, 2, 3):
        kto = load_preset("kto")
        batch = random_unpaired(seed=seed)
        baselines.append(kto.summarise(kto.observe(batch), {})[0]["baseline_chosen"])
    assert min(baselines) == 0
    assert max(baselines) > 0.1


def test_every_loss_of_the_trainer_is_here() -> None:
    assert {settings.get("loss_type", "kto") for settings, _, _ in CASES.values()} == loss_types_of(
        KTOTrainer._compute_loss
    )
