"""Rows of every kind of file: the same whatever the kind, each faulty one by its number, never all in memory."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import FileData
from pipeline.data.files import formats, json_text
from pipeline.data.files.bounds import Broken
from pipeline.data.files.folders import data_files
from pipeline.data.files.formats import read_file
from pipeline.data.files.records import Record, read_records
from pipeline.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "response": "x", "answer": "1"},
    {"prompt": "b", "response": "y, «z»\n", "answer": "2"},
]
KINDS = ["jsonl", "json", "csv", "parquet", "arrow", "feather", "jsonl.gz", "json.gz", "csv.gz"]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    kind = formats.kind_of(file)
    table = pa.Table.from_pylist(rows)
    match kind:
        case "parquet":
            # Readers hold one row group at a time, whatever the size of the file.
            pq.write_table(table, file, row_group_size=500)
        case "arrow" | "feather":
            new = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
            with new(file, table.schema) as writer:
                writer.write_table(table)
        case _:
            quoted = "".join(",".join('"' + str(cell) + '"' for cell in row.values()) + "\n" for row in rows)
            texts = {
                "jsonl": "\n".join(json.dumps(row) + "\n" for row in rows),
                "json": json.dumps(rows, indent=1),
                "csv": ",".join(rows[0]) + "\n" + quoted,
            }
            text = texts[kind].encode()
            file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def read(path: Path) -> list[Record]:
    return [*read_records(FileData(path=str(path)))]


def broken(file: Path, content: bytes) -> list[tuple[int, str | None]]:
    file.write_bytes(content)
    return [(record.number, record.fault) for record in read(file)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"r.{kind}", ROWS)
    found = read(file)
    assert [record.values for record in found] == ROWS
    assert [record.number for record in found] == ([1, 3] if kind.startswith("jsonl") else [1, 2])
    assert found[1].place == f"{file}, row {found[1].number}"


def test_a_folder_or_a_pattern_is_its_files_by_path(tmp_path: Path) -> None:
    for place in ("b/two.jsonl", "a.csv", "b/one.parquet", ".hidden/r.jsonl", "notes.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        if place.endswith("txt"):
            (tmp_path / place).write_text("no data")
        else:
            write(tmp_path / place, [{"prompt": place}])
    assert [record.values["prompt"] for record in read(tmp_path)] == ["a.csv", "b/one.parquet", "b/two.jsonl"]
    assert [record.values["prompt"] for record in read(tmp_path / "b" / "*.jsonl")] == ["b/two.jsonl"]
    assert data_files(str(tmp_path / "**" / "*.csv")) == [tmp_path / "a.csv"]


def test_nothing_there_is_said(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "no data file there"),
        (tmp_path / "*.csv", "no data"),
    ):
        with pytest.raises(UserError, match=said):
            read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.json", b'"a"', "must be a list of objects, or objects"),
        ("r.json", b'{"prompt": "a"', "item 1: expected ',', not 'the end'"),
        ("r.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', "holds several lists of rows: train, test; name one"),
        ("r.csv", b"a;b,c\n1;2,3\n", "cells may be separated in 2 ways; say which: delimiter: ',' (2 columns) or"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "fetch it with: git lfs pull"),
        ("r.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer to the data"),
        ("r.json", b"", "must be a list of objects"),
        ("r.json", b"[1, 2", "neither a comma nor the list's end after item 2"),
        ("r.json", b'[{"a": 1} {"a": 2}]', "neither a comma nor the list's end after item 1"),
        ("r.json", b'[{"a": 1}, {"a": }]', "item 2: Expecting value"),
        ("r.json", b'[{"a": 1},]', "item 2: Expecting value"),
        ("r.json", b'[{"a": "\xff"}]', "not JSON"),
        ("r.json", b'[{"a": 1}]\n[{"a": 2}]', "text after the list's end, after item 1"),
        ("r.json", b"[] x", "text after the list's end, after item 0"),
        ("r.json", b'[1, {"a": ' + b"[" * 100_000, "not JSON: item 2: "),
        ("r.jsonl.gz", b"plain text", "cannot be read"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20], "cannot be read"),
        ("r.parquet", b"no parquet", "cannot be read"),
        ("r.arrow", b"no arrow", "cannot be read"),
        ("r.csv", b'"a"b,c\n', "not CSV"),
        ("r.txt", b"text", "unknown kind of file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(UserError) as caught:
        broken(tmp_path / name, content)
    assert name in str(caught.value) and said in str(caught.value)


def test_a_faulty_row_is_numbered_and_the_rows_behind_it_are_read(tmp_path: Path) -> None:
    found = broken(tmp_path / "r.jsonl", b'{"a": 1}\nno\n{"a": "\xff"}\n\n[1]\n{"a": 2}\n')
    assert [number for number, _ in found] == [1, 2, 3, 5, 6]
    assert [fault and fault.split(":")[0] for _, fault in found] == [
        None,
        "not JSON",
        "not UTF-8 (byte 8 of the row)",
        "not an object with named columns but a list",
        None,
    ]
    found = broken(tmp_path / "r.csv", b'a,b\n1\n2,3\n"x"y,4\n\xff,5\n6,7\n')
    assert found == [
        (1, "1 cell under a header of 2"),
        (2, None),
        (3, "not CSV: ',' expected after '\"'"),
        (4, "not UTF-8"),
        (5, None),
    ]


def test_a_json_list_is_decoded_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": n, "text": "é" * n, "list": [n, {"x": None}]} for n in range(60)]
    (tmp_path / "r.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8-sig")
    for size in (1, 7, 64):
        monkeypatch.setattr(json_text, "CHUNK", size)
        assert [record.values for record in read(tmp_path / "r.json")] == rows
    (tmp_path / "r.json").write_text("[1, 23, 456]")
    monkeypatch.setattr(json_text, "CHUNK", 1)
    assert [value for _, value in formats.read_file(tmp_path / "r.json")] == [1, 23, 456]


# NaN equals nothing: the texts are compared.
@pytest.mark.parametrize(
    "value", ["NaN", "-Infinity", "1e400", "12345678901234567890123", "0.30000000000000004", '"\\ud800"', "-0.0"]
)
def test_a_value_of_a_json_list_is_that_of_a_json_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.json").write_text(f'[{{"a": {value}}}, {{"b": 1}}]')
    (tmp_path / "r.jsonl").write_text(f'{{"a": {value}}}\n{{"b": 1}}')
    listed, lines = ([*read_file(tmp_path / name)] for name in ("r.json", "r.jsonl"))
    assert repr(listed) == repr(lines) == repr([(1, {"a": json.loads(value)}), (2, {"b": 1})])


def test_a_name_of_a_column_that_is_no_utf_8_damages_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.arrow"
    with pa.ipc.new_stream(file, (table := pa.table({"prompt": ["a"]})).schema) as writer:
        writer.write_table(table)
    file.write_bytes(file.read_bytes().replace(b"prompt", b"\x8drompt"))
    with pytest.raises(UserError, match=r"rows\.arrow: cannot be read"):
        list(read_file(file))


def test_cells_that_python_has_no_value_for_are_faults_of_their_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    broken = pa.StringArray.from_buffers(2, *pa.array([b"ok", b"\xff"]).buffers()[1:])
    pq.write_table(pa.table({"prompt": broken}), file)
    (_, first), (_, second) = read_file(file)
    assert first == {"prompt": "ok"} and second == Broken("column 'prompt': not UTF-8")


def test_a_line_without_an_end_is_a_fault_and_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LONGEST_ROW", 1 << 20)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "' + "x" * (3 << 20) + '"}\n{"prompt": "a"}\n')
    (_, first), (number, second) = read_file(file)
    assert isinstance(first, Broken) and "a line of more than 1 MiB" in first.why
    assert number == 2 and second == {"prompt": "a"}
    (tmp_path / "rows.json").write_text('[{"prompt": "' + "x" * (6 << 20) + '"}]')
    with pytest.raises(UserError, match="longer than 1 Mi"):
        list(read_file(tmp_path / "rows.json"))


def test_offsets_that_point_outside_of_an_arrow_file_are_not_followed(tmp_path: Path) -> None:
    file = tmp_path / "rows.arrow"
    with pa.ipc.new_stream(file, (table := pa.table({"prompt": ["abcd", "efgh"]})).schema) as writer:
        writer.write_table(table)
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 4, 8))
    wrong = b"".join(number.to_bytes(4, "little") for number in (0, 1 << 30, 8))
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, wrong))
    assert [type(row) for _, row in read_file(file)] == [Broken, Broken]
