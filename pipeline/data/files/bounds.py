"""Rows that cannot be read, and how much of a file is held at a time. Torch-free."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 1 << 20
# Bytes of a line, characters of an item: a file without line breaks must not fill the memory.
LONGEST_ROW = 64 << 20


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read, and why; the rows after it can be."""

    why: str


OpenedFile = gzip.GzipFile | io.BufferedReader
# Row number (from 1), and the row as the file gives it.
NumberedRows = Iterator[tuple[int, object | Broken]]
