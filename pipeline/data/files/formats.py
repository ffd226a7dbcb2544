"""Read one data file row by row: JSONL, JSON, CSV (each gzipped or not), parquet, Arrow.

Memory holds only a line, a list item or a batch of 256 rows, whatever the size of the file.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.data.files.bounds import NumberedRows, OpenedFile
from pipeline.data.files.csv_text import SAMPLE, guess_delimiter, read_csv
from pipeline.data.files.folders import require_content
from pipeline.data.files.json_text import holds_lines, read_json, read_lines, require_no_list
from pipeline.errors import UserError

_COLUMNAR = ("parquet", "arrow", "feather")


def read_file(
    file: Path, split: str | None = None, delimiter: str | None = None, columns: Collection[str] = ()
) -> NumberedRows:
    """Yield the rows of ``file``: JSON lines, JSON items, CSV rows below the header, parquet or Arrow rows.

    Empty lines count towards row numbers but yield no row. ``split``, ``columns``: see ``read_json``. ``delimiter``: of
    CSV; None: a tab in ``.tsv``, else guessed from the first rows.

    Raises:
        UserError: the whole file is damaged.
    """
    kind = kind_of(file)
    try:
        require_content(file)
        if kind in _COLUMNAR:
            # pyarrow takes longer to load than to read a small file.
            from pipeline.data.files.columnar import read_columnar

            yield from read_columnar(file, kind)
        elif kind in ("csv", "tsv"):
            yield from _csv(file, delimiter or ("\t" if kind == "tsv" else None))
        elif kind == "jsonl" or _has(file, holds_lines):
            require_no_list(file, split)
            with _opened(file) as stream:
                yield from read_lines(stream)
        else:
            with _opened(file) as stream, _decoded(stream) as text:
                yield from read_json(file, text, split, columns)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def _opened(file: Path) -> OpenedFile:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _decoded(stream: OpenedFile, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline="")


def _has(file: Path, what: Callable[[OpenedFile], bool]) -> bool:
    with _opened(file) as stream:
        return what(stream)


def _csv(file: Path, delimiter: str | None) -> NumberedRows:
    # Bytes that are not UTF-8 become lone surrogates, so that the fault can name their row.
    if delimiter is None:
        with _opened(file) as stream, _decoded(stream, "surrogateescape") as text:
            delimiter = guess_delimiter(file, text.read(SAMPLE))
    with _opened(file) as stream, _decoded(stream, "surrogateescape") as text:
        yield from read_csv(file, text, delimiter)


def kind_of(file: Path) -> str:
    """Return the kind: ``jsonl`` for ``rows.jsonl.gz``."""
    return file.name.removesuffix(".gz").rsplit(".", 1)[-1]
