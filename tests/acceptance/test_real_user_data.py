"""Offline runs on real data through the command line: three human votes, ranked answers, right and wrong solutions.

`make acceptance`; a few minutes each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.training.step_log import read_steps
from tests.support.places import ROOT
from tests.support.real_data import COLUMNS, FILES, needs_real_data

pytestmark = [pytest.mark.acceptance, needs_real_data]
SCRATCH = "policy: {kind: scratch, vocab_size: 1000, hidden_size: 96, layers: 2, context: 768}"
WARM_START = "warm_start: {max_steps: 16, batch_size: 32, learning_rate: 3.0e-3}"
COMMON = """
mode: offline
sampler: {kind: transformers}
sampling: {max_tokens: 16}
chat: {max_prompt_tokens: 400, max_response_tokens: 200}
training: {learning_rate: 5.0e-4, batch_size: 16}
evaluation: {bootstrap: 100}
# Long responses are cut on purpose; rows of the votes share their first response, which the warm start imitates.
limits: {missing_eos: 1, identical_when_cut: 1, duplicate_row: 1, long_for_policy: 0.5}
"""


def run(folder: Path, name: str, *sections: str, settings: tuple[str, ...] = ()) -> Path:
    """The run folder of ``prefloop run`` on the set ``name``."""
    file = folder / f"{name}.yaml"
    pairs = f"pairs: {{path: {FILES[name]}, columns: {COLUMNS[name]}}}"
    file.write_text("\n".join([f"name: {name}", COMMON, pairs, *sections]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect")}
    command = [sys.executable, "-m", "flows", "run", str(file), *settings, "--run-dir", str(folder / name)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / name


def measured(root: Path) -> tuple[dict[str, Any], list[float]]:
    """Metrics on held-out pairs after the round, and the losses of its steps."""
    metrics = json.loads((root / "round_001" / "evaluation" / "metrics.json").read_text())
    print(root.name, {key: value for key, value in metrics.items() if key.startswith("held_out")})
    losses = [step.loss for step in read_steps(root / "round_001" / "policy" / "steps.jsonl")]
    print("  losses", losses[:3], "...", losses[-3:])
    return metrics, losses


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = f"prompts: {{path: {FILES['pandalm']}, columns: {{prompt: [instruction, input], response: response1}}}}"
    return run(tmp_path_factory.mktemp("votes"), "pandalm", SCRATCH, WARM_START, prompts, "held_out: {prompts: 34}")


def test_human_votes(votes: Path) -> None:
    # 136 prompts teach a model from scratch nothing of others: held-out accuracy stays that of chance, so only the
    # training loss is asked for. Soft labels keep it well above 0.
    _, losses = measured(votes)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and 0.2 < sum(losses[-10:]) / 10 < 0.68


def test_ranked_answers_with_ties(votes: Path, tmp_path: Path) -> None:
    policy = f"policy: {{path: {votes / 'round_000' / 'policy'}}}"
    # Prompts over 400 tokens are left out.
    more = ("held_out: {prompts: 32}", "loss: {preset: rpo_list_fwd}")
    root = run(tmp_path, "mtbench", policy, *more, settings=("training.epochs=6",))
    _, losses = measured(root)
    # 75 prompts of a model from scratch: as with the votes, the training loss alone says something. It is 0 only where
    # the policy's distribution over the four responses is that of their scores.
    assert json.loads((root / "round_001" / "pairs" / "manifest.json").read_text())["metrics"]["kind"] == "group"
    epoch = len(losses) // 6
    assert 0 < sum(losses[-epoch:]) < 0.7 * sum(losses[:epoch])


def test_right_and_wrong_solutions(tmp_path: Path) -> None:
    prompts = f"prompts: {{path: {FILES['gsm8k']}, columns: {{prompt: question, response: ground_truth}}}}"
    metrics, losses = measured(run(tmp_path, "gsm8k", SCRATCH, WARM_START, prompts, "held_out: {prompts: 150}"))
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and sum(losses[-10:]) / 10 < 0.68
    assert metrics["held_out_accuracy"] > 0.5
