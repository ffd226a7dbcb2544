"""Stages that were being written when a run was killed, and whose files were damaged before it went on."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.errors import RunError
from pipeline.storage.run_folder import RunFolder, StageWriter
from pipeline.storage.seals import MARKER, SEALS
from pipeline.training.batches.reference_cache import ENTRY
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context

# What holds seconds, and what tells where from the others are.
OF_ONE_TRY = {"steps.jsonl", ENTRY}
SMALL = ("shard_size=2", "prompts_per_round=6", "training.checkpoint_every=1", "rounds=1")
BOUGHT = (
    "discriminator={budget: 6, gate: {held_out: 0.3, comparisons: 1, accuracy: 0.5, error: 1}}",
    "discriminator.training={epochs: 1, batch_size: 4}",
)


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def killed_before_commit(context: Context, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make all of the stage but its manifest; SHA-256 of what a whole one would have."""

    def killed(writer: StageWriter, rows: int, metrics: Any) -> None:
        raise KilledError

    workers: Any = InventedResponses(context.policy_path(0))
    with monkeypatch.context() as patch:
        patch.setattr(StageWriter, "commit", killed)
        with pytest.raises(KilledError):
            run_stage(context, 1, name, workers)
    shutil.copytree(context.run.root, whole := context.run.root.with_name("whole"))
    run_stage(Context(RunFolder(whole), context.config), 1, name, workers)
    return files_of(RunFolder(whole), name)


def files_of(run: RunFolder, name: str) -> dict[str, str]:
    facts = run.stage(1, name).require().files
    return {file: str(told["sha256"]) for file, told in facts.items() if Path(file).name not in OF_ONE_TRY}


def damage(file: Path, lots: random.Random) -> None:
    data = bytearray(file.read_bytes())
    match lots.choice(("flip", "flip", "flip", "cut", "zero")):
        case "flip":
            data[lots.randrange(len(data))] ^= 1 << lots.randrange(8)
        case "cut":
            del data[lots.randrange(len(data)) :]
        case _:
            start = lots.randrange(len(data))
            data[start : start + 64] = bytes(len(data[start : start + 64]))
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("stages", "settings", "tries"),
    [
        ("samples", (), 12),
        ("samples labels", (), 12),
        ("samples labels pairs calibration", ("loss.preset=xpo",), 6),
        ("samples labels pairs reference", (), 5),
        ("samples gold", BOUGHT, 5),
        ("samples gold discriminator", BOUGHT, 3),
        ("samples gold discriminator labels", BOUGHT, 3),
    ],
)
def test_what_is_damaged_of_an_unfinished_stage_is_made_again(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: str, settings: tuple[str, ...], tries: int
) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *SMALL, *settings)
    begin(context)
    workers: Any = InventedResponses(context.policy_path(0))
    *before, name = stages.split()
    for one in before:
        run_stage(context, 1, one, workers)
    whole = killed_before_commit(context, name, monkeypatch)
    for number in range(tries):
        assert made_after_damage(context, name, number) == whole, number


def made_after_damage(context: Context, name: str, number: int) -> dict[str, str]:
    """What the stage holds that goes on after a file of it was damaged by lot."""
    lots, root = random.Random(number), context.run.root.with_name("again")
    shutil.copytree(context.run.root, root)
    again = Context(RunFolder(root), context.config)
    files = sorted(file for file in again.run.stage(1, name).partial.rglob("*") if file.is_file())
    assert len(files) > 2
    damage(lots.choice(files), lots)
    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(again, 1, name, workers)
    made = files_of(again.run, name)
    shutil.rmtree(root)
    return made


def test_what_was_taken_from_the_cache_is_looked_at_again(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *SMALL, "training.reference_cache=../cache")
    begin(context)
    workers: Any = InventedResponses(context.policy_path(0))
    for name in ("samples", "labels", "pairs"):
        run_stage(context, 1, name, workers)
    shutil.copytree(context.run.root, first := tmp_path / "first")
    run_stage(Context(RunFolder(first), context.config), 1, "reference")
    whole = killed_before_commit(context, "reference", monkeypatch)
    assert (context.run.stage(1, "reference").partial / "reference_0" / ENTRY).is_file()
    for number in range(5):
        assert made_after_damage(context, "reference", number) == whole, number


def test_a_file_that_changes_before_the_commit_is_named_and_made_again(job: Path, tmp_path: Path) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *SMALL)
    begin(context)
    workers: Any = InventedResponses(context.policy_path(0))
    stage = context.run.stage(1, "samples")

    def report(done: int, total: int, note: str) -> None:
        shard = stage.partial / "shard_00000.parquet"
        if done == total:
            # In the footer, which has no checksum of its own, and where no reader looks.
            shard.write_bytes(shard.read_bytes().replace(b"parquet-cpp", b"parquet-cpq"))

    with pytest.raises(RunError, match=r"shard_00000\.parquet: has changed since it was written"):
        run_stage(Context(context.run, context.config, report), 1, "samples", workers)
    assert not stage.folder.exists()
    assert run_stage(context, 1, "samples", workers) and not [*stage.folder.rglob(SEALS)]


def test_a_damaged_marker_is_told_and_the_stage_begun_anew(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context = open_context(job, tmp_path / "run", "iterative", *SMALL)
    begin(context)
    whole = killed_before_commit(context, "samples", monkeypatch)
    (context.run.stage(1, "samples").partial / MARKER).write_bytes(b"{\xff")
    workers: Any = InventedResponses(context.policy_path(0))
    run_stage(context, 1, "samples", workers)
    assert files_of(context.run, "samples") == whole
    assert "key.json: not as it was written; the stage starts again" in caplog.text
