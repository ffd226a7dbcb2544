"""The gradient of a global batch is what the formula says, however the batch is cut."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pipeline.losses import Loss
from pipeline.models.token_logps import TokenLogps
from pipeline.training.auxiliary.modules import AuxiliaryModules
from pipeline.training.batches.examples import Example
from pipeline.training.batches.micro_batches import Cut, Lots
from pipeline.training.gradients import BatchFacts, Objective, accumulate_gradient
from pipeline.training.reference import reference_logps
from tests.support.loss_examples import examples_for, full_pairs, loss_named
from tests.support.tiny_training import tiny_llama, under_references

# One of each way to be wrong: plain, no reference, divergences, heads, statistics, running ones, lots, groups, critics.
CUT = (
    "dpo",
    "simpo",
    "sampo",
    "tdpo2",
    "wpo",
    "sparsepo",
    "mapo",
    "mi_dpo",
    "beta_dpo",
    "alpha_dpo",
    "kto",
    "bco",
    "hpo",
    "vpo_online",
    "rpo_sqloo",
    "ganpo",
    "mpo",
    "aot",
    "aot_unpaired",
    "apa",
    "apa_token",
)


def objective(loss: Loss, packing: bool = False) -> Objective:
    model = tiny_llama()
    companions = AuxiliaryModules(loss.composition, 32, 2, 32, seed=1)
    with torch.no_grad():
        # Away from their start, where heads add nothing.
        for name, parameter in companions.named_parameters():
            if not name.startswith("critics"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    policy = TokenLogps(model, wants=loss.needs.token_facts, reference_model=tiny_llama(seed=1), share_prompts=packing)
    return Objective(policy, loss, companions, Accelerator())


def gradient(loss: Loss, examples: list[Example], cut: Cut, **options: Any) -> tuple[dict[str, Any], BatchFacts]:
    """By name, of the policy and of what is trained beside it."""
    whole = objective(loss, cut.packing)
    facts = accumulate_gradient(whole, examples, cut, **options)
    named = [*whole.policy.named_parameters(), *whole.modules.named().items()]
    return {name: p.grad for name, p in named if p.grad is not None}, facts


@pytest.mark.parametrize("name", CUT)
def test_neither_micro_batches_nor_packing_change_gradient_or_reports(name: str) -> None:
    loss = loss_named(name)
    examples = examples_for(loss, 7)
    gaps = {"gap_weight": 1.0, "gap_sum": 0.3, "gap_square": 2.34, "gap_mean": 0.3, "gap_std": 1.5}
    running = {**gaps, "reward_sum": 0.4, "reward_count": 3.0} if loss.needs.statistics else {}
    whole, facts = gradient(loss, examples, Cut(7), running=running)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4
    for cut in (Cut(1), Cut(3), Cut(7, packing=True), Cut(7, 60, packing=True)):
        parts, same = gradient(loss, examples, cut, running=running)
        assert parts.keys() == whole.keys()
        for parameter, expected in whole.items():
            torch.testing.assert_close(parts[parameter], expected, rtol=1e-5, atol=1e-6)
        # float32 rounds in proportion to the loss, which is 8 for some; which way depends on the CPU's kernels.
        assert same.loss == pytest.approx(facts.loss, rel=1e-6, abs=1e-6)
        assert same.metrics == pytest.approx(facts.metrics, abs=1e-5)
        assert same.running == pytest.approx(facts.running, rel=1e-6, abs=1e-6)
        assert same.response_tokens == facts.response_tokens
        # Prompts that are shared are read once.
        assert (
            same.tokens < facts.tokens
            if cut.packing and len(examples[0].continuations) > 1
            else same.tokens == facts.tokens
        )
        if facts.module_means is not None and same.module_means is not None:
            torch.testing.assert_close(same.module_means, facts.module_means)


@pytest.mark.parametrize("name", ["dpo", "tdpo2", "vpo_online", "rpo_sqloo"])
def test_the_gradient_is_the_mean_over_examples_of_single_gradients(name: str) -> None:
    loss = loss_named(name)
    examples = examples_for(loss, 3)
    whole, _ = gradient(loss, examples, Cut(3))
    singles = [gradient(loss, [example], Cut(1))[0] for example in examples]
    for parameter, expected in whole.items():
        torch.testing.assert_close(sum(s[parameter] for s in singles) / 3, expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_a_cut_batch_are_those_of_the_whole_of_it() -> None:
    loss = loss_named("beta_dpo", drop=0.0)
    examples = examples_for(loss, 6)
    mean = sum(gradient(loss, [e], Cut(1))[1].metrics["margin"] for e in examples) / 6 / loss.composition.beta
    _, facts = gradient(loss, examples, Cut(2))
    assert facts.running["gap_mean"] == pytest.approx(mean, rel=1e-4)
    before = {"gap_weight": 1.0, "gap_sum": 0.0, "gap_square": 1.0, "gap_mean": 0.0, "gap_std": 1.0}
    _, later = gradient(loss, examples, Cut(2), running=before)
    assert later.running["gap_mean"] == pytest.approx(0.1 * mean, rel=1e-4)


def test_a_pass_ahead_is_made_only_where_statistics_are_read_and_the_batch_is_cut() -> None:
    calls = []
    for name in ("dpo", "beta_dpo"):
        loss = loss_named(name)
        examples = examples_for(loss, 4)
        for size in (4, 2):
            whole = objective(loss)
            seen: list[int] = []
            whole.policy.register_forward_hook(lambda *_, seen=seen: seen.append(1))
            accumulate_gradient(whole, examples, Cut(size))
            calls.append(len(seen))
    assert calls == [1, 2, 1, 4]


def test_the_pass_ahead_has_the_dropout_of_the_pass_itself() -> None:
    loss = loss_named("beta_dpo", drop=0.0)
    examples = examples_for(loss, 4)
    model = tiny_llama(dropout=0.5).train()
    whole = Objective(TokenLogps(model), loss, AuxiliaryModules(loss.composition, 32, 2, 32, seed=1), Accelerator())
    facts = accumulate_gradient(whole, examples, Cut(2))
    # The running mean starts as that of the pass ahead, and so leaves β as it is.
    assert facts.metrics["margin"] == pytest.approx(loss.composition.beta * facts.running["gap_mean"], rel=1e-4)


def test_lots_fall_by_seed_epoch_and_pair() -> None:
    loss = loss_named("sampo")
    examples = examples_for(loss, 5)
    losses = {lots: gradient(loss, examples, Cut(5), lots=Lots(*lots))[1].loss for lots in ((0, 0), (0, 1), (1, 0))}
    assert len(set(losses.values())) == 3
    assert gradient(loss, examples[::-1], Cut(2), lots=Lots(0, 1))[1].loss == pytest.approx(losses[0, 1], abs=1e-6)


def test_critics_start_with_the_means_of_the_whole_first_batch_and_then_wait_for_the_step() -> None:
    loss = loss_named("ganpo")
    examples = examples_for(loss, 5)
    for size in (5, 2):
        whole = objective(loss)
        critics = whole.modules.critics
        assert critics is not None and not critics.started
        facts = accumulate_gradient(whole, examples, Cut(size))
        assert facts.module_means is not None
        torch.testing.assert_close(critics.means, facts.module_means.to(critics.means))
        whole.modules.after_step(facts.module_means + 1)
        torch.testing.assert_close(critics.means, facts.module_means.to(critics.means) + 0.1)


def test_the_policy_feels_the_critics_and_they_do_not_feel_the_loss() -> None:
    pairs = under_references(full_pairs(4), tiny_llama(seed=1))
    apart, theirs = [], []
    for weight in (0.0, 1.0):
        loss = loss_named("ganpo").composition.adversary
        assert loss is not None
        with_weight = loss_named("dpo", adversary=loss.model_copy(update={"weight": weight}).model_dump())
        found, _ = gradient(with_weight, pairs, Cut(4))
        apart.append(found["model.model.layers.0.mlp.up_proj.weight"])
        theirs.append(found["heads.critics.of_chosen.first.bias"])
    plain, _ = gradient(loss_named("dpo"), pairs, Cut(4))
    torch.testing.assert_close(apart[0], plain["model.model.layers.0.mlp.up_proj.weight"], rtol=1e-5, atol=1e-7)
    assert float((apart[1] - apart[0]).abs().max()) > 1e-5
    torch.testing.assert_close(theirs[0], theirs[1])


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize("cut", [Cut(1), Cut(3), Cut(16)], ids=["one", "three", "all"])
def test_only_desirable_responses_count_as_chosen(name: str, cut: Cut) -> None:
    loss = loss_named(name)
    whole = objective(loss)
    # Two good ones in seven, and of those one that ends with an end token.
    examples = [
        replace(example, desirable=index in (1, 4))
        for index, example in enumerate(examples_for(loss, 7, tiny_llama(seed=1)))
    ]
    ended = examples[4].responses[0].ids[-1]
    assert examples[1].responses[0].ids[-1] != ended
    facts = accumulate_gradient(replace(whole, end_ids=frozenset({ended})), examples, cut)
    own, old = (reference_logps(model, examples) for model in (tiny_llama(), tiny_llama(seed=1)))
    means = [(sum(a[0]) / len(a[0]), (sum(a[0]) - sum(b[0])) / len(a[0])) for a, b in zip(own, old, strict=True)]
    for side, rows in (("chosen", (1, 4)), ("rejected", (0, 2, 3, 5, 6))):
        logp, change = (sum(means[row][k] for row in rows) / len(rows) for k in (0, 1))
        assert facts.metrics[f"{side}_logp_per_token"] == pytest.approx(logp, abs=1e-5)
        assert facts.metrics[f"{side}_change_per_token"] == pytest.approx(change, abs=1e-5)
    assert facts.metrics["ending_logp"] == pytest.approx(own[4][0][-1], abs=1e-5)


def test_a_batch_without_desirable_responses_has_no_chosen_ones() -> None:
    loss = loss_named("kto")
    examples = [replace(example, desirable=False) for example in examples_for(loss, 3, tiny_llama(seed=1))]
    metrics = accumulate_gradient(objective(loss), examples, Cut(2)).metrics
    assert {"rejected_logp_per_token", "rejected_change_per_token"} == set(metrics)


def test_only_responses_that_end_count_as_ended() -> None:
    loss = loss_named("dpo")
    examples = examples_for(loss, 6, tiny_llama(seed=1))
    assert "ending_logp" not in accumulate_gradient(objective(loss), examples, Cut(4)).metrics
    whole = replace(objective(loss), end_ids=frozenset({examples[2].responses[0].ids[-1]}))
    ended = [example for example in examples if example.responses[0].ids[-1] in whole.end_ids]
    expected = [pair[0][-1] for pair in reference_logps(tiny_llama(), ended)]
    assert 0 < len(ended) < 6
    found = accumulate_gradient(whole, examples, Cut(4)).metrics["ending_logp"]
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)
