"""Columnar files that are small on disk and huge when decoded."""

import resource
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetData
from pipeline.data.files import columnar
from pipeline.data.files.bounds import Broken
from pipeline.data.files.formats import read_file
from pipeline.data.files.records import read_records
from pipeline.errors import UserError

LONG = "y" * (1 << 20)
MEMORY = 400 << 20


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "AT_ONCE", 16 << 20)


def named(times: int) -> pa.Array:
    """One text, named many times."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [LONG])


def write(table: dict[str, pa.Array], file: Path) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.table(table), file, compression="zstd")
    else:
        feather.write_feather(pa.table(table), file, compression="uncompressed")
    return file


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_one_text_named_often_is_read_in_parts(kind: str, tmp_path: Path) -> None:
    file = write({"prompt": named(1000)}, tmp_path / f"rows.{kind}")
    assert file.stat().st_size < 2 << 20
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 0
    for number, row in read_file(file):
        read = number
        assert row == {"prompt": LONG}
    assert read == 1000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MEMORY


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_a_row_that_does_not_fit_is_a_fault_of_its_own(kind: str, tmp_path: Path) -> None:
    turns = pa.StructArray.from_arrays([named(500)], ["content"])
    talks = pa.ListArray.from_arrays(pa.array([0, 1, 499, 500], pa.int32()), turns)
    rows = [row for _, row in read_file(write({"prompt": talks}, tmp_path / f"rows.{kind}"))]
    assert rows == [
        {"prompt": [{"content": LONG}]},
        Broken("a row of more than 16 MiB"),
        {"prompt": [{"content": LONG}]},
    ]


def test_what_no_data_is_compressed_to_is_refused(tmp_path: Path) -> None:
    numbers = write({"x": pa.array([[0] * 20_000_000], pa.list_(pa.int8()))}, tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match=r"column 'x\.list\.element': \d+ bytes that stand for 20000000 values"):
        [*read_file(numbers)]
    texts = write({"prompt": pa.array([LONG * 32])}, tmp_path / "texts.parquet")
    with pytest.raises(UserError, match=r"texts\.parquet: column 'prompt': \d+ bytes that stand for 32 MiB: not data"):
        [*read_file(texts)]


@pytest.mark.parametrize("kind", ["feather", "arrow", "dictionary"])
def test_a_batch_that_no_data_is_compressed_to_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "_LARGE_BATCH", 16 << 20)
    column = pa.array([LONG * 20]).dictionary_encode() if kind == "dictionary" else pa.array([LONG] * 20)
    table, file = pa.table({"prompt": column, "n": pa.array([1] * len(column))}), tmp_path / "rows.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    make = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
    with make(file, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"rows\.arrow: a batch of \d+ bytes that stand for 20 MiB: not data"):
        [*read_file(file)]
    monkeypatch.setattr(columnar, "_LARGE_BATCH", 64 << 20)
    if kind != "dictionary":
        assert len([*read_file(file)]) == 20


def test_texts_that_continue_each_other_are_read_in_parts(tmp_path: Path) -> None:
    texts, file = [f"{LONG}{place}" for place in range(40)], tmp_path / "rows.parquet"
    encoding = {"prompt": "DELTA_BYTE_ARRAY"}
    pq.write_table(pa.table({"prompt": texts}), file, use_dictionary=False, column_encoding=encoding)
    assert [row for _, row in read_file(file)] == [{"prompt": text} for text in texts]


def test_one_damaged_text_in_a_dictionary_is_one_fault(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"a", b"b"]).dictionary_encode()
    texts = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.view(pa.string()), safe=False)
    rows = [row for _, row in read_file(write({"prompt": texts}, tmp_path / "rows.parquet"))]
    assert rows == [{"prompt": "a"}, Broken("column 'prompt': not UTF-8"), {"prompt": "a"}, {"prompt": "b"}]


def test_a_saved_data_set_is_read_as_its_table(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": str(n)}], "score": n / 2, "none": None} for n in range(600)]
    datasets.Dataset.from_list(rows).select(range(599, -1, -1)).save_to_disk(tmp_path / "set")
    read = list(read_records(DatasetData(path=str(tmp_path / "set"))))
    assert [record.values for record in read] == rows[::-1] and [record.number for record in read] == [*range(1, 601)]


class Watched:
    """A record batch that notes how many rows are validated."""

    def __init__(self, batch: pa.RecordBatch, validated: list[int]) -> None:
        self._batch, self._validated = batch, validated

    def validate(self, *, full: bool) -> None:
        self._validated.append(self._batch.num_rows)
        self._batch.validate(full=full)

    def slice(self, start: int, length: int) -> "Watched":
        return Watched(self._batch.slice(start, length), self._validated)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def test_rows_are_validated_once() -> None:
    validated: list[int] = []
    batch = Watched(pa.record_batch({"prompt": [f"{n}" for n in range(300)]}), validated)
    rows = [row for _, row in columnar.rows_of(columnar.sound([batch]))]  # type: ignore[list-item]
    assert rows == [{"prompt": f"{n}"} for n in range(300)] and validated == [256, 44]
