"""A sweep: its axes, who goes on after a round, and a whole one that is killed and continued."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.commands.sweep import Axis, Entrant, Trial, _end_losers, _run_round, measure_of, run_sweep, split_axes
from pipeline.config.files import load_config
from pipeline.errors import UserError
from tests.support.finished_run import finished
from tests.support.places import CONFIGS
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_run import PAIRS, make_job


def test_settings_with_commas_are_axes_and_lists_are_not() -> None:
    axes, plain = split_axes(["training.learning_rate=1e-7, 3e-7", "loss.beta=0.1", "trackers=[tensorboard,wandb]"])
    assert axes == [Axis("training.learning_rate", ("1e-7", "3e-7"))]
    assert plain == ["loss.beta=0.1", "trackers=[tensorboard,wandb]"]


@pytest.mark.parametrize("given", ["loss.beta=0.1", "loss.beta=0.1,", "loss.beta=0.1,0.1"])
def test_a_sweep_without_different_values_is_refused(given: str) -> None:
    with pytest.raises(UserError):
        split_axes([given])


def entrant(name: str, **metrics: Any) -> Entrant:
    config = load_config([], ["name=t", "mode=offline", "policy.path=m", "pairs.path=p"])
    return Entrant(Trial((name,), (), config, Path(name)), metrics)


def test_a_run_that_is_surely_worse_goes_no_further() -> None:
    best = entrant("best", held_out_accuracy=0.8, held_out_accuracy_ci=[0.7, 0.9])
    near = entrant("near", held_out_accuracy=0.65, held_out_accuracy_ci=[0.55, 0.71])
    worse = entrant("worse", held_out_accuracy=0.5, held_out_accuracy_ci=[0.41, 0.69])
    _end_losers([worse, best, near], 1)
    assert (best.ended, near.ended) == ("", "")
    assert worse.ended == "round 1: held out accuracy surely below best's (69.0% < 70.0%)"


@pytest.mark.whole
def test_a_round_is_judged_by_its_own_numbers_though_later_ones_are_there(tmp_path: Path) -> None:
    made = finished(make_job(tmp_path), tmp_path / "run", "rounds=3", "gate=null", mode="offline")
    one = Entrant(Trial(("1",), (), made.config, made.run.root), {})
    for round_ in (1, 2):
        _run_round([], [one], round_)
        assert (one.metrics["round"], one.ended) == (round_, "")


def test_runs_are_compared_by_what_all_of_them_measure() -> None:
    both = entrant("a", win_rate_vs_start=0.6, reward=1.0)
    assert measure_of([both])[0] == "win_rate_vs_start"
    assert measure_of([both, entrant("b", win_rate_vs_start=None, reward=2.0)])[0] == "reward"


def test_a_value_that_the_config_refuses_stops_the_sweep_before_it_starts(tmp_path: Path) -> None:
    settings = ["policy.path=m", "pairs.path=p", "loss.beta=0.1,-1"]
    with pytest.raises(UserError, match=r"loss\.beta"):
        run_sweep([CONFIGS / "offline.yaml"], settings, tmp_path / "s", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_a_killed_sweep_goes_on_with_the_same_command(tmp_path: Path) -> None:
    model, pairs = save_tiny_model(tmp_path / "model"), tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    settings = [f"policy.path={model}", f"pairs.path={pairs}", "held_out.prompts=4", "training.dtype=float32"]
    settings += ["training.batch_size=4", "sampling.max_tokens=4", "sampler={kind: transformers}"]
    axis = "training.learning_rate=1e-6,1e-3"
    words = [CONFIGS / "offline.yaml", *settings, axis, "--run-dir", tmp_path / "sweep", "--steps", "2"]
    command = [sys.executable, "-m", "flows", "sweep", *map(str, words)]
    first = tmp_path / "sweep" / "learning-rate-1e-6"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not (first / "round_001" / "policy" / "manifest.json").exists():
            assert child.poll() is None, "the sweep ended by itself"
            time.sleep(0.1)
        child.kill()
    made = (first / "round_001" / "policy" / "manifest.json").read_bytes()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (first / "round_001" / "policy" / "manifest.json").read_bytes() == made
    assert sorted(re.findall(r"^ +(1e-\d) +\d+\.\d%", done.stdout, re.MULTILINE)) == ["1e-3", "1e-6"]
    assert (tmp_path / "sweep" / "report.html").stat().st_size > 10_000
    steps = [json.loads(line) for line in (first / "round_001" / "policy" / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "round 1, run" not in again.stderr and again.stdout == done.stdout
