"""Training stages on a Ray cluster: a lost process costs the steps since its checkpoint, and no bit."""

import shutil
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from flows.workers.local import Workers
from pipeline.storage.run_folder import RunFolder
from tests.support.places import ROOT
from tests.support.ray_cluster import Nodes, kill
from tests.support.tiny_run import begin, make_job, open_context, supply

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

SETTINGS = ("rounds=1", "sampler.kind=transformers", "training.epochs=6", "training.checkpoint_every=2")
TWO = f"accelerate={ROOT / 'configs' / 'accelerate' / 'ddp_cpu.yaml'}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def prepared(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is about to compute its reference's log-probs."""
    context = open_context(job, tmp_path_factory.mktemp("run"), "offline", *SETTINGS)
    begin(context)
    supply(context, 1)
    shutil.rmtree(context.run.stage(1, "reference").folder)
    return context.run.root


def train_here(job: Path, root: Path, prepared: Path, *more: str) -> Path:
    context = open_context(job, root, "offline", *SETTINGS, *more, base=prepared)
    with Workers(root, context.config) as workers:
        for name in ("reference", "policy"):
            workers.run_stage(1, name, lambda done, total, note: None)
    return policy(root)


def train_on(cluster: Nodes, job: Path, root: Path, prepared: Path, *more: str) -> Path:
    """Train, and kill a training process once there is a checkpoint."""
    ray = ("cluster.kind=ray", f"cluster.address={cluster.address}", "cluster.lost_after=30")
    context = open_context(job, root, "offline", *SETTINGS, *ray, *more, base=prepared)
    hurt = KillOnce()
    with Workers(root, context.config) as workers:
        workers.run_stage(1, "reference", lambda done, total, note: None)
        workers.run_stage(1, "policy", hurt)
    assert hurt.killed is not None and not psutil.pid_exists(hurt.killed)
    # From the checkpoint after step 4, not from the start.
    assert hurt.afterwards and min(hurt.afterwards) > 4
    deadline = time.monotonic() + 200
    while trainers():
        assert time.monotonic() < deadline, "training processes outlive their stage"
        time.sleep(0.2)
    return policy(root)


class KillOnce:
    """A report of a stage that kills one of its processes after step 5."""

    def __init__(self) -> None:
        self.killed: int | None = None
        self.afterwards: list[int] = []

    def __call__(self, done: int, total: int, note: str) -> None:
        if self.killed is not None and done:
            self.afterwards.append(done)
        if done >= 5 and self.killed is None:
            self.killed = trainers()[-1]
            kill(self.killed)


def trainers() -> list[int]:
    """The training processes, whose logs are in the run folder; those of other tests have ended."""
    asked = ["-m", "flows.stages.trainer_service"]
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        parent = psutil.Process(process.info["ppid"]).name() if process.info["ppid"] else ""
        if process.info["cmdline"] and process.info["cmdline"][1:3] == asked and parent.startswith("ray::"):
            found.append(process.pid)
    return found


def policy(root: Path) -> Path:
    return RunFolder(root).stage(1, "policy").folder / "model.safetensors"


def test_two_processes_on_two_machines_give_the_bits_of_two_on_one_although_one_is_killed(
    cluster: Nodes, job: Path, prepared: Path, tmp_path: Path
) -> None:
    here = train_here(job, tmp_path / "here", prepared, TWO)
    there = train_on(cluster, job, tmp_path / "there", prepared, TWO)
    assert there.read_bytes() == here.read_bytes()
    trained, start = load_file(there), load_file(job / "model" / "model.safetensors")
    assert max(float((trained[name] - start[name]).abs().max()) for name in trained) > 1e-4
    assert (tmp_path / "there" / "logs" / "training_1.log").is_file()
    reference = [RunFolder(tmp_path / name).stage(1, "reference").manifest() for name in ("here", "there")]
    assert reference[0] is not None and reference[1] is not None
    assert reference[0].files == reference[1].files


@pytest.mark.whole
def test_a_process_on_a_cluster_gives_the_bits_of_one_here_although_it_is_killed(
    cluster: Nodes, job: Path, prepared: Path, tmp_path: Path
) -> None:
    here = train_here(job, tmp_path / "here", prepared)
    there = train_on(cluster, job, tmp_path / "there", prepared)
    assert there.read_bytes() == here.read_bytes()
