"""A reference that moves within a round: by its formula, as in TRL, the same after a kill, refused where it cannot."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from trl.trainer.callbacks import SyncRefModelCallback

from pipeline.config import Lora, Optimisation, Training
from pipeline.config.training import ReferenceSync
from pipeline.errors import UserError
from pipeline.losses import load_preset
from pipeline.models.weights.lora import REFERENCE_ADAPTER, add_adapter, reference_on
from pipeline.training.auxiliary.moving_reference import MovingReference
from pipeline.training.batches.micro_batches import Cut
from pipeline.training.reference import reference_logps, with_references
from pipeline.training.train import StepReport
from tests.support.tiny_training import dpo, pairs_with_reference, tiny_llama, trained

SETTINGS = Optimisation(batch_size=4, micro_batch_size=2, learning_rate=3e-3, epochs=2.0, warmup=0, checkpoint_every=2)
SYNC = ReferenceSync(every=3, mix=0.6)


class KilledError(Exception):
    pass


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fit(policy: Any, sync: ReferenceSync | None, reference: Any | None, **options: Any) -> list[StepReport]:
    examples = pairs_with_reference(tiny_llama(), 18)
    result = trained(policy, examples, dpo(), SETTINGS, seed=5, reference=reference, reference_sync=sync, **options)
    return list(result.history)


def test_weights_move_as_the_formula_and_trl_say() -> None:
    policy, reference = tiny_llama(seed=3), tiny_llama(seed=1)
    theirs, before, ours = copy.deepcopy(reference), weights(reference), weights(policy)
    moving = MovingReference(policy, reference, ReferenceSync(every=2, mix=0.6), dpo().needs)
    moving.after_step(1)
    assert all(torch.equal(p, before[name]) for name, p in reference.named_parameters())
    moving.after_step(2)
    SyncRefModelCallback._sync_target_model(policy, theirs, 0.6)
    trl = weights(theirs)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(p, 0.6 * ours[name] + 0.4 * before[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(p, trl[name], rtol=1e-6, atol=1e-7)


def test_every_step_is_measured_against_the_reference_as_it_then_is() -> None:
    """Training by hand with the same steps: from step 4 on, log-ratios are those to the moved weights."""
    reference = tiny_llama()
    history = fit(tiny_llama(), SYNC, reference)
    plain = fit(tiny_llama(), None, None)
    assert [step.loss for step in history[:3]] == [step.loss for step in plain[:3]]
    assert all(one.loss != other.loss for one, other in zip(history[3:], plain[3:], strict=True))
    hard = fit(tiny_llama(), ReferenceSync(every=3, mix=1.0), tiny_llama())
    # Directly after a move with mix 1, policy and reference are one: the loss is ln 2.
    assert hard[3].loss == pytest.approx(0.693147, abs=1e-5) and hard[6].loss == pytest.approx(0.693147, abs=1e-5)
    assert hard[3].chosen_change_per_token == pytest.approx(0, abs=1e-5)
    assert abs(plain[3].loss - 0.693147) > 1e-3


def test_log_probabilities_are_those_of_the_moved_weights() -> None:
    examples = pairs_with_reference(tiny_llama(), 6)
    policy, reference = tiny_llama(seed=3), tiny_llama(seed=1)
    moving = MovingReference(policy, reference, ReferenceSync(every=1, mix=0.3), dpo().needs)
    moving.score_with(torch.nn.Identity(), "float32", True)
    moving.after_step(1)
    expected = tiny_llama(seed=1)
    one, other = weights(tiny_llama(seed=1)), weights(policy)
    expected.load_state_dict({name: 0.7 * one[name] + 0.3 * other[name] for name in one}, strict=False)
    found = moving.scored(examples, Cut(4, packing=True), 1)
    for mine, theirs in zip(found, with_references(examples, [reference_logps(expected, examples)]), strict=True):
        for a, b in zip(mine.continuations, theirs.continuations, strict=True):
            assert a.references[0] == pytest.approx(b.references[0], abs=1e-5)
    assert moving.scored(examples, Cut(4), 0) is examples


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_goes_on_bit_by_bit(lora: bool, tmp_path: Path) -> None:
    sync = ReferenceSync(every=3, mix=1.0) if lora else SYNC

    def parts() -> tuple[Any, Any]:
        policy = add_adapter(tiny_llama(), Lora(rank=2, dropout=0.2), seed=3) if lora else tiny_llama()
        return policy, None if lora else tiny_llama()

    def kill(report: StepReport) -> None:
        if report.step == 8:
            raise KilledError

    whole = parts()
    expected = fit(whole[0], sync, whole[1])
    killed = parts()
    with pytest.raises(KilledError):
        fit(killed[0], sync, killed[1], on_step=kill, checkpoints=tmp_path)
    resumed = parts()
    seen: list[int] = []
    result = fit(*resumed[:1], sync, resumed[1], on_step=lambda r: seen.append(r.step), checkpoints=tmp_path)
    assert seen == [7, 8, 9, 10] and [r.loss for r in result] == [r.loss for r in expected]
    ours, theirs = resumed[0].state_dict(), whole[0].state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if lora:
        assert REFERENCE_ADAPTER not in resumed[0].peft_config
    else:
        assert all(torch.equal(a, b) for a, b in zip(resumed[1].parameters(), whole[1].parameters(), strict=True))


def test_an_adapter_s_reference_becomes_a_copy_of_the_adapter() -> None:
    policy = add_adapter(tiny_llama(), Lora(rank=2, dropout=0.0), seed=3)
    moving = MovingReference(policy, None, ReferenceSync(every=1, mix=1.0), dpo().needs)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    ids = torch.tensor([[3, 4, 5, 6]])
    ours = policy(input_ids=ids).logits
    with reference_on(policy):
        assert not torch.allclose(policy(input_ids=ids).logits, ours, atol=1e-3)
    moving.after_step(1)
    with reference_on(policy):
        torch.testing.assert_close(policy(input_ids=ids).logits, ours)
    assert {name for name, p in policy.named_parameters() if p.requires_grad and REFERENCE_ADAPTER in name} == set()
    moving.release()
    torch.testing.assert_close(policy(input_ids=ids).logits, ours)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("simpo", "reads no references"),
        ("mrpo", "reads 2 references"),
        ("tdpo1", "reads more of the reference than its log-probabilities"),
        ("mallows_theta", "has a dispersion"),
    ],
)
def test_losses_that_need_another_reference_are_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"training.reference_sync: this loss {why}.*; allowed: a loss that reads"):
        MovingReference(tiny_llama(), tiny_llama(), SYNC, load_preset(name).needs)


def test_what_cannot_move_is_refused() -> None:
    with pytest.raises(UserError, match="needs the reference model, besides the policy"):
        MovingReference(tiny_llama(), None, SYNC, dpo().needs)
    with pytest.raises(ValidationError, match=r"reference_sync\.mix: 0\.6, but the mean of two adapters is no adapter"):
        Training.model_validate({"lora": {}, "reference_sync": {"every": 4}})
    assert "reference_sync" not in Training().identity()
