"""Read one data file row by row: JSONL, JSON, CSV (each gzipped or not), parquet, Arrow.

Memory holds only a line, a list item or a batch of 256 rows, whatever the size of the file.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from pipeline.data.files import columnar
from pipeline.errors import UserError

CHUNK = 1 << 20
# Bytes of a line, characters of an item: a file without line breaks must not fill the memory.
LONGEST_ROW = 64 << 20
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read, and why; the rows after it can be."""

    why: str


# Row number (from 1), and the row as the file gives it.
_Rows = Iterator[tuple[int, object | Broken]]


def read_file(file: Path) -> _Rows:
    """Yield the rows of ``file``: JSONL lines, JSON items, CSV rows below the header, parquet or Arrow rows.

    Empty lines count towards row numbers but yield no row.

    Raises:
        UserError: the whole file is damaged.
    """
    kind = kind_of(file)
    try:
        if kind in _COLUMNAR:
            yield from rows_of(_COLUMNAR[kind](file))
            return
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            if kind == "jsonl":
                yield from _jsonl(stream)
                return
            # In CSV, bytes that are not UTF-8 become lone surrogates, so that the fault can name their row.
            errors = "surrogateescape" if kind == "csv" else "strict"
            with io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline="") as text:
                yield from _csv(file, text) if kind == "csv" else _json(file, text)
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def kind_of(file: Path) -> str:
    """Return the kind: ``jsonl`` for ``rows.jsonl.gz``."""
    return file.name.removesuffix(".gz").rsplit(".", 1)[-1]


def _jsonl(stream: io.BufferedIOBase) -> _Rows:
    for number, line in enumerate(_lines(stream), 1):
        if isinstance(line, Broken):
            yield number, line
            continue
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield number, Broken(f"not UTF-8 (byte {error.start + 1} of the row)")
        except (ValueError, RecursionError) as error:
            yield number, Broken(f"not JSON: {error}")


def _lines(stream: io.BufferedIOBase) -> Iterator[bytes | Broken]:
    while line := stream.readline(LONGEST_ROW):
        if len(line) < LONGEST_ROW or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield Broken(f"a line of more than {LONGEST_ROW >> 20} MiB")


def _json(file: Path, stream: IO[str]) -> _Rows:
    """Yield the items of one list, each as soon as it is complete.

    ijson does not fit: it refuses NaN and integers beyond 64 bits, turns lone surrogates into question marks, and its
    memory grows with the square of the depth (1 GiB for a file of 40 kB).
    """
    text, number = _JsonText(stream), 0
    try:
        if text.peek() != "[":
            raise UserError(f"{file}: must be a list of objects (one object a line is .jsonl)")
        text.at += 1
        while text.peek() != "]":
            if number:
                if text.peek() != ",":
                    raise UserError(f"{file}: not JSON: neither a comma nor the list's end after item {number}")
                text.at += 1
            item = text.item()
            number += 1
            yield number, item
        text.at += 1
        if text.peek():
            raise UserError(f"{file}: not JSON: text after the list's end, after item {number}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: item {number + 1}: {error}") from error


class _JsonText:
    """JSON text, read only as far as needed."""

    def __init__(self, stream: IO[str]) -> None:
        self.at = 0
        self._stream = stream
        self._text = ""
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is not a space; empty at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self.at)
            if found is not None:
                self.at = found.start()
                return found.group()
            if self._ended:
                return ""
            self.at = len(self._text)
            self._more()

    def item(self) -> object:
        """Return the value that begins here."""
        self.peek()
        while True:
            try:
                item, end = self._decode(self._text, self.at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                # A number may continue beyond what is read so far.
                if end < len(self._text) or self._ended:
                    self.at = end
                    return item
            self._more()

    def _more(self) -> None:
        # Doubling the text: an item of n chunks is tried log n times.
        waiting = self._text[self.at :]
        if len(waiting) > LONGEST_ROW:
            raise ValueError(f"longer than {LONGEST_ROW >> 20} Mi characters")
        chunk = self._stream.read(max(CHUNK, len(waiting)))
        self._text, self.at, self._ended = waiting + chunk, 0, not chunk


def _csv(file: Path, lines: IO[str]) -> _Rows:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    number = -1
    while True:
        number += 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise UserError(f"{file}: not CSV: {error}") from error
            yield number, Broken(f"not CSV: {error}")
            continue
        if cells is None:
            return
        if header is None:
            header = cells
        elif any(map(_undecoded, cells)):
            yield number, Broken("not UTF-8")
        elif cells and len(cells) != len(header):
            yield number, Broken(f"{len(cells)} cells under a header of {len(header)}")
        elif cells:
            yield number, dict(zip(header, cells, strict=True))


def _undecoded(cell: str) -> bool:
    return not cell.isascii() and _UNDECODED.search(cell) is not None


def rows_of(parts: Iterable[columnar.Decoded]) -> _Rows:
    """Yield the rows of ``columnar`` parts."""
    number = 0
    for part in parts:
        rows: Iterable[object] = [Broken(part)] if isinstance(part, str) else _values(part)
        for row in rows:
            number += 1
            yield number, row


# Strings that are not UTF-8, dates that Python cannot hold.
_NO_VALUE = (ValueError, OverflowError, pa.ArrowException)


def _values(batch: pa.RecordBatch) -> list[object | Broken]:
    try:
        batch.validate(full=True)
        rows: list[object | Broken] = batch.to_pylist()
    except _NO_VALUE:
        return [_value(batch, place) for place in range(batch.num_rows)]
    return rows


def _value(batch: pa.RecordBatch, place: int) -> object | Broken:
    alone = batch.slice(place, 1)
    for name, column in zip(alone.schema.names, alone.columns, strict=True):
        try:
            column.validate(full=True)
            column[0].as_py()
        except _NO_VALUE as error:
            what = "not UTF-8" if "UTF8" in str(error) else str(error).splitlines()[0]
            return Broken(f"column {name!r}: {what}")
    row: object = alone.to_pylist()[0]
    return row


_TEXT = ("jsonl", "json", "csv")
_COLUMNAR = {"parquet": columnar.parquet, "arrow": columnar.arrow, "feather": columnar.arrow}
SUFFIXES = (*(f".{kind}{end}" for kind in _TEXT for end in ("", ".gz")), *(f".{kind}" for kind in _COLUMNAR))
