"""Groups as the columns of a parquet table and back, without an object for each row. Torch-free.

The files are the same as if the groups were written row by row. Files of earlier versions lack columns; they are read
row by row.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.storage.parquet.response_rows import RESPONSE_STRUCT, row_turn, turn_row
from pipeline.types import Group, Message, Prompt, Response

MESSAGE_STRUCT = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])
PROMPT_STRUCT = pa.struct(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE_STRUCT)),
        ("source", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
        ("rubric", pa.string()),
    ]
)
_NUMBERS = pa.list_(pa.float64())
_LABELS = {"scores": _NUMBERS, "wins": pa.list_(_NUMBERS), "disagreement": _NUMBERS, "criteria": pa.list_(_NUMBERS)}
GROUPS = pa.schema(
    [
        ("prompt", PROMPT_STRUCT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(RESPONSE_STRUCT)),
        *_LABELS.items(),
    ]
)


def group_table(groups: Sequence[Group]) -> pa.Table:
    """Return ``groups`` as a table of the schema ``GROUPS``."""
    responses = [response for group in groups for response in group.responses]
    columns = {
        "prompt": _prompts([group.prompt for group in groups]),
        "prompt_ids": _listed([group.prompt_ids for group in groups], pa.int32()),
        "responses": _in_lists([group.responses for group in groups], _responses(responses)),
        "scores": pa.array([group.scores for group in groups], _LABELS["scores"]),
        "wins": pa.array([group.wins for group in groups], _LABELS["wins"]),
        "disagreement": pa.array([group.disagreement for group in groups], _LABELS["disagreement"]),
        "criteria": pa.array([group.criteria for group in groups], _LABELS["criteria"]),
    }
    return pa.table(columns, schema=GROUPS)


def _prompts(prompts: Sequence[Prompt]) -> pa.Array:
    messages = [message for prompt in prompts for message in prompt.messages]
    said = _struct(
        MESSAGE_STRUCT,
        [message.role for message in messages],
        [message.content for message in messages],
        [message.extra for message in messages],
    )
    return _struct(
        PROMPT_STRUCT,
        [prompt.id for prompt in prompts],
        _in_lists([prompt.messages for prompt in prompts], said),
        [prompt.source for prompt in prompts],
        [prompt.answer for prompt in prompts],
        [prompt.reference for prompt in prompts],
        [prompt.rubric for prompt in prompts],
    )


def _responses(responses: Sequence[Response]) -> pa.Array:
    return _struct(
        RESPONSE_STRUCT,
        [response.text for response in responses],
        _listed([response.token_ids for response in responses], pa.int32()),
        _listed([response.logprobs for response in responses], pa.float32()),
        [response.finish_reason for response in responses],
        [response.thinking_tokens for response in responses],
        [response.hidden_tokens for response in responses],
        [response.in_thought for response in responses],
        pa.array([[*map(turn_row, response.rows)] for response in responses], RESPONSE_STRUCT.field("rows").type),
    )


def _struct(kind: pa.StructType, *columns: "list[Any] | pa.Array") -> pa.Array:
    made = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for field, column in zip(kind, columns, strict=True)
    ]
    return pa.StructArray.from_arrays(made, fields=list(kind))


def _listed(rows: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    """Return a list for each of ``rows``."""
    return _in_lists(rows, pa.array(list(chain.from_iterable(rows)), kind))


def _in_lists(rows: Sequence[Sequence[object]], values: pa.Array) -> pa.Array:
    """Return ``values`` cut into lists of the lengths of ``rows``."""
    return pa.ListArray.from_arrays(pa.array([0, *accumulate(map(len, rows))], pa.int32()), values)


def groups_of(batch: pa.RecordBatch) -> Iterator[Group] | None:
    """Return the groups of a part of a table; None if an earlier version wrote it."""
    if not batch.schema.equals(GROUPS):
        return None
    prompts, responses = prompts_of(batch.column("prompt")), _read_responses(batch.column("responses").flatten())
    ends = _ends(batch.column("responses"))
    ids = _rows(batch.column("prompt_ids"))
    scores, wins, disagreement, criteria = (batch.column(name).to_pylist() for name in _LABELS)
    return (
        Group(
            prompt,
            ids[row],
            tuple(responses[ends[row] : ends[row + 1]]),
            tuple(scores[row]),
            tuple(map(tuple, wins[row] or ())),
            tuple(disagreement[row] or ()),
            tuple(map(tuple, criteria[row] or ())),
        )
        for row, prompt in enumerate(prompts)
    )


def prompts_of(column: pa.StructArray) -> list[Prompt]:
    """Return the prompts in a column of the type ``PROMPT_STRUCT``."""
    _, messages, *rest = column.flatten()
    roles, contents, extras = map(_texts, messages.flatten().flatten())
    said = [*map(Message, roles, contents, extras)]
    ends = _ends(messages)
    return [
        Prompt(tuple(said[start:end]), source, answer, reference, rubric=rubric)
        for start, end, source, answer, reference, rubric in zip(ends, ends[1:], *map(_texts, rest), strict=False)
    ]


def _read_responses(column: pa.StructArray) -> list[Response]:
    text, ids, logprobs, reason, thinking, hidden, in_thought, rows = column.flatten()
    numbers = (_plain(thinking).tolist(), _plain(hidden).tolist())
    turns = [()] * len(column) if not len(rows.flatten()) else [tuple(map(row_turn, of)) for of in rows.to_pylist()]
    words = (_texts(text), _rows(ids), _rows(logprobs), _texts(reason))
    return [*map(Response, *words, *numbers, in_thought.to_pylist(), turns)]


def _texts(column: pa.Array) -> list[Any]:
    found: list[Any] = column.to_pylist()
    return found


def _plain(column: pa.Array) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the numbers of a column without nulls. pyarrow's own conversion imports pandas."""
    assert column.null_count == 0, "prefloop writes a number in each row"
    numbers = column.buffers()[1]
    if numbers is None:
        return np.zeros(0, column.type.to_pandas_dtype())
    return np.frombuffer(numbers, column.type.to_pandas_dtype())[column.offset : column.offset + len(column)]


def _rows(column: pa.ListArray) -> list[tuple[Any, ...]]:
    """Return the lists of numbers."""
    values, ends = _plain(column.flatten()).tolist(), _ends(column)
    return [tuple(values[start:end]) for start, end in pairwise(ends)]


def _ends(column: pa.ListArray) -> list[int]:
    """Return where each list starts in what ``flatten`` returns, and where the last one ends."""
    offsets = _plain(column.offsets)
    found: list[int] = (offsets - offsets[0]).astype(np.int64).tolist()
    return found
