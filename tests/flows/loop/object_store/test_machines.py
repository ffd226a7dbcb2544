"""A run on one "machine", killed, and gone on with on another: real processes, a real S3 server, the same bits."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.loop.object_store.address import WORK_VARIABLE
from flows.loop.object_store.client import ObjectStore
from pipeline.storage.run_folder import RunFolder
from tests.faults.results import is_shard, results
from tests.support.places import ROOT
from tests.support.s3_server import S3Server
from tests.support.tiny_loop import prefloop

# ``prefloop`` on a machine of another name, whose boot is another too.
_ELSEWHERE = """
import socket, sys
from dataclasses import replace
from pipeline.storage import holder
name, made = sys.argv.pop(1), holder.own_holder
named = lambda patience: replace(made(25.0), host=name, machine=name)
from flows.loop.object_store import held, store_lease
held.SHARD_SECONDS = 0.1
from flows.run_folder import lease
store_lease.own_holder = lease.own_holder = named
from flows.__main__ import main
main()
"""


@dataclass
class Machine:
    """A name, and an environment with work folders of its own."""

    name: str
    environment: dict[str, str]
    store: ObjectStore
    begun: "list[subprocess.Popen[str]]"

    @property
    def root(self) -> Path:
        address = self.store.address
        return Path(self.environment[WORK_VARIABLE], address.scheme, address.bucket, address.prefix)

    def begin(self, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _ELSEWHERE, self.name, *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.begun.append(process)
        return process

    def run(self, config: Path) -> tuple[int, str]:
        process = self.begin("run", config, "--run-dir", self.store.address)
        said = "".join(process.communicate(timeout=600))
        return process.returncode, said


@pytest.fixture
def machines(
    s3: S3Server, home: dict[str, str], store: ObjectStore, tmp_path: Path
) -> Iterator[Callable[[str], Machine]]:
    begun: list[subprocess.Popen[str]] = []

    def machine(name: str) -> Machine:
        own = {WORK_VARIABLE: str(tmp_path / name), "PREFECT_HOME": str(tmp_path / f"prefect_{name}")}
        return Machine(name, {**home, **s3.environment, **own}, store, begun)

    yield machine
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def slow_config(loop_config: Path, tmp_path: Path) -> Path:
    """One round, sampled in many shards by an engine that works in its child process alone."""
    file = tmp_path / "slow.yaml"
    text = loop_config.read_text().replace("rounds: 2", "rounds: 1").replace("shard_size: 10", "shard_size: 2")
    text = text.replace("n: 4", "n: 16")
    file.write_text(text.replace("sampler: {dtype: float32, max_num_seqs: 8}", "sampler: {kind: transformers}"))
    return file


def wait_until(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        if process.poll() is not None:
            pytest.fail("".join(process.communicate()))
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.whole
def test_a_run_that_is_killed_on_one_machine_goes_on_with_the_same_bits_on_another(
    machines: Callable[[str], Machine], slow_config: Path, home: dict[str, str], tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    done = prefloop(home, "run", slow_config, "--run-dir", undisturbed)
    assert done.returncode == 0, done.stderr
    first, second = machines("first"), machines("second")

    def shards() -> list[str]:
        return [name for name in first.store.listing() if "round_001/samples.partial/" in name and is_shard(name)]

    process = first.begin("run", slow_config, "--run-dir", first.store.address)
    wait_until(process, lambda: len(shards()) > 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert shards() and "round_001/samples/manifest.json" not in first.store.listing()
    code, said = second.run(slow_config)
    assert code == 0, said
    assert "taken over from process" in said and "on first" in said, said
    assert "round 0 · policy: already complete" in said, said
    assert results(second.root) == results(undisturbed) != {}
    for file in sorted(undisturbed.glob("round_*/*samples/**/*.parquet")):
        assert (second.root / file.relative_to(undisturbed)).read_bytes() == file.read_bytes(), file
    # The shards that the first machine had made are its own files.
    assert [stage.title for stage in RunFolder(second.root).stages()] == [
        stage.title for stage in RunFolder(undisturbed).stages()
    ]
    for command in (["verify"], ["show"], ["pairs"], ["report"]):
        third = machines("third").begin(*command, first.store.address)
        out = "".join(third.communicate(timeout=300))
        assert third.returncode == 0, out
    assert "all as they were written" in prefloop(home, "verify", machines("third").root).stdout
    kept = "".join(file.read_text(errors="replace") for file in second.root.rglob("*") if file.suffix in _TEXTS)
    assert "secret-of-the-tests" not in kept and "key-of-the-tests" not in kept and len(kept) > 10_000


_TEXTS = {".json", ".jsonl", ".yaml", ".log", ".html", ".md"}


@pytest.mark.whole
@pytest.mark.parametrize("how", ["gone", "refusing"])
def test_a_store_that_fails_meanwhile_ends_the_run_and_loses_nothing(
    how: str, machines: Callable[[str], Machine], slow_config: Path, s3: S3Server
) -> None:
    first = machines("first")
    process = first.begin("run", slow_config, "--run-dir", first.store.address)
    wait_until(process, lambda: "round_000/data/manifest.json" in first.store.listing())
    with s3.failing(how):
        said = "".join(process.communicate(timeout=300))
    assert process.returncode == 1, said
    assert f"{first.store.address}: the store" in said and "the same command continues" in said
    assert "Traceback" not in said
    local = [stage.title for stage in RunFolder(first.root).stages()]
    assert "round_000/policy" in local
    missing = [title for title in local if f"{title}/manifest.json" not in first.store.listing()]
    assert missing
    code, said = first.run(slow_config)
    assert code == 0, said
    assert f"round 0 · {missing[0].partition('/')[2]}: already complete" in said
    there = first.store.listing()
    assert all(f"{stage.title}/manifest.json" in there for stage in RunFolder(first.root).stages())
