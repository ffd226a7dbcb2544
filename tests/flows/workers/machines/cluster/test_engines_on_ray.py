"""Engines on two machines of a Ray cluster: whatever is lost, the answers have the bits of one process."""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.workers.machines.cluster import connection
from flows.workers.machines.cluster.crew import Crew
from flows.workers.machines.cluster.home import Home
from flows.workers.machines.cluster.remote import RemoteChild
from flows.workers.pool import sampler_pool
from flows.workers.pool.sampler_pool import SamplerPool
from pipeline import config
from pipeline.config import RayCluster, RunConfig, SamplingSettings
from pipeline.errors import RunError, UserError
from pipeline.sampling.sampler import SampleRequest
from pipeline.types import Response
from tests.support.places import ROOT
from tests.support.ray_cluster import Nodes, kill
from tests.support.tiny_model import save_tiny_model
from tests.support.tiny_sampler import write_true_probe

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

SETTINGS = SamplingSettings(n=2, max_tokens=8)
ENGINE = config.TransformersSampler(dtype="float32", batch_size=4, engines=2, keep_warm="never")
KEY = "SOME_API_KEY"


def requests(count: int) -> list[SampleRequest]:
    draw = random.Random(1)
    return [SampleRequest(tuple(draw.randrange(7, 290) for _ in range(draw.randrange(3, 40))), i) for i in range(count)]


ASKED = requests(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_true_probe(save_tiny_model(tmp_path_factory.mktemp("policy")))


def run_config(folder: Path, address: str, **more: Any) -> RunConfig:
    settings = {"kind": "ray", "address": address, "lost_after": 20, "place_timeout": 60, **more}
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "mode": "offline",
            "policy": {"path": str(folder)},
            "pairs": {"path": str(folder / "pairs.jsonl")},
            "prompts": {"path": str(folder / "pairs.jsonl")},
            "sampler": ENGINE.model_dump(),
            "cluster": settings,
        }
    )


@pytest.fixture(scope="module")
def crew(cluster: Nodes, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    os.environ[KEY] = "sk-abcdefghijklmnop"
    chosen = run_config(folder, cluster.address)
    assert isinstance(chosen.cluster, RayCluster)
    made = Crew(chosen.cluster, chosen, tmp_path_factory.mktemp("run"))
    yield made
    made.close()
    del os.environ[KEY]


@pytest.fixture(scope="module")
def pool(crew: Crew, folder: Path) -> Iterator[SamplerPool]:
    patch = pytest.MonkeyPatch()
    patch.setattr(sampler_pool, "SORTED_TOGETHER", 8)
    log = crew._root / "logs" / "sampler.log"
    with SamplerPool(ENGINE, config.ChatSettings(), log, seats=crew.seating.engines, start=crew.start) as made:
        yield made
    patch.undo()


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "Bits":
    """What one process on this machine answers."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sampler_pool, "SORTED_TOGETHER", 8)
    with SamplerPool(ENGINE, config.ChatSettings(), tmp_path_factory.mktemp("one") / "sampler.log") as one:
        one.load(str(folder))
        found = bits(list(one.sample(ASKED, SETTINGS)))
    patch.undo()
    return found


Bits = list[list[tuple[tuple[int, ...], tuple[float, ...]]]]


def bits(groups: Sequence[tuple[Response, ...]]) -> Bits:
    return [[(r.token_ids, r.logprobs) for r in group] for group in groups]


def host(pool: SamplerPool, number: int) -> Any:
    worker = pool.engines[number]._worker
    assert isinstance(worker, RemoteChild)
    return worker._host


def ask(actor: Any, name: str) -> Any:
    import ray

    return ray.get(actor.__getattr__(name).remote(), timeout=600)


def test_engines_on_two_machines_give_the_bits_of_one_process_and_have_no_keys(
    pool: SamplerPool, folder: Path, expected: Bits
) -> None:
    assert [seat.name for seat in (e._seat for e in pool.engines)] == ["engine 0", "engine 1"]
    loaded = pool.load(str(folder))
    assert loaded.how == "start" and loaded.max_difference < 1e-5
    assert bits(list(pool.sample(ASKED, SETTINGS))) == expected
    for number in (0, 1):
        actor, child = ask(host(pool, number), "facts")["pid"], ask(host(pool, number), "pid")
        assert psutil.Process(actor).environ()[KEY] == ""
        assert KEY not in psutil.Process(child).environ()
        assert not any(name.startswith("RAY_") for name in psutil.Process(child).environ())
        suffix = "_1" if number else ""
        assert (pool.engines[0]._log.with_name(f"sampler{suffix}.log")).is_file()


def test_a_killed_actor_is_replaced_and_costs_no_answer(pool: SamplerPool, folder: Path, expected: Bits) -> None:
    pool.load(str(folder))
    lost = host(pool, 1)
    answers = pool.sample(ASKED, SETTINGS)
    got = [next(answers)]
    kill(ask(lost, "facts")["pid"])
    assert bits([*got, *answers]) == expected


@pytest.mark.whole
def test_a_killed_engine_is_replaced_and_costs_no_answer(pool: SamplerPool, folder: Path, expected: Bits) -> None:
    pool.load(str(folder))
    answers = pool.sample(ASKED, SETTINGS)
    got = [next(answers)]
    kill(ask(host(pool, 0), "pid"))
    assert bits([*got, *answers]) == expected


@pytest.mark.whole
def test_a_hanging_actor_is_dropped_and_costs_no_answer(pool: SamplerPool, folder: Path, expected: Bits) -> None:
    pool.load(str(folder))
    hung = host(pool, 1)
    actor = ask(hung, "facts")["pid"]
    answers = pool.sample(ASKED, SETTINGS)
    got = [next(answers)]
    os.kill(actor, signal.SIGSTOP)
    try:
        assert bits([*got, *answers]) == expected
    finally:
        kill(actor)


def test_wrong_weights_are_refused_on_every_machine(pool: SamplerPool, tmp_path: Path) -> None:
    other = write_true_probe(save_tiny_model(tmp_path / "policy"))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096] + bytes(4096))
    with pytest.raises(RunError, match="weights"):
        pool.load(str(other))
    pool.kill()


def test_a_lost_machine_leaves_its_work_to_the_others(
    pool: SamplerPool, cluster: Nodes, folder: Path, expected: Bits
) -> None:
    pool.load(str(folder))
    worker = next(iter(cluster._cluster.worker_nodes))
    answers = pool.sample(ASKED, SETTINGS)
    got = [next(answers)]
    cluster.lose(worker)
    assert bits([*got, *answers]) == expected
    cluster.add()
    pool.load(str(folder))
    assert bits(list(pool.sample(ASKED, SETTINGS))) == expected
    pool.close()


def refusal(chosen: RunConfig, root: Path) -> str:
    assert isinstance(chosen.cluster, RayCluster)
    with pytest.raises(UserError) as error:
        Crew(chosen.cluster, chosen, root)
    assert len(str(error.value).splitlines()) <= 4
    return str(error.value)


def test_more_than_the_cluster_has_is_refused_at_once(cluster: Nodes, folder: Path, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    told = refusal(run_config(folder, cluster.address, engine_cpus=2), tmp_path)
    assert "no machine is left for one engine of 2 cores" in told
    assert "needed, each on one machine: 2 engines of 2 cores" in told
    assert "machines: 1 core, 1 core" in told


def test_other_code_and_another_folder_are_refused(
    cluster: Nodes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = connection.home_of

    def other(root: Path, hidden: frozenset[str], *, joins: bool) -> Home:
        real = made(root, hidden, joins=joins)
        return replace(real, versions={**real.versions, "torch": "0.0.1"})

    def elsewhere(root: Path, hidden: frozenset[str], *, joins: bool) -> Home:
        return replace(made(root, hidden, joins=joins), mark="another")

    monkeypatch.setattr(connection, "home_of", other)
    told = refusal(run_config(folder, cluster.address), tmp_path)
    assert f"on {socket.gethostname()}, but 0.0.1 where the run is driven" in told
    monkeypatch.setattr(connection, "home_of", elsewhere)
    assert "is another folder" in refusal(run_config(folder, cluster.address), tmp_path)


def test_what_is_no_cluster_is_refused_in_time(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = refusal(run_config(folder, address, connect_timeout=3), tmp_path)
    assert told.startswith(f"cluster.address: {address}: what answers there is no Ray cluster")


LATE = """
from flows.workers.machines.cluster.connection import prepare_ray
prepare_ray(loopback=True)
import ray
try:
    ray.put(1)
except ray.exceptions.RaySystemError:
    print(ray.is_initialized())
"""


def test_a_call_after_the_end_starts_no_cluster_here(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LATE], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout == "False\n", done.stderr
    assert not (tmp_path / ".ray").exists()
