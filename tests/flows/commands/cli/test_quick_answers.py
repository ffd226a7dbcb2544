"""What a command need not load, it does not load: each in an interpreter of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.loop.finished import report_if_finished
from flows.run_folder.lease import ENDED_WELL, FLOW_RUN_FILE
from flows.run_folder.stage_table import made_in
from flows.stages.context import Context
from flows.stages.run import run_stage
from tests.support.finished_run import finished
from tests.support.places import ROOT
from tests.support.tiny_run import make_job

# Runs a command, and says on the last line of standard error what it has loaded.
PROGRAM = """
import sys
from flows.__main__ import main
heavy = sys.argv.pop(1).split(",")
try:
    main()
finally:
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules} & {*heavy}), file=sys.stderr)
"""
HEAVY = "accelerate,datasets,pandas,peft,prefect,pyarrow,torch,transformers,vllm"


def loaded(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """Return a command's exit code, its output, and what of ``HEAVY`` it has loaded."""
    command = [sys.executable, "-c", PROGRAM, HEAVY, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "HOME": str(folder)}, capture_output=True, text=True
    )
    said, _, found = done.stderr.rpartition("loaded:")
    return done.returncode, done.stdout + said, found.strip()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def done(job: Path) -> Context:
    context = finished(job, job / "done", "held_out.prompts=4", mode="offline")
    for round_ in range(1, context.config.rounds + 1):
        if made_in(context.config, round_, "gate"):
            run_stage(context, round_, "gate")
    return context


@pytest.mark.parametrize("command", ["check", "run", "plan", "run --dry-run"])
def test_a_wrong_setting_is_refused_before_anything_heavy_is_loaded(command: str, job: Path) -> None:
    code, said, found = loaded(job, *command.split(), "offline.yaml", "loss.bta=1")
    assert code == 2 and "loss.bta" in said and found == ""


def test_a_wrong_rate_is_refused_before_anything_heavy_is_loaded(job: Path) -> None:
    code, said, found = loaded(job, "plan", "offline.yaml", "--rates", "sampling=fast")
    assert code == 2 and "--rates: sampling: fast" in said and found == ""


def test_data_is_checked_with_the_tokenizer_alone(job: Path) -> None:
    code, said, found = loaded(job, "check", "offline.yaml")
    assert code == 0 and "config and data are valid" in said and "<|end|>⟧" in said
    assert found == "transformers"


def test_a_run_is_shown_without_what_has_made_it(done: Context) -> None:
    code, said, found = loaded(done.run.root, "show", ".")
    assert code == 0 and "training, all steps" in said and "pairs" in said
    assert found == "pyarrow"


def test_a_finished_run_needs_neither_server_nor_models(done: Context, job: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in done.run.root.glob("round_*/*/*")}
    code, said, found = loaded(job, "run", "offline.yaml", "--run-dir", done.run.root)
    assert code == 0 and said.count("already complete") == len(done.run.stages())
    assert f"report: {done.run.root / 'report.html'}" in said and (done.run.root / "report.html").is_file()
    assert found == "pyarrow"
    assert {file: file.stat().st_mtime_ns for file in done.run.root.glob("round_*/*/*")} == before


def test_what_may_be_left_to_do_is_left_to_the_flow(done: Context) -> None:
    run, config = done.run, done.config
    assert report_if_finished(run, config, None) is not None
    assert report_if_finished(run, config, "1:pairs") is not None
    assert report_if_finished(run, config.model_copy(update={"rounds": config.rounds + 1}), None) is None
    assert report_if_finished(run, config.model_copy(update={"seed": 1}), None) is None
    assert report_if_finished(run, config.model_copy(update={"trackers": ("wandb",)}), None) is None
    (run.root / FLOW_RUN_FILE).write_text('{"flow_run": "x"}')
    assert report_if_finished(run, config, None) is None
    (run.root / FLOW_RUN_FILE).write_text(json.dumps({"flow_run": "x", ENDED_WELL: True}))
    assert report_if_finished(run, config, None) is not None
    manifest = run.stage(1, "pairs").folder / "manifest.json"
    manifest.rename(run.root / "aside")
    assert report_if_finished(run, config, None) is None
    (run.root / "aside").rename(manifest)
    (run.root / FLOW_RUN_FILE).unlink()
