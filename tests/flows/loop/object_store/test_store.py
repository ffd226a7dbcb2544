"""Runs in a real S3 server: what one machine publishes another gets, and one of them writes."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flows.loop.object_store.address import WORK_VARIABLE, StoreError, linked
from flows.loop.object_store.client import ObjectStore
from flows.loop.object_store.held import hold_run
from flows.loop.object_store.store_lease import LEASE_OBJECT, hold_url
from flows.loop.object_store.transfer import fetch
from flows.loop.preparation import prepare_run
from flows.run_folder.retention import free_room
from pipeline.config import RunConfig
from pipeline.config.files import load_config
from pipeline.errors import RunError, RunLockedError, UserError
from pipeline.storage.atomic import json_text, write_json
from pipeline.storage.holder import own_holder
from pipeline.storage.integrity import require_intact
from pipeline.storage.manifest import MANIFEST, DamagedError, StageKey
from pipeline.storage.run_folder import RunFolder
from pipeline.storage.seals import Seals
from tests.support.s3_server import S3Server
from tests.support.small_config import write_small_config

ELSEWHERE = {"host": "far", "machine": "another boot", "command": "prefloop run x"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config([write_small_config(tmp_path, tmp_path / "model", "rounds: 2")], ())


def machine(store: ObjectStore, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run on a machine of this name: its work folder, with what is in the store."""
    monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / name))
    return RunFolder(fetch(store.address, required=False))


def make(run: RunFolder, round_: int, name: str, text: str, made_from: tuple[str, ...] = ()) -> None:
    """A stage with two files, one of them in a folder."""
    keys = {title: run.stage(int(title[6:9]), title[10:]).require().key for title in made_from}
    writer = run.stage(round_, name).begin(StageKey({"text": text}, keys, 0))
    (writer.folder / "part").mkdir()
    (writer.folder / "rows.parquet").write_text(text)
    (writer.folder / "part" / "model.safetensors").write_text(text * 2)
    writer.commit(1, {})


def everything(run: RunFolder) -> dict[str, bytes]:
    files = (file for file in run.root.rglob("*") if file.is_file() and "round_" in str(file))
    return {file.relative_to(run.root).as_posix(): file.read_bytes() for file in files}


def test_what_one_machine_publishes_another_gets(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with hold_run(here.root) as held:
        make(here, 0, "data", "first")
        held.publish()
        names = [*store.listing()]
        assert "round_000/data/manifest.json" in names and "round_000/data/part/model.safetensors" in names
        make(here, 0, "policy", "second", ("round_000/data",))
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on "), hold_url(store, 10, 60):
            pass
        with pytest.raises(RunLockedError, match=f"s3://.* process {os.getpid()} on "):
            prepare_run(config, machine(store, "b", tmp_path, monkeypatch).root)
    there = machine(store, "b", tmp_path, monkeypatch)
    assert there.root != here.root and everything(there) == everything(here) != {}
    assert there.config() == config and require_intact(there.stage(0, "policy")).rows == 1
    prepare_run(config, there.root)
    with hold_run(there.root) as held:
        held.check()


def test_sealed_shards_of_a_killed_stage_are_gone_on_with(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, key = machine(store, "a", tmp_path, monkeypatch), StageKey({}, {}, 0)
    prepare_run(config, here.root)
    with pytest.raises(KeyboardInterrupt), hold_run(here.root):
        folder = here.stage(1, "samples").begin(key).folder
        for name in ("shard_0", "shard_1"):
            (folder / name).write_text(name)
            Seals(folder).files([folder / name])
        (folder / "shard_1").write_text("changed since")
        (folder / "shard_2").write_text("not sealed")
        raise KeyboardInterrupt
    there = machine(store, "b", tmp_path, monkeypatch)
    with hold_run(there.root) as held:
        folder = there.stage(1, "samples").begin(key).folder
        assert (folder / "shard_0").read_text() == "shard_0" and Seals(folder).hold("shard_0")
        assert not (folder / "shard_1").exists() and not (folder / "shard_2").exists()
        there.stage(1, "samples").begin(key).commit(1, {})
        held.publish()
        assert not [name for name in store.listing() if ".partial/" in name]


def test_a_file_that_has_changed_in_the_store_is_not_taken(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with hold_run(here.root):
        make(here, 0, "data", "first")
    store.write("round_000/data/rows.parquet", b"other")
    with pytest.raises(DamagedError, match=r"s3://.*/round_000/data/rows.parquet: has changed in the store"):
        machine(store, "b", tmp_path, monkeypatch)
    assert not (tmp_path / "b" / "s3" / store.address.bucket / store.address.prefix / "round_000" / "data").exists()
    store.remove(["round_000/data/rows.parquet"])
    with pytest.raises(DamagedError, match=r"rows.parquet: is missing in the store"):
        machine(store, "b", tmp_path, monkeypatch)


@pytest.mark.parametrize("how", ["refusing", "gone"])
def test_a_store_that_fails_meanwhile_loses_nothing_and_gets_the_rest_later(
    how: str,
    store: ObjectStore,
    s3: S3Server,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with hold_run(here.root) as held:
        make(here, 0, "data", "first")
        with s3.failing(how), pytest.raises(StoreError, match=r"All local work is intact in .*; the same command"):
            held.publish()
    assert "round_000/data/manifest.json" in store.listing()
    with s3.failing(how), pytest.raises(StoreError), hold_run(here.root):
        pass
    make(here, 0, "policy", "second", ("round_000/data",))
    prepare_run(config, here.root)
    assert everything(machine(store, "b", tmp_path, monkeypatch)) == everything(here)


def test_a_manifest_names_only_files_that_are_there(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    upload = ObjectStore.upload

    def killed(self: ObjectStore, name: str, file: Path, sha256: str) -> None:
        if name.endswith(".parquet"):
            raise KeyboardInterrupt
        upload(self, name, file, sha256)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), hold_run(here.root) as held:
        make(here, 0, "data", "first")
        patch.setattr(ObjectStore, "upload", killed)
        held.publish()
    names = [name for name in store.listing() if name.startswith("round_000")]
    assert names == ["round_000/data/part/model.safetensors"]
    prepare_run(config, here.root)
    assert everything(machine(store, "b", tmp_path, monkeypatch)) == everything(here)


def test_a_stage_that_another_process_has_published_is_not_written_over(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with pytest.raises(RunError, match="another process has published this stage"), hold_run(here.root) as held:
        make(here, 0, "data", "first")
        store.create("round_000/data/manifest.json", b"theirs")
        held.publish()
    found = store.read("round_000/data/manifest.json")
    assert found is not None and found[0] == b"theirs" and here.stage(0, "data").require().rows == 1


def test_whoever_was_taken_over_publishes_nothing(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with pytest.raises(RunError, match="taken over by process 7 on far"), hold_run(here.root) as held:
        make(here, 0, "data", "first")
        found = store.read(LEASE_OBJECT)
        assert found is not None
        other = replace(own_holder(0.3), token="t", pid=7, **ELSEWHERE)
        store.replace(LEASE_OBJECT, json_text(asdict(other)).encode(), found[1])
        held.publish()
    assert "round_000/data/manifest.json" not in store.listing()
    assert here.stage(0, "data").require().rows == 1


def test_a_stage_that_another_machine_has_made_meanwhile_is_taken_and_the_own_one_kept(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    make(here, 0, "data", "mine")
    make(here, 0, "policy", "from mine", ("round_000/data",))
    there = machine(store, "b", tmp_path, monkeypatch)
    with hold_run(there.root):
        make(there, 0, "data", "theirs")
    with hold_run(here.root):
        assert [stage.title for stage in here.stages()] == ["round_000/data"]
        assert (here.stage(0, "data").folder / "rows.parquet").read_text() == "theirs"
    kept = sorted(file.read_text() for file in here.root.glob("set_aside/*/round_000/*/rows.parquet"))
    assert kept == ["from mine", "mine"]


def test_what_is_set_aside_and_freed_here_is_so_in_the_store(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    with hold_run(here.root):
        make(here, 0, "data", "first")
        make(here, 0, "policy", "weights")
    with hold_run(here.root):
        place = here.root / "set_aside" / "20260101T000000Z"
        place.mkdir(parents=True)
        write_json(place / "moves.json", {"from": "round_000/data", "moves": ["round_000/data"]})
        (place / "round_000").mkdir()
        here.stage(0, "data").folder.rename(place / "round_000" / "data")
        policy = here.stage(0, "policy")
        write_json(
            policy.folder / "freed.json",
            {"files": {"part/model.safetensors": 14}, "reason": "retention", "time": "now"},
        )
        free_room(here, config)
    names = [*store.listing()]
    assert "round_000/policy/part/model.safetensors" not in names and "round_000/policy/freed.json" in names
    assert not [name for name in names if name.startswith("round_000/data/")]
    assert f"set_aside/20260101T000000Z/round_000/data/{MANIFEST}" in names
    there = machine(store, "b", tmp_path, monkeypatch)
    assert [stage.title for stage in there.stages()] == ["round_000/policy"]
    freed = there.stage(0, "policy").freed()
    assert freed is not None and [*freed.files] == ["part/model.safetensors"]


def test_people_s_answers_and_accounts_go_both_ways(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(store, "a", tmp_path, monkeypatch)
    prepare_run(config, here.root)
    there = machine(store, "b", tmp_path, monkeypatch)
    (there.root / "approvals").mkdir()
    write_json(there.root / "approvals" / "round_001.json", {"decision": "promote"})
    with hold_run(there.root):
        (there.root / "spending.jsonl").write_text('{"calls": 3}\n')
    here = machine(store, "a", tmp_path, monkeypatch)
    assert json.loads((here.root / "approvals" / "round_001.json").read_text()) == {"decision": "promote"}
    assert (here.root / "spending.jsonl").read_text() == '{"calls": 3}\n'
    assert not [name for name in store.listing() if name.startswith(("logs", ".lock", "store.json"))]


def test_an_object_whose_name_leads_out_of_the_folder_is_not_written(
    store: ObjectStore, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_run(config, machine(store, "a", tmp_path, monkeypatch).root)
    store.create("cards/../../../planted.md", b"x")
    with pytest.raises(RunError, match="is not inside it"):
        machine(store, "b", tmp_path, monkeypatch)
    assert not [*tmp_path.rglob("planted.md")]


def test_a_folder_of_another_run_is_no_work_folder(store: ObjectStore, tmp_path: Path, s3: S3Server) -> None:
    root = store.address.work_folder
    root.mkdir(parents=True)
    (root / "config.yaml").write_text("name: mine")
    with pytest.raises(UserError, match=f"holds a local run.*{WORK_VARIABLE}"):
        linked(store.address)
