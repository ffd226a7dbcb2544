import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.commands.verify import verify_run
from flows.run_folder.stage_table import reads
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json
from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import MANIFEST, DamagedError, Manifest
from pipeline.storage.run_folder import RunFolder
from tests.support.finished_run import complete, finished
from tests.support.tiny_run import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    return finished(job, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole: Context, tmp_path: Path) -> Context:
    shutil.copytree(whole.run.root, tmp_path / "run")
    return Context(RunFolder(tmp_path / "run"), whole.config)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def rewritten(context: Context, title: str, **changes: object) -> None:
    """A manifest changed by somebody who seals it anew."""
    file = context.run.root / title / MANIFEST
    manifest = Manifest(**{**json.loads(file.read_text()), **changes})  # type: ignore[arg-type]
    write_json(file, vars(manifest.sealed()))


def test_a_whole_run_is_as_it_was_written(run: Context) -> None:
    found = verify_run(run.run.root)
    assert not found.faults and len(found.stages) == 4 + 2 * 7
    assert {stage.state for stage in found.stages} == {"intact"}
    on_disk = [file for file in run.run.root.glob("round_*/*/**/*") if file.is_file() and file.name != MANIFEST]
    model = [file for file in Path(str(run.policy_path(0))).iterdir() if file.is_file()]
    assert sum(stage.files for stage in found.stages) == len(on_disk) + len(model)
    assert sum(stage.bytes for stage in found.stages) == sum(file.stat().st_size for file in [*on_disk, *model])


@pytest.mark.parametrize(
    ("title", "name", "what"),
    [
        ("round_001/samples", "shard_00000.parquet", "has changed"),
        ("round_001/policy", "model.safetensors", "has changed"),
        ("round_002/evaluation", "metrics.json", "has changed"),
    ],
)
def test_a_flipped_bit_is_found_when_the_file_is_read(run: Context, title: str, name: str, what: str) -> None:
    flip_a_bit(run.run.root / title / name)
    (fault,) = verify_run(run.run.root).faults
    assert fault.file == run.run.root / title / name and fault.what.startswith(what)


def test_what_is_to_be_read_is_read_first_and_the_message_says_what_to_do(run: Context) -> None:
    shutil.rmtree(run.run.stage(2, "evaluation").folder)
    flip_a_bit(run.run.stage(2, "policy").folder / "model.safetensors")
    with pytest.raises(DamagedError) as error:
        run_stage(run, 2, "evaluation")
    assert "round_002/policy is damaged" in str(error.value) and "model.safetensors: has changed" in str(error.value)
    assert "--from 2:policy" in str(error.value)
    assert not run.run.stage(2, "evaluation").partial.exists()


def test_truncated_missing_and_strange_files_are_named(run: Context) -> None:
    root = run.run.root
    shard = root / "round_001/labels/shard_00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    (root / "round_001/policy/model.safetensors").unlink()
    (root / "round_002/policy/more.safetensors").write_bytes(b"strange")
    named = {str(fault.file.relative_to(root)): fault.what for fault in verify_run(root).faults}
    size = shard.stat().st_size
    assert named == {
        "round_001/labels/shard_00000.parquet": f"has {size} bytes instead of {size + 7}",
        "round_001/policy/model.safetensors": "is missing",
        "round_002/policy/more.safetensors": "does not belong to this stage",
    }


def test_an_edited_manifest_is_found_whether_or_not_it_is_sealed_anew(run: Context) -> None:
    manifest = run.run.root / "round_001/samples" / MANIFEST
    original = manifest.read_text()
    manifest.write_text(original.replace('"rows": 8', '"rows": 9'))
    (fault,) = verify_run(run.run.root).faults
    assert fault.file == manifest and "not as it was written" in fault.what
    with pytest.raises(DamagedError, match=r"round_001/samples/manifest\.json.*--from 1:samples"):
        run.run.stage(1, "samples").require()
    manifest.write_text(original)
    rewritten(run, "round_001/samples", rows=9)
    told = {fault.stage: fault.what for fault in verify_run(run.run.root).faults}
    assert told == {"round_001/labels": "was made from another round_001/samples than is there"}
    with pytest.raises(DamagedError, match="was made from another round_001/samples"):
        run_stage(run, 1, "labels")


def test_another_seed_or_place_in_a_sealed_manifest_is_found(run: Context) -> None:
    rewritten(run, "round_002/evaluation", seed=7)
    rewritten(run, "round_002/average" if run.config.training.reference == "ema" else "round_001/evaluation", round=2)
    whats = [fault.what for fault in verify_run(run.run.root).faults]
    assert "its key does not match its settings and inputs" in whats
    assert "is the manifest of round 2, evaluation" in whats


def test_the_users_own_model_is_checked_too(job: Path, run: Context, tmp_path: Path) -> None:
    model = run.policy_path(0)
    shutil.copytree(model, tmp_path / "kept")
    try:
        flip_a_bit(model / "model.safetensors")
        (fault,) = verify_run(run.run.root).faults
        assert fault.file == model / "model.safetensors"
        shutil.rmtree(run.run.stage(1, "samples").folder)
        with pytest.raises(DamagedError, match="put back the model that the run was started with"):
            run_stage(run, 1, "samples")
        with pytest.raises(UserError, match=r"model_files\.model\.safetensors: "):
            run_stage(run, 0, "policy")
    finally:
        shutil.copy(tmp_path / "kept" / "model.safetensors", model / "model.safetensors")


def test_a_file_is_read_again_once_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    before = file_sha256(file)
    assert file_sha256(file.rename(tmp_path / "b")) == before
    (tmp_path / "b").write_bytes(b"abd")
    assert file_sha256(tmp_path / "b") != before


def test_every_stage_tells_what_it_reads(run: Context) -> None:
    """Files that Python itself opens or lists; those of parquet stand beside files or folders that it does."""
    root, here, seen = run.run.root, "", dict[str, set[str]]()

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if here and event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(f"{root}/round_"):
            seen.setdefault(here, set()).add("/".join(Path(str(arguments[0])).relative_to(root).parts[:2]))

    sys.addaudithook(listen)
    told: dict[str, set[str]] = {}
    for title in sorted(stage.title for stage in run.run.stages()):
        shutil.rmtree(root / title)

    from flows.stages import run as stages

    body = stages._body

    def watched(context: Context, round_: int, name: str, folder: Path, workers: object) -> object:
        nonlocal here
        here = f"round_{round_:03d}/{name}"
        told[here] = {stage.title for stage in reads(context.run, context.config, round_, name)}
        try:
            return body(context, round_, name, folder, workers)  # type: ignore[arg-type]
        finally:
            here = ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_body", watched)
        complete(run)
    own = {title: {title, f"{title}.partial"} for title in told}
    unknown = {title: found - told[title] - own[title] for title, found in seen.items()}
    assert not any(unknown.values()), unknown
    assert sum(len(seen[title] & told[title]) for title in seen) > 30


def test_the_command_names_damage_and_its_exit_code_tells(run: Context) -> None:
    command = CliRunner()
    fine = command.invoke(app, ["verify", str(run.run.root)])
    assert fine.exit_code == 0 and "all as they were written" in fine.output
    flip_a_bit(run.run.root / "round_001/pairs/rows.parquet")
    damaged = command.invoke(app, ["verify", str(run.run.root)])
    assert damaged.exit_code == 1 and "rows.parquet: has changed" in damaged.output.replace("\n", "")
    assert "--from 1:pairs" in damaged.output
    plain = json.loads(command.invoke(app, ["verify", str(run.run.root), "--json"]).stdout)
    assert plain["intact"] is False and [s["stage"] for s in plain["stages"] if s["faults"]] == ["round_001/pairs"]


def test_no_run_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        verify_run(tmp_path)


def test_an_incomplete_stage_cannot_be_read(run: Context) -> None:
    shutil.rmtree(run.run.stage(1, "pairs").folder)
    with pytest.raises(RunError, match="round_001/pairs"):
        run_stage(run, 1, "reference")
