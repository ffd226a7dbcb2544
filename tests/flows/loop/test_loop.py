"""The loop for real: Prefect, the vLLM child, the trainer child, on a model of a few thousand parameters."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.rows import read_groups, read_preference_rows
from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import read_steps
from tests.support.tiny_loop import prefloop

LIST_RUNS = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
found = []
with get_client(sync_client=True) as client:
    for run in client.read_flow_runs():
        only = FlowRunFilter(id={"any_": [run.id]})
        tasks = client.read_task_runs(flow_run_filter=only)
        found.append({
            "id": str(run.id),
            "name": run.name,
            "started": str(run.start_time),
            "state": run.state.type.value,
            "tasks": {task.name: task.state.type.value for task in tasks},
            "tags": sorted(tag for task in tasks for tag in task.tags),
        })
found.sort(key=lambda run: run["started"])
print(json.dumps(found))
"""
METRICS = {
    "reward",
    "win_rate_vs_start",
    "win_rate_vs_start_ci",
    "kl_to_start",
    "kl_to_previous",
    "response_length",
    "stop_rate",
}


def test_every_round_is_measured_and_learns(home: dict[str, str], finished: Path) -> None:
    shown = prefloop(home, "show", finished, "--json")
    rounds = json.loads(shown.stdout)
    assert [metrics["round"] for metrics in rounds] == [0, 1, 2]
    assert all(metrics.keys() >= METRICS for metrics in rounds)
    assert rounds[0]["kl_to_start"] == 0 and rounds[0]["win_rate_vs_start"] == 0.5
    assert rounds[2]["reward"] > rounds[0]["reward"] + 0.3
    assert rounds[2]["win_rate_vs_start"] > 0.55
    assert rounds[2]["kl_to_start"] > rounds[1]["kl_to_start"] > 0.005
    assert all(metrics["sampler_trainer_gap"] < 1e-3 for metrics in rounds)


def test_the_folder_is_its_user_s_alone(home: dict[str, str], finished: Path) -> None:
    files = [finished, *finished.rglob("*"), *Path(home["PREFECT_HOME"]).glob("prefect.db*")]
    assert len(files) > 80
    assert {file for file in files if stat.S_IMODE(file.stat().st_mode) != (0o700 if file.is_dir() else 0o600)} == set()


def test_tokens_go_from_sampler_to_loss_unchanged(finished: Path) -> None:
    run = RunFolder(finished)
    sampled = {
        (group.prompt.id, response.token_ids): response
        for group in read_groups(run.stage(1, "samples").folder)
        for response in group.responses
    }
    pairs = list(read_preference_rows(run.stage(1, "pairs").folder))
    assert len(pairs) == run.stage(1, "pairs").require().rows > 20
    for pair in pairs:
        assert sampled[pair.prompt.id, pair.chosen.token_ids] == pair.chosen
        assert sampled[pair.prompt.id, pair.rejected.token_ids] == pair.rejected
        assert pair.chosen_score is not None and pair.rejected_score is not None
        assert pair.chosen_score > pair.rejected_score


def test_the_first_step_of_each_round_starts_at_the_reference(finished: Path) -> None:
    for round_ in (1, 2):
        first = read_steps(finished / f"round_{round_:03d}" / "policy" / "steps.jsonl")[0]
        assert first.margin is not None and abs(first.margin) < 1e-3


def test_held_out_prompts_are_never_trained_on(finished: Path) -> None:
    run = RunFolder(finished)
    held_out = {group.prompt.id for group in read_groups(run.stage(2, "evaluation").folder / "sampled")}
    trained = {pair.prompt.id for round_ in (1, 2) for pair in read_preference_rows(run.stage(round_, "pairs").folder)}
    assert len(held_out) == 16 and not held_out & trained


def test_the_same_command_again_repeats_nothing(home: dict[str, str], loop_config: Path, finished: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("round_*/*/*")}
    again = prefloop(home, "run", loop_config, "--run-dir", finished)
    assert again.returncode == 0 and again.stderr.count("already complete") == 20
    assert {file: file.stat().st_mtime_ns for file in finished.glob("round_*/*/*")} == before


@pytest.mark.whole
def test_a_run_without_a_server_is_listed_by_one_started_later(home: dict[str, str], finished: Path) -> None:
    run = finished_run(home)
    assert set(run["tasks"].values()) == {"COMPLETED"}
    assert run["tags"] == []  # each would cost a question about its concurrency limit
    assert {"round 0 - start policy", "round 1 - samples", "round 2 - train - dpo beta=0.1"} <= run["tasks"].keys()


def finished_run(home: dict[str, str]) -> dict[str, Any]:
    """What Prefect has of the flow run of ``finished``; interrupted ones beside it have fewer tasks."""
    command = [sys.executable, "-c", LIST_RUNS]
    listed = subprocess.run(command, env=home, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(listed.stdout.splitlines()[-1])
    runs = [run for run in found if run["name"] == "tiny · promote · iterative · 2 rounds"]
    return next(run for run in runs if run["state"] == "COMPLETED" and len(run["tasks"]) == 20)


@pytest.mark.whole
def test_offline_rounds_train_on_slices_of_a_trl_style_file(
    home: dict[str, str], loop_config: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"a dog ran {number}", "chosen": f"to the old barn {number}", "rejected": f"mat mat {number}"}
        for number in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "offline.yaml"
    file.write_text(
        f"""
name: sliced
mode: offline
rounds: 2
policy: {{path: {loop_config.parent / "model"}}}
pairs: {{path: {tmp_path / "pairs.jsonl"}}}
held_out: {{prompts: 12}}
sampler: {{kind: transformers}}
sampling: {{max_tokens: 8}}
loss: {{preset: xpo}}
training: {{learning_rate: 1.0e-3, batch_size: 8, epochs: 2, reference: fixed}}
"""
    )
    first = prefloop(home, "run", file, "--run-dir", tmp_path / "run", "--until", "1:pairs")
    assert first.returncode == 0 and "stopped after 1:pairs" in first.stdout, first.stderr
    assert not (tmp_path / "run" / "round_001" / "calibration").exists()
    shown = prefloop(home, "pairs", tmp_path / "run").stdout
    assert "kept 24" in " ".join(shown.split()) and "a dog ran" in shown
    done = prefloop(home, "run", file, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rounds = json.loads(prefloop(home, "show", tmp_path / "run", "--json").stdout)
    assert rounds[0]["held_out_accuracy"] == 0.5
    assert rounds[2]["held_out_accuracy"] > 0.9 and rounds[2]["held_out_margin"] > rounds[1]["held_out_margin"] > 0
    run = RunFolder(tmp_path / "run")
    slices = [{pair.prompt.id for pair in read_preference_rows(run.stage(round_, "pairs").folder)} for round_ in (1, 2)]
    assert [len(ids) for ids in slices] == [24, 24] and not slices[0] & slices[1]
    # The handshake has checked that the start policy answered, though the sampler held that of round 1 in between.
    assert [run.stage(round_, "calibration").require().rows for round_ in (1, 2)] == [24, 24]
    swap = run.stage(2, "calibration").require().metrics["weight_handshake"]
    assert isinstance(swap, dict) and swap["max_difference"] < 1e-3
