"""Heads and critics in training: that they learn, at what rate, from whose states, and what the next round gets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.losses import Loss, PairBatch
from pipeline.models.token_logps import TokenLogps
from pipeline.models.weights.lora import add_adapter
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from pipeline.training.optimiser import make_optimiser, set_rate
from pipeline.training.train import TrainResult
from tests.support.loss_examples import examples_for, loss_named, settings
from tests.support.tiny_training import dpo, pairs_with_reference, tiny_llama, trained


def made(name: str, **overrides: object) -> AuxiliaryModules:
    return AuxiliaryModules(loss_named(name, **overrides).composition, 32, 2, 32, seed=1)


def fit(model: Any, loss: Loss, examples: list[Example] | None = None, **options: Any) -> TrainResult:
    optimisation = options.pop("settings", settings())
    pairs = examples or examples_for(loss, 8, tiny_llama(seed=1))
    return trained(model, pairs, loss, optimisation, seed=options.pop("seed", 0), **options)


def test_a_loss_declares_its_companions() -> None:
    children = {name: [child for child, _ in made(name).named_children()] for name in ("dpo", "mapo", "mi_dpo", "hpo")}
    assert children == {"dpo": [], "mapo": [], "mi_dpo": ["prior"], "hpo": ["value"]}
    assert [child for child, _ in made("apa_token").named_children()] == ["token_value"]
    assert [child for child, _ in made("sparsepo").named_children()] == ["mask", "kl_mask"]
    assert [child for child, _ in made("sparsepo", masks="common").named_children()] == ["mask"]


def test_masks_have_their_own_weight_decay_and_critics_their_own_rate() -> None:
    own = settings(weight_decay=0.125, learning_rate=0.5)
    (mask, kl_mask) = made("sparsepo", **{"weights.weight_decay": 0.25, "head_learning_rate": 0.5}).groups(own)
    assert (mask.weight_decay, mask.rate, kl_mask.weight_decay) == (0.25, 1.0, 0.25)
    for name in ("mi_dpo", "hpo", "apa_token"):
        (head,) = made(name, head_learning_rate=0.125).groups(own)
        assert (head.weight_decay, head.rate) == (0.125, 0.25)
    assert set(mask.parameters) == {"heads.mask.weight", "heads.mask.bias", "heads.mask.mix"}
    (critics,) = made("ganpo", learning_rate_ratio=0.5).groups(own)
    assert (critics.weight_decay, critics.rate) == (0.125, 0.5)
    assert set(critics.parameters) == set(made("ganpo").named())
    optimiser = make_optimiser([mask, critics], settings())
    set_rate(optimiser, 0.5)
    assert sorted({(group["lr"], group["weight_decay"]) for group in optimiser.param_groups}) == [
        (0.25, 0.0),
        (0.25, 0.125),
        (0.5, 0.0),
        (0.5, 0.25),
    ]


def test_critics_of_states_of_two_widths_are_refused() -> None:
    with pytest.raises(UserError, match="of the policy, 32 wide, with the reference's, 64 wide"):
        AuxiliaryModules(loss_named("ganpo").composition, 32, 2, 64, seed=1)


@pytest.mark.parametrize("name", ["sparsepo", "mi_dpo", "hpo", "apa_token", "ganpo"])
def test_heads_learn_and_the_next_round_goes_on_with_them(name: str, tmp_path: Path) -> None:
    loss, reference = loss_named(name), tiny_llama(seed=1)
    first, second = tmp_path / "first", tmp_path / "second"
    fit(tiny_llama(), loss, reference=reference, heads_to=first)
    started = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1).state_dict()
    learned = load_file(first / "heads.safetensors")
    assert started.keys() == learned.keys()
    assert any(not torch.equal(tensor, started[part]) for part, tensor in learned.items())
    still = settings(learning_rate=1e-30, weight_decay=0.0)
    carried = {"heads_from": first, "heads_to": second}
    # Critics follow the policy's rate, heads have their own.
    resting = loss if name == "ganpo" else loss_named(name, head_learning_rate=1e-30)
    fit(tiny_llama(), resting, reference=reference, settings=still, **carried)
    after = load_file(second / "heads.safetensors")
    moving = ("_u", "_v", "means")
    assert all(torch.equal(t, after[part]) for part, t in learned.items() if not part.endswith(moving))


def test_the_carried_state_of_the_optimiser_holds_theirs_too(tmp_path: Path) -> None:
    loss, options = loss_named("sparsepo"), {"reference": tiny_llama(seed=1)}
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    fit(tiny_llama(), loss, optimiser_to=first, **options)
    fit(tiny_llama(), loss, optimiser_from=first, optimiser_to=second, **options)
    steps = [load_file(file)["heads.mask.weight.step"].item() for file in (first, second)]
    assert steps == [2, 4]


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    reference = tiny_llama(seed=1)
    with pytest.raises(UserError, match=r"heads\.safetensors: cannot read these heads"):
        fit(tiny_llama(), loss_named("sparsepo"), reference=reference, heads_from=tmp_path)
    made("mi_dpo").save(tmp_path)
    with pytest.raises(UserError, match=r"heads of another loss or model \(mask\.\w+ does not fit\)"):
        fit(tiny_llama(), loss_named("sparsepo"), reference=reference, heads_from=tmp_path)
    save_file({**load_file(tmp_path / "heads.safetensors"), "more": torch.zeros(1)}, tmp_path / "heads.safetensors")
    with pytest.raises(UserError, match=r"heads of another loss or model \(more does not fit\)"):
        fit(tiny_llama(), loss_named("mi_dpo"), reference=reference, heads_from=tmp_path)


def test_a_loss_without_heads_neither_reads_nor_writes_any(tmp_path: Path) -> None:
    pairs = pairs_with_reference(tiny_llama(), 4)
    fit(tiny_llama(), dpo(), pairs, heads_from=tmp_path / "absent", heads_to=tmp_path / "heads")
    assert list(tmp_path.iterdir()) == []


def test_critics_keep_their_spectral_norms_while_they_learn(tmp_path: Path) -> None:
    loss, quick = loss_named("ganpo"), settings(epochs=20.0, learning_rate=3e-3, schedule="constant")
    fit(tiny_llama(), loss, reference=tiny_llama(seed=1), settings=quick, heads_to=tmp_path)
    heads = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    heads.load(tmp_path)
    assert heads.critics is not None and heads.critics.started
    for layer in (heads.critics.of_chosen.first, heads.critics.of_chosen.pooled, heads.critics.of_rejected.pooled):
        raw = layer.parametrizations.weight.original
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=0.1)
        assert float(torch.linalg.matrix_norm(raw.detach(), 2)) > 1.2


@pytest.mark.parametrize("name", ["tdpo2", "sparsepo", "ganpo"])
def test_without_a_reference_model_it_is_the_policy_with_its_adapter_off(name: str) -> None:
    loss = loss_named(name)
    examples = examples_for(loss, 8, tiny_llama())
    results = []
    for reference in (None, tiny_llama(dropout=0.3)):
        policy = add_adapter(tiny_llama(dropout=0.3), Lora(rank=2, dropout=0.3), seed=3)
        optimisation = settings(learning_rate=1e-2)
        result = fit(policy, loss, examples, settings=optimisation, reference=reference, starts_at_reference=True)
        results.append([report.loss for report in result.history])
        assert not policy.training
        assert {n for n, p in policy.named_parameters() if p.requires_grad} == {
            n for n, _ in policy.named_parameters() if "lora_" in n
        }
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_a_loss_that_reads_the_reference_model_refuses_to_do_without() -> None:
    with pytest.raises(UserError, match=r"loss tdpo2 reads more of the reference model .* \(kl\); without an adapter"):
        fit(tiny_llama(), loss_named("tdpo2"))


def test_a_reference_model_is_left_as_it_was() -> None:
    reference = tiny_llama(seed=1).train()
    before = {name: t.clone() for name, t in reference.state_dict().items()}
    fit(tiny_llama(), loss_named("tdpo2"), reference=reference)
    assert all(torch.equal(t, before[name]) for name, t in reference.state_dict().items())
    assert all(p.grad is None for p in reference.parameters())


def test_a_penalty_on_masks_lowers_them(tmp_path: Path) -> None:
    means = []
    for penalty in (0.0, 10.0):
        weights = {"kind": "learned", "dropout": 0.0, "l1_ratio": penalty, "l1_kl": penalty, "head_learning_rate": 1e-2}
        loss = dpo(kl=1.0, weights=weights)
        optimisation = settings(epochs=10.0, learning_rate=1e-2)
        fit(tiny_llama(), loss, reference=tiny_llama(seed=1), settings=optimisation, heads_to=tmp_path)
        heads = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
        heads.load(tmp_path)
        assert heads.mask is not None
        hidden = [torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
        means.append(float(heads.mask(hidden).mean().detach()))
    assert means[1] < means[0] - 0.2


def test_values_are_of_the_prompt_and_approach_its_rewards(tmp_path: Path) -> None:
    loss = loss_named("hpo")
    plain = examples_for(loss, 8, tiny_llama(seed=1))
    examples = [
        replace(e, responses=tuple(replace(c, reward=float(i % 2)) for c in e.responses)) for i, e in enumerate(plain)
    ]
    model = tiny_llama()
    fit(model, loss, examples, settings=settings(epochs=60.0, learning_rate=3e-3), heads_to=tmp_path)
    heads = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    heads.load(tmp_path)
    batch = collate(examples, needs=loss.needs)
    with torch.no_grad():
        facts = TokenLogps(model, wants=loss.needs.token_facts)(batch.ids, batch.mask)
        found = heads.pair_facts(batch.loss_batch(facts), facts, batch)
        assert isinstance(found, PairBatch) and found.value is not None
        torch.testing.assert_close(found.value, torch.tensor([0.0, 1.0] * 4), rtol=0, atol=0.2)
        states = model.model(torch.tensor([examples[3].prompt_ids])).last_hidden_state[:, -1]
        assert heads.value is not None
        torch.testing.assert_close(heads.value(states)[0], found.value[3], rtol=0, atol=1e-4)
