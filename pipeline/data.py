"""Prompts, reference texts and preference pairs from the user's files or the generated task.

Every row is checked before anything is returned: a fault names file, row and column. Rows with one
prompt are one prompt. Knows no tokenizer; ``pairs.tokenise_pairs`` makes tokens of what is read here.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar, assert_never

from pydantic import JsonValue

from pipeline.config import Columns, Data, FileData, HeldOut, RestaurantData
from pipeline.records import Record, read_records
from pipeline.restaurants import generate
from pipeline.types import Message, Prompt, Role, TextPair, UserError, content_hash, first_lines

T = TypeVar("T")
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


class _FaultError(Exception):
    """What is wrong with one row."""


def read_prompts(data: Data) -> list[Prompt]:
    """The distinct prompts of ``data`` in the order of their first rows.

    A prompt's ``reference`` is the first response that its rows give; ``answer`` must be one and the same.

    Raises:
        UserError: no rows, malformed rows (up to five are shown), or answers that differ for one prompt.
    """
    return _distinct([(prompt, place) for prompt, _, place in _rows(data)])


def read_texts(data: Data) -> list[tuple[Prompt, str]]:
    """Every (prompt, reference response) of ``data``: several for a prompt whose rows give several.

    Rows without a response are left out; the generated task gives its spoilt sentences. Raises as ``read_prompts``.
    """
    return [(prompt, text) for prompt, texts, _ in _rows(data) for text in texts]


def read_pairs(data: FileData) -> list[TextPair]:
    """Preference pairs in TRL's form: ``prompt``, ``chosen``, ``rejected``.

    Each is a string or a list of messages. Lists under chosen and rejected hold the assistant's turn
    alone or the whole conversation; without a prompt column the prompt is what both begin with.

    Raises:
        UserError: no rows, or malformed rows (up to five are shown).
    """
    return [pair for pair, _ in _read(data.path, lambda record: _pair(record, data.columns))]


def split_held_out(prompts: list[Prompt], settings: HeldOut) -> tuple[list[Prompt], list[Prompt]]:
    """(training prompts, held-out prompts), disjoint by ``Prompt.id``.

    Which prompts are held out depends on their ids and ``settings.seed`` alone, not on the order of rows.

    Raises:
        UserError: fewer prompts than ``settings.prompts`` + 1.
    """
    distinct = list({prompt.id: prompt for prompt in prompts}.values())
    if len(distinct) <= settings.prompts:
        raise UserError(
            f"held_out.prompts: {settings.prompts} of {len(distinct)} distinct prompts leave none to train on"
        )
    ranked = sorted(distinct, key=lambda prompt: content_hash([settings.seed, prompt.id]))
    chosen = {prompt.id for prompt in ranked[: settings.prompts]}
    return [p for p in distinct if p.id not in chosen], [p for p in distinct if p.id in chosen]


# ---------------------------------------------------------------- rows of prompts


def _rows(data: Data) -> list[tuple[Prompt, tuple[str, ...], str]]:
    """(prompt, its reference responses, where it stands) of each row."""
    match data:
        case FileData():
            read = _read(data.path, lambda record: _prompt_row(record, data.columns))
            return [(prompt, texts, place) for (prompt, texts), place in read]
        case RestaurantData():
            rows = []
            for number, row in enumerate(generate(data), 1):
                messages = (Message("user", row.mr),)
                prompt = Prompt(messages, source="restaurants", answer=row.mr, reference=row.references[0])
                rows.append((prompt, row.references, f"restaurants, row {number}"))
            return rows
    assert_never(data)


def _read(path: str, parse: Callable[[Record], T]) -> list[tuple[T, str]]:
    """``parse`` of every record, with the record's place; all faults are found before any is reported."""
    parsed: list[tuple[T, str]] = []
    faults: list[str] = []
    for record in read_records(path):
        try:
            if record.fault is not None:
                raise _FaultError(record.fault)
            parsed.append((parse(record), record.place))
        except _FaultError as fault:
            faults.append(f"{record.place}: {fault}")
    if faults:
        many = "row" if len(faults) == 1 else "rows"
        raise UserError(f"{path}: {len(faults)} malformed {many}\n{first_lines(faults)}")
    if not parsed:
        raise UserError(f"{path}: holds no rows")
    return parsed


def _distinct(rows: Iterable[tuple[Prompt, str]]) -> list[Prompt]:
    kept: dict[str, tuple[Prompt, str]] = {}
    clashes: list[str] = []
    for prompt, place in rows:
        first, first_place = kept.setdefault(prompt.id, (prompt, place))
        if prompt.answer != first.answer:
            clashes.append(
                f"{place}: answer {prompt.answer!r}, but {first_place} has the same prompt with {first.answer!r}"
            )
        elif first.reference is None and prompt.reference is not None:
            kept[prompt.id] = (prompt, first_place)
    if clashes:
        raise UserError(f"one prompt with several answers:\n{first_lines(clashes)}")
    return [prompt for prompt, _ in kept.values()]


def _prompt_row(record: Record, columns: Columns) -> tuple[Prompt, tuple[str, ...]]:
    values = record.values
    if columns.prompt not in values and {columns.chosen, columns.rejected} <= values.keys():
        pair = _pair(record, columns)
        return pair.prompt, ()
    messages = _prompt_messages(_required(values, columns.prompt), columns.prompt)
    response = _optional_text(values, columns.response)
    if columns.response == columns.prompt:
        raise _FaultError(f"columns.response and columns.prompt are both {columns.prompt!r}")
    answer = _answer(values, columns.answer)
    prompt = Prompt(messages, source=record.file.name, answer=answer, reference=response)
    return prompt, () if response is None else (response,)


def _pair(record: Record, columns: Columns) -> TextPair:
    values = record.values
    chosen, rejected = (_required(values, column) for column in (columns.chosen, columns.rejected))
    if values.get(columns.prompt) is not None:
        messages = _prompt_messages(values[columns.prompt], columns.prompt)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        messages = _common_start(_messages(chosen, columns.chosen), _messages(rejected, columns.rejected), columns)
    else:
        raise _FaultError(
            f"no column {columns.prompt!r} (only whole conversations under {columns.chosen!r} can do without)"
        )
    return TextPair(
        prompt=Prompt(messages, source=record.file.name, answer=_answer(values, columns.answer)),
        chosen=_completion(chosen, messages, columns.chosen),
        rejected=_completion(rejected, messages, columns.rejected),
    )


# ---------------------------------------------------------------- cells


def _required(values: dict[str, JsonValue], column: str) -> JsonValue:
    if column not in values:
        raise _FaultError(f"no column {column!r}; it has {', '.join(map(repr, values)) or 'none'}")
    if values[column] is None:
        raise _FaultError(f"{column}: is null")
    return values[column]


def _optional_text(values: dict[str, JsonValue], column: str) -> str | None:
    value = values.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, list):
        value = _completion(value, (), column)
    if not isinstance(value, str):
        raise _FaultError(f"{column}: must be a string, not {_kind(value)}")
    return value


def _answer(values: dict[str, JsonValue], column: str) -> str | None:
    value = values.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, list | dict):
        raise _FaultError(f"{column}: must be a string or number, not {_kind(value)}")
    return str(value)


def _messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    """A list of {role, content}; a string is one user message."""
    if isinstance(value, str):
        if not value.strip():
            raise _FaultError(f"{column}: is empty")
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise _FaultError(f"{column}: must be a string or a list of messages, not {_kind(value)}")
    messages = []
    for number, item in enumerate(value, 1):
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise _FaultError(f"{column}: message {number} must have the strings role and content")
        if role not in _ROLES:
            raise _FaultError(f"{column}: message {number} has role {role!r}; allowed: {', '.join(_ROLES)}")
        messages.append(Message(_ROLES[role], content))
    return tuple(messages)


def _prompt_messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    messages = _messages(value, column)
    if messages[-1].role != "user":
        raise _FaultError(f"{column}: must end with a user message, not with {messages[-1].role!r}")
    return messages


def _common_start(chosen: tuple[Message, ...], rejected: tuple[Message, ...], columns: Columns) -> tuple[Message, ...]:
    """The prompt of two whole conversations: all turns but the last, which must be the same in both."""
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise _FaultError(
            f"{columns.chosen} and {columns.rejected}: without a prompt they must be "
            "conversations equal but for the last turn"
        )
    if chosen[-2].role != "user":
        raise _FaultError(f"{columns.chosen}: the turn before the last must be the user's, not {chosen[-2].role!r}")
    return chosen[:-1]


def _completion(value: JsonValue, prompt: tuple[Message, ...], column: str) -> str:
    """The assistant's text: a string, a list with the assistant's turn, or the whole conversation."""
    if isinstance(value, str):
        return value
    messages = _messages(value, column)
    if prompt and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages)
        raise _FaultError(f"{column}: must hold one assistant turn after the prompt, but holds: {roles or 'nothing'}")
    return messages[0].content


def _kind(value: JsonValue) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list" if value else "an empty list"}.get(
        type(value).__name__, f"{type(value).__name__} {value!r}"[:60]
    )
