import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError, UserError
from pipeline.storage.digests import file_sha256
from pipeline.storage.manifest import StageKey
from pipeline.storage.parquet.group_columns import GROUPS
from pipeline.storage.rows import (
    read_groups,
    read_preference_rows,
    read_rows,
    write_groups,
    write_preferences,
    write_table,
)
from pipeline.storage.run_folder import RunFolder
from pipeline.types import Group, Message, Pair, Prompt, Response

KEY = StageKey({"sampling": {"n": 4}}, {"round_000/policy": "abc"}, seed=3)
PROMPT = Prompt((Message("system", "be brief"), Message("user", "hé\nllo")), source="t", answer="a")
YES = Response("ja", (5, 6, 2), (-0.5, -1.25, -0.125), "stop")
NO = Response("", (7,), (), "length")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    groups = [Group(PROMPT, (1, 2), (YES, NO), (0.5, None)), Group(PROMPT, (1,), (YES,))]
    pairs = [Pair(PROMPT, (1, 2), YES, NO, 1.0, None, 0.75, 2)]
    (tmp_path / "g").mkdir()
    (tmp_path / "p").mkdir()
    assert write_groups(tmp_path / "g" / "shard_00000.parquet", groups) == 2
    write_preferences(tmp_path / "p" / "rows.parquet", pairs)
    assert list(read_groups(tmp_path / "g")) == groups
    assert list(read_preference_rows(tmp_path / "p")) == pairs


def test_a_row_that_fails_half_way_leaves_no_table(tmp_path: Path) -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield {"prompt": None, "prompt_ids": [1], "responses": [], "scores": []}
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_table(tmp_path / "rows.parquet", GROUPS, rows())
    assert not (tmp_path / "rows.parquet").exists()
    assert list(read_rows(tmp_path)) == []


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_groups(tmp_path / "rows.parquet", [Group(PROMPT, (1,), (YES,))])
    data = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(data[:-20])
    with pytest.raises(RunError, match=r"rows\.parquet: cannot be read"):
        list(read_groups(tmp_path))


def test_a_stage_exists_only_when_it_is_complete(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(1, "samples")
    writer = stage.begin(KEY)
    (writer.folder / "a.txt").write_text("x")
    assert not stage.folder.exists() and not stage.complete(KEY)
    manifest = writer.commit(1, {"tokens": 9})
    assert stage.complete(KEY) and not stage.partial.exists()
    assert manifest.files["a.txt"] == {"sha256": file_sha256(stage.folder / "a.txt"), "bytes": 1}
    assert stage.require() == manifest
    assert {"prefloop", "torch"} <= manifest.versions.keys()


class Killed(BaseException):
    pass


def test_a_commit_that_is_killed_at_any_of_its_steps_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: Iterator[int]

    def watched(step: Callable[..., Any], last: int) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if next(passed) == last:
                raise Killed
            return step(*args, **kwargs)

        return stepping

    for last in itertools.count():
        stage = RunFolder(tmp_path / str(last)).stage(1, "samples")
        writer, passed = stage.begin(KEY), itertools.count()
        (writer.folder / "shard_00000.parquet").write_text("paid for")
        (writer.folder / "checkpoints" / "step_000001").mkdir(parents=True)
        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
                patch.setattr(os, name, watched(getattr(os, name), last))
            writer.commit(1, {})
            break
        if not (stage.folder.exists() or (stage.partial / "manifest.json").exists()):
            assert (stage.partial / "checkpoints" / "step_000001").is_dir()
        if not stage.folder.exists():
            writer = stage.begin(KEY)
            assert (writer.folder / "shard_00000.parquet").read_text() == "paid for"
            writer.commit(1, {})
        assert list(stage.require().files) == ["shard_00000.parquet"]
        assert sorted(file.name for file in stage.folder.iterdir()) == ["manifest.json", "shard_00000.parquet"]
        assert not stage.partial.exists()
    assert last > 6


def test_shards_of_a_killed_try_are_kept_and_those_of_another_key_are_not(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(1, "samples")
    (stage.begin(KEY).folder / "shard_00000.parquet").write_text("paid for")
    assert (stage.begin(KEY).folder / "shard_00000.parquet").read_text() == "paid for"
    other = StageKey(KEY.config, KEY.inputs, seed=4)
    assert not (stage.begin(other).folder / "shard_00000.parquet").exists()


def test_a_stage_under_another_key_names_what_changed(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(1, "samples")
    stage.begin(KEY).commit(0, {})
    before = sorted(path.name for path in stage.folder.iterdir())
    with pytest.raises(UserError, match=r"sampling\.n: 4 -> 8"):
        stage.complete(StageKey({"sampling": {"n": 8}}, KEY.inputs, 3))
    with pytest.raises(UserError, match="input round_000/policy"):
        stage.complete(StageKey(KEY.config, {"round_000/policy": "new"}, 3))
    assert sorted(path.name for path in stage.folder.iterdir()) == before


def test_missing_files_and_edited_manifests_are_found(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage(1, "samples")
    writer = stage.begin(KEY)
    (writer.folder / "a.txt").write_text("abc")
    writer.commit(1, {})
    (stage.folder / "a.txt").write_text("ab")
    with pytest.raises(RunError, match=r"a\.txt: missing, or its size differs"):
        stage.require()
    (stage.folder / "manifest.json").write_text(json.dumps({"stage": "samples"}))
    with pytest.raises(RunError, match="not a readable manifest"):
        stage.require()


def test_ids_depend_on_content_alone() -> None:
    assert PROMPT.id == Prompt(PROMPT.messages, source="elsewhere", answer="b").id
    assert PROMPT.id != Prompt((Message("user", "hé\nllo"),)).id


def test_a_flipped_bit_in_a_table_is_found_though_nothing_vouches_for_it_yet(tmp_path: Path) -> None:
    file = tmp_path / "shard_00000.parquet"
    write_groups(file, [Group(PROMPT, (1, 2), (YES, NO), (0.5, None))] * 64)
    whole, found = file.read_bytes(), 0
    # Behind the data is the footer, whose length stands before the last four bytes. In headers a bit may mean nothing.
    data = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(4, data):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert list(read_groups(tmp_path)) == [Group(PROMPT, (1, 2), (YES, NO), (0.5, None))] * 64
        except RunError:
            found += 1
    assert found > data // 2 > 100
