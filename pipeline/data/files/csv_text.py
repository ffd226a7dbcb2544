"""Rows of CSV files, whatever separates their cells. Torch-free."""

import csv
import io
import re
from pathlib import Path
from typing import IO

from pipeline.data.files.bounds import LONGEST_ROW, Broken, NumberedRows
from pipeline.errors import UserError
from pipeline.types.counts import number_of

SAMPLE = 1 << 16
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_ROWS_TRIED = 20
_UNDECODED = re.compile("[\udc80-\udcff]")


def guess_delimiter(file: Path, beginning: str) -> str:
    """Return the character under which all of the first rows have as many cells as the header, and more than one.

    A comma if none does.

    Raises:
        UserError: several do.
    """
    widths = {character: _widths(beginning, character) for character in _DELIMITERS}
    fitting = [c for c, found in widths.items() if found and found[0] > 1 and len(set(found)) == 1]
    if len(fitting) > 1:
        settings = " or ".join(
            f"delimiter: {c!r} ({number_of(found[0], 'column')})" for c in fitting if (found := widths[c])
        )
        raise UserError(f"{file}: cells may be separated in {len(fitting)} ways; say which: {settings}")
    if fitting:
        return fitting[0]
    # A faulty row among the first: the header alone decides.
    return max(_DELIMITERS, key=lambda c: widths[c][0] if widths[c] else 0)


def _widths(beginning: str, delimiter: str) -> list[int]:
    """Return the number of cells of the header and the first rows, without a last row that may be incomplete."""
    csv.field_size_limit(LONGEST_ROW)
    found: list[int] = []
    try:
        for row in csv.reader(io.StringIO(beginning, newline=""), delimiter=delimiter, strict=True):
            if row:
                found.append(len(row))
            if len(found) > _ROWS_TRIED:
                break
    except csv.Error:
        return found
    return found[:-1] if len(beginning) >= SAMPLE and len(found) > 1 else found


def read_csv(file: Path, lines: IO[str], delimiter: str) -> NumberedRows:
    """Yield rows below the header as objects of texts. Raises ``UserError`` if the header is not CSV."""
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
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
            yield number, Broken(f"{number_of(len(cells), 'cell')} under a header of {len(header)}")
        elif cells:
            yield number, dict(zip(header, cells, strict=True))


def _undecoded(cell: str) -> bool:
    return not cell.isascii() and _UNDECODED.search(cell) is not None
