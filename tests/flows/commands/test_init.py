"""``prefloop init`` writes configs that check accepts; shells complete; mistakes name what is nearest."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.commands.cli.arguments import complete_items, complete_presets
from pipeline.config.files import load_config
from pipeline.config.files.shipped import shipped_names
from pipeline.errors import UserError
from tests.support.places import ROOT
from tests.support.tiny_run import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("init"))


def invoke(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output


@pytest.mark.parametrize(
    ("options", "mode", "scorer"),
    [
        (["--mode", "offline", "--loss", "simpo", "--rounds", "2"], "offline", None),
        (["--mode", "iterative", "--scorer", "match"], "iterative", "match"),
        (["--mode", "iterative", "--scorer", "math"], "iterative", "math"),
    ],
)
def test_what_it_writes_passes_check(
    job: Path, tmp_path: Path, options: list[str], mode: str, scorer: str | None
) -> None:
    folder = tmp_path / "my run: 1"
    given = ["--model", str(job / "model"), "--data", str(job / "pairs.jsonl"), *options]
    assert f"prefloop check {folder / 'config.yaml'}" in invoke("init", str(folder), *given)
    config = load_config([folder / "config.yaml"])
    assert (config.name, config.mode, config.scorer and config.scorer.kind) == ("my-run--1", mode, scorer)
    assert config.loss.preset == ("simpo" if mode == "offline" else "dpo")
    checked = invoke("check", str(folder / "config.yaml"), "held_out.prompts=4", "--faults", str(tmp_path / "faults"))
    assert "config and data are valid" in checked
    assert (folder / "config.yaml").read_text().count(" # ") >= 8
    with pytest.raises(UserError, match="already exists; nothing was changed"):
        invoke("init", str(folder), *given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "ofline"], "--mode: 'ofline': iterative or offline; did you mean 'offline'?"),
        (["--mode", "offline", "--model", "m"], "--data: missing, and there is no terminal to ask on"),
        (["--mode", "offline", "--model", "m", "--data", "d", "--loss", "simp"], "did you mean 'simpo'?"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        invoke("init", str(tmp_path / "x"), *options)
    assert said in str(error.value) and not (tmp_path / "x").exists()


def test_a_reward_model_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's: #1"
    invoke("init", str(tmp_path), "--mode", "iterative", "--model", "m", "--data", "d", "--scorer", str(folder))
    scorer = load_config([tmp_path / "config.yaml"]).scorer
    assert scorer is not None and (scorer.kind, scorer.model_dump()["path"]) == ("classifier", str(folder))


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows", "init", str(tmp_path / "asked")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as child:
        os.write(ours, b"\nmodels/mine\nprompts.jsonl\nlength\n")
        child.communicate(timeout=60)
    config = load_config([tmp_path / "asked" / "config.yaml"])
    assert config.mode == "iterative" and config.scorer is not None and config.scorer.kind == "length"


def test_shells_complete_losses_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_presets("simp") == ["simper", "simpo"]
    assert complete_items("loss.preset=simpo") == ["loss.preset=simpo"]
    (tmp_path / "a.yaml").touch()
    (tmp_path / "b.txt").touch()
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path)
    assert complete_items("") == ["a.yaml", "c/", *shipped_names(), "loss.preset="]
    assert complete_items("qu") == ["quickstart"]
    assert complete_items(f"{tmp_path}/a") == [f"{tmp_path}/a.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_PREFLOOP_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "prefloop rep", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['prefloop']; from flows.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["report"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shwo"], "Did you mean 'show'?"),
        (["run", "--untill", "1:pairs", "x.yaml"], "--until)"),
    ],
)
def test_commands_and_options_are_told_by_their_nearest(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2 and said in found.output
