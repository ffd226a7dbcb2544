"""Records of ``types`` as parquet rows and back, one row group at a time. Torch-free.

A table is a folder's ``*.parquet`` files in the order of their names: one file, or one per shard.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError
from pipeline.storage.parquet.group_columns import GROUPS, PROMPT_STRUCT, group_table, groups_of, prompts_of
from pipeline.storage.parquet.response_rows import RESPONSE_STRUCT, response_row, row_response
from pipeline.storage.parquet.tables import ROW_GROUP, Row, TableWriter
from pipeline.storage.seals import Seal
from pipeline.types import (
    Group,
    Message,
    Pair,
    Preference,
    Prompt,
    TextGroup,
    TextPair,
    TextPreference,
    Unpaired,
    UnpairedText,
)
from pipeline.types.counts import number_of

PROMPTS = pa.schema(list(PROMPT_STRUCT))
TEXTS = pa.schema([("prompt", PROMPT_STRUCT), ("text", pa.string())])
# Numbers that both forms of a pair, as text and as tokens, carry besides the responses.
_PAIR_NUMBERS = [
    (name, pa.float64())
    for name in (
        "chosen_score",
        "rejected_score",
        "soft_label",
        "win_probability",
        "win_probability_rejected",
        "chosen_prior",
        "rejected_prior",
    )
]
_TEXT = pa.string()
_EXTRAS = [(name, _TEXT) for name in ("chosen_extra", "rejected_extra", "chosen_turns", "rejected_turns")]
TEXT_PAIRS = pa.schema([("prompt", PROMPT_STRUCT), ("chosen", _TEXT), ("rejected", _TEXT), *_PAIR_NUMBERS, *_EXTRAS])
_NUMBERS, _TEXTS = pa.list_(pa.float64()), pa.list_(_TEXT)
TEXT_GROUPS = pa.schema([("prompt", PROMPT_STRUCT), ("responses", _TEXTS), ("rewards", _NUMBERS), ("extras", _TEXTS)])
UNPAIRED_TEXTS = pa.schema(
    [("prompt", PROMPT_STRUCT), ("completion", _TEXT), ("desirable", pa.bool_()), ("extra", _TEXT)]
)
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", PROMPT_STRUCT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen", RESPONSE_STRUCT),
        ("rejected", RESPONSE_STRUCT),
        *_PAIR_NUMBERS,
        ("round", pa.int32()),
    ]
)
UNPAIRED = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", PROMPT_STRUCT),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response", RESPONSE_STRUCT),
        ("desirable", pa.bool_()),
    ]
)
# One model's values for examples, one row each, in order: the natural-log probability (float32) of each token of each
# continuation (the responses, then a calibration or mismatched one), and the mean entropy over the responses, where a
# uniform distribution has 1.
REFERENCE = pa.schema([("id", pa.string()), ("logps", pa.list_(pa.list_(pa.float32()))), ("entropy", pa.float64())])

# What a value head says of the tokens of each response of an example, and what follows from it, one row each, in order.
TOKEN_VALUES = pa.schema([("id", pa.string()), ("values", pa.list_(pa.list_(pa.float32())))])
ADVANTAGES = pa.schema(
    [("id", pa.string()), *((name, pa.list_(pa.list_(pa.float32()))) for name in ("advantages", "returns"))]
)


def write_table(file: Path, schema: pa.Schema, rows: Iterable[Row], seal: Seal | None = None) -> int:
    """Stream ``rows`` to ``file``, which appears only when it is whole and sealed; return the number of rows."""
    with TableWriter(file, schema, seal) as table:
        for row in rows:
            table.add(row)
    return table.rows


def read_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of all parquet files in ``folder``. Raises ``RunError`` with the name of an unreadable file."""
    for file in sorted(folder.glob("*.parquet")):
        yield from read_row_file(file)


def read_row_file(file: Path) -> Iterator[Row]:
    """Yield the rows of one parquet file. Raises as ``read_rows``."""
    for batch in _batches(file):
        yield from batch.to_pylist()


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            left = table.metadata.num_rows
            for batch in table.iter_batches(batch_size=ROW_GROUP, use_threads=False):
                left -= batch.num_rows
                yield batch
        if left:
            # Page headers have no checksum of their own.
            raise RunError(f"{file}: cannot be read as parquet ({number_of(left, 'row is', 'rows are')} missing)")
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


def write_groups(file: Path, groups: Iterable[Group], seal: Seal | None = None) -> int:
    """Write groups to one parquet file; return their number."""
    rest = iter(groups)
    with TableWriter(file, GROUPS, seal) as table:
        while block := [*islice(rest, ROW_GROUP)]:
            table.add_rows(group_table(block))
    return table.rows


def read_groups(folder: Path) -> Iterator[Group]:
    """Yield the groups of a samples or labels stage (or of its shards so far)."""
    for file in sorted(folder.glob("*.parquet")):
        yield from read_group_file(file)


def read_group_file(file: Path) -> Iterator[Group]:
    """Yield the groups of one shard."""
    for batch in _batches(file):
        found = groups_of(batch)
        yield from map(_group, batch.to_pylist()) if found is None else found


def read_prompt_table(folder: Path) -> Iterator[Prompt]:
    """Yield the prompts of a table of prompts."""
    for file in sorted(folder.glob("*.parquet")):
        for batch in _batches(file):
            if batch.schema.equals(PROMPTS):
                yield from prompts_of(batch.to_struct_array())
            else:
                # An earlier version wrote it.
                yield from map(row_prompt, batch.to_pylist())


def write_preferences(file: Path, preferences: Iterable[Preference]) -> int:
    """Stream pairs, groups or marked responses, all of one kind, to one parquet file; return their number."""
    rest = iter(preferences)
    first = next(rest, None)
    if first is None:
        return write_table(file, PAIRS, ())
    schema = {Pair: PAIRS, Group: GROUPS, Unpaired: UNPAIRED}[type(first)]
    return write_table(file, schema, map(_preference_row, chain((first,), rest)))


def read_preference_rows(folder: Path) -> Iterator[Preference]:
    """Yield the rows that a pairs stage wrote, of any kind."""
    return map(_preference, read_rows(folder))


def read_preference_file(file: Path) -> Iterator[Preference]:
    """Yield the rows of one file of a pairs stage."""
    return map(_preference, read_row_file(file))


def _preference(row: Row) -> Preference:
    if "chosen" in row:
        return _pair(row)
    return _unpaired(row) if "desirable" in row else _group(row)


def prompt_row(prompt: Prompt) -> Row:
    """Return a prompt as a plain row (prompts also go to child processes in this form)."""
    return {
        "id": prompt.id,
        "messages": [{"role": m.role, "content": m.content, "extra": m.extra} for m in prompt.messages],
        "source": prompt.source,
        "answer": prompt.answer,
        "reference": prompt.reference,
        "rubric": prompt.rubric,
    }


def text_row(record: TextPreference) -> Row:
    """Return a data set's preference, in any form, as a plain row."""
    return {**asdict(record), "prompt": prompt_row(record.prompt)}


def row_text_pair(row: Row) -> TextPair:
    """Return the data set's pair from a plain row."""
    return TextPair(**{**row, "prompt": row_prompt(row["prompt"])})


def row_text_group(row: Row) -> TextGroup:
    """Return the data set's group from a plain row."""
    extras = tuple(row.get("extras") or ())
    return TextGroup(row_prompt(row["prompt"]), tuple(row["responses"]), tuple(row["rewards"]), extras)


def row_unpaired_text(row: Row) -> UnpairedText:
    """Return the data set's marked response from a plain row."""
    return UnpairedText(row_prompt(row["prompt"]), row["completion"], row["desirable"], row.get("extra") or "")


def _pair(row: Row) -> Pair:
    return Pair(
        prompt=row_prompt(row["prompt"]),
        prompt_ids=tuple(row["prompt_ids"]),
        chosen=row_response(row["chosen"]),
        rejected=row_response(row["rejected"]),
        round=row["round"],
        **{name: row[name] for name, _ in _PAIR_NUMBERS},
    )


def _unpaired(row: Row) -> Unpaired:
    return Unpaired(
        row_prompt(row["prompt"]), tuple(row["prompt_ids"]), row_response(row["response"]), row["desirable"]
    )


def _group(row: Row) -> Group:
    return Group(
        prompt=row_prompt(row["prompt"]),
        prompt_ids=tuple(row["prompt_ids"]),
        responses=tuple(row_response(item) for item in row["responses"]),
        scores=tuple(row["scores"]),
        # A samples file may lack these columns.
        wins=tuple(tuple(wins) for wins in row["wins"] or ()),
        disagreement=tuple(row["disagreement"] or ()),
        criteria=tuple(tuple(scores) for scores in row.get("criteria") or ()),
    )


def _group_row(group: Group) -> Row:
    return {
        "prompt": prompt_row(group.prompt),
        "prompt_ids": group.prompt_ids,
        "responses": [response_row(response) for response in group.responses],
        "scores": group.scores,
        "wins": group.wins,
        "disagreement": group.disagreement,
        "criteria": group.criteria,
    }


def _preference_row(preference: Preference) -> Row:
    match preference:
        case Group():
            return _group_row(preference)
        case Unpaired():
            own = {"response": response_row(preference.response), "desirable": preference.desirable}
        case Pair():
            own = {
                "chosen": response_row(preference.chosen),
                "rejected": response_row(preference.rejected),
                "chosen_score": preference.chosen_score,
                "rejected_score": preference.rejected_score,
                "soft_label": preference.soft_label,
                "win_probability": preference.win_probability,
                "win_probability_rejected": preference.win_probability_rejected,
                "chosen_prior": preference.chosen_prior,
                "rejected_prior": preference.rejected_prior,
                "round": preference.round,
            }
    shared = {"id": preference.id, "prompt": prompt_row(preference.prompt), "prompt_ids": preference.prompt_ids}
    return {**shared, **own}


def row_prompt(row: Row) -> Prompt:
    """Return the prompt from a plain row."""
    # Run folders of earlier versions have turns without further fields.
    messages = tuple(Message(item["role"], item["content"], item.get("extra") or "") for item in row["messages"])
    given = {name: row[name] for name in ("source", "answer", "reference")}
    return Prompt(messages=messages, **given, rubric=row.get("rubric") or "")
