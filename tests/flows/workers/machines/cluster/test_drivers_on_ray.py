"""``prefloop run`` on a Ray cluster: killed and begun again, it ends with the bits of one undisturbed process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.loop.object_store.held import hold_run
from pipeline.errors import RunLockedError
from pipeline.storage.rows import read_groups
from tests.faults.results import results
from tests.support.places import ROOT
from tests.support.ray_cluster import Nodes
from tests.support.reward_engines import local_models
from tests.support.tiny_loop import prefloop
from tests.support.tiny_run import make_job

pytestmark = [pytest.mark.cluster, pytest.mark.whole, pytest.mark.filterwarnings("ignore")]

SETTINGS = (
    "rounds=1",
    "sampler.kind=transformers",
    "sampler.dtype=float32",
    "shard_size=1",
    "sampling.n=8",
    "sampling.max_tokens=64",
    "training.checkpoint_every=1",
)
# What there is once a stage is under way.
UNDER_WAY = {"samples": "samples.partial/shard_*.parquet", "policy": "policy.partial/checkpoints/step_*[0-9]"}
SERVICES = {"flows.workers.sampler_service", "flows.workers.labeller_service", "flows.stages.trainer_service"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A round that is sampled, labelled by a reward model and trained on."""
    folder = tmp_path_factory.mktemp("job")
    reward = local_models(folder)["classifier"].settings["path"]
    scorer = f"scorer={{kind: classifier, path: {reward}, batch_tokens: 90}}"
    return ["run", str(make_job(folder) / "iterative.yaml"), *SETTINGS, scorer]


@pytest.fixture(scope="module")
def environment(home: dict[str, str], cluster: Nodes) -> dict[str, str]:
    return {**os.environ, **home}


@pytest.fixture(scope="module")
def undisturbed(command: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process on this machine."""
    root = tmp_path_factory.mktemp("here") / "run"
    done = prefloop(environment, *command, "--run-dir", root)
    assert done.returncode == 0, done.stderr
    return root


def actors() -> list[int]:
    """Services whose parents are actors of the cluster."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if SERVICES & {*(process.info["cmdline"] or ())}:
            parent = process.parent()
            found += [process.pid] if parent is not None and parent.name().startswith("ray::") else []
    return found


@pytest.mark.parametrize("stage", [*UNDER_WAY])
def test_a_killed_driver_takes_its_actors_along_and_the_same_command_gives_the_same_bits(
    cluster: Nodes, command: list[str], environment: dict[str, str], undisturbed: Path, tmp_path: Path, stage: str
) -> None:
    root = tmp_path / "there" / "run"
    on_ray = ["cluster.kind=ray", f"cluster.address={cluster.address}", "cluster.lost_after=30"]
    asked = [*command, *on_ray, "--run-dir", str(root)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "flows", *asked], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 600
        while not [*root.glob(f"round_001/{UNDER_WAY[stage]}")]:
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(RunLockedError), hold_run(root):
            pass
        assert actors()
    finally:
        driver.kill()
        driver.communicate()
    assert not (root / "round_001" / stage).exists()
    killed = time.monotonic()
    while actors():
        assert time.monotonic() < killed + 200, "actors outlive their driver"
        time.sleep(0.2)
    done = prefloop(environment, *asked)
    assert done.returncode == 0, done.stderr
    assert results(root) == results(undisturbed)
    for name in ("samples", "labels"):
        there, here = (read_groups(run / "round_001" / name) for run in (root, undisturbed))
        assert [*there] == [*here]
    assert {"sampler.log", "labeller.log", "training.log"} <= {file.name for file in (root / "logs").iterdir()}
