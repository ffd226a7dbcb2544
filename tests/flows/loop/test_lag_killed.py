"""Whole runs with ``training.lag: 1``: a kill while one policy trains and the next samples are drawn changes no bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.storage.run_folder import RunFolder
from pipeline.training.step_log import STEPS
from tests.support.finished_run import digests
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

PATIENCE = 1800.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(68)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "lagged.yaml"
    file.write_text(
        f"""
name: lagged
mode: iterative
rounds: 2
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 8}}
sampler: {{kind: transformers, retries: 0}}
sampling: {{n: 4, max_tokens: 40}}
shard_size: 4
gate: null
scorer: {{kind: length, target_words: 12}}
training: {{lag: 1, learning_rate: 3.0e-3, batch_size: 4, micro_batch_size: 2, epochs: 8, checkpoint_every: 10}}
"""
    )
    return file


@pytest.fixture(scope="module")
def sequential(home: dict[str, str], config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("one") / "run"
    done = prefloop(home, "run", config, "overlap=false", "--run-dir", root)
    assert done.returncode == 0, done.stderr
    policy, samples = RunFolder(root).stage(1, "policy").require(), RunFolder(root).stage(2, "samples").require()
    assert samples.finished > policy.finished and samples.rows == 60
    return digests(RunFolder(root))


@pytest.mark.whole
def test_sampling_ahead_ends_in_the_files_of_one_after_the_other(
    home: dict[str, str], config: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    done = prefloop(home, "run", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert digests(RunFolder(tmp_path / "run")) == sequential


@pytest.mark.whole
def test_a_kill_while_both_are_at_work_ends_in_the_same_files(
    home: dict[str, str], config: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    trained, drawn = root / "round_001" / "policy.partial", root / "round_002" / "samples.partial"
    command = [sys.executable, "-m", "flows", "run", str(config), "--run-dir", str(root)]
    with subprocess.Popen(command, env=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while not ((trained / STEPS).is_file() and len([*drawn.glob("*.parquet")]) >= 2):
            assert process.poll() is None and time.monotonic() < end, "training and sampling do not overlap"
            time.sleep(0.005)
        psutil.Process(process.pid).send_signal(signal.SIGKILL)
    assert trained.is_dir() and drawn.is_dir()
    kept = {file.name: file.stat().st_ino for file in drawn.glob("*.parquet")}
    done = prefloop(home, "run", config, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    after = {file.name: file.stat().st_ino for file in (root / "round_002" / "samples").glob("*.parquet")}
    assert 2 <= len(kept) < len(after) and after.items() >= kept.items()
    assert digests(RunFolder(root)) == sequential
