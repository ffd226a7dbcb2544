"""A whole run on a model of a few thousand parameters, made once for all the tests that look at it."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from flows.workers import child
from flows.workers.silence import Silence
from tests.support.places import ROOT
from tests.support.tiny_loop import prefloop
from tests.support.tiny_model import save_tiny_model


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose Prefect home is empty."""
    return {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def loop_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds that teach a random model to answer in twelve words, sampled slowly enough to be killed meanwhile."""
    folder = tmp_path_factory.mktemp("job")
    model = save_tiny_model(folder / "model")
    rows = [{"prompt": f"the cat sat on mat {number}"} for number in range(56)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
name: tiny
mode: iterative
rounds: 2
policy: {{path: {model}}}
prompts: {{path: {folder / "prompts.jsonl"}}}
held_out: {{prompts: 16}}
sampler: {{dtype: float32, max_num_seqs: 8}}
sampling: {{n: 4, max_tokens: 24}}
shard_size: 10
scorer: {{kind: length, target_words: 12}}
training: {{learning_rate: 3.0e-3, batch_size: 8, micro_batch_size: 4, epochs: 2, optimiser_state: carried}}
"""
    )
    return file


@pytest.fixture(scope="session")
def finished(home: dict[str, str], loop_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    done = prefloop(home, "run", loop_config, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout and "vllm" not in done.stdout.lower()
    assert "INFO" not in done.stderr and "Traceback" not in done.stderr
    return run


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a child is stopped (SIGSTOP: it hangs, as far as its parent can tell), any deadline of a call is soon."""

    class Soon(Silence):
        def until_look(self) -> float:
            stopped = any(process.status() == psutil.STATUS_STOPPED for process in psutil.Process().children())
            if stopped:
                self._ends = min(self._ends, time.monotonic() + 1.0)
            wait = super().until_look()
            return 0.5 if wait is None else min(wait, 0.5)

    monkeypatch.setattr(child, "Silence", Soon)
