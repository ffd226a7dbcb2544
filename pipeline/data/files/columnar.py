"""Rows of parquet and Arrow files and of data sets, in memory that is bounded before any row is made. Torch-free.

A file of a few kilobytes can decode to gigabytes: it names one long text a million times (dictionaries), repeats one
number (run lengths), or is compressed well. So where a text could be long and many, texts are read as dictionaries,
measured, and decoded only as far as they fit into ``AT_ONCE``.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.files.bounds import Broken, NumberedRows
from pipeline.errors import UserError

Decoded: TypeAlias = pa.RecordBatch | str
BATCH = 256
_BUFFER = 1 << 20
AT_ONCE = 64 << 20  # bytes of decoded rows
_MOST_COMPRESSED = 1000  # times that large values are larger than on disk
_VALUES_AT_ONCE = 4 << 20  # of one column, in lists
_LARGE_BATCH = 256 << 20  # bytes of an Arrow batch
_BATCH_COMPRESSED = 100
_LONG = 1 << 16  # bytes of a value


def read_columnar(file: Path, kind: str) -> NumberedRows:
    """Yield the rows of a file: ``parquet``, or Arrow. Raises ``UserError`` if the whole file is damaged."""
    try:
        yield from rows_of(parquet(file) if kind == "parquet" else arrow(file))
    except pa.ArrowException as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def rows_of(parts: Iterable[Decoded]) -> NumberedRows:
    """Yield the rows of such parts."""
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
        # Rows that are not sound stand alone (``sound``); all others were validated there.
        if batch.num_rows == 1:
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


def parquet(file: Path) -> Iterator[Decoded]:
    """Yield the rows in parts with plain columns; for a row that does not fit into memory, the reason.

    Rows that are not sound stand alone.

    Raises:
        UserError: a column that decodes to no sensible size.
    """
    footer = pq.read_metadata(file)
    columns = [footer.schema.column(place) for place in range(footer.num_columns)]
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    # Column chunks are read through a buffer: one row group may be the whole file.
    options = {"buffer_size": _BUFFER, "pre_buffer": False}
    with pq.ParquetFile(file, **options) as plain, pq.ParquetFile(file, read_dictionary=texts, **options) as measured:
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            size = _rows_at_once(file, group)
            swells = any(_swells(measured, number, column) for column in _dictionaries(group, texts))
            table = measured if swells else plain
            for batch in table.iter_batches(batch_size=size, row_groups=[number]):
                # One damaged text in a dictionary would make every row of it unsound: they are validated when plain.
                for part in _fitting(batch):
                    yield from (part,) if isinstance(part, str) else _separate(part)


def arrow(file: Path) -> Iterator[Decoded]:
    """Yield the rows of an Arrow file (Feather 2), or of a stream (what ``datasets`` caches), in such parts.

    Raises:
        UserError: a batch that decodes to no sensible size.
    """
    with pa.memory_map(str(file)) as mapped:
        for stored, decoded in _batch_sizes(mapped):
            if decoded > max(_LARGE_BATCH, _BATCH_COMPRESSED * stored):
                raise UserError(f"{file}: a batch of {stored} bytes that stand for {decoded >> 20} MiB: not data")
        mapped.seek(0)
        try:
            opened = pa.ipc.open_file(mapped)
        except pa.ArrowInvalid:
            mapped.seek(0)
            yield from sound(pa.ipc.open_stream(mapped))
            return
        yield from sound(opened.get_batch(index) for index in range(opened.num_record_batches))


def _batch_sizes(mapped: pa.MemoryMappedFile) -> Iterator[tuple[int, int]]:
    """Yield the sizes of each batch in a file or stream, as it is stored and as it will be decompressed, in bytes.

    Both formats hold the same messages, the file's after 8 bytes (Arrow columnar format, "IPC File Format"). What is
    damaged ends the list: Arrow itself says what is wrong with it.
    """
    try:
        mapped.seek(8 if mapped.read(6) == b"ARROW1" else 0)
        for message in pa.ipc.MessageReader.open_stream(mapped):
            if message.body is not None:
                yield message.body.size, _decompressed(memoryview(message.metadata), memoryview(message.body))
    except (pa.ArrowException, struct.error, IndexError, EOFError, TypeError):
        return


def _decompressed(metadata: memoryview, body: memoryview) -> int:
    """Return the sum of the lengths that are written before each compressed buffer of a message; 0 if none is.

    ``metadata`` is a flatbuffer of Arrow's ``Message``: header type in field 1, header in field 2. A dictionary (type
    2) holds its batch in field 1, and a batch (type 3) its buffers in field 2 and its compression in field 3.
    """
    message = _target(metadata, 0)
    kind, header = _field(metadata, message, 1), _field(metadata, message, 2)
    if not kind or not header or metadata[kind] not in (2, 3):
        return 0
    batch = _target(metadata, header)
    if metadata[kind] == 2:
        batch = _target(metadata, _field(metadata, batch, 1))
    if not _field(metadata, batch, 3):
        return 0
    buffers = _target(metadata, _field(metadata, batch, 2))
    total = 0
    for place in range(struct.unpack_from("<I", metadata, buffers)[0]):
        start, length = struct.unpack_from("<qq", metadata, buffers + 4 + 16 * place)
        # -1 marks a buffer that is stored as it is.
        total += max(struct.unpack_from("<q", body, start)[0], 0) if length >= 8 else 0
    return total


def _target(flatbuffer: memoryview, place: int) -> int:
    return place + int(struct.unpack_from("<I", flatbuffer, place)[0])


def _field(flatbuffer: memoryview, table: int, number: int) -> int:
    """Return the place of a table's field; 0 if it is absent."""
    listed = table - int(struct.unpack_from("<i", flatbuffer, table)[0])
    size = struct.unpack_from("<H", flatbuffer, listed)[0]
    at = 4 + 2 * number
    offset = int(struct.unpack_from("<H", flatbuffer, listed + at)[0]) if at + 2 <= size else 0
    return table + offset if offset else 0


def sound(batches: Iterable[pa.RecordBatch]) -> Iterator[Decoded]:
    """Yield the rows of batches in parts with plain columns; rows that are not sound stand alone, as they are.

    Arrow trusts the offsets in a file, and reads whatever memory they point to.
    """
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            if _is_sound(part):
                yield from _fitting(part)
                continue
            for alone in (part.slice(place, 1) for place in range(part.num_rows)):
                yield from _fitting(alone) if _is_sound(alone) else (alone,)


def _separate(part: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Return the part, or each of its rows alone if it is not sound."""
    return [part] if _is_sound(part) else [part.slice(place, 1) for place in range(part.num_rows)]


def _is_sound(part: pa.RecordBatch) -> bool:
    try:
        part.validate(full=True)
    except (ValueError, pa.ArrowException):
        return False
    return True


def _fitting(part: pa.RecordBatch) -> Iterator[Decoded]:
    size = sum(map(_decoded, part.columns))
    if size <= AT_ONCE:
        target = pa.schema([_plain(field) for field in part.schema])
        # Of a slice, a cast would decode all that it is cut from.
        yield part if target == part.schema else part.take(pa.array(range(part.num_rows))).cast(target)
    elif part.num_rows == 1:
        yield f"a row of more than {AT_ONCE >> 20} MiB"
    else:
        half = part.num_rows // 2
        yield from _fitting(part.slice(0, half))
        yield from _fitting(part.slice(half))


def _rows_at_once(file: Path, group: Any) -> int:
    """Return how many rows of a row group to read at once, by the sizes in its footer."""
    rows = BATCH
    for column in map(group.column, range(group.num_columns)):
        size, values = column.total_uncompressed_size, max(column.num_values, 1)
        most = _MOST_COMPRESSED * max(column.total_compressed_size, 1)
        large = size > max(AT_ONCE, most) and size // values > _LONG
        if large or values > max(_VALUES_AT_ONCE * group.num_rows, most):
            stored = f"{column.total_compressed_size} bytes"
            decoded = f"{size >> 20} MiB" if large else f"{values} values"
            raise UserError(f"{file}: column {column.path_in_schema!r}: {stored} that stand for {decoded}: not data")
        # Each text of this encoding continues the one before it.
        long = size if "DELTA_BYTE_ARRAY" in column.encodings else 8 * size // values
        rows = min(rows, AT_ONCE // max(long, 1), _VALUES_AT_ONCE * group.num_rows // values)
    return max(rows, 1)


def _dictionaries(group: Any, texts: Sequence[str]) -> Iterator[Any]:
    """Yield the column chunks that could name a long text often."""
    for column in map(group.column, range(group.num_columns)):
        named = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & {*column.encodings}
        if named and column.path_in_schema in texts and column.total_uncompressed_size * column.num_values > AT_ONCE:
            yield column


def _swells(measured: pq.ParquetFile, number: int, column: Any) -> bool:
    """Whether a few rows could hold more text than fits: by the longest text in the column's dictionary."""
    rows = measured.iter_batches(batch_size=1, row_groups=[number], columns=[column.path_in_schema])
    longest = max((_longest(found) for found in next(rows).columns), default=0)
    nested = "." in column.path_in_schema
    return bool(longest * (column.num_values // 8 if nested else BATCH) > AT_ONCE)


def _longest(column: pa.Array) -> int:
    """Return the length of the longest text in a column's dictionaries, in bytes."""
    if pa.types.is_dictionary(column.type):
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    if pa.types.is_map(column.type):
        return max(_longest(column.keys), _longest(column.items))
    if pa.types.is_struct(column.type):
        return max(map(_longest, column.flatten()), default=0)
    return _longest(column.flatten()) if pa.types.is_nested(column.type) else 0


def _decoded(column: pa.Array) -> int:
    """Return how many bytes ``column`` takes when its dictionaries are spelled out."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            return int(pc.sum(lengths).as_py() or 0) + 8 * len(column)
        return int(column.dictionary.nbytes) * len(column)
    if pa.types.is_struct(kind):
        return sum(map(_decoded, column.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _decoded(column.flatten()) + 8 * len(column)
    if pa.types.is_map(kind):
        return int(column.nbytes) + _decoded(column.keys) + _decoded(column.items)
    return int(column.nbytes)


def _plain(field: pa.Field) -> pa.Field:
    """Return ``field`` without dictionaries."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    elif pa.types.is_struct(kind):
        kind = pa.struct([_plain(kind.field(place)) for place in range(kind.num_fields)])
    elif pa.types.is_list(kind):
        kind = pa.list_(_plain(kind.value_field))
    elif pa.types.is_large_list(kind):
        kind = pa.large_list(_plain(kind.value_field))
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.list_(_plain(kind.value_field), kind.list_size)
    elif pa.types.is_map(kind):
        kind = pa.map_(_plain(kind.key_field), _plain(kind.item_field), kind.keys_sorted)
    return field.with_type(kind)
