"""Prompts, reference texts and preferences from the user's files or the generated task.

Every row is checked before anything is returned: a fault names file, row and column. Rows with one
prompt are one prompt. Knows no tokenizer; ``given`` makes tokens of what is read here.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar, assert_never

from pipeline import cells
from pipeline.cells import FaultError
from pipeline.config import Columns, Data, FileData, HeldOut, RestaurantData
from pipeline.records import Record, read_records
from pipeline.restaurants import generate
from pipeline.types import (
    Message,
    Prompt,
    TextGroup,
    TextPair,
    TextPreference,
    UnpairedText,
    UserError,
    content_hash,
    first_lines,
)

T = TypeVar("T")
FORMS: dict[type[TextPreference], str] = {
    TextPair: "a pair (chosen, rejected)",
    TextGroup: "a group (responses, rewards)",
    UnpairedText: "a single response (completion, label)",
}


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


def read_preferences(data: FileData) -> list[TextPreference]:
    """Preferences in one of three forms, which the columns tell apart; a file holds one form.

    - Pairs, in TRL's form: ``prompt``, ``chosen``, ``rejected``, with scores, a soft label, win probabilities or
      priors where the file has them. Lists under chosen and rejected hold the assistant's turn alone or the whole
      conversation; without a prompt column the prompt is what both begin with.
    - Groups: ``prompt``, ``responses`` (a list), ``rewards`` (a number for each).
    - Single responses, in the form of TRL's KTO: ``prompt``, ``completion``, ``label`` (true: good).

    Raises:
        UserError: no rows, malformed rows (up to five are shown), or rows of several forms.
    """
    rows = _read(data.path, lambda record: _preference(record, data.columns))
    first, first_place = rows[0]
    for row, place in rows:
        if type(row) is not type(first):
            raise UserError(f"{place}: {FORMS[type(row)]}, but {first_place} is {FORMS[type(first)]}; one form a file")
    return [row for row, _ in rows]


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


# ---------------------------------------------------------------- rows


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
                raise FaultError(record.fault)
            parsed.append((parse(record), record.place))
        except FaultError as fault:
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
    messages = cells.prompt_messages(cells.required(values, columns.prompt), columns.prompt)
    response = cells.optional_text(values, columns.response)
    if columns.response == columns.prompt:
        raise FaultError(f"columns.response and columns.prompt are both {columns.prompt!r}")
    answer = cells.plain_answer(values, columns.answer)
    prompt = Prompt(messages, source=record.file.name, answer=answer, reference=response)
    return prompt, () if response is None else (response,)


def _preference(record: Record, columns: Columns) -> TextPreference:
    there = {column for column, value in record.values.items() if value is not None}
    if {columns.chosen, columns.rejected}.isdisjoint(there):
        if columns.responses in there:
            return _group(record, columns)
        if columns.completion in there:
            return _unpaired(record, columns)
    return _pair(record, columns)


def _group(record: Record, columns: Columns) -> TextGroup:
    values = record.values
    messages = cells.prompt_messages(cells.required(values, columns.prompt), columns.prompt)
    responses = cells.completions(values[columns.responses], messages, columns.responses)
    rewards = cells.numbers(cells.required(values, columns.rewards), columns.rewards)
    if len(responses) != len(rewards):
        raise FaultError(f"{columns.rewards}: {len(rewards)} for {len(responses)} {columns.responses}; one for each")
    return TextGroup(_prompt(record, messages, columns), responses, rewards)


def _unpaired(record: Record, columns: Columns) -> UnpairedText:
    values = record.values
    messages = cells.prompt_messages(cells.required(values, columns.prompt), columns.prompt)
    completion = cells.completion(values[columns.completion], messages, columns.completion)
    desirable = cells.truth(cells.required(values, columns.label), columns.label)
    return UnpairedText(_prompt(record, messages, columns), completion, desirable)


def _pair(record: Record, columns: Columns) -> TextPair:
    values = record.values
    chosen, rejected = (cells.required(values, column) for column in (columns.chosen, columns.rejected))
    if values.get(columns.prompt) is not None:
        messages = cells.prompt_messages(values[columns.prompt], columns.prompt)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        whole = [cells.messages(chosen, columns.chosen), cells.messages(rejected, columns.rejected)]
        messages = _common_start(whole[0], whole[1], columns)
    else:
        raise FaultError(
            f"no column {columns.prompt!r} (only whole conversations under {columns.chosen!r} can do without)"
        )
    soft_label = cells.optional_probability(values, columns.soft_label)
    wins = cells.optional_probability(values, columns.win_probability)
    wins_rejected = cells.optional_probability(values, columns.win_probability_rejected)
    if wins is None and wins_rejected is not None:
        raise FaultError(f"{columns.win_probability_rejected}: {wins_rejected:g}, but no {columns.win_probability}")
    return TextPair(
        prompt=_prompt(record, messages, columns),
        chosen=cells.completion(chosen, messages, columns.chosen),
        rejected=cells.completion(rejected, messages, columns.rejected),
        chosen_score=cells.optional_number(values, columns.chosen_score),
        rejected_score=cells.optional_number(values, columns.rejected_score),
        soft_label=1.0 if soft_label is None else soft_label,
        win_probability=wins,
        win_probability_rejected=wins_rejected,
        chosen_prior=cells.optional_number(values, columns.chosen_prior),
        rejected_prior=cells.optional_number(values, columns.rejected_prior),
    )


def _prompt(record: Record, messages: tuple[Message, ...], columns: Columns) -> Prompt:
    return Prompt(messages, source=record.file.name, answer=cells.plain_answer(record.values, columns.answer))


def _common_start(chosen: tuple[Message, ...], rejected: tuple[Message, ...], columns: Columns) -> tuple[Message, ...]:
    """The prompt of two whole conversations: all turns but the last, which must be the same in both."""
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise FaultError(
            f"{columns.chosen} and {columns.rejected}: without a prompt they must be "
            "conversations equal but for the last turn"
        )
    if chosen[-2].role != "user":
        raise FaultError(f"{columns.chosen}: the turn before the last must be the user's, not {chosen[-2].role!r}")
    return chosen[:-1]
