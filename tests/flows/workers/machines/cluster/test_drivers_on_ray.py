"""The driver of a run on a Ray cluster: killed and begun again, or one of two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.loop.object_store.held import hold_run
from flows.loop.preparation import prepare_run
from flows.stages.run import run_stage
from flows.workers.local import Workers
from pipeline.errors import RunLockedError
from pipeline.storage.rows import read_groups
from pipeline.types import Group
from tests.support.places import ROOT
from tests.support.ray_cluster import Nodes
from tests.support.tiny_run import begin, make_job, open_context

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

SETTINGS = ("sampler.kind=transformers", "sampler.dtype=float32", "shard_size=2", "sampling.max_tokens=12")
DRIVER = """
import sys
from pathlib import Path
from flows.loop.object_store.held import hold_run
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.local import Workers
from pipeline.storage.run_folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
config = run.config()

def report(done, total, note):
    print(done, flush=True)
    # Not all is done before it is killed.
    if done >= 4:
        sys.stdin.readline()

with hold_run(run.root), Workers(run.root, config) as workers:
    run_stage(Context(run, config, report), 1, "samples", workers)
"""


def groups(root: Path) -> list[Group]:
    return list(read_groups(root / "round_001" / "samples"))


def actors(root: Path) -> list[int]:
    """Engines of the cluster, whose parents are actors."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and "flows.workers.sampler_service" in process.info["cmdline"]:
            parent = process.parent()
            found += [process.pid] if parent is not None and parent.name().startswith("ray::") else []
    return found


def test_a_killed_driver_takes_its_actors_along_and_the_next_one_gives_the_same_bits(
    cluster: Nodes, tmp_path: Path
) -> None:
    (tmp_path / "job").mkdir()
    job = make_job(tmp_path / "job")
    here = open_context(job, tmp_path / "here", "iterative", *SETTINGS)
    begin(here)
    ray = ("cluster.kind=ray", f"cluster.address={cluster.address}", "cluster.lost_after=30")
    there = open_context(job, tmp_path / "there", "iterative", *SETTINGS, *ray)
    prepare_run(there.config, there.run.root)
    begin(there)
    with Workers(here.run.root, here.config) as workers:
        run_stage(here, 1, "samples", workers)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(there.run.root)]
    driver = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert driver.stdout is not None
    try:
        done = 0
        while done < 4:
            line = driver.stdout.readline()
            assert line, "the driver ended"
            done = int(line) if line.strip().isdecimal() else done
        with pytest.raises(RunLockedError), hold_run(there.run.root):
            pass
        assert actors(there.run.root)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 200
    while actors(there.run.root):
        assert time.monotonic() < deadline, "engines outlive their driver"
        time.sleep(0.2)
    sealed = sorted(file.name for file in there.run.stage(1, "samples").partial.glob("shard_*.parquet"))
    assert 0 < len(sealed) < 4
    with hold_run(there.run.root), Workers(there.run.root, there.config) as workers:
        run_stage(there, 1, "samples", workers)
    assert groups(there.run.root) == groups(here.run.root)
