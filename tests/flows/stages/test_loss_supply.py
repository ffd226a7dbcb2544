"""What the stages of a round store for losses that need more than pairs, number by number."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training.examples import examples_with_reference
from pipeline.storage.rows import read_groups, read_preference_rows, read_rows
from pipeline.training.batches.examples import Continuation, Example
from pipeline.types import Group, Pair
from tests.support.tiny_model import reference_scores, save_tiny_model
from tests.support.tiny_run import begin, make_job, open_context, sealed_anew, supply, train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("supply"))
    save_tiny_model(folder / "other", seed=5)
    return folder


def prepared(job: Path, root: Path, mode: str, *settings: str) -> Context:
    context = open_context(job, root, mode, *settings)
    begin(context)
    return context


def scores(folder: Path, example: Example, ids: tuple[int, ...]) -> list[float]:
    """Log-probabilities of a response by a plain forward pass."""
    (row,) = reference_scores(folder, [[*example.prompt_ids, *ids]])
    return row[-len(ids) :]


def stored(continuation: Continuation, model: int) -> Any:
    return pytest.approx(list(continuation.references[model]), abs=1e-4)


# ---------------------------------------------------------------- several references


def test_a_mixture_measures_against_the_rounds_reference_first(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=mrpo", f"training.references=[{job / 'other'}]")
    supply(context, 1)
    for example in [*examples_with_reference(context, 1)][:2]:
        for response in example.responses:
            assert scores(job / "model", example, response.ids) == stored(response, 0)
            assert scores(job / "other", example, response.ids) == stored(response, 1)


def test_an_extrapolated_prior_measures_against_the_two_newest_policies(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=apo_accelerated", "training.learning_rate=0.01")
    supply(context, 1)
    first = next(examples_with_reference(context, 1)).responses[0]
    assert first.references[0] == first.references[1]
    run_stage(context, 1, "policy")
    supply(context, 2)
    example = next(examples_with_reference(context, 2))
    response = example.responses[0]
    assert scores(context.policy_path(1), example, response.ids) == stored(response, 0)
    assert scores(job / "model", example, response.ids) == stored(response, 1)
    run_stage(context, 2, "policy")


def test_the_checkpoint_before_the_start_may_be_given(job: Path, tmp_path: Path) -> None:
    settings = ("loss.preset=apo_accelerated", f"training.references=[{job / 'other'}]")
    context = prepared(job, tmp_path, "offline", *settings)
    train(context, 1)
    example = next(examples_with_reference(context, 1))
    assert scores(job / "model", example, example.responses[1].ids) == stored(example.responses[1], 0)
    assert scores(job / "other", example, example.responses[1].ids) == stored(example.responses[1], 1)
    supply(context, 2)
    example = next(examples_with_reference(context, 2))
    assert scores(job / "model", example, example.responses[1].ids) == stored(example.responses[1], 1)


# ---------------------------------------------------------------- more than log-probabilities


def test_dispersions_come_of_the_references_entropy_and_have_mean_one(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=mallows_theta")
    supply(context, 1)
    entropies = [row["entropy"] for row in read_rows(context.run.stage(1, "reference").folder / "reference_0")]
    examples = [*examples_with_reference(context, 1)]
    found = [example.dispersion or 0.0 for example in examples]
    logs = [-math.log(entropy) for entropy in entropies]
    assert found == pytest.approx([value / (sum(logs) / len(logs)) for value in logs])
    assert sum(found) / len(found) == pytest.approx(1.0) and len(set(found)) > 1


def test_a_loss_without_reference_stores_its_entropy_alone(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss={preset: mallows_theta, reference_free: true}")
    train(context, 1)
    row = next(read_rows(context.run.stage(1, "reference").folder / "reference_0"))
    example = next(examples_with_reference(context, 1))
    assert 0 < row["entropy"] < 1 and [c.references for c in example.continuations] == [(), ()]


def test_token_weights_come_of_the_contrast_of_two_models(job: Path, tmp_path: Path) -> None:
    both = f"training.contrastive={{positive: {job / 'model'}, negative: {job / 'other'}}}"
    context = prepared(job, tmp_path, "offline", "loss={preset: tis_dpo, mu: 0.5, low: -0.4, high: 1.0}", both)
    supply(context, 1)
    for example in [*examples_with_reference(context, 1)][:3]:
        for response, sign in zip(example.responses, (1, -1), strict=True):
            good, bad = (scores(job / name, example, response.ids) for name in ("model", "other"))
            gaps = [min(max(p - n, -0.4), 1.0) for p, n in zip(good, bad, strict=True)]
            assert response.weights == pytest.approx([math.exp(sign * 0.5 * gap) for gap in gaps], abs=1e-3)


def test_unpaired_responses_go_with_another_prompts(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=kto", f"pairs.path={job / 'marked.jsonl'}")
    supply(context, 1)
    examples = [*examples_with_reference(context, 1)]
    by_ids = {(e.prompt_ids, e.responses[0].ids) for e in examples}
    for example in examples:
        assert example.mismatched is not None and (example.prompt_ids, example.mismatched.ids) not in by_ids
    # Each response serves once, the good and the bad ones alike.
    given = sorted(example.mismatched.ids for example in examples if example.mismatched is not None)
    assert given == sorted(example.responses[0].ids for example in examples)
    first = examples[0]
    assert first.mismatched is not None
    assert scores(job / "model", first, first.mismatched.ids) == stored(first.mismatched, 0)
    assert [e.desirable for e in examples[:4]] == [True, False, True, False]


@pytest.mark.parametrize("mode", ["offline", "iterative"])
def test_calibration_responses_are_the_references(job: Path, tmp_path: Path, mode: str) -> None:
    context = prepared(job, tmp_path, mode, "loss.preset=xpo")
    asked = supply(context, 1).asked
    assert asked[-1] == (job / "model", context.run.stage(0, "policy").folder)
    run_stage(context, 1, "policy")
    assert supply(context, 2).asked[-1] == (context.run.stage(1, "policy").folder,) * 2
    drawn = {group.prompt_ids: group for group in read_groups(context.run.stage(2, "calibration").folder)}
    for example in [*examples_with_reference(context, 2)][:2]:
        assert example.calibration is not None
        assert (example.calibration.ids,) == tuple(r.token_ids for r in drawn[example.prompt_ids].responses)
        assert scores(context.policy_path(1), example, example.calibration.ids) == stored(example.calibration, 0)
    run_stage(context, 2, "policy")


def test_an_averaged_reference_can_be_sampled_from(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=vpo_online", "training.reference=ema")
    train(context, 1)
    folder = context.run.stage(1, "average").folder
    assert supply(context, 2).asked[-1] == (folder, folder) and (folder / "probe.json").is_file()


# ---------------------------------------------------------------- what rounds train on


def test_a_loss_over_k_responses_trains_on_groups(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path / "iterative", "iterative", "loss.preset=rpo_list_bwd")
    supply(context, 1)
    groups = list(read_preference_rows(context.run.stage(1, "pairs").folder))
    assert {type(group) for group in groups} == {Group} and len(groups) == 8
    (example, *_), (group, *_) = examples_with_reference(context, 1), groups
    assert isinstance(group, Group) and example.kind == "group" and len(example.responses) == 3
    assert [r.reward for r in example.responses] == list(group.scores) and set(group.scores) == {0.0, 1.0}
    given = prepared(job, tmp_path / "offline", "offline", "loss.preset=nca_list", f"pairs.path={job}/groups.jsonl")
    supply(given, 1)
    assert [r.reward for r in next(examples_with_reference(given, 1)).responses] == [0.5, 1.5, 0.0]


def test_groups_become_pairs_for_a_loss_on_pairs(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=rpo_sq", f"pairs.path={job}/groups.jsonl", "rounds=1")
    supply(context, 1)
    pairs = list(read_preference_rows(context.run.stage(1, "pairs").folder))
    assert len(pairs) == 16 and all(isinstance(p, Pair) and p.chosen_score == 1.5 for p in pairs)
    manifest = context.run.stage(1, "pairs").require()
    assert manifest.metrics["kind"] == "pair"


def test_win_probabilities_are_against_all_samples(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "iterative", "loss.preset=sppo")
    supply(context, 1)
    groups = {group.prompt.id: group for group in read_groups(context.run.stage(1, "labels").folder)}
    pairs = list(read_preference_rows(context.run.stage(1, "pairs").folder))
    for pair, example in zip(pairs, examples_with_reference(context, 1), strict=True):
        assert isinstance(pair, Pair)
        rewards = [score or 0.0 for score in groups[pair.prompt.id].scores]
        wins = sum(1 / (1 + math.exp(other - 1.0)) for other in rewards) / 3
        assert example.responses[0].win_probability == pytest.approx(wins) and example.soft_label == 1


def test_supervised_training_reads_the_chosen_response_alone(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss.preset=sft")
    train(context, 1)
    examples = [*examples_with_reference(context, 1)]
    assert {example.kind for example in examples} == {"text"} and not context.run.stage(1, "reference").folder.exists()


# ---------------------------------------------------------------- what goes from round to round


def test_heads_go_from_round_to_round(job: Path, tmp_path: Path) -> None:
    context = prepared(job, tmp_path, "offline", "loss={preset: sparsepo, head_learning_rate: 1e-9}")
    train(context, 1)
    file = context.run.stage(1, "policy").folder / "heads" / "heads.safetensors"
    heads = {name: tensor + 0.25 for name, tensor in load_file(file).items()}
    save_file(heads, file)
    sealed_anew(context, 1, "policy")
    train(context, 2)
    after = load_file(context.run.stage(2, "policy").folder / "heads" / "heads.safetensors")
    assert after.keys() == heads.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, heads[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("reference", ["previous", "fixed"])
def test_an_adapters_base_or_the_reference_itself_gives_the_kl(job: Path, tmp_path: Path, reference: str) -> None:
    settings = ("loss.preset=tdpo1", "training.lora={rank: 4}", f"training.reference={reference}")
    context = prepared(job, tmp_path, "offline", *settings)
    train(context, 1)
    train(context, 2)
