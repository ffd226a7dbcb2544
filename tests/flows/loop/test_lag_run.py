"""A whole run with ``training.lag: 1`` that is killed while one round trains and the next is sampled."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.storage.manifest import MANIFEST
from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import digests
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.timeout(2700)]
PATIENCE = 1800.0
# The samples of round 2 are of the start policy, and drawn while round 1 trains.
UNTIL = ("--until", "2:samples")
TRAINER, ENGINE = "flows.stages.trainer_service", "flows.workers.sampler_service"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(32)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "lagged.yaml"
    file.write_text(
        f"""
name: lagged
mode: iterative
rounds: 2
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 4}}
sampler: {{kind: transformers}}
sampling: {{n: 4, max_tokens: 24}}
shard_size: 4
gate: null
scorer: {{kind: length, target_words: 12}}
training: {{lag: 1, learning_rate: 3.0e-3, batch_size: 4, micro_batch_size: 2, epochs: 2, checkpoint_every: 2}}
"""
    )
    return file


def sampled_meanwhile(root: Path) -> bool:
    """Whether the samples of round 2 were complete before round 1 was evaluated."""
    run = RunFolder(root)
    samples, evaluation = (run.stage(*of).folder / MANIFEST for of in ((2, "samples"), (1, "evaluation")))
    return samples.stat().st_mtime_ns < evaluation.stat().st_mtime_ns


@pytest.fixture(scope="module")
def sequential(home: dict[str, str], config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Files of a run of one stage after the other, and either engine or trainer."""
    root = tmp_path_factory.mktemp("one") / "run"
    done = prefloop(home, "run", config, "overlap=false", "sampler.keep_warm=never", *UNTIL, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    assert not sampled_meanwhile(root)
    return digests(RunFolder(root))


def test_a_run_killed_while_it_trains_and_samples_ends_in_the_same_files(
    home: dict[str, str], config: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    killed_in_both(home, config, root)
    samples = root / "round_002"
    kept = inodes(samples / "samples.partial")
    assert len(kept) >= 2
    done = prefloop(home, "run", config, *UNTIL, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    assert inodes(samples / "samples").items() >= kept.items()
    assert sampled_meanwhile(root)
    assert digests(RunFolder(root)) == sequential


def inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.glob("*.parquet")}


def killed_in_both(home: dict[str, str], config: Path, root: Path) -> None:
    """End a run by SIGKILL once round 1 has a checkpoint and round 2 two shards of samples.

    The faster child is stopped until the other is as far, so that both stages are cut off on any machine.
    """
    trained = root / "round_001" / "policy.partial" / "checkpoints"
    sampled = root / "round_002" / "samples.partial"
    command = [sys.executable, "-m", "flows", "run", str(config), *UNTIL, "--run-dir", str(root)]
    with subprocess.Popen(command, env=home, stderr=subprocess.DEVNULL) as process:
        waiting: dict[str, Callable[[], bool]] = {
            TRAINER: lambda: any(trained.glob("step_*")),
            ENGINE: lambda: len(inodes(sampled)) >= 2,
        }
        stopped: list[psutil.Process] = []
        end = time.monotonic() + PATIENCE
        while waiting:
            assert process.poll() is None and time.monotonic() < end, f"{', '.join(waiting)} did not come as far"
            for service in [name for name, reached in waiting.items() if reached()]:
                del waiting[service]
                (child,) = children(process.pid, service)
                child.suspend()
                stopped.append(child)
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert trained.is_dir() and sampled.is_dir(), "one of the stages was complete"
    for child in stopped:
        child.resume()
    assert psutil.wait_procs(stopped, timeout=60)[1] == [], "children outlive the run"


def children(pid: int, service: str) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(pid).children() if service in child.cmdline()]
    except psutil.NoSuchProcess:
        return []
