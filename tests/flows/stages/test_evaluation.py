"""Held-out pairs are measured in the terms of the loss that is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.report.findings.prompt_changes import worse_in
from flows.stages.context import Context, policy_chat
from flows.stages.data import held_out_pairs
from flows.stages.measures.held_out import HELD_OUT_PROMPTS, held_out_examples
from flows.stages.run import run_stage
from tests.support.tiny_model import reference_scores
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("evaluation"))


def evaluated(job: Path, root: Path, *settings: str) -> tuple[Context, list[dict[str, Any]]]:
    """A round of training, and the metrics before and after it."""
    context = open_context(job, root, "offline", "rounds=1", *settings)
    begin(context)
    metrics = []
    for round_ in (0, 1):
        if round_:
            train(context, round_)
        workers: Any = InventedResponses(job / "model")
        run_stage(context, round_, "evaluation_samples", workers)
        run_stage(context, round_, "evaluation")
        metrics.append(json.loads((context.run.stage(round_, "evaluation").folder / "metrics.json").read_text()))
    return context, metrics


def held_out_logps(context: Context, round_: int) -> list[list[list[float]]]:
    """By a plain forward pass: [pair][chosen, rejected][token]."""
    policy = context.policy_path(round_)
    found = []
    for example in held_out_examples(context, policy_chat(context.config, policy)):
        sides = [[*example.prompt_ids, *response.ids] for response in example.responses]
        start = len(example.prompt_ids) - 1
        found.append([reference_scores(policy, [side])[0][start:] for side in sides])
    return found


def test_a_loss_with_a_reference_is_measured_from_the_start(job: Path, tmp_path: Path) -> None:
    context, metrics = evaluated(job, tmp_path, "loss.preset=dpo", "loss.beta=0.5")
    gaps = [
        [sum(side) - sum(side_before) for side, side_before in zip(after, before, strict=True)]
        for after, before in zip(held_out_logps(context, 1), held_out_logps(context, 0), strict=True)
    ]
    margins = [0.5 * (chosen - rejected) for chosen, rejected in gaps]
    assert (metrics[0]["held_out_margin"], metrics[0]["held_out_accuracy"]) == (0.0, 0.5)
    assert metrics[1]["held_out_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert metrics[1]["held_out_accuracy"] == sum(margin > 0 for margin in margins) / 4
    told = json.loads((context.run.stage(1, "evaluation").folder / HELD_OUT_PROMPTS).read_text())
    assert {*told.values()} == {pair.prompt.id for pair in held_out_pairs(context)}
    worse = worse_in(context.run, 1)
    assert worse is not None and (worse.measure, worse.prompts) == ("margin", 4)
    assert worse.worse == sum(margin < 0 for margin in margins)


@pytest.mark.parametrize(("preset", "beta", "mean"), [("simpo", 2.5, True), ("cpo", 0.1, False), ("sft", 1.0, True)])
def test_a_loss_without_reference_is_measured_by_its_own_score(
    job: Path, tmp_path: Path, preset: str, beta: float, mean: bool
) -> None:
    context, metrics = evaluated(job, tmp_path, f"loss.preset={preset}")
    for round_ in (0, 1):
        pairs = held_out_logps(context, round_)
        scores = [[sum(side) / (len(side) if mean else 1) for side in pair] for pair in pairs]
        margins = [beta * (chosen - rejected) for chosen, rejected in scores]
        assert metrics[round_]["held_out_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)


def test_of_a_group_the_best_is_compared_with_the_worst(job: Path, tmp_path: Path) -> None:
    settings = ("loss.preset=rpo_list_bwd", f"pairs.path={job / 'groups.jsonl'}", "training.epochs=4")
    context, metrics = evaluated(job, tmp_path, *settings)
    assert len(held_out_logps(context, 1)) == 4
    assert metrics[0]["held_out_accuracy"] == 0.5 and metrics[1]["held_out_margin"] > 0


def test_single_responses_compare_nothing(job: Path, tmp_path: Path) -> None:
    _, metrics = evaluated(job, tmp_path, "loss.preset=kto", f"pairs.path={job / 'marked.jsonl'}")
    assert "held_out_margin" not in metrics[1] and metrics[1]["kl_to_start"] != 0
