"""The training loop: what it computes, and that no cut of the work changes it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline.config import Lora, Optimisation
from pipeline.errors import RunError, UserError
from pipeline.losses import load_preset
from pipeline.models.weights.lora import add_adapter
from pipeline.training.reference import reference_logps
from pipeline.training.train import Example, NonFiniteError, StepReport, TrainResult
from tests.support.loss_examples import examples_for, loss_named, settings
from tests.support.tiny_training import dpo, pairs_with_reference, random_texts, tiny_llama, trained


def fit(model: Any, examples: list[Example], optimisation: Optimisation, **options: Any) -> TrainResult:
    return trained(model, examples, options.pop("loss", dpo()), optimisation, seed=options.pop("seed", 0), **options)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_preferences_are_learned() -> None:
    model = tiny_llama()
    pairs = pairs_with_reference(model, 24)
    before = reference_logps(model, pairs)
    result = fit(model, pairs, settings(epochs=4.0))
    after = reference_logps(model, pairs)
    assert result.metrics["accuracy"] > 0.9
    assert result.metrics["loss"] < 0.5 < result.metrics["first_loss"]
    gained = [[sum(new) - sum(old) for new, old in zip(a, b, strict=True)] for a, b in zip(after, before, strict=True)]
    margins = [chosen - rejected for chosen, rejected in gained]
    assert 0.1 * sum(margins) / len(margins) == pytest.approx(result.metrics["margin"], rel=0.5)


def test_texts_are_learned() -> None:
    model, texts = tiny_llama(), random_texts(16)
    result = fit(model, texts, settings(epochs=10.0), loss=load_preset("sft"))
    assert result.metrics["loss"] < result.metrics["first_loss"] - 1
    assert "margin" not in result.metrics
    assert result.history[0].margin is None


def test_the_first_step_reports_margin_zero_and_ln_2() -> None:
    model = tiny_llama()
    result = fit(model, pairs_with_reference(model, 4), settings(), starts_at_reference=True)
    assert result.history[0].margin == pytest.approx(0, abs=1e-5)
    assert result.history[0].loss == pytest.approx(math.log(2), abs=1e-5)


def test_reports_count_tokens_without_padding() -> None:
    model = tiny_llama()
    pairs = pairs_with_reference(model, 10)
    seen: list[StepReport] = []
    result = fit(model, pairs, settings(packing=False), on_step=seen.append)
    assert tuple(seen) == result.history
    assert [report.step for report in seen] == [1, 2, 3]
    assert {report.steps for report in seen} == {3}
    responses = sum(len(c.ids) for e in pairs for c in e.responses)
    assert result.tokens == responses + 2 * sum(len(e.prompt_ids) for e in pairs)
    assert result.metrics["response_tokens"] == responses
    assert 0 < result.metrics["padding"] < 0.5
    shared = fit(tiny_llama(), pairs, settings())
    assert shared.tokens == responses + sum(len(e.prompt_ids) for e in pairs)
    assert shared.metrics["padding"] == 0


def test_gradient_checkpointing_changes_nothing_and_is_switched_off_again() -> None:
    pairs = pairs_with_reference(tiny_llama(), 4)
    plain, recomputed = tiny_llama(), tiny_llama()
    fit(plain, pairs, settings(epochs=2.0))
    fit(recomputed, pairs, settings(epochs=2.0, gradient_checkpointing=True))
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(recomputed)[name], expected, rtol=0, atol=1e-6)
    assert not recomputed.is_gradient_checkpointing
    assert not recomputed.training


def test_gradient_checkpointing_really_recomputes() -> None:
    calls = []
    for recompute in (False, True):
        model = tiny_llama()
        seen: list[int] = []
        model.model.layers[0].input_layernorm.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        fit(model, pairs_with_reference(tiny_llama(), 4), settings(gradient_checkpointing=recompute))
        calls.append(len(seen))
    assert calls[1] == calls[0] + 1


def test_dropout_of_the_adapter_is_on() -> None:
    pairs = pairs_with_reference(tiny_llama(), 8)
    losses = []
    for dropout in (0.0, 0.5):
        model = add_adapter(tiny_llama(), Lora(rank=2, dropout=dropout), seed=0)
        losses.append(fit(model, pairs, settings(), starts_at_reference=True).history[1].loss)
    assert losses[0] != losses[1]


def test_bfloat16_trains_float32_weights_about_as_float32_does() -> None:
    pairs = pairs_with_reference(tiny_llama(), 8)
    exact, rounded = tiny_llama(), tiny_llama()
    expected = fit(exact, pairs, settings(epochs=3.0))
    result = fit(rounded, pairs, settings(epochs=3.0, dtype="bfloat16"), starts_at_reference=True)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert result.metrics["loss"] == pytest.approx(expected.metrics["loss"], abs=0.05)
    assert result.metrics["loss"] != expected.metrics["loss"]


def test_gradients_are_clipped_before_the_step() -> None:
    model, norms = tiny_llama(), []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    hook = register_optimizer_step_pre_hook(note)
    try:
        result = fit(model, pairs_with_reference(model, 4), settings(max_grad_norm=0.01))
    finally:
        hook.remove()
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert result.history[0].grad_norm > 0.1


def test_weight_decay_leaves_vectors_alone() -> None:
    model = tiny_llama()
    before = weights(model)
    pairs = pairs_with_reference(model, 4)
    fit(model, pairs, settings(learning_rate=1e-12, weight_decay=1e11, max_steps=1, schedule="constant", warmup=0))
    after = weights(model)
    for name, old in before.items():
        torch.testing.assert_close(after[name], old if old.ndim < 2 else 0.9 * old, rtol=1e-4, atol=1e-6)


def test_the_seed_alone_decides() -> None:
    pairs = pairs_with_reference(tiny_llama(), 40)
    first, again, other = tiny_llama(), tiny_llama(), tiny_llama()
    fit(first, pairs, settings())
    torch.rand(3)
    fit(again, pairs, settings())
    fit(other, pairs, settings(), seed=1)
    assert all(torch.equal(weights(first)[name], weights(again)[name]) for name in weights(first))
    assert any(not torch.equal(weights(first)[name], weights(other)[name]) for name in weights(first))


def test_a_reference_that_is_not_the_policy_is_caught_at_the_first_step() -> None:
    pairs = pairs_with_reference(tiny_llama(seed=1), 4)
    with pytest.raises(RunError, match=r"first step: .* differ by .* nats per token .* of example pair\d"):
        fit(tiny_llama(), pairs, settings(), starts_at_reference=True)


def spoiled(pairs: list[Example], position: int) -> list[Example]:
    chosen, rejected = pairs[position].responses
    chosen = replace(chosen, references=((math.nan,) * len(chosen.ids),))
    bad = replace(pairs[position], id="bad", responses=(chosen, rejected))
    return [*pairs[:position], bad, *pairs[position + 1 :]]


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_step_and_example(tmp_path: Path) -> None:
    model = tiny_llama()
    pairs = spoiled(pairs_with_reference(model, 16), 7)
    kept: list[dict[str, torch.Tensor]] = [weights(model)]
    with pytest.raises(NonFiniteError, match=r"step \d of 4: loss nan, gradient norm .*; examples bad$") as caught:
        fit(model, pairs, settings(), checkpoints=tmp_path, on_step=lambda report: kept.append(weights(model)))
    assert caught.value.example_ids == ("bad",)
    assert caught.value.step == len(kept)
    assert isinstance(caught.value, RunError)
    for name, parameter in weights(model).items():
        assert torch.equal(parameter, kept[-1][name])
    (place,) = tmp_path.iterdir()
    assert place.name == f"step_{len(kept) - 1:06d}"


@pytest.mark.parametrize("name", ["beta_dpo", "alpha_dpo", "cal_dpo", "sparsepo", "ganpo"])
def test_an_example_that_spoils_the_whole_batch_is_named_alone(name: str) -> None:
    loss, reference = loss_named(name), tiny_llama(seed=1)
    pairs = spoiled(examples_for(loss, 4, tiny_llama()), 2)
    for size in (1, 4):
        with pytest.raises(NonFiniteError, match=r"step 1 of 1: loss nan, .*; examples bad$"):
            fit(tiny_llama(), pairs, settings(micro_batch_size=size), loss=loss, reference=reference)


def test_a_failed_run_can_be_taken_up_with_the_same_outcome(tmp_path: Path) -> None:
    pairs = spoiled(pairs_with_reference(tiny_llama(), 16), 7)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="examples bad"):
            fit(tiny_llama(), pairs, settings(), checkpoints=tmp_path)


def test_a_run_that_fails_at_its_first_step_fails_the_same_way_again(tmp_path: Path) -> None:
    pairs = spoiled(pairs_with_reference(tiny_llama(), 4), 2)
    said = []
    for _ in range(2):
        with pytest.raises(NonFiniteError) as caught:
            fit(tiny_llama(), pairs, settings(), checkpoints=tmp_path)
        said.append((str(caught.value), caught.value.step, caught.value.example_ids))
        assert [place.name for place in tmp_path.iterdir()] == ["step_000000"]
    assert said[0] == said[1] and said[0][1:] == (1, ("bad",))


def test_examples_are_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match="no examples"):
        fit(tiny_llama(), [], settings())
