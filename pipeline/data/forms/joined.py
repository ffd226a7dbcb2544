"""Rows of one response each, joined into groups by the prompt that they share. Torch-free."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pydantic import JsonValue

from pipeline.config import UserData
from pipeline.data.files.records import Record
from pipeline.data.forms.cells import FaultError
from pipeline.data.forms.parsing import one_response_prompt
from pipeline.data.forms.paths import find
from pipeline.types import Prompt


def grouped(records: Iterable[Record], data: UserData) -> Iterator[Record]:
    """Join consecutive rows with the same prompt and answer into one, whose responses and rewards are lists.

    The prompt is all that the model reads: tools, system turn and history too, and the turns before the response if
    that is a whole conversation. The joined row has the number of the first; all other columns are the first row's.
    Rows with a fault stay alone.
    """
    held: list[Record] = []
    shared: Prompt | None = None
    for given in records:
        record, prompt = _read(given, data)
        if held and not (prompt is not None and record.file == held[0].file and _alike(prompt, shared)):
            yield _joined(held, data)
            held = []
        if prompt is None:
            yield record
        else:
            shared = shared if held else prompt
            held.append(record)
    if held:
        yield _joined(held, data)


def _read(record: Record, data: UserData) -> tuple[Record, Prompt | None]:
    """Return a row with its prompt, or with the fault that keeps it from having one."""
    if record.fault is not None:
        return record, None
    try:
        return record, one_response_prompt(record, data)
    except FaultError as fault:
        return replace(record, fault=str(fault)), None


def _alike(prompt: Prompt, other: Prompt | None) -> bool:
    return other is not None and (prompt.id, prompt.answer) == (other.id, other.answer)


def _joined(held: list[Record], data: UserData) -> Record:
    columns = data.columns
    rewards = (columns.rewards,) if isinstance(columns.rewards, str) else columns.rewards
    assert isinstance(columns.responses, str), "rows with several columns of responses have a fault"
    names = (columns.responses, *rewards)
    missing = next((name for name in names if all(find(r.values, name) is None for r in held)), None)
    if missing is not None:
        return replace(held[0], fault=f"no column {missing!r}, or nothing in it; rows: responses reads it")
    lists: dict[str, JsonValue] = {name: [find(record.values, name) for record in held] for name in names}
    return replace(held[0], values={**held[0].values, **lists})
