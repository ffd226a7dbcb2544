"""Examples in a file, read one at a time: memory does not grow with their number. Torch-free.

The file is in Arrow's IPC format, in record batches of a few rows; a plain read fetches one batch.
Parquet reads at least a row group, which a shuffled order would decode again for nearly every row. With a memory map,
every touched page counts as memory of the process.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from pipeline.errors import RunError
from pipeline.storage.parquet.response_rows import TURN_ROW, row_turn, turn_row
from pipeline.training.batches.examples import Continuation, Example

# Rows of a record batch. With more, random access reads unneeded rows; with fewer, batch headers cost more.
BATCH_ROWS = 16

_CONTINUATION = pa.struct(
    [
        ("ids", pa.list_(pa.int32())),
        ("references", pa.list_(pa.list_(pa.float32()))),
        ("weights", pa.list_(pa.float32())),
        ("prior", pa.float64()),
        ("reward", pa.float64()),
        ("win_probability", pa.float64()),
        ("advantages", pa.list_(pa.float32())),
        ("returns", pa.list_(pa.float32())),
        ("rows", pa.list_(TURN_ROW)),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("kind", pa.string()),
        ("responses", pa.list_(_CONTINUATION)),
        ("soft_label", pa.float64()),
        ("desirable", pa.bool_()),
        ("dispersion", pa.float64()),
        ("calibration", _CONTINUATION),
        ("mismatched", _CONTINUATION),
    ]
)


def write_examples(file: Path, examples: Iterable[Example]) -> int:
    """Stream ``examples`` to ``file``, which appears only when it is whole; return their number.

    Per-token values (log-probabilities, weights) are stored as float32, as training reads them.
    """
    scratch = file.with_name(file.name + ".tmp")
    count, rows = 0, map(_row, examples)
    with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        while block := [*islice(rows, BATCH_ROWS)]:
            writer.write_batch(pa.RecordBatch.from_pylist(block, schema=SCHEMA))
            count += len(block)
    scratch.replace(file)
    return count


class ExampleTable(Sequence[Example]):
    """Examples in a file from ``write_examples``; each is created on access."""

    def __init__(self, file: Path) -> None:
        """Open ``file``. Raises ``RunError`` if it cannot be read as examples."""
        try:
            self._reader = pa.ipc.open_file(pa.OSFile(str(file), "rb"))
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file}: cannot be read as examples ({str(error).splitlines()[0]})") from None
        if self._reader.schema != SCHEMA:
            raise RunError(f"{file}: its columns are not those of examples")
        batches = self._reader.num_record_batches
        self._length = (batches - 1) * BATCH_ROWS + self._reader.get_batch(batches - 1).num_rows if batches else 0

    def __len__(self) -> int:
        """Return the number of examples."""
        return self._length

    def __iter__(self) -> Iterator[Example]:
        """Yield all examples in order, with one record batch in memory at a time."""
        for number in range(self._reader.num_record_batches):
            yield from map(_example, self._reader.get_batch(number).to_pylist())

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Return one example, or a list for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        place = range(self._length)[index]
        number, row = divmod(place, BATCH_ROWS)
        (plain,) = self._reader.get_batch(number).slice(row, 1).to_pylist()
        return _example(plain)


def _row(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "prompt_ids": example.prompt_ids,
        "kind": example.kind,
        "responses": [_continuation_row(response) for response in example.responses],
        "soft_label": example.soft_label,
        "desirable": example.desirable,
        "dispersion": example.dispersion,
        "calibration": example.calibration and _continuation_row(example.calibration),
        "mismatched": example.mismatched and _continuation_row(example.mismatched),
    }


def _continuation_row(continuation: Continuation) -> dict[str, Any]:
    return {
        "ids": continuation.ids,
        "references": continuation.references,
        "weights": continuation.weights,
        "prior": continuation.prior,
        "reward": continuation.reward,
        "win_probability": continuation.win_probability,
        "advantages": continuation.advantages,
        "returns": continuation.returns,
        "rows": [*map(turn_row, continuation.rows)],
    }


def _example(row: dict[str, Any]) -> Example:
    beside = {name: row[name] and _continuation(row[name]) for name in ("calibration", "mismatched")}
    responses = tuple(map(_continuation, row["responses"]))
    return Example(**{**row, **beside, "prompt_ids": tuple(row["prompt_ids"]), "responses": responses})


def _continuation(row: dict[str, Any]) -> Continuation:
    return Continuation(
        ids=tuple(row["ids"]),
        references=tuple(map(tuple, row["references"])),
        weights=_known(row["weights"]),
        prior=row["prior"],
        reward=row["reward"],
        win_probability=row["win_probability"],
        advantages=_known(row["advantages"]),
        returns=_known(row["returns"]),
        rows=tuple(map(row_turn, row["rows"])),
    )


def _known(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
