"""What is told of a round is what its stages wrote."""

import json
from typing import Any

import pytest

from flows.report.facts import RoundFacts
from flows.report.gather import evaluated_rounds, round_facts
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.types import Group, Pair
from tests.support.gates import decided
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """An iterative run of one round under a loss that scales by dispersion, evaluated before and after."""
    job = make_job(tmp_path_factory.mktemp("facts"))
    root = tmp_path_factory.mktemp("run")
    made = open_context(job, root, "iterative", "rounds=1", "loss.preset=mallows_theta", "pairing.min_margin=0.5")
    begin(made)
    for round_ in (0, 1):
        if round_:
            train(made, round_)
        workers: Any = InventedResponses(job / "model")
        run_stage(made, round_, "evaluation_samples", workers)
        run_stage(made, round_, "evaluation")
    return made


@pytest.fixture(scope="module")
def facts(context: Context) -> RoundFacts:
    return round_facts(context.run, context.config, 1)


def test_metrics_are_those_of_the_evaluation(context: Context, facts: RoundFacts) -> None:
    written = json.loads((context.run.stage(1, "evaluation").folder / "metrics.json").read_text())
    assert facts.metrics == written and facts.reward == written["reward"]
    assert facts.win_rate_vs_start is not None
    assert [facts.win_rate_vs_start.low, facts.win_rate_vs_start.high] == written["win_rate_vs_start_ci"]
    assert facts.sampler_trainer_gap is not None and evaluated_rounds(context.run) == [0, 1]


def test_yield_and_margins_are_those_of_the_pairs(context: Context, facts: RoundFacts) -> None:
    made = [row for row in read_preference_rows(context.run.stage(1, "pairs").folder) if isinstance(row, Pair)]
    margins = [row.chosen_score - row.rejected_score for row in made]  # type: ignore[operator]
    assert facts.pairs is not None and facts.pairs.rows == len(made) > 0
    assert sum(facts.pairs.margins.counts) == len(margins)
    assert (facts.pairs.margins.edges[0], facts.pairs.margins.edges[-1]) == (min(margins), max(margins))
    # One example has one index, from the reference's entropy.
    assert sum(facts.pairs.dispersion.counts) == len(made) and facts.pairs.dispersion.edges[0] >= 0


def test_training_and_stages(context: Context, facts: RoundFacts) -> None:
    assert facts.training is not None
    assert [step.step for step in facts.training.steps] == [*range(1, facts.training.steps[-1].steps + 1)]
    assert facts.training.metric("first_loss") == facts.training.steps[0].loss
    names = [stage.name for stage in facts.stages]
    assert names == ["samples", "labels", "pairs", "reference", "policy", "evaluation_samples", "evaluation"]
    by_name = {stage.name: stage for stage in facts.stages}
    sampled = list(read_groups(context.run.stage(1, "samples").folder))
    assert by_name["samples"].tokens == sum(len(r.token_ids) for group in sampled for r in group.responses)
    both = [context.run.stage(1, "evaluation_samples").folder / name for name in ("greedy", "sampled")]
    held_out = [group for folder in both for group in read_groups(folder)]
    assert by_name["evaluation_samples"].tokens == sum(len(r.token_ids) for g in held_out for r in g.responses)


def test_stages_tell_the_memory_that_they_held(facts: RoundFacts) -> None:
    memory = {stage.name: stage.memory for stage in facts.stages}
    # Resident memory of a process that has imported torch; the invented sampler has no process.
    assert 50e6 < memory["policy"]["process"] < 100e9 and memory["samples"] == {}


def test_the_change_of_log_probs_begins_at_the_reference(facts: RoundFacts) -> None:
    assert facts.training is not None
    first, *_, last = facts.training.steps
    assert first.chosen_change_per_token == pytest.approx(0, abs=1e-5)
    assert last.chosen_change_per_token is not None and last.rejected_change_per_token is not None
    assert last.chosen_change_per_token > last.rejected_change_per_token


def test_comparisons_meet_on_the_prompt(context: Context, facts: RoundFacts) -> None:
    def greedy(round_: int) -> dict[str, Group]:
        folder = context.run.stage(round_, "evaluation").folder / "greedy"
        return {group.prompt.messages[0].content: group for group in read_groups(folder)}

    before, after = greedy(0), greedy(1)
    assert len(facts.comparisons) == len(after) == 4
    for one in facts.comparisons:
        assert (one.before, one.after) == (before[one.prompt].responses[0].text, after[one.prompt].responses[0].text)
        assert one.after_score == after[one.prompt].scores[0]
    assert len(round_facts(context.run, context.config, 1, comparisons=2).comparisons) == 2


def test_round_0_has_no_pairs_and_nothing_to_compare_with(context: Context) -> None:
    start = round_facts(context.run, context.config, 0)
    assert (start.pairs, start.training, start.comparisons) == (None, None, ())
    assert start.win_rate_vs_start is not None and start.win_rate_vs_start.mean == 0.5


def test_a_gate_s_decision_is_told(context: Context) -> None:
    decided(context.run, 1, "pause", 0, "length grows")
    gate = round_facts(context.run, context.config, 1).gate
    assert gate is not None and (gate.decision, gate.reasons, gate.best_round) == ("pause", ("length grows",), 0)


def test_a_round_that_is_not_there_has_nothing(context: Context) -> None:
    nothing = round_facts(context.run, context.config, 7)
    assert (nothing.metrics, nothing.stages, nothing.reward, nothing.seconds) == ({}, (), None, 0)
