"""Records of ``types`` as parquet rows and back, one row group at a time. Torch-free.

A table is a folder's ``*.parquet`` files in the order of their names: one file, or one a shard.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.types import Group, Message, Pair, Prompt, Response, RunError, TextPair

Row = dict[str, Any]
ROW_GROUP = 1024

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT = pa.struct(
    [
        ("id", pa.string()),
        ("messages", _MESSAGES),
        ("source", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
    ]
)
_RESPONSE = pa.struct(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
    ]
)
PROMPTS = pa.schema(list(_PROMPT))
TEXTS = pa.schema([("prompt", _PROMPT), ("text", pa.string())])
TEXT_PAIRS = pa.schema(
    [
        ("prompt", _PROMPT),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("soft_label", pa.float64()),
    ]
)
GROUPS = pa.schema(
    [
        ("prompt", _PROMPT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(_RESPONSE)),
        ("scores", pa.list_(pa.float64())),
    ]
)
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _PROMPT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen", _RESPONSE),
        ("rejected", _RESPONSE),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("soft_label", pa.float64()),
        ("round", pa.int32()),
    ]
)
# One row a pair, in the order of the pairs; float32 log-probs of each response token under the reference.
REFERENCE = pa.schema(
    [("pair_id", pa.string()), ("chosen", pa.list_(pa.float32())), ("rejected", pa.list_(pa.float32()))]
)


def write_table(file: Path, schema: pa.Schema, rows: Iterable[Row]) -> int:
    """Stream ``rows`` to ``file``, which appears only when it is whole; returns how many."""
    scratch = file.with_name(file.name + ".tmp")
    count = 0
    with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        block: list[Row] = []
        for row in rows:
            block.append(row)
            count += 1
            if len(block) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(block, schema=schema))
                block = []
        writer.write_table(pa.Table.from_pylist(block, schema=schema))
    with scratch.open("rb") as handle:
        os.fsync(handle.fileno())
    scratch.replace(file)
    return count


def read_rows(folder: Path) -> Iterator[Row]:
    """Rows of all parquet files in ``folder``. Raises ``RunError`` naming a file that cannot be read."""
    for file in sorted(folder.glob("*.parquet")):
        yield from _file_rows(file)


def _file_rows(file: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=ROW_GROUP):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


def write_groups(file: Path, groups: Iterable[Group]) -> int:
    """Groups to one parquet file; returns how many."""
    return write_table(file, GROUPS, (_group_row(group) for group in groups))


def read_groups(folder: Path) -> Iterator[Group]:
    """Groups of a samples or labels stage (or of its shards so far)."""
    return map(_group, read_rows(folder))


def read_group_file(file: Path) -> Iterator[Group]:
    """Groups of one shard."""
    return map(_group, _file_rows(file))


def write_pairs(file: Path, pairs: Iterable[Pair]) -> int:
    """Pairs to one parquet file; returns how many."""
    return write_table(file, PAIRS, (_pair_row(pair) for pair in pairs))


def read_pairs(folder: Path) -> Iterator[Pair]:
    """Pairs of a pairs stage."""
    for row in read_rows(folder):
        yield Pair(
            prompt=row_prompt(row["prompt"]),
            prompt_ids=tuple(row["prompt_ids"]),
            chosen=_response(row["chosen"]),
            rejected=_response(row["rejected"]),
            chosen_score=row["chosen_score"],
            rejected_score=row["rejected_score"],
            soft_label=row["soft_label"],
            round=row["round"],
        )


def prompt_row(prompt: Prompt) -> Row:
    """A prompt as a plain row (also the form in which prompts go to a child process)."""
    return {
        "id": prompt.id,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "source": prompt.source,
        "answer": prompt.answer,
        "reference": prompt.reference,
    }


def text_pair_row(pair: TextPair) -> Row:
    """A data set's pair as a plain row."""
    return {
        "prompt": prompt_row(pair.prompt),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "soft_label": pair.soft_label,
    }


def row_text_pair(row: Row) -> TextPair:
    """The data set's pair of a plain row."""
    return TextPair(**{**row, "prompt": row_prompt(row["prompt"])})


def _group(row: Row) -> Group:
    return Group(
        prompt=row_prompt(row["prompt"]),
        prompt_ids=tuple(row["prompt_ids"]),
        responses=tuple(_response(item) for item in row["responses"]),
        scores=tuple(row["scores"]),
    )


def _group_row(group: Group) -> Row:
    return {
        "prompt": prompt_row(group.prompt),
        "prompt_ids": group.prompt_ids,
        "responses": [_response_row(response) for response in group.responses],
        "scores": group.scores,
    }


def _pair_row(pair: Pair) -> Row:
    return {
        "id": pair.id,
        "prompt": prompt_row(pair.prompt),
        "prompt_ids": pair.prompt_ids,
        "chosen": _response_row(pair.chosen),
        "rejected": _response_row(pair.rejected),
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "soft_label": pair.soft_label,
        "round": pair.round,
    }


def _response_row(response: Response) -> Row:
    return {
        "text": response.text,
        "token_ids": response.token_ids,
        "logprobs": response.logprobs,
        "finish_reason": response.finish_reason,
    }


def row_prompt(row: Row) -> Prompt:
    """The prompt of a plain row."""
    messages = tuple(Message(role=item["role"], content=item["content"]) for item in row["messages"])
    return Prompt(messages=messages, source=row["source"], answer=row["answer"], reference=row["reference"])


def _response(row: Row) -> Response:
    return Response(
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        finish_reason=row["finish_reason"],
    )
