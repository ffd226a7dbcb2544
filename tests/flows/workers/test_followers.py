"""Training in two processes through the command line; no failure of one leaves the other behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, RunStage, StageProgress, TrainerInit, encode_text
from pipeline.errors import RunError
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.tiny_run import begin, make_job, open_context, supply, train

pytestmark = pytest.mark.whole

TWO = ROOT / "configs" / "accelerate" / "ddp_cpu.yaml"
SETTINGS = ("rounds=1", "sampler.kind=transformers", "training.learning_rate=5e-5", f"accelerate={TWO}")
# So many steps that none of the tests sees the last.
LONG = (*SETTINGS, "training.epochs=10000")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).stage(1, "policy").folder / "model.safetensors")


def test_the_command_trains_in_two_processes_what_one_gives(job: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows", "run", str(job / "offline.yaml"), *SETTINGS]
    command += ["--run-dir", str(tmp_path / "two")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two" / "logs" / "trainer_1.log").is_file()
    alone = open_context(job, tmp_path / "one", "offline", *SETTINGS)
    begin(alone)
    train(alone, 1)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    start = load_file(job / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - start[name]).abs().max()) for name in ours) > 1e-4
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-6)


@pytest.fixture
def prepared(job: Path, tmp_path: Path) -> TrainerInit:
    """What a trainer child is started with, all that training reads being there."""
    context = open_context(job, tmp_path / "run", "offline", *LONG)
    begin(context)
    supply(context, 1)
    return TrainerInit(str(context.run.root), context.config.model_dump(mode="json"))


def test_a_process_that_dies_ends_training_with_its_own_last_words(prepared: TrainerInit, tmp_path: Path) -> None:
    def kill_follower(progress: StageProgress) -> None:
        for other in psutil.Process(trainer.pid).children():
            other.kill()

    words = r"process 1 of training: flows.stages.trainer_service: died .*signal SIGKILL"
    with Child(TRAINER, prepared, tmp_path / "trainer.log", 200) as trainer:
        with pytest.raises(RunError, match=words):
            trainer.call(RunStage(1, "policy"), Done, 200, kill_follower)
        assert trainer.alive
    assert not RunFolder(Path(prepared.run)).stage(1, "policy").folder.exists()


PARENT = """
import sys
from pathlib import Path
import psutil
from flows.workers.child import Child
from flows.workers.messages import TRAINER, Done, RunStage, TrainerInit, decode
trainer = Child(TRAINER, decode(sys.argv[1], [TrainerInit]), Path(sys.argv[2]), 200)
def told(progress):
    print(trainer.pid, *[child.pid for child in psutil.Process(trainer.pid).children()], flush=True)
trainer.call(RunStage(1, "policy"), Done, 200, told)
"""


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_both_processes_end_with_the_run(prepared: TrainerInit, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, encode_text(prepared), str(tmp_path / "trainer.log")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 40
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
