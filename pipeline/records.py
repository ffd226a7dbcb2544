"""Files of rows as numbered records: JSONL, JSON, CSV and parquet, gzipped or not, one file or a folder of them.

Read with the standard library and pyarrow, not with ``datasets``: its reader turns a whole file into
one table and names no row when it fails (and guesses a type for each column from the first block).
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from pipeline.types import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")


@dataclass(frozen=True, slots=True)
class Record:
    """One row. ``number`` counts from 1: lines of JSONL, items of JSON, rows below a CSV's header, rows of parquet.

    ``fault`` says what is wrong with a row that could not be read; ``values`` is empty then.
    """

    file: Path
    number: int
    values: dict[str, JsonValue]
    fault: str | None = None

    @property
    def place(self) -> str:
        """For messages: ``pairs.jsonl, row 3``."""
        return f"{self.file}, row {self.number}"


def read_records(path: str) -> Iterator[Record]:
    """All rows of the file ``path``, or of the files of a folder in the order of their names.

    A malformed row is a record with a ``fault``; empty lines of JSONL count but are no rows.

    Raises:
        UserError: no such file, no file of a known kind, or a file that is damaged as a whole.
    """
    for file in _files(Path(path)):
        kind = file.name.removesuffix(".gz").rsplit(".", 1)[-1]
        try:
            if kind == "parquet":
                yield from _parquet(file)
                continue
            with _open(file) as lines:
                yield from {"jsonl": _jsonl, "json": _json, "csv": _csv}[kind](file, lines)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise UserError(f"{path}: no data file in this folder (looked for {', '.join(SUFFIXES)})")
        return files
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of file; allowed: {', '.join(SUFFIXES)}")
    return [path]


def _open(file: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _record(file: Path, number: int, value: object) -> Record:
    if not isinstance(value, dict):
        return Record(file, number, {}, f"not an object with named columns but a {type(value).__name__}")
    broken = next((column for column, cell in value.items() if _has_surrogate([column, cell])), None)
    if broken is not None:
        return Record(file, number, {}, f"column {broken!r} holds a lone surrogate (such as \\ud800), which is no text")
    return Record(file, number, value)


def _has_surrogate(value: object) -> bool:
    """Whether a string in ``value`` holds half a surrogate pair, which JSON can escape and UTF-8 cannot hold."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if not item.isascii() and _SURROGATE.search(item):
                return True
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
    return False


def _jsonl(file: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _record(file, number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")))
        except UnicodeDecodeError as error:
            yield Record(file, number, {}, f"not UTF-8 (byte {error.start + 1} of the row)")
        except (json.JSONDecodeError, RecursionError) as error:
            yield Record(file, number, {}, f"not JSON: {error}")


def _json(file: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    try:
        items = json.loads(b"".join(lines).decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(items, list):
        raise UserError(
            f"{file}: must be a list of objects, not a {type(items).__name__} (one object a line is .jsonl)"
        )
    for number, item in enumerate(items, 1):
        yield _record(file, number, item)


def _csv(file: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    try:
        text = b"".join(lines).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start + 1})") from error
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    number = 0
    try:
        header = next(reader, None)
        for number, cells in enumerate(reader, 1):
            if not cells:
                continue
            if header is None or len(cells) != len(header):
                yield Record(file, number, {}, f"{len(cells)} cells under a header of {len(header or ())}")
            else:
                yield Record(file, number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        yield Record(file, number + 1, {}, f"not CSV: {error}")


def _parquet(file: Path) -> Iterator[Record]:
    number = 0
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield _record(file, number, row)
