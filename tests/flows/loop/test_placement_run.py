"""Whole runs whose engine and trainer take turns, or have cores of their own: who is there while round 1 trains."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import digests
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.whole,
    pytest.mark.timeout(2700),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="split asks for a core each"),
]
PATIENCE = 1200.0
# The engine samples before and after training.
UNTIL = ("--until", "1:evaluation_samples")
ENGINE, TRAINER = "flows.workers.sampler_service", "flows.stages.trainer_service"
Seen = dict[str, set[int]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "placed.yaml"
    file.write_text(
        f"""
name: placed
mode: iterative
rounds: 1
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 4}}
sampler: {{kind: transformers}}
sampling: {{n: 4, max_tokens: 12}}
gate: null
scorer: {{kind: length, target_words: 6}}
training: {{learning_rate: 3.0e-3, batch_size: 2, micro_batch_size: 2, epochs: 4}}
"""
    )
    return file


def services(pid: int) -> Seen:
    found: Seen = {ENGINE: set(), TRAINER: set()}
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            # The run, or a child, may just have ended.
            with suppress(psutil.Error):
                for name in found.keys() & {*child.cmdline()}:
                    found[name].add(child.pid)
    return found


def watched(home: dict[str, str], config: Path, root: Path, *settings: str) -> tuple[str, list[Seen], Seen]:
    """A run to its end: what it says, who is there whenever round 1 is seen to train, and all that ever were there."""
    training = root / "round_001" / "policy.partial"
    command = [sys.executable, "-m", "flows", "run", str(config), *settings, *UNTIL, "--run-dir", str(root)]
    there: list[Seen] = []
    ever: Seen = {ENGINE: set(), TRAINER: set()}
    log = root.with_name("said")
    with log.open("w") as sink, subprocess.Popen(command, env=home, stderr=sink, text=True) as process:
        end = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < end
            before = training.is_dir()
            now = services(process.pid)
            for name, pids in now.items():
                ever[name] |= pids
            if before and training.is_dir():
                there.append(now)
            time.sleep(0.01)
    assert process.returncode == 0, log.read_text()
    return log.read_text(), there, ever


@pytest.fixture(scope="module")
def in_turn(home: dict[str, str], config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Files of a run whose engine ends before the trainer works, and the other way round."""
    root = tmp_path_factory.mktemp("turns") / "run"
    said, there, ever = watched(home, config, root, "sampler.keep_warm=never")
    assert "placement colocated: 1 engine" in said and "ends while training runs; trainer and labellers: core" in said
    assert there and all(seen[TRAINER] and not seen[ENGINE] for seen in there)
    assert len(ever[ENGINE]) > 1 and len(ever[TRAINER]) > 1
    return digests(RunFolder(root))


def test_split_engines_stay_and_give_the_files_of_those_that_end(
    home: dict[str, str], config: Path, in_turn: dict[str, object], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    said, there, ever = watched(home, config, root, "placement=split")
    assert "placement split: 1 engine" in said and "stays while training runs" in said
    assert there and all(seen == ever for seen in there)
    assert [len(pids) for pids in ever.values()] == [1, 1]
    assert digests(RunFolder(root)) == in_turn


def test_split_engines_and_the_trainer_have_cores_of_their_own_and_plan_says_so(
    home: dict[str, str], config: Path, tmp_path: Path
) -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    engines, trainer = (first, *others[:-1]), others[-1]
    plain = ",".join(map(str, engines))
    told = prefloop(home, "plan", config, "placement=split", "--run-dir", tmp_path / "run")
    line = f"(engine: core{'s' * (len(engines) > 1)} {plain}) stays while training runs; trainer and labellers: core"
    assert told.returncode in (0, 1) and f"{line} {trainer}" in " ".join(told.stdout.split()), told.stdout + told.stderr
