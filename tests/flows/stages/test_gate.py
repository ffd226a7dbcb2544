"""The gate's stage on a tiny model: what it measures and keeps, and what later rounds start from."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from flows.report.findings.in_short import cost_words
from flows.report.gather import round_facts
from flows.run_folder.ancestry import parent, reference_round
from flows.run_folder.approvals import goes_on, read_decision, record_approval
from flows.run_folder.stage_keys import stage_key
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.errors import Paused, UserError
from pipeline.evaluation.gate import Decision
from pipeline.types import Message, Response
from tests.support.gates import decided
from tests.support.judge_server import judge_server, longer_wins
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train

# Four held-out prompts judge.
STRICT = ("gate.min_prompts=2", "gate.roll_back_below=null", "evaluation.bootstrap=100", "evaluation.samples=3")
SECOND = "gate.second={kind: keywords, words: [barn, mat]}"


class Rambling(InventedResponses):
    """Says everything and then goes on."""

    def _group(self, draw: random.Random, count: int) -> tuple[Response, ...]:
        said = []
        for response in super()._group(draw, count):
            text = f"{response.text} and ran to the mat" + " and ran to the mat" * 3
            ids = self._chat.response_ids((Message("user", "the dog"),), text)
            said.append(Response(text, ids, (-1.0,) * len(ids), "stop"))
        return tuple(said)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def start(job: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each mode a run whose round 0 is measured."""
    roots = {}
    for mode in ("iterative", "offline"):
        roots[mode] = tmp_path_factory.mktemp(mode)
        context = open_context(job, roots[mode], mode, *STRICT, "rounds=4")
        begin(context)
        evaluate(context, 0)
    return roots


def evaluate(context: Context, round_: int, sampler: type[InventedResponses] = InventedResponses) -> None:
    workers: Any = sampler(context.policy_path(0))
    run_stage(context, round_, "evaluation_samples", workers)
    run_stage(context, round_, "evaluation")


def gated(context: Context, round_: int, sampler: type[InventedResponses] = Rambling) -> Decision:
    """A whole round, and what its gate decided."""
    train(context, round_)
    evaluate(context, round_, sampler)
    run_stage(context, round_, "gate")
    made = read_decision(context.run, round_)
    assert made is not None
    return made


def opened(job: Path, start: dict[str, Path], root: Path, *settings: str, mode: str = "iterative") -> Context:
    context = open_context(job, root, mode, *STRICT, "rounds=4", *settings, base=start[mode])
    context.run.config_file.write_text(dump_config(context.config))
    return context


def broken(made: Decision) -> list[str]:
    return [rule.name for rule in made.rules if rule.broken]


def digest(context: Context, round_: int) -> str:
    return hashlib.sha256((context.policy_path(round_) / "model.safetensors").read_bytes()).hexdigest()


def test_both_labellers_are_measured_and_a_broken_rule_waits_for_a_person(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    context = opened(job, start, tmp_path, SECOND)
    made = gated(context, 1)
    # Every response repeats itself now, but four prompts cannot tell that 30 % of all do.
    assert made.decision == "pause" and broken(made) == ["length"] and made.measures["repetition_rise"] == 1
    assert made.measures["reward_change_vs_best"] is not None
    for name in ("win_rate_vs_start", "lc_win_rate_vs_start", "win_rate_vs_previous", "reward_gain"):
        for labeller in ("", "second_"):
            low, high = made.measures[f"{labeller}{name}_ci"]  # type: ignore[misc]
            assert low <= made.measures[f"{labeller}{name}"] <= high  # type: ignore[operator]
    assert made.measures["gap"] is not None and made.measures["distinct_ratio"] is not None
    # The tiny sampler says one of two words to each prompt, and both labellers look for these.
    assert made.measures["second_reward_gain"] is not None
    with pytest.raises(Paused, match=r"round 1 waits for a person:\n  responses are .* times as long"):
        goes_on(context.run, 1)


def test_what_a_gate_asks_a_paid_judge_is_in_the_cost_of_its_round(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    with judge_server(longer_wins) as server:
        price = "price: {input: 500, output: 1500}"
        judge = f"gate.second={{kind: judge, server: {{base_url: '{server.url}', model: judge, {price}}}}}"
        context = opened(job, start, tmp_path, judge)
        gated(context, 1)
        asked = len(server.seen)
    facts = round_facts(context.run, context.config, 1)
    labels = {labels.stage: labels for labels in facts.labels}
    assert asked and labels["gate"].calls == asked and labels["gate"].cost > 0
    assert facts.label_cost == labels["gate"].cost and f"for {asked} calls" in cost_words(facts)


def test_what_a_person_promotes_is_what_later_rounds_are_measured_from(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    context = opened(job, start, tmp_path)
    assert gated(context, 1).decision == "pause"
    record_approval(tmp_path, 1, "promote", "ada", "long is fine")
    assert goes_on(context.run, 1) and parent(context.run, context.config, 2) == 1
    # As long as what was promoted: nothing is broken any more.
    second = gated(context, 2)
    assert second.decision == "promote" and second.measures["length_ratio"] == pytest.approx(1, abs=0.2)
    assert (second.measures["base_round"], second.measures["previous_best_round"]) == (1, 1)
    metrics = [
        json.loads((context.run.stage(round_, "evaluation").folder / "metrics.json").read_text()) for round_ in (1, 2)
    ]
    more = metrics[1]["kl_to_start"] - metrics[0]["kl_to_start"]
    assert next(rule.value for rule in second.rules if rule.name == "kl") == pytest.approx(more)
    # The answer is part of what the gate depends on, and a gate under other settings is refused.
    assert stage_key(context.run, context.config, 2, "gate").config["answers"] == {"1": "promote"}
    changed = open_context(job, tmp_path, "iterative", *STRICT, "rounds=4", "gate.max_length=9")
    with pytest.raises(UserError, match=r"round_001/gate was made with other settings"):
        run_stage(changed, 1, "gate")


def test_after_a_roll_back_the_next_round_starts_from_the_best_and_a_resumed_one_does_the_same(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    settings = ("gate.alarm=roll_back", "training.reference=previous", "training.optimiser_state=carried")
    one, other = (opened(job, start, tmp_path / name, *settings) for name in ("one", "other"))
    for context in (one, other):
        made = gated(context, 1)
        assert (made.decision, made.best_round) == ("roll_back", 0)
        assert goes_on(context.run, 1) and parent(context.run, context.config, 2) == 0
        assert reference_round(context.run, context.config, 2) == 0
    gated(one, 2)
    # Every stage anew, as after a kill: nothing but the folder is known.
    for _ in range(2):
        resumed = open_context(job, tmp_path / "other", "iterative", *STRICT, "rounds=4", *settings)
        gated(resumed, 2)
    assert digest(one, 2) == digest(other, 2) != digest(one, 1)
    for name in ("samples", "policy"):
        inputs = one.run.stage(2, name).require().inputs
        assert "round_000/policy" in inputs and "round_001/policy" not in inputs
    assert one.run.stage(2, "reference").require().metrics["reference"] == "round_000/policy"
    assert one.run.stage(2, "evaluation").require().inputs.keys() == {
        "round_002/evaluation_samples",
        "round_000/evaluation",
    }


def test_an_older_reference_is_one_that_the_round_descends_from(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    context = opened(job, start, tmp_path, "training.reference=every_n", "training.reference_every=2")
    for round_, decision, best in ((1, "promote", 1), (2, "roll_back", 1), (3, "promote", 3)):
        decided(context.run, round_, decision, best)
    parents = [parent(context.run, context.config, round_) for round_ in (1, 2, 3, 4)]
    assert parents == [0, 1, 1, 3]
    # Round 2 is due as the reference of round 3, and was rolled back from.
    assert [reference_round(context.run, context.config, round_) for round_ in (1, 2, 3, 4)] == [0, 0, 1, 1]
    ungated = open_context(job, tmp_path, "iterative", "gate=null")
    assert [parent(ungated.run, ungated.config, round_) for round_ in (1, 2, 3)] == [0, 1, 2]


def test_a_person_may_stop_or_go_back_and_what_began_meanwhile_is_kept(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    context = opened(job, start, tmp_path)
    gated(context, 1)
    record_approval(tmp_path, 1, "stop", "ada")
    assert not goes_on(context.run, 1)
    record_approval(tmp_path, 1, "roll_back", "ada")
    assert goes_on(context.run, 1) and parent(context.run, context.config, 2) == 0


def test_a_run_from_before_the_gate_is_judged_but_goes_on_as_it_had(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    context = opened(job, start, tmp_path)
    for round_ in (1, 2):
        train(context, round_)
        evaluate(context, round_, Rambling)
    run_stage(context, 1, "gate")
    made = read_decision(context.run, 1)
    assert made is not None and made.decision == "promote"
    assert made.reasons[-1] == "pause, but round 2 had begun before this round had a gate"
    assert not run_stage(context, 2, "policy")
    run_stage(context, 2, "gate")
    newest = read_decision(context.run, 2)
    assert newest is not None and newest.decision == "pause"


def test_offline_rounds_are_judged_by_held_out_pairs(job: Path, start: dict[str, Path], tmp_path: Path) -> None:
    context = opened(job, start, tmp_path, "training.epochs=6", mode="offline")
    made = gated(context, 1, InventedResponses)
    # Four pairs are too few to be sure that it is the better one.
    assert (made.decision, made.best_round) == ("promote", 0)
    metrics = json.loads((context.run.stage(1, "evaluation").folder / "metrics.json").read_text())
    assert metrics["held_out_accuracy"] == 1
    # From half of the pairs to all of them: as far as half a point a pair can rise.
    assert made.measures["win_rate_vs_best"] == 0.75 and made.measures["win_rate_vs_start"] is None
    assert made.measures["kl"] is not None


def test_without_held_out_pairs_or_labels_the_newest_round_is_promoted(
    job: Path, start: dict[str, Path], tmp_path: Path
) -> None:
    settings = ("loss.preset=kto", f"pairs.path={job / 'marked.jsonl'}")
    context = open_context(job, tmp_path, "offline", *STRICT, *settings)
    begin(context)
    evaluate(context, 0)
    made = gated(context, 1, InventedResponses)
    assert (made.decision, made.best_round) == ("promote", 1)
    assert "nothing tells whether" in made.reasons[0]
