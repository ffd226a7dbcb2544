"""Runs from Python: settings in every form, and every end that a run can have, as one exception."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.files import load_config
from prefloop import Paused, RunError, UserError, running
from prefloop.running import run
from tests.support.places import ROOT
from tests.support.tiny_run import make_job


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be run, without a run."""
    found: dict[str, Any] = {}

    def carry_out(request: dict[str, Any], *, quiet: bool) -> tuple[str, str]:
        found.update(request, quiet=quiet, config=load_config([Path(request["config"])]))
        return "done", "/runs/x"

    monkeypatch.setattr(running, "_carry_out", carry_out)
    return found


def test_a_config_comes_in_every_form(asked: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("rounds: 7\n")
    done = run(["quickstart", file, {"seed": 5}], rounds=2, training={"learning_rate": 1e-5}, run_dir=tmp_path / "r")
    config = asked["config"]
    assert (config.name, config.seed, config.rounds, config.training.learning_rate) == ("quickstart", 5, 2, 1e-5)
    assert config.training.batch_size == 16
    assert (asked["run_dir"], asked["extend"], asked["until"]) == (str(tmp_path / "r"), False, None)
    assert done.folder == Path("/runs/x")
    expected = config
    run(config, **{"training.learning_rate": 3e-5, "training.batch_size": 8}, prompts={"prompts": 9}, quiet=True)
    training = expected.training.model_copy(update={"learning_rate": 3e-5, "batch_size": 8})
    prompts = expected.prompts.model_copy(update={"prompts": 9})
    assert asked["config"] == expected.model_copy(update={"training": training, "prompts": prompts})
    assert asked["quiet"]


def test_paths_and_tuples_are_settings(asked: dict[str, Any], tmp_path: Path) -> None:
    offline = {"name": "x", "mode": "offline", "policy": {"path": tmp_path}, "pairs": {"path": tmp_path / "p.jsonl"}}
    run(offline, trackers=("tensorboard",))
    assert asked["config"].policy.path == str(tmp_path) and asked["config"].trackers == ("tensorboard",)
    run([offline, {"loss.preset": "simpo", "loss.beta": 3.0}])
    assert (asked["config"].loss.preset, asked["config"].loss.beta) == ("simpo", 3.0)


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        ("quickstart", {"lr": 1}, "settings: lr: no such setting"),
        ("quickstart", {"training": {"learning_rate": "x"}}, r"settings: training.learning_rate: .*\(got 'x'\)"),
        ("quickstar", {}, "did you mean 'quickstart'"),
        ({"mode": "offline"}, {}, "name: must be given"),
        (5, {}, "config: a int; allowed: a file"),
        ("quickstart", {"rounds": 1, "rounds.x": 2}, "'rounds' is also given as a value"),
        ("quickstart", {"prompts": object()}, "prompts"),
    ],
)
def test_a_mistake_is_one_exception(asked: dict[str, Any], config: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run(config, **settings)
    assert asked == {}


def test_every_end_has_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, raised in (("user", UserError), ("run", RunError), ("pause", Paused), ("interrupted", KeyboardInterrupt)):
        monkeypatch.setattr(running, "_carry_out", lambda asked, quiet, kind=kind: (kind, "because"))
        with pytest.raises(raised, match="because"):
            run("quickstart")


def test_a_mistake_in_the_data_is_found_by_the_run_s_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make_job(tmp_path))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl"):
        run("offline.yaml", pairs={"path": "bad.jsonl"}, run_dir="runs/bad")
    assert not (tmp_path / "runs" / "bad").exists()
    assert "Traceback" not in "".join(capfd.readouterr())


CHILD = """
import os, signal, sys
print("first")
print("on standard error", file=sys.stderr)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_is_a_failure_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "killed_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(running, "_CHILD", "killed_child")
    with pytest.raises(RunError, match=r"exit code -9; its last lines:\nfirst\non standard error"):
        run("quickstart")
    assert capsys.readouterr().out == "first\non standard error\n"
    with pytest.raises(RunError):
        run("quickstart", quiet=True)
    assert capsys.readouterr().out == ""


INTERRUPTED = """
import json, os, signal, sys, time
def stop(number, frame):
    with os.fdopen(int(sys.argv[2]), "w") as answer:
        answer.write(json.dumps(["interrupted", "stopped"]))
    open("stopped", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(600)
"""
INTERRUPTING = """
import builtins, os, signal, sys
from prefloop import running
running._CHILD = "waiting_child"
def interrupt(*words, **named):
    os.kill(os.getpid(), signal.SIGINT)
running.print = interrupt
try:
    running.run("quickstart")
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_an_interrupt_ends_the_run_before_it_is_raised(tmp_path: Path) -> None:
    (tmp_path / "waiting_child.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", INTERRUPTING], cwd=tmp_path, env=environment)
    assert done.returncode == 7 and (tmp_path / "stopped").exists()


def test_importing_prefloop_loads_nothing_heavy() -> None:
    code = "import sys, json, prefloop; print(json.dumps([*sys.modules]))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout))
    assert "pipeline.errors" in loaded and not {"torch", "prefect", "pydantic", "pyarrow", "yaml"} & loaded
