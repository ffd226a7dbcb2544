"""The same tokens through the same Llama, here and in TRL's trainers: loss, and gradient by every parameter.

Log-probabilities, Σ p² and padding are each side's own; both are float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import add_fused_lm_head

from pipeline.losses import Loss, load_preset
from pipeline.models.token_logps import TokenLogps
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from tests.support.tiny_training import VOCABULARY, random_pairs, random_unpaired, tiny_llama, under_references
from tests.support.trl_inputs import Settings, bare_trainer

POLICY, REFERENCE, PAD = 0, 1, 0


def ours(loss: Loss, examples: Sequence[Example]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss, and its gradient by parameter."""
    model, reference = tiny_llama(POLICY), tiny_llama(REFERENCE)
    batch = collate(under_references(examples, reference), needs=loss.needs)
    facts = TokenLogps(model, wants=loss.needs.token_facts, reference_model=reference)(batch.ids, batch.mask)
    return with_gradient(loss(batch.loss_batch(facts)).per_pair.mean(), model)


def theirs(kind: type, config: type, inputs: Mapping[str, Tensor], **settings: object) -> tuple[Any, dict[str, Tensor]]:
    model, reference = tiny_llama(POLICY), tiny_llama(REFERENCE)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"))
    add_fused_lm_head(reference)
    # Both are in evaluation mode; the trainer keeps its counts under what the mode of the policy is.
    model.train()
    trainer = bare_trainer(kind, config, model=model, ref_model=reference, **settings)
    return with_gradient(trainer._compute_loss(model, dict(inputs), False), model)


def with_gradient(loss: Tensor, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert one[1].keys() == other[1].keys()
    assert max(float(slope.abs().max()) for slope in one[1].values()) > 1e-3
    for name, slope in one[1].items():
        torch.testing.assert_close(slope, other[1][name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


def pair_inputs(examples: Sequence[Example]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = DataCollatorForPreference(pad_token_id=PAD)(
        [
            {"prompt_ids": list(e.prompt_ids), "chosen_ids": list(w.ids), "rejected_ids": list(v.ids)}
            for e in examples
            for w, v in [e.responses]
        ]
    )
    return found


PAIRS: Mapping[str, tuple[Settings, str, Settings]] = {
    "dpo": ({}, "dpo", {}),
    "ipo": ({"loss_types": ["ipo"]}, "ipo", {"aggregate": "mean"}),
    "ld_dpo": ({"ld_alpha": 0.5}, "ld_dpo", {}),
    "wpo": ({"use_weighting": True, "beta": 0.01}, "wpo", {"pair_weight_cap": None}),
    "f_dpo": ({"f_divergence_type": "js_divergence"}, "f_dpo", {}),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(case: str) -> None:
    settings, preset, overrides = PAIRS[case]
    examples = random_pairs(5, seed=2)
    settings = {"loss_types": ["sigmoid"], "loss_weights": [1.0], **settings}
    found = theirs(DPOTrainer, DPOConfig, pair_inputs(examples), **settings)
    assert_alike(ours(load_preset(preset, **overrides), examples), found)


@pytest.mark.parametrize("seed", [0, 3])
def test_single_responses(seed: int) -> None:
    examples = random_unpaired(6, seed=seed)
    inputs = DataCollatorForUnpairedPreference(pad_token_id=PAD)(
        [
            {
                "prompt_ids": list(e.prompt_ids),
                "completion_ids": list(e.responses[0].ids),
                "KL_completion_ids": list(e.mismatched.ids),
                "label": e.desirable,
            }
            for e in examples
            if e.mismatched is not None
        ]
    )
    found = theirs(KTOTrainer, KTOConfig, inputs, loss_type="kto", calculate_KL=True)
    assert_alike(ours(load_preset("kto"), examples), found)


def test_the_models_differ() -> None:
    ids = torch.arange(3, VOCABULARY)[None]
    with torch.no_grad():
        logits = [tiny_llama(seed)(input_ids=ids).logits for seed in (POLICY, REFERENCE)]
    assert (logits[0] - logits[1]).abs().max() > 0.1
