"""Folders as people keep them: several splits, folders that ``datasets`` saved, files that only point to data."""

import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import FileData, HeldOut, RunConfig
from pipeline.data.files.folders import data_files, is_saved
from pipeline.data.files.records import read_records
from pipeline.data.sources import held_out_source
from pipeline.errors import UserError


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"prompt": name}) + "\n")


def prompts(path: Path, **settings: str) -> list[object]:
    return [record.values["prompt"] for record in read_records(FileData(path=str(path), **settings))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
            "train",
            2,
        ),
        (["train_prefs-00000-of-00001.jsonl", "train_sft-00000-of-00001.jsonl"], "train_prefs", 1),
        (["train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"], "validation", 1),
        (["my-train.jsonl", "my-dev.jsonl"], "validation", 1),
        (["train/data-00000-of-00001.jsonl", "test/data-00000-of-00001.jsonl"], "test", 1),
        (["helpful/train.jsonl", "harmless/train.jsonl", "helpful/eval.jsonl"], "train", 2),
    ],
)
def test_a_folder_of_several_splits_is_refused_until_one_is_named(
    tmp_path: Path, names: list[str], split: str, wanted: int
) -> None:
    put(tmp_path, *names)
    (tmp_path / "dataset_infos.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds several splits: .*; name one with split"):
        prompts(tmp_path)
    assert len(prompts(tmp_path, split=split)) == wanted
    assert len(prompts(tmp_path, split="all")) == len(names)
    with pytest.raises(UserError, match="no split 'other'; it has "):
        prompts(tmp_path, split="other")


def test_names_that_only_contain_such_a_word_are_no_splits(tmp_path: Path) -> None:
    put(tmp_path, "training_data.jsonl", "contest.jsonl", "latest.jsonl", "evaluated.jsonl")
    assert len(prompts(tmp_path)) == 4
    with pytest.raises(UserError, match="split 'train', but it is one file"):
        data_files(str(tmp_path / "contest.jsonl"), "train")


def test_folders_that_datasets_saved_are_files_of_rows(tmp_path: Path) -> None:
    parts = {name: Dataset.from_list([{"prompt": f"{name} {n}"} for n in range(3)]) for name in ("train", "test")}
    parts["train"].save_to_disk(tmp_path / "one")
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert is_saved(tmp_path / "one") and is_saved(tmp_path / "both") and not is_saved(tmp_path)
    assert prompts(tmp_path / "one") == ["train 0", "train 1", "train 2"]
    with pytest.raises(UserError, match="holds several splits: train, test; name one"):
        prompts(tmp_path / "both")
    assert prompts(tmp_path / "both", split="test") == ["test 0", "test 1", "test 2"]
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"state\.json names data-00000-of-00001\.arrow, which are not there"):
        prompts(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../both/x.arrow"}, 3]}')
    with pytest.raises(UserError, match=r"names x\.arrow, which are not there"):
        prompts(tmp_path / "one")


def test_a_split_of_one_saved_data_set_is_its_own(tmp_path: Path) -> None:
    one = Dataset.from_list([{"prompt": "a"}])
    one.save_to_disk(tmp_path / "none")
    DatasetDict({"train": one}).save_to_disk(tmp_path / "dict")
    place = tmp_path / "dict" / "train"
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**state, "_split": "train"}))
    assert prompts(place, split="train") == prompts(place, split="all") == prompts(place) == ["a"]
    with pytest.raises(UserError, match="no split 'test'; it is one data set, of split 'train'"):
        prompts(place, split="test")
    with pytest.raises(UserError, match="no split 'test'; it is one data set, of no split"):
        prompts(tmp_path / "none", split="test")
    assert prompts(tmp_path / "dict") == ["a"]


def test_a_split_that_is_named_but_not_there_is_not_left_out(tmp_path: Path) -> None:
    parts = {name: Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(tmp_path)
    shutil.rmtree(tmp_path / "test")
    assert prompts(tmp_path, split="train") == ["train"]
    for split in ("test", "all"):
        with pytest.raises(UserError, match=r"dataset_dict\.json names test, which is not there"):
            prompts(tmp_path, split=split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(UserError, match=r"dataset_dict\.json names no splits"):
        prompts(tmp_path)


def test_held_out_prompts_may_be_another_split_of_a_folder() -> None:
    config = RunConfig.model_validate(
        {
            "name": "r",
            "mode": "offline",
            "policy": {"path": "p"},
            "pairs": {"path": "d", "split": "train"},
            "held_out": {"split": "test"},
        }
    )
    assert held_out_source(config) == FileData(path="d", split="test") and HeldOut().split is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", '{"prompt": "a", "n": [1]}\n\n{"prompt": "b"}\n'),
        ("data.json", '{"version": "1", "data": [{"prompt": "a"}, {"prompt": "b"}], "more": {"x": []}}'),
        ("objects.json", '{\n "prompt": "a"\n}\n{\n "prompt": "b"\n}'),
        ("list.json", '[{"prompt": "a"}, {"prompt": "b"}]'),
        ("semicolon.csv", "prompt;n\na;1,5\nb;2,5\n"),
        ("tab.tsv", "prompt\tn\na\t1\nb\t2\n"),
        ("tab.csv", "prompt\tn\na\t1\nb\t2,5\n"),
        ("bar.csv", "prompt|n\na|1\nb|2\n"),
        ("one.csv", "prompt\na\nb\n"),
        ("quoted.csv", 'prompt,n\na,"x;y\n;"\nb,2\n'),
    ],
)
def test_rows_are_found_however_the_file_is_written(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert prompts(tmp_path / name) == ["a", "b"]


def test_a_named_list_or_delimiter_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}')
    assert prompts(tmp_path / "r.json", split="test") == ["b"]
    assert prompts(tmp_path / "r.json", split="all") == ["a", "b"]
    with pytest.raises(UserError, match="no list 'dev'; it has train, test"):
        prompts(tmp_path / "r.json", split="dev")
    put(tmp_path / "folder", "train.jsonl")
    (tmp_path / "r.json").rename(tmp_path / "folder" / "r.json")
    assert sorted(map(str, prompts(tmp_path / "folder", split="all"))) == ["a", "b", "train.jsonl"]
    (tmp_path / "r.csv").write_text("prompt,x;y\na,1;2\n")
    assert prompts(tmp_path / "r.csv", delimiter=",") == ["a"]


@pytest.mark.parametrize(
    "content",
    ['[{"prompt": "a"}]', '{"prompt": "a"}\n{"prompt": "b"}\n', '{\n "prompt": "a"\n}', '{"prompt": "a"}', "[]"],
)
def test_a_split_of_rows_without_a_name_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match="no list 'test'; its rows are in no list with a name"):
        prompts(tmp_path / "r.json", split="test")
    assert prompts(tmp_path / "r.json", split="all") == prompts(tmp_path / "r.json")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "examples": ["x", "y"]}, {}),
        ({"examples": [1, 2], "prompt": "a"}, {}),
        ({"prompt": "a", "test": []}, {}),
        ({"prompt": "a", "data": [["x"]]}, {}),
        ({"prompt": "a", "items": [{"text": "x"}, {"text": "y"}]}, {"responses": "items.text"}),
        ({"items": [{"text": "x"}], "prompt": "a"}, {"responses": ("items[0].text", "items[1].text")}),
        ({"data": [{"role": "user", "content": "a"}], "x": 1}, {"prompt": "data"}),
    ],
)
def test_a_lone_object_with_a_list_in_a_column_is_a_row(
    tmp_path: Path, row: dict[str, object], columns: dict[str, object], indent: int | None
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(row, indent=indent))
    data = FileData(path=str(tmp_path / "r.json"), columns=columns)  # type: ignore[arg-type]
    assert [record.values for record in read_records(data)] == [row]


def test_a_cell_of_a_csv_file_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f'prompt,n\n"{"x" * 300_000}",1\n')
    assert prompts(tmp_path / "r.csv") == ["x" * 300_000]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jsonl", b"caf\xe9/rows.jsonl"):
        file = tmp_path / "rows" / os.fsdecode(name)
        put(tmp_path / "rows", os.fsdecode(name))
        with pytest.raises(UserError, match=r"caf\\udce9.*: the name is not UTF-8; rename") as caught:
            prompts(tmp_path / "rows")
        assert str(caught.value).isascii()
        file.unlink()
