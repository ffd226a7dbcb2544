"""``prefloop report``: the page of a run, and of several."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.report.write
from flows.__main__ import app
from flows.report.terminal import _verdict
from flows.report.write import given_settings, run_facts, write_report
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.config.loss.presets import NamedComposition
from pipeline.errors import UserError
from pipeline.storage.atomic import write_text
from tests.support.gates import decided
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context, train


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    job = make_job(tmp_path_factory.mktemp("report"))
    made = open_context(job, tmp_path_factory.mktemp("run"), "iterative", "rounds=1")
    write_text(made.run.config_file, dump_config(made.config))
    begin(made)
    for round_ in (0, 1):
        if round_:
            train(made, round_)
        workers: Any = InventedResponses(job / "model")
        run_stage(made, round_, "evaluation_samples", workers)
        run_stage(made, round_, "evaluation")
    return made


def test_the_page_of_a_run_tells_its_rounds_steps_and_samples(context: Context) -> None:
    found = CliRunner().invoke(app, ["report", str(context.run.root)], catch_exceptions=False)
    page = Path(found.output.strip())
    assert page == context.run.root / "report.html" == write_report(context.run, context.config)
    html = page.read_text()
    titles = re.findall(r"<figcaption><b>(.*?)</b>", html)
    assert {"Reward", "Win rate", "KL", "Reward over KL", "Change of log-probs", "Loss", "Yield", "Time"} <= set(titles)
    (data,) = re.findall(r'id="responses">(.*?)</script>', html, re.S)
    shown = json.loads(data)
    assert shown["places"] == ["round 0", "round 1"] and len(shown["items"]) == shown["held_out"] == 4
    assert '<h2 id="worse">' in html and "of 4 held-out prompts" in html
    assert "rounds: 1" in html and "peak memory GiB" in html


def test_the_page_of_a_real_run_fits_a_mail(context: Context) -> None:
    assert write_report(context.run, context.config).stat().st_size <= 1_000_000


def test_settings_at_their_defaults_are_told_from_given_ones(context: Context) -> None:
    before = given_settings(context.config)
    again = context.config.model_copy(
        update={"loss": NamedComposition.model_validate({"preset": "simpo", "beta": 3.0})}
    )
    assert {"loss.preset", "scorer.kind"} <= before
    assert given_settings(again) - before == {"loss.beta"}
    assert "evaluation.bootstrap" not in before and "loss.margin.kind" not in given_settings(again)


def test_several_runs_go_where_one_says(context: Context, tmp_path: Path) -> None:
    root, output = str(context.run.root), tmp_path / "both.html"
    with pytest.raises(UserError, match=r"--output FILE"):
        CliRunner().invoke(app, ["report", root, root], catch_exceptions=False)
    CliRunner().invoke(app, ["report", root, root, "--output", str(output)], catch_exceptions=False)
    html = output.read_text()
    # The same run twice has nothing to tell them apart but a number.
    assert f"{context.run.root} (1)" in html and f"{context.run.root} (2)" in html
    with pytest.raises(UserError, match=r"--output: .*: cannot write there"):
        CliRunner().invoke(app, ["report", root, "--output", str(tmp_path / "no" / "x.html")], catch_exceptions=False)
    with pytest.raises(UserError, match=r"not a run folder"):
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)


def test_samples_are_cut_and_end_where_the_page_would_grow_too_large(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.report.write, "RESPONSE", 4)
    samples = run_facts(context.run, context.config).samples
    assert len(samples.samples) == 4
    assert all(len(text) <= 6 and text.endswith(" …") for one in samples.samples for text, _ in one.responses.values())
    size = len(samples.samples[0].prompt) + sum(len(text) for text, _ in samples.samples[0].responses.values())
    few = run_facts(context.run, context.config, characters=size).samples
    assert (len(few.samples), few.prompts) == (1, 4)


def test_show_tells_the_story_below_the_table(context: Context) -> None:
    shown = CliRunner().invoke(app, ["show", str(context.run.root)], catch_exceptions=False).output
    story = shown[shown.index("\nrounds\n") :]
    assert "reward" in story and "rejected, nats per token" in story and "8; dropped" not in story
    assert "prompts that got worse" in story and "of 4 held-out prompts" in story
    assert re.search(r"policy +█* .* s, \d+\.\d\d GiB", story)


def test_the_table_tells_each_decision_of_the_gate(context: Context) -> None:
    decided(context.run, 1, "promote", 0, "no rule is broken; round 0 is still the best")
    shown = CliRunner().invoke(app, ["show", str(context.run.root)], catch_exceptions=False).output
    assert "gate, round 1: accepted, not the best: no rule is broken" in shown
    rows = [line.rstrip() for line in shown[: shown.index("gate, round 1")].splitlines()]
    place = next(place for place, row in enumerate(rows) if row.endswith("accepted,"))
    assert any(row.endswith("gate") for row in rows[:3]) and any(row.endswith("–") for row in rows[3:place])
    assert rows[place + 1].endswith("not the") and rows[place + 2].endswith("best")
    shutil.rmtree(context.run.stage(1, "gate").folder)
    colours = (
        _verdict({"round": 2, "gate": {"decision": "promote", "best_round": 1}}).style,
        _verdict({"round": 2, "gate": {"decision": "promote", "best_round": 2}}).style,
    )
    assert colours == ("yellow", "green")


def test_what_is_shown_cannot_drive_the_terminal(context: Context) -> None:
    decided(context.run, 1, "pause", 0, "[bold]odd[/bold]\x1b]0;title\x07\nnext")
    shown = CliRunner().invoke(app, ["show", str(context.run.root)], catch_exceptions=False).output
    assert "pause: [bold]odd[/bold]\ufffd]0;title\ufffd⏎ next" in shown and "\x1b" not in shown
