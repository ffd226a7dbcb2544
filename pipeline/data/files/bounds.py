"""Rows that cannot be read, and how much of a file is held at a time. Torch-free."""

import gzip
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 1 << 20
# Bytes of a line, characters of an item: a file without line breaks must not fill the memory.
LONGEST_ROW = 64 << 20
# Lists and objects in each other; Python's own code for them stops at several hundred.
DEEPEST = 100
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read, and why; the rows after it can be."""

    why: str


OpenedFile = gzip.GzipFile | io.BufferedReader
# Row number (from 1), and the row as the file gives it.
NumberedRows = Iterator[tuple[int, object | Broken]]


def unsound(value: object) -> str | None:
    """Return why a decoded value, of a file or of JSON inside a text, cannot be used; None if it can.

    JSON can escape half a surrogate pair, which UTF-8 cannot hold, and can be nested without end.
    """
    level = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and _SURROGATE.search(item):
                    return "holds a lone surrogate (such as \\ud800): not text"
            elif isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
        if not inner:
            return None
        level = inner
    return f"holds lists or objects nested more than {DEEPEST - 2} deep"
