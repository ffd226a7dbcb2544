"""Whole runs whose labels come from a slow judge while sampling goes on: killed, failed, or one after the other."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import digests
from tests.support.judge_server import JudgeServer, judge_server
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

PATIENCE = 1800.0


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    def judge(question: str) -> str:
        time.sleep(0.002)
        return f"Fine.\nScore: {1 + sum(map(ord, question)) % 9}"

    with judge_server(judge) as made:
        yield made


@pytest.fixture(scope="module")
def config(server: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(208)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f'{{base_url: "{server.url}", model: judge, concurrency: 2, attempts: 1, backoff: 0}}'
    file = folder / "judged.yaml"
    file.write_text(
        f"""
name: judged
mode: iterative
rounds: 1
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 8}}
sampler: {{kind: transformers, retries: 0}}
sampling: {{n: 8, max_tokens: 40}}
shard_size: 4
gate: null
scorer: {{kind: judge, mode: pointwise, server: {url}}}
labelling: {{min_yield: 0.9}}
training: {{learning_rate: 3.0e-3, batch_size: 8, micro_batch_size: 4, reference_cache: null}}
"""
    )
    return file


def made(root: Path) -> dict[str, object]:
    """All files, without the counts of what a judge was asked and what came from the cache."""
    found = digests(RunFolder(root))
    return {name: sha256 for name, sha256 in found.items() if not ("/labels/" in name and name.endswith(".json"))}


@pytest.fixture(scope="module")
def sequential(home: dict[str, str], config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("one") / "run"
    done = prefloop(home, "run", config, "overlap=false", "--run-dir", root)
    assert done.returncode == 0, done.stderr
    samples, labels = (RunFolder(root).stage(1, name).require() for name in ("samples", "labels"))
    assert labels.finished > samples.finished and samples.rows == labels.rows == 200
    return made(root)


def interrupted(home: dict[str, str], config: Path, root: Path, harm: Callable[[psutil.Process], None]) -> str:
    """A run that is harmed once two shards are labelled, while others are sampled; what it says until it ends."""
    command = [sys.executable, "-m", "flows", "run", str(config), "--run-dir", str(root)]
    with subprocess.Popen(command, env=home, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + PATIENCE
        labels = root / "round_001" / "labels.partial"
        while len([*labels.glob("*.parquet")]) < 2:
            assert process.poll() is None and time.monotonic() < end, "no labels while sampling goes on"
            time.sleep(0.01)
        assert (root / "round_001" / "samples.partial").is_dir(), "all is sampled before two shards are labelled"
        harm(psutil.Process(process.pid))
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode != 0
    return said


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def kill_engine(process: psutil.Process) -> None:
    (engine,) = [child for child in process.children() if "flows.workers.sampler_service" in child.cmdline()]
    engine.send_signal(signal.SIGKILL)


@pytest.mark.whole
def test_a_killed_run_ends_in_the_same_files(
    home: dict[str, str], config: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    interrupted(home, config, root, kill)
    kept = {file.name: file.stat().st_ino for file in (root / "round_001" / "labels.partial").glob("*.parquet")}
    done = prefloop(home, "run", config, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    after = {file.name: file.stat().st_ino for file in (root / "round_001" / "labels").glob("*.parquet")}
    assert len(kept) >= 2 and after.items() >= kept.items()
    assert made(root) == sequential


@pytest.mark.whole
def test_an_engine_that_dies_is_the_error_and_labels_are_kept(
    home: dict[str, str], config: Path, sequential: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    said = interrupted(home, config, root, kill_engine)
    assert "round 1, samples: " in said.splitlines()[-1] or "died" in said, said
    assert "Traceback" not in said
    kept = {file.name: file.stat().st_ino for file in (root / "round_001" / "labels.partial").glob("*.parquet")}
    done = prefloop(home, "run", config, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    after = {file.name: file.stat().st_ino for file in (root / "round_001" / "labels").glob("*.parquet")}
    assert len(kept) >= 2 and after.items() >= kept.items()
    assert made(root) == sequential


@pytest.mark.whole
def test_a_judge_that_is_down_is_the_error_and_all_is_sampled(
    home: dict[str, str], config: Path, server: JudgeServer, sequential: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"

    def down(process: psutil.Process) -> None:
        server.always = "500"

    try:
        said = interrupted(home, config, root, down)
    finally:
        server.always = ""
    assert "below labelling.min_yield 0.9" in said
    assert "Traceback" not in said
    assert RunFolder(root).stage(1, "samples").require().rows == 200
    done = prefloop(home, "run", config, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    assert made(root) == sequential
