"""Two machines of one process each, started by the same command as on two hosts, train what one process trains."""

import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from flows.stages.run import run_stage
from pipeline.storage.run_folder import RunFolder
from tests.support.second_machine import SETTINGS, accelerate_file, free_port, start
from tests.support.tiny_run import begin, make_job, open_context, train

pytestmark = pytest.mark.whole
# Long enough to be killed in the middle.
LONG = ("training.epochs=10", "training.checkpoint_every=1")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).stage(1, "policy").folder / "model.safetensors")


def assert_trained_alike(ours: Path, theirs: Path, job: Path, apart: float) -> None:
    mine, others = weights(ours), weights(theirs)
    before = load_file(job / "model" / "model.safetensors")
    assert mine.keys() == others.keys()
    assert max(float((mine[name] - before[name]).abs().max()) for name in mine) > 1e-4
    for name, expected in others.items():
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=apart)


def both(job: Path, run: Path, *settings: str) -> list[subprocess.Popen[str]]:
    file = accelerate_file(job / f"{run.name}.yaml", free_port())
    return [start(job, run, file, rank, *settings) for rank in (1, 0)]


def test_a_killed_rank_ends_all_and_training_goes_on_with_two_processes_or_one(job: Path, tmp_path: Path) -> None:
    alone = open_context(job, tmp_path / "alone", "offline", *SETTINGS, *LONG)
    begin(alone)
    train(alone, 1)

    other, driver = both(job, tmp_path / "run", *LONG)
    checkpoints = RunFolder(tmp_path / "run").stage(1, "policy").partial / "checkpoints"
    while not any(int(place.name[-6:]) >= 3 for place in checkpoints.glob("step_??????")):
        assert driver.poll() is None and other.poll() is None, (driver.communicate()[0], other.communicate()[0])
        time.sleep(0.05)
    for process in psutil.Process(other.pid).children():
        process.kill()
    said, told = (process.communicate(timeout=300)[0] for process in (driver, other))
    assert (driver.returncode, other.returncode) == (1, 1), (said, told)
    assert "machine 1: flows.stages.trainer_service: died during stage (signal SIGKILL)" in said
    assert "died during stage (signal SIGKILL)" in told
    shutil.copytree(tmp_path / "run", tmp_path / "single")

    other, driver = both(job, tmp_path / "run", *LONG)
    said, told = (process.communicate(timeout=400)[0] for process in (driver, other))
    assert (driver.returncode, other.returncode) == (0, 0), (said, told)
    assert told.rstrip().endswith("machine 1: the run has ended")
    assert_trained_alike(tmp_path / "run", tmp_path / "alone", job, 1e-5)
    # Reference passes were shared too.
    assert (tmp_path / "run" / "logs" / "trainer_1.log").is_file()

    single = open_context(job, tmp_path / "single", "offline", *SETTINGS, *LONG)
    run_stage(single, 1, "policy")
    assert_trained_alike(tmp_path / "single", tmp_path / "alone", job, 1e-5)
