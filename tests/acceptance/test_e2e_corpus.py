"""The job on human text, with its control: `make acceptance`. About ten minutes a seed on two cores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

CORPUS = ROOT.parent / "shared" / "data" / "corpora" / "e2e_nlg.jsonl"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not CORPUS.is_file(), reason="the E2E corpus is not beside this checkout"),
]


def run(tmp_path: Path, name: str, *settings: str) -> list[dict[str, float]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "flows", "run", "configs/e2e.yaml", f"prompts.path={CORPUS}", *settings]
    command += ["--run-dir", str(tmp_path / name)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return [json.loads(file.read_text()) for file in sorted((tmp_path / name).glob("round_*/evaluation/metrics.json"))]


@pytest.mark.parametrize("seed", [0, 1])
def test_slot_errors_on_human_inputs_fall_by_more_than_half(seed: int, tmp_path: Path) -> None:
    rounds = run(tmp_path, "dpo", f"seed={seed}")
    start, end = rounds[0], rounds[-1]
    print(json.dumps(rounds, indent=1))
    assert len(rounds) == 4
    assert end["slot_error_rate"] <= 0.45 * start["slot_error_rate"]
    assert end["slot_error_rate_sampled"] <= 0.50 * start["slot_error_rate_sampled"]
    assert end["reference_logprob"] >= start["reference_logprob"] - 0.2
    assert end["repetition_rate"] <= 0.05


def test_the_same_seconds_of_supervised_training_do_not_explain_it(tmp_path: Path) -> None:
    # Three more epochs take about as long as three rounds of sampling, labelling and training.
    few = ("rounds=1", "prompts_per_round=32")
    start = run(tmp_path, "short", *few)[0]
    longer = run(tmp_path, "long", *few, "warm_start.epochs=8")[0]
    print(json.dumps([start, longer], indent=1))
    assert longer["slot_error_rate"] > 0.45 * start["slot_error_rate"]
    assert longer["slot_error_rate_sampled"] > 0.5 * start["slot_error_rate_sampled"]


def test_training_too_hard_shows_in_the_metrics(tmp_path: Path) -> None:
    rounds = run(tmp_path, "hard", "training.learning_rate=1e-3", "loss.nll=0")
    print(json.dumps(rounds, indent=1))
    assert max(metrics["kl_to_start"] for metrics in rounds) > 0.5
