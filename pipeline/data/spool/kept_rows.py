"""The rows of a run's data, each parsed once and kept on disk for whoever reads it next. Torch-free."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

from pipeline.config import AnyData, MixtureData, RunConfig
from pipeline.data.reading import PromptRow, SourceRow, read_preferences, read_prompts
from pipeline.data.sources import held_out_source
from pipeline.data.spool.mixing import MemberRows, MixtureRows, select
from pipeline.data.spool.temporary_table import TemporaryTable
from pipeline.types import Message, Prompt, TextGroup, TextPair, TextPreference, UnpairedText

T = TypeVar("T")
Source = Literal["prompts", "pairs", "held_out"]
AnyRow = SourceRow[PromptRow] | SourceRow[TextPreference]
_AT_ONCE = 256
_FORMS: dict[str, Callable[..., PromptRow | TextPreference]] = {
    kind.__name__: kind for kind in (PromptRow, TextPair, TextGroup, UnpairedText)
}


class RunRows:
    """The rows of a run's sources, in the order of the data. They are parsed when they are first read.

    Of a mixture with weights, those that are used, and those with a fault.
    """

    def __init__(self, config: RunConfig, each: Callable[[], object] = lambda: None) -> None:
        """``each`` is called whenever a row is parsed."""
        self._config = config
        self._each = each
        self._kept: dict[Source, _KeptRows[Any]] = {}
        self._selected: dict[Source, MixtureRows] = {}

    def prompts(self, source: Source) -> Iterator[SourceRow[PromptRow]]:
        """Yield all rows of ``source`` as ``read_prompts`` does; raises ``UserError`` as it does."""
        for row in self._of(source):
            if isinstance(row.value, PromptRow):
                yield row
            else:
                yield replace(row, value=None if row.prompt is None else PromptRow(row.prompt))

    def preferences(self, source: Source) -> Iterator[SourceRow[TextPreference]]:
        """Yield all rows of ``source`` as ``read_preferences`` does; raises ``UserError`` as it does."""
        return self._of(source)

    def all(self) -> Iterator[tuple[Source, Iterator[AnyRow]]]:
        """Yield everything that is read, also rows with a fault, by its name in the config."""
        if self._config.prompts is not None:
            yield "prompts", self._of("prompts")
        if self._config.pairs is not None:
            yield "pairs", self._of("pairs")
        if held_out_source(self._config) is not None:
            yield "held_out", self._of("held_out")

    def members(self) -> list[MemberRows]:
        """Count the rows of the members of mixtures; raises ``UserError`` as reading them does."""
        config = self._config
        mixtures: list[tuple[Source, AnyData | None]] = [("prompts", config.prompts), ("pairs", config.pairs)]
        found = [(name, self._selection(name, data)) for name, data in mixtures if isinstance(data, MixtureData)]
        return [member for name, selection in found for member in selection.counts(name)]

    def _of(self, source: Source) -> Iterator[SourceRow[Any]]:
        data = {"prompts": self._config.prompts, "pairs": self._config.pairs}.get(source)
        if isinstance(data, MixtureData) and data.is_weighted:
            return filter(self._selection(source, data).keeps, self._all(source))
        return iter(self._all(source))

    def _selection(self, source: Source, data: MixtureData) -> MixtureRows:
        if source not in self._selected:
            self._selected[source] = select(data, self._all(source))
        return self._selected[source]

    def _all(self, source: Source) -> "_KeptRows[Any]":
        if source not in self._kept:
            self._kept[source] = _KeptRows(self._read(source), self._each)
        return self._kept[source]

    def _read(self, source: Source) -> Iterator[AnyRow]:
        config = self._config
        if source == "pairs":
            assert config.pairs is not None, "asked only of a run with pairs"
            return read_preferences(config.pairs, config.training.turns == "all_chosen")
        if config.prompts is not None and source == "prompts":
            return read_prompts(config.prompts)
        given = held_out_source(config)
        assert given is not None, "asked only of a source that the run has"
        if config.prompts is None:
            return read_preferences(given, config.training.turns == "all_chosen")
        return read_prompts(given)


class _KeptRows(Generic[T]):
    """Rows that may be read any number of times; the first time, they are parsed and written to a temporary file."""

    def __init__(self, rows: Iterator[SourceRow[T]], each: Callable[[], object]) -> None:
        self._rows = rows
        self._each = each
        self._table = TemporaryTable("CREATE TABLE rows (number INTEGER PRIMARY KEY, row TEXT)")
        self._count = 0
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[SourceRow[T]]:
        number = 0
        while True:
            while number < self._count:
                query = "SELECT row FROM rows WHERE number > ? ORDER BY number LIMIT ?"
                for (text,) in [*self._table.read(query, number, _AT_ONCE)]:
                    number += 1
                    yield _row(json.loads(text))
            row = self._parse()
            if row is None:
                return
            number += 1
            yield row

    def _parse(self) -> SourceRow[T] | None:
        """Return one more row of the source, or None after the last. Raises again what has ended it."""
        if self._failure is not None:
            raise self._failure
        try:
            row = next(self._rows, None)
        except Exception as error:
            self._failure = error
            raise
        if row is not None:
            self._count += 1
            self._table.write("INSERT INTO rows VALUES (?, ?)", self._count, json.dumps(_plain_row(row)))
            self._each()
        return row


def _plain_row(row: SourceRow[Any]) -> list[Any]:
    value = row.value
    # The prompt of a preference that has one is the same object.
    shared = value is not None and row.prompt is value.prompt
    return [
        None if value is None else _plain_value(value),
        shared or (None if row.prompt is None else _plain_prompt(row.prompt)),
        row.file,
        row.number,
        row.fault,
        row.cause,
        row.columns,
        row.member,
    ]


def _row(plain: Sequence[Any]) -> SourceRow[Any]:
    held, asked, file, number, fault, cause, columns, member = plain
    value = None if held is None else _value(held)
    prompt = value.prompt if asked is True and value is not None else None if asked is None else _prompt(asked)
    return SourceRow(file, number, value, fault, cause, tuple(columns), prompt, member)


def _plain_value(value: PromptRow | TextPreference) -> list[Any]:
    names = value.__dataclass_fields__
    return [type(value).__name__, _plain_prompt(value.prompt), *(getattr(value, name) for name in [*names][1:])]


def _value(plain: Sequence[Any]) -> PromptRow | TextPreference:
    kind, prompt, *fields = plain
    return _FORMS[kind](_prompt(prompt), *(tuple(held) if isinstance(held, list) else held for held in fields))


def _plain_prompt(prompt: Prompt) -> list[Any]:
    return [
        [turn.whole for turn in prompt.messages],
        prompt.source,
        prompt.answer,
        prompt.reference,
        prompt.origin,
        prompt.guessed,
        prompt.rubric,
    ]


def _prompt(plain: Sequence[Any]) -> Prompt:
    turns, *rest = plain
    return Prompt(tuple(Message(*parts) for parts in turns), *rest)
