"""A round that diverges: told early, everywhere, and not promoted."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.preflight.check import check_run
from flows.report.facts import TrainingFacts
from flows.report.gather import round_facts
from flows.report.html.page import render_report
from flows.report.markdown import round_page
from flows.report.terminal import print_story
from flows.report.write import run_facts
from flows.run_folder.approvals import goes_on, read_decision
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.stages.training.train import WatchNotes
from pipeline.config.files import dump_config
from pipeline.errors import Paused, UserError
from pipeline.safe_text import markdown
from pipeline.training.watch.advice import alarm_line
from pipeline.training.watch.alarms import Alarm, read_alarms, standing_alarms
from pipeline.training.watch.held_out import HeldOutReport
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train

WORDS = ["the", "dog", "cat", "barn", "mat", "ran", "sat", "on", "to", "old"]


def noise(count: int) -> list[dict[str, str]]:
    """Pairs with nothing to learn: twelve words by lot on either side."""
    draw = random.Random(0)
    return [
        {
            "prompt": f"the {WORDS[1 + n % 4]} {n}",
            "chosen": " ".join(draw.choices(WORDS, k=12)),
            "rejected": " ".join(draw.choices(WORDS, k=12)),
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_job(tmp_path_factory.mktemp("job"))
    (folder / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in noise(48)))
    return folder


def opened(job: Path, root: Path, *settings: str, base: Path | None = None) -> Context:
    usual = ("rounds=1", "loss.preset=ipo", f"pairs.path={job / 'noise.jsonl'}", "held_out.prompts=12")
    context = open_context(job, root, "offline", *usual, "training.epochs=4", *settings, base=base)
    context.run.config_file.write_text(dump_config(context.config))
    return context


@pytest.fixture(scope="module")
def diverged(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """IPO on 36 noisy pairs at the job's usual rate: the loss begins at 25 and goes past 120; its gate has decided."""
    context = opened(job, tmp_path_factory.mktemp("run"), "evaluation.bootstrap=100")
    begin(context)
    workers: Any = InventedResponses(context.policy_path(0))
    for round_ in (0, 1):
        if round_:
            train(context, 1)
        run_stage(context, round_, "evaluation_samples", workers)
        run_stage(context, round_, "evaluation")
    run_stage(context, 1, "gate")
    return context


def facts(context: Context) -> TrainingFacts:
    found = round_facts(context.run, context.config, 1).training
    assert found is not None
    return found


def test_it_is_told_in_the_first_quarter_and_its_round_is_not_promoted(diverged: Context) -> None:
    steps = facts(diverged).steps
    # (h - 5)² at h = 0: what is rounded in h, a few 1e-6 nats, counts ten times.
    assert steps[0].loss == pytest.approx(25, abs=1e-4) and max(step.loss for step in steps) > 120
    assert max(step.grad_norm for step in steps) > 4000
    alarms, kept = read_alarms(diverged.run.stage(1, "policy").folder)
    assert [(alarm.rule, alarm.action) for alarm in alarms] == [("loss", "warn")] and kept == len(steps) == 36
    assert alarms[0].step <= 36 / 4
    made = read_decision(diverged.run, 1)
    assert made is not None and made.decision == "pause", "twelve prompts are too few for any other rule"
    assert made.reasons == (alarm_line(alarms[0], "ipo"),)
    with pytest.raises(Paused, match="alarm loss, step 6 of 36"):
        goes_on(diverged.run, 1)


def test_every_page_tells_of_it(diverged: Context, capsys: pytest.CaptureFixture[str]) -> None:
    told = "round 1: alarm loss, step 6 of 36: the loss stays "
    print_story(diverged.run.root)
    assert told in capsys.readouterr().out
    assert told in render_report([run_facts(diverged.run, diverged.config)])
    page = round_page("noise", 1, round_facts(diverged.run, diverged.config, 1))
    assert f"- {markdown('alarm loss, step 6 of 36: the loss stays')}" in page.partition("## Training")[2]


def test_an_alarm_that_stops_it_keeps_the_policy_that_training_started_from(
    job: Path, diverged: Context, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(diverged.run.root / "round_000", begun / "round_000")
    context = opened(job, tmp_path / "run", "training.alarms.stop=[loss]", base=begun)
    train(context, 1)
    training = facts(context)
    assert len(training.steps) == 6 and training.kept_step == 0
    alarm, ended, kept = training.notices()
    assert alarm.startswith("alarm loss, step 6 of 36") and ended == "training ended at step 6: alarm loss"
    assert kept == "the round's policy has the weights that training started from, not those of step 6"
    start, after = (context.policy_path(round_) / "model.safetensors" for round_ in (0, 1))
    assert all(torch.equal(tensor, load_file(after)[name]) for name, tensor in load_file(start).items())
    assert standing_alarms(context.run.stage(1, "policy").folder)


def test_alarms_before_a_kill_are_told_and_written_with_those_after_it(tmp_path: Path) -> None:
    before, after = Alarm("loss", 6, 36, 3.0, 0.5, "warn"), Alarm("gradient", 20, 36, 12.0, 10.0, "warn")
    notes = WatchNotes(tmp_path, "ipo")
    notes.resume((before,), (HeldOutReport(0, (0.0,), -1.0, None, 1.0), HeldOutReport(8, (1.0,), -1.0, None, 1.0)))
    assert notes.note == ", held out 100%, ALARM: loss"
    notes.alarm(after)
    assert notes.note == ", held out 100%, ALARM: loss, gradient"
    assert read_alarms(tmp_path)[0] == (before, after)


def test_a_run_that_goes_on_after_a_kill_knows_its_alarms(job: Path, diverged: Context, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(diverged.run.root / "round_000", begun / "round_000")
    context = opened(job, tmp_path / "run", "training.checkpoint_every=8", "training.max_steps=16", base=begun)
    said: list[str] = []

    def kill(done: int, total: int, note: str) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(context, report=kill), 1)
    run_stage(replace(context, report=lambda done, total, note: said.append(note)), 1, "policy")
    assert any(note.startswith("loss ") for note in said)
    assert all(note.endswith(", ALARM: loss") for note in said if note.startswith("loss "))


def test_evaluations_need_held_out_pairs(job: Path, tmp_path: Path) -> None:
    asked = "training.evaluate_every=2"
    with pytest.raises(UserError, match="only offline mode has held-out pairs"):
        open_context(job, tmp_path, "iterative", asked)
    with pytest.raises(UserError, match="keep: best: needs evaluations"):
        opened(job, tmp_path, "training.keep=best")
    marked = open_context(job, tmp_path, "offline", asked, "loss.preset=kto", f"pairs.path={job / 'marked.jsonl'}")
    with pytest.raises(UserError, match=r"training\.evaluate_every: no pair is held out"):
        check_run(marked.config)


def test_a_round_is_evaluated_while_it_is_trained_and_keeps_its_best_weights(job: Path, tmp_path: Path) -> None:
    settings = ["training.evaluate_every=2", "training.keep=best", "training.epochs=2", "rounds=1"]
    context = open_context(job, tmp_path, "offline", *settings)
    begin(context)
    train(context, 1)
    training = facts(context)
    assert [line.step for line in training.held_out] == [0, 2, 4, 6, 8]
    assert [line.pairs for line in training.held_out] == [4] * 5
    first, *_, last = training.held_out
    assert (first.accuracy, first.margin) == (0.5, 0.0) and last.accuracy == 1.0 and last.margin > 0.5
    assert training.kept_step == 8 and training.notices() == ()
