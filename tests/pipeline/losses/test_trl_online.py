"""Presets on pairs that a reward ranks, against TRL's online DPO trainer: its own training step, in float64."""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import import_utils
from trl.import_utils import TRLExperimentalWarning

from pipeline.losses import PairBatch, load_preset
from tests.support.loss_batches import assert_same, random_pairs
from tests.support.places import CONFIGS
from tests.support.trl_inputs import (
    GivenModel,
    Settings,
    bare_trainer,
    loss_types_of,
    one_process,
    policy_logits,
    reference_logits,
    sides_of,
    stacked,
)

with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    # Nothing is generated here, and loading vLLM takes longer than all tests of this folder.
    patch.setattr(import_utils, "is_vllm_available", lambda *_, **__: False)
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

PRESETS = CONFIGS / "loss"


def trl_mean(batch: PairBatch, rejected_first: Tensor, **settings: object) -> Tensor:
    """The loss of a step that has sampled the responses of ``batch``, in the order that ``rejected_first`` says.

    Which of two is the chosen one the trainer finds by their rewards.
    """
    sides, pairs = sides_of(batch), len(rejected_first)
    chosen, rejected = torch.arange(2 * pairs).chunk(2)
    order = torch.cat([torch.where(rejected_first, rejected, chosen), torch.where(rejected_first, chosen, rejected)])
    rewards = torch.cat([torch.ones(pairs), torch.zeros(pairs)])[order]
    mask = stacked(sides, lambda side: side.mask.long()).long()[order]
    model = GivenModel(logits=policy_logits(sides)[order])
    prompts = torch.zeros_like(mask[:, :1])
    backward: list[Tensor] = []
    trainer = bare_trainer(
        OnlineDPOTrainer,
        OnlineDPOConfig,
        model=model,
        ref_model=GivenModel(logits=reference_logits(sides)[order]),
        _generate=lambda *_: (prompts, torch.ones_like(prompts), torch.zeros_like(mask), mask, None),
        _calculate_rewards_from_functions=lambda **_: rewards,
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        eos_token_ids=[1],
        reward_funcs=["given"],
        stats=defaultdict(list),
        accelerator=one_process(backward=backward.append),
        n_gpu=1,
        _beta=0.1,
        **settings,
    )
    trainer.training_step(model, {"prompt": ["?"] * pairs})
    return backward[0]


CASES: Mapping[str, tuple[Settings, str]] = {"sigmoid": ({}, "dpo"), "ipo": ({"loss_type": "ipo"}, "ipo")}


@pytest.mark.parametrize("case", CASES)
def test_trl_s_step_has_the_same_loss(case: str) -> None:
    settings, preset = CASES[case]
    batch = random_pairs(seed=21)
    theirs = trl_mean(batch, torch.tensor([True, False, False, True, True, False]), **settings)
    assert_same(load_preset(preset)(batch).per_pair.mean()[None], theirs[None], batch)


def test_trl_s_two_trainers_differ_in_ipo_and_the_preset_says_so() -> None:
    batch = random_pairs(seed=21)
    theirs = trl_mean(batch, torch.zeros(6, dtype=torch.bool), loss_type="ipo")
    assert (load_preset("ipo", aggregate="mean")(batch).per_pair.mean() - theirs).abs() > 0.1
    assert "online trainer sums" in (PRESETS / "ipo.yaml").read_text()


def test_every_loss_of_the_trainer_is_here() -> None:
    assert set(CASES) == loss_types_of(OnlineDPOTrainer.training_step)
