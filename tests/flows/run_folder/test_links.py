"""Run folders with links and names that lead out of them: what is outside stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.commands.run import run_config
from flows.loop.opening import open_run
from flows.loop.preparation import prepare_run
from flows.run_folder.links import inside
from flows.run_folder.redo import finish_setting_aside
from flows.run_folder.retention import free_room
from flows.stages.context import Context
from flows.stages.run import run_stage
from pipeline.config.files import dump_config
from pipeline.errors import RunError, UserError
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.manifest import FREED, Freed, plain
from tests.support.tiny_run import InventedResponses, begin, make_job, open_context


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else, with names that a run uses too."""
    for name in ("shard_00000.parquet", "model.safetensors", "key.json", "notes.tmp", "manifest.json", "round_001/x"):
        file = tmp_path / "outside" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    return tmp_path / "outside"


@pytest.fixture
def run(job: Path, tmp_path: Path) -> Context:
    context = open_context(job, tmp_path / "run", "iterative")
    context.run.root.mkdir()
    write_text(context.run.config_file, dump_config(context.config))
    begin(context)
    return context


def untouched(outside: Path) -> bool:
    files = [file for file in outside.rglob("*") if file.is_file()]
    return len(files) == 6 and all(file.read_text() == "mine" for file in files)


@pytest.mark.parametrize(
    "link", ["round_001", "round_001/samples", "round_001/samples.partial", "set_aside", "logs", "questions"]
)
def test_a_folder_that_is_a_link_to_elsewhere_is_named_before_anything_is_done(
    job: Path, run: Context, outside: Path, link: str
) -> None:
    place = run.run.root / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(UserError, match=rf"{link}: a link to .*, outside the run folder"), open_run(run.run.root):
        pass
    with pytest.raises(UserError, match=rf"{link}: a link to"):
        run_config([job / "iterative.yaml"], [], run.run.root, False, None, "1:samples")
    assert untouched(outside)


def test_links_in_what_is_being_written_are_taken_away_and_not_followed(run: Context, outside: Path) -> None:
    stage = run.run.stage(1, "samples")
    workers: Any = InventedResponses(run.policy_path(0))
    stage.folder.parent.mkdir()
    stage.partial.symlink_to(outside)
    run_stage(run, 1, "samples", workers)
    whole = stage.require().files
    shutil.rmtree(stage.folder)
    stage.partial.mkdir()
    for name in ("shard_00000.parquet", "key.json", "shard_00000.parquet.tmp", ".seals.jsonl"):
        (stage.partial / name).symlink_to(outside / "shard_00000.parquet")
    (stage.partial / "more.tmp").symlink_to(outside)
    run_stage(run, 1, "samples", workers)
    assert stage.require().files == whole and untouched(outside)


def test_names_in_files_that_lead_out_are_refused(run: Context, outside: Path) -> None:
    policy = run.run.stage(0, "policy")
    for name in ("../../../outside/model.safetensors", str(outside / "model.safetensors")):
        write_json(policy.folder / FREED, plain(Freed({name: 4}, "retention", "now")))
        with pytest.raises(RunError, match="is not inside it; nothing was moved or removed"):
            free_room(run.run, run.config)
        place = run.run.root / "set_aside" / "x"
        place.mkdir(parents=True, exist_ok=True)
        (place / "moves.json").write_text(json.dumps({"moves": [name]}))
        with pytest.raises(RunError, match="is not inside it; nothing was moved or removed"):
            finish_setting_aside(run.run)
    assert untouched(outside)


def test_a_weight_file_that_is_a_link_is_removed_as_such(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(outside / "model.safetensors")
    inside(folder, "model.safetensors").unlink()
    (folder / "heads").symlink_to(outside)
    with pytest.raises(RunError, match="heads/model"):
        inside(folder, "heads/model.safetensors")
    assert untouched(outside)


def test_a_whole_run_may_be_behind_a_link(run: Context, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(run.run.root)
    prepare_run(run.config, tmp_path / "name")
    (tmp_path / "other").symlink_to(outside)
    with pytest.raises(UserError, match="not empty and not a run folder"):
        prepare_run(run.config, tmp_path / "other")
    assert untouched(outside)
