"""Training stages on a Ray cluster: a lost process costs the steps since its checkpoint, and no bit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from flows.stages.context import Context
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


def train_here(job: Path, root: Path, prepared: Path) -> Path:
    context = open_context(job, root, "offline", *SETTINGS, base=prepared)
    with Workers(root, context.config) as workers:
        for name in ("reference", "policy"):
            workers.run_stage(1, name, lambda done, total, note: None)
    return policy(root)


def train_on(cluster: Nodes, job: Path, root: Path, prepared: Path, *more: str, kills: bool) -> Path:
    ray = ("cluster.kind=ray", f"cluster.address={cluster.address}", "cluster.lost_after=30")
    context = open_context(job, root, "offline", *SETTINGS, *ray, *more, base=prepared)
    with Workers(root, context.config) as workers:
        workers.run_stage(1, "reference", lambda done, total, note: None)
        workers.run_stage(1, "policy", killer(context) if kills else lambda done, total, note: None)
    return policy(root)


def killer(context: Context) -> Callable[[int, int, str], None]:
    """Kill a training process, once, when there is a checkpoint."""
    killed: list[int] = []

    def report(done: int, total: int, note: str) -> None:
        if done >= 5 and not killed:
            killed.append(trainers(context.run.root)[-1])
            kill(killed[0])

    return report


def trainers(root: Path) -> list[int]:
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


def test_training_on_a_cluster_gives_the_bits_of_one_process_although_it_is_killed(
    cluster: Nodes, job: Path, prepared: Path, tmp_path: Path
) -> None:
    alone = train_here(job, tmp_path / "here", prepared)
    there = train_on(cluster, job, tmp_path / "there", prepared, kills=True)
    assert there.read_bytes() == alone.read_bytes()
    log = (tmp_path / "there" / "logs" / "training.log").read_text()
    assert log
    reference = [RunFolder(tmp_path / name).stage(1, "reference").manifest() for name in ("here", "there")]
    assert reference[0] is not None and reference[1] is not None
    assert reference[0].files == reference[1].files


@pytest.mark.whole
def test_two_processes_on_two_machines_train_what_one_does_although_one_is_killed(
    cluster: Nodes, job: Path, prepared: Path, tmp_path: Path
) -> None:
    alone = load_file(train_here(job, tmp_path / "here", prepared))
    both = load_file(train_on(cluster, job, tmp_path / "both", prepared, TWO, kills=True))
    start = load_file(job / "model" / "model.safetensors")
    assert max(float((both[name] - start[name]).abs().max()) for name in both) > 1e-4
    for name, expected in alone.items():
        torch.testing.assert_close(both[name], expected, rtol=0, atol=1e-5)
    assert (tmp_path / "both" / "logs" / "training_1.log").is_file()
