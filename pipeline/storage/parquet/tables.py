"""Parquet files that are written row by row and appear whole. Torch-free."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.storage.seals import Seal

Row = dict[str, Any]
ROW_GROUP = 1024


class TableWriter:
    """Writer of one parquet file, row by row, in row groups; a context manager.

    The file appears only when it is whole: after an error inside, there is no file.

    Attributes:
        rows: how many have been added.
    """

    def __init__(self, file: Path, schema: pa.Schema, seal: Seal | None = None, *, row_group: int = ROW_GROUP) -> None:
        self.rows = 0
        self._seal = seal
        self._row_group = row_group
        self._file = file
        self._scratch = file.with_name(file.name + ".tmp")
        self._schema = schema
        self._writer = pq.ParquetWriter(self._scratch, schema, compression="zstd", write_page_checksum=True)
        self._block: list[Row] = []

    def add(self, row: Row) -> None:
        """Write one more row."""
        self._block.append(row)
        self.rows += 1
        if len(self._block) == self._row_group:
            self._flush()

    def add_rows(self, rows: pa.Table) -> None:
        """Write several more rows, as a row group of their own."""
        if self._block:
            self._flush()
        self._writer.write_table(rows)
        self.rows += rows.num_rows

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._discard()
            return
        try:
            # A table without rows, and after a last whole row group, ends with an empty one.
            if self._block or self.rows % self._row_group == 0:
                self._flush()
            self._writer.close()
            with self._scratch.open("rb") as handle:
                os.fsync(handle.fileno())
            if self._seal is not None:
                self._seal(self._scratch)
        except BaseException:
            self._discard()
            raise
        self._scratch.replace(self._file)

    def _discard(self) -> None:
        # On a full disk closing fails too; remove the partial file to free its space.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._scratch.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._block, schema=self._schema))
        self._block = []


def read_columns(file: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a parquet file, block by block. Raises ``RunError`` if it cannot be read."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            yield from table.iter_batches(batch_size=ROW_GROUP, columns=list(names))
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
