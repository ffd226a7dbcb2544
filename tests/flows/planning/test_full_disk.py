"""Storage that fails, for real: a small file system in memory, mounted for the test."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.commands.verify import verify_run
from flows.planning.machine import stage_bytes
from flows.report.terminal import read_rounds
from flows.run_folder.redo import set_aside
from flows.stages.context import Context
from flows.stages.run import run_stage
from flows.workers.local import Workers
from pipeline.config.files import load_config
from pipeline.errors import RunError
from pipeline.storage.run_folder import RunFolder
from reward_models.answers.cache import LabelCache
from reward_models.answers.spending import Call, Ledger
from tests.support.finished_run import complete, digests, finished
from tests.support.places import ROOT
from tests.support.tiny_run import InventedResponses, make_job

SIZE = 8 * 2**20


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None and Path("/proc/filesystems").exists()


pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(not can_mount(), reason="only root mounts a file system to fill"),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return finished(job, tmp_path_factory.mktemp("whole") / "run", "rounds=1", "check_disk=false")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        command("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine mounts nothing: {error.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.fixture
def run(whole: Context, disk: Path) -> Context:
    shutil.copytree(whole.run.root, disk / "run")
    return Context(RunFolder(disk / "run"), whole.config)


def fill(disk: Path, leaving: int) -> Path:
    """A file that leaves so many bytes of the disk free."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - leaving))
    return filler


@pytest.mark.parametrize("stage", ["samples", "labels", "policy", "evaluation"])
def test_a_disk_that_fills_stops_the_stage_and_room_lets_it_go_on(
    whole: Context, run: Context, disk: Path, stage: str
) -> None:
    set_aside(run.run, run.config, 1, stage)
    before = digests(run.run)
    shutil.rmtree(run.run.root / "set_aside")
    filler = fill(disk, leaving=0 if stage != "policy" else 100_000)
    workers: Any = InventedResponses(run.policy_path(0))
    with pytest.raises(RunError) as error:
        run_stage(run, 1, stage, workers)
    told = str(error.value)
    assert "the disk is full, or a limit is reached (No space left on device)" in told
    assert f"the run was writing round_001/{stage}." in told and "bytes are needed" in told
    assert digests(run.run) == before and not verify_run(run.run.root).faults
    filler.unlink()
    complete(run)
    assert digests(run.run) == digests(whole.run)


def test_the_trainers_process_says_so_too_though_its_log_is_on_the_same_disk(run: Context, disk: Path) -> None:
    set_aside(run.run, run.config, 1, "policy")
    shutil.rmtree(run.run.root / "set_aside")
    (run.run.root / "logs").mkdir()
    fill(disk, leaving=50_000)
    with Workers(run.run.root, run.config) as workers, pytest.raises(RunError) as error:
        workers.run_stage(1, "policy", lambda done, total, note: None)
    assert "No space left on device" in str(error.value) and "Traceback" not in str(error.value)
    assert not verify_run(run.run.root).faults


def test_a_stage_that_has_no_room_is_not_begun(run: Context, disk: Path, job: Path) -> None:
    set_aside(run.run, run.config, 1, "policy")
    shutil.rmtree(run.run.root / "set_aside")
    checked = Context(run.run, load_config([job / "iterative.yaml"], ["rounds=1"]))
    needed = stage_bytes(checked.run, checked.config, 1, "policy")
    filler = fill(disk, leaving=needed - 4096)
    with pytest.raises(RunError, match=rf"round_001/policy: needs about {needed:,} bytes, and its disk has [\d,]+ "):
        run_stage(checked, 1, "policy")
    assert not checked.run.stage(1, "policy").partial.exists()
    filler.unlink()
    assert run_stage(checked, 1, "policy")


def test_what_is_asked_for_is_about_what_is_written(whole: Context) -> None:
    for stage in whole.run.stages():
        size = sum(file.stat().st_size for file in stage.folder.rglob("*.safetensors"))
        asked = stage_bytes(whole.run, whole.config, stage.round, stage.name)
        assert asked >= size, stage.title
        assert asked < 1.5 * size or not size, stage.title


TRAINS_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import load_config
from pipeline.storage.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
config = load_config([run.config_file])
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    run_stage(Context(run, config), 1, "policy")
except BaseException as error:
    print(type(error).__name__, error)
"""


def test_a_limit_on_the_size_of_files_is_told_too(run: Context) -> None:
    set_aside(run.run, run.config, 1, "policy")
    code = [sys.executable, "-c", TRAINS_UNDER_A_LIMIT, str(run.run.root)]
    done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "RunError" in done.stdout and "File too large" in done.stdout, done.stdout + done.stderr


def test_a_read_only_run_is_shown_and_verified_and_not_written(run: Context, disk: Path) -> None:
    set_aside(run.run, run.config, 1, "evaluation")
    command("mount", "-o", "remount,ro", str(disk))
    assert len(read_rounds(run.run.root)) == 1 and not verify_run(run.run.root).faults
    with pytest.raises(RunError, match=r"cannot be written \(Read-only file system\); .* was writing round_001/ev"):
        run_stage(run, 1, "evaluation")


def test_a_mount_that_vanishes_is_told(run: Context, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_aside(run.run, run.config, 1, "pairs")
    from flows.stages import pairs

    def vanishes(context: Context, round_: int, dropped: Counter[str]) -> Any:
        command("umount", "-l", str(disk))
        return iter(made)

    made = [*pairs.own(run, 1, Counter())]
    monkeypatch.setattr(pairs, "own", vanishes)
    with pytest.raises(RunError, match=r"the run folder is gone; is its disk mounted.* writing round_001/pairs"):
        run_stage(run, 1, "pairs")
    assert not run.run.root.exists()


def test_labels_and_costs_that_cannot_be_kept_are_told_with_their_file(disk: Path) -> None:
    cache, ledger = LabelCache(disk / "labels.sqlite"), Ledger(disk / "spending.jsonl")
    cache.write("first", 1.0)
    ledger.add(Call(stage="s", labeller="l", outcome="ok", cost=1.0))
    filler = fill(disk, leaving=0)
    with pytest.raises(OSError, match=r"No space left.*labels\.sqlite") as error:
        for number in range(10_000):
            cache.write(f"key {number}", 1.0)
    assert isinstance(error.value.__cause__, sqlite3.Error)
    with pytest.raises(OSError, match=r"No space left.*spending\.jsonl"):
        for _ in range(10_000):
            ledger.add(Call(stage="s", labeller="l", outcome="ok", cost=1.0))
    filler.unlink()
    written = ledger.finished
    again = Ledger(disk / "spending.jsonl")
    # The call whose line was torn is the one that stopped the run.
    assert again.finished == written - 1
    again.add(Call(stage="s", labeller="other", outcome="ok", cost=7.0))
    assert Ledger(disk / "spending.jsonl").spent(lambda call: call.labeller == "other").cost == 7.0
    assert cache.read(["first"]) == {"first": (1.0, None)}
    cache.close()


def test_a_full_disk_under_prefect_is_told(job: Path, disk: Path, tmp_path: Path) -> None:
    place, root = ROOT, tmp_path / "run"
    fill(disk, leaving=0)
    command = [sys.executable, "-m", "flows", "run", str(job / "offline.yaml"), "--run-dir", str(root)]
    home = {**os.environ, "PREFECT_HOME": str(disk), "PYTHONPATH": str(place)}
    done = subprocess.run(command, cwd=place, env=home, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"its database is in {disk}, where 0 bytes are free; see {root / 'logs'}" in done.stderr
