"""The user's data as numbered records: files of any kind in ``formats``, or a data set through ``datasets``.

The user's own files are not read through ``datasets``: its text readers guess each column's type from the first
block, fail without naming the row if a later block differs, and write a second copy of the file to their cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from pydantic import JsonValue

from pipeline.config import DatasetData, FileData
from pipeline.config.data.user_data import EVERY_SPLIT
from pipeline.data.files.bounds import Broken, unsound
from pipeline.data.files.folders import data_files, is_saved, require_split
from pipeline.data.files.formats import read_file
from pipeline.data.forms.paths import first_name
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One row. ``file`` is a path, or the name of a data set; ``number`` counts from 1 within it.

    ``fault`` is the reason why a row could not be read; ``values`` is then empty.
    """

    file: str
    number: int
    values: dict[str, JsonValue]
    fault: str | None = None

    @property
    def place(self) -> str:
        """For messages: ``pairs.jsonl, row 3``."""
        return f"{self.file}, row {self.number}"

    @property
    def source(self) -> str:
        """The file's own name, without the folder that it is in."""
        return Path(self.file).name


def read_records(data: FileData | DatasetData) -> Iterator[Record]:
    """Yield all rows in order, and several files in the order of their paths.

    A malformed row is a record with a ``fault``.

    Raises:
        UserError: no data, no file of a known kind, or a file that is damaged as a whole.
    """
    match data:
        case FileData():
            columns = frozenset(map(first_name, data.columns.own_names))
            for file in data_files(data.path, data.split):
                # In a folder, the split names files, and all of them are to be read whole.
                named = data.split if Path(data.path).is_file() or data.split == EVERY_SPLIT else None
                for number, value in read_file(file, named, data.delimiter, columns):
                    yield _record(str(file), number, value)
        case DatasetData():
            from pipeline.data.files.columnar import BATCH, rows_of, sound

            tables = open_dataset(data).with_format("arrow").iter(BATCH)
            for number, value in rows_of(sound(batch for table in tables for batch in table.to_batches())):
                yield _record(data.path, number, value)
        case _:
            assert_never(data)


def open_dataset(data: DatasetData) -> Any:
    """Open the data set, its tables mapped from disk. Raises ``UserError`` if it or the split does not exist."""
    import datasets

    folder = Path(data.path)
    try:
        if not is_saved(folder):
            return datasets.load_dataset(data.path, data.subset, split=data.split, revision=data.revision)
        saved = datasets.load_from_disk(data.path)
        if isinstance(saved, datasets.DatasetDict):
            if data.split not in saved:
                raise UserError(f"{data.path}: no split {data.split!r}; it has {', '.join(map(repr, saved))}")
            return saved[data.split]
        if data.split != DatasetData.model_fields["split"].default:
            require_split(data.path, None if saved.split is None else str(saved.split), data.split)
        return saved
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{data.path}: cannot be read as a data set: {str(error).splitlines()[0]}") from error


def _record(file: str, number: int, value: object) -> Record:
    if isinstance(value, Broken):
        return Record(file, number, {}, value.why)
    if not isinstance(value, dict):
        return Record(file, number, {}, f"not an object with named columns but a {type(value).__name__}")
    for column, cell in value.items():
        why = unsound([column, cell])
        if why is not None:
            return Record(file, number, {}, f"column {column!r} {why}")
    return Record(file, number, value)
