"""Read prompts and preferences row by row from the user's files, a data set or the generated task.

A row that cannot be read is returned with its fault; the caller decides what to do with it. Uses no tokenizer:
``pipeline.training.pairs.from_data`` makes the tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar, assert_never

from pipeline.config import (
    AnyData,
    ConditionData,
    DatasetData,
    DotPairs,
    DotsData,
    FileData,
    ImageData,
    MixtureData,
    PairData,
    RestaurantData,
    UserData,
)
from pipeline.data.files.records import Record, read_records
from pipeline.data.forms.cells import FaultError, RowCause
from pipeline.data.forms.joined import grouped
from pipeline.data.forms.parsing import FORMS, preference_of, prompt_of
from pipeline.data.forms.paths import find
from pipeline.data.tasks.dots import condition_prompts, dot_prompts
from pipeline.data.tasks.restaurants import generate
from pipeline.types import Message, Prompt, TextGroup, TextPreference

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SourceRow(Generic[T]):
    """One row: its value or its fault. ``number`` counts from 1 in ``file``, as ``records.Record`` does.

    Consecutive rows that form one group are one row, with the number of the first. ``columns`` are those of the file.
    ``prompt``: of a preference, as ``read_prompts`` reads it, also where the preference has a fault.
    ``member``: the place, from 0, of the file or data set in a mixture.
    """

    file: str
    number: int
    value: T | None
    fault: str | None = None
    cause: RowCause = "malformed"
    columns: tuple[str, ...] = ()
    prompt: Prompt | None = None
    member: int | None = None

    @property
    def place(self) -> str:
        """For messages: ``pairs.jsonl, row 3``."""
        return f"{self.file}, row {self.number}"

    def name_in(self, source: str) -> str:
        """The name in the config of what the row is from; ``source``: prompts, pairs or held_out."""
        return source if self.member is None else f"{source}.of.{self.member}"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt and its row's reference responses: at most one, except in the generated task."""

    prompt: Prompt
    texts: tuple[str, ...] = ()


def read_prompts(data: AnyData) -> Iterator[SourceRow[PromptRow]]:
    """Yield the prompts of all rows, of pairs too; rows with the same prompt stay separate.

    Of a mixture, all rows of all members; ``spool.mixing`` tells which are used.

    Raises:
        UserError: no data, or a file that is damaged as a whole.
    """
    match data:
        case FileData() | DatasetData():
            yield from _parsed(data, lambda record: _prompt_row(record, data))
        case ImageData():
            # Text runs need no decoders of images.
            from pipeline.data.pictures.rows import parsed_images, prompt_with_images

            for record, found in parsed_images(data, partial(prompt_with_images, data)):
                yield _source_row(record, found if isinstance(found, FaultError) else PromptRow(*found))
        case MixtureData():
            yield from _in_turn(data, read_prompts)
        case RestaurantData():
            for number, row in enumerate(generate(data), 1):
                prompt = Prompt((Message("user", row.mr),), "restaurants", answer=row.mr, reference=row.references[0])
                yield SourceRow("restaurants", number, PromptRow(prompt, row.references))
        case DotsData():
            yield from (SourceRow("dots", n, PromptRow(prompt)) for n, prompt in enumerate(dot_prompts(data), 1))
        case DotPairs():
            for pair in _of_dots(data):
                yield SourceRow("dots", pair.number, None if pair.prompt is None else PromptRow(pair.prompt))
        case ConditionData():
            named = condition_prompts(data.of, data.repeats)
            yield from (SourceRow("conditions", n, PromptRow(prompt)) for n, prompt in enumerate(named, 1))
        case _:
            assert_never(data)


def read_preferences(data: PairData, several_turns: bool = False) -> Iterator[SourceRow[TextPreference]]:
    """Yield preferences in one of three forms, decided by the columns; a data set holds one form.

    - Pairs: ``prompt``, ``chosen``, ``rejected``, with scores, votes, a soft label, win probabilities or priors if
      the data has them. Chosen and rejected are texts, lists with the assistant's turn or the whole conversation, or
      transcripts; without a prompt column, the prompt is their common start.
      With ``several_turns``, their conversations may part before the last turn.
    - Groups: ``prompt``, ``responses`` (a list), ``rewards`` (one for each).
    - Single responses: ``prompt``, ``completion``, ``label`` (true: good).

    Of images, the responses are names, as ``pictures.rows`` makes them.

    Of a mixture, all rows of all members; ``spool.mixing`` tells which are used.

    Raises:
        UserError: no data, or a file that is damaged as a whole.
    """
    first: SourceRow[TextPreference] | None = None
    for row in _preferences(data, several_turns):
        if row.value is not None:
            first = first or row
            assert first.value is not None
            if type(row.value) is not type(first.value):
                what, other = FORMS[type(row.value)], FORMS[type(first.value)]
                fault = f"{what}, but {first.place} is {other}; a data set holds one form"
                yield SourceRow(row.file, row.number, None, fault, prompt=row.prompt, member=row.member)
                continue
        yield row


def _preferences(data: PairData, several_turns: bool) -> Iterator[SourceRow[TextPreference]]:
    match data:
        case MixtureData():
            return _in_turn(data, partial(_preferences_in, several_turns=several_turns))
        case ImageData():
            return _among_images(data)
        case DotPairs():
            return _of_dots(data)
        case _:
            return _preferences_in(data, several_turns)


def _among_images(data: ImageData) -> Iterator[SourceRow[TextPreference]]:
    from pipeline.data.pictures.rows import parsed_images, preference_among_images

    found: Iterator[tuple[Record, TextPreference | FaultError]]
    found = parsed_images(data, partial(preference_among_images, data))
    for record, made in found:
        prompt = None if isinstance(made, FaultError) else made.prompt
        row: SourceRow[TextPreference] = _source_row(record, made)
        yield replace(row, prompt=prompt)


def _of_dots(data: DotPairs) -> Iterator[SourceRow[TextPreference]]:
    from pipeline.data.pictures.dot_rows import dot_preferences

    for number, pair in enumerate(dot_preferences(data), 1):
        yield SourceRow("dots", number, pair, prompt=pair.prompt)


def _source_row(record: Record, found: T | FaultError) -> SourceRow[T]:
    """Return a record with what was made of it, or its fault."""
    if isinstance(found, FaultError):
        return SourceRow(record.file, record.number, None, str(found), found.cause)
    return SourceRow(record.file, record.number, found, columns=tuple(record.values))


def values(rows: Iterable[SourceRow[T]]) -> Iterator[T]:
    """Yield the values of the rows without a fault."""
    return (row.value for row in rows if row.value is not None)


def _in_turn(data: MixtureData, read: Callable[[UserData], Iterator[SourceRow[T]]]) -> Iterator[SourceRow[T]]:
    for place, part in enumerate(data.of):
        yield from (replace(row, member=place) for row in read(part))


def _preferences_in(data: UserData, several_turns: bool) -> Iterator[SourceRow[TextPreference]]:
    def prompt(record: Record, value: TextPreference | None) -> Prompt | None:
        return _prompt_of(record, value, data)

    return _parsed(data, lambda record: preference_of(record, data, several_turns), prompt)


def _prompt_row(record: Record, data: FileData | DatasetData) -> PromptRow:
    prompt = prompt_of(record, data)
    return PromptRow(prompt, () if prompt.reference is None else (prompt.reference,))


def _prompt_of(record: Record, value: TextPreference | None, data: FileData | DatasetData) -> Prompt | None:
    """Return what ``prompt_of`` does, or None for a row without a prompt; mostly it is that of the preference."""
    columns = data.columns
    names = columns.prompt_columns
    referenced = columns.response in names or find(record.values, columns.response) is not None
    # A group of whole conversations may leave some out.
    whole = not isinstance(value, TextGroup) or any(isinstance(find(record.values, name), str | list) for name in names)
    if value is not None and whole and not referenced:
        return value.prompt
    try:
        return prompt_of(record, data)
    except FaultError:
        return None


def _parsed(
    data: FileData | DatasetData,
    parse: Callable[[Record], T],
    prompt: Callable[[Record, T | None], Prompt | None] = lambda record, value: None,
) -> Iterator[SourceRow[T]]:
    records = read_records(data)
    for record in grouped(records, data) if data.rows == "responses" else records:
        if record.fault is not None:
            yield SourceRow(record.file, record.number, None, record.fault)
            continue
        try:
            value = parse(record)
        except FaultError as fault:
            said, cause = str(fault), fault.cause
            yield SourceRow(record.file, record.number, None, said, cause, prompt=prompt(record, None))
        else:
            columns = tuple(record.values)
            yield SourceRow(record.file, record.number, value, columns=columns, prompt=prompt(record, value))
